"""LeNet-5 to an edge CPU: prune before training what the runtime can skip, train, export, measure.

LiteRT has sparse kernels for fully-connected layers at batch 1, on every CPU, and for nothing else
in this network. So only the dense layers are pruned, by Neural Tangent Transfer, without labels.

    pip install '.[demo]'
    python examples/edge.py
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_ntt


def network() -> keras.Model:
    """Return LeNet-5-Caffe."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(20, 5, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(50, 5, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(500, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return handwritten digits, enlarged from 8x8 to 28x28, and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    large = images.repeat(3, axis=1).repeat(3, axis=2)
    return np.pad(large, ((0, 0), (2, 2), (2, 2), (0, 0))), labels


def main() -> None:
    """Prune, train, export and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.97)
    parser.add_argument("--samples", type=int, default=1300, help="images to train on")
    parser.add_argument("--transfer-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", default="lenet5.tflite")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    (images, labels), n = digits(), options.samples
    x, y, x_test, y_test = images[:n], labels[:n], images[1300:], labels[1300:]

    dense = network()
    print(keras_ntt.explain_edge_latency(dense))
    sparse = keras_ntt.prune_neural_tangent(
        dense,
        x,
        sparsity=options.sparsity,
        allocation="erk",
        epochs=options.transfer_epochs,
        filters=lambda layer: isinstance(layer, keras.layers.Dense),
        optimizer=keras.optimizers.Adam(1e-3),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile("adam", loss, metrics=["accuracy"])
    sparse.fit(x, y, epochs=options.epochs, validation_data=(x_test, y_test))
    report = keras_ntt.export_tflite(
        sparse, options.output, target="latency", representative_data=x_test, benchmark=True
    )
    print(report)
    answers = keras_ntt.tflite_predict(options.output, x_test)
    print(f"accuracy of the file: {np.mean(answers.argmax(axis=1) == y_test):.1%}")


if __name__ == "__main__":
    main()
