"""Values for arguments: those that hardly any argument takes, and bad inputs, masks, schedules."""

from __future__ import annotations

import decimal
import fractions
import random
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt

Make = Callable[[random.Random], Any]


class UserError(Exception):
    """What custom callables raise: it must come through unchanged."""


def raising(*_: Any, **__: Any) -> Any:
    """Raise an error of custom code."""
    raise UserError("an error of custom code")


class Truthless:
    """An object without truth, length or order."""

    def __bool__(self) -> bool:
        raise TypeError("no truth value")


NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 3, 97, -(2**31), 2**31, 2**63, 10**30, 10**400, True, False),
    *(-0.1, 0.0, 0.5, 0.999999, 1.0, 1.5, 1e308, -1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), 1j, complex("nan")),
    *(np.float16(0.5), np.float32(0.5), np.float64("nan"), np.float32("inf"), np.longdouble(0.5)),
    *(np.int8(-1), np.int64(3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1)),
    *(np.array(0.5), np.array([0.5]), np.array([0.5, 0.6]), np.zeros((0,)), np.zeros((2, 2))),
    *(decimal.Decimal("0.5"), decimal.Decimal("NaN"), fractions.Fraction(1, 2)),
]
WORDS: list[Any] = [
    *("", " ", "0.5", "half", "auto", "all", "full", "global", "magnitude", "snip", "other"),
    *("(", "[", "*", "dense", ".*", "a\0b", "名前 é", "x" * 5000, "\ud800", b"bytes", b""),
    np.str_("all"),
]
THINGS: list[Callable[[], Any]] = [
    *(lambda: None, lambda: Ellipsis, lambda: NotImplemented, object, Truthless),
    *(list, dict, set, tuple, lambda: [None], lambda: [0.5], lambda: (1, 2), lambda: (2, 1)),
    *(lambda: {"a": 1}, lambda: {0: 0.5}, lambda: {None: None}, lambda: [[1, 0], [1]]),
    *(lambda: range(3), lambda: slice(3), lambda: iter([1, 2]), lambda: (i for i in range(2))),
    *(lambda: int, lambda: keras.Model, lambda: keras.layers.Dense, lambda: np),
    *(lambda: raising, lambda: lambda: 0, lambda: lambda x: x, lambda: lambda *a: None),
    *(lambda: types.SimpleNamespace(name="n", shape=3, dtype="d"), lambda: memoryview(b"ab")),
    *(lambda: tf.constant(0.5), lambda: tf.constant("text"), lambda: tf.Variable(0.5)),
    *(lambda: keras.Input((6,)), lambda: keras.layers.Dense(2), lambda: keras.Variable(0.5)),
    *(lambda: np.array(["0.5"]), lambda: np.array([None, {}], object), lambda: np.dtype("f4")),
    *(lambda: np.zeros(2, "datetime64[s]"), lambda: np.zeros(2, [("a", "f4")])),
]


def nasty(rng: random.Random) -> Any:
    """Draw a value of any kind."""
    kind = rng.randrange(4)
    if kind < 2:
        return rng.choice(NUMBERS)
    return rng.choice(WORDS) if kind == 2 else rng.choice(THINGS)()


# --- inputs ----------------------------------------------------------------------------------


def samples(n: int = 8, size: int = 6, seed: int = 0) -> np.ndarray:
    """Return inputs that all models but the convolutional one take."""
    return np.random.default_rng(seed).normal(size=(n, size)).astype("float32")


class Batches(keras.utils.PyDataset):
    """Batches by a function of their number."""

    def __init__(self, make: Callable[[int], Any], count: int):
        super().__init__()
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        """Return a batch."""
        return self._make(index)


DTYPES = [
    *("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float64", "longdouble"),
    *("complex64", "complex128", "S3", "U3", "object", "datetime64[s]", "timedelta64[s]", "V8"),
]


def bad_inputs(rng: random.Random) -> Any:
    """Draw inputs that few models take, or take in another form."""
    x = samples()
    return rng.choice(_BAD_INPUTS)(rng, x)


def _of_dtype(rng: random.Random, x: np.ndarray) -> Any:
    return np.zeros(x.shape, rng.choice(DTYPES))


def _of_shape(rng: random.Random, x: np.ndarray) -> Any:
    rank = rng.randrange(5)
    return np.ones([rng.choice([0, 1, 2, 5, 6, 7]) for _ in range(rank)], "float32")


def _with_entry(rng: random.Random, x: np.ndarray) -> Any:
    x[rng.randrange(len(x)), rng.randrange(6)] = rng.choice([np.nan, np.inf, -np.inf])
    return x


