"""Recurrent layers in files: an LSTM as one operator, others a loop, or step by step and told."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers.architectures import sequential
from keras import layers

from keras_ntt import apply_masks, export_tflite, inspect_tflite, tflite_predict
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb

LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"


def inputs(shape, n=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype("float32")


def randomized(model, seed=0, scale=0.4):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) * scale for w in model.get_weights()])
    return model


def last():
    return sequential((7, 3), layers.LSTM(5), layers.Dense(2))


def sequences():
    return sequential((6, 4), layers.LSTM(8, return_sequences=True), layers.LSTM(3, use_bias=False))


def both_ways():
    return sequential(
        (5, 3), layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.Dense(2)
    )


def nested():
    x = keras.Input((5, 3))
    inner = sequential((5, 6), layers.LSTM(4, go_backwards=True), layers.Dense(3))
    return keras.Model(x, inner(layers.Dense(6, "relu")(x)))


COUNTS = {last: 1, sequences: 2, both_ways: 2, nested: 1}


def runs_in_a_row(path, x, threads=1):
    """Run one interpreter on one sample after another, without a word about its states."""
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for sample in x:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(result["index"])[0].copy())
    return np.stack(found)


@pytest.mark.parametrize("make", COUNTS)
@pytest.mark.few(1)
def test_an_lstm_is_one_operator_that_forgets_what_it_ran_on(make, tmp_path):
    model, path = randomized(make()), tmp_path / "m.tflite"
    report = export_tflite(model, path, batch_size=1)
    assert inspect_tflite(path).operators[LSTM] == COUNTS[make]
    x = inputs(model.input_shape[1:])
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(runs_in_a_row(path, x), expected, atol=2e-6)
    np.testing.assert_allclose(tflite_predict(path, x), expected, atol=2e-6)
    assert not any("unrolled" in note or "states" in note for note in report.warnings)


@pytest.mark.long
def test_states_as_large_as_they_get_are_forgotten(tmp_path):
    # Gates that stay open for 40 steps fill the cells with 40.
    model, path = sequential((40, 2), layers.LSTM(3)), tmp_path / "m.tflite"
    rng = np.random.default_rng(0)
    kernel, recurrent, bias = (rng.normal(size=w.shape) for w in model.get_weights())
    bias[:9] = 30.0
    model.set_weights([kernel, recurrent, bias])
    x = inputs((40, 2), 4)
    x[1::2] *= -1
    export_tflite(model, path, batch_size=1)
    np.testing.assert_allclose(runs_in_a_row(path, x), model.predict(x, verbose=0), atol=1e-6)
    small = randomized(sequential((40, 2), layers.LSTM(3)), scale=0.01)
    assert np.abs(small.predict(x, verbose=0)).max() < 0.1


@pytest.mark.parametrize("make", [last, sequences])
@pytest.mark.long
def test_an_int8_lstm_and_its_states(make, tmp_path):
    model, path = randomized(make()), tmp_path / "m.tflite"
    x = inputs(model.input_shape[1:], 40)
    report = export_tflite(model, path, target="int8", representative_data=x, batch_size=1)
    found = inspect_tflite(path)
    assert found.operators[LSTM] == COUNTS[make]
    expected = model.predict(x, verbose=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(tflite_predict(path, x), expected, atol=0.06 * scale)
    (note,) = (note for note in report.warnings if "states" in note)
    assert "reset_all_variables()" in note
    assert "ResetVariableTensors()" in note
    steps = export_tflite(
        model,
        tmp_path / "steps.tflite",
        target="int8",
        representative_data=x,
        batch_size="any",
        inference_input_type="float32",
        inference_output_type="float32",
    )
    assert report.size < steps.size / 3
    assert report.rounding.signal_to_noise > steps.rounding.signal_to_noise
    (note,) = (note for note in steps.warnings if "unrolled" in note)
    assert "with batch_size=1 an LSTM becomes one operator" in note


@pytest.mark.long
def test_several_samples_at_a_time(tmp_path):
    model, path = randomized(sequences()), tmp_path / "m.tflite"
    export_tflite(model, path, batch_size=3)
    assert inspect_tflite(path).operators[LSTM] == 2
    x = inputs((6, 4), 7)
    np.testing.assert_allclose(tflite_predict(path, x), model.predict(x, verbose=0), atol=2e-6)


def masked():
    return sequential((5, 3), layers.Masking(), layers.LSTM(4))


def with_states():
    x = keras.Input((5, 3))
    y, h, c = layers.LSTM(4, return_state=True)(x)
    return keras.Model(x, layers.Concatenate()([y, h, c]))


def from_states():
    x, h = keras.Input((5, 3)), keras.Input((4,))
    return keras.Model([x, h], layers.LSTM(4)(x, initial_state=[h, h]))


def of_relu():
    return sequential((5, 3), layers.LSTM(4, activation="relu"))


def gru():
    return sequential((5, 3), layers.GRU(4, return_sequences=True), layers.SimpleRNN(3))


def short():
    return sequential((3, 3), layers.GRU(4, return_sequences=True), layers.SimpleRNN(3))


class Cell(layers.GRUCell):
    """A cell of one's own."""


