"""The gradient of a model's own loss beside its training, and the callbacks that take it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt
from keras_ntt import GraNet, TrainingDynamics, effective_gradient_flow, get_masks
from keras_ntt.saliency.loss_gradient import loss_gradient

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def two_outputs(kind=dict):
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, "relu", name="hidden")(inputs)
    a, b = layers.Dense(3, name="a")(hidden), layers.Dense(1, name="b")(hidden)
    model = keras.Model(inputs, {"a": a, "b": b} if kind is dict else [a, b])
    model.compile("sgd", {"a": CROSSENTROPY, "b": "mse"} if kind is dict else [CROSSENTROPY, "mse"])
    return model


def data(n=32, scale=1.0):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, {"a": rng.integers(0, 3, n), "b": scale * rng.normal(size=(n, 1)).astype("float32")}


def linear(loss="mse", **options):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False, **options)])
    model.set_weights([np.array([[1.0, 2.0], [-1.0, 3.0]], "float32")])
    if loss:
        model.compile("sgd", loss)
    return model


X = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 1.0]], "float32")
Y = np.array([[1.0, 0.0], [2.0, -1.0], [0.0, 1.0]], "float32")
W = np.array([[1.0, 2.0], [-1.0, 3.0]])
OF_SQUARES = 2 * X.T @ (X @ W - Y) / Y.size  # the derivative of the mean of the squares


# --- what a model has counted -----------------------------------------------------------------


def with_dynamics(x, y):
    return TrainingDynamics(two_outputs(), x, y)


def with_granet(x, y):
    return GraNet(0.02, (x, y), end_step=4, frequency=1, regrow=0.1)


@pytest.mark.parametrize("callback", [with_dynamics, with_granet])
def test_batches_of_a_callback_do_not_count_in_the_losses_by_output(callback):
    given = callback(*data(scale=1000))
    history = two_outputs().fit(*data(), batch_size=8, callbacks=[given], verbose=0).history
    if "a_loss" not in history:
        pytest.skip("this Keras has no losses by output")
    parts = history["a_loss"][0] + history["b_loss"][0]
    assert parts == pytest.approx(history["loss"][0], rel=1e-5)


def test_a_gradient_inside_of_a_function_counts_nothing():
    model, (x, y) = two_outputs(), data()
    model.fit(x, y, verbose=0)
    counted = [v.numpy() for v in model.metrics_variables]
    assert any(v.any() for v in counted)
    weights = [layer.kernel for layer in model.layers if layer.weights]
    inside = tf.function(lambda x, y: loss_gradient(model, weights, x, y))(x, y)
    for before, after in zip(counted, model.metrics_variables, strict=True):
        np.testing.assert_array_equal(after.numpy(), before)
    with tf.GradientTape() as tape:
        outputs = model(x)
        loss = CROSSENTROPY(y["a"], outputs["a"]) + tf.reduce_mean((outputs["b"] - y["b"]) ** 2)
    for found, wanted in zip(inside, tape.gradient(loss, [v.value for v in weights]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


# --- which loss -------------------------------------------------------------------------------


class Small(keras.layers.Layer):
    """Adds half of the sum of the squares of its inputs to the loss."""

    def call(self, x):
        self.add_loss(keras.ops.sum(x**2) / 2)
        return x


def test_what_layers_add_is_in_the_gradient():
    model = linear(kernel_regularizer=keras.regularizers.L2(0.1))
    (found,) = loss_gradient(model, model.weights, X, Y)
    np.testing.assert_allclose(found, OF_SQUARES + 0.2 * W, rtol=1e-5)
    model = keras.Sequential([linear(None), Small()])
    model.compile("sgd", "mse")
    (found,) = loss_gradient(model, model.weights, X, Y)
    np.testing.assert_allclose(found, OF_SQUARES + X.T @ X @ W, rtol=1e-5)


def test_a_model_whose_loss_is_what_its_layers_add():
    model = keras.Sequential([linear(None), Small()])
    model.compile("sgd")
    for labels in (None, Y):
        (found,) = loss_gradient(model, model.weights, X, labels)
        np.testing.assert_allclose(found, X.T @ X @ W, rtol=1e-5)


class OwnLoss(keras.Sequential):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        return 3 * tf.reduce_mean((y_pred - y) ** 2)


def test_a_loss_of_the_models_own():
    model = OwnLoss([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    model.set_weights([W])
    model.compile("sgd")
    (found,) = loss_gradient(model, model.weights, X, Y)
    np.testing.assert_allclose(found, 3 * OF_SQUARES, rtol=1e-5)


class OwnStep(keras.Model):
    """Trains by a step of its own, so that it is compiled without a loss."""

    def __init__(self, **options):
        super().__init__()
        self.net = keras.Sequential(
            [keras.Input((6,)), layers.Dense(8, "relu", **options), layers.Dense(3)]
        )

    def call(self, x):
        return self.net(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = CROSSENTROPY(y, self.net(x, training=True))
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(grads, self.trainable_variables, strict=True))
        return {"loss": loss}


def own_step(**options):
    keras.utils.set_random_seed(0)
    model = OwnStep(**options)
    model(data()[0])
    model.compile("sgd")
    return model


@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_a_training_step_of_the_models_own_is_taken_for_crossentropy(regularizer):
    model, (x, y) = own_step(kernel_regularizer=regularizer), data()
    with tf.GradientTape() as tape:
        loss = CROSSENTROPY(y["a"], model(x))
    kernels = [model.net.layers[0].kernel.value, model.net.layers[1].kernel.value]
    wanted = np.mean([np.linalg.norm(g) for g in tape.gradient(loss, kernels)])
    assert effective_gradient_flow(model, x, y["a"]) == pytest.approx(wanted, rel=1e-5)
    watch = TrainingDynamics(model.net, x[:4], y["a"][:4])
    granet = GraNet(0.5, (x, y["a"]), end_step=1, frequency=1)
    history = model.fit(x, y["a"], verbose=0, callbacks=[watch, granet]).history
    assert np.isfinite(history["gradient_flow"]).all()
    assert keras_ntt.sparsity_report(model).sparsity == 0.5


def first_masks(model, x, y, **options):
    """Return the masks that GraNet begins with."""
    granet = GraNet(0.5, (x, y), initial_sparsity=0.5, end_step=1, frequency=1, **options)
    granet.set_model(model)
    granet.on_train_begin()
    granet.on_epoch_begin(0)
    return list(get_masks(model).values())


def test_granet_and_the_dynamics_take_a_loss():
    x, y = data()
    targets = np.random.default_rng(1).normal(size=(32, 3)).astype("float32")
    found = {}
    for labels, loss in ((y["a"], CROSSENTROPY), (targets, "mse")):
        twin = own_step()
        twin.compile("sgd", loss)
        wanted = first_masks(twin, x, labels)
        found[str(loss)] = first_masks(own_step(), x, labels, loss=loss)
        for a, b in zip(found[str(loss)], wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(*found.values(), strict=True))
    model = linear("mae")
    watch = TrainingDynamics(linear(None), X, Y, loss="mse")
    watch.set_model(model)
    watch.on_train_begin()
    assert watch.start["gradient_flow"] == pytest.approx(np.linalg.norm(OF_SQUARES), rel=1e-5)


def test_a_loss_that_is_none_is_refused_at_once():
    with pytest.raises(ValueError, match="loss must be a Keras loss"):
        GraNet(0.5, (X, Y), end_step=1, loss=3)
    with pytest.raises(ValueError, match="loss must be a Keras loss"):
        TrainingDynamics(linear(), X, Y, loss=3)


# --- labels -----------------------------------------------------------------------------------


def test_labels_as_lists():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", CROSSENTROPY)
    x, y = data(3)
    wanted = effective_gradient_flow(model, x, y["a"])
    for labels in (y["a"].tolist(), [y["a"]], tf.constant(y["a"])):
        assert effective_gradient_flow(model, x, labels) == wanted


@pytest.mark.parametrize("kind", [list, tuple])
def test_labels_of_several_outputs_in_a_list(kind):
    x, y = data()
    flows, masks = [], []
    for outputs, labels in ((dict, y), (list, kind(y.values()))):
        keras.utils.set_random_seed(0)
        model = two_outputs(outputs)
        flows.append(effective_gradient_flow(model, x, labels))
        masks.append(first_masks(model, x, labels, batch_size=8))
    assert flows[0] == pytest.approx(flows[1], rel=1e-6)
    for a, b in zip(*masks, strict=True):
        np.testing.assert_array_equal(a, b)
    fitted = two_outputs(list)
    granet = GraNet(0.5, (x, kind(y.values())), end_step=1, frequency=1)
    fitted.fit(x, kind(y.values()), verbose=0, callbacks=[granet])
    assert keras_ntt.sparsity_report(fitted).sparsity == 0.5


def test_labels_of_several_outputs_of_a_score():
    """In the order of the outputs or by the names of their layers, of the compiled losses."""
    x, y = data()
    model = two_outputs(list)
    first, second = (
        keras_ntt.saliency_scores(model, "snip", data=(x, labels)).values()
        for labels in (y, list(y.values()))
    )
    for mine, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, other)
    model = keras.Model(model.inputs, model.outputs)  # which is not compiled
    for labels in (y, list(y.values())):
        with pytest.raises(ValueError, match=r"that of one output.*Received: labels of 2 outputs"):
            keras_ntt.saliency_scores(model, "snip", data=(x, labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "y must be labels.*Received: y=None"),
        ([0, 1, 7] * 8, "cannot be taken of these labels"),
        ([np.zeros(24), np.zeros(24)], "cannot be taken of these labels"),
        (np.zeros((24, 2)), "cannot be taken of these labels"),
        ([[0], [1, 2]] * 12, "y must be arrays"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match=message):
        effective_gradient_flow(model, data(24)[0], labels)
    if labels is None:
        with pytest.raises(ValueError, match=message):
            effective_gradient_flow(linear(None), X, None)


def test_granet_leaves_a_model_as_it_was_if_its_labels_do_not_fit():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(3)])
    model.compile("sgd", CROSSENTROPY)
    x, y = data()
    before = model.get_weights()
    for options in ({}, {"begin_step": 2}):
        granet = GraNet(0.5, (x, y["a"] + 7), end_step=4, frequency=1, **options)
        with pytest.raises(ValueError, match="cannot be taken of these labels"):
            model.fit(x, y["a"], verbose=0, callbacks=[granet])
        assert not get_masks(model)
        for now, then in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, then)
    keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude")  # takes dense models only


# --- strategies -------------------------------------------------------------------------------


def test_a_model_of_a_strategy_trains_after_its_gradient_was_taken():
    """Where Keras makes what counts the losses by output, which belongs into the scope."""
    x, y = data()
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = two_outputs()
        assert effective_gradient_flow(model, x, y) > 0
        history = model.fit(x, y, verbose=0).history
    made = [v.value for v in model.metrics_variables]
    assert all(hasattr(value, "distribute_strategy") for value in made)
    assert np.isfinite(list(history.values())).all()


def test_inside_of_the_scope_of_a_strategy():
    x, y = data()
    plain = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)])
    plain.compile("sgd", CROSSENTROPY)
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = keras.models.clone_model(plain)
        model.set_weights(plain.get_weights())
        model.compile("sgd", CROSSENTROPY)
        assert effective_gradient_flow(model, x, y["a"]) == pytest.approx(
            effective_gradient_flow(plain, x, y["a"]), rel=1e-5
        )
        np.testing.assert_allclose(
            keras_ntt.empirical_ntk(model, x[:2], implementation="jacobian"),
            keras_ntt.empirical_ntk(plain, x[:2]),
            rtol=1e-4,
            atol=1e-5,
        )
        watch = TrainingDynamics(model, x[:4], y["a"][:4], wrt="all")
        granet = GraNet(0.5, (x, y["a"]), end_step=1, frequency=1)
        history = model.fit(x, y["a"], verbose=0, callbacks=[watch, granet]).history
    assert history["ntk_distance"] == [0]
    assert keras_ntt.sparsity_report(model).sparsity == 0.5
