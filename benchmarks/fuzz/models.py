"""The models that calls are made with, and what must be as it was after them."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.fuzz.values import samples

layers = keras.layers


def mlp(name: str = "mlp") -> keras.Model:
    """Return a network of two Dense layers."""
    parts = [layers.Dense(4, "tanh", name="first"), layers.Dense(3, name="second")]
    return keras.Sequential([keras.Input((6,)), *parts], name=name)


def functional() -> keras.Model:
    """Return a functional model with a branch, and a constraint and a layer of each kind."""
    x = keras.Input((6,))
    left = layers.Dense(4, "relu", kernel_constraint="non_neg", name="first")(x)
    right = layers.BatchNormalization()(layers.Dense(4, name="right")(x))
    joined = layers.Dropout(0.5)(left + right)
    return keras.Model(x, layers.Dense(3, name="second")(joined), name="functional")


class Subclassed(keras.Model):
    """A model with a custom `call()`."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.first = layers.Dense(4, "tanh", name="first")
        self.second = layers.Dense(3, name="second")

    def call(self, x: Any) -> Any:
        """Return the outputs."""
        return self.second(self.first(x))


def subclassed() -> keras.Model:
    """Return a built model with a custom `call()`."""
    model = Subclassed(name="subclassed")
    model(samples(1))
    return model


class Odd(layers.Layer):
    """A layer that says it has prunable weights, and has others."""

    def __init__(self, answer: Any, **options: Any):
        super().__init__(**options)
        self._answer = answer

    def build(self, shape: Any) -> None:
        """Make the weight."""
        self.matrix = self.add_weight(shape=(int(shape[-1]), 3), name="matrix")

    def call(self, x: Any) -> Any:
        """Return the product."""
        return keras.ops.matmul(x, self.matrix)

    def get_prunable_weights(self) -> Any:
        """Return what it was told to."""
        return self._answer() if callable(self._answer) else self._answer


def odd(answer: Any) -> Callable[[], keras.Model]:
    """Return a maker of a model with an odd layer."""

    def make() -> keras.Model:
        parts = [layers.Dense(6, name="first"), Odd(answer, name="odd")]
        return keras.Sequential([keras.Input((6,)), *parts], name="odd")

    return make


def several() -> keras.Model:
    """Return a model of two inputs and two outputs."""
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    y = layers.Dense(4, name="first")(a + b)
    outputs = [layers.Dense(3, name="second")(y), layers.Dense(2, name="third")(y)]
    return keras.Model([a, b], outputs, name="several")


def cnn() -> keras.Model:
    """Return a convolutional network with a depthwise layer."""
    parts = [
        layers.Conv2D(4, 3, activation="relu", name="first"),
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, name="second"),
    ]
    return keras.Sequential([keras.Input((7, 7, 2)), *parts], name="cnn")


def words() -> keras.Model:
    """Return a model of whole numbers, with an embedding and a recurrent layer."""
    parts = [layers.Embedding(5, 3, name="table"), layers.LSTM(2, name="first")]
    return keras.Sequential(
        [keras.Input((6,), dtype="int32"), *parts, layers.Dense(3, name="second")], name="words"
    )


def _compiled() -> keras.Model:
    model = mlp("compiled")
    model.compile("adam", "mse", jit_compile=False, run_eagerly=True)
    model.fit(samples(), np.zeros((8, 3), "float32"), verbose=0)
    return model


def _held() -> keras.Model:
    model = mlp("held")
    masks = {v.path: np.eye(*v.shape) for v in model.weights if v.name == "kernel"}
    return keras_ntt.apply_masks(model, masks)


def _scheduled() -> keras.Model:
    return keras_ntt.prune_low_magnitude(mlp("scheduled"), 0.5)


def _with_zeros() -> keras.Model:
    return keras_ntt.strip_pruning(keras_ntt.prune_low_magnitude(mlp("zeros"), 0.5))


