"""Scores of weights: worked examples, conservation, other ways of computing the same number."""

from __future__ import annotations

import itertools

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import OwnCode, other_layers
from helpers.expect import warned
from hypothesis import strategies as st
from keras import layers

import keras_ntt
from keras_ntt import prune_at_init, saliency_scores
from keras_ntt.masks.policies import choose_weights
from keras_ntt.saliency import (
    NTKSAP,
    SNIP,
    GraSP,
    LogitSNIP,
    NTKTrace,
    Random,
    SynFlow,
    SynFlowL2,
)
from keras_ntt.saliency.names import SALIENCIES
from keras_ntt.selection.find_masks import subject_of

LABELLED = {"snip", "iterative_snip", "grasp"}


def linear_chain(shapes, weights):
    """Return a network of Dense layers without biases or activations, with given kernels."""
    model = keras.Sequential(
        [keras.Input((shapes[0],)), *(layers.Dense(n, use_bias=False) for n in shapes[1:])]
    )
    model.set_weights(
        [
            np.array(w, "float32").reshape(a.shape)
            for w, a in zip(weights, model.get_weights(), strict=True)
        ]
    )
    return model


def two_by_two():
    model = linear_chain((2, 2), [[[1, 0.5], [-0.5, 2]]])
    return model, (np.array([[1.0, 2.0]], "float32"), np.array([0]))


def small(activation="tanh", **options):
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation, **options), layers.Dense(3, **options)]
    )


def data(n=12, size=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, size)).astype("float32"), rng.integers(0, classes, n)


def scores_of(model, saliency, given=None, **options):
    return list(saliency_scores(model, saliency, data=given, **options).values())


# --- worked examples -------------------------------------------------------------------------


def test_snip_by_hand():
    model, given = two_by_two()
    (found,) = scores_of(model, "snip", given)
    np.testing.assert_allclose(found, np.array([[2, 1], [2, 8]]) / 13, rtol=1e-6)


def test_logit_snip_by_hand():
    model, (x, _) = two_by_two()
    (found,) = scores_of(model, "logit_snip", x)
    np.testing.assert_allclose(found, [[0, 4.5], [0, 36]], atol=1e-6)


def test_grasp_by_hand():
    model, given = two_by_two()
    (found,) = scores_of(model, GraSP(temperature=1), given)
    wanted = [[-0.107468, 0.053734], [0.107468, 0.429874]]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_grasp_and_snip_remove_other_weights():
    model, given = two_by_two()
    for saliency, removed in ((GraSP(temperature=1), (0, 0)), (SNIP(), (0, 1))):
        pruned = prune_at_init(model, sparsity=0.25, saliency=saliency, data=given)
        (mask,) = keras_ntt.get_masks(pruned).values()
        assert not mask[removed]
        assert mask.sum() == 3


def test_grasp_of_a_quadratic():
    """L = sum of h w^2 / 2 has w * (H g) = h^2 w^2, whatever the sign of w."""
    model = linear_chain((2, 1), [[3, -0.5]])

    def loss(labels, outputs):
        # For inputs of unit vectors the outputs are the weights.
        return tf.reduce_sum(0.5 * tf.constant([1.0, 4.0]) * tf.square(tf.squeeze(outputs)))

    (found,) = scores_of(model, GraSP(loss, temperature=1), (np.eye(2, dtype="float32"), [0, 0]))
    np.testing.assert_allclose(found.ravel(), [9, 4], rtol=1e-6)


def test_synflow_by_hand():
    model = linear_chain((2, 2, 1), [[[1, -2], [3, 0.5]], [-1, 4]])
    first, second = scores_of(model, "synflow")
    np.testing.assert_allclose(first, [[1, 8], [3, 2]])
    np.testing.assert_allclose(second.ravel(), [4, 10])


def test_synflow_l2_by_hand():
    model = linear_chain((2, 2, 1), [[[1, -2], [3, 0.5]], [-1, 4]])
    first, second = scores_of(model, "synflow_l2")
    np.testing.assert_allclose(first, [[1, 64], [9, 4]])
    np.testing.assert_allclose(second.ravel(), [10, 68])
    assert first.sum() == second.sum() == 78


