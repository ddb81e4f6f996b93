"""Calls that read or write files: masks, LiteRT files, paths, the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import pickle
import random
import tempfile
import warnings
import zipfile
from typing import Any

import keras
import numpy as np

import keras_ntt
from benchmarks.fuzz import values
from benchmarks.fuzz.arguments import INPUTS, LABELS, Argument, bad_model, drawn, entry, model, of
from benchmarks.fuzz.models import World, mlp
from keras_ntt.cli import main
from keras_ntt.litert.format import flatbuffer
from keras_ntt.litert.reencode import reencode
from keras_ntt.litert.runtime.run import ExportError

NAMES = ["masks", "masks.npz", "two words", "маски 面具 é", " ", "#%&'", "-", "~", "a" * 230]
READS = (TypeError, ValueError, OSError)


def _path(*, content: Any = None, suffix: str = "") -> Argument:
    """Return an argument that is the path of a file, with some content or to be written."""

    def good(rng: random.Random, world: World) -> Any:
        if content is not None and rng.random() < 0.1:
            return bad(rng, world)
        made = None if content is None else content(rng)
        path = world.file(rng.choice(NAMES) + suffix, made)
        return rng.choice([path, str(path)])

    def bad(rng: random.Random, world: World) -> Any:
        makes = [
            lambda: world.folder,
            lambda: world.folder / "missing" / "file",
            lambda: str(world.folder) + "/",
            lambda: world.folder / ("a" * 300),
            lambda: world.folder / "nul\0",
            lambda: world.folder / "\ud800",
            lambda: os.fsencode(world.file("bytes")),
            lambda: rng.choice(["", ".", "/", "..", "/dev/null/x", "/proc/none"]),
            lambda: rng.choice([None, 3, True, b"", [], {}, object(), ["a"], 0.5, np.nan]),
        ]
        return rng.choice(makes)()

    return Argument(good, bad, 0.0 if content is not None else 1.0)


# --- differences -----------------------------------------------------------------------------


@functools.cache
def _base() -> keras.Model:
    """Return the model that differences are taken to, which nothing changes."""
    network = mlp()
    network.set_weights([np.full(v.shape, 0.5) for v in network.weights])
    return network


@functools.cache
def _difference_file(seeded: bool) -> bytes:
    network = keras_ntt.freeze_at_init(_base(), frozen=0.5, saliency="random", seed=3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "difference")
        keras_ntt.save_difference(network, 3 if seeded else _base(), path)
        return path.read_bytes()


def _difference(rng: random.Random) -> bytes:
    content = _difference_file(rng.random() < 0.5)
    return content if rng.random() < 0.3 else damaged(rng, content)


entry(
    lambda path: keras_ntt.load_difference(_base(), path), "load_difference", weight=3, raises=READS
)(path=_path(content=_difference))
entry(
    lambda model, base, path: keras_ntt.save_difference(model, base, path),
    "save_difference",
    weight=2,
    raises=READS,
    changes=True,
)(
    model=model("mlp", "held"),
    base=Argument(
        lambda rng, world: rng.choice([mlp(), 3]),
        lambda rng, world: rng.choice([bad_model(rng, world), values.nasty(rng)]),
    ),
    path=_path(),
)

# --- mask files ------------------------------------------------------------------------------


@functools.cache
def _mask_file(kind: str) -> bytes:
    """Return a good file of masks of the model ``mlp``, or of another."""
    network = (
        mlp()
        if kind == "mlp"
        else keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(3)], name="mlp"
        )
    )
    keras_ntt.apply_masks(
        network, {v.path: np.eye(*v.shape) for v in network.weights if v.name == "kernel"}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "masks.npz")
        keras_ntt.save_masks(network, path)
        return path.read_bytes()


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Cut bytes off, change some, or double a part."""
    broken = bytearray(content)
    kind = rng.randrange(5)
    if kind == 0:
        del broken[rng.randrange(len(broken)) :]
    elif kind == 1:
        for _ in range(rng.randint(1, 6)):
            broken[rng.randrange(len(broken))] = rng.choice([0, 1, 127, 128, rng.randrange(256)])
    elif kind == 2:
        start = rng.randrange(max(len(broken) - 4, 1))
        broken[start : start + 4] = rng.choice(
            [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"]
        )
    elif kind == 3:
        start, end = sorted(rng.randrange(len(broken)) for _ in range(2))
        broken[start:start] = broken[start:end]
    else:
        start, end = sorted(rng.randrange(len(broken)) for _ in range(2))
        del broken[start:end]
    return bytes(broken)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


SPRUNG = pathlib.Path(tempfile.gettempdir()) / f"keras_ntt_trap_{os.getpid()}"


def _entries_of_npz(rng: random.Random) -> dict[str, bytes]:
    """Draw the entries of an archive of masks, one of them odd."""
    with zipfile.ZipFile(io.BytesIO(_mask_file("mlp"))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    odd = rng.choice(list(entries))
    lines = "mlp/first/kernel 6x4 True,mlp/first/bias 4 False,mlp/second/kernel 4x3 True"
    lists = [
        lines.split(","),
        ["x"],
        [""],
        ["a b c d", "e"],
        lines.replace("first", "x").split(","),
    ]
    lists.append((lines + ",mlp/second/bias 3 False").replace("True", "False").split(","))
    lists.append((lines + ",mlp/second/bias 3 False").replace("second", "other").split(","))
    arrays = [
        lambda: np.array([Trap(str(SPRUNG))], object),
        lambda: values.bad_mask(rng, (6, 4)),
        lambda: np.ones((6, 4), rng.choice(values.DTYPES)),
        lambda: np.array(rng.choice(lists)),
        lambda: np.zeros((10**6,), bool),
    ]
    array = np.ones((6, 4), bool)
    with contextlib.suppress(TypeError, ValueError, NotImplementedError):
        array = np.asarray(rng.choice(arrays)())
    choices = [
        lambda: entries.update({odd: _npy(array)}),
        lambda: entries.pop(odd),
        lambda: entries.update(
            {rng.choice(["new.npy", "x", "../../up.npy", "/a.npy"]): _npy(array)}
        ),
        lambda: entries.update({"__weights__.npy": _npy(np.array(rng.choice(lists)))}),
        lambda: entries.update({odd: damaged(rng, entries[odd])}),
        lambda: entries.update({odd: _huge_header(rng)}),
    ]
    with contextlib.suppress(TypeError, ValueError, NotImplementedError, AttributeError):
        rng.choice(choices)()
    return entries


def _huge_header(rng: random.Random) -> bytes:
    """Return the beginning of an array that says it is larger than any memory."""
    shape = rng.choice([(10**18,), (2**31, 2**31), (-1, 4), (6, 10**12)])
    file = io.BytesIO()
    header = {"descr": "|b1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(24)


def _masks(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.1:
        return _mask_file("mlp")
    if kind < 0.2:
        return _mask_file("other")
    if kind < 0.6:
        return damaged(rng, _mask_file("mlp"))
    if kind < 0.65:
        trap = np.array([Trap(str(SPRUNG))], object)
        return rng.choice([pickle.dumps(trap), _npy(trap), b"", b"text", bytes(50)])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as out:
        for name, content in _entries_of_npz(rng).items():
            out.writestr(name, content)
    return file.getvalue()


def _load(model: Any, path: Any) -> Any:
    try:
        return keras_ntt.load_masks(model, path)
    finally:
        assert not SPRUNG.exists(), "something in the file was run"


entry(_load, "load_masks", weight=14, raises=READS, changes=True)(
    model=model("mlp", spoil=0.1), path=_path(content=_masks)
)
entry(keras_ntt.save_model, weight=1, raises=(*READS, NotImplementedError), changes=True)(
    model=model("mlp", "functional"), path=_path(suffix=".keras")
)
entry(keras_ntt.BackupAndRestore, weight=1, raises=READS)(
    backup_dir=_path(), delete_checkpoint=of(True, False, spoil=0.0)
)
entry(keras_ntt.save_masks, weight=3, raises=READS, changes=True)(
    model=model("held", "scheduled"), path=_path()
)


@functools.cache
def _model_file(suffix: str) -> bytes:
    """Return a file of a trained model."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"model{suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the older format
            mlp().save(path)
        return path.read_bytes()


def _damaged_model(suffix: str, rng: random.Random) -> bytes:
    content = _model_file(suffix)
    kind = rng.random()
    if kind < 0.2:
        return content
    if suffix == ".h5" and kind < 0.9:  # HDF5 itself may read attributes that are damaged forever
        return content[: rng.randrange(len(content))]
    return damaged(rng, content) if kind < 0.9 else rng.choice([b"", b"text", bytes(50)])


for _suffix in (".keras", ".h5"):
    entry(keras_ntt.load_model, f"load_model {_suffix}", weight=2, raises=READS)(
        path=_path(content=functools.partial(_damaged_model, _suffix), suffix=_suffix),
        custom_objects=of(None, {}, spoil=0.0),
    )

# --- LiteRT files ----------------------------------------------------------------------------


@functools.cache
def _tflite(kind: str) -> bytes:
    """Return a LiteRT file of a sparse model: dense, as the converter wrote it, or re-encoded."""
    from keras_ntt.litert.convert import convert

    parts = [keras.layers.Dense(30, "relu", name="first"), keras.layers.Dense(3, name="second")]
    network = keras.Sequential([keras.Input((6,)), *parts], name="mlp")
    keras_ntt.strip_pruning(keras_ntt.prune_low_magnitude(network, 0.9))
    (dense,) = convert(network, [None])
    if kind == "dense":
        return dense
    return flatbuffer.write(reencode(flatbuffer.read(dense), int8=kind == "int8").model)


def _litert(rng: random.Random) -> bytes:
    content = _tflite(rng.choice(["dense", "sparse", "int8"]))
    return rng.choice([content, b"", b"TFL3", bytes(64), *[damaged(rng, content)] * 12])


def _inspected(path: Any) -> None:
    report = keras_ntt.inspect_tflite(path)
    assert str(report)
    assert report.to_dict()


def _reencoded(content: bytes, target: Any, int8: bool) -> None:
    """Read a valid file, store its weights again, and read what was written."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "file")
        path.write_bytes(content)
        keras_ntt.inspect_tflite(path)
    found = reencode(flatbuffer.read(content), target=target, int8=int8)
    flatbuffer.read(flatbuffer.write(found.model))


entry(_inspected, "inspect_tflite", weight=10, raises=READS)(path=_path(content=_litert))
entry(_reencoded, "litert.reencode", weight=6)(
    content=drawn(lambda: _tflite("dense"), _litert, 3.0),
    target=of("size", "latency", "dense", spoil=0.0),
    int8=of(False, True, spoil=0.0),
)
# Damaged files are not run: the interpreter itself may end the process with them.
entry(keras_ntt.tflite_predict, weight=1, raises=(*READS, ExportError))(
    path=_path(content=lambda rng: rng.choice([_tflite("dense"), b"", b"text"])), x=INPUTS
)


def _representative(rng: random.Random) -> Any:
    """Return inputs in one of the forms that calibration takes."""
    x = values.samples()
    rows = [[row[None]] for row in x]
    return rng.choice([x, [x[:4], x[4:]], lambda: iter(rows), iter(rows), list(x)])


entry(keras_ntt.export_tflite, weight=0.8, raises=(*READS, ExportError), changes=True)(
    model=model("mlp", spoil=2.0),
    path=_path(suffix=".tflite"),
    target=of("size", "latency", "dense"),
    quantization=of(None, "float16", "int8_weights"),
    representative_data=Argument(lambda rng, world: _representative(rng), INPUTS.bad),
    tolerance=of("auto", 1e-3),
    inference_input_type=of(None, "float32"),
    batch_size=of(None, 1, 2),
    labels=Argument(lambda rng, world: rng.choice([None, np.arange(8) % 3]), LABELS.bad),
    cpu=of("any", "x86", "arm"),
    compact=of(False, spoil=0.0),
    benchmark=of(False, spoil=0.0),
)
entry(keras_ntt.explain_edge_latency, weight=0.1, raises=(TypeError, ValueError, ExportError))(
    model=model("mlp", "cnn", spoil=1.0)
)
entry(keras_ntt.edge_mobilenet, weight=0.5)(
    input_shape=of((32, 32, 3)),
    classes=of(2),
    width=of(0.1),
    blocks=of(
        [(8, 1), (8, 2)],
        bad=lambda rng: rng.choice(
            [
                [],
                [(8, 3)],
                [(0, 1)],
                [(8,)],
                [8],
                [(8, 1, 1)],
                [("8", 1)],
                [(8, 2)] * 5,
                [(8, values.nasty(rng))],
                [(values.nasty(rng), 1)],
                values.nasty(rng),
            ]
        ),
    ),
)

# --- the command line ------------------------------------------------------------------------


@functools.cache
def _keras_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        mlp().save(pathlib.Path(folder, "model.keras"))
        return pathlib.Path(folder, "model.keras").read_bytes()


def _words(rng: random.Random, world: World) -> list[str]:
    """Draw the words of a command, most of them wrong."""
    name = rng.choice(["file", "two words", "имя 面", "-", "--json", ".hidden"])
    if rng.random() < 0.6:
        file = world.file(name, _litert(rng))
        options = rng.choice([[], ["--json"], ["--no-such-option"], ["more"]])
        return [
            "inspect",
            *rng.choice([[str(file)], [], [str(world.folder)], ["missing"]]),
            *options,
        ]
    content = _keras_file()
    file = world.file(f"{name}.keras", damaged(rng, content) if rng.random() < 0.8 else content)
    wrong = [
        *(["--target", "other"], ["--target"], ["--tolerance", "nan"], ["--tolerance", "x"]),
        *(["--cpu", ""], ["--quantization", "int4"], ["--data", str(world.folder / "none.npy")]),
        *(["--data", str(world.file("text.npy", b"text"))], ["--tolerance", "-1"], ["--data"]),
        ["--data", str(world.file("trap.npy", _npy(np.array([Trap(str(SPRUNG))], object))))],
    ]
    target = rng.choice([world.folder / "out.tflite", world.folder / "missing" / "out.tflite"])
    given = rng.choice([[str(file), str(target)], [str(file)], [], [str(world.folder), "x"]])
    return ["export", *given, *rng.choice(wrong)]


def _command(words: list[str]) -> None:
    """Run a command: an exit code of 0, 1 or 2, words about what is wrong, and no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    assert code in (0, 1, 2), f"exit code {code!r}"
    assert "Traceback" not in err.getvalue(), err.getvalue()
    assert code == 0 or len(err.getvalue().strip()) > 20, "it does not say what is wrong"
    assert not SPRUNG.exists(), "something in a file was run"


entry(_command, "keras-ntt", weight=2, raises=(), changes=True)(words=Argument(_words, _words))
