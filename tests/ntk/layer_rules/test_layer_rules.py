import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures, every_layer
from helpers.differences import error, loss_of
from helpers.expect import use_float
from helpers.paths import ROOT
from keras import layers

import keras_ntt
from keras_ntt.core.network import unroll
from keras_ntt.masks.policies import choose_weights
from keras_ntt.ntk import layer_rules
from keras_ntt.ntk.empirical import tangents
from keras_ntt.ntk.layer_rules import composite, table

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=every_layer.CASES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return architectures.randomize(every_layer.CASES[name]())


def prune_by_half(model):
    rng = np.random.default_rng(2)
    masks = {}
    for variable in choose_weights(model).weights:
        masks[variable.path] = rng.random(variable.shape) < 0.5
    return keras_ntt.apply_masks(model, masks)


@pytest.mark.few(5)
def test_structured_kernel_is_the_jacobian_kernel(name, model):
    tolerance = 1e-6 if name == "lora" else 1e-11  # Keras keeps LoRA's weights in float32
    masks = keras_ntt.get_masks(prune_by_half(model))
    x = every_layer.inputs_for(model, 5)
    x1 = keras.tree.map_structure(lambda a: a[:3], x)
    x2 = keras.tree.map_structure(lambda a: a[3:], x)
    jacobians = architectures.jacobians_by_definition(model, x)
    for wrt in ("all", "kept"):
        expected = 0.0
        for variable, jacobian in zip(model.trainable_variables, jacobians, strict=True):
            j = tf.cast(jacobian, tf.float64).numpy()
            if wrt == "kept" and variable.path in masks:
                j = j * masks[variable.path].ravel()
            expected = expected + np.einsum("aop,bqp->aboq", j[:3], j[3:])
        found = keras_ntt.empirical_ntk(model, x1, x2, wrt=wrt)
        assert error(np.reshape(found, expected.shape), expected) < tolerance
        trace = keras_ntt.empirical_ntk(model, x1, x2, wrt=wrt, outputs="trace")
        assert error(trace, architectures.trace_of(expected)) < tolerance


def test_every_rule_for_weights_has_a_case():
    with_weights = {
        rule_type.__name__
        for rule_type, rule in layer_rules.registered_rules().items()
        if rule.__module__ != "keras_ntt.ntk.layer_rules.weightless"
        and rule_type.__module__.startswith("keras.")
    }
    elsewhere = {"Dense", "Conv1D", "Conv2D"}  # in architectures.py
    assert with_weights - elsewhere <= set(every_layer.CASES)


# Keras keeps LoRA's weights in float32, too short for finite differences.
DIFFERENCES = [(name, "all") for name in every_layer.CASES if name != "lora"]
DIFFERENCES += [(name, "kept") for name in ("DepthwiseConv2D", "EinsumDense", "subclassed", "tied")]


@pytest.mark.long
@pytest.mark.parametrize(("name", "wrt"), DIFFERENCES)
def test_gradient_of_the_loss_is_its_finite_difference(name, wrt):
    model, options = architectures.randomize(every_layer.CASES[name]()), {"wrt": wrt}
    teacher = architectures.randomize(every_layer.CASES[name](), seed=1)
    prune_by_half(model)
    x = every_layer.inputs_for(model, 4)
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        total = loss_of(model, teacher, x, **options).total
    gradients = tape.gradient(total, variables, unconnected_gradients="zero")
    rng = np.random.default_rng(5)
    masks = keras_ntt.get_masks(model)
    steps, slope = [], 0.0
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        step = rng.standard_normal(variable.shape) * masks.get(variable.path, 1.0)
        slope += float(tf.reduce_sum(tf.convert_to_tensor(gradient) * step))
        steps.append((variable, variable.numpy(), step))
    h, values = 1e-5, []
    for k in (-2, -1, 1, 2):
        for variable, value, step in steps:
            variable.assign(value + k * h * step)
        values.append(float(loss_of(model, teacher, x, **options).total))
    difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    assert slope == pytest.approx(difference, rel=1e-5)


@pytest.mark.long
def test_compiled_step_with_an_open_batch_size(name, model):
    teacher = architectures.randomize(every_layer.CASES[name](), seed=1)
    x = every_layer.inputs_for(model, 4)
    signature = keras.tree.map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), x)
    compiled = tf.function(
        lambda x: loss_of(model, teacher, x), input_signature=[signature], autograph=False
    )
    tolerance = 1e-5 if name == "lora" else 1e-10
    np.testing.assert_allclose(compiled(x), loss_of(model, teacher, x), rtol=tolerance)


def structured(model, x):
    """Return which inner layers of each composite call are structured, and the rest."""
    found = {}
    for call in unroll(model).bound_to(x).calls:
        if isinstance(call.operation, keras.layers.Layer) and call.weights:
            rows = keras.tree.map_structure(tf.convert_to_tensor, keras.tree.flatten(x))
            if isinstance(layer_rules.linearize(call, rows), composite.Composite):
                division = composite.divide(call, rows)
                found[call.operation.name] = (
                    [x.name for x in (*division.layers, *division.factors)],
                    [v.path for v in division.rest],
                )
    return found


