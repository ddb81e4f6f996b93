"""Differences in files: exact to the bit, and refused where they do not belong."""

from __future__ import annotations

import os

import hypothesis
import keras
import numpy as np
import pytest
from helpers.errors import refused, small
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_ntt import load_difference, save_difference
from keras_ntt.core import philox
from keras_ntt.core.fingerprints import fingerprint
from keras_ntt.masks import difference_format as form

REFUSED = "not a whole file as keras_ntt.save_difference"


def assert_same_bits(found, wanted):
    for a, b in zip(found.get_weights(), wanted.get_weights(), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(form.bits(a), form.bits(b))


def tuned(base, rng, share=0.2):
    model = keras.models.clone_model(base)
    model.set_weights(
        [w + (rng.random(w.shape) < share) * rng.normal(size=w.shape) for w in base.get_weights()]
    )
    return model


@hypothesis.given(
    hnp.arrays("uint32", (5, 3)), hnp.arrays("uint32", (5, 3)), hnp.arrays(bool, (5, 3))
)
def test_any_bits_come_back(mine, theirs, same):
    """Infinities, payloads of NaN, subnormal numbers and the sign of zero among them."""
    mine = np.where(same, theirs, mine)
    value, base = mine.view("float32"), theirs.view("float32")
    odd = np.arange(4, dtype="float16"), np.zeros(4, "float16")
    written = form.encode(
        form.Content([form.Part(value, base, None), form.Part(*odd, None)], fingerprint="f")
    )
    header = form.decode_header(written, base.nbytes)
    assert header.counts == [np.count_nonzero(mine != theirs), 3]
    first, second = form.decode(written, header, [base, odd[1]])
    np.testing.assert_array_equal(first.view("uint32"), mine)
    np.testing.assert_array_equal(second, odd[0])


@hypothesis.given(st.sets(st.integers(0, 3000), max_size=30))
def test_places(places):
    places = np.array(sorted(places), "int64")
    gaps = np.frombuffer(form._gaps(places), "uint8")
    np.testing.assert_array_equal(form._places(gaps), places)
    at, read = -1, []  # by the words of the specification, one byte after another
    for byte in gaps:
        at += int(byte)
        if byte < 255:
            at += 1
            read.append(at)
    assert read == places.tolist()


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
@pytest.mark.few(2)
def test_round_trip(tmp_path, rng, dtype):
    base = small(dtype="float32") if dtype == "float32" else typed(dtype)
    model = tuned(base, rng)
    before = base.get_weights()
    save_difference(model, base, tmp_path / "update")
    again = load_difference(base, tmp_path / "update")
    assert os.listdir(tmp_path) == ["update"]
    assert_same_bits(again, model)
    for old, new in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def typed(dtype):
    keras.config.set_dtype_policy(dtype)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(3)])


def test_a_model_of_every_kind_of_weight(tmp_path, cnn, rng):
    """Moving statistics as well, and a base whose layers have other names."""
    base, model = cnn(), cnn()
    model.set_weights([w + 1 for w in model.get_weights()])
    save_difference(model, base, tmp_path / "update")
    assert_same_bits(load_difference(base, tmp_path / "update"), model)


def test_a_file_of_nothing_is_small(tmp_path):
    base = small()
    save_difference(base, base, tmp_path / "update")
    assert_same_bits(load_difference(base, tmp_path / "update"), base)
    assert (tmp_path / "update").stat().st_size < 260


def test_bytes_of_the_specification(rng):
    """Read again without the package's functions, for a kernel with one entry that differs."""
    import hashlib
    import json
    import zlib

    base = np.ones((2, 200), "float32")
    value = base.copy()
    value[1, 170] = np.nextafter(np.float32(1), np.float32(0))  # one bit down
    written = form.encode(form.Content([form.Part(value, base, None)], fingerprint="abc"))
    assert written[:8] == b"KNTTdif1"
    end = 12 + int.from_bytes(written[8:12], "little")
    header = json.loads(zlib.decompress(written[12:end]))
    assert header["base"] == "abc"
    assert header["weights"] == [["float32 2x200", 1, None]]
    first, second = header["sizes"]
    assert list(zlib.decompress(written[end : end + first])) == [255, 370 - 255]
    values = zlib.decompress(written[end + first : end + first + second])
    assert list(values) == [1, 0, 0, 0]  # -1, with the sign in the lowest bit
    assert written[end + first + second :] == hashlib.sha256(written[:-16]).digest()[:16]


