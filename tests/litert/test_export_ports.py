"""LiteRT files of several inputs and outputs, and of models with code of their own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import keras_ntt
from keras_ntt import export_tflite, tflite_predict
from keras_ntt.litert.format import flatbuffer as fb


def draw(model_input, n=6, seed=0):
    """Return inputs for each symbolic input: normal, or indices below 7."""
    rng = np.random.default_rng(seed)

    def one(tensor):
        shape = (n, *tensor.shape[1:])
        whole = "int" in tensor.dtype
        return (rng.integers(0, 7, shape) if whole else rng.normal(size=shape)).astype(tensor.dtype)

    return keras.tree.map_structure(one, model_input)


def inputs_out_of_order():
    first, second = keras.Input((4,), name="zeta"), keras.Input((4,), name="alpha")
    ids = keras.Input((2,), dtype="int32", name="ids")
    table = layers.Flatten()(layers.Embedding(7, 3)(ids))
    joined = layers.Concatenate()([layers.Dense(5, "relu")(first), layers.Dense(5)(second), table])
    return keras.Model([first, ids, second], layers.Dense(3)(joined))


def dict_in_dict_out():
    x = {"b": keras.Input((4,), name="b"), "a": keras.Input((4,), name="a")}
    hidden = layers.Dense(8, "relu")(x["b"] - 2 * x["a"])
    return keras.Model(x, {"z": layers.Dense(2)(hidden), "c": layers.Dense(3)(hidden)})


def outputs_in_a_list():
    x = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(4, 3, activation="relu")(x)
    boxes = layers.Dense(4, name="boxes")(layers.Flatten()(hidden))
    return keras.Model(x, [layers.Dense(2, name="an-object")(layers.Flatten()(hidden)), boxes])


def of_other_scales():
    x = keras.Input((5,))
    return keras.Model(x, [1e4 * layers.Dense(3)(x), layers.Dense(3)(x)])


def an_input_and_twice_the_same():
    x, y = keras.Input((3,)), keras.Input((3,))
    out = layers.Dense(3)(x + y)
    return keras.Model([x, y], [out, x, out])


def an_input_that_nothing_reads():
    x, y = keras.Input((3,), name="unread"), keras.Input((3,), name="read")
    return keras.Model([x, y], layers.Dense(2)(y))


def names_alike():
    x, y = keras.Input((3,), name="a-b"), keras.Input((3,), name="a.b")
    head = layers.Dense(2, name="head")
    return keras.Model([x, y], [head(x), head(y)])


def fixed_batch():
    x, y = keras.Input(batch_shape=(2, 3)), keras.Input(batch_shape=(2, 3))
    return keras.Model([x, y], layers.Dense(2)(layers.Multiply()([x, y])))


def half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return dict_in_dict_out()
    finally:
        keras.config.set_dtype_policy("float32")


FUNCTIONAL = [
    inputs_out_of_order,
    dict_in_dict_out,
    outputs_in_a_list,
    of_other_scales,
    an_input_and_twice_the_same,
    an_input_that_nothing_reads,
    names_alike,
    fixed_batch,
]


def pruned(model):
    return keras_ntt.prune_at_init(model, sparsity=0.6, saliency="magnitude")


def as_lists(found):
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize(
    ("make", "own_data"),
    [*((make, False) for make in FUNCTIONAL), (inputs_out_of_order, True), (fixed_batch, True)],
)
@pytest.mark.few(2)
def test_several_inputs_and_outputs(make, own_data, tmp_path):
    model = pruned(make())
    x = draw(model.input)
    path = tmp_path / "model.tflite"
    export_tflite(model, path, representative_data=x if own_data else None)
    outputs = model.predict(x, verbose=0, batch_size=2)
    expected = [np.asarray(t) for t in keras.tree.flatten(outputs)]
    found = as_lists(tflite_predict(path, keras.tree.flatten(x)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    interpreter = Interpreter(model_path=str(path))
    shapes = [tuple(p["shape_signature"])[1:] for p in interpreter.get_input_details()]
    assert shapes == [tuple(t.shape[1:]) for t in keras.tree.flatten(model.input)]


def test_inputs_by_the_names_of_the_signature(tmp_path):
    model = pruned(inputs_out_of_order())
    x = draw(model.input)
    path = tmp_path / "model.tflite"
    export_tflite(model, path, representative_data=x)
    named = dict(zip(["zeta", "ids", "alpha"], x, strict=True))
    for order in (named, dict(reversed(named.items()))):
        np.testing.assert_allclose(
            tflite_predict(path, order), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(keras_ntt.ExportError, match=r"of the names \['alpha', 'ids', 'zeta'\]"):
        tflite_predict(path, {"zeta": x[0]})
    with pytest.raises(keras_ntt.ExportError, match="it takes 3 inputs, not 2"):
        tflite_predict(path, x[:2])
    with pytest.raises(ValueError, match=r"as many samples.*Received: x with \[5, 6\]"):
        tflite_predict(path, [x[0], x[1], x[2][:5]])


def test_names_of_a_file_without_a_signature(tmp_path):
    model = pruned(fixed_batch())
    x = draw(model.input)
    path = tmp_path / "model.tflite"
    export_tflite(model, path)
    graph = fb.read(path.read_bytes())
    graph.signatureDefs = []
    path.write_bytes(fb.write(graph))
    with pytest.raises(keras_ntt.ExportError, match=r"0 signatures.*pass a list of arrays"):
        tflite_predict(path, {"a": x[0], "b": x[1]})
    expected = model.predict(x, verbose=0, batch_size=2)
    np.testing.assert_allclose(tflite_predict(path, x), expected, rtol=1e-4, atol=1e-5)


def test_signature_of_a_dict(tmp_path):
    path = tmp_path / "model.tflite"
    export_tflite(pruned(dict_in_dict_out()), path)
    (signature,) = Interpreter(model_path=str(path)).get_signature_list().values()
    assert {key: sorted(names) for key, names in signature.items()} == {
        "inputs": ["a", "b"],
        "outputs": ["c", "z"],
    }


def test_each_output_is_judged_by_its_own_scale(tmp_path):
    model = pruned(of_other_scales())
    x = draw(model.input, 300)
    report = export_tflite(
        model, tmp_path / "m.tflite", quantization="int8", representative_data=x, tolerance=0.5
    )
    outputs = [np.abs(np.asarray(t)).max() for t in model.predict(x[:256], verbose=0)]
    assert any(report.tolerance == pytest.approx(0.5 * scale, rel=1e-5) for scale in outputs)
    with pytest.raises(keras_ntt.ExportError, match="computes something else"):
        export_tflite(
            model, tmp_path / "m.tflite", quantization="int8", representative_data=x, tolerance=1e-4
        )


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (inputs_out_of_order, {"target": "latency"}),
        (inputs_out_of_order, {"target": "int8"}),
        (dict_in_dict_out, {"target": "int8"}),
        (inputs_out_of_order, {"quantization": "float16"}),
        (inputs_out_of_order, {"quantization": "int8_weights"}),
        (dict_in_dict_out, {"compact": True, "benchmark": True}),
        (half_precision, {}),
    ],
    ids=lambda case: case.__name__ if callable(case) else str(case),
)
@pytest.mark.few(2)
def test_every_target(make, options, tmp_path):
    model = pruned(make())
    x = draw(model.input, 40)
    path = tmp_path / "model.tflite"
    report = export_tflite(model, path, representative_data=x, **options)
    assert report.samples == 40
    outputs = keras.tree.flatten(model.predict(x, verbose=0))
    expected = [np.asarray(t).astype("float32") for t in outputs]
    found = as_lists(tflite_predict(path, keras.tree.flatten(x)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.25 * np.abs(theirs).max())


class Block(keras.Model):
    """A transformer block over tokens, with a mask as a second input."""

    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(7, 8)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.head = layers.Dense(3)

    def call(self, x, training=False):
        """Return logits and what was attended to."""
        tokens, weights = x["tokens"], x["weights"]
        hidden = self.table(tokens)
        hidden = hidden + self.attention(hidden, hidden) * weights[:, :, None]
        return {"logits": self.head(hidden[:, 0]), "hidden": hidden}


class Pair(keras.Model):
    """Takes a list and returns a tuple."""

    def __init__(self):
        super().__init__()
        self.dense, self.rnn = layers.Dense(4), layers.GRU(3)

    def call(self, x):
        """Return two tensors."""
        first, second = x
        return self.dense(first), self.rnn(second)


class Plain(keras.Model):
    """Takes and returns one tensor."""

    def __init__(self):
        super().__init__()
        self.body = keras.Sequential([layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])

    def call(self, x):
        """Return one tensor."""
        return self.body(x)


def normal(*shape):
    return np.random.default_rng(0).normal(size=(6, *shape)).astype("float32")


OWN_CODE = {
    "dicts": (Block, lambda: {"tokens": np.arange(30).reshape(6, 5) % 7, "weights": normal(5)}),
    "list and tuple": (Pair, lambda: [normal(4), normal(3, 2)]),
    "one": (Plain, lambda: normal(6, 6, 2)),
}


@pytest.mark.parametrize("options", [{}, {"target": "int8"}], ids=str)
@pytest.mark.parametrize("name", OWN_CODE)
@pytest.mark.few(1)
def test_models_with_code_of_their_own(name, options, tmp_path):
    cls, data = OWN_CODE[name]
    model, x = cls(), data()
    model(x)
    keras_ntt.prune_low_magnitude(model, 0.5)
    path = tmp_path / "model.tflite"
    report = export_tflite(model, path, representative_data=x, **options)
    assert report.samples == 6
    found = as_lists(tflite_predict(path, keras.tree.flatten(x)))
    expected = [np.asarray(t) for t in keras.tree.flatten(model(x, training=False))]
    limit = 0.25 if options else 1e-4
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=limit * np.abs(theirs).max())
