"""Time one step of Neural Tangent Transfer, next to neural-tangents and to a floor.

A step is: the teacher's kernel, the student's kernel, the gradient of the objective and Adam's
update, for a batch of 64 (a kernel between 32 and 32 samples) and 10 outputs in float32. The
peer is neural-tangents 0.6.5 in an environment of its own, which this program makes; it takes
its turns in the same rounds, and only one side computes at a time. The floor is the time that
the step's matrix products would take at the speed of one large matrix product.

    python benchmarks/ntt_step.py [--rounds N] [--networks NAME ...] [--no-peer] [--output FILE]

Prints tables and writes JSON. README.md in this folder says how to read them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # both sides on the CPU

import keras
import numpy as np
import tensorflow as tf

import keras_ntt

HERE = Path(__file__).resolve().parent
PEER_ENVIRONMENT = HERE / ".envs" / "neural-tangents"
PEER_SCRIPT = HERE / "_neural_tangents.py"
PEER_REQUIREMENTS = (
    "neural-tangents==0.6.5",
    "jax==0.4.20",
    "jaxlib==0.4.20",
    "scipy<1.12",
    "numpy<2",
    "ml_dtypes<0.4",
)
PEER_PYTHONS = ("3.11", "3.10", "3.9")
IMPLEMENTATIONS = ("NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES", "JACOBIAN_CONTRACTION")

BATCH, OUTPUTS, SPARSITY = 64, 10, 0.97
SETTINGS = {"learning_rate": 5e-4, "ntk_weight": 1e-3, "l2": 1e-5, "density": 1 - SPARSITY}
KERNEL_TOLERANCE = 1e-4  # of the largest entry
LOSS_TOLERANCE = 1e-3  # relative
PAPER_ITERATIONS = 18_720  # of the paper's schedule for the MLP

OURS, TF_JACOBIAN, FIT, PRODUCT = "keras_ntt", "TensorFlow, Jacobian", "fit", "product"
SLOW = 4.0  # times the fastest: such ones are timed in fewer rounds
SLOW_ROUNDS = 2


class Layer(NamedTuple):
    """A layer: kind is conv, pool, flatten or dense."""

    kind: str
    units: int = 0
    size: int = 0
    relu: bool = False


class Network(NamedTuple):
    """A network and how often to time it.

    Attributes:
        input_shape: Shape of a sample.
        layers: The layers.
        repeats: Steps a round; slow contestants take one.
        fit_batches: Batches in one timed `fit`.
    """

    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    repeats: int
    fit_batches: int


NETWORKS = {
    "lenet-300-100": Network(
        (784,),
        (Layer("dense", 300, relu=True), Layer("dense", 100, relu=True), Layer("dense", OUTPUTS)),
        repeats=20,
        fit_batches=300,
    ),
    "lenet-5-caffe": Network(
        (28, 28, 1),
        (
            Layer("conv", 20, 5, relu=True),
            Layer("pool", size=2),
            Layer("conv", 50, 5, relu=True),
            Layer("pool", size=2),
            Layer("flatten"),
            Layer("dense", 500, relu=True),
            Layer("dense", OUTPUTS),
        ),
        repeats=4,
        fit_batches=10,
    ),
}


# The floor.


class Product(NamedTuple):
    """A matrix product: its operations and how many of its operands depend on the weights."""

    flops: int
    operands: int


def step_flops(network: Network, batch: int = BATCH) -> dict[str, int]:
    """Count the floating point operations of the matrix products of one step.

    A multiply-add counts as 2. With n samples in halves of h1 and h2, c outputs, and for a layer
    P positions (pixels of the result; 1 for a dense layer), K inputs a position (filter area x
    channels) and o channels:

        forward pass                         2 n P K o
        c backward passes to the input       2 n c P K o                 not for the first layer
        dense layer: its term of the kernel  2 h1 h2 K + 2 (h1 c)(h2 c) o
        convolution: its Jacobian            2 n c P (K + 1) o           1 for the bias
        convolution: its term of the kernel  2 (h1 c)(h2 c) (K + 1) o

    The dense term is ``(x1 . x2 + 1) * (delta1 . delta2)``. The teacher needs each product once.
    The student's gradient needs, for each, one more product of the same size an operand that
    depends on the weights: three times in all, less where an operand is the network's input
    or the seed of the backward passes. Entry-by-entry work (activations, pooling, Adam) is not
    counted, nor is anything saved where weights are zero.

    Args:
        network: The network.
        batch: Number n of samples.

    Returns:
        Operations: teacher, student (with its gradient) and total.
    """
    products = [p for term in _layer_terms(network) for p in _products(*term, batch)]
    teacher = sum(p.flops for p in products)
    student = sum(p.flops * (1 + p.operands) for p in products)
    return {"teacher": teacher, "student": student, "total": teacher + student}


def _layer_terms(network: Network) -> Iterator[tuple[str, int, int, int, bool, bool]]:
    """Yield kind, P, K, o, is it the first, is it the last, of each layer with weights."""
    shape = network.input_shape
    for i, layer in enumerate(network.layers):
        first, last = i == 0, i == len(network.layers) - 1
        if layer.kind == "conv":
            side, area = shape[0] - layer.size + 1, layer.size**2
            yield "conv", side * side, area * shape[2], layer.units, first, last
            shape = (side, side, layer.units)
        elif layer.kind == "pool":
            shape = (shape[0] // layer.size, shape[1] // layer.size, shape[2])
        elif layer.kind == "flatten":
            shape = (math.prod(shape),)
        else:
            yield "dense", 1, shape[0], layer.units, first, last
            shape = (layer.units,)


def _products(
    kind: str, positions: int, k: int, o: int, first: bool, last: bool, n: int
) -> list[Product]:
    c, halves = OUTPUTS, (n - n // 2) * (n // 2)
    inputs, deltas = not first, not last  # which of them depend on the weights
    products = [Product(2 * n * positions * k * o, inputs + 1)]
    if not first:
        products.append(Product(2 * n * c * positions * k * o, deltas + 1))
    if kind == "dense":
        products.append(Product(2 * halves * k, 2 * inputs))
        products.append(Product(2 * halves * c * c * o, 2 * deltas))
    else:
        products.append(Product(2 * n * c * positions * (k + 1) * o, inputs + deltas))
        products.append(Product(2 * halves * c * c * (k + 1) * o, 2 * (inputs or deltas)))
    return products


class MatrixProducts:
    """Large float32 products in TensorFlow, the yardstick of the floor."""

    sizes = (2048, 4096)

    def __init__(self) -> None:
        self._pairs = {
            n: (tf.random.normal([n, n], seed=1), tf.random.normal([n, n], seed=2))
            for n in self.sizes
        }
        self.seconds: dict[int, list[float]] = {n: [] for n in self.sizes}
        for a, b in self._pairs.values():
            tf.matmul(a, b).numpy()

    def run(self, _: int) -> list[float]:
        """Time each size and remember it."""
        for n, (a, b) in self._pairs.items():
            for _ in range(3 if n < 4096 else 1):
                begin = time.perf_counter()
                tf.matmul(a, b)
                self.seconds[n].append(time.perf_counter() - begin)
        return [self.seconds[n][-1] for n in self.sizes]

    def rate(self) -> float:
        """Return the operations a second: the best of the sizes' medians."""
        return max(2 * n**3 / statistics.median(self.seconds[n]) for n in self.sizes)


