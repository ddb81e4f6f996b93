"""What tfmot's own tests ask of schedules, masks, layers and policies, as tables by hand."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from keras import layers

import keras_ntt
from keras_ntt import (
    ConstantSparsity,
    PolynomialDecay,
    PruneForLatencyOnXNNPack,
    UpdatePruningStep,
    get_masks,
    prune_low_magnitude,
    prune_scope,
    sparsity_report,
    strip_pruning,
)
from keras_ntt.selection.named_patterns import pattern_of

NOW = ConstantSparsity(0.5, 1, frequency=1)


# --- schedules --------------------------------------------------------------------------------

FORMS = {
    "constant": lambda begin, end, frequency: ConstantSparsity(0.5, begin, end, frequency),
    "polynomial": lambda begin, end, frequency: PolynomialDecay(0.2, 0.8, begin, end, 3, frequency),
}

# begin, end, frequency, {step: whether masks are chosen}
TIMES = [
    (60, 90, 1, {0: 0, 50: 0, 59: 0, 60: 1, 61: 1, 75: 1, 89: 1, 90: 1, 91: 0, 1000: 0}),
    (60, 90, 10, {59: 0, 60: 1, 61: 0, 69: 0, 70: 1, 71: 0, 80: 1, 90: 1, 100: 0}),
    (0, 40, 20, {0: 0, 1: 0, 19: 0, 20: 1, 40: 1, 60: 0}),
    (1, 41, 20, {0: 0, 1: 1, 2: 0, 21: 1, 41: 1, 61: 0}),
]

AS_STEP = [int, np.int64, tf.constant, lambda n: tf.Variable(n, dtype=tf.int64), tf.Variable]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("begin", "end", "frequency", "answers"), TIMES)
def test_when_masks_are_chosen(name, begin, end, frequency, answers):
    schedule = FORMS[name](begin, end, frequency)
    for step, wanted in answers.items():
        for given in AS_STEP:
            assert schedule(given(step))[0] == bool(wanted), (step, given)


def test_a_constant_sparsity_without_an_end_goes_on_for_ever():
    schedule = ConstantSparsity(0.75, 0, -1, 7)
    assert [schedule(7 * 10**power) for power in (0, 3, 9)] == [(True, 0.75)] * 3
    assert not schedule(7 * 10**9 + 1)[0]


# initial, final, begin, end, power, {step: sparsity} by f + (i - f) * (1 - done) ** power
CURVES = [
    (0.0, 0.9, 0, 10, 2, {0: 0.0, 2: 0.324, 5: 0.675, 8: 0.864, 10: 0.9, 99: 0.9}),
    (0.1, 0.5, 20, 24, 1, {0: 0.1, 20: 0.1, 21: 0.2, 22: 0.3, 23: 0.4, 24: 0.5, 25: 0.5}),
    (0.5, 0.75, 8, 12, 4, {8: 0.5, 9: 0.6708984375, 10: 0.734375, 12: 0.75}),
    (0.6, 0.2, 0, 4, 1, {0: 0.6, 1: 0.5, 3: 0.3, 4: 0.2}),
]


@pytest.mark.parametrize(("initial", "final", "begin", "end", "power", "answers"), CURVES)
def test_the_sparsity_of_a_step(initial, final, begin, end, power, answers):
    schedule = PolynomialDecay(initial, final, begin, end, power, 1)
    for step, sparsity in answers.items():
        assert schedule(step)[1] == pytest.approx(sparsity, abs=1e-12)
        assert schedule(tf.Variable(step))[1] == pytest.approx(sparsity, abs=1e-6)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("begin", "end", "frequency"),
    [(-1, 9, 1), (-7, 9, 1), (3, -2, 1), (3, 2, 1), (3, 9, 0), (3, 9, -1), (3, 9, 1.5)],
)
def test_times_that_are_refused(name, begin, end, frequency):
    with pytest.raises(ValueError, match="Received: "):
        FORMS[name](begin, end, frequency)


@pytest.mark.parametrize("sparsity", [-10.0, -1e-3, 1.0, 10.0, float("nan"), None, "0.5"])
def test_sparsities_that_are_refused(sparsity):
    for make in (
        lambda s: ConstantSparsity(s, 0),
        lambda s: PolynomialDecay(s, 0.5, 0, 9),
        lambda s: PolynomialDecay(0.5, s, 0, 9),
    ):
        with pytest.raises(ValueError, match="Received: "):
            make(sparsity)


CONFIGS = [
    ConstantSparsity(0.25, 3, 11, 4),
    ConstantSparsity(0.0, 0),
    PolynomialDecay(0.25, 0.5, 4, 12, 5, 8),
]


@pytest.mark.parametrize("schedule", CONFIGS, ids=lambda s: type(s).__name__)
def test_configurations_in_both_forms(schedule):
    config = schedule.get_config()
    of_tfmot = {"class_name": type(schedule).__name__, "config": config}
    with prune_scope():
        found = [
            type(schedule).from_config(config),
            type(schedule).from_config(of_tfmot),
            keras.utils.deserialize_keras_object(of_tfmot),
            keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule)),
        ]
    for again in found:
        assert type(again) is type(schedule)
        assert vars(again) == vars(schedule)


# --- masks ------------------------------------------------------------------------------------

# magnitudes, options, sparsity, mask
MASKS = [
    # 3 * (1 - 1 / 3) entries stay, also where the fraction is written with an error
    ([[3.0, 1.0, 2.0]], {}, 1 / 3, [[1, 0, 1]]),
    ([[3.0, 1.0, 2.0]], {}, 0.33333337, [[1, 0, 1]]),
    ([[5.0, 4.0, 3.0, 2.0, 1.0]], {}, 0.5, [[1, 1, 0, 0, 0]]),  # 2.5 to an even number
    ([[5.0, 4.0, 3.0, 2.0, 1.0]], {}, 0.99, [[1, 0, 0, 0, 0]]),  # one stays at least
    ([[5.0, 4.0, 3.0, 2.0, 1.0]], {}, 0.0, [[1, 1, 1, 1, 1]]),
    # blocks of two rows and one column by their means 3, 2 | 1, 4
    (
        [[1, 2], [5, 2], [1, 7], [1, 1]],
        {"block_size": (2, 1)},
        0.5,
        [[1, 0], [1, 0], [0, 1], [0, 1]],
    ),
    # and by their largest entries 5, 2 | 1, 7
    (
        [[1, 2], [5, 2], [1, 7], [1, 1]],
        {"block_size": (2, 1), "pooling": "MAX"},
        0.75,
        [[0, 0], [0, 0], [0, 1], [0, 1]],
    ),
    # blocks of two by two, of which the means say the first and the largest entries the second
    (
        [[3, 3, 0, 9], [3, 3, 0, 0]],
        {"block_size": (2, 2)},
        0.5,
        [[1, 1, 0, 0], [1, 1, 0, 0]],
    ),
    (
        [[3, 3, 0, 9], [3, 3, 0, 0]],
        {"block_size": (2, 2), "pooling": "MAX"},
        0.5,
        [[0, 0, 1, 1], [0, 0, 1, 1]],
    ),
    # one zero in every two and two in every four inputs, of each output
    ([[4, 1], [3, 2], [2, 3], [1, 4]], {"sparsity_m_by_n": (1, 2)}, 0.9, [[1, 0], [0, 1]] * 2),
    (
        [[4, 1], [3, 2], [2, 3], [1, 4]],
        {"sparsity_m_by_n": (2, 4)},
        0.9,
        [[1, 0], [1, 0], [0, 1], [0, 1]],
    ),
    (
        [[6], [5], [4], [3], [2], [1]],
        {"sparsity_m_by_n": (3, 6)},
        0.9,
        [[1], [1], [1], [0], [0], [0]],
    ),
    # a group that is not full is filled up with zeros, which are the first to go
    ([[1], [2]], {"sparsity_m_by_n": (5, 6)}, 0.9, [[0], [1]]),
]


@pytest.mark.parametrize(("magnitudes", "options", "sparsity", "wanted"), MASKS)
def test_masks_by_hand(magnitudes, options, sparsity, wanted):
    scores = tf.constant(magnitudes, tf.float32)
    mask = pattern_of(tuple(scores.shape), **options)(scores, sparsity)
    assert mask.numpy().astype(int).tolist() == wanted


def test_a_mask_in_training_follows_a_function_of_the_step():
    sparsities = [0.0, 0.2, 0.2, 0.4, 0.4, 0.8, 0.8]
    model = keras.Sequential([keras.Input((10,)), layers.Dense(10, use_bias=False)])
    model.set_weights([np.arange(1.0, 101).reshape(10, 10)])
    schedule = lambda step: (step < len(sparsities), sparsities[min(step, 6)])  # noqa: E731
    prune_low_magnitude(model, schedule)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    counts, x = [], np.ones((4, 10), "float32")
    for _ in sparsities:
        counts.append(np.count_nonzero(model.get_weights()[0]))
        model.train_on_batch(x, x)
    # What is chosen for step n is there when batch n begins; the first batch is step 1.
    assert counts == [80, 80, 60, 60, 20, 20, 20]


# --- layers -----------------------------------------------------------------------------------


class Cell(layers.Layer):
    """A recurrent cell that does not say what may be pruned."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.turn = self.add_weight(shape=(self.units, self.units), name="turn")

    def call(self, x, states):
        out = x @ self.kernel + states[0] @ self.turn
        return out, [out]


