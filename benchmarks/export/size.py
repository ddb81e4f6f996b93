"""Sizes of exported LiteRT files: four networks at 50 to 99 % zeros.

    python -m benchmarks.export.size [--networks NAME ...] [--output FILE]

Prints a table a network and writes JSON. benchmarks/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.common.paths import RESULTS
from benchmarks.export.networks import NETWORKS, prune
from keras_ntt.core.tables import table
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import sizes
from keras_ntt.litert.reencode import reencode

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)

# What the first form of this writer reached for other random masks of the same sparsity, in
# thousands of bytes: float32 raw and zstd, int8 weights raw and zstd.
REFERENCE: dict[str, dict[float, tuple[float | None, ...]]] = {
    "lenet-300-100": {
        0.5: (790, 573, None, None),
        0.7: (477, 365, 241, 144),
        0.8: (320, 252, 164, 106),
        0.9: (163, 133, 88.1, 60.8),
        0.95: (84.8, 70.0, 50.0, 35.5),
        0.97: (53.5, 44.6, 34.8, 24.1),
        0.99: (22.1, 17.8, 19.4, 12.0),
    },
    "lenet-5": {
        0.5: (1288, 921, None, None),
        0.7: (777, 586, 394, 228),
        0.8: (522, 405, 269, 168),
        0.9: (265, 213, 143, 96.1),
        0.95: (137, 112, 79.8, 55.3),
        0.97: (86.0, 70.4, 54.7, 37.8),
        0.99: (34.4, 28.0, 29.0, 18.2),
    },
    "conv-4": {
        0.5: (6114, 5012, None, None),
        0.7: (3686, 3139, 1500, 1094),
        0.8: (2474, 2154, 1020, 795),
        0.9: (1261, 1128, 541, 454),
        0.95: (655, 589, 301, 254),
        0.97: (396, 369, 189, 170),
        0.99: (153, 138, 92.3, 73.1),
    },
    "mobilenet": {
        0.5: (9590, 6824, None, None),
        0.7: (5863, 4376, 3076, 1767),
        0.8: (3994, 3079, 2162, 1349),
        0.9: (2129, 1711, 1251, 862),
        0.95: (1195, 991, 793, 578),
        0.97: (822, 692, 610, 453),
        0.99: (449, 383, 428, 316),
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=RESULTS / "export_size.json")
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        found = [measure(name, sparsity) for sparsity in SPARSITIES]
        rows += found
        print(f"\n{name}: dense float32 {found[0]['dense'] / 1000:,.0f} kB, all in kB")
        print(show(found), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def measure(name: str, sparsity: float) -> dict[str, Any]:
    (content,) = convert(prune(NETWORKS[name](), sparsity), [None])
    model = fb.read(content)
    row: dict[str, Any] = {"network": name, "sparsity": sparsity, "dense": len(content)}
    for kind, int8 in (("float32", False), ("int8_weights", True)):
        found = reencode(model, target="size", int8=int8)
        row[kind] = sizes.of(fb.write(found.model)).to_dict()
        row[kind]["limit"] = sizes.limit_of_model(found.model)
    row["reference_kB"] = REFERENCE[name][sparsity]
    return row


def show(rows: list[dict[str, Any]]) -> str:
    head = ["zeros", "float32", "(before)", "zstd", "(before)", "limit"]
    head += ["int8 weights", "(before)", "zstd", "(before)", "limit"]
    body = []
    for row in rows:
        before = ["-" if value is None else f"{value:g}" for value in row["reference_kB"]]
        line = [f"{row['sparsity']:.0%}"]
        for kind, raw, packed in (("float32", *before[:2]), ("int8_weights", *before[2:])):
            line += [kb(row[kind]["raw"]), raw, kb(row[kind]["zstd"]), packed]
            line.append(kb(row[kind]["limit"]))
        body.append(line)
    return table(head, body, right=range(len(head)))


def kb(size: float | None) -> str:
    return "-" if size is None else f"{size / 1000:.4g}"


if __name__ == "__main__":
    sys.exit(main())
