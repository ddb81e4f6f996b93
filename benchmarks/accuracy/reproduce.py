"""Compare methods of pruning at initialization under the protocol of Liu & Zenke (2020).

    python -m benchmarks.accuracy.reproduce --idx-dir /usr/share/datasets/fashion-mnist

Every run, one network of one method, density, allocation and seed, is a file in
``OUTPUT/runs``; runs whose file is there are not repeated, a transfer that was stopped goes on
from its last whole epoch, and networks that a transfer has found are kept in ``OUTPUT/found`` for
other ways to train them. So stop it at any time and call it again with the same settings. All
finished runs are written to ``OUTPUT.json``, their tables to ``OUTPUT.md`` or into a report, and
the losses of transfers are drawn in ``OUTPUT_losses.png``.
To add to the runs of such a file, give it as ``--known``. benchmarks/README.md has the protocol.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import tensorflow as tf

from benchmarks.accuracy import moving
from benchmarks.accuracy.accuracies import insert, read, tables
from benchmarks.accuracy.datasets import TFDS_NAMES, load
from benchmarks.accuracy.experiment import (
    METHODS,
    NETWORKS,
    SCORES,
    TRANSFERS,
    Run,
    do,
    unpack,
    write,
)
from benchmarks.accuracy.transfer_losses import draw, losses
from benchmarks.common.paths import RESULTS

ALLOCATED = {"dense": "none", "erk-random": "erk", "granet": "global"}
SCORED = {*SCORES, "ntt-balanced", "rigl-balanced", "set-balanced"}


def plan(options: argparse.Namespace, known: Iterable[Mapping[str, Any]] = ()) -> Iterator[Run]:
    """Yield the runs, seed by seed, so that a part of them is already a comparison.

    Args:
        options: Those of the command line.
        known: Contents of the files of finished runs, which ``--tuned`` takes settings from.
    """
    tuned = moving.best(known)
    seen = set()
    cells = itertools.product(
        range(options.seeds), options.networks, shares(options), options.methods
    )
    for seed, name, (density, allocation, pattern), method in cells:
        if method == "random" and allocation == "erk":
            continue  # that is erk-random
        if method == "erk-random" and pattern != "none":
            continue  # the pattern shares the zeros out
        if method in ("balanced", "ntt-balanced") and (allocation == "global" or pattern != "none"):
            continue  # their masks are drawn for given shares
        if method in moving.STARTS and not takes(method, allocation, pattern):
            continue
        dense = method == "dense"
        run = Run(
            dataset=options.dataset,
            network=name,
            method=method,
            allocation=ALLOCATED.get(method, allocation),
            pattern="none" if dense else pattern,
            density=1.0 if dense else density,
            seed=seed,
            split=options.split,
            label_fraction=options.label_fraction,
            epochs=options.epochs,
            score_samples=options.score_samples if method in SCORED else 0,
            **(settings(name, options) if method in TRANSFERS else {}),
        )
        for one in variants(run, options, tuned):
            if one not in seen:
                seen.add(one)
                yield one


def takes(method: str, allocation: str, pattern: str) -> bool:
    """Tell whether a method that moves masks is run with an allocation and a pattern."""
    gradual = method == "gradual" and allocation in ("layerwise", "erk")
    return pattern == "none" and (method == "granet" or gradual or allocation == "erk")


def variants(
    run: Run, options: argparse.Namespace, tuned: dict[tuple[Any, ...], dict[str, Any]]
) -> Iterator[Run]:
    """Yield a run with each of the settings of masks that move, or itself if it moves none."""
    if run.method not in moving.STARTS:
        yield run
        return
    if options.tuned:
        chosen = tuned.get(moving.cell_of({**vars(run), "network": options.tuned}))
        if chosen is None:
            raise SystemExit(f"No run on validation images tells the settings of {run.key}.")
        yield dataclasses.replace(run, **chosen)
        return
    own = moving.DEFAULTS[run.method]
    choices = [getattr(options, name) or [own[name]] for name in moving.SETTINGS]
    for values in itertools.product(*choices):
        found = dict(zip(moving.SETTINGS, values, strict=True))
        if found["begin"] < found["end"]:
            if run.method == "gradual":
                found["drop_fraction"] = 0.0
            yield dataclasses.replace(run, **found)


def shares(options: argparse.Namespace) -> Iterator[tuple[float, str, str]]:
    """Yield how zeros are shared out: densities, allocations and patterns that fit together."""
    for pattern in options.patterns:
        if ":" in pattern:  # which fixes the density of every layer
            n, m = map(int, pattern.split(":"))
            yield n / m, "layerwise", pattern
        else:
            for density, allocation in itertools.product(options.densities, options.allocations):
                yield density, allocation, pattern


def settings(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a transfer."""
    given = {"transfer_epochs": options.transfer_epochs, "l2": options.l2}
    return {
        **NETWORKS[name],
        **{key: value for key, value in given.items() if value is not None},
        "learning_rate": options.learning_rate,
        "ntk_weight": options.ntk_weight,
    }


