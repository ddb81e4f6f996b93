"""Copies of models compute what the models compute, also with what set_weights leaves out."""

from __future__ import annotations

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import sequential
from helpers.expect import warned
from keras import layers

import keras_ntt
from keras_ntt.core.copies import copy_of, redrawn

RNG = np.random.default_rng(0)
X = (5 + 3 * RNG.normal(size=(64, 6))).astype("float32")
TOKENS = np.array([[10, 20], [30, 7], [10, 10]])


def adapted(layer, data):
    layer.adapt(data)
    return layer


def normalized():
    layer = adapted(layers.Normalization(), X)
    return sequential((6,), layer, layers.Dense(16, "relu"), layers.Dense(2)), X


def nested():
    inner, _ = normalized()
    return sequential((6,), inner, layers.Dense(3)), X


def looked_up():
    table = adapted(layers.IntegerLookup(), TOKENS)
    model = [keras.Input((2,), dtype="int64"), table, layers.Embedding(9, 3), layers.Flatten()]
    return keras.Sequential([*model, layers.Dense(2)]), TOKENS


def weighed():
    table = adapted(layers.IntegerLookup(output_mode="tf_idf"), TOKENS)
    return keras.Sequential([keras.Input((2,), dtype="int64"), table, layers.Dense(2)]), TOKENS


def in_bins():
    bins = adapted(layers.Discretization(num_bins=4), X)
    return sequential((6,), bins, layers.Embedding(4, 3), layers.Flatten(), layers.Dense(2)), X


def low_rank():
    model = sequential((6,), layers.Dense(4), layers.Dense(2))
    model.layers[0].enable_lora(2)
    for variable in model.weights:
        variable.assign(RNG.normal(size=variable.shape))
    return model, X


@keras.saving.register_keras_serializable("test_copies")
class Own(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = layers.Normalization()
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.scale(x))


def own():
    model = Own()
    model.scale.adapt(X)
    model(X)
    return model, X


@pytest.mark.parametrize(
    "make",
    [normalized, nested, looked_up, weighed, in_bins, low_rank, own],
    ids=lambda m: m.__name__,
)
def test_a_copy_computes_the_same(make):
    model, x = make()
    expected = keras.ops.convert_to_numpy(model(x))
    copy = copy_of(model, x)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(copy(x)), expected)
    for mine, theirs in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}


@pytest.mark.parametrize("make", [normalized, nested, in_bins], ids=lambda make: make.__name__)
def test_a_pruned_copy_computes_what_its_model_with_the_masks_does(make):
    model, x = make()
    whole = keras_ntt.prune_at_init(model, sparsity=0.0, saliency="magnitude")
    np.testing.assert_array_equal(whole(x), model(x))
    sparse = keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude")
    keras_ntt.apply_masks(model, keras_ntt.get_masks(sparse))
    np.testing.assert_array_equal(sparse(x), model(x))


def test_a_student_that_lost_what_its_teacher_adapted_to():
    teacher, _ = normalized()
    student = keras.models.clone_model(teacher)
    student.set_weights(teacher.get_weights())
    with warned("student does not normalize.*saving and loading.*Received: student with"):
        keras_ntt.NeuralTangentTransfer(student, teacher, pruning_schedule=0.5)
    student = copy_of(teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        keras_ntt.NeuralTangentTransfer(student, teacher, pruning_schedule=0.5)


def test_a_smaller_model_is_normalized_too():
    model, x = normalized()
    kernel, bias = model.layers[1].get_weights()
    kernel[:, :5] = 0
    model.layers[1].set_weights([kernel, bias])
    smaller, removed = keras_ntt.remove_dead_units(model)
    assert removed == ((model.layers[1].name, 5),)
    np.testing.assert_allclose(smaller(x), model(x), rtol=1e-4, atol=1e-5)


def test_new_first_weights_leave_what_was_adapted():
    model, x = normalized()
    other = redrawn(model)
    np.testing.assert_array_equal(other.layers[0](x), model.layers[0](x))
    assert not np.array_equal(other.layers[1].kernel, model.layers[1].kernel)


@keras.saving.register_keras_serializable("test_copies")
class Frozen(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4)
        self.scale = layers.BatchNormalization()
        self.head = layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.scale(self.first(x), training=training))


