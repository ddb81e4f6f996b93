"""Which functions treat each entry by itself."""

from __future__ import annotations

from typing import Any

import keras

from keras_ntt.core.kinds import kind_of

_NAMES = """
    linear relu relu6 leaky_relu elu selu gelu silu tanh sigmoid hard_sigmoid hard_silu softplus
    softsign exponential mish celu tanh_shrink hard_tanh hard_shrink threshold soft_shrink
    squareplus log_sigmoid sparse_plus sparse_sigmoid
"""

_FUNCTIONS = """
    Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign SoftShrink SparsePlus Silu Squareplus
    LogSigmoid LeakyRelu HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink
    Threshold Absolute Ceil Cos Cosh Exp Expm1 Floor Log Log1p Negative Reciprocal Round Sign
    Sin Sinh Sqrt Rsqrt Square Tan Tanh Arctan Arcsinh Erf Cast StopGradient Copy
"""
_OPERATORS = "Add Subtract Multiply Divide TrueDivide DivideNoNan Maximum Minimum Power"

ELEMENTWISE_OPERATIONS = frozenset(_FUNCTIONS.split())
BROADCAST_OPERATIONS = frozenset(_OPERATORS.split())


def is_elementwise(function: Any) -> bool:
    """Tell whether an activation function is one that treats each entry by itself."""
    known = [getattr(keras.activations, name, None) for name in _NAMES.split()]
    if function is None or any(function is f for f in known if f is not None):
        return True
    return kind_of(function) in _LAYERS


_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