class NamingCell(Cell, keras_ntt.PrunableLayer):
    """A recurrent cell that does."""

    def get_prunable_weights(self):
        return [self.kernel, self.turn]


class Own(layers.Layer):
    """A layer that does not say what may be pruned."""

    def build(self, shape):
        self.table = self.add_weight(shape=(shape[-1], 4), name="table")

    def call(self, x):
        return x @ self.table


class Naming(Own):
    """A layer that names a vector too."""

    def build(self, shape):
        super().build(shape)
        self.offset = self.add_weight(shape=(4,), initializer="random_normal", name="offset")

    def call(self, x):
        return super().call(x) + self.offset

    def get_prunable_weights(self):
        return [self.table, self.offset]


class Same(layers.Dense):
    """A subclass that changes nothing."""


# layer, shape of a sample, the names of what is pruned
LAYERS = {
    "dense": (lambda: layers.Dense(4), (6,), ["kernel"]),
    "subclass": (lambda: Same(4), (6,), ["kernel"]),
    "conv": (lambda: layers.Conv2D(4, 3), (8, 8, 2), ["kernel"]),
    "separable": (lambda: layers.SeparableConv1D(4, 3), (8, 2), ["pointwise_kernel"]),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), (8, 8, 2), []),
    "embedding": (lambda: layers.Embedding(9, 4), (3,), ["embeddings"]),
    "norm": (layers.BatchNormalization, (6,), []),
    "dropout": (lambda: layers.Dropout(0.4), (6,), []),
    "rescaling": (lambda: layers.Rescaling(0.5), (6,), []),
    "flatten": (layers.Flatten, (6, 2), []),
    "lstm": (lambda: layers.LSTM(4), (3, 2), ["kernel", "recurrent_kernel"]),
    "cells": (
        lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(3), layers.SimpleRNNCell(2)]),
        (3, 2),
        ["kernel", "recurrent_kernel"] * 3,
    ),
    "stacked": (
        lambda: layers.RNN(layers.StackedRNNCells([layers.GRUCell(4), layers.GRUCell(3)])),
        (3, 2),
        ["kernel", "recurrent_kernel"] * 2,
    ),
    "own cell": (lambda: layers.RNN(NamingCell(4)), (3, 2), ["kernel", "turn"]),
    "own beside": (
        lambda: layers.RNN([layers.GRUCell(4), NamingCell(3)]),
        (3, 2),
        ["kernel", "recurrent_kernel", "kernel", "turn"],
    ),
    "unknown beside": (
        lambda: layers.RNN([layers.GRUCell(4), Cell(3)]),
        (3, 2),
        ["kernel", "recurrent_kernel"],
    ),
    "both ways": (
        lambda: layers.Bidirectional(layers.GRU(4)),
        (3, 2),
        ["kernel", "recurrent_kernel"] * 2,
    ),
    "in time": (lambda: layers.TimeDistributed(layers.Dense(4)), (3, 2), ["kernel"]),
    "naming": (Naming, (6,), ["table", "offset"]),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.few(5)
