"""Figures and help texts for the documentation, from the JSON files in benchmarks/results/.

    python docs/_figures.py

writes them into the pages, between the lines ``<!-- figures: NAME -->`` and ``<!-- end -->``. Each
function takes the folder of results and returns Markdown. What has not been measured is
marked as such; nothing is typed by hand.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import _channels
import _matrix
import _sizes
import _trust
from _tables import machine, missing, ms, read, table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"
BLOCK = re.compile(r"^<!-- figures: (\w+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
OURS = "keras_ntt"


# --- steps -----------------------------------------------------------------------------------


def step_times_without_vnni(results: Path) -> str:
    """Return the same for a processor without instructions for neural networks."""
    return step_times(results, "ntt_step_without_vnni.json")


def step_times(results: Path, file: str = "ntt_step.json") -> str:
    """Return how long a step takes, compared with other ways to take it."""
    found = read(results / file)
    if found is None:
        return missing("benchmarks.speed.ntt_step")
    parts = [machine(found["machine"])]
    for name, network in found["networks"].items():
        parts.append(f"### {name}")
        parts.append(_network(network))
    return "\n\n".join(parts)


def _network(network: dict[str, Any]) -> str:
    if "failed" in network:
        return f"*This network failed: {network['failed']}*"
    ours = network["steps"][OURS]["median_seconds"]
    body = [
        [
            f"{key} (best of the peer)" if key == network["best_of_peer"] else key,
            ms(one["median_seconds"]),
            " to ".join(ms(q) for q in one["quartiles_seconds"]),
            f"{one['median_seconds'] / ours:.2f}",
            f"{one['times_floor']:.1f}",
            f"{one['first_call_seconds']:.1f}",
            f"{one['memory_bytes']['added'] / 1e6:,.0f}",
        ]
        for key, one in network["steps"].items()
    ]
    head = ("", "median ms", "quartiles", "x ours", "x floor", "first call s", "memory MB")
    text = [network["what"][:1].upper() + network["what"][1:] + "."]
    text.append(table(head, body, right=range(1, 7)))
    text += [f"- {key}: not timed, {why}." for key, why in network["not_timed"].items()]
    floor = network["floor"]
    text.append(
        f"The floor is {ms(floor['seconds'])} ms: {floor['flops'] / 1e9:.2f} GFLOP, counted from "
        f"the {floor['counted_from']}, at {floor['flops_per_second'] / 1e9:.0f} GFLOP/s."
    )
    if network["fit"] is not None:
        text.append(f"Through `fit` a step takes {ms(network['fit']['median_seconds'])} ms.")
    return "\n\n".join(text)


def growth(results: Path) -> str:
    """Return how the cost of a step grows."""
    found = read(results / "growth.json")
    if found is None:
        return missing("benchmarks.speed.growth")
    body = []
    for changed, sweeps in found["sweeps"].items():
        for one in sweeps:
            seconds, size = one["exponent_of_seconds"], one["exponent_of_bytes"]
            points = [point[changed] for point in one["points"]]
            body.append(
                [
                    changed,
                    one["series"],
                    f"{min(points)} to {max(points)}" if points else "none",
                    f"{seconds['exponent']:.2f}" if seconds else "",
                    f"{size['exponent']:.2f}" if size else "",
                    one["left_out"] or "",
                ]
            )
    head = ("number", "series", "range", "exponent of time", "of memory", "left out")
    pictures = [
        f"![Time of a step by {changed}](../benchmarks/results/growth_{changed}.png)"
        for changed in found["sweeps"]
        if (results / f"growth_{changed}.png").exists()
    ]
    return "\n\n".join([machine(found["machine"]), table(head, body, right=(3, 4)), *pictures])


def profile(results: Path) -> str:
    """Return where the time of a step goes."""
    found = read(results / "profile.json")
    if found is None:
        return missing("benchmarks.speed.profile_step")
    networks = found["networks"]
    kinds = dict.fromkeys(kind for one in networks.values() for kind in one["kinds"])
    totals = {name: sum(one["kinds"].values()) for name, one in networks.items()}
    body = [
        [kind]
        + [f"{one['kinds'].get(kind, 0) / totals[name]:.0%}" for name, one in networks.items()]
        for kind in kinds
    ]
    body.append(["milliseconds", *(ms(total / 1000) for total in totals.values())])
    body.append(["operations", *(f"{one['count']:.0f}" for one in networks.values())])
    right = range(1, len(networks) + 1)
    return "\n\n".join([machine(found["machine"]), table(("", *networks), body, right=right)])


def outputs(results: Path) -> str:
    """Return what ways to compare kernels of many outputs cost, and how close they come."""
    found = read(results / "outputs.json")
    if found is None:
        return missing("benchmarks.speed.outputs")
    before = next(iter(found["ways"].values()))
    body = [
        [
            name,
            "" if one["median_seconds"] is None else ms(one["median_seconds"]),
            f"{one['ntk_distance'] / before['ntk_distance']:.3f}",
            f"{one['output_distance'] / before['output_distance']:.3f}",
        ]
        for name, one in found["ways"].items()
    ]
    head = ("", "ms a step", "kernel distance", "output distance")
    said = f"{found['steps']} steps each."
    return "\n\n".join([machine(found["machine"]), said, table(head, body, right=(1, 2, 3))])


def import_time(results: Path) -> str:
    """Return how long the import takes, compared with Keras's."""
    found = read(results / "import_time.json")
    if found is None:
        return missing("benchmarks.speed.import_time")
    ratio, rounds = found["ratio"], found["rounds"]
    return (
        f"`import keras` takes {found['keras_seconds']:.2f} s, and all public names of keras_ntt, "
        f"Keras included, {found['keras_ntt_seconds']:.2f} s. The median of the ratios of {rounds} "
        f"pairs is {ratio['median']:.3f}, their quartiles are {ratio['low']:.3f} and "
        f"{ratio['high']:.3f}."
    )


