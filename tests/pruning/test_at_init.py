"""Pruning at initialization, and the first masks of a transfer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import sequential
from helpers.expect import warned
from helpers.small_classifiers import counts_of, data, kernels, mlp
from keras import layers

import keras_ntt
from keras_ntt import (
    NeuralTangentTransfer,
    get_masks,
    prune_at_init,
    prune_neural_tangent,
)
from keras_ntt.saliency import NTKSAP
from keras_ntt.saliency.names import SALIENCIES
from keras_ntt.selection.allocation_names import ALLOCATIONS


def test_the_copy_is_sparse_and_trains_sparse():
    model, (x, y) = mlp(), data()
    before = model.get_weights()
    sparse = prune_at_init(model, sparsity=0.8, saliency="snip", data=(x, y), allocation="erk")
    for new, old, mask in zip(
        kernels(sparse), kernels(model), get_masks(sparse).values(), strict=True
    ):
        np.testing.assert_array_equal(new, old * mask)
    sparse.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    sparse.fit(x, y, epochs=2, verbose=0)
    assert keras_ntt.sparsity_report(sparse).sparsity >= 0.79
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_filters_leave_layers_dense():
    model = mlp()
    pruned = prune_at_init(
        model, sparsity=0.5, saliency="random", filters=lambda layer: layer is not model.layers[0]
    )
    assert len(get_masks(pruned)) == 2
    assert sum(counts_of(pruned)) == round(55 / 2)


def test_the_progress_is_shown(capsys):
    prune_at_init(mlp(), sparsity=0.5, saliency="synflow", rounds=3, verbose=1)
    assert "3/3" in capsys.readouterr().out
    prune_at_init(mlp(), sparsity=0.5, saliency="synflow", rounds=3, verbose=0)
    prune_at_init(mlp(), sparsity=0.5, saliency="magnitude", verbose=1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is the fraction of zeros"),
        ({"rounds": 0}, "rounds must be a positive integer"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"seed": 0.5}, "seed must be an integer of at least 0"),
        ({"pattern": "4:2"}, "pattern must be None, .n:m. with n < m"),
        ({"count_rule": "other"}, "count_rule must be one of"),
        ({"batch_size": 0, "data": data()}, "batch_size must be a positive integer"),
        ({"saliency": lambda weights: weights[:1]}, "A saliency must return"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        prune_at_init(mlp(), **{"sparsity": 0.5, "saliency": "random", **options})


def test_a_model_that_is_pruned_already():
    pruned = prune_at_init(mlp(), sparsity=0.5, saliency="random")
    with pytest.raises(ValueError, match="pruned already"):
        prune_at_init(pruned, sparsity=0.5, saliency="random")


@pytest.mark.parametrize(
    ("saliency", "allocation"),
    [
        *((name, "global") for name in SALIENCIES if name not in ("magnitude", "ntk_sap")),
        *(("grasp", kind) for kind in (*ALLOCATIONS, {".*": 0.6})),
        ("magnitude", "plsr"),
        (NTKSAP(rounds=2, batches=2), "erk"),
    ],
)
@pytest.mark.few(4)
def test_a_transfer_begins_with_the_masks_of_pruning_at_init(saliency, allocation):
    model = mlp()
    wanted = prune_at_init(
        model,
        sparsity=0.8,
        saliency=saliency,
        data=data(),
        allocation=allocation,
        seed=3,
        verbose=0,
    )
    transfer = NeuralTangentTransfer(
        model,
        pruning_schedule=0.8,
        saliency=saliency,
        saliency_data=data(),
        allocation=allocation,
        seed=3,
    )
    for a, b in zip(transfer.masks.values(), get_masks(wanted).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("allocation", [*ALLOCATIONS, {".*": 0.6}])
@pytest.mark.few(1)
def test_refreshed_masks_are_by_latent_magnitude(allocation):
    """After steps with refreshes the masks are the largest latent weights, in the same shares."""
    model = mlp((6, 12, 10, 3))
    transfer = NeuralTangentTransfer(
        model,
        pruning_schedule=lambda step: (True, 0.8),
        saliency="logit_snip",
        saliency_data=data(size=6)[0],
        allocation=allocation,
        seed=0,
    )
    first = [int(m.sum()) for m in transfer.masks.values()]
    transfer.compile(keras.optimizers.Adam(0.05))
    transfer.fit(data(n=64)[0], epochs=2, batch_size=16, verbose=0)
    latent = [np.abs(keras.ops.convert_to_numpy(v)) for v in transfer._weights.latent]
    masks = list(transfer.masks.values())
    if allocation == "global":
        chosen = np.concatenate([m.ravel() for m in masks])
        values = np.concatenate([v.ravel() for v in latent])
        assert values[chosen].min() >= values[~chosen].max()
        assert chosen.sum() == sum(first)
    else:
        assert [int(m.sum()) for m in masks] == first
        for mask, value in zip(masks, latent, strict=True):
            assert value[mask].min() >= value[~mask].max(initial=0)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.few(1)
def test_the_whole_job_takes_its_inputs_for_the_score(labelled):
    x, y = data(n=32)
    inputs = tf.data.Dataset.from_tensor_slices((x, y)).batch(8) if labelled else x
    sparse = prune_neural_tangent(
        mlp(),
        inputs,
        sparsity=0.8,
        epochs=1,
        saliency="snip" if labelled else "logit_snip",
        allocation="erk",
        verbose=0,
    )
    assert sum(counts_of(sparse)) == round(103 * 0.2)


def test_a_score_without_what_it_needs():
    model = mlp()
    with pytest.raises(ValueError, match=r"pass saliency_data=\(x, y\) with labels"):
        NeuralTangentTransfer(model, pruning_schedule=0.5, saliency="snip")
    with pytest.raises(ValueError, match="needs labels: pass saliency_data="):
        prune_neural_tangent(model, data()[0], sparsity=0.5, epochs=1, saliency="grasp")
    with pytest.raises(ValueError, match="this schedule begins dense"):
        NeuralTangentTransfer(
            model, pruning_schedule=lambda step: (step > 3, 0.5), saliency="synflow"
        )
    with pytest.raises(ValueError, match="begins dense"):
        NeuralTangentTransfer(
            model, pruning_schedule=lambda step: (step > 3, 0.5), allocation="plsr"
        )
    assert get_masks(model) == {}


@pytest.mark.long
def test_generators_are_not_read_for_a_score():
    batches = iter([data(n=8)[0]] * 2)
    sparse = prune_neural_tangent(
        mlp(), batches, sparsity=0.5, epochs=1, steps_per_epoch=2, saliency="synflow", verbose=0
    )
    assert sum(counts_of(sparse)) == sum(max(round(s / 2), 1) for s in (48, 40, 15))


# --- models that are trained ---------------------------------------------------------------------


def _kinds_of_models():
    image = (8, 8, 3)
    return {
        "dense": sequential((6,), layers.Dense(8, "relu"), layers.Dense(2)),
        "normalized": sequential(
            image,
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(center=False, scale=False),
            layers.Flatten(),
            layers.Dense(2, use_bias=False),
        ),
        "recurrent": sequential((5, 4), layers.LSTM(3), layers.Dense(2)),
        "attention": sequential((6,), layers.Reshape((2, 3)), Attending(), layers.Flatten()),
        "ones": sequential((6,), layers.Dense(4, bias_initializer="ones"), layers.Dense(2)),
        "without constants": sequential((6,), layers.Dense(4, use_bias=False)),
    }


class Attending(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.heads = layers.MultiHeadAttention(2, 3)

    def build(self, shape):
        self.heads.build(shape, shape)

    def call(self, x):
        return self.heads(x, x)


@pytest.mark.parametrize("name", _kinds_of_models())
@pytest.mark.parametrize("saliency", ["random", "balanced"])
@pytest.mark.few(3)
def test_a_trained_model_is_told_which_function_is_for_it(name, saliency):
    model = _kinds_of_models()[name]
    x = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("float32")
    options = {"sparsity": 0.5, "saliency": saliency, "data": x}
    keras_ntt.prune_at_init(model, **options)  # without a warning
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, np.ones((32, *model.output_shape[1:])), verbose=0)
    with warned("looks trained, and (random|balanced) masks.*prune_post_training"):
        keras_ntt.prune_at_init(model, **options)
    keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude")
    # What the message names.
    sparse = keras_ntt.prune_post_training(model, x, sparsity=0.5, verbose=0)
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.02)


def test_a_frozen_part_that_is_trained_is_no_sign():
    inner = sequential((6,), layers.Dense(4))
    inner.layers[0].bias.assign(np.ones(4))
    inner.trainable = False
    model = sequential((6,), inner, layers.Dense(2))
    keras_ntt.prune_at_init(model, sparsity=0.5, saliency="random")


def test_first_weights_that_were_put_back_are_no_sign():
    model = sequential((6,), layers.Dense(4), layers.Dense(2))
    first = model.get_weights()
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 6)), np.ones((8, 2)), verbose=0)
    model.set_weights(first)
    keras_ntt.prune_at_init(model, sparsity=0.5, saliency="random")