def _data_set(rng: random.Random, x: np.ndarray) -> Any:
    data = tf.data.Dataset.from_tensor_slices(rng.choice(_BAD_ARRAYS)(rng, x))
    steps = [
        lambda d: d,
        lambda d: d.batch(4),
        lambda d: d.batch(4).take(0),
        lambda d: d.batch(4).repeat(),
        lambda d: d.map(lambda t: (t, t)).batch(3),
    ]
    return rng.choice(steps)(data)


_BAD_ARRAYS: list[Callable[[random.Random, np.ndarray], Any]] = [
    lambda rng, x: np.ones(rng.choice([(8, 6), (8, 5), (8, 6, 1), (8,)]), "float32"),
    lambda rng, x: np.ones((8, 6), rng.choice(["int32", "uint8", "bool", "float64"])),
    _with_entry,
]
_BAD_INPUTS: list[Callable[[random.Random, np.ndarray], Any]] = [
    *_BAD_ARRAYS,
    *(_of_dtype, _of_shape, _data_set, lambda rng, x: nasty(rng)),
    lambda rng, x: x.tolist(),
    lambda rng, x: rng.choice([[x], (x,), [x, x], (x, x), {"x": x}, {"a": [x]}, [x, x[:3]], []]),
    lambda rng, x: tf.constant(rng.choice([x, x[:0], x[:, :5], x.astype("complex64")])),
    lambda rng, x: tf.ragged.constant([[1.0], [1.0, 2.0]]),
    lambda rng, x: tf.sparse.from_dense(x),
    lambda rng, x: keras.KerasTensor((8, 6)),
    lambda rng, x: tf.TensorSpec((8, 6)),
    lambda rng, x: x[:, ::-1][::2],
    lambda rng, x: iter(rng.choice([[], [x], [x[:, :5]], [None], ["a"]])),
    lambda rng, x: Batches(lambda i: rng.choice([x, None, (x, None)]), rng.choice([0, 1, 2])),
    lambda rng, x: Batches(raising, 2),
    lambda rng, x: keras.Variable(x),
]


def bad_labels(rng: random.Random) -> Any:
    """Draw labels that do not fit eight samples of three classes."""
    makes = [
        lambda: np.arange(rng.choice([0, 1, 7, 8, 9])) % 3,
        lambda: np.full(8, rng.choice([-1, 3, 10**9])),
        lambda: np.full((8,), rng.choice([np.nan, np.inf])),
        lambda: np.zeros(rng.choice([(8, 1), (8, 2), (8, 3), (8, 3, 1), ()])),
        lambda: np.array(["a"] * 8),
        lambda: np.array([None] * 8, object),
        lambda: list(range(8)),
        lambda: nasty(rng),
    ]
    return rng.choice(makes)()


# --- schedules, policies, filters, saliencies ------------------------------------------------

ANSWERS: list[Any] = [
    *(None, 0.5, "ab", (), (True,), (True, 0.5, 1), (True, 1.0), (True, -0.1), (True, 2)),
    *((True, float("nan")), (True, "half"), (True, None), (True, 10**400), (None, 0.5)),
    *((True, [0.5]), (np.array([1, 0]), 0.5), (Truthless(), 0.5), {True: 0.5}, (True, 1j)),
]


class Answering(keras_ntt.PruningSchedule):
    """A schedule with one answer to everything from a step on."""

    def __init__(self, answer: Any, begin: int = 0):
        self.answer, self.begin = answer, begin

    def __call__(self, step: int) -> Any:
        """Return the answer."""
        return self.answer if step >= self.begin else (True, 0.5)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"answer": self.answer, "begin": self.begin}


def bad_schedule(rng: random.Random) -> Any:
    """Draw something that is no schedule, or one that returns nonsense."""
    answer = rng.choice(ANSWERS)
    makes = [
        lambda: Answering(answer, rng.choice([0, 1])),
        lambda: lambda step: answer,
        lambda: lambda: answer,
        lambda: raising,
        lambda: rng.choice([keras_ntt.NTTSchedule, keras_ntt.PolynomialDecay]),
        lambda: rng.choice(NUMBERS),
        lambda: nasty(rng),
    ]
    return rng.choice(makes)()


class Policy:
    """A policy that answers what it is told to."""

    def __init__(self, **answers: Any):
        for name, answer in answers.items():
            own = callable(answer) and not isinstance(answer, type)
            setattr(self, name, answer if own else lambda _, a=answer: a)


