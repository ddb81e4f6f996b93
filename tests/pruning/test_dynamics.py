"""What is watched while a network trains: gradient flow and the tangent kernel."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.watched_training import (
    data,
    mlp,
)
from keras import layers

import keras_ntt
from keras_ntt import TrainingDynamics, effective_gradient_flow
from keras_ntt.masks.policies import choose_weights
from keras_ntt.pruning.dynamics import ntk_alignment, ntk_distance


def test_gradient_flow_by_hand():
    """f = x W, L = mean of f^2 / 2: the gradient is x^T f / n, and masked entries do not count."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    model.set_weights([np.array([[1, 2], [0, 3]], "float32")])
    x, y = np.array([[1.0, 1.0]], "float32"), np.zeros((1, 2), "float32")

    def loss(labels, outputs):
        return tf.reduce_sum(tf.square(outputs - labels)) / 2

    # f = (1, 5), the gradient is [[1, 5], [1, 5]], of which the zero's entry is left out.
    assert effective_gradient_flow(model, x, y, loss=loss, order=1) == pytest.approx(11)
    assert effective_gradient_flow(model, x, y, loss=loss) == pytest.approx(np.sqrt(51))
    keras_ntt.apply_masks(model, {model.weights[0].path: [[1, 0], [0, 1]]})
    # f = (1, 3) now.
    assert effective_gradient_flow(model, x, y, loss=loss, order=1) == pytest.approx(4)


def test_gradient_flow_is_the_mean_over_the_weights():
    model, (x, y) = mlp(), data()
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x))
    gradients = tape.gradient(loss, [v.value for v in choose_weights(model).weights])
    wanted = np.mean([np.linalg.norm(g.numpy().ravel()) for g in gradients])
    assert effective_gradient_flow(model, x, y) == pytest.approx(wanted, rel=1e-5)
    uncompiled = mlp(compiled=False)
    uncompiled.set_weights(model.get_weights())
    assert effective_gradient_flow(uncompiled, x, y) == pytest.approx(wanted, rel=1e-5)


def test_alignment_and_distance():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 2))
    assert ntk_alignment(kernel, 3 * kernel) == pytest.approx(1)
    assert ntk_alignment(kernel, -kernel) == pytest.approx(-1)
    assert ntk_distance(kernel, 3 * kernel) == pytest.approx(4 * (kernel**2).mean())
    assert np.isnan(ntk_alignment(kernel, 0 * kernel))


@pytest.mark.parametrize("compare", [ntk_distance, ntk_alignment])
def test_kernels_of_other_shapes_are_not_compared(compare):
    with pytest.raises(ValueError, match=r"first of shape \(2, 2\) and second of shape \(1, 2\)"):
        compare(np.eye(2), np.ones((1, 2)))


def test_dynamics_are_in_the_history():
    dense, (x, y) = mlp(), data(n=16)
    sparse = keras_ntt.prune_at_init(dense, sparsity=0.5, saliency="magnitude")
    sparse.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watch = TrainingDynamics(dense, x[:4], y[:4])
    before = keras_ntt.empirical_ntk(sparse, x[:4], wrt="kept")
    target = np.asarray(keras_ntt.empirical_ntk(dense, x[:4]))
    history = sparse.fit(x, y, epochs=3, callbacks=[watch], verbose=0).history
    assert {len(history[key]) for key in ("ntk_distance", "ntk_alignment", "gradient_flow")} == {3}
    assert watch.start["ntk_distance"] == pytest.approx(((before - target) ** 2).numpy().mean())
    after = np.asarray(keras_ntt.empirical_ntk(sparse, x[:4], wrt="kept"))
    cosine = (after * target).sum() / np.sqrt((after**2).sum() * (target**2).sum())
    assert history["ntk_alignment"][-1] == pytest.approx(cosine, rel=1e-5)
    flow = effective_gradient_flow(sparse, x[:4], y[:4])
    assert history["gradient_flow"][-1] == pytest.approx(flow, rel=1e-5)


def test_dynamics_of_a_network_beside_itself():
    model, (x, y) = mlp(), data(n=16)
    watch = TrainingDynamics(model, x[:3], wrt="all", every=3)
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[watch]).history
    np.testing.assert_array_equal(history["ntk_distance"], [0, np.nan, 0, np.nan])
    np.testing.assert_allclose(history["ntk_alignment"], [1, np.nan, 1, np.nan], rtol=1e-6)
    assert "gradient_flow" not in history


def test_other_callbacks_beside_dynamics_that_skip_epochs(tmp_path, capsys):
    """A table has their columns, and what is watched for the best has a number to begin with."""
    model, (x, y) = mlp(), data(n=16)
    watch = TrainingDynamics(mlp(), x[:3], y[:3], every=2)
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    best = keras.callbacks.EarlyStopping("ntk_distance", mode="max", patience=4)
    saved = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "ntk_distance", mode="max", save_best_only=True
    )
    callbacks = [watch, table, best, saved]
    history = model.fit(x, y, epochs=5, verbose=2, callbacks=callbacks).history
    keys = ("loss", "ntk_distance", "ntk_alignment", "gradient_flow")
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for key in keys:
        np.testing.assert_allclose([float(row[key]) for row in rows], history[key], rtol=1e-6)
    for key in keys[1:]:
        assert np.isnan(history[key]).tolist() == [False, False, True, False, True]
    assert best.best == saved.best == np.nanmax(history["ntk_distance"])
    assert capsys.readouterr().out.count("ntk_distance: nan") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrt": "some"}, "wrt must be one of"),
        ({"outputs": "diagonal"}, "outputs must be one of"),
        ({"order": 0.5}, "order must be a number of at least 1"),
        ({"every": 0}, "every must be a positive integer"),
        ({"x": np.zeros((2, 5), "float32")}, "do not have the shape"),
    ],
)
def test_dynamics_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingDynamics(mlp(), **{"x": data(4)[0], **options})


def test_dynamics_of_networks_that_cannot_be_compared():
    other = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="must have outputs of the same shape"):
        mlp().fit(*data(), callbacks=[TrainingDynamics(other, data(4)[0])], verbose=0)


class Coded(keras.Model):
    """Code of its own, whose outputs only its kernel tells."""

    def __init__(self, units):
        super().__init__()
        self.last = layers.Dense(units)

    def call(self, x):
        return self.last(x)


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_dynamics_of_code_with_other_outputs(outputs):
    dense, model, (x, y) = Coded(1), Coded(3), data()
    dense(x), model(x)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watch = TrainingDynamics(dense, x[:4], outputs=outputs)
    with pytest.raises(ValueError, match=r"of shape \(4, 3\) and, of dense, \(4, 1\)"):
        model.fit(x, y, callbacks=[watch], verbose=0)


def test_dynamics_are_refused_in_a_transfer():
    """A transfer has an ntk_distance of its own in the logs."""
    student, (x, _) = mlp(compiled=False), data()
    before = student.get_weights()
    transfer = keras_ntt.NeuralTangentTransfer(student, pruning_schedule=0.5, seed=0)
    transfer.compile("adam")
    with pytest.raises(ValueError, match=r"ordinary training.*leave the callback out"):
        transfer.fit(x, callbacks=[TrainingDynamics(mlp(), x[:4])], verbose=0)
    for now, then in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    transfer.fit(x, verbose=0)
    assert keras_ntt.sparsity_report(student).sparsity == 0.5