def test_layers_of_a_subclassed_model_are_structured():
    model = every_layer.CASES["subclassed"]()
    ((layers_found, rest),) = structured(model, every_layer.inputs_for(model, 2)).values()
    assert layers_found == [layer.name for layer in model.layers if layer.weights]
    assert rest == []


def test_what_a_composite_uses_itself_is_not_structured():
    tied = every_layer.CASES["tied"]()
    ((found, rest),) = structured(tied, every_layer.inputs_for(tied, 2)).values()
    assert (len(found), len(rest)) == (1, 2)
    merged = every_layer.Merged()
    merged.build((None, 3, 2))
    x = layers.Input((3, 2))
    model = keras.Model(x, merged(x))
    ((found, rest),) = structured(model, np.zeros((2, 3, 2))).values()
    assert found == [merged.last.name]
    assert rest == [v.path for v in merged.dense.weights]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.SimpleRNN(2, activation="softmax"),
        lambda: layers.LSTM(2, activation="softmax"),
        lambda: layers.GRU(2, reset_after=False),
    ],
)
def test_kernels_of_recurrent_cells_without_a_rule_are_structured(layer):
    model = keras.Sequential([keras.Input((3, 2)), layer()])
    ((found, rest),) = structured(model, np.zeros((2, 3, 2))).values()
    assert set(found) <= {"kernel", "recurrent_kernel"}
    assert "kernel" in found
    assert not any("/kernel" in path for path in rest)


def two_ways(cell):
    return lambda x: layers.Bidirectional(cell(2, return_sequences=True))(x)


def attention(x):
    y = layers.MultiHeadAttention(2, 3)(x, x)
    return layers.LSTM(2, return_sequences=True)(layers.Add()([x, y]))


MASKED = {
    "SimpleRNN": two_ways(layers.SimpleRNN),
    "LSTM": two_ways(layers.LSTM),
    "GRU": two_ways(layers.GRU),
    "attention": attention,
}


@pytest.mark.parametrize("implementation", ["auto", "jacobian"])
@pytest.mark.parametrize("case", MASKED)
@pytest.mark.few(3)
def test_masked_sequences(case, implementation):
    """The kernel by derivatives of the model as Keras runs it, loops and all."""
    tokens = keras.Input((4,), dtype="int32")
    y = MASKED[case](layers.Embedding(5, 2, mask_zero=True)(tokens))
    y = layers.Dense(2)(layers.GlobalAveragePooling1D()(y))
    model = architectures.randomize(keras.Model(tokens, y))
    x = np.array([[1, 2, 0, 0], [0, 3, 0, 4], [1, 1, 1, 1]])
    found = keras_ntt.empirical_ntk(model, x, implementation=implementation)
    assert error(found, architectures.ntk_by_definition(model, x)) < 1e-12


def test_halves_that_read_no_row_of_a_table_in_common():
    def made(seed):
        model = architectures.sequential(
            (1,), layers.Embedding(9, 3), layers.Flatten(), layers.Dense(2)
        )
        return architectures.randomize(model, seed=seed)

    student, teacher, x = made(0), made(1), np.array([[1], [2], [3], [4]])
    table = student.layers[0].embeddings
    with tf.GradientTape() as tape:
        total = loss_of(student, teacher, x).total
    gradient = tf.convert_to_tensor(tape.gradient(total, table.value))
    step = np.random.default_rng(0).normal(size=table.shape)
    value, values = table.numpy(), []
    for h in (-1e-5, 1e-5):
        table.assign(value + h * step)
        values.append(float(loss_of(student, teacher, x).total))
    slope = (values[1] - values[0]) / 2e-5
    assert float(tf.reduce_sum(gradient * step)) == pytest.approx(slope, rel=1e-6)


def dense_of_several(a, b, c):
    first, last = layers.Dense(5, "relu", dtype=a), layers.Dense(3, "softmax", dtype=c)
    return architectures.sequential((6,), first, layers.Activation("tanh", dtype=b), last)


def convolutions_of_several(a, b, c):
    return architectures.sequential(
        (9, 9, 2),
        layers.Conv2D(3, 3, dtype=a),
        layers.ReLU(dtype=b),
        layers.MaxPooling2D(dtype=c),
        layers.SeparableConv2D(3, 2, dtype=b),
        layers.BatchNormalization(dtype=a),
        layers.Flatten(dtype=c),
        layers.Dense(2, dtype=a),
    )


