"""Kill processes at random moments: work continues, and no file is half written.

Each job runs undisturbed once. Then it is started again and again, and killed (SIGKILL) at a
random moment, until it has come to its end; its masks must be those of the undisturbed run. While
it runs, and after each kill, every file it writes must be whole.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import keras
import numpy as np

import keras_ntt
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from keras_ntt.core.atomic_files import replacing

# Nothing here may compute with TensorFlow in this process: it is forked, and threads are not.

EPOCHS, BATCH, SAVES = 8, 64, 12


class Job(NamedTuple):
    """Something to be killed at.

    Attributes:
        run: Does the work in a folder, from wherever it stands, and returns a digest of the masks.
        check: Raises an error unless a file that it has written is whole; run in a new process.
    """

    run: Callable[[pathlib.Path], dict[str, str]]
    check: Callable[[pathlib.Path], Any]


def main() -> None:
    """Run the jobs in turns and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills in all, at least")
    parser.add_argument("--minutes", type=float, default=35.0, help="when to stop at the latest")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "soak_kills.json")
    options = parser.parse_args()
    found = soak(options.jobs, options.kills, options.minutes, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(f"{found['kills']} kills in {found['minutes']:.1f} min; {len(found['faults'])} faults")
    if found["faults"]:
        raise SystemExit("\n".join(found["faults"]))


def soak(names: list[str], kills: int, minutes: float, seed: int) -> dict[str, Any]:
    """Kill the jobs in turns until there were enough kills, and let each come to its end.

    Args:
        names: The jobs.
        kills: How many kills in all.
        minutes: When to begin nothing new.
        seed: Seed of the moments.

    Returns:
        What was counted, and the faults that were found.
    """
    chance, begin = random.Random(seed), time.monotonic()
    found: dict[str, Any] = {"kills": 0, "faults": [], "jobs": {}}
    with tempfile.TemporaryDirectory() as folder:
        right = {}
        for name in names:
            place = pathlib.Path(folder, name)
            start = time.monotonic()
            result = _watch(name, place, None, found["faults"])[0]
            right[name] = result
            found["jobs"][name] = {
                "seconds_undisturbed": time.monotonic() - start,
                "kills": 0,
                "runs_ended": 0,
                "kills_of_a_run": [],
                "kills_with_a_state_or_file": 0,
                "kills_while_a_file_was_written": 0,
                "same_masks": 0,
                "same_weights": 0,
                "files_looked_at": 0,
            }
            if result is None:
                found["faults"].append(f"{name}: the undisturbed run failed")
                names = [n for n in names if n != name]
            shutil.rmtree(place)
        over = lambda: found["kills"] >= kills or time.monotonic() - begin > 60 * minutes  # noqa: E731
        while names and not over():
            for name in names:
                _one_run(name, pathlib.Path(folder, name), right[name], found, chance, over)
                if over():
                    break
    found["minutes"] = (time.monotonic() - begin) / 60
    return found


def _one_run(
    name: str,
    place: pathlib.Path,
    right: dict[str, str],
    found: dict[str, Any],
    chance: random.Random,
    over: Callable[[], bool],
) -> None:
    """Run a job to its end, killing it on its way, and compare."""
    counts, faults, kills = found["jobs"][name], found["faults"], 0
    span = counts["seconds_undisturbed"]
    while True:
        # Some processes come to their end; after enough kills, all of them may.
        last = over() or kills >= 20
        moment = None if last else chance.uniform(0, 1.1 * span)
        result, looks, killed = _watch(name, place, moment, faults)
        counts["files_looked_at"] += looks
        if killed:
            kills += 1
            found["kills"] += 1
            counts["kills"] += 1
            counts["kills_with_a_state_or_file"] += bool(_targets(place))
            counts["kills_while_a_file_was_written"] += _unfinished(place)
            span *= 1.2  # the machine may be slower now; so that there is some progress
            _in_new_process(lambda: _check_files(name, place), f"{name}, after a kill", faults)
            continue
        if result is None:
            faults.append(f"{name}: a process failed after {kills} kills")
            break
        counts["runs_ended"] += 1
        counts["kills_of_a_run"].append(kills)
        counts["same_masks"] += result["masks"] == right["masks"]
        counts["same_weights"] += result["weights"] == right["weights"]
        if result["masks"] != right["masks"]:
            faults.append(f"{name}: other masks after {kills} kills")
        break
    shutil.rmtree(place, ignore_errors=True)


def _watch(
    name: str, place: pathlib.Path, moment: float | None, faults: list[str]
) -> tuple[dict[str, str] | None, int, bool]:
    """Run a job in a process, look at its files all the while, and kill it at a moment.

    Returns:
        Its result if it came to its end, how many files were looked at, whether it was killed.
    """
    place.mkdir(parents=True, exist_ok=True)
    process, begin, looks = os.fork(), time.monotonic(), 0
    if process == 0:
        _die_after(lambda: _report(JOBS[name].run(place), place))
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        if moment is not None and time.monotonic() - begin > moment:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            break
        for file in _targets(place):
            looks += 1
            _look(file, f"{name}, while it ran", faults)
        time.sleep(0.02)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None, looks, True
    done = place / "result.txt"
    if status or not done.exists():
        return None, looks, False
    return json.loads(done.read_text()), looks, False


def _report(result: dict[str, str], place: pathlib.Path) -> None:
    with replacing(place / "result.txt") as temporary:
        temporary.write_text(json.dumps(result))


def _die_after(work: Callable[[], Any]) -> None:
    """Do some work in a forked process and end it there."""
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _in_new_process(work: Callable[[], Any], where: str, faults: list[str]) -> None:
    process = os.fork()
    if process == 0:
        _die_after(work)
    if os.waitpid(process, 0)[1]:
        faults.append(f"{where}: a file is not whole")


def _targets(place: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that somebody would read."""
    found = []
    for folder, _, files in os.walk(place):
        found += [pathlib.Path(folder, f) for f in files if not f.startswith(".")]
    return found


def _unfinished(place: pathlib.Path) -> int:
    """Remove what a killed process was writing, and return 1 if there was something."""
    found = [file for file in place.rglob("*") if ".unfinished." in file.name]
    for file in found:
        file.unlink()
    return int(bool(found))


def _look(file: pathlib.Path, where: str, faults: list[str]) -> None:
    """Note a fault unless a file is whole as far as can be told without TensorFlow."""
    try:
        with open(file, "rb") as stream:  # the same file, also when it is replaced meanwhile
            if file.suffix in (".npz", ".keras"):
                with zipfile.ZipFile(stream) as archive:
                    assert archive.testzip() is None
            elif file.suffix == ".h5":
                with h5py.File(stream, "r") as content:
                    content.visit(lambda _: None)
            elif file.suffix == ".tflite":
                assert stream.read(8)[4:] == b"TFL3"
    except FileNotFoundError:
        pass  # it was removed, which ends a run
    except Exception as error:
        faults.append(f"{where}: {file.name}: {type(error).__name__}: {error}")


def _check_files(name: str, place: pathlib.Path) -> None:
    """Load every file as its reader would."""
    for file in _targets(place):
        if file.suffix in (".npz", ".keras", ".tflite"):
            JOBS[name].check(file)


# --- the jobs ---------------------------------------------------------------------------------


def _inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((256, 32)).astype("float32")


def _labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 10, 256)


def _network(seed: int = 0, width: int = 64) -> keras.Model:
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((32,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(10)]
    return keras.Sequential(layers)


def _digest(model: keras.Model, masks: dict[str, np.ndarray]) -> dict[str, str]:
    def sum_of(arrays: Iterable[np.ndarray]) -> str:
        content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return hashlib.sha256(content).hexdigest()

    return {"masks": sum_of(masks.values()), "weights": sum_of(model.get_weights())}


def _transfer(place: pathlib.Path) -> dict[str, str]:
    student = _network()
    transfer = keras_ntt.NeuralTangentTransfer(
        student, pruning_schedule=keras_ntt.NTTSchedule(0.9, frequency=3), seed=0
    )
    transfer.compile(keras.optimizers.Adam(1e-2))
    backup = keras_ntt.BackupAndRestore(place / "backup")
    transfer.fit(_inputs(), batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[backup])
    keras_ntt.save_masks(student, place / "masks.npz")
    keras_ntt.save_model(student, place / "model.keras")
    return _digest(student, keras_ntt.get_masks(student))


def _fit(model: keras.Model, place: pathlib.Path, *callbacks: keras.callbacks.Callback) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    backup = keras_ntt.BackupAndRestore(place / "backup")
    model.fit(
        _inputs(), _labels(), batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0,
        callbacks=[*callbacks, backup],
    )  # fmt: skip


def _training(place: pathlib.Path) -> dict[str, str]:
    model = _network()
    chance = np.random.default_rng(2)
    kernels = [v for v in model.weights if v.name == "kernel"]
    keras_ntt.apply_masks(model, {v.path: chance.random(v.shape) < 0.1 for v in kernels})
    _fit(model, place)
    zeros = {v.path: keras.ops.convert_to_numpy(v) != 0 for v in kernels}
    assert all((zeros[path] <= mask).all() for path, mask in keras_ntt.get_masks(model).items())
    return _digest(model, keras_ntt.get_masks(model))


def _scheduled(place: pathlib.Path) -> dict[str, str]:
    model = _network()
    schedule = keras_ntt.PolynomialDecay(0.2, 0.9, 2, 30, frequency=2)
    keras_ntt.prune_low_magnitude(model, schedule)
    _fit(model, place)
    return _digest(model, keras_ntt.get_masks(model))


def _exchanged(method: Any, scope: str, place: pathlib.Path) -> dict[str, str]:
    model = keras_ntt.prune_at_init(_network(), sparsity=0.9, saliency="random", seed=0)
    _fit(model, place, method(end_step=4 * EPOCHS, frequency=3, scope=scope))
    return _digest(model, keras_ntt.get_masks(model))


def _pruned(seed: int, width: int = 64) -> keras.Model:
    return keras_ntt.prune_at_init(_network(seed, width), sparsity=0.9, saliency="magnitude")


def _again_and_again(write: Callable[[keras.Model], Any], width: int) -> dict[str, str]:
    """Write one file over the other, of different content."""
    models = [_pruned(seed, width) for seed in (0, 1)]
    for i in range(SAVES):
        write(models[i % 2])
    return _digest(models[-1], keras_ntt.get_masks(models[-1]))


def _export(place: pathlib.Path) -> dict[str, str]:
    target = place / "model.tflite"
    return _again_and_again(lambda model: keras_ntt.export_tflite(model, target), 64)


def _mask_save(place: pathlib.Path) -> dict[str, str]:
    target = place / "masks.npz"
    return _again_and_again(lambda model: keras_ntt.save_masks(model, target), 40_000)


def _model_save(place: pathlib.Path) -> dict[str, str]:
    target = place / "model.keras"
    return _again_and_again(lambda model: keras_ntt.save_model(model, target), 40_000)


def _check_written(width: int) -> Callable[[pathlib.Path], None]:
    """Return a check that a file is one of those that the loops write."""

    def check(file: pathlib.Path) -> None:
        right = [_pruned(seed, width) for seed in (0, 1)]
        if file.suffix == ".tflite":
            x = _inputs()[:4]
            found = keras_ntt.tflite_predict(file, x)
            assert any(np.allclose(found, model(x), atol=1e-4) for model in right)
            return
        if file.suffix == ".npz":
            loaded = keras_ntt.load_masks(_network(0, width), file)
            found = list(keras_ntt.get_masks(loaded).values())
            wanted = [list(keras_ntt.get_masks(model).values()) for model in right]
        else:
            found = keras.models.load_model(file).get_weights()
            wanted = [model.get_weights() for model in right]
        assert any(all(map(np.array_equal, found, arrays)) for arrays in wanted)

    return check


def _check_result(file: pathlib.Path) -> None:
    if file.suffix == ".npz":
        keras_ntt.load_masks(_network(), file)
    else:
        keras.models.load_model(file)


JOBS = {
    "transfer": Job(_transfer, _check_result),
    "training": Job(_training, _check_result),
    "scheduled pruning": Job(_scheduled, _check_result),
    "RigL": Job(functools.partial(_exchanged, keras_ntt.RigL, "layerwise"), _check_result),
    "SET": Job(functools.partial(_exchanged, keras_ntt.SET, "global"), _check_result),
    "export": Job(_export, _check_written(64)),
    "mask save": Job(_mask_save, _check_written(40_000)),
    "model save": Job(_model_save, _check_written(40_000)),
}

if __name__ == "__main__":
    main()
