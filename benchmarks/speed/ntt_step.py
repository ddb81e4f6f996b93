"""Time one step of Neural Tangent Transfer, next to other ways to take it and to a floor.

A step is: the teacher's kernel, the student's kernel, the gradient of the objective and Adam's
update, for one batch in float32 on the CPU. It is timed here with and without XLA and oneDNN,
with neural-tangents 0.6.5 (in a separate environment, which this program makes), and by
TensorFlow's Jacobians. An ordinary training step is timed too. All take turns in the same rounds,
each in its own process, and only one computes at a time. The floor is the time that the step's
products would take at the speed of one large matrix product.

    python -m benchmarks.speed.ntt_step [--rounds N] [--networks NAME ...] [--no-peer]

Prints tables and writes JSON. benchmarks/README.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # of the contestants too
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # everyone on the CPU

import numpy as np

from benchmarks.common.networks import NETWORKS, SETTINGS, SPARSITY, Network
from benchmarks.common.paths import RESULTS
from benchmarks.common.processes import (
    JACOBIAN,
    OURS,
    OURS_XLA,
    TRAINING,
    WITHOUT_ONEDNN,
    Infeasible,
    Process,
)
from benchmarks.common.table import machine, table
from benchmarks.common.timing import SLOW, Contestant, ratio_by_round, run_rounds
from benchmarks.speed import peers
from benchmarks.speed.floor import MatrixProducts, step_flops

KERNEL_TOLERANCE = 1e-4  # of the largest entry
LOSS_TOLERANCE = 1e-3  # relative
PAPER_ITERATIONS = 18_720  # of the paper's schedule for the MLP
PATIENCE = 4  # times the limit for what is mostly the fastest of the peer
FIT, PRODUCT = "fit", "product"


def worker(network: str, contestant: str) -> Process:
    """Start a contestant in TensorFlow."""
    environment = dict(os.environ)
    if contestant == WITHOUT_ONEDNN:
        environment["TF_ENABLE_ONEDNN_OPTS"] = "0"
    command = [sys.executable, "-m", "benchmarks.speed.worker", network, contestant]
    return Process(command, environment)


class Race:
    """The contestants for one network.

    Args:
        name: The network.
        limit: Seconds that the first step of the others than ours may take.

    Attributes:
        contestants: Those that are timed.
        not_timed: Why others are not.
        differences: Largest difference of the teacher's kernel from ours, of the largest entry.
    """

    def __init__(self, name: str, limit: float):
        self.name = name
        self.network: Network = NETWORKS[name]
        self.limit = limit
        self.contestants: dict[str, Contestant] = {}
        self.not_timed: dict[str, str] = {}
        self.differences: dict[str, float] = {}
        self.loss: float | None = None

    def enter(self, key: str, process: Process, limit: float, compared: bool = True) -> None:
        """Take the first step of a contestant, and let it take part if it can.

        Raises:
            Infeasible: If it cannot.
            RuntimeError: If the loss of its first step is not ours.
        """
        _say(f"{self.name}: {key} ...")
        first = process.ask("start", limit=limit)
        difference = None
        if compared and self.loss is not None:
            difference = abs(first["loss"] - self.loss) / abs(self.loss)
            if not difference <= LOSS_TOLERANCE:
                raise RuntimeError(
                    f"{self.name}: the loss of the first step is {self.loss} here and "
                    f"{first['loss']} with {key}"
                )
        elif compared:
            self.loss = first["loss"]
        self.contestants[key] = Contestant(
            lambda repeats: process.ask("step", repeats=repeats)["seconds"],
            self.network.repeats,
            first=first["first"],
            memory=first["memory"],
            loss_difference=difference,
            slow=first["warm"] > SLOW and key != OURS,
        )

    def try_to_enter(
        self, key: str, process: Process, *, compared: bool = True, patience: float = 1
    ) -> None:
        """Do the same within the limit; remember why, if it cannot."""
        try:
            self.enter(key, process, patience * self.limit, compared)
        except Infeasible as reason:
            self.not_timed[key] = str(reason)
            process.end()

    def enter_peer(self, key: str, process: Process, arrays: Path, kernel: Path) -> None:
        """Compare the kernel of one of the peer's implementations with ours, then enter it."""
        _say(f"{self.name}: the kernel of {key} ...")
        other = kernel.with_name("peer.npy")
        first = key == peers.IMPLEMENTATIONS[0]
        try:
            peers.prepare(process, self.network, arrays)
            process.ask("use", implementation=key)
            # A step takes two kernels and a gradient: more than twice as long.
            limit = PATIENCE * self.limit if first else self.limit / 2
            process.ask("kernel", output=str(other), limit=limit)
        except Infeasible as reason:
            self.not_timed[key] = str(reason)
            process.end()
            return
        self.differences[key] = compare_kernels(np.load(kernel), np.load(other), key)
        self.try_to_enter(key, process, patience=PATIENCE if first else 1)