def test_ntk_sap_by_hand():
    """f = w2 m2 w1 m1 x has the expected score 2 eps^2 (w1^2 + w2^2) for both weights."""
    model = linear_chain((1, 1, 1), [[2], [0.5]])
    saliency = NTKSAP(batches=300, batch_size=256, epsilon=0.01, redraw=False)
    found = [float(s.item()) / 300 for s in scores_of(model, saliency)]
    # The squares of 300 Gaussians: a relative standard deviation of sqrt(2 / 300) = 8 %.
    np.testing.assert_allclose(found, [8.5e-4, 8.5e-4], rtol=0.2)
    np.testing.assert_allclose(found[0], found[1], rtol=0.02)


def test_ntk_trace_by_hand():
    """The same network's trace is m1^2 m2^2 (w1^2 + w2^2) x^2, or by m * w (m1 w1)^2 + ..."""
    model = linear_chain((1, 1, 1), [[2], [0.5]])
    x = np.array([[1.0], [2.0]], "float32")  # the mean of x^2 is 2.5
    kept = [s.item() for s in scores_of(model, NTKTrace(), x)]
    np.testing.assert_allclose(kept, [2.5 * 8.5, 2.5 * 8.5], rtol=1e-6)
    every = [s.item() for s in scores_of(model, NTKTrace(wrt="all"), x)]
    np.testing.assert_allclose(every, [2.5 * 8, 2.5 * 0.5], rtol=1e-6)


# --- the same numbers by another way ----------------------------------------------------------


def mean_loss(model, x, y):
    logits = keras.ops.convert_to_numpy(model(x)).astype("float64")
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -logs[np.arange(len(y)), y].mean()


def central_difference(model, function, step=1e-5):
    """Return derivatives by every kernel entry, of a float64 model."""
    found = []
    for variable in choose_weights(model).weights:
        value = keras.ops.convert_to_numpy(variable)
        slopes = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * step
                variable.assign(moved)
                ends.append(function())
            slopes[index] = (ends[0] - ends[1]) / (2 * step)
        variable.assign(value)
        found.append(slopes)
    return found