def test_what_is_pruned_of_a_layer_by_itself(name, built):
    make, shape, wanted = LAYERS[name]
    layer = make()
    if built:
        layer.build((None, *shape))
    assert prune_low_magnitude(layer, NOW) is layer
    model = keras.Sequential([keras.Input(shape), layer])
    assert [path.split("/")[-1] for path in get_masks(model)] == wanted


@pytest.mark.parametrize(
    "make",
    [Own, lambda: layers.RNN(Cell(4)), lambda: layers.TimeDistributed(Own())],
    ids=["layer", "cell", "in time"],
)
@pytest.mark.parametrize("built", [False, True])
def test_a_layer_by_itself_that_cannot_be_pruned_is_refused(make, built):
    layer = make()
    if built:
        layer.build((None, 3, 2))
        with pytest.raises(ValueError, match=r"get_prunable_weights"):
            prune_low_magnitude(layer, NOW)
    else:
        prune_low_magnitude(layer, NOW)
        with pytest.raises(ValueError, match=r"get_prunable_weights"):
            layer(np.ones((1, 3, 2), "float32"))


def test_vectors_stay_dense_where_groups_are_asked_for():
    model = keras.Sequential([keras.Input((8,)), Naming()])
    with warned("sparsity_m_by_n is for kernels.*offset of shape"):
        prune_low_magnitude(model, sparsity_m_by_n=(2, 4))
    assert [mask.sum() for mask in get_masks(model).values()] == [16]
    with pytest.raises(ValueError, match="sparsity_m_by_n is for kernels"):
        prune_low_magnitude(keras.Sequential([keras.Input((4,)), Vector()]), sparsity_m_by_n=(2, 4))
    with pytest.raises(ValueError, match="block_size is for kernels"):
        prune_low_magnitude(keras.Sequential([keras.Input((8,)), Naming()]), block_size=(2, 2))


