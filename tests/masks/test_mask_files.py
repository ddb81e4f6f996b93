"""Mask files: what is written is read again, and nothing else is."""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import re
import tempfile
import zipfile

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import keras_ntt
from keras_ntt import apply_masks, get_masks, load_masks, save_masks

REFUSED = "not a whole mask file"


def model_of(units=(4, 2), **names):
    layers = [keras.layers.Dense(u, name=f"layer_{i}") for i, u in enumerate(units)]
    return keras.Sequential([keras.Input((3,)), *layers], name="net")


def masked(seed=0, units=(4, 2)):
    rng = np.random.default_rng(seed)
    model = model_of(units)
    masks = {v.path: rng.random(v.shape) < 0.5 for v in model.weights if v.name == "kernel"}
    return apply_masks(model, masks), masks


def state(model):
    constraints = [v.constraint for v in model.weights]
    masks = {key: mask.copy() for key, mask in get_masks(model).items()}
    return model.get_weights(), constraints, masks


def assert_unchanged(model, before):
    weights, constraints, masks = before
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(constraints, [v.constraint for v in model.weights], strict=True):
        assert old is new
    assert_same(get_masks(model), masks)


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for key, mask in wanted.items():
        assert found[key].dtype == bool
        np.testing.assert_array_equal(found[key], mask)


def assert_refused(model, path, match=REFUSED):
    before = state(model)
    with pytest.raises(ValueError, match=match) as info:
        load_masks(model, path)
    assert "Received" in str(info.value)
    assert_unchanged(model, before)


@pytest.fixture(scope="module")
def whole():
    """Return the bytes of a good file."""
    model, _ = masked()
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "masks.npz")
        save_masks(model, path)
        return path.read_bytes()


# --- round trips -----------------------------------------------------------------------------


@hypothesis.given(
    hnp.arrays(bool, (3, 4)), hnp.arrays(bool, (4, 2)), st.sampled_from([(0, 1), (0,), (1,)])
)
def test_round_trip_of_any_masks(first, second, which):
    model = model_of()
    kernels = [v.path for v in model.weights if v.name == "kernel"]
    masks = {kernels[i]: (first, second)[i] for i in which}
    apply_masks(model, masks)
    other = model_of()
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "masks.npz")
        save_masks(model, path)
        assert load_masks(other, path) is other
        assert os.listdir(directory) == ["masks.npz"]
    assert_same(get_masks(other), masks)
    for v in other.weights:
        value = keras.ops.convert_to_numpy(v)
        assert not value[~masks.get(v.path, np.ones(v.shape, bool))].any()


@pytest.mark.parametrize(
    "name",
    ["masks.npz", "masks", "masks.v1.bin", "two words.npz", "маски-面具-é.npz", " .npz", "#%&'"],
)
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_paths_are_taken_as_they_are(tmp_path, name, kind):
    model, masks = masked()
    directory = tmp_path / "a directory – с пробелом"
    directory.mkdir()
    path = kind(directory / name)
    save_masks(model, path)
    assert os.listdir(directory) == [name]
    other = model_of()
    load_masks(other, path)
    assert_same(get_masks(other), masks)


def test_a_relative_path_is_one_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, masks = masked()
    save_masks(model, "masks.npz")
    assert os.listdir(tmp_path) == ["masks.npz"]
    assert_same(get_masks(load_masks(model_of(), "masks.npz")), masks)


def test_layer_names_of_any_script(tmp_path):
    inputs = keras.Input((3,))
    layer = keras.layers.Dense(2, name="слой 面 é")
    model = keras.Model(inputs, layer(inputs))
    masks = {layer.kernel.path: np.arange(6).reshape(3, 2) % 2 == 0}
    save_masks(apply_masks(model, masks), tmp_path / "masks.npz")
    keras_ntt.strip_pruning(model)
    assert_same(get_masks(load_masks(model, tmp_path / "masks.npz")), masks)