@pytest.mark.usefixtures("float64")
def test_snip_is_the_finite_difference():
    model, (x, y) = small(), data()
    slopes = central_difference(model, lambda: mean_loss(model, x, y))
    kernels = [keras.ops.convert_to_numpy(v) for v in choose_weights(model).weights]
    wanted = [np.abs(w * g) for w, g in zip(kernels, slopes, strict=True)]
    total = sum(w.sum() for w in wanted)
    for found, want in zip(scores_of(model, "snip", (x, y)), wanted, strict=True):
        np.testing.assert_allclose(found, want / total, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_grasp_is_half_the_finite_difference_of_the_gradients_square():
    """H g is half the derivative of ||g||^2, here with g itself by finite differences of SNIP."""
    model, (x, y) = small(), data()
    variables = choose_weights(model).weights

    def square_of_gradient():
        with tf.GradientTape() as tape:
            outputs = model(x) / 2.0
            loss = keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, [v.value for v in variables])
        return sum(float(tf.reduce_sum(g**2)) for g in gradients)

    slopes = central_difference(model, square_of_gradient)
    found = scores_of(model, GraSP(temperature=2), (x, y))
    for score, slope, variable in zip(found, slopes, variables, strict=True):
        wanted = keras.ops.convert_to_numpy(variable) * slope / 2
        np.testing.assert_allclose(score, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("wrt", ["all", "kept"])
@pytest.mark.few(1)
def test_ntk_trace_is_the_finite_difference_of_the_kernel(wrt):
    """Moving m by a factor moves w: for the kept kernel the mask's own square is added."""
    model, (x, _) = small(), data(n=5)

    def trace():
        return float(np.trace(keras_ntt.empirical_ntk(model, x, outputs="trace"))) / len(x)

    slopes = central_difference(model, trace)
    (found, *_), variables = scores_of(model, NTKTrace(wrt=wrt), x), choose_weights(model).weights
    wanted = keras.ops.convert_to_numpy(variables[0]) * slopes[0]
    if wrt == "kept":
        jacobian = keras.ops.convert_to_numpy(jacobian_of(model, x, variables[0]))
        wanted = wanted + 2 * (jacobian**2).sum(axis=(0, 1)) / (5 * 3)
    np.testing.assert_allclose(found, np.abs(wanted), rtol=1e-6)


def jacobian_of(model, x, variable):
    with tf.GradientTape() as tape:
        outputs = model(x)
    return tape.jacobian(outputs, variable.value)


@pytest.mark.long
def test_ntk_sap_estimates_the_trace():
    """On the same Gaussian inputs, with small dw: eps^2 * c times the trace's sensitivity."""
    model = linear_chain((3, 2, 2), [np.arange(1, 7), [1, -1, 0.5, 2]])
    x = np.random.default_rng(0).normal(size=(512, 3)).astype("float32")
    traces = scores_of(model, NTKTrace(), x)
    saliency = NTKSAP(batches=150, batch_size=256, epsilon=1e-3, redraw=False)
    for found, trace in zip(scores_of(model, saliency), traces, strict=True):
        np.testing.assert_allclose(found / 150 / 1e-6 / 2, trace, rtol=0.4)


# --- SynFlow ----------------------------------------------------------------------------------


@hypothesis.given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 100))
def test_synflow_is_conserved(widths, seed):
    """Scores into a hidden unit sum to those out of it, those of every layer to R."""
    rng = np.random.default_rng(seed)
    shapes = [3, *widths]
    weights = [rng.normal(size=pair) for pair in itertools.pairwise(shapes)]
    for saliency in (SynFlow(), SynFlowL2()):
        scores = scores_of(linear_chain(shapes, weights), saliency)
        for before, after in itertools.pairwise(scores):
            np.testing.assert_allclose(before.sum(axis=0), after.sum(axis=1), rtol=1e-9)


COLLAPSE = (4, 1, 1, 4), [[1.1, 1.2, 1, 0.9], [1], [1.05, 1.04, 1.03, 1.02]]


@pytest.mark.parametrize("rounds", [1, 2])
def test_synflow_in_too_few_rounds_removes_a_layer(rounds):
    model = linear_chain(*COLLAPSE)
    with warned("SynFlow would remove all of.*because allow_empty_layers=True"):
        pruned = prune_at_init(
            model,
            sparsity=6 / 9,
            saliency=SynFlow(rounds=rounds),
            allow_empty_layers=True,
            verbose=0,
        )
    *_, last = keras_ntt.get_masks(pruned).values()
    assert last.sum() == 0


@pytest.mark.parametrize("rounds", [3, 10, 100])
def test_synflow_in_enough_rounds_keeps_a_path(rounds):
    model = linear_chain(*COLLAPSE)
    pruned = prune_at_init(
        model, sparsity=6 / 9, saliency="synflow", rounds=rounds, allow_empty_layers=True, verbose=0
    )
    first, second, third = keras_ntt.get_masks(pruned).values()
    assert first.ravel().tolist() == [False, True, False, False]
    assert second.all()
    assert third.ravel().tolist() == [True, False, False, False]


def test_a_layer_is_not_removed_unless_asked():
    model = linear_chain(*COLLAPSE)
    with warned("The best entry of each is kept nevertheless"):
        pruned = prune_at_init(model, sparsity=6 / 9, saliency=SynFlow(rounds=1))
    counts = [int(m.sum()) for m in keras_ntt.get_masks(pruned).values()]
    assert min(counts) == 1
    assert sum(counts) == 3


def test_synflow_of_a_deep_network_does_not_overflow():
    """64 layers of 10 units with weights of 10: R = 10^(64 + 64 + 1), beyond float32."""
    model = linear_chain([10] * 65, [np.full((10, 10), 10.0)] * 64)
    policies = [layer.dtype_policy.name for layer in model.layers]
    scores = scores_of(model, "synflow")
    for score in scores:
        np.testing.assert_allclose(score, 10.0**129 / 100, rtol=1e-9)
    assert [layer.dtype_policy.name for layer in model.layers] == policies