def bad_policy(rng: random.Random) -> Any:
    """Draw something that is no policy, or one that returns nonsense."""

    def yes(layer: Any) -> bool:
        return True

    answer = nasty(rng)
    makes = [
        lambda: Policy(allow_pruning=answer),
        lambda: Policy(allow_pruning=raising),
        lambda: Policy(allow_pruning=yes, prunable_weights=answer),
        lambda: Policy(allow_pruning=yes, prunable_weights=lambda layer: [answer]),
        lambda: Policy(allow_pruning=yes, ensure_model_supports_pruning=raising),
        lambda: types.SimpleNamespace(allow_pruning=answer),
        lambda: rng.choice([keras_ntt.KernelPolicy, keras_ntt.PruningPolicy]),
        lambda: nasty(rng),
    ]
    return rng.choice(makes)()


def bad_filters(rng: random.Random) -> Any:
    """Draw something that is no filter, or selects nothing."""
    answer = nasty(rng)
    makes = [
        lambda: rng.choice(["(", "[", "none of them", "*", "\\", "a{99999999999}", "(?P<"]),
        lambda: [rng.choice(WORDS), "kernel"],
        lambda: [answer],
        lambda: lambda layer: answer,
        lambda: raising,
        lambda: answer,
    ]
    return rng.choice(makes)()


def bad_saliency(rng: random.Random) -> Any:
    """Draw something that is no score, or one that returns nonsense."""
    answer = nasty(rng)
    makes = [
        lambda: lambda weights: answer,
        lambda: lambda weights: [answer for _ in weights],
        lambda: lambda weights: weights[:1],
        lambda: lambda weights: [w[:1] for w in weights],
        lambda: lambda weights: [tf.fill(w.shape, float("nan")) for w in weights],
        lambda: lambda weights: [tf.zeros_like(w) for w in weights],
        lambda: lambda weights: [tf.cast(w, tf.string) for w in weights],
        lambda: raising,
        lambda: rng.choice([keras_ntt.saliency.SNIP, keras_ntt.saliency.Random]),
        lambda: rng.choice(["snip", "grasp", "synflow", "logit_snip", "ntk_trace"]),
        lambda: answer,
    ]
    return rng.choice(makes)()


def bad_pattern(rng: random.Random) -> Any:
    """Draw something that is no pattern, or one that returns nonsense."""
    makes = [
        lambda: rng.choice(["0:4", "4:2", "2:4", "2:2", "a:b", "2:4:8", "-1:4", "filters", "rows"]),
        lambda: rng.choice([(0, 1), (4,), (4, 1), (1, 2, 3), ("4", 1), (4.5, 1), [2, 2]]),
        lambda: bad_saliency(rng),
        lambda: nasty(rng),
    ]
    return rng.choice(makes)()


def bad_allocation(rng: random.Random) -> Any:
    """Draw something that is no allocation, or one that does not fit."""
    answer = nasty(rng)
    makes = [
        lambda: {rng.choice(WORDS): 0.5},
        lambda: {"first": answer},
        lambda: {"first": 0.5, "none of them": 0.5},
        lambda: {"(": 0.5},
        lambda: rng.choice(["er", "erk", "plsr", "ERK"]),
        lambda: answer,
    ]
    return rng.choice(makes)()


def bad_loss(rng: random.Random) -> Any:
    """Draw something that is no loss."""
    answer = nasty(rng)
    makes = [
        lambda: rng.choice(["mse", "no such loss", keras.losses.MeanSquaredError]),
        lambda: raising,
        lambda: lambda y, outputs: answer,
        lambda: answer,
    ]
    return rng.choice(makes)()


# --- masks -----------------------------------------------------------------------------------


def bad_mask(rng: random.Random, shape: tuple[int, ...]) -> Any:
    """Draw something that is no mask of a shape, or hardly one."""
    makes = [
        lambda: np.ones(shape[::-1]),
        lambda: np.ones((*shape, 1), bool),
        lambda: np.ones(shape[:1]),
        lambda: np.full(shape, rng.choice([0.5, 2, -1, np.nan, np.inf])),
        lambda: np.zeros(shape, rng.choice(DTYPES)),
        lambda: tf.ones(shape),
        lambda: tf.constant("a"),
        lambda: keras.KerasTensor(shape),
        lambda: tf.ragged.constant([[1], [0, 1]]),
        lambda: tf.sparse.from_dense(np.ones(shape)),
        lambda: [[1, 0], [1]],
        lambda: nasty(rng),
    ]
    return rng.choice(makes)()
