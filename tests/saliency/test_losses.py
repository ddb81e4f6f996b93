"""The losses of SNIP, GraSP and the gradient flow: several outputs, sigmoid at the end."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from keras import layers

import keras_ntt
from keras_ntt.saliency import SNIP, GraSP

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 6)).astype("float32")
KIND = RNG.integers(0, 3, 10)
BOX = RNG.normal(size=(10, 2)).astype("float32")
CROSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def two_heads(as_dict=True, end=None):
    """Return a network with three classes and a box, without biases."""
    keras.utils.set_random_seed(2)
    x = keras.Input((6,))
    hidden = layers.Dense(5, "tanh", use_bias=False, name="hidden")(x)
    kind = layers.Dense(3, end, use_bias=False, name="kind")(hidden)
    box = layers.Dense(2, use_bias=False, name="box")(hidden)
    return keras.Model(x, {"kind": kind, "box": box} if as_dict else [kind, box])


def total(weights, factors=(1.0, 1.0)):
    """The mean loss of both heads, of TensorFlow's own functions."""
    hidden, kind, box = weights
    h = tf.tanh(X @ hidden)
    cross = tf.nn.sparse_softmax_cross_entropy_with_logits(KIND, h @ kind)
    squares = tf.reduce_mean(tf.square(h @ box - BOX))
    return factors[0] * tf.reduce_mean(cross) + factors[1] * squares


def weights_of(model):
    return [tf.constant(model.get_layer(name).get_weights()[0]) for name in NAMES]


def snip_by_hand(model, factors=(1.0, 1.0)):
    weights = weights_of(model)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = total(weights, factors)
    scores = [
        abs(w * g).numpy() for w, g in zip(weights, tape.gradient(loss, weights), strict=True)
    ]
    return [s / sum(part.sum() for part in scores) for s in scores]


def scores_of(model, saliency, labels, as_dict=True):
    y = labels if as_dict else [labels["kind"], labels["box"]]
    found = keras_ntt.saliency_scores(model, saliency, data=(X, y))
    return [next(s for path, s in found.items() if name in path) for name in NAMES]


NAMES = ("hidden", "kind", "box")
LABELS = {"kind": KIND, "box": BOX}
GIVEN = {
    "by name": (True, {"kind": CROSS, "box": "mse"}),
    "names of layers": (False, {"kind": CROSS, "box": "mse"}),
    "in order": (False, [CROSS, "mse"]),
    "a tuple": (False, (CROSS, keras.losses.MeanSquaredError())),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_loss_for_each_output(name):
    as_dict, loss = GIVEN[name]
    model = two_heads(as_dict)
    found = scores_of(model, SNIP(loss), LABELS, as_dict)
    for mine, wanted in zip(found, snip_by_hand(model), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4)


@pytest.mark.parametrize("as_dict", [True, False])
def test_weights_of_losses(as_dict):
    model = two_heads(as_dict)
    names, order = {"kind": 0.3, "box": 4.0}, [0.3, 4.0]
    for weights in (names, order)[: 2 - as_dict]:
        loss = {"kind": CROSS, "box": "mse"} if weights is names else [CROSS, "mse"]
        found = scores_of(model, SNIP(loss, loss_weights=weights), LABELS, as_dict)
        for mine, wanted in zip(found, snip_by_hand(model, order), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-4)


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("saliency", ["snip", "grasp"])
@pytest.mark.few(2)
def test_the_losses_of_a_compiled_model(saliency, as_dict):
    model = two_heads(as_dict)
    names = {"kind": CROSS, "box": "mse"}
    model.compile("sgd", names, loss_weights={"kind": 2.0, "box": 0.5})
    make = {"snip": SNIP, "grasp": GraSP}[saliency]
    given = make(names, loss_weights={"kind": 2.0, "box": 0.5})
    for mine, wanted in zip(
        *(scores_of(model, s, LABELS, as_dict) for s in (saliency, given)), strict=True
    ):
        np.testing.assert_array_equal(mine, wanted)
    sparse = keras_ntt.prune_at_init(
        *(model,),
        **{"sparsity": 0.5, "saliency": saliency, "verbose": 0},
        data=(X, LABELS if as_dict else [KIND, BOX]),
    )
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.02)


