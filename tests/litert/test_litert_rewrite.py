"""Re-encoded LiteRT files, run beside the dense ones; damaged files, which must be refused."""

from __future__ import annotations

import copy
import itertools
import pathlib

import hypothesis
import keras
import numpy as np
import pytest
from helpers.litert_graphs import (
    Graph,
    add_signature,
    convolution,
    depthwise,
    empty_model,
    fully_connected,
    halved,
    input_of,
    run,
    sparse_array,
    transposed,
)
from hypothesis import strategies as st

from keras_ntt import inspect_tflite
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import encoding
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import storage as forms
from keras_ntt.litert.format.rewrite import rewrite
from keras_ntt.litert.format.weights import weights_of
from keras_ntt.litert.inspect import stored_weights
from keras_ntt.litert.reencode import reencode

pytestmark = pytest.mark.oldest

MAKE = {
    "fully connected": lambda w: fully_connected(w.reshape(w.shape[0], -1)),
    "conv": convolution,
    "conv 1x1": lambda w: convolution(w[:, :1, :1]),
    "transposed": transposed,
    "depthwise": lambda w: depthwise(w[:1]),
}


@st.composite
def models(draw):
    """Draw one operator with a sparse weight of a shape that nothing divides."""
    shape = tuple(draw(st.integers(1, high)) for high in (17, 3, 3, 21))
    sparsity = draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0]))
    weight = sparse_array(np.random.default_rng(draw(st.integers(0, 999))), shape, sparsity)
    if draw(st.booleans()):
        weight[draw(st.integers(0, shape[0] - 1))] = 0
    if draw(st.booleans()):
        weight[...] = 0
        weight[-1, -1, -1, -1] = 2.5
    return MAKE[draw(st.sampled_from(sorted(MAKE)))](weight)


def force(model, *, storage, int8=False, layout=None):
    """Store every weight in one way, whether it pays or not."""
    choices = {}
    for weight in weights_of(model):
        dtype = "int8" if int8 else weight.array.dtype.name
        chosen = encoding.ROWS if storage == "direct" else layout
        if storage == "densify" and chosen is None:
            chosen = forms.densified(weight, int8=False, reason="").layout
        if storage == "dense":
            chosen = None
        choice = forms.Choice(storage, dtype, chosen, 0, "forced")
        choices[weight.subgraph, weight.tensor] = (weight, choice)
    assert choices
    return rewrite(model, choices)


def rounded_twin(model):
    """Return a dense model whose weights are what int8 makes of them."""
    twin = copy.deepcopy(model)
    for weight in weights_of(model):
        values = forms.dequantize(*forms.quantize(weight.array, weight.axis), weight.axis)
        twin.subgraphs[0].tensors[weight.tensor].buffer = fb.add_buffer(twin, values)
    return twin


def assert_equal(ours, dense, x, *, exact=False, **options):
    expected = run(fb.write(dense), x, **options)
    found = run(fb.write(ours), x, **options)
    tolerance = 0 if exact else 1e-5 * max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("xnnpack", [True, False], ids=["xnnpack", "plain"])
@hypothesis.given(models(), st.booleans(), st.integers(1, 3))
@hypothesis.settings(max_examples=40)
def test_unpacked_weights_give_the_same_outputs_exactly(xnnpack, model, int8, batch):
    ours = force(model, storage="densify", int8=int8)
    dense = rounded_twin(model) if int8 else model
    x = input_of(model, 1 if "TRANSPOSE" in str(kinds(model)) else batch)
    assert_equal(ours, dense, x, exact=True, xnnpack=xnnpack)


@pytest.mark.parametrize("xnnpack", [True, False], ids=["xnnpack", "plain"])
@hypothesis.given(models(), st.integers(1, 3))
def test_half_precision_gives_the_same_outputs_exactly(xnnpack, model, batch):
    model = halved(model)
    (weight,) = weights_of(model)
    assert weight.half
    x = input_of(model, 1 if "TRANSPOSE" in str(kinds(model)) else batch)
    assert_equal(reencode(model).model, model, x, exact=True, xnnpack=xnnpack)
    if weight.may_be_unpacked:
        assert_equal(force(model, storage="densify"), model, x, exact=True, xnnpack=xnnpack)


def kinds(model):
    return {fb.operator_name(model, op) for g in model.subgraphs for op in g.operators}


@pytest.mark.parametrize("xnnpack", [True, False], ids=["xnnpack", "plain"])
@hypothesis.given(models(), st.integers(1, 3))
def test_dense_int8_weights_give_what_their_rounding_gives(xnnpack, model, batch):
    ours = force(model, storage="dense", int8=True)
    x = input_of(model, 1 if "TRANSPOSE" in str(kinds(model)) else batch)
    assert_equal(ours, rounded_twin(model), x, xnnpack=xnnpack)