def test_layers_of_a_copy_are_frozen_as_those_of_the_model():
    model = Frozen()
    model(X)
    model.first.trainable = model.scale.trainable = False
    copy = copy_of(model, X)
    assert [layer.trainable for layer in copy.layers] == [False, False, True]
    statistics = keras.ops.convert_to_numpy(copy.scale.moving_mean)
    copy.compile("sgd", "mse", jit_compile=False)
    copy.fit(X, X[:, :2], verbose=0)
    np.testing.assert_array_equal(copy.scale.moving_mean, statistics)
    copy.first.trainable = True
    assert [v.trainable for v in copy.first.weights] == [True, True]


def test_a_model_of_code_of_ones_own_is_copied_by_the_shapes_it_was_built_with():
    model = Frozen()
    model(X)
    copy = copy_of(model)
    np.testing.assert_array_equal(copy(X), model(X))
    assert keras_ntt.sparsity_report(
        keras_ntt.prune_at_init(model, sparsity=0.5, saliency="random")
    ).sparsity == pytest.approx(0.5)


# --- names -------------------------------------------------------------------------------------


def wrapped():
    parts = [
        layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="encoder"),
        layers.TimeDistributed(layers.Dense(4), name="steps"),
        layers.Flatten(),
        layers.SpectralNormalization(layers.Dense(3), name="bounded"),
    ]
    return sequential((5, 4), *parts, layers.Dense(2, name="last"))


def steps():
    return np.random.default_rng(0).normal(size=(8, 5, 4)).astype("float32")


def kernels_in(masks):
    return sorted(mask.shape for mask in masks.values())


def test_a_copy_has_the_paths_of_its_model():
    model = wrapped()
    copy = copy_of(model)
    assert [v.path for v in copy.variables] == [v.path for v in model.variables]
    masks = keras_ntt.get_masks(
        keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude", filters="encoder")
    )
    assert len(masks) == 4
    keras_ntt.apply_masks(model, masks)
    for path, mask in keras_ntt.get_masks(model).items():
        np.testing.assert_array_equal(mask, masks[path])