# Our side.


def build(network: Network) -> keras.Model:
    """Return the network as a Keras model, with the same weights each time."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(network.input_shape)])
    for layer in network.layers:
        activation = "relu" if layer.relu else None
        if layer.kind == "conv":
            model.add(keras.layers.Conv2D(layer.units, layer.size, activation=activation))
        elif layer.kind == "pool":
            model.add(keras.layers.MaxPooling2D(layer.size))
        elif layer.kind == "flatten":
            model.add(keras.layers.Flatten())
        else:
            model.add(keras.layers.Dense(layer.units, activation=activation))
    return model


def samples(network: Network, count: int) -> np.ndarray:
    """Return normal inputs; their values do not matter for the time."""
    shape = (count, *network.input_shape)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


class Ours:
    """A transfer whose compiled step can be called one by one."""

    def __init__(self, network: Network):
        self.x = samples(network, BATCH)
        self.model = build(network)
        self.dense = self.model.get_weights()
        self.trainer = keras_ntt.NeuralTangentTransfer(
            self.model,
            pruning_schedule=SPARSITY,
            ntk_weight=SETTINGS["ntk_weight"],
            l2=SETTINGS["l2"],
            seed=0,
        )
        self.trainer.compile(keras.optimizers.Adam(SETTINGS["learning_rate"]))
        self.masks = list(self.trainer.masks.values())

    def start(self) -> tuple[float, float]:
        """Take the first step; return its time, compilation included, and its loss."""
        data = tf.data.Dataset.from_tensors(self.x)
        begin = time.perf_counter()
        history = self.trainer.fit(data, verbose=0)
        seconds = time.perf_counter() - begin
        self._iterator = iter(data.repeat())
        self.run(1)
        return seconds, float(history.history["loss"][0])

    def run(self, repeats: int) -> list[float]:
        """Time steps; each waits for its loss."""
        return [_timed(lambda: self.trainer.train_function(self._iterator)) for _ in range(repeats)]


class Fit:
    """The same steps through ``fit`` on an array, with all that Keras does around them."""

    def __init__(self, ours: Ours, network: Network):
        self._trainer = ours.trainer
        self._batches = network.fit_batches
        self._x = samples(network, BATCH * network.fit_batches)
        self._trainer.fit(self._x[: 2 * BATCH], batch_size=BATCH, verbose=0)

    def run(self, _: int) -> list[float]:
        """Time one epoch; return the seconds a step."""
        seconds = _timed(lambda: self._trainer.fit(self._x, batch_size=BATCH, verbose=0))
        return [seconds / self._batches]


class JacobianStep:
    """The step as the definition says it, in TensorFlow: Jacobians, then their product.

    ``tape.jacobian`` of each sample under ``tf.vectorized_map``, in a ``tf.function``.

    For networks of dense layers only.
    """

    def __init__(self, ours: Ours, network: Network):
        self._relu = [layer.relu for layer in network.layers]
        self._x = tf.constant(ours.x)
        self._teacher = [tf.constant(w) for w in ours.dense]
        self._weights = [tf.Variable(w) for w in ours.dense]
        self._masks = [
            tf.constant(m, tf.float32)
            for mask, w in zip(ours.masks, ours.dense[1::2], strict=True)
            for m in (mask, np.ones_like(w))
        ]
        self._optimizer = keras.optimizers.Adam(SETTINGS["learning_rate"])
        self._optimizer.build(self._weights)
        self._step = tf.function(self._take)

    def start(self) -> tuple[float, float]:
        """Take the first step; return its time, compilation included, and its loss."""
        begin = time.perf_counter()
        loss = float(self._step())
        return time.perf_counter() - begin, loss

    def run(self, repeats: int) -> list[float]:
        """Time steps."""
        return [_timed(lambda: float(self._step())) for _ in range(repeats)]

    def _take(self) -> tf.Tensor:
        teacher, target = self._kernel(self._teacher)
        with tf.GradientTape() as tape:
            masked = [w * m for w, m in zip(self._weights, self._masks, strict=True)]
            student, outputs = self._kernel(masked)
            squares = tf.add_n([tf.reduce_sum(w**2) for w in masked[::2]])
            loss = (
                SETTINGS["ntk_weight"] * tf.reduce_mean((student - teacher) ** 2)
                + tf.reduce_mean((outputs - target) ** 2)
                + SETTINGS["l2"] / SETTINGS["density"] * squares
            )
        gradients = tape.gradient(loss, self._weights)
        self._optimizer.apply_gradients(zip(gradients, self._weights, strict=True))
        return loss

    def _kernel(self, weights: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        def of_sample(x: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                y = self._outputs(x[None], weights)[0]
            return [tf.reshape(j, [OUTPUTS, -1]) for j in tape.jacobian(y, weights)], y

        half = BATCH // 2 * OUTPUTS
        jacobians, outputs = tf.vectorized_map(of_sample, self._x)
        matrices = [tf.reshape(j, [BATCH * OUTPUTS, j.shape[-1]]) for j in jacobians]
        terms = [tf.matmul(m[:half], m[half:], transpose_b=True) for m in matrices]
        return tf.add_n(terms), outputs

    def _outputs(self, y: tf.Tensor, weights: Sequence[tf.Tensor]) -> tf.Tensor:
        for kernel, bias, relu in zip(weights[::2], weights[1::2], self._relu, strict=True):
            y = y @ kernel + bias
            y = tf.nn.relu(y) if relu else y
        return y


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


# The peer's side.


class Unavailable(Exception):  # noqa: N818
    """The peer cannot run here."""


def peer_python() -> Path:
    """Return the Python of the peer's environment, which is made if need be.

    Raises:
        Unavailable: If there is no Python that the peer runs on, or the installation fails.
    """
    folder = "Scripts" if os.name == "nt" else "bin"
    python = PEER_ENVIRONMENT / folder / "python"
    wanted = "\n".join(PEER_REQUIREMENTS)
    ready = PEER_ENVIRONMENT / ".ready"
    if ready.exists() and ready.read_text() == wanted:
        return python
    base = _base_python()
    print(f"Installing {PEER_REQUIREMENTS[0]} in {PEER_ENVIRONMENT} ...", flush=True)
    _run_or_give_up([base, "-m", "venv", "--clear", str(PEER_ENVIRONMENT)])
    _run_or_give_up([str(python), "-m", "pip", "install", "--quiet", *PEER_REQUIREMENTS])
    ready.write_text(wanted)
    return python


def _base_python() -> str:
    """Return a Python 3.9 to 3.11: the running one or one on the path."""
    names = [sys.executable, *(f"python{v}" for v in PEER_PYTHONS)]
    for path in filter(None, map(shutil.which, names)):
        command = [path, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip() in PEER_PYTHONS:
            return path
    raise Unavailable(
        f"{PEER_REQUIREMENTS[0]} needs Python 3.9 to 3.11; this is Python "
        f"{platform.python_version()} and there is no other one on the path"
    )


def _run_or_give_up(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_peer_env())
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Unavailable(f"installation failed: {' '.join(reason)}")


def _peer_env() -> dict[str, str]:
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in ours} | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
    }


class Peer:
    """The peer's process, alive as long as this object's context."""

    def __init__(self, python: Path):
        self._process = subprocess.Popen(
            [str(python), str(PEER_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=_peer_env(),
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"neural-tangents, {do} {arguments}: {answer['error']}")
        return answer

    def prepare(self, network: Network, arrays: Path) -> None:
        """Hand over the network, its weights and the batch."""
        self.ask("prepare", layers=network.layers, arrays=str(arrays), settings=SETTINGS)

    def step(self, implementation: str, repeats: int) -> dict[str, Any]:
        """Take and time steps."""
        return self.ask("step", implementation=implementation, repeats=repeats)


def save_arrays(ours: Ours, path: Path) -> None:
    """Write weights, masks and inputs for the other side, before the first step."""
    arrays = {"x": ours.x}
    for i, mask in enumerate(ours.masks):
        arrays |= {f"kernel{i}": ours.dense[2 * i], f"bias{i}": ours.dense[2 * i + 1]}
        arrays[f"mask{i}"] = mask
    np.savez(path, **arrays)


def compare_kernels(network: Network, ours: Ours, peer: Peer, folder: Path) -> dict[str, float]:
    """Compare the teacher's kernel of both sides, for each implementation of the peer.

    Returns:
        The largest difference, relative to the largest entry.

    Raises:
        RuntimeError: If they do not agree.
    """
    half = BATCH // 2
    kernel = np.asarray(keras_ntt.empirical_ntk(build(network), ours.x[:half], ours.x[half:]))
    differences = {}
    for name in IMPLEMENTATIONS:
        peer.ask("kernel", implementation=name, output=str(folder / "kernel.npy"))
        other = np.load(folder / "kernel.npy")
        differences[name] = float(np.abs(kernel - other).max() / np.abs(kernel).max())
        if kernel.shape != other.shape or not differences[name] <= KERNEL_TOLERANCE:
            raise RuntimeError(
                f"The teacher's kernel differs from neural-tangents' {name} by "
                f"{differences[name]:.2e} of its largest entry: shapes {kernel.shape}, "
                f"{other.shape}"
            )
    return differences


def compare_loss(name: str, loss: float, ours: float) -> float:
    """Return the relative difference of the first step's losses; raise if it is large."""
    difference = abs(loss - ours) / abs(ours)
    if not difference <= LOSS_TOLERANCE:
        raise RuntimeError(f"The loss of the first step is {ours} here and {loss} with {name}")
    return difference