def test_one_loss_compiled_for_all_outputs():
    model = two_heads()
    model.compile("sgd", "mse")
    labels = {"kind": np.eye(3)[KIND], "box": BOX}
    found = scores_of(model, "snip", labels)
    wanted = scores_of(model, SNIP({"kind": "mse", "box": "mse"}), labels)
    for mine, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_an_output_without_a_loss_does_not_count():
    model = two_heads()
    y = {"kind": KIND}
    for loss in ({"kind": CROSS, "box": None}, {"kind": CROSS}):
        found = keras_ntt.saliency_scores(model, SNIP(loss), data=(X, y))
        assert [
            name for name in NAMES for path, s in found.items() if name in path and s.any()
        ] == [
            *("hidden", "kind"),
        ]


def test_grasp_of_two_heads():
    """``w * (H g)`` of the loss of outputs divided by a temperature of one."""
    model = two_heads()
    weights = weights_of(model)
    with tf.GradientTape() as outer:
        outer.watch(weights)
        with tf.GradientTape() as inner:
            inner.watch(weights)
            loss = total(weights)
        first = inner.gradient(loss, weights)
        product = tf.add_n([tf.reduce_sum(g * tf.stop_gradient(g)) for g in first])
    second = outer.gradient(product, weights)
    found = scores_of(model, GraSP({"kind": CROSS, "box": "mse"}, temperature=1), LABELS)
    for mine, w, h in zip(found, weights, second, strict=True):
        np.testing.assert_allclose(mine, w * h, rtol=2e-3, atol=1e-6)


def test_heads_that_are_not_compiled_have_no_default():
    with pytest.raises(ValueError, match=r"Compile the model with a loss for each output.*SNIP\("):
        scores_of(two_heads(), "snip", LABELS)


@pytest.mark.parametrize(
    ("loss", "weights", "labels", "words"),
    [
        ({"kind": CROSS, "bax": "mse"}, None, LABELS, r"loss must be.*names.*kind, box|box, kind"),
        ([CROSS], None, LABELS, "loss must be a dictionary"),
        ({"kind": CROSS, "box": "mse"}, None, {"kind": KIND}, "labels must be a dictionary"),
        ({"kind": CROSS, "box": "mse"}, {"bux": 1.0}, LABELS, "loss_weights must be a dictionary"),
    ],
)
def test_what_does_not_fit_the_outputs(loss, weights, labels, words):
    with pytest.raises(ValueError, match=words):
        scores_of(two_heads(), SNIP(loss, loss_weights=weights), labels)


@pytest.mark.parametrize("make", [SNIP, GraSP])
def test_losses_that_are_none(make):
    for loss in ({"kind": 3}, [CROSS, keras.losses.MeanSquaredError], 7):
        with pytest.raises(ValueError, match=r"one for each output\. Received: loss="):
            make(loss)
    with pytest.raises(ValueError, match="loss_weights weigh the losses of several outputs"):
        make("mse", loss_weights=[1.0])


# --- sigmoid at the end ----------------------------------------------------------------------


def head(outputs, activation):
    keras.utils.set_random_seed(4)
    hidden = layers.Dense(5, "tanh", use_bias=False)
    last = layers.Dense(outputs, activation, use_bias=False)
    return keras.Sequential([keras.Input((6,)), hidden, last])


