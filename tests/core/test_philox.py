"""First values from a seed, against published words and another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_ntt.core import philox

# The known answers that Random123, the authors' library, is tested with.
ONES, PI = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES,) * 4, (ONES,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (PI, (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_published_words(counter, key, words):
    found = philox.philox(np.array([counter], "uint32"), key)[0]
    assert " ".join(f"{word:08x}" for word in found) == words


@pytest.mark.parametrize(("seed", "weight"), [(0, 0), (7, 3), (2**40 + 5, 11), (2**64 - 1, 2**31)])
def test_values_are_the_formula_on_the_words_of_tensorflow(seed, weight):
    """TensorFlow's Philox has the same blocks: its counter is two words of 64 bits."""
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[103],
        key=tf.constant([seed], tf.uint64),
        counter=tf.constant([0, weight], tf.uint64),
        dtype=tf.uint32,
        alg=1,
    ).numpy()
    exact = (2.0 * (words >> 8).astype("float64") + 1) / 2**24 - 1
    wanted = (exact * np.float64(np.float32(0.3))).astype("float32")  # one rounding, too
    found = philox.uniform(seed, weight, 103, 0.3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_chunks_are_parts_of_one_sequence(monkeypatch):
    whole = philox.uniform(3, 1, 1001, 1.0)
    monkeypatch.setattr(philox, "_CHUNK", 16)
    np.testing.assert_array_equal(philox.uniform(3, 1, 1001, 1.0), whole)


def test_stored_values():
    """The bits of the specification; they never change."""
    found = philox.uniform(2026, 2, 6, 0.125).view("uint32")
    assert [f"{bits:08x}" for bits in found] == STORED


STORED = ["bd3375aa", "3caed33c", "bdc5bef3", "3dc4e1f3", "3de38b75", "bd678312"]
