"""Encoded weights of microcontrollers: golden bytes, both ways, damaged ones; memory."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.micro_graphs import inputs_of, random_model
from hypothesis import given
from hypothesis import strategies as st

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro import arena, cut, decode, fit, graph, huffman, verify
from keras_ntt.litert.micro.arena import Buffer
from keras_ntt.litert.micro.decode import Channels
from keras_ntt.litert.runtime import micro as runtime
from keras_ntt.litert.runtime.run import ExportError


def hexadecimal(vector):
    return vector.tobytes().hex(" ").upper()


# --- bytes that the interpreter's own decoders have unpacked rightly ---------------------------


def test_pruning_golden():
    weight = np.array([[0, 5, 0, 0, -3], [0, 0, 0, 7, 0]], np.int8)
    found = decode.prune(weight)
    assert hexadecimal(found.encoded) == "48 80"
    assert hexadecimal(found.ancillary) == "02 01 00 00 01 F0" + 10 * " 00" + " 05 FD 07"


def test_huffman_golden():
    weight = np.array([5, 9, -3, 5, 5, 9, 5, -3], np.int8)
    found = decode.compress(weight, huffman.Code((5, 9, -3), ("0", "10", "11")))
    assert hexadecimal(found.encoded) == "59 30" + 6 * " 00"
    ancillary = "01 01 00 00 01 00" + 10 * " 00" + " 05 88 01 00 09 88 FD 88"
    assert hexadecimal(found.ancillary) == ancillary
    assert decode.decode(*found[1:], (8,), np.dtype(np.int8)).tolist() == weight.tolist()


def test_lookup_golden():
    encoded = np.array([0x1B, 0x39], np.uint8)
    header = [0, 1, 0, 0, 1, 0xF2, 4, *[0] * 9]
    ancillary = np.array([*header, 10, 20, 30, 40], np.uint8)
    found = decode.decode(encoded, ancillary, (8,), np.dtype(np.int8))
    assert found.tolist() == [10, 20, 30, 40, 10, 40, 30, 20]


# --- both ways ---------------------------------------------------------------------------------


@given(
    st.integers(1, 70),
    st.sampled_from(decode.PRUNING_TYPES),
    st.floats(0, 1),
    st.integers(0, 2**16),
)
def test_pruning_is_lossless(size, dtype, zeros, seed):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-100, 100, size).astype(dtype)
    weight[rng.random(size) < zeros] = 0
    if dtype == "float32":
        weight[rng.integers(size)] = -0.0
    found = decode.prune(weight)
    again = decode.decode(*found[1:], (size,), np.dtype(dtype))
    assert again.tobytes() == weight.tobytes()
    kept = sum(entry.tobytes() != bytes(entry.nbytes) for entry in weight)
    assert found.size == 16 + -(-size // 8) + kept * weight.itemsize


@pytest.mark.parametrize("axis", [0, 1])
def test_pruning_by_channels_with_zero_points(axis, rng):
    weight = rng.integers(-2, 3, (4, 6)).astype(np.int8)
    channels = Channels(tuple(range(-2, -2 + weight.shape[axis])), axis)
    found = decode.prune(weight, channels)
    again = decode.decode(*found[1:], (4, 6), np.dtype(np.int8), channels)
    np.testing.assert_array_equal(again, weight)
    assert found.ancillary[5] == axis << 4
    points = np.expand_dims(channels.zero_points, 1 - axis)
    assert len(found.ancillary) == 16 + np.count_nonzero(weight != points)


@given(st.integers(1, 300), st.sampled_from(["int8", "int16"]), st.integers(0, 2**16))
def test_huffman_is_lossless_and_as_short_as_its_code(size, dtype, seed):
    rng = np.random.default_rng(seed)
    spread = rng.choice([0.3, 3, 40])
    weight = np.clip(rng.normal(scale=spread, size=size), -128, 127).astype(dtype)
    found = decode.compress(weight)
    again = decode.decode(*found[1:], (size,), np.dtype(dtype))
    assert again.tobytes() == weight.tobytes()
    _, counts = np.unique(weight, return_counts=True)
    entropy = -(counts * np.log2(counts / size)).sum()
    code = huffman.code_of(weight)
    bits = sum(len(code.words[code.symbols.index(int(v))]) for v in weight)
    assert entropy <= bits + 1e-6
    assert bits < entropy + size or len(counts) == 1
    assert len(found.encoded) == -(-(bits + 32) // 32) * 4


def test_code_words_of_more_than_16_bits():
    counts = np.array([1, 1, *(2**i for i in range(1, 20))])  # a tree with a single branch
    weight = np.repeat(np.arange(len(counts)), counts).astype(np.int8)
    assert max(map(len, huffman.code_of(weight).words)) == 20
    found = decode.compress(weight)
    again = decode.decode(*found[1:], weight.shape, np.dtype(np.int8))
    np.testing.assert_array_equal(again, weight)


@given(st.binary(max_size=40), st.binary(min_size=16, max_size=60), st.integers(0, 2))
def test_damaged_bytes_raise_our_error(encoded, ancillary, kind):
    header = bytes([kind, 1, 0, 0, 1])
    vectors = [np.frombuffer(b, np.uint8) for b in (encoded, header + ancillary[5:])]
    for dtype in ("int8", "float32"):
        try:
            found = decode.decode(*vectors, (3, 7), np.dtype(dtype))
        except fb.FileFormatError:
            continue
        assert found.shape == (3, 7)


# --- whole models ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_random_models_hold_the_same_weights(seed):
    model = random_model(seed)
    packed = fit.pack(model, huffman=bool(seed % 2))
    assert verify.check_same(model, fb.write(packed.model)) > 0
    pieces = {c.key: 3 for c in packed.constants if cut.may_be_cut(model, c.key)}
    again = fb.write(fit.pack(model, pieces=pieces).model)
    verify.check_same(model, again)


def test_a_changed_weight_is_noticed():
    model = random_model(0)
    changed = fb.copy_of(model)
    tensor = next(t for t in changed.subgraphs[0].tensors if t.name == b"weight")
    array = fb.constant(changed, tensor).copy()
    array.reshape(-1)[0] += 1
    tensor.buffer = fb.add_buffer(changed, array)
    with pytest.raises(ExportError, match="constant 1"):
        verify.check_same(model, fb.write(fit.pack(changed).model))


def test_encoded_weights_come_back():
    model = random_model(3)
    keys = {
        (0, int(op.inputs[1])): fb.constant(model, model.subgraphs[0].tensors[int(op.inputs[1])])
        for op in model.subgraphs[0].operators
    }
    chosen = {key: decode.prune(array) for key, array in keys.items()}
    content = fb.write(graph.insert(model, chosen))
    found = fb.read(content)
    values = [graph.value_of(found, sub, entry) for sub, entry in graph.decodes(found)]
    readers = len(model.subgraphs[0].operators)
    assert len(values) == readers  # one DECODE a reader
    assert {v.tobytes() for v in values} == {a.tobytes() for a in keys.values()}
    assert not list(graph.decodes(graph.resolve(found)))


def test_equal_vectors_are_stored_once_and_buffers_begin_at_16():
    model = random_model(5)
    content = fb.write(model)
    assert fb.write(fb.read(content)) == content
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) > 16:
            data = bytes(memoryview(buffer.data))
            assert content.count(data) == 1
            assert content.index(data) % 16 == 0


# --- memory ------------------------------------------------------------------------------------


def test_peak_of_buffers_that_never_meet_is_the_largest():
    assert arena.peak([Buffer(64, 0, 0), Buffer(96, 1, 1), Buffer(32, 2, 2)]) == 96
    assert arena.peak([]) == 0


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 4)), max_size=12))
def test_peak_is_at_least_what_lives_at_once(parts):
    buffers = [Buffer(16 * size, first, first + length) for size, first, length in parts]
    alive = [sum(b.size for b in buffers if b.first <= t <= b.last) for t in range(15)]
    assert max(alive) <= arena.peak(buffers) <= sum(b.size for b in buffers)


def test_a_limit_holds_or_the_smallest_arena_is_named():
    from helpers.litert_graphs import empty_model
    from helpers.micro_graphs import MicroGraph, dense

    rng, model = np.random.default_rng(0), empty_model()
    built = MicroGraph(model, (1, 64))
    index, _ = dense(built, rng, 0, 64, 256, 0.8)
    index, _ = dense(built, rng, index, 256, 8, 0.8)
    built.finish(index)
    whole = fit.pack(model)
    limit = whole.plan.total - 8000
    cut_model = fit.within(model, limit)
    assert cut_model.plan.total <= limit < whole.plan.total
    verify.check_same(model, fb.write(cut_model.model))
    assert any(c.encoded is not None for c in cut_model.constants)
    same_peak = fit.within(model, "dense").plan
    assert same_peak.head <= arena.plan(model).head
    with pytest.raises(fit.ArenaLimitError, match="the smallest takes") as caught:
        fit.within(model, 1000)
    smallest = int(caught.value.args[0].split("takes ")[1].split(" ")[0].replace(",", ""))
    assert fit.within(model, smallest).plan.total == smallest


def test_constants_that_kernels_need_while_they_prepare_stay_dense():
    from helpers.litert_graphs import empty_model
    from helpers.micro_graphs import MicroGraph, dense

    rng, model = np.random.default_rng(0), empty_model()
    built = MicroGraph(model, (1, 64))
    index, _ = dense(built, rng, 0, 64, 64, 0.9)
    recurrent = built.weight(np.zeros((64, 64), np.int8))
    index = built.layer("UNIDIRECTIONAL_SEQUENCE_LSTM", [index, recurrent], (1, 64))
    shape = built.constant("shape", np.zeros(32, np.int32))
    built.finish(built.layer("RESHAPE", [index, shape], (1, 64)))
    constants = fit.pack(model).constants
    reasons = {c.operators[0]: c.reason for c in constants if c.encoded is None}
    assert "constant weights while it prepares" in reasons["UNIDIRECTIONAL_SEQUENCE_LSTM"]
    assert reasons["RESHAPE"] == "not a weight"
    assert [c.operators for c in constants if c.encoded is not None] == [("FULLY_CONNECTED",)]


# --- the interpreter ---------------------------------------------------------------------------


@pytest.mark.skipif(not runtime.is_installed(), reason="tflite_micro is not installed")
@pytest.mark.parametrize("seed", range(4))
def test_the_interpreter_agrees_on_outputs_and_memory(seed):
    model = random_model(seed)
    x, outputs = inputs_of(model)[:, None], len(model.subgraphs[0].outputs)
    packed = fit.pack(model, huffman=bool(seed % 2))
    pieces = {c.key: 2 for c in packed.constants if cut.may_be_cut(model, c.key)}
    expected = runtime.run(fb.write(model), [x], outputs=outputs)
    for found in (packed, fit.pack(model, pieces=pieces)):
        ran = runtime.run(fb.write(found.model), [x], outputs=outputs)
        for ours, theirs in zip(ran.outputs, expected.outputs, strict=True):
            assert ours.tobytes() == theirs.tobytes()
        assert found.plan.head == ran.arena.head
        assert ran.arena.tail - 64 <= found.plan.tail <= ran.arena.tail + 160


@pytest.mark.skipif(not runtime.is_installed(), reason="tflite_micro is not installed")
def test_an_arena_that_is_too_small_kills_only_the_child():
    content = fb.write(random_model(0))
    with pytest.raises(ExportError, match="in an arena of 64 bytes"):
        runtime.run(content, [], outputs=0, arena=64)


@pytest.mark.skipif(not runtime.is_installed(), reason="tflite_micro is not installed")
def test_the_smallest_arena_is_searched_for_above_what_is_given():
    model = random_model(0)
    content = fb.write(fit.pack(model).model)
    taken = runtime.run(content, [], outputs=0).arena.total
    found = runtime.smallest_arena(content, taken - 3000)
    assert taken - 3000 < found <= taken + 64
    assert runtime.smallest_arena(content, found) == found
    with pytest.raises(ExportError, match="could not run"):
        runtime.run(content, [], outputs=0, arena=found - 1000)
    with pytest.raises(ExportError, match="did not run the file in any arena"):
        runtime.smallest_arena(b"no model", 10)
