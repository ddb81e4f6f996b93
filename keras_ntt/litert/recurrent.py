"""Recurrent layers in a file: an LSTM as one operator, others as a loop or step by step.

TensorFlow's converter writes UNIDIRECTIONAL_SEQUENCE_LSTM for a function that is marked as Keras's
LSTM. The operator keeps its states from one run to the next, unlike a Keras model. In float32, two
steps before the sequence close its gates and so clear the states. In int8 such large numbers have
no place, and the program that runs the file must clear the states.

A loop is a WHILE whose body is one step, so that the file holds it once. The converter refuses
Keras's own loops if the number of samples is unknown, because they fill lists. The loop here fills
a tensor. The converter cannot convert loops that compute in integers.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core.loops import loops_of, unrolled
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import LSTM

FORMS = ("steps", "loops", "cleared", "cleared, loops", "kept")
_FORM = {None: "cleared", "float16": "cleared", "int8": "kept", "int8_weights": "kept"}
_CLEARING_STEPS = 2
_FEWEST_STEPS = 4  # in a loop: fewer unrolled steps are as small
_CELLS = {
    keras.layers.LSTM: keras.layers.LSTMCell,
    keras.layers.GRU: keras.layers.GRUCell,
    keras.layers.SimpleRNN: keras.layers.SimpleRNNCell,
}
_SHUT = 100.0  # added to all else that goes into a gate, to shut it


def form_of(quantization: str | None, *, operators: bool = True, loops: bool = False) -> str:
    """Return what recurrent layers become, see `written_as`.

    Args:
        quantization: What the file is computed in.
        operators: Whether an LSTM may become one operator.
        loops: Whether other layers may become a loop.
    """
    form = _FORM.get(quantization, "steps") if operators else "steps"
    if loops and quantization in (None, "float16"):
        return {"steps": "loops", "cleared": "cleared, loops"}[form]
    return form


@contextlib.contextmanager
def written_as(model: keras.Model, specs: Sequence[tf.TensorSpec], form: str) -> Iterator[None]:
    """Run recurrent layers in the form in which they are written.

    Args:
        model: The model.
        specs: Its inputs.
        form: One of `FORMS`. Layers that cannot be one operator become loops or run step by step:
            layers with masks, with initial or returned states, with other activations, and all
            layers if the number of samples or steps is unknown. Layers with masks or custom cells
            cannot become loops.
    """
    layers = loops_of(model)
    operator = {"cleared": _cleared, "cleared, loops": _cleared, "kept": _lstm}.get(form)
    looped = [layer for layer in layers if form.endswith("loops") and _has_own_cell(layer)]
    backwards = {id(layer): layer.go_backwards for layer in layers}
    with unrolled(model, specs), contextlib.ExitStack() as stack:
        for layer in looped:
            stack.enter_context(_called_as(layer, backwards[id(layer)], _in_loop))
        for layer in layers:
            if operator is not None and _is_plain(layer):
                run = _as_operator(operator, _weights_of(layer))
                stack.enter_context(_called_as(layer, backwards[id(layer)], run))
        yield


def has_lstm(model: keras.Model) -> bool:
    """Return whether a model has layers that may become one operator each."""
    return any(_is_plain(layer) for layer in loops_of(model))


def _is_plain(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.LSTM
        and type(layer.cell) is keras.layers.LSTMCell
        and layer.cell.activation is keras.activations.tanh
        and layer.cell.recurrent_activation is keras.activations.sigmoid
        and not layer.return_state
    )


def _has_own_cell(layer: keras.Layer) -> bool:
    return type(layer.cell) is _CELLS.get(type(layer))


Run = Callable[[keras.Layer, Any, Sequence[Any]], tuple[Any, Any, list[Any]] | None]


@contextlib.contextmanager
def _called_as(layer: keras.Layer, backwards: bool, run: Run) -> Iterator[None]:
    """Let a layer call a function in place of its steps.

    Args:
        layer: The layer, which runs step by step.
        backwards: Whether it begins at the end of its sequences.
        run: Layer, sequences and states to the last outputs, all outputs and the last states; None
            where it cannot, and then the layer takes its steps.
    """
    own = vars(layer).get("inner_loop")
    steps = layer.inner_loop

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        found = None
        if mask is None and sequences.shape[1] is not None:
            forwards = tf.reverse(sequences, [1]) if backwards else sequences
            found = run(layer, forwards, initial_state)
        return steps(sequences, initial_state, mask, training) if found is None else found

    vars(layer)["inner_loop"] = inner_loop
    try:
        yield
    finally:
        if own is None:
            vars(layer).pop("inner_loop", None)
        else:
            vars(layer)["inner_loop"] = own


def _as_operator(
    operator: Callable[[Any, Sequence[np.ndarray]], Any], weights: Sequence[np.ndarray]
) -> Run:
    """Return what runs an LSTM as a function that the converter takes for one operator."""

    def run(layer: keras.Layer, x: Any, states: Sequence[Any]) -> Any:
        if None in x.shape or not _are_zeros(states):
            return None
        outputs = operator(x, weights)
        return outputs[:, -1], outputs, list(states)

    return run


def _in_loop(layer: keras.Layer, x: Any, states: Sequence[Any]) -> Any:
    """Run a recurrent layer as a loop of which the body is one step."""
    count = x.shape[1]
    if count < _FEWEST_STEPS:
        return None
    n = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
    whole = layer.return_sequences
    outputs = tf.zeros([n, count, layer.units] if whole else [n, layer.units])
    states = [tf.convert_to_tensor(state) for state in states]
    for state in states:
        state.set_shape([x.shape[0], layer.units])

    def step(number: Any, outputs: Any, *states: Any) -> Any:
        found, states = layer.cell(tf.gather(x, number, axis=1), list(states), training=False)
        if whole:
            found = tf.where((tf.range(count) == number)[:, None], found[:, None], outputs)
        return (number + 1, found, *states)

    begin = (tf.constant(0), outputs, *states)
    _, outputs, *states = tf.while_loop(lambda number, *_: number < count, step, begin)
    return (outputs[:, -1] if whole else outputs), (outputs if whole else outputs[:, None]), states


def _are_zeros(states: Sequence[Any]) -> bool:
    found = [tf.get_static_value(tf.convert_to_tensor(state)) for state in states]
    return all(value is not None and not np.any(value) for value in found)


def _weights_of(layer: keras.Layer) -> list[np.ndarray]:
    """Return kernel, recurrent kernel and bias, in the order i, f, c, o of the gates."""
    cell = layer.cell
    found = [keras.ops.convert_to_numpy(v) for v in (cell.kernel, cell.recurrent_kernel)]
    bias = np.zeros(4 * layer.units) if cell.bias is None else cell.bias
    return [np.asarray(value, np.float32) for value in (*found, bias)]


def _lstm(x: Any, weights: Sequence[np.ndarray]) -> Any:
    """Return the outputs ``[batch, steps, units]`` of an LSTM; this function is marked."""
    marks = {"api_implements": f"lstm_{uuid.uuid4().hex}", "api_preferred_device": "CPU"}

    @tf.function(experimental_attributes={**marks, "time_major": False, "go_backwards": False})
    def lstm(x: Any, h: Any, c: Any, kernel: Any, recurrent: Any, bias: Any) -> Any:
        # The converter replaces this code. It runs if the converter does not.
        outputs = []
        for step in range(x.shape[1]):
            gates = tf.split(x[:, step] @ kernel + h @ recurrent + bias, 4, axis=1)
            i, f, o = (tf.sigmoid(gates[place]) for place in (0, 1, 3))
            c = f * c + i * tf.tanh(gates[2])
            h = o * tf.tanh(c)
            outputs.append(h)
        return h, tf.stack(outputs, axis=1), h, c, tf.constant(0.0)

    state = tf.zeros([x.shape[0], len(weights[1])])
    return lstm(x, state, state, *map(tf.constant, weights))[1]


def _cleared(x: Any, weights: Sequence[np.ndarray]) -> Any:
    """Return the outputs of an LSTM that first clears its states.

    An additional input is 1 in two steps before the sequence and 0 during it. Its weights shut the
    gates whatever the states are, because the states that enter a gate lie between -1 and 1.
    """
    kernel, recurrent, bias = weights
    units = len(recurrent)
    shut = -(_SHUT + np.abs(bias) + np.abs(recurrent).sum(axis=0))
    shut[2 * units : 3 * units] = 0  # the candidate, which is not a gate
    steps = np.zeros((x.shape[0], _CLEARING_STEPS, x.shape[2] + 1), np.float32)
    steps[..., -1] = 1
    marked = tf.concat([steps, tf.pad(x, [[0, 0], [0, 0], [0, 1]])], axis=1)
    kernel = np.concatenate([kernel, shut[None].astype(np.float32)])
    return _lstm(marked, [kernel, recurrent, bias])[:, _CLEARING_STEPS:]


def recurrent_notes(model: keras.Model, file: Any, size: int, batch: int | None) -> Iterator[str]:
    """Yield notes about the recurrent layers in a file.

    Args:
        model: The Keras model.
        file: The ``ModelT`` that was made of it.
        size: The bytes of the file.
        batch: The number of samples at a time that it fixes, or None.
    """
    graph = file.subgraphs[0]
    operators = [op for op in graph.operators if fb.operator_name(file, op) == LSTM]
    types = {fb.dtypes().get(graph.tensors[int(op.inputs[2])].type) for op in operators}
    if np.dtype(np.int8) in types:
        yield (
            f"{LSTM} keeps its states from one run to the next: clear them before each sequence, "
            "by reset_all_variables() in Python, ResetVariableTensors() in C++, Reset() in "
            "TensorFlow Lite Micro; tflite_predict does"
        )
    layers = loops_of(model)
    loops = sum(fb.operator_name(file, op) == "WHILE" for op in graph.operators)
    if len(operators) + loops >= len(layers):
        return
    stored = sum(len(buffer.data) for buffer in file.buffers if buffer.data is not None)
    names = ", ".join(layer.name for layer in layers)
    advice = ""
    if has_lstm(model) and batch is None:
        advice = "; with batch_size=1 an LSTM becomes one operator"
    yield (
        f"recurrent layers ({names}) are unrolled, one step after another: {size - stored:,} of "
        f"{size:,} bytes are {len(graph.operators):,} operators and their tensors, not "
        f"weights{advice}"
    )