def own_cell():
    return sequential((5, 3), layers.RNN(Cell(4)))


@pytest.mark.parametrize("make", [masked, short, own_cell])
@pytest.mark.parametrize("target", ["size", "dense"])
@pytest.mark.few(1)
def test_what_is_neither_operator_nor_loop_is_unrolled_and_right(make, target, tmp_path):
    model, path = randomized(make()), tmp_path / "m.tflite"
    x = inputs(model.input_shape[1:])
    x[:, 3:] = 0  # for the mask
    report = export_tflite(model, path, batch_size=1, target=target)
    assert not {LSTM, "WHILE"} & set(inspect_tflite(path).operators)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(tflite_predict(path, x), expected, atol=2e-6)
    (note,) = (note for note in report.warnings if "unrolled" in note)
    stored = sum(len(b.data) for b in fb.read(path.read_bytes()).buffers if b.data is not None)
    assert f"{report.size - stored:,} of {report.size:,} bytes" in note
    assert f"{sum(inspect_tflite(path).operators.values()):,} operators" in note


def backwards():
    return sequential(
        (6, 3), layers.GRU(4, return_sequences=True, go_backwards=True), layers.SimpleRNN(3)
    )


def gru_both_ways():
    return sequential((5, 3), layers.Bidirectional(layers.GRU(4, return_sequences=True)))


def old_gru():
    return sequential((4, 3), layers.GRU(4, reset_after=False, use_bias=False))


LOOPS = {
    gru: 2,
    last: 1,
    sequences: 2,
    backwards: 2,
    gru_both_ways: 2,
    old_gru: 1,
    of_relu: 1,
    with_states: 1,
    from_states: 1,
}


@pytest.mark.parametrize("quantization", [None, "float16", "int8_weights"])
@pytest.mark.parametrize("make", LOOPS)
@pytest.mark.few(2)
def test_others_are_loops_of_any_number_of_samples(make, quantization, tmp_path):
    model, path = randomized(make()), tmp_path / "m.tflite"
    x = [inputs(t.shape[1:], 32, seed=i) for i, t in enumerate(model.inputs)]
    given = x if len(x) > 1 else x[0]
    options = {"quantization": quantization, "representative_data": given}
    report = export_tflite(model, path, **options)
    operators = inspect_tflite(path).operators
    assert operators["WHILE"] == LOOPS[make]
    assert LSTM not in operators
    assert not any("unrolled" in note or "states" in note for note in report.warnings)
    expected = model.predict(given, verbose=0)
    limit = 2e-6 if quantization is None else 0.02
    for n in (1, 3, 32):
        some = [array[:n] for array in x]
        found = tflite_predict(path, some if len(x) > 1 else some[0])
        np.testing.assert_allclose(found, expected[:n], atol=limit)
    if len(x) == 1 and quantization is None:  # nothing stays from one run to the next
        np.testing.assert_allclose(runs_in_a_row(path, x[0][:3]), expected[:3], atol=limit)