@pytest.mark.parametrize("runtime", ["ai_edge_litert", "tensorflow"])
@hypothesis.given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.sampled_from([0.0, 0.5, 0.9, 0.97, 0.99, 1.0]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_direct_rows_give_the_same_outputs(runtime, sizes, sparsity, batch, bias, xnnpack):
    rng = np.random.default_rng(0)
    weights = [
        sparse_array(rng, (out, given), sparsity) for given, out in itertools.pairwise(sizes)
    ]
    model = fully_connected(*weights, bias=bias)
    ours = force(model, storage="direct")
    assert_equal(ours, model, input_of(model, batch), xnnpack=xnnpack, runtime=runtime)
    assert {s.storage for s in stored_weights(ours)} == {"direct"}


@pytest.mark.parametrize("storage", ["direct", "densify"])
@pytest.mark.parametrize("width", [257, 65537])
def test_indices_beyond_a_byte_and_beyond_two(storage, width):
    weight = np.zeros((3, width), "float32")
    weight[0, -1], weight[2, 0], weight[2, 256] = 2, 3, 4
    model = fully_connected(weight)
    exact = storage == "densify"  # the direct kernel adds up in another order
    assert_equal(force(model, storage=storage), model, input_of(model), exact=exact)


@pytest.mark.parametrize("blocks", [(2, 1), (1, 4), (4, 2), (16, 16)])
def test_blocks_run(blocks):
    mask = np.kron(
        np.random.default_rng(0).random((32 // blocks[0], 48 // blocks[1])) < 0.2, np.ones(blocks)
    )
    weight = (np.random.default_rng(1).normal(size=mask.shape) * mask).astype("float32")
    model = fully_connected(weight)
    for packed in ((False, True), (True, True)):
        layout = encoding.Layout((0, 1), packed, blocks)
        ours = force(model, storage="densify", layout=layout)
        for xnnpack in (True, False):
            assert_equal(ours, model, input_of(model, 2), exact=True, xnnpack=xnnpack)


@pytest.mark.parametrize("storage", ["direct", "densify"])
def test_a_weight_that_two_operators_share_is_stored_once(storage):
    weight = sparse_array(np.random.default_rng(0), (40, 40), 0.9)
    shared, apart = fully_connected(weight, weight), fully_connected(weight, weight.copy())
    ours = force(shared, storage=storage)
    assert_equal(ours, shared, input_of(shared, 2))
    assert len(fb.write(ours)) < len(fb.write(force(apart, storage=storage)))
    assert len(stored_weights(ours)) == 1


@pytest.mark.parametrize("storage", ["direct", "densify"])
def test_signatures_of_two_graphs_that_share_a_buffer(storage):
    weight = sparse_array(np.random.default_rng(0), (64, 64), 0.9)
    model = empty_model()
    buffer = fb.add_buffer(model, weight)
    for number, key in enumerate(("one", "two")):
        graph = Graph(model, (1, 64))
        index = graph.constant("weight", weight, buffer)
        output = graph.operator("FULLY_CONNECTED", [0, index, -1], (1, 64))
        if number:
            output = graph.operator("FULLY_CONNECTED", [output, index, -1], (1, 64))
        graph.finish(output)
        add_signature(model, key, number)
    ours = force(model, storage=storage)
    x = input_of(model)
    for key in ("one", "two"):
        expected = run(fb.write(model), x, signature=key)
        np.testing.assert_allclose(run(fb.write(ours), x, signature=key), expected, atol=1e-4)
    bytes_kept = [len(b.data) for b in ours.buffers if b.data is not None]
    assert sum(bytes_kept) == np.count_nonzero(weight) * 4


def test_the_model_given_is_left_as_it_is():
    model = fully_connected(sparse_array(np.random.default_rng(0), (30, 30), 0.9))
    before = fb.write(model)
    force(model, storage="densify", int8=True)
    force(model, storage="direct")
    assert fb.write(model) == before


def test_data_stand_at_multiples_of_sixteen():
    model = fully_connected(*[np.ones((n, n), "float32") for n in (3, 3)])
    content = fb.write(model)
    for weight in weights_of(fb.read(content)):
        data = weight.array.tobytes()
        assert content.index(data) % 16 == 0
    assert fb.write(fb.read(content)) == content


# --- what is chosen --------------------------------------------------------------------------


def test_the_smallest_form_is_chosen_by_sparsity():
    rng = np.random.default_rng(0)
    for sparsity, storages in ((0.1, {"dense"}), (0.6, {"densify"}), (0.95, {"direct"})):
        model = fully_connected(sparse_array(rng, (200, 200), sparsity))
        found = reencode(model, target="size")
        assert {c.storage for _, c in found.choices.values()} == storages, sparsity
        sizes = {
            storage: len(fb.write(force(model, storage=storage)))
            for storage in ("densify", "direct", "dense")
        }
        assert len(fb.write(found.model)) <= min(sizes.values()) * 1.02


def test_names_are_shortened():
    rng = np.random.default_rng(0)
    first, second = (sparse_array(rng, (8, 8), 0.5) for _ in range(2))
    model = fully_connected(first, second)
    names = [b"input", b"a/MatMul", b"a/Bias;a/Relu", b"a/Bias;b", b"c", b"c;d", b"out;side"]
    for tensor, name in zip(model.subgraphs[0].tensors, names, strict=True):
        tensor.name = name
    found = reencode(model).model.subgraphs[0]
    shown = [fb.name_of(tensor) for tensor in found.tensors]
    assert shown[:7] == ["input", "MatMul", "Bias", "Bias1", "c", "c1", "out;side"]
    assert [t.name for t in model.subgraphs[0].tensors] == names
    assert_equal(reencode(model).model, model, input_of(model))


def test_what_no_interpreter_reads_is_left_out():
    keras.utils.set_random_seed(0)
    (content,) = convert(keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)]), [None])
    model = fb.read(content)
    assert any(entry.name == b"CONVERSION_METADATA" for entry in model.metadata)
    found = reencode(model).model
    assert [entry.name for entry in found.metadata] == [b"min_runtime_version"]
    assert not any(tensor.quantization for tensor in found.subgraphs[0].tensors)
    assert len(fb.write(found)) < len(content) - 100
    assert_equal(found, model, np.ones((1, 8), "float32"))