class Vector(layers.Layer):
    """A layer of a vector."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale

    def get_prunable_weights(self):
        return [self.scale]


# --- models -----------------------------------------------------------------------------------


def unbuilt():
    return keras.Sequential([layers.Dense(6), layers.Dropout(0.1), layers.Dense(4)])


def built():
    return keras.Sequential([keras.Input((5,)), layers.Dense(6), layers.Dense(4)])


def functional():
    a, b = keras.Input((5,)), keras.Input((5,))
    return keras.Model([a, b], layers.Add()([layers.Dense(6)(a), layers.Dense(6)(b)]))


def shared():
    x, dense = keras.Input((5,)), layers.Dense(5)
    return keras.Model(x, dense(dense(x)))


@pytest.mark.parametrize(
    ("make", "count"), [(unbuilt, 0), (built, 2), (functional, 2), (shared, 1)]
)
def test_models_are_what_they_were(make, count):
    model = make()
    config, was_built = model.get_config(), model.built
    pruned = prune_low_magnitude(model, NOW)
    assert pruned is model
    assert model.built == was_built
    assert model.get_config() == config
    with prune_scope():
        again = keras.models.model_from_json(model.to_json())
    assert again.built == was_built
    if was_built:
        assert len(get_masks(model)) == count
    assert strip_pruning(model) is model
    assert model.get_config() == config
    if not was_built:
        model.build((None, 5))
    assert get_masks(model) == {}


def test_layers_that_wait_are_let_go_of_too():
    model = keras.Sequential(prune_low_magnitude([layers.Dense(6), layers.Dense(4)], NOW))
    strip_pruning(model)
    model.build((None, 5))
    assert get_masks(model) == {}
    with pytest.raises(ValueError, match="no weights yet"):
        strip_pruning(unbuilt())


@pytest.mark.parametrize("make", [built, functional])
@pytest.mark.few(1)
def test_a_copy_whose_layers_are_pruned_as_they_are_copied(make):
    def copied(layer):
        return prune_low_magnitude(layer, NOW) if isinstance(layer, layers.Dense) else layer

    model = keras.models.clone_model(make(), clone_function=copied)
    model.compile("sgd", "mse")
    x = [np.ones((8, 5), "float32") for _ in model.inputs]
    model.fit(x if len(x) > 1 else x[0], np.ones((8, model.output_shape[-1])), verbose=0)
    assert [mask.mean() for mask in get_masks(model).values()] == [0.5, 0.5]
    for weight in model.weights:
        if "kernel" in weight.path:
            assert np.mean(np.asarray(weight) == 0) == 0.5


class Subclassed(keras.Model):
    """A model with a custom call, whose layers are pruned one by one."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = layers.Dense(8, "relu"), layers.Dense(5)

    def call(self, x):
        return self.last(self.hidden(x))


