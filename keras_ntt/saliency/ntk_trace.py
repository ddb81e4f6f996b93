"""NTK trace: how much a weight's removal changes the trace of the tangent kernel."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.core.network import Network, unroll
from keras_ntt.ntk.empirical import kernel_matrix, tangents
from keras_ntt.ntk.least_memory import check_memory, derivatives_memory
from keras_ntt.saliency.base import NetworkSaliency, Subject, gradient
from keras_ntt.saliency.data import sample_count

_AT_ONCE = 8
"""Samples per kernel. It has n squared entries for n samples, and only the diagonal counts."""


class NTKTrace(NetworkSaliency):
    """Score weights by the sensitivity of the tangent kernel's trace, exactly and on data.

    The score is the absolute derivative, with respect to each entry of the mask m at its present
    value, of the mean over samples and outputs of the diagonal of the tangent kernel at ``m * w``.
    No labels are needed. `NTKSAP` estimates the same by finite differences, up to factors of
    epsilon and of the number of outputs.

    Args:
        rounds: The default number of rounds in which to prune.
        wrt: ``"kept"``: the kernel with derivatives with respect to w, in which masked weights do
            not count. ``"all"``: the kernel with derivatives with respect to ``m * w``, as in
            `keras_ntt.empirical_ntk`.
    """

    needs_data: ClassVar[bool] = True
    takes_logits = True

    def __init__(self, *, rounds: int = 1, wrt: str = "kept"):
        checks.check_choice("wrt", wrt, ("all", "kept"))
        self.rounds = checks.check_count("rounds", rounds)
        self.wrt = wrt

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the scores."""
        checks.check_differentiable(subject.model)
        network = unroll(subject.network)
        masks = list(subject.masks)
        total, count = [tf.zeros_like(m) for m in masks], 0
        for x, _ in subject.batches():
            n = sample_count(x)
            self._check_memory(subject, network.bound_to(x), min(n, _AT_ONCE))
            for start in range(0, n, _AT_ONCE):
                some = keras.tree.map_structure(lambda a, s=start: a[s : s + _AT_ONCE], x)
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(masks)
                    trace = self._trace(subject, network, some, masks)
                total = [t + g for t, g in zip(total, gradient(tape, trace, masks), strict=True)]
            count += n
        return [tf.abs(t) / count for t in total]

    def _check_memory(self, subject: Subject, network: Network, samples: int) -> None:
        """Raise a ValueError if there is less memory than the derivatives need at the least."""
        bytes_each = tf.as_dtype(subject.model.compute_dtype).size
        check_memory(
            derivatives_memory(samples, network.output_size, None, None, bytes_each),
            "Take saliency='ntk_sap', which estimates the same without derivatives of outputs.",
            lambda: f"{subject.model.name!r} with {network.output_size} outputs",
        )

    def _trace(
        self, subject: Subject, network: Network, x: Any, masks: list[tf.Tensor]
    ) -> tf.Tensor:
        """Return the sum over samples of the diagonal's mean over outputs, at ``m * w``."""
        values = {
            id(v): (v, w * m)
            for v, w, m in zip(subject.variables, subject.weights, masks, strict=True)
        }
        found = tangents(network, x, values)
        through = None
        if self.wrt == "kept":
            # d f / d w = m * d f / d (m w), and the kernel has it twice.
            through = {id(v): tf.square(m) for v, m in zip(subject.variables, masks, strict=True)}
        matrix = kernel_matrix(found.factors, found.factors, masks=through, trace=True)
        return tf.linalg.trace(matrix) / found.outputs.shape[1]