def test_synflow_through_lora():
    model = linear_chain([6, 8, 5, 3], [np.ones((6, 8)), np.ones((8, 5)), np.ones((5, 3))])
    model.layers[0].enable_lora(2)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))
    first = model.layers[0]
    a, b = (np.abs(np.asarray(v, "float64")) for v in (first.lora_kernel_a, first.lora_kernel_b))
    scale = getattr(first, "lora_alpha", 2) / 2  # by rank, where Keras divides by it
    one = np.abs(np.asarray(first._kernel, "float64")) + scale * a @ b
    two, three = (np.abs(np.asarray(la.kernel, "float64")) for la in model.layers[1:])
    forward = np.ones(6) @ one
    wanted = [forward[:, None] * two * three.sum(1), (forward @ two)[:, None] * three]
    found = saliency_scores(model, "synflow").values()
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("saliency", ["synflow", "synflow_l2"])
def test_synflow_of_a_quantized_model(saliency):
    model = linear_chain([6, 8, 3], [np.ones((6, 8)), np.ones((8, 3))])
    model.layers[0].quantize("int8")
    with pytest.raises(ValueError, match=r"before it is quantized\. Received.*with dense"):
        saliency_scores(model, saliency)


def test_synflow_counts_all_weights_as_positive():
    """Signs of kernels, biases and inputs have no influence."""
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    first = scores_of(model, "synflow")
    model.set_weights([w * rng.choice([-1, 1], w.shape) for w in weights])
    for a, b in zip(first, scores_of(model, "synflow"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert (a >= 0).all()


# --- what all have in common ------------------------------------------------------------------


@pytest.mark.parametrize("name", SALIENCIES)
def test_scores_are_deterministic_and_change_nothing(name):
    model, given = small(), data()
    before = model.get_weights()
    first = saliency_scores(model, name, data=given, seed=1)
    second = saliency_scores(model, name, data=given, seed=1)
    assert list(first) == [v.path for v in choose_weights(model).weights]
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
        assert np.isfinite(value).all()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["random", "ntk_sap"])
def test_the_seed_decides_random_scores(name):
    model = small()
    first, second = (scores_of(model, name, seed=s) for s in (1, 2))
    assert (first[0] != second[0]).mean() > 0.99


def test_scores_do_not_touch_global_seeds():
    model, given = small(), data()
    draws = []
    for name in (None, "random", "ntk_sap"):
        keras.utils.set_random_seed(5)
        if name is not None:
            scores_of(model, name, given)
        draws.append((np.random.rand(), float(tf.random.uniform([]))))
    assert draws[0] == draws[1] == draws[2]


@pytest.mark.parametrize(
    "saliency", [SNIP(), LogitSNIP(), GraSP(), NTKTrace()], ids=lambda s: s.name
)
def test_scores_do_not_depend_on_the_batches(saliency):
    model, (x, y) = small(), data(n=11)
    whole = scores_of(model, saliency, (x, y))
    parts = scores_of(model, saliency, (x, y), batch_size=4)
    stream = scores_of(model, saliency, tf.data.Dataset.from_tensor_slices((x, y)).batch(3))
    for a, b, c in zip(whole, parts, stream, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-7)


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        x, y = data()
        return x[4 * index : 4 * index + 4], y[4 * index : 4 * index + 4]


def test_scores_of_a_sequence_of_batches():
    model = small()
    wanted = scores_of(model, "snip", data())
    for a, b in zip(wanted, scores_of(model, "snip", Sequence()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)


def test_one_hot_labels_and_losses_of_ones_own():
    model, (x, y) = small(), data()
    wanted = scores_of(model, "snip", (x, y))
    one_hot = np.eye(3, dtype="float32")[y]
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    others = [
        scores_of(model, "snip", (x, one_hot)),
        scores_of(model, "snip", (x, y[:, None])),
        scores_of(model, SNIP(keras_loss), (x, y)),
    ]
    for other in others:
        for a, b in zip(wanted, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def functional_with_branches():
    x = layers.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    b = layers.DepthwiseConv2D(3, padding="same")(a)
    y = layers.Flatten()(layers.BatchNormalization()(a + b))
    return keras.Model(x, layers.Dense(3)(y)), (6, 6, 2)


def subclassed():
    model = OwnCode()
    model(np.zeros((1, 5)))
    return model, (5,)


def with_a_model_inside():
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(4, "relu"), layers.Dense(4)])
    x = layers.Input((4,))
    return keras.Model(x, layers.Dense(2)(inner(layers.Dense(4)(x)) + x)), (4,)


MODELS = {
    "functional": functional_with_branches,
    "subclassed": subclassed,
    "nested": with_a_model_inside,
    "recurrent": lambda: (other_layers(), (6, 3)),
    "bfloat16": lambda: (small(dtype="mixed_bfloat16"), (6,)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", sorted({*SALIENCIES} - {"iterative_snip", "magnitude"}))
@pytest.mark.few(8)
def test_every_score_on_every_kind_of_model(kind, name):
    model, shape = MODELS[kind]()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *shape)).astype("float32")
    y = rng.integers(0, 2, 4)
    before = model.get_weights()
    unrolled = [layer.unroll for layer in model._flatten_layers() if hasattr(layer, "unroll")]
    pruned = prune_at_init(model, sparsity=0.5, saliency=name, data=(x, y), rounds=2, verbose=0)
    masks = keras_ntt.get_masks(pruned)
    kept, size = sum(m.sum() for m in masks.values()), sum(m.size for m in masks.values())
    assert kept == round(size / 2)
    assert [la.unroll for la in model._flatten_layers() if hasattr(la, "unroll")] == unrolled
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def to_both_sides():
    return [layers.Rescaling(1 / 127.5, offset=-1)]


def standardized():
    pixels = 100 + 30 * np.random.default_rng(0).normal(size=(50, 6, 6, 3))
    scale = layers.Normalization()
    scale.adapt(pixels)
    return [layers.Rescaling(2.0), layers.ZeroPadding2D(0), scale]


@pytest.mark.parametrize("before", [to_both_sides, standardized], ids=lambda make: make.__name__)
@pytest.mark.parametrize("score", ["synflow", "synflow_l2", "ntk_sap"])
def test_inputs_that_are_made_up_are_not_scaled(score, before):
    body = [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    plain = keras.Sequential([keras.Input((6, 6, 3)), *body])
    scaled = keras.Sequential([keras.Input((6, 6, 3)), *before(), *body])
    x = np.random.default_rng(1).uniform(0, 255, (2, 6, 6, 3))
    outputs = np.asarray(scaled(x))
    expected, found = (saliency_scores(model, score) for model in (plain, scaled))
    assert [*found] == [*expected]
    for key, scores in expected.items():
        assert scores.any()
        np.testing.assert_array_equal(found[key], scores)
    np.testing.assert_array_equal(scaled(x), outputs)  # on data it scales as before


def test_ntk_sap_draws_from_the_initializers():
    """Weights of any value give the same scores; constants are drawn as constants."""
    model = small(kernel_initializer="he_normal")
    first = scores_of(model, "ntk_sap")
    model.set_weights([5 * w + 1 for w in model.get_weights()])
    for a, b in zip(first, scores_of(model, "ntk_sap"), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first, scores_of(model, NTKSAP(redraw=False)), strict=True):
        assert not np.allclose(a, b)


def test_random_scores_are_uniform():
    model = keras.Sequential([keras.Input((100,)), layers.Dense(100)])
    (found,) = scores_of(model, Random())
    counts, _ = np.histogram(found, bins=20, range=(0, 1))
    assert counts.sum() == found.size
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 43.8  # one in a thousand of 19 degrees of freedom
    assert len(np.unique(found)) == found.size


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_scores_that_need_labels_say_so(name):
    model, (x, _) = small(), data()
    for given in (x, (x,), (x, None), tf.data.Dataset.from_tensor_slices(x).batch(4)):
        with pytest.raises(ValueError, match=r"needs labels: pass data=.*Received: data without"):
            saliency_scores(model, name, data=given)


@pytest.mark.parametrize("name", sorted(LABELLED | {"logit_snip", "ntk_trace"}))
def test_scores_that_need_samples_say_so(name):
    with pytest.raises(ValueError, match=r"taken on samples: pass data=.*Received: data=None"):
        saliency_scores(small(), name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((data()[0], np.full(12, 3)), "labels must be class numbers from 0 to 2.*from 3 to 3"),
        ((data()[0], np.zeros((12, 2))), "labels must be class numbers of shape"),
        ((data()[0], np.zeros(11, int)), "one label for each sample.*12 samples"),
        ((data()[0][:, :5], np.zeros(12, int)), "do not have the shape"),
        ((np.full((4, 6), np.nan, "float32"), np.zeros(4, int)), "hold NaN or infinity"),
        (tf.data.Dataset.from_tensors(data()).repeat(), "data must end"),
        ((batch for batch in [data()]), "can be read only once|needs labels"),
    ],
)
def test_data_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        saliency_scores(small(), "snip", data=given)


def test_probabilities_of_own_code_are_not_logits():
    inputs = keras.Input((6,))
    outputs = layers.Dense(3)(inputs)
    # Not a softmax by name, so that it is not found.
    shares = keras.ops.exp(outputs) / keras.ops.sum(keras.ops.exp(outputs), axis=1, keepdims=True)
    model = keras.Model(inputs, shares)
    for name in ("snip", "grasp", "synflow"):
        with pytest.raises(ValueError, match=r"is taken on logits.*Leave out the softmax"):
            saliency_scores(model, name, data=data())


def test_one_output_needs_a_loss():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="Pass a loss"):
        saliency_scores(model, "snip", data=data())
    (found,) = scores_of(model, SNIP("mse"), (data()[0], np.ones((12, 1), "float32")))
    assert found.sum() == pytest.approx(1)