@pytest.mark.long
def test_a_loop_beside_an_operator(tmp_path):
    model = sequential((6, 4), layers.LSTM(8, return_sequences=True), layers.GRU(3))
    path = tmp_path / "m.tflite"
    report = export_tflite(randomized(model), path, batch_size=1)
    operators = inspect_tflite(path).operators
    assert (operators[LSTM], operators["WHILE"]) == (1, 1)
    assert not any("unrolled" in note for note in report.warnings)
    x = inputs((6, 4))
    np.testing.assert_allclose(runs_in_a_row(path, x), model.predict(x, verbose=0), atol=2e-6)


@pytest.mark.parametrize("layer", [layers.GRU, layers.LSTM, layers.SimpleRNN])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.few(1)
def test_the_shortest_loop_is_smaller_than_its_steps(layer, whole):
    model = sequential((4, 6), layer(16, return_sequences=whole))
    (loop,), (steps,) = (convert(model, [None], loops=loops) for loops in (True, False))
    assert len(loop) < len(steps)
    shorter = sequential((3, 6), layer(16, return_sequences=whole))
    (loop,), (steps,) = (convert(shorter, [None], loops=loops) for loops in (True, False))
    assert len(loop) == len(steps)


@pytest.mark.long
def test_a_loop_holds_its_sparse_weights_once(tmp_path):
    model = randomized(sequential((30, 60), layers.GRU(64), layers.Dense(2)), scale=0.1)
    rng = np.random.default_rng(1)
    kernels = [w for w in model.trainable_variables if "kernel" in w.name]
    sparse = apply_masks(model, {w.path: rng.random(w.shape) < 0.1 for w in kernels})
    sizes, x = {}, inputs((30, 60))
    for target in ("dense", "size"):
        path = tmp_path / f"{target}.tflite"
        sizes[target] = export_tflite(sparse, path, target=target).size
        expected = sparse.predict(x, verbose=0)
        np.testing.assert_allclose(tflite_predict(path, x), expected, atol=2e-6)
    # 24,000 numbers, a tenth of them kept, beside thirty steps of some 2 kB.
    assert sizes["size"] < 24_000 < 4 * 24_000 < sizes["dense"]
    assert inspect_tflite(tmp_path / "size.tflite").operators["DENSIFY"] >= 2


@pytest.mark.long
def test_zeros_of_an_lstm_make_the_file_smaller(tmp_path):
    model = randomized(sequential((4, 60), layers.LSTM(64), layers.Dense(2)))
    rng = np.random.default_rng(1)
    kernels = [w for w in model.trainable_variables if "kernel" in w.name]
    sparse = apply_masks(model, {w.path: rng.random(w.shape) < 0.1 for w in kernels})
    sizes, x = {}, inputs((4, 60))
    expected = sparse.predict(x, verbose=0)
    for target in ("dense", "size"):
        path = tmp_path / f"{target}.tflite"
        report = export_tflite(sparse, path, target=target, batch_size=1)
        assert inspect_tflite(path).operators[LSTM] == 1
        np.testing.assert_allclose(runs_in_a_row(path, x), expected, atol=2e-6)
        sizes[target] = report.size
    assert sizes["size"] < sizes["dense"] / 3
    rows = {row.name: row for row in report.tensors}
    row = rows["LSTM, last outputs to forget gate"]
    assert (row.shape, row.storage) == ((64, 64), "densify")
    kernel = sparse.layers[0].cell.recurrent_kernel.numpy()[:, 64:128]
    assert row.nonzeros == np.count_nonzero(kernel)


