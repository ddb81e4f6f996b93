"""Files as Keras 2 wrote them, made without it."""

from __future__ import annotations

import json

import h5py
import keras
import tensorflow as tf

# What Keras 2 wrote besides, where it says nothing.
EXTRA = {
    "DepthwiseConv2D": {"groups": 1},
    "DepthwiseConv1D": {"groups": 1},
    "Conv2DTranspose": {"groups": 1},
    "SeparableConv2D": {"groups": 1},
    "LSTM": {"time_major": False, "implementation": 2},
    "GRU": {"time_major": False, "implementation": 2},
}


def config_of(model):
    """Return the configuration of a Keras 3 model as Keras 2 would have written it."""
    config = _part(model)
    config["config"]["name"] = model.name
    return config


def _part(layer):
    if isinstance(layer, keras.Model):
        return _model(layer)
    kind, config = type(layer).__name__, layer.get_config()
    config = {key: _value(value) for key, value in config.items()} | EXTRA.get(kind, {})
    if "batch_shape" in config:
        config["batch_input_shape"] = config.pop("batch_shape")
        config |= {"sparse": False, "ragged": False}
        config.pop("optional", None)
    config.pop("autocast", None)
    if kind == "BatchNormalization":
        config["axis"] = [len(layer.input.shape) - 1]
        for key in [k for k in config if k.startswith("renorm") or k == "synchronized"]:
            config.pop(key)
    if kind == "LeakyReLU":
        config["alpha"] = config.pop("negative_slope")
    return {"class_name": kind, "config": config}


def _model(model):
    layers = [_part(layer) for layer in model.layers]
    if isinstance(model, keras.Sequential):
        first = {"class_name": "InputLayer", "config": _input(model.inputs[0])}
        return {
            "class_name": "Sequential",
            "config": {"name": model.name, "layers": [first, *layers]},
        }
    for part, layer in zip(layers, model.layers, strict=True):
        part["name"] = layer.name
        part["inbound_nodes"] = [
            [[_name(t), _call(t), 0, {}] for t in node.input_tensors]
            for node in layer._inbound_nodes
            if node.input_tensors
        ]
    ends = {
        "input_layers": [[_name(t), 0, 0] for t in model.inputs],
        "output_layers": [[_name(t), _call(t), 0] for t in model.outputs],
    }
    config = {"name": model.name, "trainable": True, "layers": layers, **ends}
    return {"class_name": "Functional", "config": config}


def _name(tensor):
    return tensor._keras_history.operation.name


def _call(tensor):
    """Return the number of the call: that with which a model is made was number 0 in Keras 2."""
    return int(isinstance(tensor._keras_history.operation, keras.Model))


def _input(tensor):
    shape = [None, *tensor.shape[1:]]
    about = {"dtype": tensor.dtype, "sparse": False, "ragged": False, "name": tensor.name}
    return {"batch_input_shape": shape, **about}


def _value(value):
    """Return a value without what Keras 3 alone writes: modules, policies, registered names."""
    if isinstance(value, dict) and value.get("class_name") == "DTypePolicy":
        return value["config"]["name"]
    if isinstance(value, dict) and "class_name" in value and "module" in value:
        inner = {key: _value(part) for key, part in value["config"].items()}
        inner.pop("autocast", None)
        return {"class_name": value["class_name"], "config": inner}
    return value


def save_h5(model, path):
    """Write a model as Keras 2 does."""
    model.save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(config_of(model))
        file.attrs["keras_version"] = "2.12.0"


def save_weights_h5(model, path):
    """Write the weights of a model alone, as Keras 2 does."""
    model.save(path)
    with h5py.File(path, "r+") as file:
        for key in list(file.attrs):
            del file.attrs[key]
        file.move("model_weights", "before")
        for name, value in file["before"].attrs.items():
            file.attrs[name] = value
        for name in list(file["before"]):
            file.move(f"before/{name}", name)
        del file["before"]


def save_folder(folder, config, variables, compute, shape):
    """Write a SavedModel as Keras 2 does.

    Args:
        folder: Where to.
        config: The model's configuration; None for a graph that Keras knows nothing of.
        variables: ``name -> value`` of its variables.
        compute: A function of the variables and an input, which the graph computes.
        shape: The shape of the input.
    """
    module = tf.Module()
    module.held = {k.replace("/", "-"): tf.Variable(v, name=k) for k, v in variables.items()}

    @tf.function(input_signature=[tf.TensorSpec([None, *shape], tf.float32)])
    def serve(x):
        values = {v.name.removesuffix(":0"): v for v in module.held.values()}
        return {"out": compute(values, x)}

    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    if config is not None:
        about = json.dumps({"name": "root", "model_config": config}).encode()
        node = _field(2, 0) + _field(3, b"root") + _field(4, b"_tf_keras_network")
        node += _field(5, about)
        (folder / "keras_metadata.pb").write_bytes(_field(1, node))


def _field(number, value):
    """Return a field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3]) + _number(value)
    return bytes([number << 3 | 2]) + _number(len(value)) + value


def _number(value):
    parts = bytearray()
    while True:
        value, rest = value >> 7, value & 127
        parts.append(rest | (128 if value else 0))
        if not value:
            return bytes(parts)


def weights(rng, **shapes):
    """Return random values by name; a dash stands for a slash."""
    return {k.replace("__", "/"): rng.normal(size=s).astype("float32") for k, s in shapes.items()}
