"""Densely stored LiteRT files by TensorFlow's converter."""

from __future__ import annotations

import contextlib
import contextvars
import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.configurations import configuration_of, configurations_share
from keras_ntt.core.copies import cause_of, hand_over, rebuilt, undisturbed
from keras_ntt.core.loops import has_unknown_length, loops_of, unrolled
from keras_ntt.litert.chatter import chatter_dropped
from keras_ntt.litert.ports import Ports, ports_of
from keras_ntt.litert.recurrent import form_of, has_lstm, written_as
from keras_ntt.litert.runtime.run import ExportError

QUANTIZATIONS = ("float16", "int8_weights", "int8", "int16")
_MEASURED = ("int8", "int16")  # from samples
_OTHERS = ("float16", "bfloat16", "float64")
_NAMES = (*_OTHERS, "mixed_float16", "mixed_bfloat16")  # of types and of policies


class _Integers(NamedTuple):
    """What integer files need: inputs to measure ranges on, and the types of inputs and outputs."""

    batches: list[Any]
    input_type: str
    output_type: str


class _Conversion(NamedTuple):
    """A file that does not depend on samples, and its sources."""

    model: keras.Model
    ports: Ports | None
    form: str
    quantization: str | None
    content: bytes


_shared: contextvars.ContextVar[list[_Conversion] | None] = contextvars.ContextVar(
    "conversions", default=None
)


@contextlib.contextmanager
def conversions_shared() -> Iterator[None]:
    """Convert a model only once for several files inside this context.

    The weights must not change meanwhile.

    Yields:
        Nothing.
    """
    token = _shared.set([])
    try:
        yield
    finally:
        _shared.reset(token)


def convert(
    model: keras.Model,
    quantizations: Sequence[str | None],
    samples: Sequence[np.ndarray] | None = None,
    *,
    ports: Ports | None = None,
    input_type: str = "float32",
    output_type: str = "float32",
    operators: bool = True,
    loops: bool = False,
) -> list[bytes]:
    """Convert a model to LiteRT files, without the messages of TensorFlow.

    The converter gets the model's function with its variables as constants. If a part of the model
    cannot be a constant, such as a look-up table, it gets a SavedModel, which is several times
    slower to write and to read. The same is done if an LSTM becomes one operator, because its
    function must not be inlined. The converter's method for Keras models is never used, because it
    ends the process with TensorFlow 2.16. Its sparse mode is not used either: such files compute
    something else or do not load. `recurrent` writes recurrent layers, because the converter cannot
    convert their loops.

    Args:
        model: The model.
        quantizations: One file is made for each: None, ``"float16"``, ``"int8_weights"``
            (activations stay float), ``"int8"`` or ``"int16"`` (int16 activations, int8 weights).
        samples: Inputs in the order of the model, from which ``"int8"`` and ``"int16"`` measure the
            ranges of activations. The other quantizations do not need them.
        ports: The inputs and outputs of the model; with None they are found out, as far as Keras
            knows them.
        input_type: The type that integer files take for floats.
        output_type: The type that they return for floats.
        operators: Whether an LSTM may become one operator if the batch size is fixed.
        loops: Whether other recurrent layers may become loops if they compute in floats.

    Returns:
        The files. They compute in float32 whatever the policies of the model's layers, and have
        inputs and outputs in the model's order.

    Raises:
        ExportError: If the model cannot be converted.
    """
    model = in_float32(model)
    ports = ports or ports_of(model)
    batches = [] if samples is None or ports is None else _batches(ports, samples)
    integers = _Integers(batches, input_type, output_type)
    try:
        whole = operators and ports is not None and ports.batch is not None and has_lstm(model)
        loops = loops and bool(loops_of(model))
        forms = [form_of(kind, operators=whole, loops=loops) for kind in quantizations]
        found: dict[tuple[str, str | None], bytes] = {}
        known = _shared.get()
        if known is not None:
            found |= {
                (one.form, one.quantization): one.content
                for one in known
                if one.model is model and one.ports == ports
            }
        for form in dict.fromkeys(forms):
            wanted = [k for k, its in zip(quantizations, forms, strict=True) if its == form]
            kinds = [kind for kind in wanted if (form, kind) not in found]
            if not kinds:
                continue
            with contextlib.redirect_stdout(io.StringIO()), chatter_dropped():
                made = None
                if ports is not None and form in ("steps", "loops"):
                    made = _by_function(model, kinds, ports, integers, form)
                if made is None:
                    made = _by_saved_model(model, kinds, ports, integers, form)
            new = [_Conversion(model, ports, form, *p) for p in zip(kinds, made, strict=True)]
            found |= {(one.form, one.quantization): one.content for one in new}
            if known is not None:
                known += [one for one in new if one.quantization not in _MEASURED]
        files = [found[key] for key in zip(forms, quantizations, strict=True)]
        if ports is None or ports.is_single:
            return files
        return [ports.in_order(content) for content in files]
    except Exception as error:  # the converter passes on any error
        raise ExportError(
            f"TensorFlow could not convert the model {model.name!r} to LiteRT. {_hint(model)}"
            f"Received: {type(error).__name__}: {str(error)[:500]}"
        ) from error