@pytest.mark.parametrize(
    ("target", "quantization", "operators"),
    [("size", "float16", 1), ("dense", "int8_weights", 1), ("size", "int8_weights", 0)],
)
@pytest.mark.few(1)
def test_rounded_weights_of_an_lstm(target, quantization, operators, tmp_path):
    model, path = randomized(sequential((4, 40), layers.LSTM(48)), scale=0.1), tmp_path / "m.tflite"
    x = inputs((4, 40), 12)
    report = export_tflite(
        model, path, target=target, quantization=quantization, batch_size=1, representative_data=x
    )
    assert inspect_tflite(path).operators.get(LSTM, 0) == operators
    assert report.size < 4 * 4 * 48 * 88 * 0.6
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(tflite_predict(path, x), expected, atol=0.05)
    kept = any("states" in note for note in report.warnings)
    assert kept == (target == "dense")
    if not kept:
        np.testing.assert_allclose(runs_in_a_row(path, x), expected, atol=0.05)


def test_the_target_latency_stays_with_steps(tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(randomized(last()), path, target="latency", batch_size=1)
    assert not {LSTM, "WHILE"} & set(inspect_tflite(path).operators)


@pytest.mark.long
def test_an_lstm_that_int8_would_ruin_is_unrolled(tmp_path):
    # Without biases the values of three small layers shrink; the operator's gates round them away.
    hidden = (layers.LSTM(6, return_sequences=True), layers.LSTM(4, return_sequences=True))
    model, path = sequential((6, 8), *hidden, layers.LSTM(3)), tmp_path / "m.tflite"
    rng, scales = np.random.default_rng(0), [0.3, 0.1, 0.0]
    values = [rng.normal(size=w.shape) * s for w, s in zip(model.weights, scales * 3, strict=True)]
    model.set_weights(values)
    x = inputs((6, 8), 40)
    report = export_tflite(model, path, target="int8", representative_data=x, batch_size=1)
    assert LSTM not in inspect_tflite(path).operators
    assert report.rounding.signal_to_noise > 10
    (note,) = (note for note in report.warnings if "unrolled" in note)
    assert "batch_size" not in note


@pytest.mark.long
def test_sparse_float16_weights_of_an_lstm(tmp_path):
    model, path = randomized(sequential((4, 40), layers.LSTM(48)), scale=0.1), tmp_path / "m.tflite"
    kernels = [w for w in model.trainable_variables if "kernel" in w.name]
    rng = np.random.default_rng(1)
    sparse = apply_masks(model, {w.path: rng.random(w.shape) < 0.1 for w in kernels})
    export_tflite(sparse, path, quantization="float16", batch_size=1)
    x = inputs((4, 40))
    np.testing.assert_allclose(runs_in_a_row(path, x), sparse.predict(x, verbose=0), atol=1e-3)


# --- names ------------------------------------------------------------------------------------


def names_in(path):
    graph = fb.read(path.read_bytes()).subgraphs[0]
    outside = {int(i) for i in (*graph.inputs, *graph.outputs)}
    names = {index: fb.name_of(tensor) for index, tensor in enumerate(graph.tensors)}
    return [names[i] for i in outside], [n for i, n in names.items() if i not in outside]


@pytest.mark.parametrize("quantization", [None, "float16", "int8_weights", "int8"])
@pytest.mark.few(1)
def test_the_smallest_file_has_no_names_but_of_inputs_and_outputs(quantization, tmp_path):
    model, x = randomized(gru()), inputs((5, 3), 32)
    plain, small = tmp_path / "plain.tflite", tmp_path / "small.tflite"
    options = {"quantization": quantization, "representative_data": x}
    export_tflite(model, plain, sparse=False, **options)
    report = export_tflite(model, small, **options)
    outside, inside = names_in(small)
    assert all(outside)
    assert not any(inside)
    assert any(names_in(plain)[1])
    assert report.size < 0.85 * plain.stat().st_size
    np.testing.assert_allclose(tflite_predict(small, x), tflite_predict(plain, x), atol=1e-2)
    (signature,) = Interpreter(str(small)).get_signature_list().values()
    assert list(signature) == ["inputs", "outputs"]