def _changed(value: float) -> Callable[[], keras.Model]:
    def make() -> keras.Model:
        model = mlp("changed")
        model.set_weights([np.full_like(w, value) for w in model.get_weights()])
        return model

    return make


def _frozen() -> keras.Model:
    model = mlp("frozen")
    model.trainable = False
    return model


def _without_kernels() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.BatchNormalization()], name="scales")


def _quantized() -> keras.Model:
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(3, name="second")(layers.Dense(4, name="first")(x)))
    model.quantize("int8")
    return model


def _softmax() -> keras.Model:
    parts = [layers.Dense(4, "tanh", name="first"), layers.Dense(3, "softmax", name="second")]
    return keras.Sequential([keras.Input((6,)), *parts], name="softmax")


def cubed(x: Any) -> Any:
    """Return the third power: an activation that Keras has no name for."""
    return x * x * x


class Halves(keras.initializers.Initializer):
    """Starts all entries at one half; not registered with Keras."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Return the values."""
        return keras.ops.full(shape, 0.5, dtype=dtype)


class Short(keras.constraints.Constraint):
    """Keeps columns of unit length at most; not registered with Keras."""

    def __call__(self, w: Any) -> Any:
        """Return the value."""
        squares = keras.ops.sum(keras.ops.square(w), axis=0, keepdims=True)
        return w / keras.ops.maximum(keras.ops.sqrt(squares), 1.0)


def _unregistered() -> keras.Model:
    x = keras.Input((6,))
    y = layers.Dense(4, cubed, bias_initializer=Halves(), name="first")(x)
    y = layers.Lambda(cubed)(y) + 3
    return keras.Model(x, layers.Dense(3, name="second")(y), name="unregistered")


def _constrained() -> keras.Model:
    parts = [layers.Dense(4, "tanh", kernel_constraint=Short(), name="first")]
    parts.append(layers.Dense(3, kernel_constraint="unit_norm", name="second"))
    return keras.Sequential([keras.Input((6,)), *parts], name="constrained")


def _clipped() -> keras.Model:
    model = _held()
    model.compile(keras.optimizers.Adam(global_clipnorm=0.1), "mse", run_eagerly=True)
    model.fit(samples(), np.zeros((8, 3), "float32"), verbose=0)
    return model


def _with_lora() -> keras.Model:
    model = _held()
    model.layers[0].enable_lora(2)
    return model


class Legacy:
    """What looks like a model of tf_keras."""

    __module__ = "tf_keras.src.engine.training"
    name, weights, built = "old", (), True


GOOD: dict[str, Callable[[], Any]] = {
    "mlp": mlp,
    "functional": functional,
    "subclassed": subclassed,
    "compiled": _compiled,
    "softmax": _softmax,
    "unregistered": _unregistered,
    "constrained": _constrained,
}
OTHER: dict[str, Callable[[], Any]] = {
    "several": several,
    "cnn": cnn,
    "words": words,
    "held": _held,
    "scheduled": _scheduled,
    "zeros": _with_zeros,
    "nan": _changed(np.nan),
    "all zero": _changed(0.0),
    "frozen": _frozen,
    "scales": _without_kernels,
    "clipped": _clipped,
    "lora": _with_lora,
    "odd none": odd(None),
    "odd number": odd(3),
    "odd strings": odd(["kernel"]),
    "odd arrays": odd(lambda: [np.ones((6, 3))]),
    "odd foreign": odd(lambda: [keras.Variable(np.ones((6, 3), "float32"))]),
    "not built": lambda: keras.Sequential([layers.Dense(2)], name="not_built"),
    "not built class": lambda: Subclassed(name="not_built_class"),
    "no layers": lambda: keras.Sequential(name="no_layers"),
    "legacy": Legacy,
    "layer": lambda: layers.Dense(2),
}
if hasattr(layers.Dense, "quantize"):
    OTHER["quantized"] = _quantized


def _digest(value: Any) -> str:
    return hashlib.sha1(np.ascontiguousarray(value).tobytes()).hexdigest()


