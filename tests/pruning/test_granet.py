"""GraNet: prunes to its curve, regrows by the gradient, and resumes."""

from __future__ import annotations

import itertools
import warnings

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
from keras import layers

import keras_ntt
from keras_ntt import GraNet, get_masks
from keras_ntt.masks.policies import choose_weights
from keras_ntt.pruning.granet import exchange


def test_exchange_by_hand():
    values = [np.array([[5.0, -4.0, 0.1, 0.0], [3.0, 0.0, 0.2, 0.0]])]
    masks = [np.array([[True, True, True, False], [True, False, True, False]])]
    gradients = [np.array([[9.0, 9.0, 1.0, 2.0], [9.0, -3.0, 0.5, 1.0]])]
    # To four: 0.1 is dropped. Half of four: 0.2 and 3 go; 9 (of the 3) and |-3| come.
    (found,) = exchange(values, masks, lambda: gradients, total=4, fraction=0.5)
    assert found.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    gradients[0][1, 0] = 0.0
    (found,) = exchange(values, masks, lambda: gradients, total=4, fraction=0.5)
    assert found.astype(int).tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]


def test_exchange_needs_no_gradient_for_nothing():
    values, masks = [np.arange(8.0)], [np.ones(8, bool)]
    (found,) = exchange(values, masks, lambda: pytest.fail("asked"), total=3, fraction=0.2)
    assert np.flatnonzero(found).tolist() == [5, 6, 7]


def granet(**options):
    settings = {"end_step": 8, "frequency": 2, "batch_size": 8, **options}
    return GraNet(settings.pop("sparsity", 0.75), settings.pop("data", data()), **settings)


def test_granet_with_fewer_entries_than_weights():
    """One of 72 entries for two weights."""
    model = mlp()
    with pytest.raises(ValueError, match=r"fewer entries to keep.*Received: sparsity=0\.985"):
        model.fit(*data(), callbacks=[GraNet(0.985, data(), end_step=2)], verbose=0)
    assert get_masks(model) == {}


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}], ids=str)
def test_granet_prunes_to_its_curve_and_regrows(options):
    model, watch, callback = mlp(**options), Watch(), granet()
    x, y = data(n=64)
    model.fit(x, y, epochs=1, batch_size=6, callbacks=[callback, watch], verbose=0)
    totals = [total(m) for m, _ in watch.batches]
    # (1 - progress)^3 with progress 0, 1/4, 1/2, 3/4, 1 after 0, 2, 4, 6, 8 steps.
    curve = [round(72 * (1 - (0.75 - 0.75 * (1 - k / 4) ** 3))) for k in range(5)]
    assert totals == [curve[0], *np.repeat(curve[1:], 2), curve[4], curve[4]][: len(totals)]
    regrown = 0
    for (before, _), (after, values) in itertools.pairwise(watch.batches):
        for a, b, value in zip(before, after, values, strict=True):
            new = b & ~a
            regrown += new.sum()
            assert not value[new].any(), "what is regrown begins at 0"
            assert not value[~b].any()
    assert regrown > 0
    for mask, value in zip(masks_of(model), kernels(model), strict=True):
        np.testing.assert_array_equal(value != 0, mask)


def test_granet_regrows_where_the_gradient_is_largest():
    model, callback = mlp(), granet(end_step=1, frequency=1, regrow=0.5, sparsity=0.5, data=data(8))
    callback.set_model(model)
    start = kernels(model)
    x, y = data(8)
    masks = {
        v.path: np.abs(w) >= np.median(np.abs(w))
        for v, w in zip(choose_weights(model).weights, start, strict=True)
    }
    keras_ntt.apply_masks(model, masks)
    with tf.GradientTape() as tape:
        logits = model(x, training=False)
        loss = tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        )
    gradients = tape.gradient(loss, [v.value for v in choose_weights(model).weights])
    callback.initial_sparsity = 0.5
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    for old, new, gradient, value in zip(
        masks.values(), masks_of(model), gradients, start, strict=True
    ):
        n = int(old.sum()) // 2
        stays = old & (np.abs(value) >= np.sort(np.abs(value[old]))[n])
        assert (new & stays).sum() == stays.sum() == old.sum() - n
        slope = np.abs(gradient.numpy())
        assert slope[new & ~stays].min() >= slope[~new].max()


def test_granet_on_data_without_batches():
    model = mlp()
    none = tf.data.Dataset.from_tensor_slices(data()).batch(8).filter(lambda x, y: False)
    with pytest.raises(ValueError, match="data hold no batches"):
        model.fit(*data(), callbacks=[GraNet(0.5, none, end_step=2)], verbose=0)
    assert get_masks(model) == {}