def test_a_seed_is_a_base(tmp_path, rng):
    model = small()
    for place, weight in enumerate(model.weights):
        if weight.name == "kernel":
            limit = np.sqrt(6 / sum(weight.shape))  # Glorot's
            weight.assign(
                philox.uniform(9, place, weight.numpy().size, limit).reshape(weight.shape)
            )
    kernel = model.weights[2].numpy()
    kernel[1] = rng.normal(size=3)
    model.weights[2].assign(kernel)
    model.weights[1].assign([0.0, 1.0, 0.0, 0.0])
    save_difference(model, 9, tmp_path / "seeded")
    other = small()
    assert_same_bits(load_difference(other, tmp_path / "seeded"), model)
    written = (tmp_path / "seeded").read_bytes()
    header = form.decode_header(written, 10**4)
    assert header.counts == [0, 1, 3, 0]
    assert header.seed == 9
    with refused(ValueError, "Pass the seed that keras_ntt.freeze_at_init", model):
        save_difference(model, 8, tmp_path / "seeded")
    assert (tmp_path / "seeded").read_bytes() == written


# --- refused ---------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path, rng):
    base = small()
    save_difference(tuned(base, rng), base, tmp_path / "update")
    return base, tmp_path / "update"


def test_another_base(written):
    _, path = written
    other = small()
    with refused(ValueError, "one to another base.*Received: path=", other):
        load_difference(other, path)
    with refused(ValueError, "of a model with other weights.*Received: path=", other):
        load_difference(small(units=5), path)


def test_another_model_to_save(tmp_path):
    with refused(ValueError, "base must have the weights of the model.*Received"):
        save_difference(small(), small(units=5), tmp_path / "update")
    with refused(TypeError, "base must be the keras.Model.*Received: base='a'"):
        save_difference(small(), "a", tmp_path / "update")
    assert os.listdir(tmp_path) == []


def test_damaged_bytes_are_found(written):
    base, path = written
    whole = path.read_bytes()
    for i in range(0, len(whole), 5):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(ValueError, match=REFUSED):
            load_difference(base, path)
    for cut in (0, 7, 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=REFUSED):
            load_difference(base, path)
    path.write_bytes(whole + b"0")
    with pytest.raises(ValueError, match=REFUSED):
        load_difference(base, path)


@pytest.mark.parametrize("what", ["places", "count", "values", "bomb", "generator"])
def test_a_forged_file_is_found(written, what, monkeypatch):
    """Files with a right checksum that say what cannot be."""
    base, path = written
    bases = base.get_weights()
    parts = [form.Part(b, b, None) for b in bases]
    if what == "places":
        parts[0] = form.Part(np.ones((6, 5), "float32"), np.zeros((6, 5), "float32"), None)
        monkeypatch.setattr(form, "shape_of", lambda v: f"float32 {'x'.join(map(str, v.shape))}")
    content = form.Content(parts, fingerprint=fingerprint(bases))
    if what == "generator":
        content = form.Content(parts, seed=1)
        monkeypatch.setattr(philox, "NAME", "another")
    if what == "values":
        monkeypatch.setattr(form, "_planes", lambda steps: bytes(8))
    if what == "bomb":
        monkeypatch.setattr(form, "_planes", lambda steps: bytes(10**6))
    if what == "count":
        monkeypatch.setattr(form, "_gaps", lambda places: b"\1")
    forged = form.encode(content)
    monkeypatch.undo()
    if what == "places":
        forged = forged_shape(forged)
    path.write_bytes(forged)
    with refused(ValueError, REFUSED, base):
        load_difference(base, path)


def forged_shape(written):
    import hashlib
    import json
    import zlib

    end = 12 + int.from_bytes(written[8:12], "little")
    said = json.loads(zlib.decompress(written[12:end]))
    said["weights"][0][0] = "float32 6x4"
    header = zlib.compress(json.dumps(said).encode())
    body = written[:8] + len(header).to_bytes(4, "little") + header + written[end:-16]
    return body + hashlib.sha256(body).digest()[:16]
