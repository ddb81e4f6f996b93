"""SavedModel folders of Keras 2: layers from the configuration, weights by their names."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from keras_ntt.core import host, input_kinds
from keras_ntt.keras2.configs import MODELS, NotKnownError, model_of
from keras_ntt.keras2.twins import some_input

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# The fields of SavedMetadata and of the objects in it, of keras_metadata.pb.
_NODES, _NODE_PATH, _METADATA = 1, 3, 5


def load(folder: pathlib.Path, custom_objects: Mapping[str, Any]) -> keras.Model:
    """Rebuild the model of a SavedModel folder, without tf_keras.

    Args:
        folder: The folder.
        custom_objects: Custom classes by name.

    Returns:
        The model, whose outputs were compared with those of the folder's graph.

    Raises:
        NotKnownError: If the folder does not list its layers, if they are not in Keras 3, or if
            they compute something else there.
    """
    config = _config(folder)
    if config is None:
        raise NotKnownError(
            "the SavedModel holds a graph without layers, as model.export() and "
            "tf.saved_model.save() write it for serving; its weights have no places in a model. "
            "Take the file that the model was saved in, or make the model by its code"
        )
    model = model_of(config, custom_objects)
    _set_weights(model, _values(folder))
    _check_outputs(model, folder)
    return model


def _config(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the configuration of the model in a folder, None if there is none."""
    for path, text in _metadata(folder):
        if path != "root" or not text:
            continue
        found = json.loads(text, object_hook=_plain)
        inner = found.get("model_config") or found
        if "class_name" in inner and "config" in inner:
            kind, config = inner["class_name"], inner["config"]
            if kind not in MODELS and "layers" in config:  # a subclass without a custom call()
                kind = "Functional" if "input_layers" in config else "Sequential"
            return {"class_name": kind, "config": config}
    return None


def _plain(read: dict[str, Any]) -> Any:
    """Return the tuple for its form in Keras 2."""
    return tuple(read["items"]) if read.get("class_name") == "__tuple__" else read


def _metadata(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the description of each object that Keras has saved."""
    file = folder / "keras_metadata.pb"
    if file.exists():
        for field, node in _fields(file.read_bytes()):
            if field == _NODES:
                inside = dict(_fields(node))
                yield inside.get(_NODE_PATH, b"").decode(), inside.get(_METADATA, b"").decode()
        return
    graph = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for meta in graph.meta_graphs:
        for number, node in enumerate(meta.object_graph_def.nodes):
            yield "root" if number == 0 else "", node.user_object.metadata


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a protocol buffer that are texts or buffers."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = content[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(content):
        field, kind = divmod(number(), 8)
        if kind == 2:
            size = number()
            yield field, content[place : place + size]
            place += size
        elif kind == 0:
            number()
        else:
            place += {1: 8, 5: 4}[kind]


def _values(folder: pathlib.Path) -> dict[tuple[str, ...], np.ndarray]:
    """Return the values of a folder's variables, by the parts of their names."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    content = reader.get_tensor(_GRAPH)
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(content)
    return {
        tuple(part.full_name.split("/")): reader.get_tensor(part.checkpoint_key)
        for node in graph.nodes
        for part in node.attributes
        if part.full_name and reader.has_tensor(part.checkpoint_key)
    }


def _set_weights(model: keras.Model, values: Mapping[tuple[str, ...], np.ndarray]) -> None:
    """Set the weights of a model to the values of the same names."""
    for layer in host.layers_of(model):
        if isinstance(layer, keras.Model) or not layer.weights:
            continue
        for variable in layer.weights:
            variable.assign(_value_of(variable, values))
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _value_of(variable: keras.Variable, values: Mapping[tuple[str, ...], np.ndarray]) -> np.ndarray:
    """Return the value whose name shares the most words with a variable's path, and ends alike."""
    *places, last = variable.path.split("/")
    shape = tuple(variable.shape)
    for ends in ((last,), (f"depthwise_{last}", f"pointwise_{last}")):
        alike = {
            name: len({*places} & {*name[:-1]})
            for name, value in values.items()
            if name[-1] in ends and value.shape == shape
        }
        best = max(alike, key=alike.__getitem__, default=None)
        if best is not None and alike[best]:
            return values[best]
    raise NotKnownError(
        f"the file has no value for the weight {variable.path!r} of shape {shape}; it has "
        f"{', '.join('/'.join(name) for name in list(values)[:20])}"
    )


def _check_outputs(model: keras.Model, folder: pathlib.Path) -> None:
    """Raise a NotKnownError if a model computes something else than the graph in its folder."""
    graph = tf.Graph()
    with _quiet(), graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        # Newer loaders look for the saved optimizer, and fail.
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = meta.signature_def.get("serving_default")
        if signature is None or len(signature.inputs) != len(model.inputs):
            return
        rng = np.random.default_rng(0)
        looked_up = input_kinds.are_indices(model.inputs, model)
        arrays = [some_input(rng, t, i) for t, i in zip(model.inputs, looked_up, strict=True)]
        names = [tensor.name for tensor in model.inputs]
        ports = dict(signature.inputs)
        if len(names) == 1:
            ports = {names[0]: next(iter(ports.values()))}
        if set(ports) != set(names) or len(signature.outputs) != len(model.outputs):
            return
        feed = {ports[name].name: array for name, array in zip(names, arrays, strict=True)}
        theirs = session.run({k: port.name for k, port in signature.outputs.items()}, feed)
    ours = keras.tree.flatten(model(arrays[0] if len(arrays) == 1 else arrays, training=False))
    # There the outputs have the names of their layers: each must be one of ours.
    for found in theirs.values():
        if not any(_same(found, keras.ops.convert_to_numpy(output)) for output in ours):
            raise NotKnownError(
                "the rebuilt model computes something else than the graph in the folder, so a "
                "layer means different things in Keras 2 and Keras 3"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide TensorFlow's message that a loader of folders is old."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-4)
