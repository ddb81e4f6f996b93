import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures
from keras import layers

import keras_ntt
from keras_ntt.core import host

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.oldest]


def random_masks(model, seed=3):
    rng = np.random.default_rng(seed)
    return {
        v.path: rng.random(v.shape) < 0.6 for v in model.trainable_variables if v.name == "kernel"
    }


SMOOTH = [
    architectures.dense_without_bias,
    architectures.dense_on_sequences,
    architectures.conv_padded_and_strided,
    architectures.conv_grouped,
    architectures.conv_1d,
    architectures.layer_called_twice,
    architectures.branches,
    architectures.own_layers,
    architectures.own_code,
    architectures.outputs_of_rank_three,
]


# With respect to all entries, one model of each way of going through the weights.
EITHER_WAY = [
    architectures.dense_without_bias,
    architectures.conv_padded_and_strided,
    architectures.layer_called_twice,
    architectures.own_code,
]
PAIRS = [(make, "kept") for make in SMOOTH] + [(make, "all") for make in EITHER_WAY]


@pytest.mark.filterwarnings("ignore:The model .* ends in")
@pytest.mark.parametrize(
    ("make", "wrt"), PAIRS, ids=lambda value: getattr(value, "__name__", value)
)
@pytest.mark.few(3)
def test_gradient_is_that_of_finite_differences(make, wrt):
    teacher, student = (architectures.randomize(make(), seed) for seed in (0, 1))
    x = architectures.inputs_for(student, 4)
    masks = random_masks(student)

    def loss():
        return keras_ntt.ntt_loss(
            student, teacher, x, sparsity=0.4, ntk_weight=0.1, l2=1e-3, wrt=wrt, masks=masks
        ).total

    sources = [host.raw(v) for v in student.trainable_variables]
    with tf.GradientTape() as tape:
        total = loss()
    gradients = tape.gradient(total, sources, unconnected_gradients="zero")
    rng = np.random.default_rng(5)
    directions = [rng.standard_normal(v.shape) for v in sources]
    slope = sum(float(tf.reduce_sum(g * d)) for g, d in zip(gradients, directions, strict=True))
    start = [v.numpy() for v in sources]
    values = []
    h = 1e-5
    for k in (-2, -1, 1, 2):
        for variable, value, direction in zip(sources, start, directions, strict=True):
            variable.assign(value + k * h * direction)
        values.append(float(loss()))
    expected = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    assert slope == pytest.approx(expected, rel=1e-6)
    by_path = {v.path: g for v, g in zip(student.trainable_variables, gradients, strict=True)}
    for path, mask in masks.items():
        gradient = keras.ops.convert_to_numpy(by_path[path])
        assert not gradient[~mask].any()
        assert gradient[mask].any()


def by_hand(student, teacher, x, *, sparsity, ntk_weight, l2, masks):
    """The objective from Jacobians of a masked copy of the student, in NumPy."""
    masked = keras.models.clone_model(student)
    masked.set_weights(student.get_weights())
    paths = [v.path for v in student.weights]
    squares = 0.0
    for variable, path in zip(masked.weights, paths, strict=True):
        if path in masks:
            variable.assign(keras.ops.convert_to_numpy(variable) * masks[path])
            squares += (keras.ops.convert_to_numpy(variable) ** 2).sum()
    n = -(-len(x) // 2)
    kernels, outputs = [], []
    for model in (masked, teacher):
        ntk = keras_ntt.empirical_ntk(model, x[:n], x[n:], implementation="jacobian")
        kernels.append(keras.ops.convert_to_numpy(ntk))
        outputs.append(keras.ops.convert_to_numpy(model(x)))
    ntk_distance = ((kernels[0] - kernels[1]) ** 2).mean()
    output_distance = ((outputs[0] - outputs[1]) ** 2).mean()
    total = ntk_weight * ntk_distance + output_distance + l2 / (1 - sparsity) * squares
    return total, ntk_distance, output_distance, squares


@pytest.mark.parametrize("n", [2, 5, 6])
def test_loss_is_the_formula(n):
    teacher, student = (architectures.randomize(architectures.lenet(), seed) for seed in (0, 1))
    x = architectures.inputs_for(student, n)
    masks = random_masks(student)
    options = {"sparsity": 0.4, "ntk_weight": 0.1, "l2": 1e-3, "masks": masks}
    found = keras_ntt.ntt_loss(student, teacher, x, **options)
    np.testing.assert_allclose(found, by_hand(student, teacher, x, **options), rtol=1e-12)


def test_a_single_sample_is_compared_with_itself():
    teacher, student = (architectures.randomize(architectures.dense(), seed) for seed in (0, 1))
    x = architectures.inputs_for(student, 1)
    found = keras_ntt.ntt_loss(student, teacher, x, sparsity=0.0)
    twice = keras_ntt.ntt_loss(student, teacher, np.repeat(x, 2, axis=0), sparsity=0.0)
    np.testing.assert_array_equal(found, twice)
    assert np.isfinite(found).all()


def test_loss_of_equal_models_is_the_l2_term():
    model = architectures.randomize(architectures.lenet())
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    x = architectures.inputs_for(model, 4)
    loss = keras_ntt.ntt_loss(model, twin, x, sparsity=0.0, l2=1e-3)
    assert float(loss.ntk_distance) == 0
    assert float(loss.output_distance) == 0
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    assert float(loss.total) == pytest.approx(1e-3 * sum((k**2).sum() for k in kernels))


def test_kept_and_all_differ_on_a_masked_student_only():
    teacher, student = (architectures.randomize(architectures.dense(), seed) for seed in (0, 1))
    x = architectures.inputs_for(student, 4)
    masks = random_masks(student)
    losses = [
        keras_ntt.ntt_loss(student, teacher, x, sparsity=0.4, wrt=wrt, masks=m).ntk_distance
        for m in (masks, {})
        for wrt in ("all", "kept")
    ]
    assert abs(float(losses[0] - losses[1])) > 1e-3
    assert float(losses[2]) == pytest.approx(float(losses[3]), rel=1e-12)


def test_masks_held_by_the_student_are_used():
    teacher, student = (architectures.randomize(architectures.dense(), seed) for seed in (0, 1))
    x = architectures.inputs_for(student, 4)
    masks = random_masks(student)
    expected = keras_ntt.ntt_loss(student, teacher, x, sparsity=0.4, wrt="kept", masks=masks)
    keras_ntt.apply_masks(student, masks)
    found = keras_ntt.ntt_loss(student, teacher, x, sparsity=0.4, wrt="kept")
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_nothing_is_changed():
    teacher, student = (architectures.randomize(architectures.dense(), seed) for seed in (0, 1))
    before = [*teacher.get_weights(), *student.get_weights()]
    keras_ntt.ntt_loss(
        student,
        teacher,
        architectures.inputs_for(student, 4),
        sparsity=0.5,
        masks=random_masks(student),
    )
    after = [*teacher.get_weights(), *student.get_weights()]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_linear_layer_by_hand():
    """f = w x with w = 3, teacher 1: ntk = x1 x2 for both, outputs differ by 2 x."""
    models = []
    for weight in (3.0, 1.0):
        model = architectures.sequential((1,), layers.Dense(1, use_bias=False))
        model.set_weights([np.array([[weight]])])
        models.append(model)
    loss = keras_ntt.ntt_loss(*models, np.array([[1.0], [2.0]]), sparsity=0.5, l2=0.1)
    assert [float(value) for value in loss] == [10.0 + 0.1 / 0.5 * 9, 0.0, 10.0, 9.0]
