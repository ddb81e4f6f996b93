"""A small network for a microcontroller: train, prune without labels, write a file and C source.

    pip install '.[demo]'
    python examples/micro/export.py

Writes ``model.tflite``, ``model.h`` and ``model.cc`` next to ``main.cc``, which runs them.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_ntt


def network() -> keras.Model:
    """Return a convolutional network for images of 8x8 pixels."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def main() -> None:
    """Train, prune and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    y = np.asarray(labels)
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:1300], y[:1300], epochs=options.epochs, verbose=2)
    sparse = keras_ntt.prune_post_training(model, x[:256], sparsity=options.sparsity, epochs=10)
    report = keras_ntt.export_tflite(
        sparse,
        options.output / "model.tflite",
        target="micro",
        representative_data=x[:256],
        c_array=options.output / "model",
    )
    print(report)
    for name, one in (("dense", model), ("pruned", sparse)):
        found = one.predict(x[1300:], verbose=0).argmax(axis=1)
        print(f"{name}: {np.mean(found == y[1300:]):.1%} of the test images")


if __name__ == "__main__":
    main()
