"""Candidates that are finished, in a folder, so that a search that was stopped goes on."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras

from keras_ntt.compression.candidates import Candidate
from keras_ntt.compression.report import CompressionRow
from keras_ntt.core import host
from keras_ntt.core.atomic_files import replacing
from keras_ntt.core.copies import copy_of
from keras_ntt.masks.files import load_masks, save_masks
from keras_ntt.masks.models_and_backups import save_model

_SEARCH = "search.json"


class Finished:
    """A folder with the files, the rows and the models of finished candidates.

    Args:
        folder: The folder, which is made if it is not there.
        about: What the candidates depend on, by name, as JSON can hold it.

    Raises:
        ValueError: If the folder is of another search.
    """

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
        self._folder, self._about = folder, json.loads(json.dumps(about))
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _SEARCH).exists():
            _check(self._about, folder / _SEARCH)

    def file(self, candidate: Candidate, quantization: str | None) -> pathlib.Path:
        """Return where a LiteRT file of a candidate is, or will be."""
        return self._folder / f"{candidate.name}-{quantization or 'float32'}.tflite"

    def rows(self, candidate: Candidate) -> list[CompressionRow] | None:
        """Return the rows of a candidate; None if it is not finished."""
        file = self._rows(candidate)
        if not file.exists():
            return None
        found = [CompressionRow(**row) for row in json.loads(file.read_bytes())]
        whole = all(self.file(candidate, row.quantization).exists() for row in found if row.size)
        return found if whole else None

    def add(self, candidate: Candidate, rows: Sequence[CompressionRow], model: keras.Model) -> None:
        """Write down that a candidate is finished, and keep its model.

        Args:
            candidate: The candidate, whose LiteRT files are there.
            rows: Their rows.
            model: The Keras model.
        """
        with replacing(self._folder / _SEARCH) as file:
            file.write_text(json.dumps(self._about, indent=1))
        if candidate.method == "weights":
            model.save_weights(self._model(candidate, ".weights.h5"))
            save_masks(model, self._model(candidate, ".npz"))
        elif candidate.method == "channels":
            save_model(model, self._model(candidate, ".keras"))
        with replacing(self._rows(candidate)) as file:  # last: what is there is whole
            file.write_text(json.dumps([asdict(row) for row in rows], indent=1))

    def model(self, candidate: Candidate, dense: keras.Model) -> keras.Model:
        """Return the model of a finished candidate.

        Args:
            candidate: The candidate.
            dense: The model that it was made of.

        Returns:
            The model, with masks if it is sparse.
        """
        if candidate.method == "weights":
            copy = copy_of(dense)
            copy.load_weights(self._model(candidate, ".weights.h5"))
            return load_masks(copy, self._model(candidate, ".npz"))
        if candidate.method == "channels":
            known = {type(layer).__name__: type(layer) for layer in host.layers_of(dense)}
            file = self._model(candidate, ".keras")
            return keras.models.load_model(file, custom_objects=known, compile=False)
        return dense

    def _rows(self, candidate: Candidate) -> pathlib.Path:
        return self._folder / f"{candidate.name}.json"

    def _model(self, candidate: Candidate, suffix: str) -> pathlib.Path:
        return self._folder / f"{candidate.name}{suffix}"


def _check(mine: Mapping[str, Any], file: pathlib.Path) -> None:
    """Raise a ValueError unless a folder is of the same search."""
    try:
        there = json.loads(file.read_bytes())
    except ValueError:
        there = None
    if there == mine:
        return
    known = there if isinstance(there, dict) else {}
    other = sorted(key for key in {*mine, *known} if mine.get(key) != known.get(key))
    raise ValueError(
        "The folder holds candidates of another search, which cannot be gone on with. Give the "
        "same arguments as then, another folder, or delete this one. "
        f"Received: folder={str(file.parent)!r}, with other {', '.join(other)}"
    )
