"""Numbers of the authors' own implementation, in float64; see golden/README.md."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import use_float
from keras import layers

import keras_ntt
from keras_ntt.core import host

pytestmark = pytest.mark.oldest

FILES = sorted(pathlib.Path(__file__).parent.glob("golden/*.npz"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    with np.load(request.param) as file:
        values = {key: file[key] for key in file.files}
    values["name"] = request.param.stem
    return values


def network(golden, dtype="float64"):
    use_float(dtype)
    hidden = [layers.Dense(8, "relu"), layers.Dense(3)]
    if "cnn" in golden["name"]:
        first = [
            layers.Input((8, 8, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
        ]
    else:
        first = [layers.Input((12,)), layers.Dense(16, "relu")]
    model = keras.Sequential([*first, *hidden])
    for i, layer in enumerate(with_weights(model)):
        layer.kernel.assign(golden[f"teacher_kernel_{i}"])
        layer.bias.assign(golden[f"teacher_bias_{i}"])
    return model


def with_weights(model):
    return [layer for layer in model.layers if layer.weights]


def first_masks(golden, model):
    return {
        layer.kernel.path: golden[f"initial_mask_{i}"]
        for i, layer in enumerate(with_weights(model))
    }


def settings(golden):
    return {
        "ntk_weight": float(golden["lambda_kernel"]),
        "l2": float(golden["lambda_l2"]),
    }


class AuthorsAdam(keras.optimizers.Optimizer):
    """Adam with eps added after the bias correction, as the authors' library has it."""

    def build(self, variables):
        super().build(variables)
        self._m = [self.add_variable_from_reference(v, "m") for v in variables]
        self._v = [self.add_variable_from_reference(v, "v") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        i = self._get_variable_index(variable)
        t = tf.cast(self.iterations.value + 1, gradient.dtype)
        m = 0.9 * self._m[i].value + 0.1 * gradient
        v = 0.999 * self._v[i].value + 0.001 * gradient**2
        self._m[i].assign(m)
        self._v[i].assign(v)
        rate = tf.cast(learning_rate, gradient.dtype)
        b1, b2 = (tf.constant(b, gradient.dtype) for b in (0.9, 0.999))
        change = m / (1 - b1**t) / (tf.sqrt(v / (1 - b2**t)) + 1e-8)
        variable.assign_sub(rate * change)


def test_kernels(golden):
    teacher, student = network(golden), network(golden)
    masks = first_masks(golden, student)
    keras_ntt.apply_masks(student, masks)
    x = golden["inputs"][0]
    for model, key in ((teacher, "first_ntk_teacher"), (student, "first_ntk_student")):
        expected = golden[key]
        found = keras_ntt.empirical_ntk(model, x[:4], x[4:])
        assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


def test_loss_and_gradient(golden):
    teacher, student = network(golden), network(golden)
    variables = [host.raw(v) for v in student.trainable_variables]
    with tf.GradientTape() as tape:
        loss = keras_ntt.ntt_loss(
            student,
            teacher,
            golden["inputs"][0],
            sparsity=1 - float(golden["density"]),
            masks=first_masks(golden, student),
            **settings(golden),
        )
    keys = ("first_loss", "first_kernel_distance", "first_target_distance", "first_l2")
    for value, key in zip(loss, keys, strict=True):
        assert float(value) == pytest.approx(float(golden[key]), rel=1e-9)
    gradients = tape.gradient(loss.total, variables)
    expected = [
        golden[f"first_gradient_{kind}_{i}"]
        for i in range(len(variables) // 2)
        for kind in ("kernel", "bias")
    ]
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


def run(golden, dtype):
    """Run the 30 steps through fit; return the transfer and the loss before each step."""
    student = network(golden, dtype)
    density, frequency = float(golden["density"]), int(golden["mask_update_frequency"])
    transfer = keras_ntt.NeuralTangentTransfer(
        student,
        pruning_schedule=keras_ntt.NTTSchedule(1 - density, frequency),
        allocation=golden["name"].rsplit("_", 1)[1],
        count_rule="original",
        **settings(golden),
    )
    for key, mask in first_masks(golden, student).items():
        np.testing.assert_array_equal(transfer.masks[key], mask.astype(bool))
    transfer.compile(AuthorsAdam(float(golden["learning_rate"])))
    losses = []

    class EachLoss(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])

    batches = tf.data.Dataset.from_tensor_slices(golden["inputs"].astype(dtype))
    transfer.fit(batches, verbose=0, callbacks=[EachLoss()])
    return transfer, losses


@pytest.mark.few(1)
def test_trajectory(golden):
    transfer, losses = run(golden, "float64")
    np.testing.assert_allclose(losses, golden["loss_before_step"], rtol=1e-7)
    changed = 0
    for i, layer in enumerate(with_weights(transfer.student)):
        mask = golden[f"final_mask_{i}"].astype(bool)
        np.testing.assert_array_equal(transfer.masks[layer.kernel.path], mask)
        changed += int((mask != golden[f"initial_mask_{i}"]).sum())
        latent = keras.ops.convert_to_numpy(transfer._weights.latent[i])
        np.testing.assert_allclose(latent, golden[f"final_latent_kernel_{i}"], atol=1e-7)
        np.testing.assert_allclose(layer.bias, golden[f"final_latent_bias_{i}"], atol=1e-7)
        np.testing.assert_array_equal(layer.kernel, np.where(mask, latent, 0))
    assert changed >= 8


@pytest.mark.few(1)
def test_trajectory_in_float32(golden):
    transfer, losses = run(golden, "float32")
    np.testing.assert_allclose(losses, golden["loss_before_step"], rtol=1e-3)
    for i, layer in enumerate(with_weights(transfer.student)):
        agree = transfer.masks[layer.kernel.path] == golden[f"final_mask_{i}"].astype(bool)
        assert agree.mean() > 0.98
        latent = keras.ops.convert_to_numpy(transfer._weights.latent[i])
        np.testing.assert_allclose(latent, golden[f"final_latent_kernel_{i}"], atol=2e-3)