def test_granet_works_on_a_network_that_is_pruned_already():
    model = keras_ntt.prune_at_init(mlp(), sparsity=0.75, saliency="random", allocation="erk")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    first, watch = masks_of(model), Watch()
    x, y = data(n=64)
    model.fit(x, y, batch_size=6, callbacks=[granet(initial_sparsity=0.75), watch], verbose=0)
    assert {total(m) for m, _ in watch.batches} == {18}
    assert any((a != b).any() for a, b in zip(first, masks_of(model), strict=True))


def test_granet_with_several_steps_an_execution():
    model, watch = mlp(steps_per_execution=3), Watch()
    x, y = data(n=54)
    model.fit(x, y, batch_size=6, callbacks=[granet(), watch], verbose=0)
    assert total(masks_of(model)) == 18


def granet_run(seed, *callbacks, first=True):
    keras.utils.set_random_seed(seed)
    model = mlp()
    granet = GraNet(0.8, data(), end_step=12, frequency=2, regrow=0.5)
    order = [granet, *callbacks] if first else [*callbacks, granet]
    model.fit(*data(), batch_size=8, epochs=5, shuffle=False, callbacks=order, verbose=0)
    return model


@pytest.mark.parametrize(("epoch", "first"), [(0, True), (1, False), (3, True), (3, False)])
@pytest.mark.long
def test_granet_in_a_run_that_is_resumed(tmp_path, epoch, first):
    whole = whole_run(granet_run)
    with pytest.raises(StoppedError):
        granet_run(0, keras_ntt.BackupAndRestore(tmp_path), Stop(epoch), first=first)
    resumed = granet_run(5, keras_ntt.BackupAndRestore(tmp_path), first=first)
    assert total(masks_of(resumed)) == total(masks_of(whole)) == 14
    if epoch == 3:  # after its end; before, it goes on with other batches for the gradient
        for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_granet_goes_on_from_zeros_where_there_are_no_masks(tmp_path):
    with pytest.raises(StoppedError):
        granet_run(0, keras.callbacks.BackupAndRestore(tmp_path), Stop(3), first=False)
    resumed = granet_run(5, keras.callbacks.BackupAndRestore(tmp_path), first=False)
    assert total(masks_of(resumed)) == sum(np.count_nonzero(k) for k in kernels(resumed)) == 14


@pytest.mark.long
def test_granet_takes_labels_of_several_outputs():
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(inputs)
    outputs = {name: layers.Dense(n, name=name)(hidden) for name, n in (("a", 1), ("b", 2))}
    model = keras.Model(inputs, outputs)
    x, rng = data()[0], np.random.default_rng(1)
    y = {name: rng.normal(size=(32, n)).astype("float32") for name, n in (("a", 1), ("b", 2))}
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    found = []
    start = model.get_weights()
    for given in ((x, y), batches):
        model.set_weights(start)
        keras_ntt.strip_pruning(model)
        model.compile("adam", {"a": "mse", "b": "mse"}, jit_compile=False)
        granet = GraNet(0.7, given, end_step=8, frequency=2, batch_size=8)
        model.fit(batches, epochs=3, shuffle=False, callbacks=[granet], verbose=0)
        found.append(masks_of(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert total(found[0]) == round(0.3 * sum(m.size for m in found[0]))
    wrong = GraNet(0.7, (x, {**y, "b": y["b"][:5]}), end_step=8)
    with pytest.raises(ValueError, match="one label for each sample"):
        model.fit(batches, shuffle=False, callbacks=[wrong], verbose=0)


def test_granet_says_when_training_is_too_short():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        mlp().fit(*data(), callbacks=[granet()], verbose=0)
    (text,) = [str(w.message) for w in found if w.category is UserWarning]
    assert "ended at step 1, before GraNet's last one, 8" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1}, "sparsity is the fraction of zeros"),
        ({"initial_sparsity": 0.9}, "initial_sparsity must be at most"),
        ({"begin_step": 8}, "end_step must be after begin_step"),
        ({"begin_step": -1}, "begin_step must be a positive integer"),
        ({"frequency": 0}, "frequency must be a positive integer"),
        ({"regrow": 1.0}, r"regrow must be a number in \[0, 1\)"),
        ({"data": data()[0]}, "data must be labelled"),
    ],
)
def test_granet_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        granet(**options)