def test_tiny_weights_stay_dense():
    model = fully_connected(sparse_array(np.random.default_rng(0), (4, 5), 0.9))
    assert len(fb.write(reencode(model).model)) <= len(fb.write(fb.read(fb.write(model))))


@pytest.mark.parametrize(
    ("shape", "sparsity", "cpu", "storage"),
    [
        ((1024, 1024), 0.91, "any", "dense"),
        ((1024, 1024), 0.93, "any", "direct"),
        ((256, 256), 0.93, "any", "dense"),
        ((256, 256), 0.96, "x86", "direct"),
        ((256, 256), 0.82, "arm", "direct"),
        ((256, 256), 0.78, "arm", "dense"),
    ],
)
def test_latency_takes_the_sparse_kernel_where_it_wins(shape, sparsity, cpu, storage):
    model = fully_connected(sparse_array(np.random.default_rng(0), shape, sparsity))
    found = reencode(model, target="latency", cpu=cpu)
    assert {c.storage for _, c in found.choices.values()} == {storage}


def test_files_grow_with_every_weight_that_is_kept():
    sizes = []
    for sparsity in (0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99):
        model = fully_connected(sparse_array(np.random.default_rng(0), (300, 98), sparsity))
        sizes.append(len(fb.write(reencode(model).model)))
    assert sizes == sorted(sizes, reverse=True)


# --- damaged files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content():
    model = fully_connected(sparse_array(np.random.default_rng(0), (20, 30), 0.8))
    return fb.write(force(model, storage="densify"))


def refuse_or_read(path: pathlib.Path, damaged: bytes):
    """Inspect damaged bytes: a report or a clear error, nothing else."""
    path.write_bytes(damaged)
    try:
        report = inspect_tflite(path)
    except ValueError as error:
        text = str(error)
    else:
        assert str(report)
        return True
    assert "LiteRT" in text
    assert "Received" in text
    return False


@pytest.mark.parametrize(
    "damaged", [b"", b"TFL3", b"not a LiteRT file", bytes(100), b"\x1c\0\0\0TFL3"]
)
def test_files_that_are_no_model(tmp_path, damaged):
    assert not refuse_or_read(tmp_path / "file", damaged)


def test_cut_files_are_refused(tmp_path, content):
    # Data stand at the end or at the beginning: no cut leaves a whole file.
    for length in range(0, len(content) - 4, 37):
        assert not refuse_or_read(tmp_path / "file", content[:length]), length


def test_changed_bytes_never_crash(tmp_path, content):
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 6)):
            damaged[place] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))])
        refuse_or_read(tmp_path / "file", bytes(damaged))


def test_changed_words_never_crash(tmp_path, content):
    for place in range(0, len(content) - 4, 8):
        for word in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"):
            damaged = content[:place] + word + content[place + 4 :]
            refuse_or_read(tmp_path / "file", damaged)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        inspect_tflite(tmp_path / "missing.tflite")