def state_of(model: Any) -> dict[str, Any]:
    """Return all that a call which fails must leave alone in a model."""
    if not isinstance(model, keras.Model):
        return {}
    inner = list(model._flatten_layers())
    own = list(model.weights)
    state = {
        "weights": [(v.path, str(v.dtype), _digest(v.numpy())) for v in own],
        "constraints": [id(v.constraint) for v in own],
        "masks": [_digest(v.constraint.mask) for v in own if hasattr(v.constraint, "mask")],
        "assign": [id(vars(v._value).get("assign")) for v in own],
        "trainable": [v.trainable for v in own],
        "built": [layer.built for layer in inner],
        "calls": [[id(vars(layer).get(name)) for name in ("call", "build")] for layer in inner],
        "policies": [layer.dtype_policy.name for layer in inner],
        "optimizer": id(getattr(model, "optimizer", None)),
        "train_function": id(getattr(model, "train_function", None)),
        "metrics": [m.name for m in model.metrics],
    }
    try:
        state["config"] = json.dumps(model.get_config(), default=str, sort_keys=True)
    except (NotImplementedError, ValueError):
        state["config"] = "none"
    return state


def state_of_process() -> dict[str, Any]:
    """Return what a call must leave alone outside of models."""
    return {
        "matmul": (id(keras.ops.matmul), id(keras.src.ops.matmul)),
        "moments": id(tf.nn.moments),
        "floatx": keras.config.floatx(),
        "policy": keras.config.dtype_policy().name,
        "eager": tf.executing_eagerly(),
        "rules": len(keras_ntt.layer_rules.registered_rules()),
        "scope": sorted(keras.saving.get_custom_objects()),
    }


class World:
    """Models, arrays and files that calls are made with; a case's are watched.

    Args:
        folder: A separate folder, which is emptied after calls that write to it.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._pool: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._used: set[str] = set()
        self._arrays: list[tuple[np.ndarray, str]] = []
        self._files: dict[str, str] = {}

    def begin(self) -> None:
        """Forget what the case before used."""
        self._used, self._arrays = set(), []
        self._files = self._listed()
        self._process = state_of_process()

    def model(self, kind: str) -> Any:
        """Return the model of a kind, the same until it is changed."""
        if kind not in self._pool:
            keras.utils.set_random_seed(0)
            made = (GOOD | OTHER)[kind]()
            self._pool[kind] = made, state_of(made)
            self._process = state_of_process()
        self._used.add(kind)
        return self._pool[kind][0]

    def uses(self, kind: str) -> bool:
        """Tell whether the case used the model of a kind."""
        return kind in self._used

    def watch(self, array: Any) -> Any:
        """Return an array, which must not be written to."""
        if isinstance(array, np.ndarray) and array.dtype != object:
            self._arrays.append((array, _digest(array)))
        return array

    def file(self, name: str, content: bytes | None = None) -> pathlib.Path:
        """Return a path in the folder, of a file with some content if any is given."""
        path = self.folder / name
        if content is not None:
            path.write_bytes(content)
            self._files = self._listed()
        return path

    def changes(self) -> list[str]:
        """Return what is not as it was when the case began."""
        found = []
        for kind in sorted(self._used):
            made, before = self._pool[kind]
            now = state_of(made)
            found += [f"{kind}: {key}" for key in before if before[key] != now[key]]
        found += ["an array" for array, digest in self._arrays if _digest(array) != digest]
        files = self._listed()
        found += [f"file {name}" for name in sorted(files | self._files) if
                  files.get(name) != self._files.get(name)]  # fmt: skip
        now = state_of_process()
        return found + [key for key in now if now[key] != self._process[key]]

    def renew(self, *, models: bool) -> None:
        """Empty the folder, and make used models again when they are next needed."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if models:
            for kind in self._used:
                self._pool.pop(kind, None)

    def _listed(self) -> dict[str, str]:
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        return {str(p.relative_to(self.folder)): _digest(p.read_bytes() and
                np.frombuffer(p.read_bytes(), "u1")) for p in files}  # fmt: skip