def test_scores_that_are_all_zero():
    model = small(kernel_initializer="zeros")
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    with pytest.raises(ValueError, match="All scores are zero"):
        saliency_scores(model, "snip", data=data())


def test_a_shape_that_is_not_known():
    with pytest.raises(ValueError, match=r"needs the shape of an input.*Pass data=x"):
        saliency_scores(subclassed()[0], "synflow")


def test_whole_numbers_as_inputs():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(10, 3),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match=r"takes whole numbers. Pass\s+data=x"):
        saliency_scores(model, "ntk_sap")
    tokens = np.random.default_rng(0).integers(0, 10, (8, 4))
    for name in ("ntk_sap", "logit_snip", "synflow", "ntk_trace"):
        (found,) = scores_of(model, name, tokens)
        assert found.shape == (12, 2)
        assert found.any()


class Normalized(layers.Layer):
    """A layer whose gradient TensorFlow cannot differentiate."""

    def call(self, x):
        return tf.nn.local_response_normalization(x)


def test_second_derivatives_that_do_not_exist():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(2, 2),
            Normalized(),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    given = np.ones((2, 4, 4, 3), "float32"), np.array([0, 1])
    assert scores_of(model, "snip", given)
    with pytest.raises(ValueError, match=r"GraSP needs the derivative of a derivative.*'snip'"):
        saliency_scores(model, "grasp", data=given)


def test_rejects_unknown_saliencies():
    for given in ("other", None, 3, SNIP):
        with pytest.raises(ValueError, match=r"saliency must be one of 'magnitude', 'random'.*Rec"):
            saliency_scores(small(), given)


def test_a_subject_takes_the_values_of_now():
    model = small()
    variables = choose_weights(model).weights
    subject = subject_of(model, variables, None)
    for weight, variable in zip(subject.values, variables, strict=True):
        np.testing.assert_array_equal(weight, keras.ops.convert_to_numpy(variable))