# Rounds.


@dataclass
class Contestant:
    """Something that is timed in rounds.

    Attributes:
        run: Takes a number of repetitions, returns the seconds of each.
        repeats: Repetitions a round.
        rounds: The seconds, by round.
        first: Seconds of the first call, compilation included.
        loss_difference: Relative difference of the first loss from ours.
        slow: Whether to time it in fewer rounds, once in each.
    """

    run: Callable[[int], list[float]]
    repeats: int = 1
    rounds: list[list[float]] = field(default_factory=list)
    first: float | None = None
    loss_difference: float | None = None
    slow: bool = False

    @property
    def seconds(self) -> list[float]:
        """All seconds."""
        return [s for one in self.rounds for s in one]

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    def report(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return {
            "median_seconds": self.median,
            "quartiles_seconds": [float(low), float(high)],
            "range_seconds": [min(self.seconds), max(self.seconds)],
            "first_call_seconds": self.first,
            "first_loss_difference": self.loss_difference,
            "rounds_seconds": self.rounds,
        }


def run_rounds(contestants: dict[str, Contestant], rounds: int) -> None:
    """Time the contestants in turns; every other round in the reverse order."""
    for i in range(rounds):
        order = list(contestants.values())
        for contestant in order if i % 2 == 0 else reversed(order):
            if contestant.slow and i >= SLOW_ROUNDS:
                continue
            repeats = 1 if contestant.slow else contestant.repeats
            contestant.rounds.append(contestant.run(repeats))


def peer_contestants(network: Network, peer: Peer, loss: float) -> dict[str, Contestant]:
    """Compile the peer's steps and see which are slow."""
    found = {}
    warm = {}
    for name in IMPLEMENTATIONS:
        first = peer.step(name, 1)
        warm[name] = peer.step(name, 1)["seconds"][0]
        found[name] = Contestant(
            lambda repeats, name=name: peer.step(name, repeats)["seconds"],
            network.repeats,
            first=first["seconds"][0],
            loss_difference=compare_loss(name, first["loss"], loss),
        )
    for name, contestant in found.items():
        contestant.slow = warm[name] > SLOW * min(warm.values())
    return found


def measure(name: str, rounds: int, python: Path | None) -> dict[str, Any]:
    """Measure everything for one network.

    Args:
        name: The network.
        rounds: Number of rounds.
        python: The peer's Python, or None to go without the peer.

    Returns:
        The figures for the JSON file.
    """
    network = NETWORKS[name]
    ours, products = Ours(network), MatrixProducts()
    with tempfile.TemporaryDirectory() as folder, _peer_on(python) as peer:
        arrays = Path(folder, "arrays.npz")
        save_arrays(ours, arrays)
        differences = {}
        if peer is not None:
            peer.prepare(network, arrays)
            differences = compare_kernels(network, ours, peer, Path(folder))
        first, loss = ours.start()
        contestants = {OURS: Contestant(ours.run, network.repeats, first=first)}
        if all(layer.kind == "dense" for layer in network.layers):
            contestants[TF_JACOBIAN] = _jacobian_contestant(ours, network, loss)
        peers = {} if peer is None else peer_contestants(network, peer, loss)
        contestants |= peers
        contestants |= {
            FIT: Contestant(Fit(ours, network).run),
            PRODUCT: Contestant(products.run),
        }
        run_rounds(contestants, rounds)
        best = min(peers, key=lambda key: peers[key].median) if peers else None
        memory = {OURS: our_memory(name)}
        if python is not None and best is not None:
            memory[best] = peer_memory(network, python, best, arrays)
    return _report(network, contestants, products, differences, best, memory)


@contextmanager
def _peer_on(python: Path | None) -> Iterator[Peer | None]:
    if python is None:
        yield None
        return
    with Peer(python) as peer:
        yield peer


def _jacobian_contestant(ours: Ours, network: Network, loss: float) -> Contestant:
    step = JacobianStep(ours, network)
    first, other = step.start()
    difference = compare_loss(TF_JACOBIAN, other, loss)
    return Contestant(step.run, first=first, loss_difference=difference, slow=True)


def _report(
    network: Network,
    contestants: dict[str, Contestant],
    products: MatrixProducts,
    differences: dict[str, float],
    best: str | None,
    memory: dict[str, dict[str, int]],
) -> dict[str, Any]:
    flops, rate = step_flops(network), products.rate()
    floor = flops["total"] / rate
    steps = {k: c.report() for k, c in contestants.items() if k not in (FIT, PRODUCT)}
    for key, figures in steps.items():
        figures["times_floor"] = figures["median_seconds"] / floor
        figures["memory_bytes"] = memory.get(key)
    ours, fit = contestants[OURS], contestants[FIT]
    report: dict[str, Any] = {
        "steps": steps,
        "teacher_kernel_difference": differences,
        "fit": {
            **fit.report(),
            "batches": network.fit_batches,
            "overhead_seconds": fit.median - ours.median,
            "paper_iterations": PAPER_ITERATIONS,
            "paper_schedule_seconds": PAPER_ITERATIONS * fit.median,
        },
        "floor": {
            "flops": flops,
            "flops_per_second": rate,
            "seconds": floor,
            "matrix_product_seconds": {str(n): s for n, s in products.seconds.items()},
        },
        "best_of_peer": best,
    }
    if best is not None:
        pairs = zip(contestants[best].rounds, ours.rounds, strict=True)
        by_round = [statistics.median(b) / statistics.median(o) for b, o in pairs]
        report["peer_best_over_ours"] = {
            "median": contestants[best].median / ours.median,
            "by_round": by_round,
        }
    return report


# Memory.


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes.

    Linux's own figure comes first: getrusage's is handed down by the process that started this
    one, so that the child of a large process would never seem small.
    """
    try:
        rows = Path("/proc/self/status").read_text().splitlines()
        return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM"))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def our_memory(name: str) -> dict[str, int]:
    """Return the peak memory of a fresh process: before, and added by some steps."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process that measures memory failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(name: str) -> None:
    """Measure it, in the fresh process."""
    ours = Ours(NETWORKS[name])
    before = peak_memory()
    ours.start()
    ours.run(3)
    print(json.dumps({"before": before, "added": peak_memory() - before}))


def peer_memory(network: Network, python: Path, best: str, arrays: Path) -> dict[str, int]:
    """Return the same for the peer."""
    with Peer(python) as peer:
        peer.prepare(network, arrays)
        before = peer.ask("peak")["bytes"]
        peer.step(best, 5)
        return {"before": before, "added": peer.ask("peak")["bytes"] - before}


# The report.


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = platform.processor()
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(row.split(":", 1)[1].strip() for row in rows if row.startswith("model name"))
    except (OSError, StopIteration):
        pass
    names = ("keras", "tensorflow", "numpy")
    versions = {name: version(name) for name in names}
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load_average_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "keras_ntt": keras_ntt.__version__,
        **versions,
    }


