"""Many outputs, bounded memory, short floats."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures, every_layer
from helpers.expect import use_float
from keras import layers

import keras_ntt
from keras_ntt import NeuralTangentTransfer
from keras_ntt.ntk.factors import LookupFactor, to_jacobian
from keras_ntt.ntk.products import product


def pair(make=architectures.lenet):
    return [architectures.randomize(make(), seed) for seed in (0, 1)]


def array(x):
    return keras.ops.convert_to_numpy(x)


def test_projected_kernel_is_the_kernel_of_the_combinations(float64):
    model, _ = pair()
    x1, x2 = architectures.inputs_for(model, 3), architectures.inputs_for(model, 2, seed=1)
    full = array(keras_ntt.empirical_ntk(model, x1, x2))
    options = {"output_projections": 4, "seed": 5}
    projected = array(keras_ntt.empirical_ntk(model, x1, x2, **options))
    by_definition = keras_ntt.empirical_ntk(model, x1, x2, implementation="jacobian", **options)
    np.testing.assert_allclose(projected, by_definition, rtol=1e-10, atol=1e-10)
    assert projected.shape == (3, 2, 4, 4)
    # r^T ntk s for some signs r, s, the same for all samples: found back from the linear system.
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    for a in range(4):
        errors = [
            np.abs(np.einsum("a,ijab,b->ij", r, full, r) - projected[:, :, a, a]).max()
            for r in signs
        ]
        assert min(errors) < 1e-9


@pytest.mark.long
def test_expected_trace_of_projections_is_the_trace(float64):
    """Over all directions drawn, the mean comes as near as its standard error says."""
    model, _ = pair()
    x = architectures.inputs_for(model, 3)
    exact = array(keras_ntt.empirical_ntk(model, x, outputs="trace"))
    drawn = np.array(
        [
            array(keras_ntt.empirical_ntk(model, x, outputs="trace", output_projections=8, seed=s))
            for s in range(60)
        ]
    )
    error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
    assert drawn.std(axis=0).max() > 0
    assert (np.abs(drawn.mean(axis=0) - exact) <= 4 * error + 1e-12 * np.abs(exact)).all()


@pytest.mark.long
def test_expected_distance_of_projections_is_the_distance(float64):
    student, teacher = pair()
    x = architectures.inputs_for(student, 6)
    exact = keras_ntt.ntt_loss(student, teacher, x, sparsity=0.0)
    drawn = np.array(
        [
            keras_ntt.ntt_loss(student, teacher, x, sparsity=0.0, output_projections=2, seed=s)
            for s in range(150)
        ]
    )
    np.testing.assert_allclose(drawn[:, 2:], np.tile(exact[2:], (150, 1)), rtol=1e-12)
    error = drawn[:, 1].std(ddof=1) / np.sqrt(len(drawn))
    assert abs(drawn[:, 1].mean() - float(exact.ntk_distance)) < 4 * error
    assert error < 0.2 * float(exact.ntk_distance)


@pytest.mark.long
def test_validation_draws_the_same_projections_each_time():
    model, teacher = pair()
    x = architectures.inputs_for(model, 4)
    transfer = NeuralTangentTransfer(
        model, teacher, pruning_schedule=0.0, output_projections=2, seed=0
    )
    transfer.compile(keras.optimizers.SGD(0.0))
    history = transfer.fit(x, shuffle=False, epochs=3, validation_data=x, verbose=0).history
    assert len(set(history["val_ntk_distance"])) == 1
    assert len(set(history["ntk_distance"])) == 3


def test_trace_distance_is_that_of_the_traces(float64):
    student, teacher = pair()
    x = architectures.inputs_for(student, 5)
    loss = keras_ntt.ntt_loss(student, teacher, x, sparsity=0.0, outputs="trace")
    traces = [
        array(keras_ntt.empirical_ntk(m, x[:3], x[3:], outputs="trace")) for m in (student, teacher)
    ]
    assert float(loss.ntk_distance) == pytest.approx(((traces[0] - traces[1]) ** 2).mean())


def test_several_outputs_are_compared_together(float64):
    student, teacher = pair(every_layer.CASES["several outputs"])
    x = every_layer.inputs_for(student, 4)
    loss = keras_ntt.ntt_loss(student, teacher, x, sparsity=0.0)
    outputs = [
        np.concatenate([np.reshape(y, (4, -1)) for y in m(x).values()], axis=1)
        for m in (student, teacher)
    ]
    assert outputs[0].shape == (4, 6)
    expected = ((outputs[0] - outputs[1]) ** 2).mean()
    assert float(loss.output_distance) == pytest.approx(expected)
    first, second = ({k: v[part] for k, v in x.items()} for part in (slice(2), slice(2, None)))
    kernels = [
        array(keras_ntt.empirical_ntk(m, first, second, implementation="jacobian"))
        for m in (student, teacher)
    ]
    assert float(loss.ntk_distance) == pytest.approx(((kernels[0] - kernels[1]) ** 2).mean())


@pytest.mark.long
def test_several_inputs_and_outputs_of_a_subclassed_model(float64):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(4, "tanh")
            self.second = layers.Dense(2)

        def call(self, inputs):
            hidden = self.first(inputs["a"] + inputs["b"])
            return {"logits": self.second(hidden), "hidden": hidden}

    rng = np.random.default_rng(0)
    x = {"a": rng.standard_normal((4, 3)), "b": rng.standard_normal((4, 3))}
    model = Own()
    model(x)
    ntk = keras_ntt.empirical_ntk(model, x)
    assert ntk.shape == (4, 4, 6, 6)
    expected = keras_ntt.empirical_ntk(model, x, implementation="jacobian")
    np.testing.assert_allclose(ntk, expected, rtol=1e-10, atol=1e-12)
    transfer = NeuralTangentTransfer(model, pruning_schedule=0.5, seed=0)
    transfer.compile("adam")
    history = transfer.fit(x, batch_size=4, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 7, 8])
@pytest.mark.parametrize("options", [{}, {"output_projections": 2}, {"outputs": "trace"}], ids=str)
def test_blocks_give_the_same_loss_and_gradient(float64, n, options):
    found = []
    for parts in (1, 3):
        student, teacher = pair()
        transfer = NeuralTangentTransfer(
            student, teacher, pruning_schedule=0.5, seed=3, ntk_weight=0.3, l2=1e-2, **options
        )
        transfer.compile(keras.optimizers.SGD(0.01))
        transfer._parts = parts
        x = architectures.inputs_for(student, n)
        history = transfer.fit(x, batch_size=n, epochs=2, verbose=0, shuffle=False).history
        found.append((history, student.get_weights()))
    for name, values in found[0][0].items():
        np.testing.assert_allclose(found[1][0][name], values, rtol=1e-9, err_msg=name)
    for whole, blocks in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(blocks, whole, rtol=1e-8, atol=1e-12)


@pytest.mark.long
def test_memory_limit_takes_steps_in_blocks():
    student, _ = pair(architectures.dense)
    x = architectures.inputs_for(student, 32).astype("float32")
    transfer = NeuralTangentTransfer(student, pruning_schedule=0.5, memory_limit=10**12, seed=0)
    transfer.compile("sgd")
    whole = transfer.estimate_memory(x)
    quarter = transfer.estimate_memory(x, parts=4)
    assert quarter < whole / 2
    limited, _ = pair(architectures.dense)
    other = NeuralTangentTransfer(limited, pruning_schedule=0.5, memory_limit=quarter, seed=0)
    other.compile("sgd")
    histories = [t.fit(x, batch_size=32, epochs=2, verbose=0).history for t in (transfer, other)]
    assert (transfer._parts, other._parts) == (1, 4)
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-4)
    data = tf.data.Dataset.from_tensor_slices(x).batch(32, drop_remainder=True)
    other.fit(data, verbose=0)
    assert other._parts == 4


@pytest.mark.long
def test_memory_limit_that_cannot_be_kept():
    student, _ = pair()
    before = student.get_weights()
    x = architectures.inputs_for(student, 8).astype("float32")
    transfer = NeuralTangentTransfer(student, pruning_schedule=0.5, memory_limit=1000)
    transfer.compile("sgd")
    with pytest.raises(ValueError, match=r"output_projections .* memory_limit=1000"):
        transfer.fit(x, verbose=0)
    data = tf.data.Dataset.from_tensor_slices(x).batch(4)
    with pytest.raises(ValueError, match="drop_remainder=True"):
        transfer.fit(data, verbose=0)
    with pytest.raises(ValueError, match="memory_limit needs to know"):
        transfer.fit((x for _ in range(2)), verbose=0)
    for a, b in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2GB"])
def test_bad_limits_and_projections(value):
    student, teacher = pair(architectures.dense)
    x = architectures.inputs_for(student, 4).astype("float32")
    with pytest.raises(ValueError, match="memory_limit must be a positive integer"):
        NeuralTangentTransfer(student, pruning_schedule=0.5, memory_limit=value)
    with pytest.raises(ValueError, match="output_projections must be a positive integer"):
        keras_ntt.ntt_loss(student, teacher, x, sparsity=0.5, output_projections=value)
    with pytest.raises(ValueError, match="is biased"):
        keras_ntt.ntt_loss(student, teacher, x, sparsity=0.5, output_projections=2, outputs="trace")


def test_estimate_counts_what_lives_at_one_time():
    from keras_ntt.pruning.neural_tangent.memory import peak_memory

    def chain(x):  # [1000] floats: x2 and x3 live together, x4 = x2 + x3 makes a third
        x2 = x * 2.0
        x3 = tf.reshape(x2, [10, 100]) * 3.0
        return tf.reshape(x3, [-1]) + x2

    assert peak_memory(chain, [tf.TensorSpec([1000], tf.float32)]) == 3 * 4000


def test_memory_of_lists_that_loops_fill():
    from keras_ntt.pruning.neural_tangent.memory import peak_memory

    def sums(x):
        return tf.scan(tf.add, x, tf.zeros(1000))

    # The list of ten sums, while it is made one tensor, and a few numbers more.
    found = peak_memory(sums, [tf.TensorSpec([10, 1000], tf.float32)])
    assert 2 * 10 * 4000 <= found < 2 * 11 * 4000


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.few(1)
def test_mixed_precision(policy):
    exact = architectures.randomize(architectures.lenet(), scale=0.3)
    use_float("float32")
    keras.config.set_dtype_policy(policy)
    model = architectures.lenet()
    model.set_weights(exact.get_weights())
    x = architectures.inputs_for(exact, 8).astype("float32")
    found = keras_ntt.empirical_ntk(model, x)
    assert found.dtype == tf.float32
    expected = array(keras_ntt.empirical_ntk(exact, x))
    precision = 2.0**-8 if policy == "mixed_bfloat16" else 2.0**-11
    assert np.abs(array(found) - expected).max() < 8 * precision * np.abs(expected).max()
    transfer = NeuralTangentTransfer(model, pruning_schedule=0.7, seed=0)
    transfer.compile(keras.optimizers.Adam(3e-3))
    history = transfer.fit(x, batch_size=8, epochs=15, verbose=0).history
    assert history["loss"][-1] < 0.85 * history["loss"][0]
    assert all(v.dtype == "float32" for v in model.trainable_variables)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        *("lenet", "MultiHeadAttention", "Embedding"),
        *(pytest.param(name, marks=pytest.mark.large) for name in every_layer.CASES),
    ],
)
def test_compiled_with_xla(name):
    histories = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        make = every_layer.CASES.get(name, architectures.lenet)
        student, _ = pair(make)
        x = every_layer.inputs_for(student, 8)
        x = keras.tree.map_structure(lambda a: a if a.dtype == "int32" else a.astype("float32"), x)
        transfer = NeuralTangentTransfer(student, pruning_schedule=0.7, seed=0)
        transfer.compile(keras.optimizers.SGD(1e-3), jit_compile=jit_compile)
        histories.append(transfer.fit(x, batch_size=8, epochs=3, verbose=0).history)
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-4)


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.few(1)
def test_rows_of_a_table_that_both_sides_read_compiled_with_xla(float64, trace, masked):
    """Rows read twice, by one side alone, and by none; also more readings than rows."""
    rng = np.random.default_rng(0)
    table = keras.Variable(rng.standard_normal((9, 3)), dtype="float64")
    first = np.array([[4, 4, 1, 8], [2, 4, 0, 8]])
    second = np.array([[4, 7, 7, 0], [5, 5, 3, 6], [8, 4, 0, 0]])
    factors = [
        LookupFactor(
            tf.constant(i, "int32"), tf.constant(rng.standard_normal((2 * len(i), 4, 3))), 2, table
        )
        for i in (first, second)
    ]
    masks = {id(table): tf.constant(rng.integers(0, 2, (9, 3)))} if masked else None

    def of(factors):
        return product(*factors, masks=masks, trace=trace)

    found = array(tf.function(lambda: of(factors), jit_compile=True)())
    expected = array(of([to_jacobian(factor) for factor in factors]))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(array(of(factors)), expected, rtol=1e-12)