def start_up(results: Path) -> str:
    """Return how long the command line takes to start, compared with an empty Python."""
    found = read(results / "start_up.json")
    if found is None:
        return missing("benchmarks.speed.start_up")
    body = [
        [
            f"`{name}`",
            ms(one["median_seconds"]),
            f"{one['ratio']['median']:.1f}",
            f"{one['ratio']['low']:.1f} to {one['ratio']['high']:.1f}",
        ]
        for name, one in found["commands"].items()
    ]
    head = ("command", "median ms", "x Python", "quartiles")
    said = f"{found['rounds']} rounds, in each of which all take turns."
    return "\n\n".join([machine(found["machine"]), said, table(head, body, right=(1, 2, 3))])


# --- files -----------------------------------------------------------------------------------


def sizes(results: Path) -> str:
    """Return the sizes of exported files."""
    found = read(results / "export_size.json")
    if found is None:
        return missing("benchmarks.export.size")
    parts = []
    for name in dict.fromkeys(row["network"] for row in found):
        rows = [row for row in found if row["network"] == name]
        head = ["zeros", "float32", "zstd", "limit", "int8 weights", "zstd", "limit"]
        body = [
            [f"{row['sparsity']:.0%}"]
            + [
                "" if size is None else f"{size / 1000:.4g}"
                for kind in ("float32", "int8_weights")
                for size in (row[kind]["raw"], row[kind]["zstd"], row[kind]["limit"])
            ]
            for row in rows
        ]
        parts += [
            f"### {name}",
            f"Dense, float32: {rows[0]['dense'] / 1000:,.0f} kB. All in kB.",
            table(head, body, right=range(7)),
        ]
    return "\n\n".join(parts)


def latency(results: Path) -> str:
    """Return the latency of exported files and of their dense twins."""
    parts = []
    for file, program in (
        ("export_latency.json", "benchmarks.export.latency"),
        ("export_latency_without_avx.json", "benchmarks.export.latency --without-avx"),
    ):
        rows = read(results / file)
        if not rows:
            parts.append(missing(program))
            continue
        loads = max(row["load"] for row in rows)
        parts.append(f"{rows[0]['cpu']}, batch 1, 1 thread, load up to {loads:.1f}:")
        body = [
            [
                row["network"],
                f"{row['sparsity']:.0%}",
                row["file"],
                f"{row['seconds'] * 1e6:,.1f}",
                f"{row['dense_seconds'] * 1e6:,.1f}",
                f"{row['speedup']:.2f}",
                f"{row['low']:.2f} to {row['high']:.2f}",
            ]
            for row in rows
        ]
        head = ("network", "zeros", "file", "µs", "dense µs", "times as fast", "quartiles")
        parts.append(table(head, body, right=(1, 3, 4, 5, 6)))
    return "\n\n".join(parts)


def predictions(results: Path, file: str = "sparse_inference.json") -> str:
    """Return how often the prediction of sparse inference was right."""
    rows = read(results / file)
    if rows is None:
        return missing("benchmarks.export.sparse_inference")
    right = sum(row["predicted"] == row["found"] for row in rows)
    safe = sum(row["safe"] for row in rows)
    body = [
        [
            row["case"],
            row["predicted"],
            row["found"],
            f"{row['speedup']:.2f}" if "speedup" in row else "",
            "" if row["safe"] else "missed",
        ]
        for row in rows
    ]
    head = ("network", "predicted", "found", "times as fast", "")
    said = f"{right} of {len(rows)} as predicted, {safe} of {len(rows)} as predicted or safer."
    return "\n\n".join([said, table(head, body, right=(3,))])


def predictions_on_arm64(results: Path) -> str:
    """Return the same for the library for ARM64, and how far its outputs are from those here."""
    file = "sparse_inference_arm64.json"
    rows = read(results / file) or []
    far = max((row["from_this_host"] for row in rows if "from_this_host" in row), default=0.0)
    said = f"\n\nDense files differ from this host by at most {far:.1e} of the largest output."
    return predictions(results, file) + (said if rows else "")


