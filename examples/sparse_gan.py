"""A sparse GAN in balance: dense, static masks and ADAPT, with samples and the ratio over time.

    pip install '.[demo]'
    python examples/sparse_gan.py --data-dir /usr/share/datasets/fashion-mnist

The folder holds the four IDX files of MNIST or Fashion-MNIST; without one the digits of
scikit-learn are used. The score is the Fréchet distance between features of real images and of
samples, by a small classifier that this program trains: it ranks runs of this program and nothing
else.
"""

import argparse
import gzip
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_ntt

NOISE = 64
RUNS = {"dense": (0.0, "static"), "static": (None, "static"), "ADAPT": (None, "adapt")}


def images(folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images of 28x28 from -1 to 1, and their labels."""
    if folder is None:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x.reshape(-1, 8, 8, 1).repeat(3, axis=1).repeat(3, axis=2) / 8 - 1
        x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1)
    else:
        parts = []
        for stem, head in (("train-images-idx3-ubyte", 16), ("train-labels-idx1-ubyte", 8)):
            (path,) = folder.glob(f"{stem}*")
            raw = path.read_bytes()
            raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
            parts.append(np.frombuffer(raw, np.uint8, offset=head))
        x, y = parts[0].reshape(-1, 28, 28, 1) / 127.5 - 1, parts[1]
    return x.astype("float32"), y.astype("int64")


class GAN(keras.Model):
    """Two convolutional networks, and a step of each on a batch of real images."""

    def __init__(self, width: int):
        super().__init__()
        slope = layers.LeakyReLU(0.2)
        up = {"strides": 2, "padding": "same"}
        self.generator = keras.Sequential(
            [
                keras.Input((NOISE,)),
                layers.Dense(7 * 7 * 2 * width),
                layers.Reshape((7, 7, 2 * width)),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Conv2DTranspose(width, 4, **up),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Conv2DTranspose(1, 4, activation="tanh", **up),
            ]
        )
        self.discriminator = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                *(layers.Conv2D(width, 4, **up), slope),
                *(layers.Conv2D(2 * width, 4, **up), slope),
                *(layers.Flatten(), layers.Dense(1)),
            ]
        )
        self.optimizers = [keras.optimizers.Adam(2e-4, 0.0, 0.9) for _ in range(2)]
        self.built = True

    def train_step(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Train the discriminator, then the generator."""
        noise = tf.random.normal((tf.shape(x)[0], NOISE))
        parts = (self.discriminator, self.generator)
        with tf.GradientTape() as tape:
            real = self.discriminator(x, training=True)
            fake = self.discriminator(self.generator(noise, training=True), training=True)
            loss = tf.reduce_mean(tf.nn.relu(1 - real) + tf.nn.relu(1 + fake))
        losses = {"d_loss": loss}
        weights = parts[0].trainable_variables
        self.optimizers[0].apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise, training=True), training=True)
            loss = -tf.reduce_mean(fake)
        weights = parts[1].trainable_variables
        self.optimizers[1].apply(tape.gradient(loss, weights), weights)
        return {**losses, "g_loss": loss}


def classifier(x: np.ndarray, y: np.ndarray, epochs: int) -> keras.Model:
    """Return the features of a small classifier that is trained on the images."""
    stack = [layers.Conv2D(n, 3, 2, activation="relu") for n in (16, 32)]
    features = keras.Sequential([keras.Input((28, 28, 1)), *stack, layers.Flatten()])
    features.add(layers.Dense(32, "relu"))
    model = keras.Sequential([features, layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return features


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance between normal distributions fitted to two sets of features."""
    (m, n), (c, d) = ((z.mean(0) for z in (a, b)), (np.cov(z.T) for z in (a, b)))
    values, vectors = np.linalg.eigh(c)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ d @ root), 0)).sum()
    return float(((m - n) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * shared)


def draw(found: dict[str, dict], path: Path) -> None:
    """Draw samples of each run, and its balance ratio and density over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(4 * len(found), 7), squeeze=False)
    for (name, run), (above, below) in zip(found.items(), axes.T, strict=True):
        grid = run["samples"][:36, :, :, 0].reshape(6, 6, 28, 28).transpose(0, 2, 1, 3)
        above.imshow(grid.reshape(168, 168), cmap="gray")
        above.set_title(f"{name}: distance {run['distance']:.2f}")
        above.set_axis_off()
        steps, ratios = np.array(run["ratios"]).T
        below.plot(steps, np.clip(ratios, -1, 2), linewidth=0.5, label="balance ratio")
        if run["densities"]:
            below.plot(*np.array(run["densities"]).T, label="density of the discriminator")
        below.set_xlabel("steps")
        below.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train the three, print their scores and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of IDX files")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--width", type=int, default=32, help="channels of the first convolution")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("sparse_gan"))
    options = parser.parse_args()
    x, y = images(options.data_dir)
    features = classifier(x, y, max(1, min(3, options.steps // 100)))
    real = features.predict(x[:5000], verbose=0)
    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=0).repeat()
    batches = batches.batch(options.batch)
    # The times of the authors, who train for 100,000 steps; no shorter than 10 of a measurement.
    scale = options.steps / 100_000
    times = {
        "frequency": max(round(1000 * scale), 10),
        "window": max(round(1000 * scale), 10),
        "exchange_frequency": max(round(500 * scale), 5),
        "ratio_frequency": max(round(10 * scale), 1),
        "end_step": options.steps,
    }
    found: dict[str, dict] = {}
    for name, (sparsity, control) in RUNS.items():
        keras.utils.set_random_seed(0)
        gan = GAN(options.width)
        sparsity = options.sparsity if sparsity is None else sparsity
        balance = keras_ntt.SparseGAN(x, NOISE, sparsity=sparsity, control=control, **times)
        gan.compile(jit_compile=False)
        gan.fit(
            batches,
            steps_per_epoch=options.steps,
            shuffle=False,
            verbose=0,
            callbacks=[balance],
        )
        noise = np.random.default_rng(1).normal(size=(2000, NOISE)).astype("float32")
        samples = gan.generator.predict(noise, verbose=0)
        found[name] = {
            "samples": samples,
            "distance": distance(real, features.predict(samples, verbose=0)),
            "ratios": balance.ratios,
            "densities": balance.densities,
            "generator": keras_ntt.sparsity_report(gan.generator).sparsity,
            "discriminator": keras_ntt.sparsity_report(gan.discriminator).sparsity,
        }
        run = found[name]
        print(
            f"{name}: distance {run['distance']:.2f}, zeros {run['generator']:.1%} and "
            f"{run['discriminator']:.1%}, ratio {np.nanmean([r for _, r in balance.ratios]):.2f}",
            flush=True,
        )
    draw(found, options.output.with_suffix(".png"))
    written = {n: {k: v for k, v in run.items() if k != "samples"} for n, run in found.items()}
    options.output.with_suffix(".json").write_text(json.dumps(written) + "\n")


if __name__ == "__main__":
    main()