def test_the_file_is_an_ordinary_npz_of_booleans(tmp_path):
    model, masks = masked()
    save_masks(model, tmp_path / "masks.npz")
    with np.load(tmp_path / "masks.npz", allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    listed = found.pop("__weights__")
    assert [line.split()[0] for line in listed] == [v.path for v in model.weights]
    assert_same(found, masks)


def test_a_file_that_numpy_wrote_will_do(tmp_path):
    _, masks = masked()
    np.savez(tmp_path / "masks.npz", **{k: m.astype("uint8") for k, m in masks.items()})
    assert_same(get_masks(load_masks(model_of(), tmp_path / "masks.npz")), masks)


def test_loading_replaces_masks_that_a_model_holds(tmp_path):
    model, masks = masked(1)
    save_masks(model, tmp_path / "masks.npz")
    other, _ = masked(2)
    assert_same(get_masks(load_masks(other, tmp_path / "masks.npz")), masks)


def test_the_file_may_be_read_by_whom_an_ordinary_file_may(tmp_path):
    model, _ = masked()
    (tmp_path / "ordinary").write_bytes(b"")
    save_masks(model, tmp_path / "masks.npz")
    modes = [(tmp_path / name).stat().st_mode for name in ("masks.npz", "ordinary")]
    assert oct(modes[0]) == oct(modes[1])


# --- writing that fails ----------------------------------------------------------------------


def fail(*args, **kwargs):
    raise OSError("no space left on device")


@pytest.mark.parametrize("where", [(os, "replace"), (np.lib.format, "write_array")])
@pytest.mark.parametrize("older", [b"older file", None], ids=["older", "new"])
def test_a_failed_write_leaves_the_directory_as_it_was(tmp_path, monkeypatch, where, older):
    model, _ = masked()
    path = tmp_path / "masks.npz"
    if older is not None:
        path.write_bytes(older)
    before = state(model)
    monkeypatch.setattr(*where, fail)
    with pytest.raises(OSError, match="no space left"):
        save_masks(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ([] if older is None else ["masks.npz"])
    if older is not None:
        assert path.read_bytes() == older
    assert_unchanged(model, before)


def test_saving_into_a_directory_that_is_missing(tmp_path):
    model, _ = masked()
    with pytest.raises(FileNotFoundError):
        save_masks(model, tmp_path / "missing" / "masks.npz")
    assert list(tmp_path.iterdir()) == []


def test_saving_a_model_without_masks_writes_nothing(tmp_path):
    path = tmp_path / "masks.npz"
    path.write_bytes(b"older file")
    with pytest.raises(ValueError, match=r"no masks to save.*Received: model='net'"):
        save_masks(model_of(), path)
    assert path.read_bytes() == b"older file"
    assert [p.name for p in tmp_path.iterdir()] == ["masks.npz"]


# --- files that are none ---------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True], ids=["plain", "masked"])
@hypothesis.given(st.data())
def test_a_file_cut_off_anywhere_is_refused(whole, held, data):
    size = data.draw(st.integers(0, len(whole) - 1))
    model = masked(3)[0] if held else model_of()
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "masks.npz")
        path.write_bytes(whole[:size])
        assert_refused(model, path)


def refusal_of(model, path):
    """Return the message with which a file is refused, or None."""
    try:
        load_masks(model, path)
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def plain():
    """Return a model without masks, for tests that leave it as it is."""
    return model_of()


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.data())
@pytest.mark.long
def test_a_file_with_a_wrong_byte_is_refused_or_read_as_it_was(whole, plain, data):
    position = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[position]))
    broken = bytearray(whole)
    broken[position] = byte
    before = state(plain)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "masks.npz")
        path.write_bytes(bytes(broken))
        refusal = refusal_of(plain, path)
    if refusal is None:  # a date, for example, that nobody reads
        assert_same(get_masks(plain), masked()[1])
        keras_ntt.strip_pruning(plain).set_weights(before[0])
    else:
        assert re.search("mask.*Received", refusal, re.DOTALL)
        assert_unchanged(plain, before)


def test_a_directory_that_passes_over_masks_is_refused(whole, plain, tmp_path):
    broken = bytearray(whole)
    broken[whole.index(b"PK\x01\x02") + 32] = 129  # a comment that would hold the other entries
    (tmp_path / "masks.npz").write_bytes(broken)
    with zipfile.ZipFile(tmp_path / "masks.npz") as archive:
        assert len(archive.namelist()) == 1  # of three, and nothing is said
    assert_refused(plain, tmp_path / "masks.npz")


