"""Recurrent layers: the rule of loops through time against the model as Keras runs it."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures
from helpers.differences import error, loss_of
from keras import layers

import keras_ntt
from keras_ntt.ntk.layer_rules import recurrent

pytestmark = pytest.mark.usefixtures("float64")
CELLS = [layers.LSTM, layers.GRU, layers.SimpleRNN]
X = np.random.default_rng(0).normal(size=(3, 4, 2))
TOKENS = np.array([[1, 2, 0, 0], [0, 3, 0, 4], [1, 1, 1, 1]])


def ending(x, *tensors):
    flat = [layers.Flatten()(tensor) for tensor in tensors]
    y = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    return keras.Model(x, layers.Dense(2)(y))


def two_layers(cell):
    x = keras.Input((4, 2))
    return ending(x, cell(3, activation="relu")(cell(2, return_sequences=True)(x))), X


def backwards(cell):
    x = keras.Input((4, 2))
    y = cell(3, return_sequences=True, go_backwards=True, use_bias=False)(x)
    return ending(x, y), X


def both_ways(merge_mode):
    def case(cell):
        x = keras.Input((4, 2))
        y = layers.Bidirectional(cell(3, return_sequences=True), merge_mode=merge_mode)(x)
        return ending(x, layers.Bidirectional(cell(2), merge_mode=merge_mode)(y)), X

    return case


def around_a_cell(cell):
    inner = {layers.LSTM: layers.LSTMCell, layers.GRU: layers.GRUCell}.get(
        cell, layers.SimpleRNNCell
    )
    x = keras.Input((4, 2))
    y = layers.RNN(inner(3), return_sequences=True)(x)
    return ending(x, layers.Bidirectional(layers.RNN(inner(2)))(y)), X


def encoder_decoder(cell):
    x = keras.Input((4, 2))
    y, *states = cell(3, return_state=True)(x)
    z = cell(3, return_sequences=True)(layers.Dense(2)(x), initial_state=states)
    more = cell(3, return_state=True)(x, initial_state=states)
    return ending(x, y, z, *states, *more), X


def masked(**settings):
    def case(cell):
        x = keras.Input((4,), dtype="int32")
        y = layers.Embedding(5, 2, mask_zero=True)(x)
        y = cell(3, **settings)(cell(2, return_sequences=True)(y))
        if settings.get("return_sequences"):
            y = layers.GlobalAveragePooling1D()(y)
        return keras.Model(x, layers.Dense(2)(y)), TOKENS

    return case


def masked_both_ways(cell):
    x = keras.Input((4,), dtype="int32")
    y = layers.Embedding(5, 2, mask_zero=True)(x)
    y = layers.Bidirectional(cell(2, return_sequences=True))(y)
    return ending(x, layers.Bidirectional(cell(2))(y)), TOKENS


class Reader(keras.Model):
    """A model of one's own that reads tokens, and what it has read before."""

    def __init__(self, cell):
        super().__init__()
        self.table = layers.Embedding(5, 2, mask_zero=True)
        self.both = layers.Bidirectional(cell(2, return_sequences=True))
        self.first, self.second = cell(3, return_state=True), cell(3, return_sequences=True)
        self.last = layers.Dense(2)

    def call(self, tokens):
        read = self.both(self.table(tokens))
        y, *states = self.first(read)
        again = self.second(self.table(tokens), initial_state=states)
        return self.last(y * again[:, -1])


def in_a_model_of_ones_own(cell):
    model = Reader(cell)
    model(TOKENS)
    return model, TOKENS


class Rereader(keras.Model):
    """A model of one's own that calls one layer twice, beside a weight of its own."""

    def __init__(self, cell):
        super().__init__()
        self.again = cell(2, return_sequences=True)
        self.last = layers.Dense(2)
        self.mixing = self.add_weight(shape=(2, 2), initializer="glorot_normal")

    def call(self, sequences):
        read = keras.ops.matmul(self.again(sequences), self.mixing)
        return self.last(keras.ops.tanh(self.again(read))[:, -1])


def called_twice_in_a_model_of_ones_own(cell):
    model = Rereader(cell)
    model(X)
    return model, X


def frozen_in_a_model_of_ones_own(cell):
    model, x = called_twice_in_a_model_of_ones_own(cell)
    model.again.trainable = False
    return model, x


def open_length(cell):
    x = keras.Input((None, 2))
    y = layers.Bidirectional(cell(2, return_sequences=True))(x)
    return keras.Model(x, layers.Dense(2)(cell(3)(y))), X


def frozen(cell):
    model, x = two_layers(cell)
    model.layers[1].cell.recurrent_kernel.trainable = False
    model.layers[2].cell.bias.trainable = False
    return model, x


CASES = {
    "two layers": two_layers,
    "backwards": backwards,
    "joined": both_ways("concat"),
    "added": both_ways("sum"),
    "averaged": both_ways("ave"),
    "multiplied": both_ways("mul"),
    "around a cell": around_a_cell,
    "encoder and decoder": encoder_decoder,
    "masked": masked(),
    "masked, backwards": masked(go_backwards=True),
    "masked, sequences": masked(return_sequences=True),
    "masked, zeros": masked(return_sequences=True, zero_output_for_mask=True),
    "masked, last zero": masked(zero_output_for_mask=True),
    "masked, both ways": masked_both_ways,
    "in a model of one's own": in_a_model_of_ones_own,
    "called twice in a model of one's own": called_twice_in_a_model_of_ones_own,
    "frozen in a model of one's own": frozen_in_a_model_of_ones_own,
    "open length": open_length,
    "frozen": frozen,
}


# Which tell cells apart; the others are about the layer around the cell, for which one will do.
OF_CELLS = {"two layers", "around a cell", "encoder and decoder", "masked, both ways", "frozen"}