def in_float32(model: keras.Model) -> keras.Model:
    """Return a model that computes in float32: the model itself, or a copy of it.

    The converter has hardly any operators for other types.

    Args:
        model: A built model.

    Returns:
        The model if all its layers compute in float32. Otherwise a copy with the same weights, in
        which float16, bfloat16 and float64 are float32 in policies, inputs and casts.

    Raises:
        ExportError: If no such copy can be made.
    """
    others = _others_in(model)
    if not others:
        return model
    policy = keras.config.dtype_policy()
    try:
        with undisturbed(), configurations_share(model), host.zero_weights():
            config = keras.tree.map_structure(_renamed, configuration_of(model))
            keras.config.set_dtype_policy("float32")  # for tensors that layers create
            copy = rebuilt(model, config)
        hand_over(model, copy)
        left = _others_in(copy)
        if left:
            raise ValueError(f"a copy that computes in {', '.join(left)}")
    except Exception as error:  # custom classes may raise any error
        raise ExportError(
            f"LiteRT files compute in float32, and the model {model.name!r} cannot be copied to do "
            f"so: {cause_of(error)}. "
            'Build it again after keras.config.set_dtype_policy("float32"), and copy the '
            f"weights by set_weights. Received: layers that compute in {', '.join(others)}"
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
    return copy


def _others_in(model: keras.Model) -> list[str]:
    """Return the float types other than float32 in which layers of a model compute."""
    types = {
        layer.compute_dtype
        for layer in host.layers_of(model)
        # These compute nothing by themselves.
        if host.functional_of(layer) is None and not isinstance(layer, keras.layers.InputLayer)
    }
    return sorted(types & {*_OTHERS})


def _renamed(value: Any) -> Any:
    """Return an entry of a configuration, with float32 for the name of another type or policy."""
    return "float32" if isinstance(value, str) and value in _NAMES else value


def _by_function(
    model: keras.Model,
    quantizations: Sequence[str | None],
    ports: Ports,
    integers: _Integers,
    form: str,
) -> list[bytes] | None:
    """Return files of the model's function; None if its variables cannot be constants."""
    specs = list(ports.inputs)
    try:
        with written_as(model, specs, form):
            function = tf.function(ports.endpoint(model), autograph=False)
            function = function.get_concrete_function(*specs)
        names, constant = sorted(function.structured_outputs), host.with_constants(function)

        def named(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:  # constants have no names
            return dict(zip(names, constant(*tensors), strict=True))

        whole = tf.function(named, autograph=False).get_concrete_function(*specs)
        return [
            _convert(
                tf.lite.TFLiteConverter.from_concrete_functions([whole], tf.Module()), q, integers
            )
            for q in quantizations
        ]
    except Exception:  # any error of TensorFlow; the error of the SavedModel is the one to show
        return None


def _by_saved_model(
    model: keras.Model,
    quantizations: Sequence[str | None],
    ports: Ports | None,
    integers: _Integers,
    form: str,
) -> list[bytes]:
    """Return files of a model that is saved as a SavedModel first."""
    with tempfile.TemporaryDirectory() as folder:
        _save(model, folder, ports, form)
        return [
            _convert(tf.lite.TFLiteConverter.from_saved_model(folder), q, integers)
            for q in quantizations
        ]


def _save(model: keras.Model, folder: str, ports: Ports | None, form: str) -> None:
    """Write a SavedModel in inference mode, which `Model.export` leaves to each layer's default."""
    if ports is None:  # only Keras knows the shapes that a custom call() takes
        with unrolled(model, []):
            model.export(folder)
        return
    archive = keras.export.ExportArchive()
    archive.track(model)
    specs = list(ports.inputs)
    with written_as(model, specs, form):
        archive.add_endpoint("serve", ports.endpoint(model), specs)
        archive.write_out(folder)


def _hint(model: keras.Model) -> str:
    functional = host.functional_of(model)
    specs = [] if functional is None else [tf.TensorSpec(t.shape) for t in functional.inputs]
    if loops_of(model) and has_unknown_length(specs):
        return "Recurrent layers need sequences of a length that is fixed in keras.Input. "
    return ""


def _batches(ports: Ports, samples: Sequence[np.ndarray]) -> list[Any]:
    """Return samples as the converter needs them: in a list, or by name if there are several."""
    size, count = ports.batch or 1, len(samples[0])
    cut = [[array[i : i + size] for array in samples] for i in range(0, count - size + 1, size)]
    if len(samples) == 1:
        return cut
    names = [spec.name for spec in ports.inputs]
    return [dict(zip(names, batch, strict=True)) for batch in cut]


def _convert(converter: Any, quantization: str | None, integers: _Integers) -> bytes:
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization in ("int8", "int16"):
        converter.representative_dataset = lambda: iter(integers.batches)
        kinds = tf.lite.OpsSet
        wide = kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        chosen = kinds.TFLITE_BUILTINS_INT8 if quantization == "int8" else wide
        converter.target_spec.supported_ops = [chosen]
        converter.inference_input_type = tf.as_dtype(integers.input_type)
        converter.inference_output_type = tf.as_dtype(integers.output_type)
    with warnings.catch_warnings():
        # The converter itself measures ranges in this way.
        warnings.filterwarnings("ignore", r"[\s\S]*tf.lite.Interpreter is deprecated")
        return converter.convert()
