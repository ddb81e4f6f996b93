import keras
import pytest
from helpers import every_layer
from keras import layers

import keras_ntt
from keras_ntt.masks.policies import KernelPolicy, choose_weights

EVERYTHING = KernelPolicy(depthwise=True, embeddings=True)


def names(model, **options):
    """Return ``layer class/weight`` of what is pruned."""
    owners = {id(v): layer for layer in model._flatten_layers() for v in layer.weights}
    chosen = choose_weights(model, **options).weights
    found = {id(v): v for v in chosen}
    return sorted(
        f"{type(layer).__name__}/{v.name}"
        for layer in model._flatten_layers(include_self=False)
        for v in layer._trainable_variables
        if id(v) in found and owners
    )


# Without options, and what both options add.
TABLE = {
    "Conv3D": (["Conv3D/kernel", "Conv3D/kernel", "Dense/kernel"], []),
    "DepthwiseConv1D": (["Dense/kernel"], ["DepthwiseConv1D/kernel"] * 2),
    "SeparableConv2D": (
        ["Dense/kernel", "SeparableConv2D/pointwise_kernel", "SeparableConv2D/pointwise_kernel"],
        ["SeparableConv2D/depthwise_kernel"] * 2,
    ),
    "Conv1DTranspose": (["Conv1DTranspose/kernel", "Conv1DTranspose/kernel", "Dense/kernel"], []),
    "MultiHeadAttention": (["Conv1D/kernel", "Dense/kernel", *["EinsumDense/kernel"] * 4], []),
    "Embedding": (["Dense/kernel", "Dense/kernel"], ["Embedding/embeddings"]),
    "BatchNormalization": (["Dense/kernel"] * 3, []),
    "LSTM": (["Dense/kernel", "LSTMCell/kernel", "LSTMCell/recurrent_kernel"], []),
    "GRU": (["Dense/kernel", "GRUCell/kernel", "GRUCell/recurrent_kernel"], []),
    "TimeDistributed": (["Conv1D/kernel", "Dense/kernel", "Dense/kernel"], []),
    "PReLU": (["Dense/kernel", "Dense/kernel"], []),
    "subclassed": (["Conv2D/kernel", "Conv2D/kernel", "Dense/kernel"], []),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_pruned(name):
    model = every_layer.CASES[name]()
    plain, more = TABLE[name]
    assert names(model) == plain
    assert names(model, pruning_policy=EVERYTHING) == sorted(plain + more)


def test_convolutional_recurrent_layers_are_pruned():
    cells = layers.ConvLSTM2D(2, 3), layers.Bidirectional(layers.ConvLSTM1D(2, 2))
    for cell, shape in zip(cells, [(2, 4, 4, 1), (2, 4, 1)], strict=True):
        model = keras.Sequential([keras.Input(shape), cell])
        kinds = ["kernel", "recurrent_kernel"]
        assert [v.name for v in choose_weights(model).weights] == kinds * (len(model.weights) // 3)


@pytest.mark.parametrize("name", every_layer.CASES)
@pytest.mark.few(12)
def test_every_trainable_weight_is_pruned_or_has_a_reason(name):
    model = every_layer.CASES[name]()
    for policy in (None, EVERYTHING):
        choice = choose_weights(model, pruning_policy=policy)
        weights = [*choice.weights, *(v for v, _ in choice.skipped)]
        assert {id(v) for v in model.trainable_variables} <= {id(v) for v in weights}
        assert len(weights) == len({id(v) for v in weights})
        assert not any("bias" in v.name or "gamma" in v.name for v in choice.weights)


def test_the_report_says_why_a_layer_is_skipped():
    class Own(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(shape[-1],), name="table")

        def call(self, x):
            return x * self.table

    class Chosen(Own):
        def get_prunable_weights(self):
            return [self.table]

    model = keras.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.DepthwiseConv2D(3),
            layers.BatchNormalization(),
            Own(),
            Chosen(),
            layers.Flatten(),
            layers.Dense(3, name="frozen"),
            layers.Dense(2),
        ]
    )
    model.get_layer("frozen").trainable = False
    notes = {row.path.split("/", 1)[1]: row.note for row in keras_ntt.sparsity_report(model).rows}
    assert {note.split(":")[0] for note in notes.values()} == {
        "",
        "depthwise",
        "biases are never pruned",
        "scales and offsets of normalizations are never pruned",
        "Own has no get_prunable_weights()",
        "frozen",
    }
    assert notes["frozen/kernel"] == "frozen: trainable=False"
    assert [path for path, note in notes.items() if not note] == ["chosen/table", "dense/kernel"]


@pytest.mark.long
def test_embeddings_and_depthwise_kernels_in_a_transfer():
    model = every_layer.CASES["Embedding"]()
    transfer = keras_ntt.NeuralTangentTransfer(
        model, pruning_schedule=0.5, pruning_policy=EVERYTHING, wrt="kept", seed=0
    )
    transfer.compile("adam")
    transfer.fit(every_layer.inputs_for(model, 16), batch_size=8, verbose=0)
    table = next(row for row in keras_ntt.sparsity_report(model).rows if "embeddings" in row.path)
    assert table.masked
    assert table.nonzeros == round(table.size * 0.5)


def test_the_name_of_the_model_is_not_searched():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.Flatten(),
            layers.Dense(3, name="dense"),
        ],
        name="dense_net",
    )
    conv, dense = (layer.kernel for layer in (model.layers[0], model.layers[2]))
    assert choose_weights(model, filters="dense").weights == (dense,)
    for given in (dense.path, "^dense_net/dense/", "^dense/kernel"):
        assert choose_weights(model, filters=given).weights == (dense,)
    assert choose_weights(model, filters=r"n.*/kernel").weights == (conv, dense)
    for key in ("den.*", "dense", dense.path, "^dense_net/dense"):
        sparse = keras_ntt.prune_at_init(
            model, sparsity=0.5, saliency="magnitude", allocation={key: 0.9}
        )
        found = [round(float(1 - m.mean()), 1) for m in keras_ntt.get_masks(sparse).values()]
        assert found == [0.5, 0.9], key


class Tied(layers.Dense):
    """A Dense layer with the kernel of another: the usual decoder of an autoencoder."""

    def __init__(self, other, units):
        super().__init__(units)
        self.other = [other]

    def build(self, shape):
        self.bias = self.add_weight(shape=(self.units,), name="bias")
        self.built = True

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.other[0].kernel)) + self.bias


def test_a_layer_without_a_kernel_of_its_own():
    encoder, inputs = layers.Dense(4), keras.Input((6,))
    model = keras.Model(inputs, Tied(encoder, 6)(encoder(inputs)))
    assert choose_weights(model).weights == (encoder.kernel,)
    assert len(keras_ntt.sparsity_report(model).rows) == 3


def test_a_report_of_a_model_that_is_frozen_as_a_whole():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    model.trainable = False
    report = keras_ntt.sparsity_report(model)
    assert [(row.path.split("/")[-1], row.note) for row in report.rows] == [
        ("kernel", "frozen: trainable=False")
    ]
