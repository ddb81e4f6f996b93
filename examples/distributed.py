"""Prune and train on all devices of one machine, under tf.distribute.MirroredStrategy.

Without GPUs it makes two logical devices of the CPU, to show that it works; that is no faster.

    python examples/distributed.py
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

import keras_ntt


def devices() -> list[str]:
    """Return the names of all GPUs, or of two logical CPUs."""
    if not tf.config.list_physical_devices("GPU"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return [device.name for device in tf.config.list_logical_devices(kind)]


def network() -> keras.Model:
    """Return a small convolutional network."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(4),
        ]
    )


def patterns(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy pictures with one bright quarter each, and which quarter it is."""
    chance = np.random.default_rng(0)
    y = chance.integers(0, 4, samples)
    x = chance.standard_normal((samples, 8, 8, 1)).astype("float32") / 2
    for picture, quarter in zip(x, y, strict=True):
        row, column = divmod(quarter, 2)
        picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    return x, y


def main() -> None:
    """Prune without labels, train on labels, and look at the zeros of all replicas."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2_048)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    strategy = tf.distribute.MirroredStrategy(devices())
    replicas = strategy.num_replicas_in_sync
    keras.utils.set_random_seed(0)
    x, y = patterns(options.samples)

    batch = 64 * replicas  # 64 samples on each replica
    with strategy.scope():  # models, transfers and optimizers are made here
        transfer = keras_ntt.NeuralTangentTransfer(
            network(), pruning_schedule=keras_ntt.NTTSchedule(0.9, frequency=20), seed=0
        )
        transfer.compile(keras.optimizers.Adam(1e-3))
    transfer.fit(x, batch_size=batch, epochs=options.epochs, verbose=2)

    sparse = transfer.student
    with strategy.scope():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        sparse.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    sparse.fit(x, y, batch_size=batch, epochs=options.epochs, verbose=2)

    masks = keras_ntt.get_masks(sparse)
    for variable in sparse.weights:
        for copy in strategy.experimental_local_results(variable.value):
            mask = masks.get(variable.path)
            assert mask is None or not copy.numpy()[~mask].any()
    print(f"{keras_ntt.sparsity_report(sparse).sparsity:.1%} zeros on each of {replicas} replicas")


if __name__ == "__main__":
    main()
