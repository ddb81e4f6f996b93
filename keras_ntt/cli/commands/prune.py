"""``keras-ntt prune``: its options. `keras_ntt.cli.jobs.prune` does the work."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command
from keras_ntt.cli.methods import LABEL_FREE, ON_INPUTS
from keras_ntt.selection.allocation_names import ALLOCATIONS


@click.command(
    "prune",
    cls=Command,
    python_names={"data": "--inputs", "saliency": "--method", "saliency_data": "--inputs"},
    short_help="Find a sparse network in a dense one, without labels.",
    epilog="The zeros of the written model are exact. Before you train it further in Python, call "
    "keras_ntt.restore_masks(model), or training fills the zeros.",
)
@click.argument("model", type=options.PATH)
@options.inputs()
@click.option("--sparsity", "-s", type=options.SPARSITY, required=True, help="Fraction of zeros.")
@click.option("--output", "-o", type=options.PATH, required=True, help="The .keras file to write.")
@click.option(
    "--method",
    type=click.Choice(("ntt", *LABEL_FREE)),
    default="ntt",
    show_default=True,
    help="Neural Tangent Transfer, or masks by a score.",
)
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    default="layerwise",
    show_default=True,
    help="How the sparsity is allocated across layers.",
)
@click.option(
    "--pattern",
    type=options.Structure(),
    metavar="N:M|HxW|filters",
    help="Keep n of m along the inputs, blocks of inputs x outputs, or whole output channels.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="REGEX",
    help="Prune only layers or weights whose name matches. Can be repeated.",
)
@click.option("--epochs", type=options.POSITIVE, help="Passes over the inputs.  [default: 10]")
@click.option("--steps", type=options.POSITIVE, help="Instead of --epochs: at least so many steps.")
@click.option("--batch-size", type=options.POSITIVE, default=64, show_default=True)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Learning rate of Adam.",
)
@click.option(
    "--ntk-weight",
    type=click.FloatRange(min=0),
    default=1e-3,
    show_default=True,
    help="Weight of the kernel distance.",
)
@click.option(
    "--l2",
    type=click.FloatRange(min=0),
    default=1e-5,
    show_default=True,
    help="Weight of the sum of squares of the kernels.",
)
@click.option(
    "--wrt",
    type=click.Choice(("all", "kept")),
    default="all",
    show_default=True,
    help="Compute the kernel of all weights, or only of the kept ones.",
)
@click.option(
    "--output-projections",
    type=options.POSITIVE,
    metavar="N",
    help="Number of random combinations that replace many outputs.",
)
@click.option(
    "--memory-limit",
    type=options.Bytes(),
    metavar="SIZE",
    help="Memory for the tensors of a step, such as 2GiB.",
)
@click.option(
    "--masks", type=options.PATH, help="Also write the masks, an .npz file for load_masks."
)
@click.option("--restart", is_flag=True, help="Discard the saved state of an interrupted run.")
@options.divide_by
@options.seed
@options.quiet
@options.as_json
def command(
    model: pathlib.Path,
    inputs: str | None,
    output: pathlib.Path,
    masks: pathlib.Path | None,
    restart: bool,
    quiet: bool,
    as_json: bool,
    **chosen: Any,
) -> int:
    """Find a sparse network in a dense Keras MODEL, without labels.

    Ctrl-C leaves the state of the transfer next to the output. The same command continues from the
    last complete epoch, and ends with the masks that an undisturbed run finds.

    \b
    Examples:
      keras-ntt prune model.keras --inputs images.npy --sparsity 0.97 -o sparse.keras
      keras-ntt prune model.keras --inputs tfds:mnist --divide-by 255 -s 0.97 -o sparse.keras
      keras-ntt prune model.keras --method random --allocation erk -s 0.9 -o erk.keras
    """
    if chosen["epochs"] is not None and chosen["steps"] is not None:
        raise click.UsageError("--epochs and --steps exclude each other.")
    if output.suffix != ".keras":
        raise click.BadParameter("must be a file that ends in .keras", param_hint="--output")
    if inputs is None and chosen["method"] in ON_INPUTS:
        raise click.UsageError(f"--method {chosen['method']} needs --inputs.")
    options.check_apart(
        {"MODEL": model, "--inputs": inputs}, {"--output": output, "--masks": masks}
    )
    from keras_ntt.cli.jobs import prune

    settings = prune.Settings(**chosen)
    with printing.only_json(as_json):
        result = prune.run(model, inputs, output, masks, settings, restart=restart, quiet=quiet)
    if as_json:
        printing.show(result, True)
    return 0