def _say(what: str) -> None:
    """Tell who waits what is being done."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def compare_kernels(ours: np.ndarray, other: np.ndarray, name: str) -> float:
    """Return the largest difference, of the largest entry; raise if the kernels differ."""
    difference = float("inf")
    if ours.shape == other.shape:
        difference = float(np.abs(ours - other).max() / np.abs(ours).max())
    if not difference <= KERNEL_TOLERANCE:
        raise RuntimeError(
            f"The teacher's kernel differs from neural-tangents' {name} by {difference:.2e} of its "
            f"largest entry: shapes {ours.shape}, {other.shape}"
        )
    return difference


def measure(name: str, rounds: int, python: Path | None, limit: float) -> dict[str, Any]:
    """Measure everything for one network.

    Args:
        name: The network.
        rounds: Number of rounds.
        python: The peer's Python, or None to go without the peer.
        limit: Seconds that the first step of the others than ours may take.

    Returns:
        The figures for the JSON file.
    """
    race = Race(name, limit)
    network, products = race.network, MatrixProducts()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arrays, kernel = folder / "arrays.npz", folder / "kernel.npy"
        ours = stack.enter_context(worker(name, OURS))
        if python is not None and not network.no_peer:
            ours.ask("save", output=str(arrays))
        race.enter(OURS, ours, 600)
        in_graph = ours.ask("flops")
        for key in (OURS_XLA, WITHOUT_ONEDNN, JACOBIAN):
            race.try_to_enter(key, stack.enter_context(worker(name, key)))
        if network.no_peer:
            race.not_timed["neural-tangents"] = network.no_peer
        elif python is not None:
            with worker(name, OURS) as other:  # whose memory does not matter
                other.ask("kernel", output=str(kernel))
            for key in peers.IMPLEMENTATIONS:
                race.enter_peer(key, stack.enter_context(peers.start(python)), arrays, kernel)
        training = stack.enter_context(worker(name, TRAINING))
        race.try_to_enter(TRAINING, training, compared=False)
        timed = {**race.contestants, PRODUCT: Contestant(products.run)}
        if network.fit_batches:
            timed[FIT] = Contestant(lambda _: ours.ask("fit")["seconds"])
        _say(f"{name}: {rounds} rounds ...")
        for key, reason in run_rounds(timed, rounds).items():
            if key not in race.contestants or key == OURS:
                raise RuntimeError(f"{name}: {key} failed: {reason}")
            race.not_timed[key] = reason
            del race.contestants[key]
    return report(race, timed.get(FIT), products, in_graph)


def report(
    race: Race, fit: Contestant | None, products: MatrixProducts, in_graph: dict[str, int]
) -> dict[str, Any]:
    """Return the figures of one network for the JSON file."""
    network = race.network
    by_layers, rate = step_flops(network), products.rate()
    flops = in_graph["total"] if by_layers is None else by_layers["total"]
    steps = {key: one.report() for key, one in race.contestants.items()}
    for figures in steps.values():
        figures["times_floor"] = figures["median_seconds"] * rate / flops
    of_peer = [key for key in peers.IMPLEMENTATIONS if key in race.contestants]
    ours = race.contestants[OURS]
    best = min(of_peer, key=lambda key: race.contestants[key].median, default=None)
    outputs = f"{network.outputs:,} outputs"
    if network.projections:
        outputs += f" in {network.projections} random combinations"
    found: dict[str, Any] = {
        "what": f"one step, batch {network.batch}, {outputs}",
        "batch": network.batch,
        "outputs": network.outputs,
        "output_projections": network.projections,
        "steps": steps,
        "not_timed": race.not_timed,
        "teacher_kernel_difference": race.differences,
        "fit": None if fit is None else _fit(fit, ours, network),
        "floor": {
            "seconds": flops / rate,
            "flops": flops,
            "counted_from": "graph" if by_layers is None else "layers",
            "flops_by_layers": by_layers,
            "flops_in_graph": in_graph,
            "flops_per_second": rate,
            "matrix_product_seconds": {str(n): s for n, s in products.seconds.items()},
        },
        "best_of_peer": best,
    }
    if best is not None:
        found["peer_best_over_ours"] = {
            "median": race.contestants[best].median / ours.median,
            "by_round": ratio_by_round(race.contestants[best], ours),
        }
    return found


def _fit(fit: Contestant, ours: Contestant, network: Network) -> dict[str, Any]:
    return {
        "median_seconds": fit.median,
        "rounds_seconds": fit.rounds,
        "batches": network.fit_batches,
        "overhead_seconds": statistics.median(fit.seconds) - ours.median,
        "paper_iterations": PAPER_ITERATIONS,
        "paper_schedule_seconds": PAPER_ITERATIONS * fit.median,
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--no-peer", action="store_true", help="do not run neural-tangents")
    parser.add_argument("--output", type=Path, default=RESULTS / "ntt_step.json")
    parser.add_argument(
        "--limit",
        type=float,
        default=40.0,
        help="seconds that the first step of the others may take, with its compilation",
    )
    chosen = parser.parse_args(given)
    if chosen.rounds < 1:
        parser.error("--rounds must be at least 1")
    return chosen


def main() -> None:
    """Measure, print and write."""
    chosen = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all processes are ended
    found: dict[str, Any] = {"machine": machine(), "rounds": chosen.rounds, "limit": chosen.limit}
    python, found["peer"] = peers.find(not chosen.no_peer)
    found["settings"] = {"sparsity": SPARSITY, **SETTINGS}
    found["networks"] = {}
    failed: list[str] = []
    print(f"{found['machine']['cpu']}, {found['machine']['cores']} cores", flush=True)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen.networks:
        try:
            figures = measure(name, chosen.rounds, python, chosen.limit)
        except (RuntimeError, Infeasible) as reason:
            found["networks"][name] = {"failed": str(reason)}
            failed.append(f"{name} failed: {reason}")
            print(f"\n{failed[-1]}", flush=True)
        else:
            found["networks"][name] = figures
            print(table(name, figures, found["peer"]["status"]), flush=True)
        chosen.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nWritten: {chosen.output}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
