import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures
from helpers.expect import use_float
from keras import layers

import keras_ntt
from keras_ntt.ntk.layer_rules import find_rule

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.oldest]


def relative_error(found, expected):
    found, expected = (keras.ops.convert_to_numpy(a) for a in (found, expected))
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("make", architectures.ALL, ids=lambda make: make.__name__)
@pytest.mark.few(6)
def test_structured_kernel_is_the_jacobian_kernel(make):
    model = architectures.randomize(make())
    x1, x2 = architectures.inputs_for(model, 3), architectures.inputs_for(model, 2, seed=1)
    found = keras_ntt.empirical_ntk(model, x1, x2)
    expected = keras_ntt.empirical_ntk(model, x1, x2, implementation="jacobian")
    assert relative_error(found, expected) < 1e-12
    trace = keras_ntt.empirical_ntk(model, x1, x2, outputs="trace")
    assert relative_error(trace, architectures.trace_of(expected)) < 1e-12


@pytest.mark.parametrize("make", architectures.ALL, ids=lambda make: make.__name__)
@pytest.mark.few(6)
def test_kept_kernel_is_the_jacobian_kernel_of_the_kept_entries(make):
    model = architectures.randomize(make())
    rng = np.random.default_rng(2)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    for variable in kernels:
        value = keras.ops.convert_to_numpy(variable)
        variable.assign(value * (rng.random(value.shape) < 0.5))
    x1, x2 = architectures.inputs_for(model, 3), architectures.inputs_for(model, 2, seed=1)
    found = keras_ntt.empirical_ntk(model, x1, x2, wrt="kept")
    expected = keras_ntt.empirical_ntk(model, x1, x2, wrt="kept", implementation="jacobian")
    assert relative_error(found, expected) < 1e-12
    trace = keras_ntt.empirical_ntk(model, x1, x2, wrt="kept", outputs="trace")
    assert relative_error(trace, architectures.trace_of(expected)) < 1e-12
    if any(find_rule(layer) and layer.weights for layer in model._flatten_layers()) and kernels:
        assert relative_error(found, keras_ntt.empirical_ntk(model, x1, x2)) > 1e-6


def test_closed_form_of_a_linear_model():
    model = architectures.randomize(architectures.sequential((4,), layers.Dense(3)))
    x1, x2 = architectures.inputs_for(model, 5), architectures.inputs_for(model, 2, seed=1)
    expected = np.einsum("ij,ab->ijab", x1 @ x2.T + 1, np.eye(3))
    assert relative_error(keras_ntt.empirical_ntk(model, x1, x2), expected) < 1e-14


def test_closed_form_of_two_layers():
    model = architectures.sequential((4,), layers.Dense(5, "tanh", use_bias=False), layers.Dense(2))
    architectures.randomize(model)
    x = architectures.inputs_for(model, 3)
    w1, w2, _ = (keras.ops.convert_to_numpy(w) for w in model.weights)
    h = np.tanh(x @ w1)
    delta = np.einsum("ip,pa->iap", 1 - h**2, w2)
    expected = np.einsum("ij,iap,jbp->ijab", x @ x.T, delta, delta)
    expected += np.einsum("ij,ab->ijab", h @ h.T + 1, np.eye(2))
    assert relative_error(keras_ntt.empirical_ntk(model, x), expected) < 1e-13


def test_shared_layer_has_cross_terms():
    """The kernel of f(x) = w (w x) is (2 w x)^2, twice what the calls give on their own."""
    shared = layers.Dense(1, use_bias=False)
    x = layers.Input((1,))
    model = keras.Model(x, shared(shared(x)))
    shared.kernel.assign([[3.0]])
    ntk = keras_ntt.empirical_ntk(model, np.array([[5.0]]))
    assert float(ntk[0, 0, 0, 0]) == pytest.approx((2 * 3 * 5) ** 2, rel=1e-14)


def test_kernel_is_symmetric_and_positive():
    model = architectures.randomize(architectures.lenet())
    x = architectures.inputs_for(model, 6)
    ntk = keras.ops.convert_to_numpy(keras_ntt.empirical_ntk(model, x))
    matrix = ntk.transpose(0, 2, 1, 3).reshape(18, 18)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12)
    assert np.linalg.eigvalsh(matrix).min() > -1e-10 * np.abs(matrix).max()


@pytest.mark.parametrize("wrt", ["all", "kept"])
@pytest.mark.parametrize("implementation", ["auto", "jacobian"])
def test_trace_is_the_mean_over_outputs(implementation, wrt):
    model = architectures.randomize(architectures.lenet())
    keras_ntt.apply_masks(model, {model.layers[-1].kernel.path: np.tri(6, 3)})
    x = architectures.inputs_for(model, 3)
    options = {"implementation": implementation, "wrt": wrt}
    full = keras.ops.convert_to_numpy(keras_ntt.empirical_ntk(model, x, **options))
    trace = keras_ntt.empirical_ntk(model, x, outputs="trace", **options)
    assert relative_error(trace, np.einsum("ijaa->ij", full) / 3) < 1e-13