@hypothesis.given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY"]))
def test_any_bytes_are_refused(plain, content, prefix):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "masks.npz")
        path.write_bytes(prefix + content)
        assert_refused(plain, path)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def zipped(entries, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


KERNEL = "net/layer_0/kernel"
OBJECTS = np.array([{"a": 1}, None], dtype=object)
FOREIGN = {
    "empty": b"",
    "text": b"weights and masks\n",
    "one array": npy(np.ones((3, 4), bool)),
    "pickle": pickle.dumps({KERNEL: np.ones((3, 4), bool)}),
    "pickled array": npy(OBJECTS, allow_pickle=True),
    "pickle within": zipped({f"{KERNEL}.npy": npy(OBJECTS, allow_pickle=True)}),
    "zip without entries": zipped({}),
    "zip of text": zipped({"readme.txt": b"hello"}),
    "zip of text in place of an array": zipped({KERNEL: b"hello"}),
    "zip of text named as an array": zipped({f"{KERNEL}.npy": b"hello"}),
    "array cut off within": zipped({f"{KERNEL}.npy": npy(np.ones((3, 4), bool))[:-5]}),
    "header cut off within": zipped({f"{KERNEL}.npy": npy(np.ones((3, 4), bool))[:40]}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused(tmp_path, name):
    path = tmp_path / "masks.npz"
    path.write_bytes(FOREIGN[name])
    match = f"{REFUSED}|The mask of" if "text" in name else REFUSED
    assert_refused(model_of(), path, match)
    assert_refused(masked()[0], path, match)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path):
    trap = np.array([Trap(str(tmp_path / "sprung"))], dtype=object)
    for name, content in {
        "npz": zipped({f"{KERNEL}.npy": npy(trap, allow_pickle=True)}),
        "npy": npy(trap, allow_pickle=True),
        "pkl": pickle.dumps(trap),
    }.items():
        path = tmp_path / f"masks.{name}"
        path.write_bytes(content)
        assert_refused(model_of(), path)
    assert not (tmp_path / "sprung").exists()


def test_a_keras_file_is_refused(tmp_path):
    model = model_of()
    model.save(tmp_path / "model.keras")
    assert_refused(model, tmp_path / "model.keras", match="mask")


@pytest.mark.parametrize(
    ("masks", "match"),
    [
        ({"other": np.ones((3, 4), bool)}, "masks are for other weights"),
        ({KERNEL: np.ones((3, 4), bool), "other": np.ones(1, bool)}, "masks are for other weights"),
        ({KERNEL: np.ones((4, 3), bool)}, r"must have the weight's shape \(3, 4\)"),
        ({KERNEL: np.bool_(True)}, r"must have the weight's shape \(3, 4\)"),
        ({KERNEL: np.full((3, 4), 0.5)}, "must be boolean or hold only 0 and 1"),
        ({KERNEL: np.full((3, 4), np.nan)}, "must be boolean or hold only 0 and 1"),
        ({KERNEL: np.full((3, 4), "1")}, "must be boolean or hold only 0 and 1"),
        ({"x": np.ones((3, 4), bool), "y": np.ones((2, 4), bool)}, "masks are for other weights"),
    ],
)
def test_masks_of_another_model_are_refused(tmp_path, masks, match):
    np.savez(tmp_path / "masks.npz", **masks)
    assert_refused(model_of(), tmp_path / "masks.npz", match)
    assert_refused(masked()[0], tmp_path / "masks.npz", match)


def test_a_model_of_other_depth_or_width_is_refused(tmp_path):
    model, _ = masked(units=(4, 4, 2))
    save_masks(model, tmp_path / "masks.npz")
    assert_refused(model_of((4, 2)), tmp_path / "masks.npz", "mask")
    assert_refused(model_of((4, 3, 2)), tmp_path / "masks.npz", "mask")


def branches(*order):
    """Return a model of two branches of one shape, added in some order."""
    inputs = keras.Input((3,))
    made = [keras.layers.Dense(4, name=name)(inputs) for name in order]
    return keras.Model(inputs, keras.layers.Add()(made))


def test_masks_of_the_same_names_in_another_order_go_by_their_names(tmp_path):
    rng = np.random.default_rng(0)
    model = branches("a", "b")
    masks = {v.path: rng.random(v.shape) < 0.5 for v in model.weights if v.name == "kernel"}
    save_masks(apply_masks(model, masks), tmp_path / "masks.npz")
    other = branches("b", "a")
    assert [v.path for v in other.weights] != [v.path for v in model.weights]
    found = get_masks(load_masks(other, tmp_path / "masks.npz"))
    assert_same({key: found[key] for key in sorted(found)}, masks)


def test_a_file_that_is_missing(tmp_path):
    model = model_of()
    before = state(model)
    with pytest.raises(FileNotFoundError):
        load_masks(model, tmp_path / "masks.npz")
    with pytest.raises((IsADirectoryError, PermissionError)):
        load_masks(model, tmp_path)
    assert_unchanged(model, before)
