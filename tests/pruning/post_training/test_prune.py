"""prune_post_training on whole models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from keras import layers

from keras_ntt import (
    KernelPolicy,
    apply_masks,
    get_masks,
    prune_at_init,
    prune_post_training,
    reestimate_batch_norm,
    sparsity_report,
)
from keras_ntt.pruning.post_training import sensitivity
from keras_ntt.pruning.post_training.activations import Activations
from keras_ntt.pruning.post_training.layerwise import METHODS
from keras_ntt.pruning.post_training.problems import problems_of


def images():
    return keras.Input((8, 8, 3))


def separable():
    x = layers.SeparableConv2D(8, 3, activation="relu")(images_ := images())
    x = layers.DepthwiseConv2D(3)(x)
    return keras.Model(images_, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def convolutional():
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(images_ := images())
    x = y = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, padding="same", groups=2, activation="relu")(x)
    x = layers.Add()([layers.BatchNormalization()(x), y])
    x = layers.Conv2DTranspose(6, 3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images_, layers.Dense(4, activation="softmax")(x))


def attention():
    x = layers.Dense(8)(inputs := keras.Input((6, 5)))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def recurrent():
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(inputs := keras.Input((3, 4)))
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(6)(x)))


def nested():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(7, activation="relu")])
    x = layers.Dense(6, activation="tanh")(inputs := keras.Input((5,)))
    return keras.Model(inputs, layers.Dense(3, activation="sigmoid")(inner(x)))


def shared():
    dense = layers.Dense(6, activation="relu")
    x = dense(dense(inputs := keras.Input((6,))))
    return keras.Model(inputs, layers.Dense(3)(x))


class Own(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.norm = layers.Dense(8), layers.BatchNormalization()
        self.last = layers.Dense(3)

    def call(self, x, training=None):
        return self.last(keras.ops.relu(self.norm(self.first(x), training=training)))


def own():
    model = Own()
    model(np.zeros((1, 5)))
    return model


MODELS = (convolutional, separable, attention, recurrent, nested, shared, own)
SHAPES = {"attention": (6, 5), "recurrent": (3, 4), "nested": (5,), "own": (5,), "shared": (6,)}


def inputs_for(make, rng, n=60):
    return rng.normal(size=(n, *SHAPES.get(make.__name__, (8, 8, 3)))).astype("float32")


def outputs(model, x):
    return np.asarray(model(x, training=False), np.float64)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.few(2)
def test_nothing_to_prune_leaves_what_the_model_computes(make, rng):
    model, x = make(), inputs_for(make, rng, 20)
    if make in (convolutional, own):
        reestimate_batch_norm(model, x)
    before = [np.asarray(v) for v in model.trainable_variables]
    found = prune_post_training(model, x, sparsity=0.0, verbose=0)
    np.testing.assert_allclose(outputs(found, x), outputs(model, x), atol=2e-4)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.few(4)
def test_counts_zeros_and_masks(make, rng):
    model, x = make(), inputs_for(make, rng, 20)
    for method in ("obc", "sparsegpt") if make in (nested, own) else ("obc",):
        found = prune_post_training(model, x, sparsity=0.6, method=method, verbose=0)
        masks = get_masks(found)
        size = sum(mask.size for mask in masks.values())
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert kept == round(size * 0.4)
        named = {v.path: np.asarray(v) for v in found.weights}
        assert all((named[path][~mask] == 0).all() for path, mask in masks.items())
        assert np.isfinite(outputs(found, x)).all()
        assert get_masks(model) == {}


@pytest.mark.parametrize("make", [convolutional, attention, own], ids=lambda make: make.__name__)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.few(3)
def test_refitting_comes_nearer_to_the_dense_model_than_the_mask_alone(make, method, rng):
    model, x = make(), inputs_for(make, rng, 200)
    found = prune_post_training(
        model, x, sparsity=0.5, method=method, allocation="layerwise", verbose=0
    )
    alone = apply_masks(keras.models.clone_model(model) if make is not own else own(), {})
    alone.set_weights(model.get_weights())
    masks = dict(zip([v.path for v in alone.weights], [None] * len(alone.weights), strict=True))
    by_order = dict(zip([v.path for v in found.weights], masks, strict=True))
    apply_masks(alone, {by_order[path]: mask for path, mask in get_masks(found).items()})
    fresh = inputs_for(make, rng, 200)
    target = outputs(model, fresh)
    errors = [np.square(outputs(m, fresh) - target).mean() for m in (found, alone)]
    assert errors[0] < errors[1]


def test_targets_are_the_dense_model_s_and_inputs_the_pruned_one_s(rng):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"), layers.Dense(3)])
    x = rng.normal(size=(400, 6)).astype("float32")
    found = prune_post_training(
        model, x, sparsity=0.4, allocation="layerwise", samples=None, verbose=0
    )
    hidden = outputs(found.layers[0], x)
    target = outputs(model, x)
    mask = get_masks(found)[found.layers[1].kernel.path]
    kernel, bias = (np.asarray(v, np.float64) for v in found.layers[1].weights)
    for column in range(3):
        rows = mask[:, column]
        design = np.column_stack([hidden[:, rows], np.ones(len(x))])
        best = np.linalg.lstsq(design, target[:, column])[0]
        fitted = design @ [*kernel[rows, column], bias[column]]
        least = np.square(design @ best - target[:, column]).mean()
        assert np.square(fitted - target[:, column]).mean() < 1.02 * least + 1e-9
        assert fitted.mean() == pytest.approx(target[:, column].mean(), abs=1e-5)


def test_batch_normalization_is_that_of_the_pruned_model(rng):
    model, x = convolutional(), inputs_for(convolutional, rng)
    found = prune_post_training(model, x, sparsity=0.7, samples=None, verbose=0)
    for layer in found.layers:
        if isinstance(layer, layers.BatchNormalization):
            seen = np.asarray(keras.Model(found.inputs[0], layer.input)(x), np.float64)
            np.testing.assert_allclose(layer.moving_mean, seen.mean(axis=(0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize("make", [nested, own], ids=lambda make: make.__name__)
def test_the_size_of_batches_and_the_form_of_inputs_do_not_matter(make, rng):
    model, x = make(), inputs_for(make, rng)
    dataset = tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(16)
    found = [
        prune_post_training(model, data, sparsity=0.5, allocation="error", verbose=0, **options)
        for data, options in ((x, {}), (x, {"batch_size": 7}), (dataset, {}))
    ]
    for other in found[1:]:
        np.testing.assert_allclose(outputs(other, x), outputs(found[0], x), atol=1e-3)


@pytest.mark.long
def test_activations_that_do_not_fit_go_to_files(rng, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, x = convolutional(), inputs_for(convolutional, rng, 20)
    seen = []
    release = Activations.release

    def counting(self, kept):
        seen.append((self.used, len(list(tmp_path.glob("*/*.npy")))))
        release(self, kept)

    monkeypatch.setattr(Activations, "release", counting)
    whole = prune_post_training(model, x, sparsity=0.5, batch_size=8, verbose=0)
    assert max(files for _, files in seen) == 0
    seen.clear()
    small = prune_post_training(
        model, x, sparsity=0.5, batch_size=8, memory_limit=20_000, verbose=0
    )
    assert max(used for used, _ in seen) <= 20_000
    assert max(files for _, files in seen) > 3
    for one, other in zip(small.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(tmp_path.glob("*/*.npy")) == []


@pytest.mark.parametrize("pattern", ["2:4", (2, 1), "filters"])
def test_patterns(pattern, rng):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu"), layers.Dense(4)])
    x = rng.normal(size=(100, 8)).astype("float32")
    found = prune_post_training(model, x, sparsity=0.5, pattern=pattern, verbose=0)
    for mask in get_masks(found).values():
        if pattern == "2:4":
            assert (mask.reshape(-1, 4, mask.shape[1]).sum(axis=1) == 2).all()
        elif pattern == "filters":
            assert (mask == mask[:1]).all()
        else:
            assert (mask[::2] == mask[1::2]).all()


@pytest.mark.parametrize(
    "allocation", ["sensitivity", "error", "layerwise", "er", "erk", "global", "plsr"]
)
def test_allocations(allocation, rng):
    model, x = nested(), inputs_for(nested, rng)
    found = prune_post_training(model, x, sparsity=0.5, allocation=allocation, verbose=0)
    assert sparsity_report(found).sparsity == pytest.approx(0.5, abs=0.01)


def test_sensitivity_protects_what_the_outputs_depend_on(rng):
    inputs = keras.Input((6,))
    loud, quiet = layers.Dense(6, name="loud")(inputs), layers.Dense(6, name="quiet")(inputs)
    model = keras.Model(inputs, layers.Add()([layers.Rescaling(100.0)(loud), quiet]))
    x = rng.normal(size=(100, 6)).astype("float32")
    kept = {
        path: mask.sum()
        for path, mask in get_masks(prune_post_training(model, x, sparsity=0.5, verbose=0)).items()
    }
    loud_kept, quiet_kept = kept.values()
    assert loud_kept > 30
    assert quiet_kept < 6


def test_embeddings_lose_what_is_seldom_looked_up(rng):
    model = keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(20, 4), layers.Flatten()]
    )
    model.add(layers.Dense(2))
    model.layers[0].embeddings.assign(np.sign(rng.normal(size=(20, 4))))
    x = np.concatenate([rng.integers(0, 4, size=(200, 5)), rng.integers(0, 10, size=(10, 5))])
    found = prune_post_training(
        model, x, sparsity=0.5, pruning_policy=KernelPolicy(embeddings=True), verbose=0
    )
    mask = get_masks(found)[found.layers[0].embeddings.path]
    assert mask[:4].mean() > mask[4:].mean()
    table = np.asarray(found.layers[0].embeddings)
    np.testing.assert_array_equal(table[mask], np.asarray(model.layers[0].embeddings)[mask])


def test_what_is_not_known_is_pruned_by_magnitude_and_said_so(rng):
    class Doubled(layers.Dense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs)

    model = keras.Sequential([keras.Input((6,)), Doubled(8), layers.Dense(3)])
    x = rng.normal(size=(50, 6)).astype("float32")
    with warned("by magnitude and not fitted"):
        found = prune_post_training(model, x, sparsity=0.5, verbose=0)
    masks = get_masks(found)
    value = np.abs(np.asarray(model.layers[0].kernel))
    mask = masks[found.layers[0].kernel.path]
    assert value[mask].min() > value[~mask].max()
    np.testing.assert_array_equal(
        np.asarray(found.layers[0].kernel)[mask], np.asarray(model.layers[0].kernel)[mask]
    )


def test_frozen_biases_and_kernels_stay(rng):
    model = nested()
    model.layers[1].trainable = False
    x = inputs_for(nested, rng)
    found = prune_post_training(model, x, sparsity=0.5, verbose=0)
    for old, new in zip(model.layers[1].weights, found.layers[1].weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_half_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model, x = nested(), inputs_for(nested, rng)
    found = prune_post_training(model, x, sparsity=0.5, verbose=0)
    assert sparsity_report(found).sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"method": "magic"}, "method must be one of"),
        ({"allocation": "magic"}, "allocation must be one of"),
        ({"pattern": "2:4", "sparsity": 0.7}, "fixes the sparsity"),
        ({"pattern": 3}, "pattern must be"),
        ({"samples": 0}, "samples"),
        ({"steps": 0}, "steps"),
        ({"memory_limit": 0}, "memory_limit"),
        ({"epochs": -1}, "epochs"),
        ({"sparsity": 0.99}, "fewer entries to keep"),
        ({"filters": "nothing"}, "nothing to prune"),
    ],
)
def test_refusals(options, message, rng):
    model, x = nested(), inputs_for(nested, rng)
    with pytest.raises(ValueError, match=message):
        prune_post_training(model, x, **{"sparsity": 0.5, "verbose": 0, **options})


def test_refused_inputs(rng):
    model, x = nested(), inputs_for(nested, rng)
    x[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        prune_post_training(model, x, sparsity=0.5, verbose=0)
    sparse = prune_at_init(model, sparsity=0.5, saliency="magnitude")
    with pytest.raises(ValueError, match="pruned already"):
        prune_post_training(sparse, x, sparsity=0.5, verbose=0)


def test_one_sample_constant_and_zero_inputs(rng):
    model = nested()
    for x in (np.ones((1, 5), "float32"), np.ones((50, 5)), np.zeros((50, 5))):
        found = prune_post_training(model, x, sparsity=0.5, verbose=0)
        assert np.isfinite(outputs(found, inputs_for(nested, rng))).all()


def test_a_frozen_backbone_is_told_of(rng):
    backbone = keras.Sequential([keras.Input((8,)), layers.Dense(20, "relu")])
    backbone.trainable = False
    model = keras.Sequential([backbone, layers.Dense(3)])
    x = rng.normal(size=(32, 8)).astype("float32")
    with warned("160 weights are frozen"):
        prune_post_training(model, x, sparsity=0.5, verbose=0)
    backbone.trainable = True
    assert len(get_masks(prune_post_training(model, x, sparsity=0.5, verbose=0))) == 2
    backbone.trainable = False
    prune_post_training(model, x, sparsity=0.5, filters=lambda layer: True, verbose=0)


def test_a_sensitivity_in_parts_is_that_of_the_whole(rng, monkeypatch):
    parts = [keras.Input((6, 6, 2)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(1)]
    model = keras.Sequential(parts)
    x = rng.normal(size=(10, 6, 6, 2)).astype("float32")
    (problem,) = problems_of(model.layers[0], [model.layers[0].kernel])
    (whole,) = sensitivity.output_sensitivity(model, [x], [problem])
    # Of each sample 4 * 4 * 4 numbers, once more flattened, and 1 output.
    assert sensitivity._bytes_of_outputs(model, x[:1]) == 4 * (64 + 64 + 1)
    monkeypatch.setattr(sensitivity, "_BYTES", 3 * 3 * 4 * 129)
    assert [len(part) for part in sensitivity._in_parts(model, [x])] == [3, 3, 3, 1]
    (found,) = sensitivity.output_sensitivity(model, [x], [problem])
    # Of a linear model it is the squares of what reads a channel, but for a random factor.
    reader = np.asarray(model.layers[2].kernel).reshape(16, 4)
    for one in (whole, found):
        shares = one / (reader**2).sum(axis=0)
        np.testing.assert_allclose(shares, shares.mean(), rtol=1e-4)
