"""Convert a densely stored LiteRT model to the form that a target needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras_ntt.litert.format import storage
from keras_ntt.litert.format.rewrite import Key, rewrite, trimmed
from keras_ntt.litert.format.storage import Choice
from keras_ntt.litert.format.weights import Weight, weights_of
from keras_ntt.litert.runtimes import closed
from keras_ntt.litert.xnnpack import verdict as verdicts

TARGETS = ("size", "latency", "int8", "dense")

Choices = dict[Key, tuple[Weight, Choice]]


@dataclass(frozen=True)
class Reencoded:
    """A model whose weights are stored as a target needs them.

    Attributes:
        model: The ``ModelT``.
        choices: How each weight is stored, by graph and tensor of the model it came from.
        verdict: What XNNPACK will do with it.
        notes: What prevented smaller or faster storage.
    """

    model: Any
    choices: Choices
    verdict: verdicts.Verdict
    notes: tuple[str, ...] = ()


def reencode(
    model: Any, *, target: str = "size", int8: bool = False, cpu: str = "any"
) -> Reencoded:
    """Store the weights of a model as a target needs them.

    DENSIFY is used only if XNNPACK then computes the right outputs. A file that TensorFlow Lite
    Micro would load and compute wrongly is changed so that it does not load there.

    Args:
        model: A ``ModelT`` with densely stored weights. It is not changed.
        target: One of `TARGETS`; ``"int8"`` and ``"dense"`` change nothing.
        int8: Whether weights may be rounded to int8.
        cpu: The processor for ``"latency"``: ``"x86"``, ``"arm"`` or ``"any"``.

    Returns:
        The new model and the reasons.
    """
    if target == "size":
        model = trimmed(model)
    weights = {(w.subgraph, w.tensor): w for w in weights_of(model)}
    if target == "size":
        return _small(model, weights, int8)
    if target == "latency":
        return _fast(model, weights, int8, cpu)
    kept = {k: (w, storage.dense(w, f'target="{target}"')) for k, w in weights.items()}
    return _apply(model, kept)


def _apply(model: Any, choices: Choices, notes: tuple[str, ...] = ()) -> Reencoded:
    changed = closed(rewrite(model, choices))
    return Reencoded(changed, choices, verdicts.predict(changed), notes)


def _small(model: Any, weights: dict[Key, Weight], int8: bool) -> Reencoded:
    def chosen(densify: bool) -> Choices:
        return {k: (w, storage.smallest(w, int8=int8, densify=densify)) for k, w in weights.items()}

    found = _apply(model, chosen(True))
    if found.verdict.kind != "wrong":
        return found
    note = (
        "no DENSIFY is written, because XNNPACK would compute wrong outputs on ARM: "
        f"{'; '.join(found.verdict.reasons)}"
    )
    return _apply(model, chosen(False), (note,))


def _fast(model: Any, weights: dict[Key, Weight], int8: bool, cpu: str) -> Reencoded:
    verdict = verdicts.predict(model, hint=True)
    sparse = verdict.tensors if verdict.kind == "sparse" else frozenset[Key]()
    sparse &= {k for k, w in weights.items() if w.is_pointwise}
    choices = {
        k: (w, storage.fastest(w, cpu=cpu, sparse_inference=k in sparse, int8=int8))
        for k, w in weights.items()
    }
    notes = (
        ()
        if verdict.kind != "wrong"
        else (
            "sparse inference is not used, because XNNPACK would compute wrong outputs on ARM: "
            f"{'; '.join(verdict.reasons)}",
        )
    )
    return _apply(model, choices, notes)