def releases(results: Path) -> str:
    """Return how exported files fare in other releases of LiteRT."""
    found = read(results / "litert_releases.json")
    if found is None:
        return missing("benchmarks.export.releases")
    body = [
        [release, str(one["right"]), str(one["runs"]), f"{one['largest_difference']:.1e}"]
        for release, one in found["releases"].items()
    ]
    said = (
        f"{found['files']} files, with XNNPACK and without, for batches of one and three; "
        f"{len(found['refused'])} more were refused by the exporter."
    )
    head = ("release", "right", "runs", "largest difference")
    return "\n\n".join([said, table(head, body, right=(1, 2, 3))])


def micro(results: Path) -> str:
    """Return the sizes and memory of files for microcontrollers."""
    rows = read(results / "micro.json")
    if rows is None:
        return missing("benchmarks.export.micro")
    parts = []
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        head = ["zeros", "levels", "stored by", "bytes", "of dense", "arena", "of dense", "time"]
        body = [
            [
                f"{row['sparsity']:.0%}",
                str(row["levels"] or "all"),
                row["method"],
                f"{row['size']:,}",
                f"{row['size'] / row['dense_size']:.2f}",
                f"{row['arena']:,}",
                f"{row['arena'] / row['dense_arena']:.2f}",
                "" if row["time_ratio"] is None else f"{row['time_ratio']:.2f}",
            ]
            for row in own
        ]
        first, runs = own[0], min(row["runs"] for row in own)
        same = f"the same bits on {runs} inputs or more" if runs else "outputs were not compared"
        said = (
            f"Dense: {first['dense_size']:,} bytes, without ballast {first['slim_size']:,}; arena "
            f"{first['dense_arena']:,}. {same[0].upper()}{same[1:]}."
        )
        parts += [f"### {name}", said, table(head, body, right=(3, 4, 5, 6, 7))]
    return "\n\n".join(parts)


def micro_fuzz(results: Path) -> str:
    """Return what came of random models for microcontrollers."""
    found = read(results / "micro_fuzz.json")
    if found is None:
        return missing("benchmarks.fuzz.micro")
    body = [[name, f"{count:,}"] for name, count in found["covered"].items()]
    said = f"{found['cases']:,} random models, {len(found['failed'])} of them not equal."
    return "\n\n".join([said, table(["with", "models"], body, right=(1,))])


def conversion(results: Path) -> str:
    """Return how long exports take from a function of constants and from a SavedModel."""
    found = read(results / "conversion.json")
    if found is None:
        return missing("benchmarks.export.conversion")
    body = []
    for name, network in found["networks"].items():
        ours, before = network["function"], network["SavedModel"]
        body.append(
            [
                name,
                f"{ours['median_seconds']:.2f}",
                f"{before['median_seconds']:.2f}",
                f"{statistics.median(network['ratios']):.1f}",
                "yes" if network["same_outputs"] else "no",
            ]
        )
    head = ("network", "s", "s by a SavedModel", "times as fast", "same bits")
    return "\n\n".join([machine(found["machine"]), table(head, body, right=(1, 2, 3))])


# --- help ------------------------------------------------------------------------------------


def help_texts(results: Path) -> str:
    """Return the help of every command."""
    import click

    from keras_ntt.cli.program import program

    parts = []
    whole = click.Context(program, info_name="keras-ntt", **program.context_settings)
    for name, command in program.commands.items():
        context = click.Context(command, whole, info_name=name, max_content_width=88)
        context.terminal_width = 88
        parts.append(f"### {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)


FIGURES = {
    "help": help_texts,
    "matrix_trained": _matrix.trained,
    "matrix_channels": _matrix.channels,
    "channel_networks": _channels.networks,
    "channel_peers": _channels.peers,
    "matrix_from_scratch": _matrix.from_scratch,
    "conversion": conversion,
    "difference": _sizes.difference,
    "monarch": _sizes.monarch,
    "micro": micro,
    "micro_fuzz": micro_fuzz,
    "step_times": step_times,
    "step_times_without_vnni": step_times_without_vnni,
    "growth": growth,
    "profile": profile,
    "outputs": outputs,
    "import_time": import_time,
    "start_up": start_up,
    "sizes": sizes,
    "latency": latency,
    "predictions": predictions,
    "predictions_on_arm64": predictions_on_arm64,
    "releases": releases,
    "kills": _trust.kills,
    "fuzz": _trust.fuzz,
    "long_run": _trust.long_run,
    "overhead": _trust.overhead,
    "scaling": _trust.scaling,
}


def filled(text: str) -> str:
    """Return a page whose figures are those of the files of results."""
    return BLOCK.sub(
        lambda m: f"<!-- figures: {m[1]} -->\n\n{FIGURES[m[1]](RESULTS)}\n\n<!-- end -->", text
    )


if __name__ == "__main__":
    for file in sorted(DOCS.rglob("*.md")):
        text = file.read_text(encoding="utf-8")
        if filled(text) != text:
            file.write_text(filled(text), encoding="utf-8")