WRAPPED = {
    "encoder": ("encoder", [(3, 12), (3, 12), (4, 12), (4, 12)]),
    "steps": (["^steps$", "^last$"], [(3, 2), (6, 4)]),
    "bounded": ("bounded", [(20, 3)]),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(("filters", "wanted"), WRAPPED.values(), ids=WRAPPED)
@pytest.mark.few(2)
def test_layers_in_wrappers_are_chosen_by_the_wrapper(filters, wanted, loaded, tmp_path):
    model = wrapped()
    if loaded:  # where Keras leaves the wrappers' names out of the paths
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    pruned = keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude", filters=filters)
    assert kernels_in(keras_ntt.get_masks(pruned)) == wanted
    transfer = keras_ntt.NeuralTangentTransfer(
        copy_of(model), pruning_schedule=0.5, filters=filters
    )
    assert kernels_in(transfer.masks) == wanted


@pytest.mark.long
@pytest.mark.parametrize(("name", "loaded"), [("steps", False), ("bounded", True)])
@pytest.mark.few(1)
def test_a_transfer_prunes_layers_in_wrappers(name, loaded, tmp_path):
    filters, wanted = WRAPPED[name]
    model = wrapped()
    if loaded:
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    pruned = keras_ntt.prune_neural_tangent(
        model, steps(), sparsity=0.5, filters=filters, epochs=1, verbose=0
    )
    assert kernels_in(keras_ntt.get_masks(pruned)) == wanted


@pytest.mark.long
def test_shares_by_the_name_of_a_wrapper():
    pruned = keras_ntt.prune_neural_tangent(
        wrapped(), steps(), sparsity=0.5, allocation={"encoder": 0.75}, epochs=1, verbose=0
    )
    for path, mask in keras_ntt.get_masks(pruned).items():
        assert mask.mean() == pytest.approx(0.25 if "encoder" in path else 0.5, abs=0.03)


def test_masks_go_to_the_path_that_ends_most_like_theirs(tmp_path):
    model = wrapped()
    masks = keras_ntt.get_masks(
        keras_ntt.prune_at_init(model, sparsity=0.5, saliency="random", filters="encoder")
    )
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    keras_ntt.apply_masks(loaded, masks)
    given = [masks.get(v.path) for v in model.weights]
    found = keras_ntt.get_masks(loaded)
    held = [found.get(v.path) for v in loaded.weights]
    for ours, theirs in zip(held, given, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Unregistered(layers.Dense):
    """A layer that no registry knows."""


def test_layers_that_are_not_registered():
    model = sequential((6,), Unregistered(4), layers.Dense(2))
    copy = copy_of(model)
    assert type(copy.layers[0]) is Unregistered
    np.testing.assert_array_equal(copy(X), model(X))


@pytest.mark.parametrize("saliency", ["magnitude", "ntk_sap", "synflow"])
def test_pruning_leaves_all_random_numbers_as_they_were(saliency):
    model = sequential((6,), layers.Dense(5), layers.Dense(2))
    kernels = []
    for prune in (False, True):
        keras.utils.set_random_seed(1)
        if prune:
            keras_ntt.prune_at_init(model, sparsity=0.5, saliency=saliency, rounds=1)
        drawn = [random.random(), np.random.random(), float(tf.random.uniform(()))]
        layer = layers.Dense(3)
        layer.build((None, 4))
        kernels.append((drawn, keras.ops.convert_to_numpy(layer.kernel)))
    assert kernels[0][0] == kernels[1][0]
    np.testing.assert_array_equal(kernels[0][1], kernels[1][1])


# --- what no registry knows ----------------------------------------------------------------------


def bent(x):
    return x * keras.ops.sigmoid(1.5 * x)


class Constantly:
    """An initializer without a configuration."""

    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, 0.25, dtype)


class Halves(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, 0.5, dtype)


class Small(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 1e-3 * keras.ops.sum(keras.ops.abs(x))


class Bounded(keras.constraints.Constraint):
    def __call__(self, w):
        return keras.ops.clip(w, -1.0, 1.0)


class Powers(layers.Layer):
    """A layer that is given a function, and says so in its configuration as it is."""

    def __init__(self, function, units=3, **kwargs):
        super().__init__(**kwargs)
        self.function, self.units = function, units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))

    def call(self, x):
        return self.function(x @ self.kernel)

    def get_config(self):
        return {**super().get_config(), "function": self.function, "units": self.units}


def dense_of(n, **arguments):
    return sequential((6,), layers.Dense(n, **arguments), layers.Dense(2))


def two_lambdas():
    up, down = (lambda x: x * 3), (lambda x: x / 3)
    return sequential((6,), layers.Dense(4, up), layers.Dense(4, down), layers.Dense(2))


def lambda_layers():
    factor = 2.5
    ends = {"output_shape": lambda shape: shape, "mask": lambda x, mask: mask}
    return sequential(
        (6,), layers.Dense(4), layers.Lambda(lambda x: x * factor, **ends), layers.Dense(2)
    )


def in_wrappers():
    cell = layers.GRUCell(3, activation=bent)
    with keras.saving.custom_object_scope({"bent": bent}):  # Keras copies the layer inside
        both_ways = layers.Bidirectional(layers.LSTM(3, activation=bent, return_sequences=True))
    return sequential(
        (6,),
        layers.Reshape((2, 3)),
        both_ways,
        layers.TimeDistributed(layers.Dense(4, lambda x: x**2)),
        layers.RNN(cell, return_sequences=True),
        layers.Flatten(),
        layers.Dense(2),
    )


def attention():
    x = keras.Input((6,))
    h = layers.Reshape((2, 3))(x)
    heads = layers.MultiHeadAttention(2, 3, kernel_initializer=Halves())
    return keras.Model(x, layers.Dense(2)(layers.Flatten()(heads(h, h))))


def nested_functions():
    inner = sequential((6,), Powers(lambda x: x + 1), layers.Dense(3, bent))
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(2)(inner(x)))


def namesakes():
    """Two classes of the same name."""

    def made(power):
        class Namesake(layers.Dense):
            def call(self, x):
                return super().call(x) ** power

        return Namesake

    return sequential((6,), made(1)(4), made(2)(4), layers.Dense(2))


