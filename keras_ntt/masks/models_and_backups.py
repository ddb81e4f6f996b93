"""Save models and the state of training so that a killed process leaves whole files."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import h5py
import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.core.atomic_files import Path, as_path, leftovers, replacing
from keras_ntt.masks.apply import apply_masks, fixed_masks
from keras_ntt.masks.frozen import freezing_what_is_loaded, hold_frozen, trained_entries
from keras_ntt.masks.names import keys_of

# The groups of a state that hold masks, which Keras does not look for.
_MASKS = "keras_ntt_masks"
_TRAINED = "keras_ntt_trained_entries"
_STATE = re.compile(r"epoch-(\d+)\.weights\.h5")


def save_model(model: keras.Model, path: Path) -> None:
    """Save a model as ``model.save(path)`` does, whole or not at all.

    ``model.save`` writes into the file itself. If the process ends meanwhile, or the disk is full,
    half a file replaces the good one. Here the file is written under a temporary name in the same
    folder, and moved to `path` when it is complete.

    Args:
        model: A built model.
        path: The file to write, ``*.keras``.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built or `path` does not end in ``.keras``.
        NotImplementedError: If a layer of your own cannot be saved; Keras says why.
        OSError: If the file cannot be written.
    """
    checks.check_built(model)
    if as_path(path).suffix != ".keras":
        raise ValueError(
            "Keras's format for whole models has the suffix .keras. "
            f"Received: path={os.fspath(path)!r}"
        )
    with replacing(path) as temporary:
        model.save(temporary)


class BackupAndRestore(keras.callbacks.Callback):
    """Saves the state of training after each epoch, and resumes from it in another ``fit``.

    As `keras.callbacks.BackupAndRestore`, with two differences. The state is one file, which is
    replaced as a whole: a process may be killed at any moment, also while it saves. And the file
    says by its name how many epochs it is of, so that state and count cannot differ.

    It works for a `NeuralTangentTransfer`, for models that are pruned while they train and for
    any other. Set everything up as in the run that ended, with the same callbacks, and call
    ``fit`` with the same arguments. Masks are in the state: those of a transfer, of
    `keras_ntt.prune_low_magnitude`, and those that the model held when it was saved. So is what is
    frozen of weights, see `keras_ntt.freeze_entries`.

    Args:
        backup_dir: A folder for this run alone; one for each worker, where there are several.
        delete_checkpoint: Whether to remove the state when training has come to its end.

    Raises:
        ValueError: If `backup_dir` is no path.
    """

    def __init__(self, backup_dir: Path, *, delete_checkpoint: bool = True):
        if not isinstance(backup_dir, str | os.PathLike) or not os.fspath(backup_dir):
            raise ValueError(
                "backup_dir must be the path of a folder for the state of this run. "
                f"Received: backup_dir={backup_dir!r}"
            )
        super().__init__()
        self.backup_dir = pathlib.Path(backup_dir)
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: Any = None) -> None:
        """Take up the state that a run left, if there is one.

        Raises:
            ValueError: If it is the state of another model, or the model is not built.
        """
        self._resumed = False
        host.set_initial_epoch(self.model, None)
        if not self.model.built:
            raise ValueError(
                "A state can be loaded only into a model that has its weights. Build it before "
                "fit: give it a keras.Input, or call model.build(input_shape). "
                f"Received: model={self.model.name!r}, which is not built yet"
            )
        states = self._states()
        if not states:
            return
        epochs, file = states[-1]
        optimizer = self.model.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        held, trained = fixed_masks(self.model), trained_entries(self.model)
        try:
            apply_masks(self.model, {path: np.ones_like(mask) for path, mask in held.items()})
            with freezing_what_is_loaded(self.model):
                self.model.load_weights(file)
            apply_masks(self.model, {**held, **_read_masks(file, self.model)})
            frozen = _read_masks(file, self.model, _TRAINED)
            hold_frozen(self.model, {k: m for k, m in frozen.items() if k in trained})
        except Exception as error:
            apply_masks(self.model, held)
            raise ValueError(
                "The state of an earlier run does not fit this model. Set everything up as in "
                "that run, or remove the folder to begin again. Received: "
                f"backup_dir={os.fspath(self.backup_dir)!r} ({type(error).__name__}: {error})"
            ) from error
        host.set_initial_epoch(self.model, epochs)
        self._resumed = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Forget where this run began, which the next one would take for its own beginning."""
        if self._resumed:
            host.set_initial_epoch(self.model, None)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save the state, and then remove the one before."""
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        file = self.backup_dir / f"epoch-{epoch + 1}.weights.h5"
        with replacing(file) as temporary:
            self.model.save_weights(temporary)
            _add_masks(temporary, self.model)
        self._remove(keep=file)

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the state, which nobody needs any more."""
        host.set_initial_epoch(self.model, None)  # where no epoch was left, none was begun
        if self.delete_checkpoint:
            self._remove(keep=None)
            if self.backup_dir.is_dir() and not any(self.backup_dir.iterdir()):
                self.backup_dir.rmdir()

    def _states(self) -> list[tuple[int, pathlib.Path]]:
        """Return the numbers of epochs and the files of the states, the latest last."""
        files = self.backup_dir.iterdir() if self.backup_dir.is_dir() else ()
        found = [(_STATE.fullmatch(file.name), file) for file in files]
        return sorted((int(match[1]), file) for match, file in found if match)

    def _remove(self, keep: pathlib.Path | None) -> None:
        for _, file in self._states():
            for unfinished in leftovers(file):
                unfinished.unlink()
            if file != keep:
                file.unlink()


def _add_masks(file: pathlib.Path, model: keras.Model) -> None:
    """Add the masks of a model to a file of its weights, by the weights' places.

    Their paths differ where Keras numbers the layers of the same model again.
    """
    with h5py.File(file, "a") as state:
        for name, masks in ((_MASKS, fixed_masks(model)), (_TRAINED, trained_entries(model))):
            group = state.create_group(name)
            for place, path in enumerate(keys_of(model.weights)):
                if path in masks:
                    group.create_dataset(str(place), data=masks[path], compression="gzip")


def _read_masks(
    file: pathlib.Path, model: keras.Model, name: str = _MASKS
) -> dict[str, np.ndarray]:
    """Return the masks of such a file by the paths of a model."""
    paths = keys_of(model.weights)
    with h5py.File(file) as state:
        return {paths[int(place)]: mask[()] for place, mask in state.get(name, {}).items()}