def chosen():
    for case, cell in itertools.product(CASES, CELLS):
        often = cell is layers.SimpleRNN or case in OF_CELLS
        yield pytest.param(case, cell, marks=[] if often else pytest.mark.long)


@pytest.mark.parametrize(("case", "cell"), list(chosen()))
@pytest.mark.few(7)
def test_kernel(case, cell, monkeypatch):
    model, x = CASES[case](cell)
    model = architectures.randomize(model)
    expected = architectures.ntk_by_definition(model, x)
    used = []
    backward = recurrent.Recurrent.backward
    monkeypatch.setattr(
        recurrent.Recurrent,
        "backward",
        lambda self, *arguments: used.append(self) or backward(self, *arguments),
    )
    assert error(keras_ntt.empirical_ntk(model, x), expected) < 1e-12
    assert len(used) >= 2 - (case == "backwards")


OF_LOSSES = [
    *itertools.product(["two layers", "masked, both ways", "encoder and decoder"], CELLS),
    ("in a model of one's own", layers.GRU),
    ("called twice in a model of one's own", layers.LSTM),
]


@pytest.mark.long
@pytest.mark.parametrize(("case", "cell"), OF_LOSSES)
@pytest.mark.few(5)
def test_gradient_of_the_loss(case, cell):
    (student, x), (teacher, _) = (CASES[case](cell) for _ in range(2))
    student, teacher = (
        architectures.randomize(m, seed=i) for i, m in enumerate([student, teacher])
    )
    x = np.concatenate([x, x[:1]])
    variables = student.trainable_variables
    loss = tf.function(lambda: loss_of(student, teacher, x).total)
    with tf.GradientTape() as tape:
        total = loss()
    gradients = tape.gradient(total, [v.value for v in variables])
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=v.shape) for v in variables]
    slope = sum(np.sum(tf.convert_to_tensor(g) * s) for g, s in zip(gradients, steps, strict=True))
    values, losses = [v.numpy() for v in variables], []
    for h in (-1e-5, 1e-5):
        for v, value, step in zip(variables, values, steps, strict=True):
            v.assign(value + h * step)
        losses.append(float(loss()))
    assert slope == pytest.approx((losses[1] - losses[0]) / 2e-5, rel=1e-6)


def of_open_length():
    return tf.data.Dataset.from_generator(
        lambda: (np.ones((4, length, 2)) for length in (3, 5, 1)),
        output_signature=tf.TensorSpec((None, None, 2)),
    ).apply(tf.data.experimental.assert_cardinality(3))


@pytest.mark.long
def test_batches_of_open_length():
    x = keras.Input((None, 2))
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(3)(layers.GRU(3, return_sequences=True)(x))))
    sparse = keras_ntt.prune_neural_tangent(
        model, of_open_length(), sparsity=0.5, epochs=1, verbose=0
    )
    assert sparse(np.ones((2, 7, 2))).shape == (2, 2)


@pytest.mark.long
@pytest.mark.parametrize(
    "case", [called_twice_in_a_model_of_ones_own, frozen_in_a_model_of_ones_own]
)
@pytest.mark.few(1)
def test_batches_of_open_length_for_a_model_of_ones_own(case):
    (student, _), (teacher, _) = (case(layers.GRU) for _ in range(2))
    transfer = keras_ntt.NeuralTangentTransfer(student, teacher=teacher, pruning_schedule=0.5)
    transfer.compile("adam")
    assert np.isfinite(transfer.fit(of_open_length(), verbose=0).history["loss"]).all()
    assert student(np.ones((2, 7, 2))).shape == (2, 2)


@pytest.mark.long
def test_transfer_compiled_by_xla():
    model, x = two_layers(layers.SimpleRNN)
    losses = []
    for jit_compile in (False, True):
        transfer = keras_ntt.NeuralTangentTransfer(
            architectures.randomize(keras.models.clone_model(model)),
            teacher=architectures.randomize(keras.models.clone_model(model), seed=1),
            pruning_schedule=0.5,
        )
        transfer.compile("adam", jit_compile=jit_compile)
        losses.append(transfer.fit(x[:2], epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-9)


class Scaled(layers.LSTMCell):
    def call(self, inputs, states, training=False):
        return super().call(2 * inputs, states, training=training)


@pytest.mark.long
def test_cells_of_another_form_are_run_step_by_step(monkeypatch):
    monkeypatch.setattr(recurrent, "Recurrent", None)
    x = keras.Input((4, 2))
    y = layers.GRU(2, reset_after=False, return_sequences=True)(x)
    y = layers.LSTM(2, activation="softmax", return_sequences=True)(y)
    model = architectures.randomize(ending(x, layers.RNN(Scaled(2))(y)))
    expected = architectures.ntk_by_definition(model, X)
    assert error(keras_ntt.empirical_ntk(model, X), expected) < 1e-12


class Stacked(keras.Model):
    """A model of one's own that reads what recurrent layers return in lists and tuples."""

    def __init__(self):
        super().__init__()
        self.stacked = layers.RNN([layers.LSTMCell(2), layers.LSTMCell(1)], return_state=True)
        self.ways = layers.Bidirectional(layers.GRU(2, return_state=True), merge_mode=None)
        self.last = layers.Dense(2)

    def call(self, x):
        y, (h, c), (h2, c2) = self.stacked(x)
        return self.last(keras.ops.concatenate([y, h, c, h2, c2, *self.ways(x)], -1))


@pytest.mark.long
def test_what_recurrent_layers_return_in_a_model_of_ones_own():
    model = Stacked()
    model(X)
    model = architectures.randomize(model)
    expected = architectures.ntk_by_definition(model, X)
    assert error(keras_ntt.empirical_ntk(model, X), expected) < 1e-12
