"""Stop a run between two steps at Ctrl-C, and resume it."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any

import click
import keras

from keras_ntt.core.atomic_files import replacing


class StopBetweenSteps(keras.callbacks.Callback):
    """Lets Ctrl-C end a run after the current step, so that no file is half written.

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False
        self._before: Any = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to Ctrl-C. Outside the main thread, where Python cannot, do nothing.

        Yields:
            Nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, self._before)
        self._asked = True
        click.echo("\nStopping after this step; Ctrl-C again stops at once.", err=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop, if Ctrl-C was pressed."""
        if self._asked:
            raise KeyboardInterrupt


class Unfinished:
    """The folder next to an output in which the state of an unfinished run is kept.

    Args:
        output: The file that the run is to write.
        settings: What the run depends on, in a form for JSON.
        restart: Whether to discard the state of an interrupted run.

    Raises:
        ValueError: If the folder has the state of a run with other settings.
    """

    def __init__(self, output: pathlib.Path, settings: dict[str, Any], *, restart: bool = False):
        self.folder = output.with_name(f"{output.name}.unfinished")
        self._settings = settings
        if restart:
            self.remove()
        file = self.folder / "settings.json"
        if file.exists():
            self._check(self._read(file))

    @property
    def backup(self) -> pathlib.Path:
        """The folder of `keras_ntt.BackupAndRestore`."""
        return self.folder / "backup"

    @property
    def epochs(self) -> int:
        """The number of complete epochs that were saved."""
        names = [file.name for file in self.backup.glob("epoch-*.weights.h5")]
        return max((int(name.split("-")[1].split(".")[0]) for name in names), default=0)

    def begin(self) -> None:
        """Write the settings to the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "settings.json") as file:
            file.write_text(json.dumps(self._settings, indent=1))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _read(file: pathlib.Path) -> dict[str, Any]:
        try:
            there = json.loads(file.read_bytes())
            if not isinstance(there, dict):
                raise ValueError("no settings in it")
        except ValueError as error:
            raise ValueError(
                "A run was interrupted, and the file of its settings is damaged, so it cannot be "
                f"resumed. Add --restart to discard it. Received: {file} ({error})"
            ) from error
        return there

    def _check(self, there: dict[str, Any]) -> None:
        mine = json.loads(json.dumps(self._settings))
        keys = sorted({*mine, *there})
        other = [key for key in keys if mine.get(key) != there.get(key)]
        if other:
            changes = ", ".join(f"{k} {there.get(k)!r} then, {mine.get(k)!r} now" for k in other)
            raise ValueError(
                f"{self.folder} holds an interrupted run with other settings. Repeat its command "
                "to resume it, or add --restart to discard it. "
                f"Received: {changes}"
            )
