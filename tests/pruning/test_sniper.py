"""SNIPER: entries come back with their initial values, as its table says."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.watched_training import (
    Stop,
    StoppedError,
    Watch,
    data,
    kernels,
    masks_of,
    mlp,
    total,
    whole_run,
)

import keras_ntt
from keras_ntt import SNIPER
from keras_ntt.saliency import NetworkSaliency


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
@pytest.mark.few(1)
def test_sniper_lets_entries_come_back_with_their_initial_values(options):
    model, watch = mlp(**options), Watch()
    initial = kernels(model)
    sparsities = {0: 0.5, 2: 0.25, 3: 0.0}
    model.fit(*data(), epochs=5, callbacks=[SNIPER(sparsities, data()), watch], verbose=0)
    masks = [m for m, _ in watch.epochs]
    assert [total(m) for m in masks] == [36, 36, 54, 72, 72]
    for before, after in itertools.pairwise(masks):
        for a, b in zip(before, after, strict=True):
            assert not (a & ~b).any()
    _, trained = watch.batches[1]  # after epoch 1, of one batch
    for old, new, first, now, start in zip(
        masks[1], masks[2], trained, watch.epochs[2][1], initial, strict=True
    ):
        back = new & ~old
        assert back.any()
        np.testing.assert_array_equal(now[back], start[back])
        np.testing.assert_array_equal(now[old], first[old])
        assert (first[old] != start[old]).any()
    for mask, values in watch.batches:
        for m, v in zip(mask, values, strict=True):
            assert not v[~m].any()
    assert all((a != b).any() for a, b in zip(kernels(model), initial, strict=True))


class Given(NetworkSaliency):
    """Scores of which those of the second weight are far lower."""

    def __call__(self, subject):
        rng = np.random.default_rng(0)
        return [
            tf.constant(rng.random(w.shape) + 2 * (i == 0)) for i, w in enumerate(subject.weights)
        ]


def test_sniper_keeps_every_weight_below_its_highest_sparsity():
    model, watch = mlp(), Watch()
    callback = SNIPER({0: 0.6, 1: 0.3}, saliency=Given(), max_sparsity=0.75)
    model.fit(*data(), epochs=2, callbacks=[callback, watch], verbose=0)
    # 0.6: 29 of 72 are kept; a quarter of the second weight, 6, and the rest from the first.
    assert [[int(m.sum()) for m in masks] for masks, _ in watch.epochs] == [[23, 6], [44, 6]]


def test_sniper_goes_on_in_a_second_fit():
    model, watch = mlp(), Watch()
    initial = kernels(model)
    callback = SNIPER({0: 0.5, 2: 0.0}, data())
    model.fit(*data(), epochs=1, callbacks=[callback], verbose=0)
    model.fit(*data(), initial_epoch=1, epochs=3, callbacks=[callback, watch], verbose=0)
    (old, _), (new, values) = watch.epochs
    assert (total(old), total(new)) == (36, 72)
    for mask, value, start in zip(old, values, initial, strict=True):
        np.testing.assert_array_equal(value[~mask], start[~mask])


def test_sniper_never_prunes_again_what_came_back():
    model = mlp()
    callback = SNIPER({0: 0.5, 1: 0.0}, data())
    model.fit(*data(), epochs=2, callbacks=[callback], verbose=0)
    watch = Watch()
    model.fit(*data(), epochs=2, callbacks=[callback, watch], verbose=0)
    assert [total(masks) for masks, _ in watch.epochs] == [72, 72]


def sniper_run(seed, *callbacks, first=True, epochs=4):
    keras.utils.set_random_seed(seed)
    model = mlp()
    sniper = SNIPER({0: 0.7, 2: 0.4, 3: 0.1}, data())
    order = [sniper, *callbacks] if first else [*callbacks, sniper]
    model.fit(*data(), epochs=epochs, shuffle=False, callbacks=order, verbose=0)
    return model


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.long
def test_sniper_in_a_run_that_is_resumed(tmp_path, epoch):
    whole = whole_run(sniper_run)
    with pytest.raises(StoppedError):
        sniper_run(0, keras_ntt.BackupAndRestore(tmp_path), Stop(epoch))
    resumed = sniper_run(0, keras_ntt.BackupAndRestore(tmp_path))
    for a, b in zip(masks_of(resumed), masks_of(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("seed", "first", "message"),
    [(0, False, "List it before BackupAndRestore"), (1, True, "other initial weights.*seed")],
)
@pytest.mark.few(1)
def test_sniper_refuses_a_run_that_it_cannot_go_on_with(tmp_path, seed, first, message):
    with pytest.raises(StoppedError):
        sniper_run(0, keras_ntt.BackupAndRestore(tmp_path), Stop(1))
    with pytest.raises(ValueError, match=message):
        sniper_run(seed, keras_ntt.BackupAndRestore(tmp_path), first=first)


@pytest.mark.parametrize(
    ("sparsities", "options", "message"),
    [
        ({0: 0.4, 5: 0.5}, {}, "that do not increase"),
        ({1: 0.4}, {}, "beginning\\s+with epoch 0"),
        ({0: 1.0}, {}, r"sparsities in \[0, 1\)"),
        ([0.4], {}, "sparsities must map epochs"),
        ({0: 0.8}, {}, "max_sparsity=0.75"),
        ({0: 0.4}, {"max_sparsity": 2}, r"max_sparsity must be a number in \[0, 1\]"),
        ({0: 0.4}, {"saliency": "other"}, "saliency must be one of"),
        ({0: 0.4}, {"data": data()[0]}, "SNIP needs labels"),
    ],
)
def test_sniper_settings_that_do_not_fit(sparsities, options, message):
    with pytest.raises(ValueError, match=message):
        SNIPER(sparsities, **{"data": data(), **options})