def table(name: str, figures: dict[str, Any], peer: str) -> str:
    """Return the figures of one network for people to read."""
    titles = ("", "median ms", "quartiles", "x ours", "x floor", "first call s", "memory MB")
    rows = [titles]
    ours = figures["steps"][OURS]["median_seconds"]
    for key, one in figures["steps"].items():
        low, high = one["quartiles_seconds"]
        memory = one["memory_bytes"]
        rows.append(
            (
                f"{key} (best of the peer)" if key == figures["best_of_peer"] else key,
                _ms(one["median_seconds"]),
                f"{_ms(low)} - {_ms(high)}",
                f"{one['median_seconds'] / ours:.1f}",
                f"{one['times_floor']:.1f}",
                f"{one['first_call_seconds']:.1f}",
                "" if memory is None else f"{memory['added'] / 1e6:,.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    lines = ["", f"{name}, one step"]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines + _notes(figures, peer))


def _notes(figures: dict[str, Any], peer: str) -> list[str]:
    floor, fit = figures["floor"], figures["fit"]
    notes = [f"  peer: {peer}"]
    if figures["best_of_peer"] is not None:
        by_round = figures["peer_best_over_ours"]["by_round"]
        notes += [
            f"  peer's best / ours: {figures['peer_best_over_ours']['median']:.2f}, "
            f"by round {min(by_round):.2f} - {max(by_round):.2f}",
            "  largest difference of the teacher's kernels, of the largest entry: "
            f"{max(figures['teacher_kernel_difference'].values()):.1e}",
        ]
    return [
        *notes,
        f"  floor: {_ms(floor['seconds'])} ms = {floor['flops']['total'] / 1e9:.2f} GFLOP at "
        f"{floor['flops_per_second'] / 1e9:.0f} GFLOP/s",
        f"  fit: {_ms(fit['median_seconds'])} ms a step, {_ms(fit['overhead_seconds'])} ms more "
        f"than the step alone; {fit['paper_iterations']:,} iterations in "
        f"{fit['paper_schedule_seconds']:,.0f} s",
    ]


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:,.0f}" if abs(ms) >= 100 else f"{ms:.2f}"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--no-peer", action="store_true", help="do not run neural-tangents")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "ntt_step.json")
    parser.add_argument("--memory-of", choices=NETWORKS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(given)
    if chosen.rounds < 1:
        parser.error("--rounds must be at least 1")
    return chosen


def find_peer(wanted: bool) -> tuple[Path | None, dict[str, Any]]:
    """Return the peer's Python or None, and what to say about it."""
    if not wanted:
        return None, {"status": "not run: --no-peer"}
    try:
        python = peer_python()
        with Peer(python) as peer:
            versions = peer.ask("versions")
    except (Unavailable, RuntimeError) as reason:
        print(f"neural-tangents is left out: {reason}", flush=True)
        return None, {"status": f"not run: {reason}"}
    return python, {"status": f"neural-tangents {versions['neural-tangents']}", **versions}


def main() -> None:
    """Measure, print and write."""
    chosen = arguments()
    if chosen.memory_of:
        print_memory(chosen.memory_of)
        return
    report: dict[str, Any] = {"machine": machine(), "rounds": chosen.rounds}
    python, report["peer"] = find_peer(not chosen.no_peer)
    report["settings"] = {"batch": BATCH, "outputs": OUTPUTS, "sparsity": SPARSITY, **SETTINGS}
    report["networks"] = {}
    print(f"{report['machine']['cpu']}, {report['machine']['cores']} cores", flush=True)
    for name in chosen.networks:
        report["networks"][name] = measure(name, chosen.rounds, python)
        print(table(name, report["networks"][name], report["peer"]["status"]), flush=True)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nWritten: {chosen.output}")


if __name__ == "__main__":
    main()