def test_inference_mode():
    model = architectures.sequential(
        (4,), layers.Dense(4), layers.Dropout(0.9), layers.BatchNormalization(), layers.Dense(1)
    )
    x = architectures.inputs_for(model, 3)
    before = [keras.ops.convert_to_numpy(v) for v in model.non_trainable_variables]
    first = keras_ntt.empirical_ntk(model, x)
    second = keras_ntt.empirical_ntk(model, x)
    np.testing.assert_array_equal(first, second)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize(
    ("make", "autograph"),
    [(architectures.lenet, False), (architectures.dense_without_bias, True)],
    ids=["lenet", "converted by autograph"],
)
@pytest.mark.few(1)
def test_compiled_kernel_with_an_open_batch_size(make, autograph):
    model = architectures.randomize(make())

    def ntk(x):
        from keras_ntt.core.network import unroll
        from keras_ntt.ntk.empirical import kernel_matrix, tangents

        factors = tangents(unroll(model), x).factors
        return kernel_matrix(factors, factors)

    x = architectures.inputs_for(model, 4)
    signature = [tf.TensorSpec([None, *x.shape[1:]], tf.float64)]
    compiled = tf.function(ntk, input_signature=signature, autograph=autograph)
    assert relative_error(compiled(x), ntk(x)) < 1e-13


@pytest.mark.parametrize("precision", ["float32"])
def test_float32_is_close_to_float64(precision):
    exact = architectures.randomize(architectures.lenet())
    use_float(precision)
    rounded = architectures.lenet()
    rounded.set_weights(exact.get_weights())
    x = architectures.inputs_for(exact, 4)
    found = keras_ntt.empirical_ntk(rounded, x.astype(precision))
    assert relative_error(found, keras_ntt.empirical_ntk(exact, x)) < 1e-5


def test_subclass_that_changes_the_computation_has_no_rule():
    class Renamed(layers.Dense):
        def __init__(self, units, note="", **kwargs):
            super().__init__(units, **kwargs)
            self.note = note

    class Standardized(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            return super().convolution_op(inputs, kernel - keras.ops.mean(kernel))

    assert find_rule(Renamed(3)) is find_rule(layers.Dense(3)) is not None
    assert find_rule(architectures.Doubled(3)) is None
    assert find_rule(Standardized(2, 3)) is None
    model = architectures.randomize(
        architectures.sequential((4, 4, 2), Standardized(2, 3), layers.Flatten(), Renamed(2))
    )
    x = architectures.inputs_for(model, 2)
    oracle = keras_ntt.empirical_ntk(model, x, implementation="jacobian")
    assert relative_error(keras_ntt.empirical_ntk(model, x), oracle) < 1e-12


def test_weights_tied_between_layers():
    """A decoder with the encoder's kernel transposed: two layers, one variable."""

    class Transposed(layers.Layer):
        def __init__(self, of, **kwargs):
            super().__init__(**kwargs)
            self.of = of

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(self.of.kernel))

    encoder = layers.Dense(3, "tanh")
    x = layers.Input((4,))
    model = architectures.randomize(keras.Model(x, Transposed(encoder)(encoder(x))))
    x = architectures.inputs_for(model, 3)
    oracle = keras_ntt.empirical_ntk(model, x, implementation="jacobian")
    assert relative_error(keras_ntt.empirical_ntk(model, x), oracle) < 1e-12


@pytest.mark.parametrize("implementation", ["auto", "jacobian"])
@pytest.mark.parametrize("sizes", [(3, 3), (2, 3)])
def test_a_dict_of_inputs_is_taken_by_name(implementation, sizes):
    """As Keras does it, not in the order of its keys."""
    z, a = (keras.Input((n,), name=name) for n, name in zip(sizes, "za", strict=True))
    model = keras.Model([z, a], layers.Dense(2)(layers.concatenate([layers.Dense(4)(z), a])))
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(5, n)).astype("float32") for n in sizes]
    by_name = {"a": x[1], "z": x[0]}
    np.testing.assert_array_equal(model(x), model(by_name))
    wanted = keras_ntt.empirical_ntk(model, x, implementation=implementation)
    found = keras_ntt.empirical_ntk(model, by_name, implementation=implementation)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.long
def test_a_transfer_takes_a_dict_of_inputs_by_name():
    # Of one size, so that an exchange would not be an error.
    z, a = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    model = keras.Model([z, a], layers.Dense(2)(layers.concatenate([layers.Dense(4)(z), a])))
    x = [np.random.default_rng(seed).normal(size=(5, 3)).astype("float32") for seed in (0, 1)]
    transfers = []
    for inputs in (x, {"a": x[1], "z": x[0]}):
        keras.utils.set_random_seed(0)
        sparse = keras_ntt.prune_neural_tangent(
            model, inputs, sparsity=0.5, epochs=1, batch_size=5, seed=0, verbose=0
        )
        transfers.append(sparse.get_weights())
    for one, other in zip(*transfers, strict=True):
        np.testing.assert_array_equal(one, other)