def compiled_inside():
    inner = sequential((6,), layers.Dense(3, bent))
    inner.compile("sgd", lambda y, z: keras.ops.mean((y - z) ** 2))
    return sequential((6,), inner, layers.Dense(2))


def with_constants():
    x = keras.Input((6,))
    h = layers.Dense(4)(x) * np.arange(4, dtype="float32") + tf.constant([1.0, 2.0, 3.0, 4.0])
    return keras.Model(x, layers.Dense(2)(h))


NOT_REGISTERED = {
    "function": lambda: dense_of(4, activation=bent),
    "function of tensorflow": lambda: dense_of(4, activation=tf.nn.relu6),
    "lambda": lambda: dense_of(4, activation=lambda x: x + 1),
    "two lambdas": two_lambdas,
    "Lambda": lambda_layers,
    "initializer": lambda: dense_of(4, kernel_initializer=Constantly()),
    "initializer, a function": lambda: dense_of(
        4, kernel_initializer=lambda shape, dtype=None: keras.ops.ones(shape, dtype)
    ),
    "initializer, an array": lambda: dense_of(4, kernel_initializer=np.ones((6, 4), "float32")),
    "regularizer": lambda: dense_of(4, kernel_regularizer=Small()),
    "constraint": lambda: dense_of(4, kernel_constraint=Bounded()),
    "layer": lambda: sequential((6,), Powers(bent), layers.Dense(2)),
    "wrappers": in_wrappers,
    "attention": attention,
    "nested": nested_functions,
    "namesakes": namesakes,
    "compiled inside": compiled_inside,
    "constants": with_constants,
}


@pytest.mark.parametrize("make", NOT_REGISTERED.values(), ids=NOT_REGISTERED)
@pytest.mark.few(8)
def test_nothing_has_to_be_registered(make):
    model = make()
    for variable in model.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape))
    expected = keras.ops.convert_to_numpy(model(X))
    copy = copy_of(model)
    np.testing.assert_array_equal(copy(X), expected)
    assert [v.path for v in copy.variables] == [v.path for v in model.variables]
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    for variable in copy.variables:
        variable.assign(keras.ops.zeros_like(variable))
    np.testing.assert_array_equal(model(X), expected)


def test_parts_of_the_users_own_hold_in_the_copy():
    model = dense_of(4, kernel_regularizer=Small(), kernel_constraint=Bounded())
    copy = copy_of(model)
    np.testing.assert_allclose(copy.losses, model.losses)
    copy.layers[0].kernel.assign(keras.ops.full((6, 4), 3.0))
    copy.compile(keras.optimizers.SGD(1e-6), "mse")
    copy.fit(X, X[:, :2], verbose=0)
    assert np.abs(copy.layers[0].kernel).max() == 1.0


def of_two(operation, layer):
    x = keras.Input((6,))
    h = layer([layers.Dense(6)(x), x])
    return keras.Model(x, layers.Dense(2)(operation(h, x)))


OPERATORS = {
    "Add": (lambda h, x: h + 3.0, layers.Add(name="layer")),
    "Multiply": (lambda h, x: h * x, layers.Multiply(name="layer")),
    "Subtract": (lambda h, x: 1.0 - h, layers.Subtract(name="layer")),
    "Maximum": (lambda h, x: keras.ops.maximum(h, 0.0), layers.Maximum(name="layer")),
    "Average": (
        lambda h, x: keras.ops.average(h, axis=-1, weights=None)[:, None],
        layers.Average(name="layer"),
    ),
    "Dot": (lambda h, x: keras.ops.dot(h, np.eye(1, 6)), layers.Dot(1, name="layer")),
}


@pytest.mark.parametrize(("operation", "layer"), OPERATORS.values(), ids=OPERATORS)
def test_operators_beside_layers_of_the_same_name(operation, layer):
    model = of_two(operation, layer)
    np.testing.assert_array_equal(copy_of(model)(X), model(X))