def branches_of_several(a, b, c):
    x = keras.Input((3, 6))
    y = layers.LayerNormalization(dtype=a)(x)
    y = layers.MultiHeadAttention(2, 3, dtype=b)(y, y)
    y = layers.LSTM(4, dtype=a)(layers.Add(dtype=c)([x, y]))
    return keras.Model(x, layers.Dense(2, dtype=b)(y))


@pytest.mark.parametrize("types", ["float32 float64 float32", "float64 float32 float64"])
@pytest.mark.parametrize(
    "make",
    [dense_of_several, convolutions_of_several, branches_of_several],
    ids=lambda make: make.__name__,
)
@pytest.mark.few(2)
def test_layers_of_several_float_types(make, types):
    model = architectures.randomize(make(*types.split()))
    x = np.random.default_rng(1).normal(size=(3, *model.input_shape[1:])).astype("float32")
    found = keras_ntt.empirical_ntk(model, x)
    expected = keras_ntt.empirical_ntk(model, x, implementation="jacobian")
    assert error(found, expected) < 1e-5


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.few(1)
def test_a_head_in_float32_as_keras_advises_for_mixed_precision(policy):
    hidden = layers.Dense(16, "relu", dtype=policy)
    model = architectures.sequential((6,), hidden, layers.Dense(3, dtype="float32"))
    x = np.random.default_rng(1).normal(size=(16, 6)).astype("float32")
    found = keras_ntt.empirical_ntk(model, x[:3])
    assert found.dtype == "float32"
    assert error(found, keras_ntt.empirical_ntk(model, x[:3], implementation="jacobian")) < 0.03
    sparse = keras_ntt.prune_neural_tangent(model, x, sparsity=0.5, epochs=1, verbose=0)
    assert keras_ntt.sparsity_report(sparse).sparsity == 0.5


TIES = {
    "1D": ((11, 1), layers.Conv1D, layers.MaxPooling1D, 3),
    "2D": ((7, 9, 1), layers.Conv2D, layers.MaxPooling2D, (2, 3)),
    "3D": ((5, 5, 5, 1), layers.Conv3D, layers.MaxPooling3D, 2),
}


@pytest.mark.parametrize("case", TIES)
@pytest.mark.few(1)
def test_winners_of_windows_in_which_entries_are_equal(case):
    shape, conv, pooling, window = TIES[case]
    if case == "3D":  # which TensorFlow has in short floats only
        use_float("float32")
    stack = [conv(3, 2, activation="relu"), pooling(window), layers.Flatten(), layers.Dense(4)]
    model = architectures.randomize(keras.Sequential([keras.Input(shape), *stack]))
    x = np.random.default_rng(0).integers(0, 2, (20, *shape)).astype("float64")
    x[:2] = 0
    x[1, 2:] = 1
    found = keras_ntt.empirical_ntk(model, x[:8], x)
    expected = keras_ntt.empirical_ntk(model, x[:8], x, implementation="jacobian")
    assert error(found, expected) < (1e-5 if case == "3D" else 1e-11)


def test_weights_that_are_not_numbers_reach_the_derivatives_through_windows():
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(3, 3, activation="gelu"), layers.MaxPooling2D(),
         layers.Flatten(), layers.Dense(8)]
    )  # fmt: skip
    values = {id(v): (v, tf.fill(v.shape, tf.constant(np.nan, v.dtype))) for v in model.weights}
    found = tangents(unroll(model), np.ones((2, 6, 6, 1)), values).factors
    (factor,) = (f for f in found if f.variables[0] is model.layers[0].kernel)
    assert np.isnan(factor.matrix).all()


def test_a_rule_of_the_user():
    class Gated(layers.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(shape=(shape[-1], 3))
            self.offset = self.add_weight(shape=(3,))

        def call(self, x):
            return keras.ops.tanh(keras.ops.matmul(x, self.matrix) + self.offset)

    model = architectures.randomize(architectures.sequential((4,), Gated(), layers.Dense(2)))
    x = architectures.inputs_for(model, 3)
    without = keras_ntt.empirical_ntk(model, x)
    runs = []

    @keras_ntt.register_layer_rule(Gated)
    def gated(call, tensors):
        runs.append(call)
        layer = call.operation
        return layer_rules.Einsum(
            call,
            tensors,
            "nk,ko->no",
            kernel=layer.matrix,
            bias=layer.offset,
            activation=keras.activations.tanh,
        )

    assert error(keras_ntt.empirical_ntk(model, x), without) < 1e-13
    assert len(runs) == 1
    with pytest.raises(TypeError, match="layer classes"):
        keras_ntt.register_layer_rule(Gated(name="an_instance"))
    with pytest.raises(ValueError, match="axis of the samples first"):
        layer_rules.Einsum(runs[0], [tf.constant(x)], "kn,ko->no", kernel=model.weights[0])


def test_the_page_of_layers_is_the_registry():
    page = ROOT / "docs" / "layers.md"
    assert page.read_text() == table.markdown(), "python -m keras_ntt.ntk.layer_rules.table"
