"""Load models from files of Keras 3 and Keras 2."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import h5py
import keras

from keras_ntt.core import host
from keras_ntt.core.atomic_files import Path, as_path
from keras_ntt.keras2 import configs, saved_models
from keras_ntt.keras2.configs import NotKnownError
from keras_ntt.keras2.to_keras3 import to_keras3

_TF_KERAS = "Or install tf_keras, which reads all that Keras 2 wrote: pip install tf-keras"


def load_model(path: Path, *, custom_objects: Mapping[str, Any] | None = None) -> keras.Model:
    """Load a model from a file of Keras 3 or Keras 2.

    Keras 3 reads ``.keras`` files, and ``.h5`` files of Keras 2 if their layers take the same
    arguments. If tf_keras is installed, it reads all other files, and the models are rebuilt in
    Keras 3 with the same layers, names, weights and outputs. Otherwise the layers are built from
    the configuration in the file. This works for all layers of Keras, but not for functions of
    TensorFlow in the graph.

    Args:
        path: A ``.keras`` or ``.h5`` file, or the folder of a SavedModel that Keras 2 wrote.
        custom_objects: Custom classes and functions by name, as in `keras.models.load_model`.

    Returns:
        The model, not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `path` is not a path, or `custom_objects` not a dictionary.
        ValueError: If the file has no model, or a part of it cannot be converted; the message says
            which part and what to do.

    Examples:
        >>> import keras, keras_ntt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> keras_ntt.save_model(model, "model.keras")
        >>> keras_ntt.load_model("model.keras").count_params()
        10
    """
    host.require_tensorflow_backend()
    file = as_path(path)
    if custom_objects is not None and not isinstance(custom_objects, Mapping):
        raise TypeError(
            "custom_objects must be a dictionary of classes and functions by name. "
            f"Received: custom_objects={custom_objects!r}"
        )
    custom = dict(custom_objects or {})
    if not file.exists():
        if file.with_name(f"{file.name}.index").exists():
            raise _refusal(file, _CHECKPOINT)
        raise FileNotFoundError(f"There is no such model file. Received: {file}")
    if file.is_dir():
        return _of_folder(file, custom)
    try:
        return _without_lists(keras.models.load_model(file, custom_objects=custom, compile=False))
    except Exception as error:  # the bytes may be anything
        cause = f"{type(error).__name__}: {_cause(str(error))}"
        problem: Exception = error
    config = _config_in_h5(file) if h5py.is_hdf5(file) else None
    if config is not None:
        return _of_keras2(file, custom, config)
    raise _refusal(file, _reason(file), cause) from problem


def _of_keras2(
    file: pathlib.Path, custom: Mapping[str, Any], config: Mapping[str, Any] | None
) -> keras.Model:
    """Return the model of a file or folder of Keras 2, with tf_keras or without.

    Args:
        file: The file or folder.
        custom: Custom classes by name.
        config: The configuration in a ``.h5`` file; None for a folder.
    """
    problems: list[Exception] = []
    legacy = _tf_keras()
    if legacy is not None:
        try:
            return to_keras3(legacy.models.load_model(file, custom_objects=custom, compile=False))
        except Exception as error:  # after any error there is another way
            problems.append(error)
    try:
        if config is None:
            return _without_lists(saved_models.load(file, custom))
        model = configs.model_of(config, custom)
        model.load_weights(file)
        return _without_lists(model)
    except NotKnownError as error:
        reason = f"{error}"
    except Exception as error:  # a damaged file, for example
        reason = f"{type(error).__name__}: {_cause(str(error))}"
        problems.append(error)
    if legacy is not None:
        reason += f". tf_keras: {_cause(str(problems[0]))}"
    raise ValueError(
        f"The model of Keras 2 cannot be converted to Keras 3: {reason}. "
        f"{'' if legacy is not None else _TF_KERAS + '. '}Received: {file}"
    ) from (problems[0] if problems else None)


def _without_lists(model: keras.Model) -> keras.Model:
    """Return a model that takes and returns a single tensor, not a list with one.

    Keras builds models of Keras 2 with such lists.
    """
    graph: Any = host.functional_of(model)
    if graph is not model:
        return model
    ends = (host.input_structure(graph), host.output_structure(graph))
    if not any(isinstance(end, list) and len(end) == 1 for end in ends):
        return model
    inputs, outputs = (e[0] if isinstance(e, list) and len(e) == 1 else e for e in ends)
    return keras.Model(inputs, outputs, name=graph.name, trainable=graph.trainable)


def _of_folder(folder: pathlib.Path, custom: Mapping[str, Any]) -> keras.Model:
    if (folder / "saved_model.pb").exists():
        return _of_keras2(folder, custom, None)
    if (folder / "checkpoint").exists() or any(folder.glob("*.index")):
        raise _refusal(folder, _CHECKPOINT)
    raise _refusal(
        folder,
        "The folder holds no saved_model.pb, so it is not a SavedModel. Name the folder that has "
        "it, or a .keras or .h5 file",
    )


def _config_in_h5(file: pathlib.Path) -> dict[str, Any] | None:
    """Return the configuration of the model in a file of Keras 2, None if there is none."""
    try:
        with h5py.File(file, "r") as content:
            text = content.attrs.get("model_config")
            return None if text is None else json.loads(text)
    except (OSError, ValueError):  # damaged
        return None


_WEIGHTS = (
    "The file holds only weights, without their layers. Build the model by its code, read the "
    "weights by model.load_weights(path), and save the whole model by model.save('model.keras')"
)
_CHECKPOINT = (
    "This is a checkpoint of TensorFlow: only weights, without their layers. Build the model by "
    "its code in tf_keras, read the weights by model.load_weights(path), and save the whole model "
    "by model.save('model.h5')"
)
_CLOSED = (
    "The model calls a SavedModel as a closed graph, TFSMLayer: its weights do not belong to "
    "layers, so they cannot be pruned. If Keras 2 wrote that SavedModel, read the SavedModel by "
    "keras_ntt.load_model(folder)"
)
_BY_SUFFIX = {
    ".tflite": "This is a LiteRT file, which has no Keras layers. keras-ntt shrink, keras-ntt "
    "inspect and keras-ntt evaluate take it, and so do keras_ntt.shrink_tflite and "
    "keras_ntt.inspect_tflite",
    ".pb": "A SavedModel is a folder: name the folder that saved_model.pb is in",
    ".json": "The file holds layers without weights. Make the model by "
    "keras.models.model_from_json, read its weights by model.load_weights(path), and save it "
    "whole by model.save('model.keras')",
    ".index": _CHECKPOINT,
}


def _reason(file: pathlib.Path) -> str:
    """Say why a file that Keras cannot read is not a model."""
    if file.suffix in _BY_SUFFIX:
        return _BY_SUFFIX[file.suffix]
    if h5py.is_hdf5(file):
        return _WEIGHTS
    if _has_closed_graph(file):
        return _CLOSED
    return (
        "Keras cannot read this as a model. If it has custom classes, read it in Python by "
        "keras_ntt.load_model(path, custom_objects={'MyLayer': MyLayer}). There "
        "prune_neural_tangent, sparsity_report and export_tflite do what the command line does"
    )


def _has_closed_graph(file: pathlib.Path) -> bool:
    """Tell whether there is a TFSMLayer in a ``.keras`` file, which Keras does not read safely."""
    try:
        with zipfile.ZipFile(file) as content:
            return b'"TFSMLayer"' in content.read("config.json")
    except Exception:  # not a zip file, damaged, or without a configuration
        return False


def _refusal(file: pathlib.Path, reason: str, cause: str = "") -> ValueError:
    behind = f" ({cause})" if cause else ""
    return ValueError(f"{reason}. Received: {file}{behind}")


def _tf_keras() -> Any | None:
    """Return the package tf_keras, None if it is not installed."""
    try:
        import tf_keras
    except ImportError:
        return None
    return tf_keras


def _cause(message: str) -> str:
    """Return a message of Keras without the configuration that it could not read."""
    cause = message.rpartition("Exception encountered:")[2].partition("Full object config:")[0]
    return (cause or message).strip()[:300].rstrip(".")
