"""Refuse models that cannot become a file."""

from __future__ import annotations

from typing import Any

from keras_ntt.core import checks, host


def check_exportable(model: Any, representative_data: Any) -> None:
    """Raise unless a model can be exported.

    Args:
        model: What may be a model.
        representative_data: What may be inputs.

    Raises:
        TypeError: If it is not a Keras 3 model.
        ValueError: If its inputs are not known, it keeps a state, or Keras has quantized it.
    """
    checks.check_model(model)
    if host.functional_of(model) is None and representative_data is None:
        raise ValueError(
            "The model has a custom call(), which does not say what it takes. Pass some inputs as "
            "representative_data, with the shapes that the file is to take. "
            f"Received: model={model.name!r} of type {type(model).__name__}"
        )
    quantized = [
        layer.name
        for layer in host.layers_of(model)
        if getattr(layer.dtype_policy, "quantization_mode", None)
        and host.functional_of(layer) is None
        and layer.weights
    ]
    if quantized:
        raise ValueError(
            "Keras has quantized kernels of this model, by model.quantize(), in a form that LiteRT "
            "does not have. Export the model as it was before, with "
            "quantization='int8_weights' or target='int8'. "
            f"Received: model={model.name!r} with {', '.join(quantized)}"
        )
    stateful = [layer.name for layer in host.layers_of(model) if getattr(layer, "stateful", False)]
    if stateful:
        raise ValueError(
            "Stateful layers keep a state between calls, and a file does not. Make the model again "
            f"without stateful=True. Received: model={model.name!r} with {', '.join(stateful)}"
        )
