"""What ``keras-ntt prune`` does."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from typing import Any, NamedTuple

import keras

import keras_ntt
from keras_ntt.cli import data, printing, sources
from keras_ntt.cli.jobs.interruption import StopBetweenSteps, Unfinished

NTT = "ntt"
EPOCHS = 10


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a pruned model depends on, except the model and the inputs.

    The attributes are the options of the command.
    """

    method: str
    sparsity: float
    allocation: str
    pattern: str | tuple[int, int] | None
    filters: tuple[str, ...]
    epochs: int | None
    steps: int | None
    batch_size: int
    learning_rate: float
    ntk_weight: float
    l2: float
    wrt: str
    output_projections: int | None
    memory_limit: int | None
    seed: int
    divide_by: float | None

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that all methods take."""
        return {
            "sparsity": self.sparsity,
            "allocation": self.allocation,
            "pattern": self.pattern,
            "filters": list(self.filters) or None,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


class Found(NamedTuple):
    """A sparse model, its figures, and the folder of its state, if it has one."""

    model: keras.Model
    figures: dict[str, Any]
    state: Unfinished | None


def run(
    path: pathlib.Path,
    source: str | None,
    output: pathlib.Path,
    masks: pathlib.Path | None,
    settings: Settings,
    *,
    restart: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Prune a model and write it.

    Args:
        path: The dense model.
        source: Where the inputs are, or None.
        output: The file to write.
        masks: Where to write the masks, or None.
        settings: How to prune.
        restart: Whether to discard the saved state of an interrupted run.
        quiet: Whether to show no progress bar.

    Returns:
        What was done, in a form for JSON.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If model, inputs and settings do not fit.
        KeyboardInterrupt: If it was stopped; the message says how to continue.
    """
    for file in (output, masks):
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise OSError(f"There is no folder for this file to be written in. Received: {file}")
    keras.utils.set_random_seed(settings.seed)
    dense = data.load_model(path)
    x = None if source is None else data.read_inputs(source, dense, settings.divide_by)
    begun = time.perf_counter()
    if settings.method == NTT:
        inputs = "" if source is None else sources.fingerprint(source)
        about = {"model": sources.fingerprint(path), "inputs": inputs}
        state = Unfinished(output, {**dataclasses.asdict(settings), **about}, restart=restart)
        found = _transfer(dense, x, settings, state, printing.verbosity(quiet))
    else:
        found = _by_score(dense, x, settings, printing.verbosity(quiet))
    seconds = time.perf_counter() - begun
    keras_ntt.save_model(found.model, output)
    if masks is not None:
        keras_ntt.save_masks(found.model, masks)
    if found.state is not None:
        found.state.remove()
    report = keras_ntt.sparsity_report(found.model)
    printing.say(str(report))
    written = ", ".join(str(file) for file in (output, masks) if file is not None)
    printing.say(f"Written: {written} ({seconds:.1f} s)")
    return {
        "model": str(path),
        "output": str(output),
        "masks": None if masks is None else str(masks),
        "settings": dataclasses.asdict(settings),
        "seconds": seconds,
        **found.figures,
        **report.to_dict(),
    }


def _by_score(dense: keras.Model, x: Any, settings: Settings, verbose: int) -> Found:
    sparse = keras_ntt.prune_at_init(
        dense, saliency=settings.method, data=x, verbose=verbose, **settings.shared
    )
    return Found(sparse, {}, None)


def _transfer(
    dense: keras.Model, x: Any, settings: Settings, state: Unfinished, verbose: int
) -> Found:
    """Run the transfer, or resume it."""
    done, total = state.epochs, epochs_of(x, settings)
    if done:
        printing.note(f"Going on after epoch {done} of {total}, from {state.folder}.")
    state.begin()
    stop, history = StopBetweenSteps(), keras.callbacks.History()
    backup = keras_ntt.BackupAndRestore(state.backup, delete_checkpoint=False)
    try:
        with stop.listening():
            sparse = keras_ntt.prune_neural_tangent(
                dense,
                x,
                epochs=total,
                optimizer=keras.optimizers.Adam(settings.learning_rate),
                ntk_weight=settings.ntk_weight,
                l2=settings.l2,
                wrt=settings.wrt,
                output_projections=settings.output_projections,
                memory_limit=settings.memory_limit,
                callbacks=[backup, history, stop],
                verbose=verbose,
                **settings.shared,
            )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            f"{state.epochs} of {total} epochs are saved in {state.folder}: the same command "
            "continues from there; with --restart it begins again."
        ) from interrupt
    except BaseException:
        if not state.epochs:  # there is nothing to continue from
            state.remove()
        raise
    last = {name: float(values[-1]) for name, values in history.history.items() if values}
    return Found(sparse, {"epochs": total, "resumed_after_epoch": done, "last": last}, state)


def epochs_of(x: Any, settings: Settings) -> int:
    """Return the number of passes over the inputs that settings ask for."""
    if settings.steps is None:
        return EPOCHS if settings.epochs is None else settings.epochs
    batches = math.ceil(len(keras.tree.flatten(x)[0]) / settings.batch_size)
    return math.ceil(settings.steps / max(batches, 1))
