"""What a reader should know about an exported file, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from keras_ntt.litert.benchmark import cpu_class
from keras_ntt.litert.inspect import StoredWeight
from keras_ntt.litert.xnnpack import Verdict

SPARSE_ENOUGH = 0.3  # below it nobody calls a weight pruned


def warnings(weights: Sequence[StoredWeight], verdict: Verdict) -> Iterator[str]:
    """Yield what one should not expect of a file.

    Args:
        weights: Its weights.
        verdict: What XNNPACK does with it.
    """
    pruned = [w for w in weights if w.sparsity >= SPARSE_ENOUGH]
    kept_dense = [w for w in pruned if w.storage == "dense"]
    if kept_dense and len(kept_dense) == len(pruned):
        yield (
            "pruned weights are stored densely: size and latency are those of the dense model, "
            "and only a compressed copy of the file is smaller"
        )
        if any(w.dtype == "int8" for w in kept_dense):
            yield (
                "weights that are computed with in int8 stay dense: with XNNPACK, LiteRT does not "
                "load sparse ones"
            )
    if any(w.storage == "densify" for w in weights):
        yield (
            "DENSIFY unpacks weights when the file is loaded: it needs as much memory as a dense "
            "one, and runtimes without DENSIFY (microcontrollers, some GPU and NPU delegates) "
            "do not load it"
        )
    if any(w.storage == "direct" for w in weights):
        yield (
            "the sparse fully-connected kernel runs on one thread and takes time in proportion to "
            "the batch: it is slower than the dense kernel at batches above about 4, and below "
            "about 92% zeros on x86 with AVX or 80% on ARM"
        )
    if verdict.kind == "sparse":
        yield (
            "XNNPACK computes this file sparsely on ARM, WebAssembly and x86 without AVX; on x86 "
            f"with AVX it computes densely (this host is an {cpu_class()})"
        )
    if verdict.kind == "dense" and any(_is_pointwise(w) for w in pruned):
        yield f"1x1 convolutions are computed densely everywhere: {'; '.join(verdict.reasons)}"
    if any(_is_wide(w) for w in pruned):
        yield (
            "convolutions larger than 1x1 have no sparse kernel in LiteRT: their zeros make the "
            "file smaller, not faster"
        )


def _is_pointwise(weight: StoredWeight) -> bool:
    return weight.operators == "CONV_2D" and weight.shape[1:3] == (1, 1)


def _is_wide(weight: StoredWeight) -> bool:
    return len(weight.shape) == 4 and weight.shape[1:3] != (1, 1)
