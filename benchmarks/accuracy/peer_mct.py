"""Channel pruning by model-compression-toolkit, run by `channel_peers` in its own environment.

Reads a folder with ``task.json``, ``weights.npz`` and ``images.npz``; prints rows as JSON.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import model_compression_toolkit as mct
import numpy as np
import tensorflow as tf


def main():
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    model = tf.keras.models.load_model(task["network"], compile=False)
    with np.load(folder / "weights.npz") as weights:
        for layer in model.layers:
            names = [f"{layer.name}.{number}" for number in range(len(layer.get_weights()))]
            layer.set_weights([weights[name] for name in names])
    with np.load(folder / "images.npz") as images:
        calibration, x, y = images["calibration"], images["x"], images["y"]

    def batches():
        for start in range(0, len(calibration), 32):
            yield [calibration[start : start + 32]]

    pruned, _ = mct.pruning.keras_pruning_experimental(
        model=model,
        target_resource_utilization=mct.core.ResourceUtilization(
            weights_memory=4 * task["parameters"]
        ),
        representative_data_gen=batches,
        target_platform_capabilities=mct.get_target_platform_capabilities(),
    )
    found = pruned.predict(x.astype("float32"), batch_size=500, verbose=0).argmax(axis=-1)
    row = {
        "method": "label-free Hessian",
        "parameters": pruned.count_params(),
        "multiply_adds": sum(work_of(layer) for layer in pruned.layers),
        "accuracy": float((found == y).mean()),
    }
    print(json.dumps([row]))


def work_of(layer):
    """Return the products of a layer's kernel for one image."""
    if isinstance(layer, tf.keras.layers.Dense):
        return int(np.prod(layer.kernel.shape))
    if isinstance(layer, tf.keras.layers.Conv2D):
        return int(np.prod(layer.kernel.shape) * np.prod(layer.output_shape[1:3]))
    return 0


if __name__ == "__main__":
    main()
