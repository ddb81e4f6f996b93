"""What TensorFlow's converter is given: a function of constants, or else a SavedModel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ntt.litert import convert as module
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.ports import ports_of

pytestmark = pytest.mark.filterwarnings("ignore:[\\s\\S]*tf.lite.Interpreter is deprecated")


def outputs(content, x):
    interpreter = tf.lite.Interpreter(model_content=content)
    runner = interpreter.get_signature_runner()
    (name,) = interpreter.get_signature_list()["serving_default"]["inputs"]
    return runner(**{name: x})


def model_of_layers():
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


@pytest.fixture
def no_saved_model(monkeypatch):
    def fail(*_):
        raise AssertionError("a SavedModel was written")

    monkeypatch.setattr(module, "_save", fail)


@pytest.mark.usefixtures("no_saved_model")
def test_a_file_of_constants_computes_what_the_model_does(rng):
    model = model_of_layers()
    x = rng.normal(size=(1, 8, 8, 2)).astype("float32")
    (content,) = convert(model, [None])
    found = outputs(content, x)
    assert list(found) == ["output_0"]
    np.testing.assert_allclose(found["output_0"], model(x), atol=1e-6)


@pytest.mark.parametrize("kind", [None, "float16", "int8_weights", "int8", "int16"])
@pytest.mark.few(2)
def test_both_ways_write_files_of_the_same_numbers(kind, rng, monkeypatch):
    model = model_of_layers()
    x = rng.normal(size=(16, 8, 8, 2)).astype("float32")
    (by_function,) = convert(model, [kind], [x])
    monkeypatch.setattr(module, "_by_function", lambda *_: None)
    (by_saved_model,) = convert(model, [kind], [x])
    for sample in x[:4]:
        one, other = (outputs(c, sample[None])["output_0"] for c in (by_function, by_saved_model))
        np.testing.assert_array_equal(one, other)


class Counter(keras.Model):
    """Counts its calls in a variable: nothing that could be a constant."""

    def __init__(self):
        super().__init__()
        self.calls = self.add_weight(shape=(), name="calls", trainable=False)
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        self.calls.assign_add(1.0)
        return self.dense(x) * self.calls


def test_a_variable_that_a_call_changes_is_not_made_a_constant(rng):
    x = rng.normal(size=(4, 3)).astype("float32")
    model = Counter()
    model(x)
    (content,) = convert(model, [None], ports=ports_of(model, x))
    codes = {code.builtinCode for code in fb.read(content).operatorCodes}
    assert fb.schema().BuiltinOperator.ASSIGN_VARIABLE in codes