def arguments(words: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=TFDS_NAMES, default="fashion_mnist")
    parser.add_argument("--idx-dir", type=Path, help="folder of the four IDX files")
    parser.add_argument("--tfds-dir", type=Path, help="folder of tensorflow-datasets")
    parser.add_argument("--output", type=Path, default=RESULTS / "reproduce")
    parser.add_argument("--report", type=Path, help="a Markdown file to write the tables into")
    parser.add_argument("--known", type=Path, help="an OUTPUT.json whose runs are not repeated")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["lenet-300-100"])
    at_init = [method for method in METHODS if method not in moving.STARTS]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=at_init)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.05, 0.03, 0.01])
    parser.add_argument(
        "--allocations",
        nargs="+",
        choices=["layerwise", "global", "erk"],
        default=["layerwise", "global"],
    )
    parser.add_argument(
        "--patterns", nargs="+", default=["none"], help="none, 1:4, 4x1 (blocks), filters, ..."
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--score-samples", type=int, default=1000)
    parser.add_argument("--label-fraction", type=float, default=1.0)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    transfers = parser.add_argument_group("transfers")
    transfers.add_argument("--transfer-epochs", type=int, help="5 for the MLP, 1 for the others")
    transfers.add_argument("--learning-rate", type=float, default=5e-4)
    transfers.add_argument("--ntk-weight", type=float, default=1e-3)
    transfers.add_argument("--l2", type=float, help="1e-4 for the MLP, 1e-5 for the others")
    moves = parser.add_argument_group(
        "masks that move", "Several values: all combinations. None: those of the authors' codes."
    )
    moves.add_argument("--drop-fraction", nargs="+", type=float, help="of the kept, at first")
    moves.add_argument("--frequency", nargs="+", type=int, help="steps between two moves")
    moves.add_argument("--begin", nargs="+", type=float, help="fraction of the training")
    moves.add_argument("--end", nargs="+", type=float, help="fraction of the training")
    moves.add_argument(
        "--tuned",
        metavar="NETWORK",
        choices=NETWORKS,
        help="take the settings of this network that ended highest on validation images",
    )
    work = parser.add_argument_group("how the work is done")
    work.add_argument("--list", action="store_true", help="list the runs and stop")
    work.add_argument(
        "--only-tables", action="store_true", help="run nothing; write the runs that are there"
    )
    work.add_argument("--threads", type=int, default=0, help="of one operation; 0: all cores")
    work.add_argument(
        "--part", default="1/1", help="2/3: the second third of the runs, for several processes"
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    part, parts = map(int, options.part.split("/"))
    if options.known:
        unpack(options.known, options.output)
    runs = list(plan(options, read(options.output / "runs")))[part - 1 :: parts]
    left = [r for r in runs if not (options.output / "runs" / f"{r.key}.json").exists()]
    print(f"{len(runs)} runs, {len(runs) - len(left)} done.", flush=True)
    if options.list:
        print("\n".join(f"{'left' if r in left else 'done'}  {r.key}" for r in runs))
        return 0
    if options.only_tables:
        left = []
    if left:
        if options.threads:
            tf.config.threading.set_intra_op_parallelism_threads(options.threads)
            tf.config.threading.set_inter_op_parallelism_threads(options.threads)
        data = load(
            options.dataset,
            idx_dir=options.idx_dir,
            tfds_dir=options.tfds_dir,
            split=options.split,
        )
    for i, run in enumerate(left):
        begun = time.perf_counter()
        keras.backend.clear_session()
        accuracy = do(run, data, options.output)["accuracy"][-1]
        print(
            f"{i + 1}/{len(left)}  {run.key}  {accuracy:.2%}  {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    results = read(options.output / "runs")
    write(options.output.with_suffix(".json"), results)
    report = options.report or options.output.with_suffix(".md")
    text = tables(results) + losses(results)
    report.write_text(insert(text, report if options.report else None))
    print(f"Written: {report}")
    picture = options.output.with_name(f"{options.output.name}_losses.png")
    if draw(results, picture):
        print(f"Written: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
