"""Structured derivatives of LSTM, GRU and SimpleRNN: loops through time.

A cell multiplies its input and its previous state by kernels, ``a[t] = x[t] @ kernel`` and ``r[t] =
h[t-1] @ recurrent_kernel``; all other operations are elementwise. So the derivative of a state with
respect to a gate or an earlier state is one number per entry, the same for all outputs of the
network. The cotangents go backwards through time in a loop of products with these numbers and with
the recurrent kernel. The cotangents of ``a`` and ``r`` are those of affine layers with a position
for each step.

Both loops are in the graph. Neither is the derivative of another loop, which TensorFlow could not
differentiate again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.kinds import kind_of
from keras_ntt.ntk.factors import AffineFactor, Factor, JacobianFactor, full_precision
from keras_ntt.ntk.layer_rules.base import Cotangents, Linearization
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.weightless import copies_of

Tensors = list[tf.Tensor]


def _lstm(cell: Any, a: Tensors, r: Tensors, states: Tensors) -> Tensors:
    i, f, g, o = (x + y for x, y in zip(a, r, strict=True))
    carried = cell.recurrent_activation(f) * states[1]
    carried += cell.recurrent_activation(i) * cell.activation(g)
    return [cell.recurrent_activation(o) * cell.activation(carried), carried]


def _gru(cell: Any, a: Tensors, r: Tensors, states: Tensors) -> Tensors:
    update = cell.recurrent_activation(a[0] + r[0])
    reset = cell.recurrent_activation(a[1] + r[1])
    return [update * states[0] + (1 - update) * cell.activation(a[2] + reset * r[2])]


def _simple(cell: Any, a: Tensors, r: Tensors, states: Tensors) -> Tensors:
    return [cell.activation(a[0] + r[0])]


@dataclass(frozen=True)
class Form:
    """The computation of a type of cell.

    Attributes:
        gates: The number of gates; the kernel of the input has so many times the units.
        states: The number of its states; the first is its output, which the recurrent kernel
            multiplies.
        step: The new states, from the products with the input and with the state for each gate,
            and from the old states, all ``[..., units]`` and all entry by entry.
    """

    gates: int
    states: int
    step: Callable[[Any, Tensors, Tensors, Tensors], Tensors]


FORMS = {
    layers.LSTMCell: Form(4, 2, _lstm),
    layers.GRUCell: Form(3, 1, _gru),  # with `reset_after`
    layers.SimpleRNNCell: Form(1, 1, _simple),
}


class Recurrent(Linearization):
    """A call of a recurrent layer.

    Args:
        layer: The layer.
        sequences: ``[n, t, k]``.
        mask: Which steps count, ``[n, t]``; None for all.
        initial: The initial states, each ``[n, units]``; None for zeros.
    """

    def __init__(
        self,
        layer: Any,
        sequences: tf.Tensor,
        mask: tf.Tensor | None = None,
        initial: Sequence[tf.Tensor] | None = None,
    ):
        cell = layer.cell
        self._layer, self._units = layer, cell.units
        self._form = FORMS[kind_of(cell)]
        self._dtype = tf.as_dtype(cell.compute_dtype)
        self._length = sequences.shape[1]
        self._steps = tf.shape(sequences)[1] if self._length is None else self._length
        # In the order of the steps; from here on the steps are the first axis.
        self._inputs = self._in_order(tf.cast(sequences, self._dtype))
        masks = None if mask is None else tf.cast(self._in_order(mask), self._dtype)
        self._kernel, self._recurrent = map(self._value, (cell.kernel, cell.recurrent_kernel))
        a = tf.matmul(self._inputs, self._kernel)
        self._by_state: tf.Tensor | None = None
        if cell.use_bias:
            bias = self._value(cell.bias)
            if bias.shape.rank == 2:  # one added to each product
                bias, self._by_state = tf.unstack(bias)
            a += bias
        a = self._gates(_steps_first(a))
        self._masks = None if masks is None else _steps_first(masks)[..., None]

        zeros = tf.zeros([tf.shape(sequences)[0], self._units], self._dtype)
        zeros.set_shape([sequences.shape[0], self._units])
        first = [zeros] * self._form.states
        if initial is not None:
            first = [tf.cast(state, self._dtype) for state in initial]
        read = [a] if mask is None else [a, self._masks]
        after = tf.scan(self._forward, read, tuple(first))
        self._a = a
        self._before = [tf.concat([s[None], x[:-1]], 0) for s, x in zip(first, after, strict=True)]
        output = after[0]
        if self._masks is not None and layer.zero_output_for_mask:
            output *= self._masks
        output = _steps_first(output) if layer.return_sequences else output[-1]
        if mask is not None and layer.return_sequences:
            host.set_mask(output, mask)
        self.outputs = [output]
        if layer.return_state:
            self.outputs += [state[-1] for state in after]

    def _value(self, variable: keras.Variable) -> tf.Tensor:
        return tf.cast(host.value_of(variable), self._dtype)

    def _in_order(self, x: tf.Tensor) -> tf.Tensor:
        """Put ``[n, t, ...]`` into the order in which the layer reads and writes, or back."""
        return tf.reverse(x, [1]) if self._layer.go_backwards else x

    def _gates(self, x: tf.Tensor) -> tf.Tensor:
        """Split the last axis of ``[t, n, gates * units]`` into gates."""
        shape = tf.shape(x)
        return tf.reshape(x, [shape[0], shape[1], self._form.gates, self._units])

    def _product(self, state: tf.Tensor) -> tf.Tensor:
        """Multiply a state ``[..., units]`` by the recurrent kernel."""
        product = tf.matmul(state, self._recurrent)
        return product if self._by_state is None else product + self._by_state

    def _new(
        self, a: tf.Tensor, r: tf.Tensor, states: Sequence[tf.Tensor], mask: tf.Tensor | None
    ) -> Tensors:
        """Return the states after a step; masked steps do not change them."""
        a, r = tf.unstack(a, axis=-2), tf.unstack(r, axis=-2)
        new = self._form.step(self._layer.cell, a, r, list(states))
        if mask is None:
            return new
        return [mask * x + (1 - mask) * y for x, y in zip(new, states, strict=True)]

    def _forward(self, states: tuple[tf.Tensor, ...], read: Tensors) -> tuple[tf.Tensor, ...]:
        a, *mask = read
        r = tf.reshape(self._product(states[0]), tf.shape(a))
        new = self._new(a, r, states, mask[0] if mask else None)
        return tuple(tf.ensure_shape(x, s.shape) for x, s in zip(new, states, strict=True))

    def _slopes(self) -> tuple[list, list, list]:
        """Differentiate each new state, at all steps at once.

        Returns:
            For each state its derivatives with respect to the products with the input and with the
            state, ``[t, n, gates, units]``, and a list of those with respect to the old states,
            ``[t, n, units]``.
        """
        r = self._gates(self._product(self._before[0]))
        before = [tf.identity(state) for state in self._before]  # apart from what r is made of
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([self._a, r, *before])
            after = self._new(self._a, r, before, self._masks)
        by_a, by_r, by_before = zip(
            *(
                tape.gradient(
                    new,
                    [self._a, r, before],
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
                for new in after
            ),
            strict=True,
        )
        return list(by_a), list(by_r), list(by_before)

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        copies = copies_of(cotangents)
        upstream = self._upstream(cotangents, copies)
        slopes_a, slopes_r, slopes_before = self._slopes()
        # At each step the slopes of the next step; zero after the last one.
        later = tf.nest.map_structure(
            lambda x: tf.concat([x[1:], tf.zeros_like(x[:1])], 0), (slopes_r, slopes_before)
        )
        deltas = tf.scan(
            lambda after, read: tuple(
                x + y for x, y in zip(read[0], self._pulled(after, *read[1]), strict=True)
            ),
            (tuple(upstream), later),
            tuple(tf.zeros_like(x[0]) for x in upstream),
            reverse=True,
        )
        by_a, by_r = self._at_gates(deltas, slopes_a), self._at_gates(deltas, slopes_r)
        back: list[Stacked | None] = [None] * len(wanted)
        if wanted[0]:
            by_input = self._in_order(tf.matmul(by_a, self._kernel, transpose_b=True))
            back[0] = Stacked(by_input, copies)
        if any(wanted[1:]):
            first = tf.nest.map_structure(lambda x: x[0], (deltas, slopes_r, slopes_before))
            for i, x in enumerate(self._pulled(*first), 1):
                back[i] = Stacked(tf.reshape(x, [-1, self._units]), copies)
        return back, self._factors(by_a, by_r, copies)

    def _upstream(self, cotangents: Cotangents, copies: int) -> Tensors:
        """Return the cotangents of all states, ``[t, n, c, units]``, without later steps."""
        output, *states = (None if ct is None else ct.tensor for ct in cotangents)
        n, units = tf.shape(self._inputs)[0], self._units
        last = [tf.zeros([n * copies, units], self._dtype)] * self._form.states
        for i, state in enumerate(states):
            if state is not None:
                last[i] += tf.cast(state, self._dtype)
        mask = self._masks if self._layer.zero_output_for_mask else None
        if output is not None and not self._layer.return_sequences:
            output = tf.reshape(tf.cast(output, self._dtype), [n, copies, units])
            output = output if mask is None else output * mask[-1][:, None]
            last[0] += tf.reshape(output, [-1, units])
        found = [
            tf.pad(tf.reshape(x, [1, n, copies, units]), [[self._steps - 1, 0], *[[0, 0]] * 3])
            for x in last
        ]
        if output is not None and self._layer.return_sequences:
            output = _steps_first(tf.cast(output, self._dtype))
            output = tf.reshape(output, [self._steps, n, copies, units])
            found[0] += output if mask is None else output * mask[:, :, None]
        return found

    def _pulled(self, deltas: Any, by_r: Any, by_before: Any) -> Tensors:
        """Propagate cotangents ``[n, c, units]`` of the states back through one step."""
        at_r = sum(x[:, :, None] * by[:, None] for x, by in zip(deltas, by_r, strict=True))
        flat = tf.reshape(at_r, [-1, self._form.gates * self._units])
        product = tf.matmul(flat, self._recurrent, transpose_b=True)
        pulled = [
            sum(x * by[i][:, None] for x, by in zip(deltas, by_before, strict=True))
            for i in range(self._form.states)
        ]
        pulled[0] += tf.reshape(product, tf.shape(deltas[0]))
        return [tf.ensure_shape(x, deltas[0].shape) for x in pulled]

    def _at_gates(self, deltas: Any, slopes: Tensors) -> tf.Tensor:
        """Return the cotangents of the products at all steps, ``[n * c, t, gates * units]``."""
        found = sum(x[:, :, :, None] * by[:, :, None] for x, by in zip(deltas, slopes, strict=True))
        width = self._form.gates * self._units
        found = tf.reshape(found, [self._steps, -1, width])
        found = _steps_first(found)
        found.set_shape([None, self._length, width])
        return found

    def _factors(self, by_a: tf.Tensor, by_r: tf.Tensor, copies: int) -> list[Factor]:
        cell = self._layer.cell
        factors: list[Factor] = []
        if cell.kernel.trainable:
            factors.append(AffineFactor(self._inputs, by_a, copies, 1, cell.kernel, None))
        if cell.recurrent_kernel.trainable:
            kernel = cell.recurrent_kernel
            before = _steps_first(self._before[0])
            factors.append(AffineFactor(before, by_r, copies, 1, kernel, None))
        if cell.use_bias and cell.bias.trainable:
            parts = [by_a] if self._by_state is None else [by_a, by_r]
            sums = [tf.reduce_sum(full_precision(part), 1) for part in parts]
            factors.append(JacobianFactor(tf.concat(sums, 1), copies, (cell.bias,)))
        return factors


def _steps_first(x: tf.Tensor) -> tf.Tensor:
    """Swap the first two axes."""
    return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])
