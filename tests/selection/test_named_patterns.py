"""Patterns by name: m of n consecutive entries, blocks, whole filters; at once and in transfers."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from keras import layers

import keras_ntt
from keras_ntt.selection.named_patterns import as_pattern, choose


def groups(mask, m):
    """Return the entries kept in each m consecutive inputs, the rest filled up with zeros."""
    inputs = mask.shape[-2]
    padded = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(0, -inputs % m), (0, 0)])
    return padded.reshape(*mask.shape[:-2], -1, m, mask.shape[-1]).sum(axis=-2)


def tiles(mask, height, width):
    """Return the entries kept in each tile of a matrix whose sides the tile divides."""
    rows, columns = mask.shape
    return mask.reshape(rows // height, height, columns // width, width).sum(axis=(1, 3))


@pytest.fixture
def network():
    return keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(8, activation="relu", name="hidden"),
            layers.Dense(3, name="logits"),
        ]
    )


def obeys(pattern, sparsity, mask):
    """Tell whether a mask has the pattern, and how many entries it should keep."""
    matrix = mask.reshape(-1, mask.shape[-1])
    if pattern == "1:4":
        return (groups(mask, 4) == 1).all()
    if pattern == "filters":
        whole = matrix.all(axis=0)
        return (whole == matrix.any(axis=0)).all() and whole.mean() == 1 - sparsity
    kept = tiles(matrix, *pattern)
    full = kept == pattern[0] * pattern[1]
    return ((kept == 0) | full).all() and full.mean() == 1 - sparsity


PATTERNS = [("1:4", 0.75), ((4, 1), 0.5), ((1, 4), 0.75), ((2, 2), 0.5), ("filters", 0.5)]


@pytest.mark.parametrize(("pattern", "sparsity"), PATTERNS)
@pytest.mark.parametrize("saliency", ["magnitude", "synflow"])
@pytest.mark.few(3)
def test_at_initialization(network, pattern, sparsity, saliency):
    pruned = keras_ntt.prune_at_init(
        network,
        sparsity=sparsity,
        saliency=saliency,
        allocation="layerwise",
        pattern=pattern,
        filters="conv|hidden",
        rounds=1,
        verbose=0,
    )
    masks = keras_ntt.get_masks(pruned)
    assert len(masks) == 2
    assert all(obeys(pattern, sparsity, mask) for mask in masks.values())


@pytest.mark.parametrize(
    ("pattern", "sparsity", "allocation"),
    [
        ("1:4", 0.75, "layerwise"),
        ((2, 2), 0.5, "layerwise"),
        ("filters", 0.5, "layerwise"),
        ((4, 1), 0.5, "global"),
        ((1, 4), 0.75, "global"),
        ("filters", 0.5, "global"),
    ],
)
@pytest.mark.few(1)
def test_transfer(rng, network, pattern, sparsity, allocation):
    """Each refresh chooses by the pattern from the latent weights of that step."""
    chosen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            chosen.append(self.model.masks)

    x = rng.normal(size=(24, 6, 6, 4)).astype("float32")
    transfer = keras_ntt.NeuralTangentTransfer(
        network,
        pruning_schedule=keras_ntt.NTTSchedule(sparsity, frequency=2),
        allocation=allocation,
        pattern=pattern,
        filters="conv|hidden",
        saliency="random" if pattern == (4, 1) else "magnitude",
        seed=0,
    )
    transfer.compile(keras.optimizers.Adam(0.1))
    transfer.fit(x, batch_size=4, epochs=1, callbacks=[Watch()], verbose=0)
    assert any((chosen[0][path] != mask).any() for masks in chosen for path, mask in masks.items())
    for masks in chosen:
        for mask in masks.values():
            if allocation == "layerwise":
                assert obeys(pattern, sparsity, mask)
            else:
                assert obeys(pattern, 1 - mask.mean(), mask)
    kept = {v.path: np.asarray(v) != 0 for v in network.trainable_variables}
    for path, mask in keras_ntt.get_masks(network).items():
        np.testing.assert_array_equal(kept[path], mask)


def test_n_of_m_by_hand():
    scores = tf.constant([[5.0, 1.0], [4.0, 2.0], [3.0, 3.0], [2.0, 4.0]])
    mask = choose(as_pattern("2:4"), scores, 0.5).numpy().astype(int)
    assert mask.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_a_block_of_a_convolution_covers_inputs_at_one_position():
    scores = np.ones((2, 1, 2, 2), "float32")
    scores[1, 0, :, 1] = 9
    mask = choose(as_pattern((2, 1)), tf.constant(scores), 0.75).numpy()
    assert mask.sum() == 2
    assert mask[1, 0, :, 1].all()


def test_half_precision():
    scores = tf.constant([[1.0, 2.0], [3.0, 4.0]], tf.bfloat16)
    assert choose(as_pattern((1, 2)), scores, 0.5).numpy().tolist() == [[False] * 2, [True] * 2]


@pytest.mark.parametrize(
    "pattern", ["4:2", "0:4", "2:4:8", "columns", 4, (1, 2, 3), (0, 4), (1.5, 2), [4]]
)
def test_rejects_objects_that_are_not_patterns(pattern):
    with pytest.raises(ValueError, match="Received: pattern"):
        as_pattern(pattern)


# --- which axes are inputs and outputs ---------------------------------------------------------


def attention():
    """Return a model whose only kernels are those of attention: 12 inputs, 2 heads of 6."""
    x = keras.Input((5, 12))
    return keras.Model(x, layers.MultiHeadAttention(2, 6, name="mix")(x, x))


def transposed():
    return keras.Sequential([keras.Input((4, 4, 8)), layers.Conv2DTranspose(4, 2)])


def transposed_in_time():
    return keras.Sequential([keras.Input((4, 8)), layers.Conv1DTranspose(4, 3)])


# The kernels of each as [positions, inputs, outputs], written out by hand.
SIDES = {
    # Query, key and value [inputs, heads, size]; output [heads, size, outputs], whose groups of
    # four go on from one head to the next, because four does not divide six.
    attention: [lambda kernel: kernel.reshape(1, 12, 12)] * 4,
    transposed: [lambda kernel: np.swapaxes(kernel, 2, 3).reshape(4, 8, 4)],
    transposed_in_time: [lambda kernel: np.swapaxes(kernel, 1, 2)],
}


def kept_by_hand(pattern, scores):
    """Return which entries of [positions, inputs, outputs] a pattern keeps at its sparsity."""
    kept = np.zeros(scores.shape, bool)
    if pattern == "filters":  # half of the outputs
        sums = scores.sum(axis=(0, 1))
        kept[:, :, np.argsort(-sums)[: len(sums) // 2]] = True
        return kept
    starts = [(p, i, o) for p, i, o in np.ndindex(scores.shape) if i % 4 == 0]
    means = [scores[p, i : i + 4, o].mean() for p, i, o in starts]
    for rank, number in enumerate(np.argsort(means)[::-1]):
        p, i, o = starts[number]
        if pattern == "1:4":
            kept[p, i + np.argmax(scores[p, i : i + 4, o]), o] = True
        elif rank < len(starts) // 2:  # half of the blocks of four inputs and one output
            kept[p, i : i + 4, o] = True
    return kept


@pytest.mark.parametrize(("pattern", "sparsity"), [("1:4", 0.75), ((4, 1), 0.5), ("filters", 0.5)])
@pytest.mark.parametrize("make", [attention, transposed, transposed_in_time])
@pytest.mark.few(4)
def test_inputs_and_outputs_are_those_of_the_layer(make, pattern, sparsity):
    model, options = make(), {"allocation": "layerwise", "pattern": pattern}
    kernels = [np.abs(v.numpy()) for v in model.trainable_variables if v.name == "kernel"]
    pruned = keras_ntt.prune_at_init(model, sparsity=sparsity, saliency="magnitude", **options)
    masks = keras_ntt.get_masks(pruned).values()
    transfer = keras_ntt.NeuralTangentTransfer(model, pruning_schedule=sparsity, **options)
    for sides, kernel, one, other in zip(
        SIDES[make], kernels, masks, transfer.masks.values(), strict=True
    ):
        wanted = kept_by_hand(pattern, sides(kernel))
        np.testing.assert_array_equal(sides(one), wanted)
        np.testing.assert_array_equal(sides(other), wanted)


def test_a_depthwise_kernel_is_read_along_its_channels():
    """Each output has one input channel of its own; n of m are taken over the channels."""
    model = keras.Sequential([keras.Input((5, 5, 8)), layers.DepthwiseConv2D(3)])
    policy = keras_ntt.KernelPolicy(depthwise=True)
    pruned = keras_ntt.prune_at_init(
        model, sparsity=0.5, saliency="random", pattern="2:4", pruning_policy=policy
    )
    (mask,) = keras_ntt.get_masks(pruned).values()
    assert (groups(mask, 4) == 2).all()


def test_a_function_gets_the_scores_in_the_shape_of_the_weight():
    shapes = []

    def pattern(scores, sparsity):
        shapes.append(tuple(scores.shape))
        return scores >= np.median(scores)

    keras_ntt.prune_at_init(attention(), sparsity=0.5, saliency="random", pattern=pattern)
    assert shapes == [(12, 2, 6), (12, 2, 6), (12, 2, 6), (2, 6, 12)]


def test_scores_below_zero_have_their_order(network):
    """A one-channel convolution has padding in each group of four, and nothing to choose."""
    one = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(8, 3), layers.Dense(6)])
    log = lambda weights: [tf.math.log(tf.abs(w)) for w in weights]  # noqa: E731
    found = []
    for options in ({"saliency": "magnitude"}, {"saliency": log}):
        with warned("does not come near the sparsity of conv2d/kernel"):
            pruned = keras_ntt.prune_at_init(one, sparsity=0.5, pattern="2:4", **options)
        found.append(list(keras_ntt.get_masks(pruned).values()))
    for by_value, by_log in zip(*found, strict=True):
        np.testing.assert_array_equal(by_value, by_log)
    assert found[0][0].all()
    assert (groups(found[0][1], 4) == 2).all()


# --- sparsities that a pattern cannot have ------------------------------------------------------


FIXED = "fixes the sparsity of every weight at 0.5"


@pytest.mark.parametrize(
    ("sparsity", "allocation", "received"),
    [
        (0.9, "global", "sparsity=0.9"),
        (0.0, "global", "sparsity=0.0"),
        (0.5, {"conv": 0.9}, r"allocation\['conv'\]=0.9"),
        (0.5, {"hidden": 0.5, "conv": 0.0}, r"allocation\['conv'\]=0.0"),
    ],
)
def test_another_sparsity_than_the_pattern_has(network, sparsity, allocation, received):
    options = {"allocation": allocation, "pattern": "2:4"}
    with pytest.raises(ValueError, match=f"{FIXED}.*Received: {received}"):
        keras_ntt.prune_at_init(network, sparsity=sparsity, saliency="random", **options)
    before = network.get_weights()
    with pytest.raises(ValueError, match=f"{FIXED}.*Received: {received}"):
        keras_ntt.NeuralTangentTransfer(network, pruning_schedule=sparsity, **options)
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_layer_may_be_pruned_away_beside_a_pattern(network):
    pruned = keras_ntt.prune_at_init(
        network, sparsity=0.5, saliency="random", pattern="2:4", allocation={"conv": 1.0}
    )
    conv, *others = keras_ntt.get_masks(pruned).values()
    assert not conv.any()
    assert all((groups(mask, 4) == 2).all() for mask in others)


@pytest.mark.parametrize(
    ("schedule", "asked"),
    [
        (keras_ntt.PolynomialDecay(0.0, 0.9, 0, 3, frequency=1), 0.0),
        (keras_ntt.PolynomialDecay(0.5, 0.9, 0, 3), 0.9),
        (keras_ntt.ConstantSparsity(0.75, begin_step=2), 0.75),
        (lambda step: (True, 0.0), 0.0),
    ],
)
def test_schedules_that_ask_for_another_sparsity(network, schedule, asked):
    with pytest.raises(ValueError, match=f"{FIXED}.*Received: sparsity={asked}"):
        keras_ntt.NeuralTangentTransfer(network, pruning_schedule=schedule, pattern="2:4")


def test_a_function_that_asks_for_another_sparsity_is_found_out_when_it_does(rng, network):
    transfer = keras_ntt.NeuralTangentTransfer(
        network, pruning_schedule=lambda step: (step > 1, 0.5 if step < 3 else 0.75), pattern="2:4"
    )
    transfer.compile("adam")
    x = rng.normal(size=(16, 6, 6, 4)).astype("float32")
    with pytest.raises(ValueError, match=f"{FIXED}.*Received: sparsity=0.75"):
        transfer.fit(x, batch_size=4, verbose=0)
    assert transfer.step == 2
    assert all((groups(mask, 4) == 2).all() for mask in transfer.masks.values())


def test_a_schedule_may_begin_dense_and_go_to_the_sparsity_of_the_pattern(rng, network):
    pruned = keras_ntt.prune_neural_tangent(
        network,
        rng.normal(size=(8, 6, 6, 4)).astype("float32"),
        sparsity=keras_ntt.ConstantSparsity(0.5, begin_step=1, frequency=1),
        pattern="2:4",
        epochs=1,
        batch_size=4,
        verbose=0,
    )
    assert all((groups(mask, 4) == 2).all() for mask in keras_ntt.get_masks(pruned).values())


@pytest.mark.parametrize(
    ("pattern", "sparsity", "far"),
    [
        # Of two blocks one is kept, of one block that one.
        ((36, 8), 0.8, ["conv/kernel (0.5 instead of 0.8", "hidden/kernel (0 instead of 0.8"]),
        ((500, 70), 0.8, ["conv/kernel (0 instead of 0.8", "hidden/kernel (0 instead of 0.8"]),
        # One block of 16 is many times an entry.
        ((16, 1), 0.9975, ["conv/kernel (0.972 instead of 0.998"]),
        (lambda scores, sparsity: scores > -1, 0.3, ["conv/kernel (0 instead of 0.3"]),
    ],
)
def test_patterns_that_do_not_come_near_the_sparsity(pattern, sparsity, far):
    network = keras.Sequential(
        [
            keras.Input((3, 3, 8)),
            layers.Conv2D(8, 3, name="conv"),
            layers.Dense(4, name="hidden"),
        ]
    )
    options = {"allocation": "layerwise", "pattern": pattern}
    message = "does not come near the sparsity of .*" + ".*".join(map(re.escape, far))
    with warned(message):
        keras_ntt.prune_at_init(network, sparsity=sparsity, saliency="magnitude", **options)
    with warned(message):
        keras_ntt.NeuralTangentTransfer(network, pruning_schedule=sparsity, **options)


def test_a_pattern_that_does_not_come_near_the_sparsity_of_all_weights(network):
    with warned(r"all weights \(0 instead of 0.8\).*Received: pattern \(500, 70\)"):
        keras_ntt.NeuralTangentTransfer(
            network, pruning_schedule=0.8, allocation="global", pattern=(500, 70)
        )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (lambda scores, sparsity: scores[:1], "shape of the scores"),
        (lambda scores, sparsity: "no", "shape of the scores|boolean mask"),
        (lambda scores, sparsity: object(), "boolean mask"),
    ],
)
def test_functions_that_return_no_mask(network, pattern, message):
    with pytest.raises(ValueError, match=message):
        keras_ntt.prune_at_init(
            network, sparsity=0.5, saliency="magnitude", allocation="layerwise", pattern=pattern
        )