@pytest.mark.parametrize("bound", ["closure", "method", "default", "layer"])
def test_what_reads_weights_past_the_layers_is_refused(bound):
    table = layers.Embedding(9, 3)
    x = keras.Input((2,), dtype="int32")
    h = table(x)
    tied = {
        "closure": lambda y: keras.ops.matmul(y, keras.ops.transpose(table.embeddings)),
        "method": table.call,
        "default": lambda y, kernel=table.embeddings: y * keras.ops.sum(kernel),
        "layer": lambda y, inner={"table": [table]}: y,
    }[bound]
    if bound == "method":
        h = keras.ops.cast(h, "int32")
    model = keras.Model(x, layers.Lambda(tied, output_shape=lambda shape: shape)(h))
    message = "^The model .* cannot be copied: .*reads weights of the layer 'embedding.*Received"
    with pytest.raises(ValueError, match=message):
        copy_of(model)


def test_what_reads_weights_of_another_model_has_the_same_in_the_copy():
    other = layers.Dense(6)
    other.build((None, 6))
    model = sequential((6,), layers.Dense(6), layers.Lambda(lambda x: x @ other.kernel))
    np.testing.assert_array_equal(copy_of(model)(X), model(X))


def test_the_registry_and_keras_are_left_as_they_were():
    before = (keras.saving.serialize_keras_object, keras.layers.Layer.add_weight)
    copy_of(dense_of(4, activation=bent))
    assert before == (keras.saving.serialize_keras_object, keras.layers.Layer.add_weight)
    assert not [name for name in keras.saving.get_custom_objects() if "bent" in name]
    with pytest.raises(TypeError, match="bent"):
        keras.Sequential.from_config(dense_of(4, activation=bent).get_config())


def test_a_copy_draws_no_weights_that_are_overwritten(monkeypatch):
    drawn = []

    class Counted(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            drawn.append(shape)
            return keras.ops.ones(shape, dtype)

    model = dense_of(4, kernel_initializer=Counted())
    assert len(drawn) == 1
    np.testing.assert_array_equal(copy_of(model)(X), model(X))
    assert len(drawn) == 1
    redrawn(model)
    assert len(drawn) == 2


def test_a_layer_that_nested_models_share_is_named_as_the_cause():
    shared, x = layers.Dense(4), keras.Input((6,))
    parts = []
    for name in ("first", "second"):
        y = keras.Input((6,))
        parts.append(keras.Model(y, layers.Dense(2)(shared(y)), name=name))
    model = keras.Model(x, layers.add([part(x) for part in parts]))
    with pytest.raises(ValueError, match="8 weights of 6: a layer that several nested models"):
        copy_of(model)
    twice = keras.Model(x, layers.add([parts[0](x), parts[0](2 * x)]))
    np.testing.assert_array_equal(copy_of(twice)(X), twice(X))


class Unwilling(layers.Dense):
    def get_config(self):
        raise NotImplementedError("nobody may see this")


@pytest.mark.parametrize("name", ["prune_at_init", "prune_neural_tangent", "prune_post_training"])
def test_what_cannot_be_copied_is_refused_at_once(name, monkeypatch):
    model = sequential((6,), Unwilling(4), layers.Dense(2))
    calls = {
        "prune_at_init": lambda: keras_ntt.prune_at_init(
            model, sparsity=0.5, saliency=lambda subject: pytest.fail("scored first")
        ),
        "prune_neural_tangent": lambda: keras_ntt.prune_neural_tangent(
            model, X, sparsity=0.5, epochs=1
        ),
        "prune_post_training": lambda: keras_ntt.prune_post_training(
            model, X, sparsity=0.5, verbose=0
        ),
    }
    message = "^The model .* cannot be copied: NotImplementedError: nobody may see this"
    with pytest.raises(ValueError, match=message):
        calls[name]()
    # What the messages recommend instead.
    keras_ntt.prune_low_magnitude(model, 0.5)
    assert keras_ntt.sparsity_report(model).sparsity == 0.5


def test_the_cause_comes_first_and_without_configurations():
    class Hidden(layers.Layer):
        def __init__(self, size, **kwargs):
            super().__init__(**kwargs)
            if size is None:
                raise TypeError("size must not be None")

        def call(self, x):
            return x

        def get_config(self):
            return {**super().get_config(), "size": None}

    model = sequential((6,), layers.Dense(4), Hidden(3), layers.Dense(2))
    with pytest.raises(ValueError, match="cannot be copied: TypeError: size must not b") as refusal:
        copy_of(model)
    assert "config=" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
