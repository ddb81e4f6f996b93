"""Repair a model that lost channels, from unlabelled inputs: least squares, layer after layer.

Each Dense and convolutional layer is fitted to what the same layer of the dense model returns on
the same inputs, before its activation, given what it reads in the smaller model: errors of earlier
layers are corrected, too. Statistics of BatchNormalization are estimated again on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.resize import Removal
from keras_ntt.core.network import Call, Network, unroll
from keras_ntt.pruning.channels import linear
from keras_ntt.pruning.post_training.batch_norm import moments_of
from keras_ntt.pruning.post_training.moments import Moments
from keras_ntt.pruning.post_training.refit import bias_shift, damped, solve
from keras_ntt.pruning.post_training.walk import Arguments

DAMPING = 0.01
"""How much the fit is held back, relative to the mean variance of what a layer reads."""


def repair(removal: Removal, smaller: keras.Model, batches: Sequence[Any]) -> None:
    """Fit the layers of a smaller model to those of the model that it was made of.

    Args:
        removal: What was removed.
        smaller: The smaller model. It is changed in place.
        batches: Inputs, nested as the models take them. They are held with what the layers make of
            them as long as later layers need it.
    """
    _Repair(removal, smaller, batches).run()


class _Repair:
    """Two networks that are run side by side, call by call, on all batches."""

    def __init__(self, removal: Removal, smaller: keras.Model, batches: Sequence[Any]):
        self.networks: tuple[Network, Network] = (removal.graph.network, unroll(smaller))
        self._removal = removal
        self._tensors = tuple(
            [dict(zip(network.inputs, network.prepare(batch), strict=True)) for batch in batches]
            for network in self.networks
        )
        dense = self.networks[0]
        self._last = {slot: len(dense.calls) for slot in dense.outputs}
        for number, call in reversed(list(enumerate(dense.calls))):
            for slot in call.inputs:
                self._last.setdefault(slot, number)
        self._times: dict[int, int] = {}
        for call in dense.calls:
            self._times[id(call.operation)] = self._times.get(id(call.operation), 0) + 1
        self._kept = {
            id(axis.variable): removal.keeps(axis.labels)
            for axis in removal.graph.weights
            if axis.role == "out" and axis.labels is not None and len(axis.variable.shape) > 1
        }

    def run(self) -> None:
        """Repair all layers."""
        changed: set[int] = set()  # slots that differ from those of the dense model
        for number, (old, new) in enumerate(zip(*(n.calls for n in self.networks), strict=True)):
            layer = new.operation
            reads_changed = any(slot in changed for slot in new.inputs)
            once = self._times[id(old.operation)] == 1
            if reads_changed and once and linear.is_linear(layer):
                self._fit(number, old, new)
            elif reads_changed and isinstance(layer, layers.BatchNormalization) and once:
                self._estimate(new)
            shapes = (getattr(call.operation, "weights", ()) for call in (old, new))
            resized = [[tuple(w.shape) for w in weights] for weights in shapes]
            if reads_changed or resized[0] != resized[1]:
                changed |= set(new.outputs)
            self._advance(number)

    def _fit(self, number: int, old: Call, new: Call) -> None:
        """Fit a layer's kernel and bias."""
        mine, theirs = new.operation, old.operation
        weights, targets = linear.matrix(mine), linear.matrix(theirs)
        kept = self._kept.get(id(host.kernel_of(theirs)))
        offset = linear.bias(theirs)
        if kept is not None:
            targets = targets[:, kept]
            offset = None if offset is None else offset[kept]
        centred = offset is not None or self._is_normalized(number)
        moments = Moments()
        for dense, own in zip(*self._tensors, strict=True):
            read, wanted = own[new.inputs[0]], dense[old.inputs[0]]
            for piece in linear.pieces_of(theirs, wanted):
                x = np.asarray(linear.patches(mine, read[piece]))
                rows = np.asarray(linear.patches(theirs, wanted[piece]))
                moments.add(x[None], (rows @ targets.astype(rows.dtype))[None])
        found = moments.statistics(centred=centred)
        if not np.isfinite(found.hessian).all() or not np.isfinite(found.cross).all():
            return  # a layer that reads nothing finite is left as it is
        fitted = solve(damped(found, weights[None], damping=DAMPING)[0])
        kernel = host.kernel_of(mine)
        assert kernel is not None
        kernel.assign(fitted.reshape(kernel.shape))
        if offset is not None:
            mine.bias.assign(offset + bias_shift(found, fitted[None])[0])

    def _is_normalized(self, number: int) -> bool:
        """Tell whether all that reads a call's output takes its mean away."""
        call = self.networks[1].calls[number]
        readers = [
            other.operation
            for other in self.networks[1].calls
            if set(other.inputs) & set(call.outputs)
        ]
        ends = set(call.outputs) & set(self.networks[1].outputs)
        plain = all(isinstance(reader, layers.BatchNormalization) for reader in readers)
        return bool(readers) and plain and not ends and call.operation.activation in _LINEAR

    def _estimate(self, new: Call) -> None:
        """Set the statistics of a BatchNormalization layer to those of what it reads."""
        layer, slot = new.operation, new.inputs[0]
        calls = (Arguments((own[slot],), {}) for own in self._tensors[1])
        found = moments_of(calls, layer.axis)
        layer.moving_mean.assign(found.mean)
        layer.moving_variance.assign(found.variance)

    def _advance(self, number: int) -> None:
        """Run the next call of both networks, and forget what no later call reads."""
        for network, batches in zip(self.networks, self._tensors, strict=True):
            call = network.calls[number]
            for tensors in batches:
                args, kwargs = call.with_tensors([tensors[slot] for slot in call.inputs])
                outputs = keras.tree.flatten(call.operation(*args, **kwargs))
                tensors.update(zip(call.outputs, outputs, strict=True))
                for slot in [s for s in tensors if self._last.get(s, -1) <= number]:
                    del tensors[slot]


_LINEAR = (None, keras.activations.linear)