@pytest.mark.parametrize("before", ["nothing", "predict", "fit"])
@pytest.mark.parametrize("then", ["fit", "compile", "callback"])
@pytest.mark.few(2)
def test_layers_of_a_model_of_ones_own_are_pruned(before, then, rng):
    model, x, y = Subclassed(), rng.normal(size=(20, 10)), rng.normal(size=(20, 5))
    model.compile("sgd", "mse")
    if before != "nothing":
        getattr(model, before)(*((x, y) if before == "fit" else (x,)), verbose=0)
    model.hidden = prune_low_magnitude(model.hidden, NOW)
    model.last = prune_low_magnitude(model.last, NOW)
    if then == "compile":
        model.compile("sgd", "mse")
    callbacks = [UpdatePruningStep()] if then == "callback" else []
    model.fit(x, y, verbose=0, callbacks=callbacks)
    report = sparsity_report(model)
    if (before, then) == ("fit", "fit"):  # the step that was compiled knows of no mask
        assert report.sparsity < 0.5
        assert "masked entries are not zero: compile() again" in str(report)
        with warned(r"Entries that a mask leaves out are not zero.*compile\(\)"):
            strip_pruning(model)
        return
    assert report.sparsity == 0.5
    assert "are not zero" not in str(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strip_pruning(model)


def test_a_model_that_is_not_trained_needs_no_callback():
    model = prune_low_magnitude(built(), NOW)
    model.compile("sgd", "mse")
    x = np.ones((8, 5), "float32")
    assert model.predict(x, verbose=0).shape == (8, 4)
    assert np.isfinite(model.evaluate(x, np.ones((8, 4)), verbose=0))
    model.fit(x, np.ones((8, 4)), verbose=0)
    assert sparsity_report(model).sparsity == 0.5


# --- the policy for XNNPACK -------------------------------------------------------------------


def stem(x, filters=6):
    return layers.Conv2D(filters, 3, 2)(layers.ZeroPadding2D(1)(x))


def pointwise(filters=6):
    return layers.Conv2D(filters, 1)


def mean(keepdims=False):
    return layers.GlobalAveragePooling2D(keepdims=keepdims)


def chain(*middle, shape=(8, 8, 3)):
    x = y = keras.Input(shape)
    for layer in (stem, *middle, mean()):
        y = layer(y)
    return keras.Model(x, y)


def blocks():
    return chain(keras.Sequential([pointwise(), pointwise(4)]))


def twice_the_same():
    layer = pointwise()
    return chain(layer, layer)


def operators():
    def mixed(x):
        other = pointwise()(x)
        return (x + other - other) * other

    return chain(mixed, layers.Identity())


def two_ways():
    a, b = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    x, y = stem(a), stem(b, 4)
    x = layers.Add()([layers.DepthwiseConv2D(3, padding="same")(x), pointwise()(x)])
    y = layers.DepthwiseConv2D(3, 2)(layers.ZeroPadding2D(1)(y))
    gate = layers.Activation("sigmoid")(pointwise(8)(mean(True)(y)))
    y = layers.UpSampling2D(interpolation="bilinear")(pointwise(8)(y))
    x = mean(True)(layers.Add()([x, pointwise()(layers.Multiply()([gate, y]))]))
    return keras.Model([a, b], [pointwise(3)(x), pointwise(2)(x)])


POLICY = [(blocks, 2), (twice_the_same, 1), (operators, 1), (two_ways, 6)]


@pytest.mark.parametrize(("make", "count"), POLICY)
def test_what_the_policy_prunes(make, count):
    for model in (make(), keras.models.clone_model(make())):
        for _ in range(2):  # the second time changes nothing
            prune_low_magnitude(model, NOW, pruning_policy=PruneForLatencyOnXNNPack())
            assert len(get_masks(model)) == count


def padded_within(x):
    return layers.Conv2D(6, 3, 2, padding="same")(x)


def odd(first=stem, middle=pointwise, last=mean):
    x = keras.Input((8, 8, 3))
    return keras.Model(x, last()(middle()(first(x))))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"first": padded_within}, "ZeroPadding2D"),
        ({"last": lambda: layers.AveragePooling2D(2)}, "GlobalAveragePooling2D"),
        ({"middle": layers.MaxPooling2D}, "max_pooling2d|MaxPooling2D"),
        ({"middle": lambda: layers.DepthwiseConv2D(3, padding="same")}, "nothing to prune"),
    ],
)
def test_what_the_policy_refuses(options, match):
    model = odd(**options)
    with pytest.raises(ValueError, match=match):
        prune_low_magnitude(model, NOW, pruning_policy=PruneForLatencyOnXNNPack())
    assert get_masks(model) == {}
