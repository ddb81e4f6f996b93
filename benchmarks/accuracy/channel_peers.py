"""Channel pruning without labels by other programs, on the same networks, images and sizes.

    python -m benchmarks.accuracy.channel_peers --data-dir DATA

Peers are Sony's model-compression-toolkit (label-free Hessian scores, TensorFlow 2.15) and
Torch-Pruning (group L2 norms, on the same weights in PyTorch), each in an environment of its own in
``benchmarks/.envs``, which downloads some hundred megabytes once. Both prune in one shot from 256
unlabelled images. Torch-Pruning has no step on inputs; a second row takes the statistics of its
normalizations again on these images, as ours does. The published ResNet-8 of MLPerf Tiny comes down
to at most 50,858 parameters; the one fine-tuned on these images (`benchmarks.accuracy.channels`) to
at most a fraction of its multiply-adds; model-compression-toolkit, whose target is memory, to
as many parameters as ours then has. Rows that the file of results has already are not run again;
what cannot be installed or run is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_ntt
from benchmarks.accuracy.channels import NETWORKS, PARAMETERS, Images
from benchmarks.accuracy.trained import accuracy
from benchmarks.accuracy.trained_networks import CIFAR
from benchmarks.common.paths import BENCHMARKS, ENVIRONMENTS, RESULTS
from benchmarks.common.processes import clean_environment
from benchmarks.common.table import machine
from keras_ntt.core.channels.graph import channel_graph
from keras_ntt.core.tables import table
from keras_ntt.pruning.channels.plan import cost_of

PEERS = {
    "model-compression-toolkit": (
        "peer_mct.py",
        ("tensorflow==2.15.*", "model-compression-toolkit==2.6.*"),
    ),
    "torch-pruning": ("peer_torch_pruning.py", ("torch==2.13.0", "torch-pruning==1.6.*", "numpy")),
}
CALIBRATION = 256


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the networks and the images")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--flops", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    parser.add_argument("--output", type=Path, default=RESULTS / "channel_peers.json")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, and print the table."""
    asked = options()
    folder = asked.data_dir
    if folder is None or not all((folder / f).exists() for f in (CIFAR, *NETWORKS.values())):
        print(f"not run: --data-dir with {', '.join((CIFAR, *NETWORKS.values()))} is needed")
        return
    found: dict[str, Any] = {"rows": []}
    if asked.output.exists():
        found = json.loads(asked.output.read_text())
    images = Images(folder / CIFAR, asked.part)
    points: list[tuple[str, float | None]] = [("original", None)]
    points += [("resnet8", flops) for flops in asked.flops]
    for network, flops in points:
        key = {"part": asked.part, "network": network, "flops": flops}
        missing = [
            peer
            for peer in ("keras_ntt", *asked.peers)
            if not any({**key, "peer": peer}.items() <= row.items() for row in found["rows"])
        ]
        if not missing:
            continue
        model = keras.models.load_model(folder / NETWORKS[network], compile=False)
        target = {"ratio": 1 - PARAMETERS / model.count_params()}
        if flops is not None:
            target = {"flops": flops}
        x, _ = images.drawn(CALIBRATION, 0)
        smaller = keras_ntt.prune_channels(model, x, round_to=1, **target)
        cost = cost_of(channel_graph(smaller), set())
        whole = cost_of(channel_graph(model), set()).multiply_adds
        limits = {
            "parameters": PARAMETERS if flops is None else cost.parameters,
            "multiply_adds": None if flops is None else (1 - flops) * whole,
        }
        for peer in missing:
            if peer == "keras_ntt":
                one = {"accuracy": accuracy(smaller, images.x, images.y), **cost._asdict()}
                rows = [{"method": "default", **one}]
            else:
                rows = run(peer, folder, model, images, x, limits)
            found["machine"] = machine()
            found["rows"] += [{**key, "peer": peer, **row} for row in rows]
            asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print(text([row for row in found["rows"] if row["part"] == asked.part]))


def run(
    peer: str,
    data: Path,
    model: keras.Model,
    images: Images,
    x: np.ndarray,
    limits: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows of a peer, or one that says why there are none."""
    program, requirements = PEERS[peer]
    try:
        python = python_of(peer, requirements)
    except (OSError, subprocess.CalledProcessError) as error:
        return [{"not_run": f"its environment cannot be made: {error}"[:200]}]
    with tempfile.TemporaryDirectory() as folder:
        weights = {
            f"{layer.name}.{number}": value
            for layer in model.layers
            for number, value in enumerate(layer.get_weights())
        }
        np.savez(f"{folder}/weights.npz", **weights)
        np.savez(f"{folder}/images.npz", calibration=x, x=images.x.astype(np.uint8), y=images.y)
        Path(folder, "task.json").write_text(
            json.dumps({**limits, "network": str((data / NETWORKS["original"]).resolve())})
        )
        done = subprocess.run(
            [str(python), str(BENCHMARKS / "accuracy" / program), folder],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment(),
        )
    if done.returncode:
        return [{"not_run": (done.stderr.strip().splitlines() or ["without a word"])[-1][:200]}]
    answer: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def python_of(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the Python of a peer's environment, which is made if need be."""
    folder = ENVIRONMENTS / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(command, check=True, env=clean_environment())
        (folder / ".ready").touch()
    return python


def text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    body = []
    for row in rows:
        point = "parameters" if row["flops"] is None else f"{row['flops']:.0%} of the work removed"
        head = [row["network"], point, row["peer"]]
        if "not_run" in row:
            body.append([*head, row["not_run"], "", "", ""])
            continue
        costs = [f"{row[name]:,}" for name in ("parameters", "multiply_adds")]
        body.append([*head, row["method"], *costs, f"{100 * row['accuracy']:.2f}"])
    titles = ["network", "point", "program", "method", "parameters", "multiply-adds", "accuracy %"]
    return str(table(titles, body, right=(4, 5, 6)))


if __name__ == "__main__":
    main()
