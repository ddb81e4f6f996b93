"""How much the outputs of a model depend on each channel of its layers, without labels.

For one random normal combination of the outputs of each sample, the squared derivative with
respect to a channel is, on average, the sum of the squared derivatives of all outputs. Summed over
positions, it says what a squared error of the channel costs at the outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.network import unroll
from keras_ntt.pruning.post_training.logits import Heads, heads_of
from keras_ntt.pruning.post_training.problems import Problem

_BYTES = 2**30  # of outputs that a derivative holds
_COPIES = 3  # it holds of each, for normalizations and activations


def output_sensitivity(
    model: keras.Model, batches: Sequence[Any], problems: Sequence[Problem], *, seed: int = 0
) -> list[np.ndarray | None]:
    """Return the sensitivity of a model's outputs to those of some kernels.

    Args:
        model: The model.
        batches: Batches of inputs, nested as the model takes them.
        problems: The kernels.
        seed: Seed of the random combinations.

    Returns:
        For each kernel ``[groups, outputs]``: the mean over samples of the squared derivative,
        summed over positions. Of recurrent layers it is that of the units that they return, for
        each gate. None where the outputs do not depend on it, or no derivative can be taken.
    """
    heads = heads_of(model, batches[0])
    owners = [_owners(heads.model, problem) for problem in problems]
    every = {id(layer): layer for some in owners for layer in some}
    sums: dict[int, np.ndarray] = {}
    count = 0
    for number, batch in enumerate(_in_parts(heads.model, batches)):
        for key, found in _squares(heads, batch, every, (seed, number)).items():
            sums[key] = sums.get(key, 0.0) + found
        count += int(keras.tree.flatten(batch)[0].shape[0])
    totals = [[sums[id(layer)] for layer in some if id(layer) in sums] for some in owners]
    return [
        _of_problem(p, np.sum(t, axis=0) if t else None, count)
        for p, t in zip(problems, totals, strict=True)
    ]


def _owners(model: keras.Model, problem: Problem) -> list[Any]:
    """Return the layers of a model that use a kernel.

    Without the last activation a model has another layer with the same variables in place of one,
    or beside one that is called elsewhere, too.
    """
    kind, wanted = type(problem.layer), id(problem.variable)
    return [
        layer
        for layer in host.layers_of(model)
        if type(layer) is kind and any(id(v) == wanted for v in layer.variables)
    ]


def _in_parts(model: keras.Model, batches: Sequence[Any]) -> Iterator[Any]:
    """Cut batches so that what a derivative holds of the layers' outputs fits into memory."""
    one = keras.tree.map_structure(lambda a: tf.convert_to_tensor(a[:1]), batches[0])
    most = max(1, _BYTES // max(_COPIES * _bytes_of_outputs(model, one), 1))
    for batch in batches:
        count = int(keras.tree.flatten(batch)[0].shape[0])
        for start in range(0, count, most):
            yield keras.tree.map_structure(lambda a, s=start: a[s : s + most], batch)


def _bytes_of_outputs(model: keras.Model, x: Any) -> int:
    """Return what the outputs of all calls of a model take together."""
    network = unroll(model).bound_to(x)
    tensors = dict(zip(network.inputs, network.prepare(x), strict=True))
    total = 0
    for call in network.calls:
        args, kwargs = call.with_tensors([tensors[slot] for slot in call.inputs])
        found = keras.tree.flatten(call.operation(*args, **kwargs))
        tensors.update(zip(call.outputs, found, strict=True))
        total += sum(int(np.prod(y.shape)) * y.dtype.size for y in found if tf.is_tensor(y))
    return total


def _of_problem(problem: Problem, total: np.ndarray | None, count: int) -> np.ndarray | None:
    layout = problem.layout
    if total is None or layout is None or not np.isfinite(total).all() or not total.any():
        return None
    mean = total / count
    columns = layout.groups * layout.outputs
    if problem.is_whole_output:
        return mean.reshape(layout.groups, layout.outputs) if mean.size == columns else None
    if isinstance(problem.layer, layers.RNN):
        return np.tile(mean, columns // mean.size).reshape(layout.groups, layout.outputs)
    return np.full((layout.groups, layout.outputs), mean.mean())


def _squares(
    heads: Heads,
    batch: Any,
    owners: dict[int, Any],
    seed: tuple[int, int],
) -> dict[int, np.ndarray]:
    """Return ``id(layer) -> sum over samples and positions`` of one batch."""
    probes: list[tuple[Any, tf.Tensor]] = []
    with tf.GradientTape() as tape, _probed(owners.values(), probes, tape):
        logits = heads.logits(batch, training=False)
        loss = tf.add_n(
            [
                tf.reduce_sum(
                    tf.random.stateless_normal(tf.shape(y), (seed[0], 31 * seed[1] + i)) * y
                )
                for i, y in enumerate(logits)
            ]
        )
    found: dict[int, np.ndarray] = {}
    gradients = tape.gradient(loss, [probe for _, probe in probes])
    for (layer, _), gradient in zip(probes, gradients, strict=True):
        if gradient is not None:
            square = _by_channel(layer, np.asarray(gradient, np.float64) ** 2)
            found[id(layer)] = found.get(id(layer), 0.0) + square
    return found


def _by_channel(layer: Any, squares: np.ndarray) -> np.ndarray:
    """Sum over samples and positions; what is left are the channels of the outputs."""
    if getattr(layer, "data_format", None) == "channels_first":
        squares = np.moveaxis(squares, 1, -1)
    if isinstance(layer, layers.EinsumDense):
        operands, _, result = layer.equation.replace(" ", "").partition("->")
        x_labels, _, labels = operands.partition(",")
        named = result.replace("...", "")
        shared = [a for a in named if a in labels and a in x_labels]
        outputs = [a for a in named if a in labels and a not in x_labels]
        squares = squares.reshape(-1, *squares.shape[squares.ndim - len(named) :])
        # In the order of the kernel's own axes, as its matrix has them.
        wanted = [a for a in labels if a in shared] + [a for a in labels if a in outputs]
        position = [named.index(a) + 1 for a in wanted]
        rest = tuple(i for i in range(squares.ndim) if i not in position)
        return squares.transpose(*rest, *position).sum(axis=tuple(range(len(rest)))).ravel()
    return squares.reshape(-1, squares.shape[-1]).sum(axis=0)


@contextlib.contextmanager
def _probed(
    owners: Any, probes: list[tuple[Any, tf.Tensor]], tape: tf.GradientTape
) -> Iterator[None]:
    """Add zeros to the outputs of layers, before their activations, that a tape watches."""

    def probe(layer: Any, y: tf.Tensor) -> tf.Tensor:
        zeros = tf.zeros_like(y)
        tape.watch(zeros)
        probes.append((layer, zeros))
        return y + zeros

    changed: list[tuple[Any, str, Any]] = []
    try:
        for layer in owners:
            recurrent = isinstance(layer, layers.RNN)
            name = (
                "call" if recurrent or getattr(layer, "activation", None) is None else "activation"
            )
            changed.append((layer, name, vars(layer).get(name)))
            vars(layer)[name] = _with_probe(
                layer, getattr(layer, name), probe, before=name != "call"
            )
        yield
    finally:
        for layer, name, held in changed:
            if held is None:
                vars(layer).pop(name, None)
            else:
                vars(layer)[name] = held


def _with_probe(layer: Any, true: Any, probe: Any, *, before: bool) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        if before:
            return true(probe(layer, args[0]), *args[1:], **kwargs)
        found = true(*args, **kwargs)
        if isinstance(found, list | tuple):
            return type(found)([probe(layer, found[0]), *found[1:]])
        return probe(layer, found)

    return function