ANSWERS = {
    "one output": (1, RNG.integers(0, 2, 10)),
    "one output, a column": (1, RNG.integers(0, 2, (10, 1))),
    "several labels at once": (3, RNG.integers(0, 2, (10, 3))),
    "probabilities": (2, RNG.uniform(size=(10, 2)).astype("float32")),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("make", [SNIP, GraSP])
@pytest.mark.few(3)
def test_the_default_loss_of_sigmoid_is_binary_cross_entropy(make, name):
    outputs, y = ANSWERS[name]
    with warned("ends in sigmoid.*looks at what goes into it, the logits"):
        found = keras_ntt.saliency_scores(head(outputs, "sigmoid"), make(), data=(X, y))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    rows = y.reshape(10, -1).astype("float32")
    wanted = keras_ntt.saliency_scores(head(outputs, None), make(loss), data=(X, rows))
    for mine, other in zip(found.values(), wanted.values(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-9)
        assert np.abs(mine).max() > 0


@pytest.mark.filterwarnings("ignore:The model .* ends in sigmoid:UserWarning")
@pytest.mark.parametrize(
    ("outputs", "y", "words"),
    [
        (1, np.full(10, 2), "numbers from 0 to 1, as the model ends in sigmoid"),
        (1, np.full(10, -0.5), "labels from -0.5"),
        (3, RNG.integers(0, 2, (10, 2)), r"of shape \(10, 3\), as the model ends in sigmoid"),
    ],
)
def test_labels_that_sigmoid_does_not_take(outputs, y, words):
    with pytest.raises(ValueError, match=words):
        keras_ntt.saliency_scores(head(outputs, "sigmoid"), "snip", data=(X, y))


@pytest.mark.parametrize("end", ["sigmoid", "softmax"])
def test_the_gradient_flow_of_logits(end):
    """The model is not compiled; the gradient is taken by hand, of TensorFlow's own losses."""
    model = head(3, end)
    y = RNG.integers(0, 2, (10, 3)) if end == "sigmoid" else KIND
    weights = [tf.constant(w) for w in model.get_weights()]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        z = tf.tanh(X @ weights[0]) @ weights[1]
        if end == "sigmoid":
            losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32), z)
        else:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z)
        loss = tf.reduce_mean(losses)
    norms = [np.linalg.norm(g) for g in tape.gradient(loss, weights)]
    found = keras_ntt.effective_gradient_flow(model, X, y)
    assert found == pytest.approx(np.mean(norms), rel=1e-4)


def test_the_gradient_flow_of_several_outputs():
    model = two_heads()
    loss = {"kind": CROSS, "box": "mse"}
    weights = weights_of(model)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = total(weights)
    norms = [np.linalg.norm(g) for g in tape.gradient(value, weights)]
    found = keras_ntt.effective_gradient_flow(model, X, LABELS, loss=loss)
    assert found == pytest.approx(np.mean(norms), rel=1e-4)


# --- probabilities out of code of the user's own ---------------------------------------------


class Own(keras.Model):
    def __init__(self, end):
        super().__init__()
        self.dense, self.end = layers.Dense(3), end

    def call(self, x):
        return self.end(self.dense(x))

    def get_config(self):
        return {"end": self.end}


def own(end):
    model = Own(end)
    model(X)
    return model


LOOKS = "outputs of the model.*look like probabilities.*"


@pytest.mark.parametrize("name", ["logit_snip", "ntk_trace", "ntk_sap", "snip"])
def test_scores_warn_of_probabilities(name):
    data = (X, KIND) if name == "snip" else X
    with warned(LOOKS + "should look at logits"):
        keras_ntt.saliency_scores(own(keras.ops.sigmoid), name, data=data)
    keras_ntt.saliency_scores(own(keras.ops.tanh), name, data=data)  # silently


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[5 * index : 5 * index + 5]


SOURCES = {
    "array": lambda: X,
    "data set": lambda: tf.data.Dataset.from_tensor_slices(X).batch(5),
    "data set with labels": lambda: tf.data.Dataset.from_tensor_slices((X, KIND)).batch(5),
    "PyDataset": Batches,
}
FIT = {"sparsity": 0.5, "epochs": 1, "verbose": 0}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.few(1)
def test_transfers_warn_of_probabilities(name):
    with warned(LOOKS):
        keras_ntt.prune_neural_tangent(own(keras.ops.softmax), SOURCES[name](), **FIT)


def test_teachers_that_return_probabilities():
    with warned(LOOKS):
        keras_ntt.prune_neural_tangent(
            own(keras.ops.tanh), X, teacher=own(keras.ops.softmax), **FIT
        )
    with warned(LOOKS):
        keras_ntt.ntt_loss(own(keras.ops.tanh), own(keras.ops.softmax), X, sparsity=0.5)
