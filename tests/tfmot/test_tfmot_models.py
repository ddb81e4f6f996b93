"""tf_keras models: their Keras 3 twins, Neural Tangent Transfer on them, tfmot's whole pipeline.

Skipped where tf_keras and tensorflow-model-optimization are not installed.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.legacy import bridge, layers, seeded, sparsity, tf_keras, tfmot  # noqa: F401

import keras_ntt

pytestmark = pytest.mark.filterwarnings("ignore")


def cnn():
    return tf_keras.Sequential(
        [
            layers.InputLayer((8, 8, 2)),
            layers.Conv2D(6, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(12, "relu"),
            layers.Dense(3),
        ]
    )


def nested():
    x = layers.Input((6,))
    inner = tf_keras.Sequential([layers.InputLayer((6,)), layers.Dense(6, "tanh")], name="inner")
    y = inner(x)
    return tf_keras.Model(x, layers.Dense(3)(layers.Add()([y, inner(y), x])))


def recurrent():
    x = layers.Input((5, 4))
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    return tf_keras.Model(x, layers.Dense(2)(layers.GRU(3)(y)))


def attention():
    x = layers.Input((5, 4))
    y = layers.LayerNormalization()(layers.MultiHeadAttention(2, 3)(x, x))
    return tf_keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))


def mobile():
    x = layers.Input((8, 8, 3))
    y = layers.DepthwiseConv2D(3)(layers.ZeroPadding2D(1)(x))
    y = layers.LeakyReLU(0.1)(layers.SeparableConv2D(4, 3)(y))
    y = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(y))
    return tf_keras.Model(x, layers.Dense(2, "softmax")(y))


def operators():
    x = layers.Input((6,))
    y = layers.Dense(4)(x)
    return tf_keras.Model(x, layers.Dense(2)(tf.nn.relu(y * 2.0 + 1.0) - y))


def embedding():
    x = layers.Input((5,), dtype="int32")
    y = layers.GlobalAveragePooling1D()(layers.Embedding(7, 4)(x))
    return tf_keras.Model(x, layers.Dense(2)(y))


def two_inputs():
    a, b = layers.Input((4,)), layers.Input((3,))
    y = layers.Concatenate()([layers.Dense(3)(a), layers.Dense(2)(b)])
    return tf_keras.Model([a, b], [layers.Dense(2)(y), layers.Dense(1)(y)])


def frozen():
    model = nested()
    model.layers[-1].trainable = False
    return model


ALL = [cnn, nested, recurrent, attention, mobile, operators, embedding, two_inputs, frozen]


def data(model, n=48):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, *model.input_shape[1:])).astype("float32")
    return x, rng.normal(size=(n, *model.output_shape[1:])).astype("float32")


def randomize(model):
    rng = np.random.default_rng(2)
    for v in model.weights:
        v.assign(0.1 + 0.5 * np.abs(rng.normal(size=v.shape)))
    return model


# --- twins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_the_twin_computes_the_same(make):
    model = randomize(make())
    twin = bridge.to_keras3(model)
    assert isinstance(twin, keras.Model)
    rng = np.random.default_rng(3)
    x = [
        rng.integers(0, 7, size=(4, *t.shape[1:]))
        if t.dtype == tf.int32
        else rng.normal(size=(4, *t.shape[1:])).astype("float32")
        for t in model.inputs
    ]
    x = x[0] if len(x) == 1 else x
    theirs, ours = tf.nest.flatten(model(x)), tf.nest.flatten(twin(x))
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert [v.trainable for v in twin.weights].count(True) == len(model.trainable_weights)


def test_weights_go_both_ways():
    model, other = cnn(), randomize(cnn())
    twin = bridge.to_keras3(model)
    bridge.copy_weights(other, twin)
    bridge.copy_weights(twin, model)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="no twins"):
        bridge.copy_weights(nested(), twin)


def normalized():
    x = (5 + 3 * np.random.default_rng(0).normal(size=(64, 6))).astype("float32")
    scale = layers.Normalization()
    scale.adapt(x)
    return tf_keras.Sequential([layers.InputLayer((6,)), scale, layers.Dense(3)]), x


def test_what_was_adapted_goes_both_ways():
    model, x = normalized()
    np.testing.assert_allclose(bridge.to_keras3(model)(x), model(x), rtol=1e-4, atol=1e-5)
    sparse = bridge.prune_neural_tangent(model, x, sparsity=0.5, epochs=1, wrapped=False, verbose=0)
    kernel, bias = sparse.layers[-1].get_weights()
    assert np.count_nonzero(kernel) == 9
    by_hand = (x - x.mean(axis=0)) / x.std(axis=0) @ kernel + bias
    np.testing.assert_allclose(sparse(x), by_hand, rtol=1e-4, atol=1e-5)


class Own(layers.Dense):
    """A custom class, which tfmot does not know; it computes what Dense does."""


class Doubled(Own):
    """A custom layer, which Keras 3 cannot know."""

    def call(self, x):
        return 2 * super().call(x)


def test_what_has_no_twin():
    own = tf_keras.Sequential([layers.InputLayer((6,)), Doubled(3)])
    with pytest.raises(ValueError, match=r"pass it as twin=.*Doubled, a custom layer"):
        bridge.to_keras3(own)
    function = tf_keras.Sequential([layers.InputLayer((6,)), layers.Lambda(lambda x: x)])
    with pytest.raises(ValueError, match="Lambda"):
        bridge.to_keras3(function)
    with pytest.raises(ValueError, match="not built, or is subclassed"):
        bridge.to_keras3(tf_keras.Sequential([layers.Dense(3)]))
    with pytest.raises(TypeError, match="takes a model of tf_keras"):
        bridge.to_keras3(keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]))


def function_of(x):
    return 2 * x


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (lambda: layers.Dense(3, lambda x: 2 * x), r"'own' of class Dense, whose activation is a"),
        (
            lambda: layers.Dense(3, kernel_initializer=lambda shape, dtype=None: tf.ones(shape)),
            r"'own' of class Dense, whose kernel_initializer is a lambda$",
        ),
        (
            lambda: layers.Dense(3, function_of),
            r"'own' of class Dense, TypeError: Could not locate function 'function_of'",
        ),
        (lambda: layers.LSTM(3, time_major=True), r"'own' of class LSTM, with time_major=True$"),
        (lambda: layers.LSTM(3, stateful=True), r"'own' of class LSTM, ValueError: .*stateful"),
        (lambda: layers.TimeDistributed(layers.Dense(3, lambda x: x)), r"activation is a lambda$"),
    ],
    ids=["activation", "initializer", "function", "time_major", "stateful", "inner"],
)
def test_what_is_in_the_way_of_a_layer(layer, match):
    layer = layer()
    layer._name = "own"
    model = tf_keras.Sequential([layers.InputLayer(batch_input_shape=(2, 5, 4)), layer])
    with pytest.raises(ValueError, match=r"pass it as twin=.*" + match) as caught:
        bridge.to_keras3(model)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "operation",
    [
        lambda v: tf.maximum(v, 0.0),
        lambda v: tf.add(x=v, y=1.0, name="sum"),
        lambda v: tf.subtract(y=v, x=1.0),
        lambda v: tf.transpose(v, [0, 2, 1]),
        lambda v: tf.transpose(v, perm=[0, 2, 1]),
        lambda v: tf.reshape(tensor=v, shape=(-1, 2, 6)),
        lambda v: tf.matmul(v, v, transpose_b=True),
        lambda v: tf.matmul(a=v, b=v, transpose_a=True),
        lambda v: tf.matmul(v, tf.ones((6, 3)), False, True),
    ],
)
def test_operations_by_the_names_that_tensorflow_has(operation):
    x = layers.Input((4, 3))
    model = tf_keras.Model(x, operation(x))
    assert bridge.to_keras3(model).output_shape == model.output_shape


def test_an_operation_that_means_more_in_tensorflow():
    x = layers.Input((4,))
    with pytest.raises(ValueError, match=r"pass it as twin=.*TFOpLambda, TypeError: silu\(\)"):
        bridge.to_keras3(tf_keras.Model(x, tf.nn.silu(x, 2.0)))


def test_the_other_door_names_this_one():
    with pytest.raises(TypeError, match=r"keras_ntt\.tfmot"):
        keras_ntt.prune_low_magnitude(cnn(), 0.5)
    with pytest.raises(TypeError, match=r"keras_ntt\.tfmot"):
        keras_ntt.prune_low_magnitude(layers.Dense(3), 0.5)
    with pytest.raises(TypeError, match=r"keras_ntt\.tfmot"):
        keras_ntt.prune_neural_tangent(cnn(), data(cnn())[0], sparsity=0.5, epochs=1)


# --- Neural Tangent Transfer ------------------------------------------------------------------

SETTINGS = {"sparsity": 0.8, "epochs": 3, "batch_size": 16, "seed": 0, "verbose": 0}


def test_the_transfer_is_that_of_the_keras_3_model():
    model = cnn()
    before = model.get_weights()
    x, _ = data(model)
    plain = bridge.prune_neural_tangent(model, x, wrapped=False, **SETTINGS)
    wrapped = bridge.prune_neural_tangent(model, x, **SETTINGS)
    twin = keras_ntt.prune_neural_tangent(bridge.to_keras3(model), x, **SETTINGS)
    assert type(plain) is type(model)
    for a, b, _, c in [(*p[:2], *q[2:]) for p, q in _pairs(plain, wrapped, twin)]:
        np.testing.assert_array_equal(b.numpy(), c.numpy(), err_msg=a)
    for _, b, _, c in bridge.paired(plain, twin):
        np.testing.assert_array_equal(b.numpy(), c.numpy())
    masks = bridge.get_masks(wrapped)
    held = keras_ntt.get_masks(twin)
    assert {k: m.shape for k, m in masks.items()} == {
        "conv2d/kernel": (3, 3, 2, 6),
        "dense/kernel": (54, 12),
        "dense_1/kernel": (12, 3),
    }
    for ours, theirs in zip(held.values(), masks.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def _pairs(plain, wrapped, twin):
    return zip(bridge.paired(wrapped, plain), bridge.paired(wrapped, twin), strict=True)


def test_schedules_policies_and_teachers_of_tf_keras():
    class DenseOnly(sparsity.PruningPolicy):
        def allow_pruning(self, layer):
            return isinstance(layer, layers.Dense)

        def ensure_model_supports_pruning(self, model):
            assert isinstance(model, tf_keras.Model)

    model = cnn()
    x, _ = data(model)
    result = bridge.prune_neural_tangent(
        model,
        x,
        **{**SETTINGS, "sparsity": sparsity.PolynomialDecay(0.2, 0.75, 0, 9, frequency=3)},
        pruning_policy=DenseOnly(),
        teacher=randomize(cnn()),
    )
    masks = bridge.get_masks(result)
    assert {k: int(m.sum()) for k, m in masks.items()} == {
        "dense/kernel": 54 * 12 // 4,
        "dense_1/kernel": 9,
    }


def test_a_twin_of_ones_own():
    model = tf_keras.Sequential([layers.InputLayer((6,)), Own(5), layers.Dense(3)])
    twin = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(3)])
    x, _ = data(model)
    result = bridge.prune_neural_tangent(model, x, twin=twin, wrapped=False, **SETTINGS)
    kernels = [v.numpy() for v in result.weights if "kernel" in v.name]
    assert [np.count_nonzero(k) for k in kernels] == [6, 3]
    with pytest.raises(ValueError, match=r"tfmot cannot wrap.*own/kernel"):
        bridge.prune_neural_tangent(model, x, twin=twin, **SETTINGS)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Bidirectional(layers.LSTM(3)),
        lambda: layers.TimeDistributed(layers.Dense(3)),
        lambda: layers.EinsumDense("abc,cd->abd", (5, 3)),
    ],
    ids=["bidirectional", "time_distributed", "einsum"],
)
def test_what_tfmot_cannot_wrap_is_told_before_the_transfer(layer):
    last = layers.Dense(2, name="last")
    model = tf_keras.Sequential([layers.InputLayer((5, 4)), layer(), layers.Flatten(), last])
    x, _ = data(model)
    begun = []
    note = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: begun.append(logs))
    settings = {**SETTINGS, "epochs": 1, "callbacks": [note]}
    with pytest.raises(ValueError, match="tfmot cannot wrap"):
        bridge.prune_neural_tangent(model, x, **settings)
    assert not begun
    left = bridge.prune_neural_tangent(model, x, filters="last", **settings)
    assert list(bridge.get_masks(left)) == ["last/kernel"]
    assert len(begun) == 1


# --- masks both ways --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [cnn, nested], ids=lambda make: make.__name__)
def test_masks_travel_both_ways(make):
    model = make()
    twin = bridge.to_keras3(model)
    keras_ntt.prune_low_magnitude(twin, 0.5)
    there = bridge.translate_masks(keras_ntt.get_masks(twin), twin, model)
    wrapped = bridge.wrap_with_masks(model, there)
    found = bridge.get_masks(wrapped)
    back = bridge.translate_masks(found, wrapped, bridge.to_keras3(model))
    fresh = bridge.to_keras3(model)
    keras_ntt.apply_masks(fresh, bridge.translate_masks(found, wrapped, fresh))
    assert len(back) == len(there) == len(found)
    for a, b in zip(
        keras_ntt.get_masks(twin).values(), keras_ntt.get_masks(fresh).values(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(there.values(), found.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masks_that_fit_nothing():
    model = cnn()
    with pytest.raises(ValueError, match="fits no weight"):
        bridge.wrap_with_masks(model, {"nowhere/kernel": np.ones((2, 2))})
    with pytest.raises(ValueError, match="fits no weight"):
        bridge.wrap_with_masks(model, {"dense/kernel": np.ones((2, 2))})
    with pytest.raises(ValueError, match="other weights"):
        bridge.translate_masks({"nowhere": np.ones(2)}, model, bridge.to_keras3(model))
    with pytest.raises(ValueError, match="no pruning wrapper"):
        bridge.get_masks(model)


def test_models_that_are_wrapped_already():
    model = cnn()
    twin = bridge.to_keras3(model)
    masks = {k: v.numpy() > 0 for k, v in bridge.named_weights(model).items() if "kernel" in k}
    wrapped = bridge.wrap_with_masks(model, masks)
    for act in (
        lambda: bridge.wrap_with_masks(wrapped, dict([*masks.items()][:1])),
        lambda: bridge.to_keras3(wrapped),
        lambda: bridge.prune_neural_tangent(wrapped, data(model)[0], twin=twin, **SETTINGS),
    ):
        with pytest.raises(ValueError, match=r"has pruning wrappers.*strip_pruning.*get_masks"):
            act()
    bridge.wrap_with_masks(sparsity.strip_pruning(wrapped), masks)


# --- tfmot's pipeline -------------------------------------------------------------------------


def zeros(model):
    named = bridge.named_weights(model)
    return {k: int((v.numpy() == 0).sum()) for k, v in named.items() if k.endswith("kernel")}


def fitted(model, x, y, epochs=2):
    model.compile(tf_keras.optimizers.Adam(0.01), "mse")
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    return model


@pytest.mark.parametrize("form", ["h5", "saved_model"])
def test_wrapped_models_are_saved_and_loaded(tmp_path, form):
    model = cnn()
    x, y = data(model)
    wrapped = fitted(bridge.prune_neural_tangent(model, x, **SETTINGS), x, y)
    path = str(tmp_path / ("m.h5" if form == "h5" else "m"))
    wrapped.save(path)
    with sparsity.prune_scope():
        loaded = tf_keras.models.load_model(path)
    masks = bridge.get_masks(wrapped)
    fitted(loaded, x, y)
    for key, mask in bridge.get_masks(loaded).items():
        np.testing.assert_array_equal(mask, masks[key])
        assert not bridge.named_weights(loaded)[key].numpy()[~mask].any()
    assert zeros(sparsity.strip_pruning(loaded)) == {k: int((~m).sum()) for k, m in masks.items()}


def test_zeros_through_the_whole_pipeline_to_an_int8_file():
    model = cnn()
    x, y = data(model)
    wrapped = bridge.prune_neural_tangent(model, x, **SETTINGS)
    masks = bridge.get_masks(wrapped)
    wanted = {key: int((~mask).sum()) for key, mask in masks.items()}
    assert wanted == {"conv2d/kernel": 86, "dense/kernel": 518, "dense_1/kernel": 29}
    assert zeros(wrapped) == wanted
    fitted(wrapped, x, y, epochs=3)
    assert zeros(wrapped) == wanted
    stripped = sparsity.strip_pruning(wrapped)
    assert zeros(stripped) == wanted
    quantization = tfmot.quantization.keras
    aware = quantization.quantize_apply(
        quantization.quantize_annotate_model(stripped),
        tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme(),
    )
    aware.compile(tf_keras.optimizers.Adam(1e-3), "mse")
    aware.fit(x, y, epochs=2, verbose=0)
    kernels = [v.numpy() for v in aware.weights if v.name.endswith("kernel:0")]
    assert [int((k == 0).sum()) for k in kernels] == list(wanted.values())
    again = quantization.quantize_apply(quantization.quantize_annotate_model(stripped))
    again.compile(tf_keras.optimizers.Adam(1e-3), "mse")
    again.fit(x, y, epochs=2, verbose=0)
    lost = [v.numpy() for v in again.weights if v.name.endswith("kernel:0")]
    assert sum(int((k == 0).sum()) for k in lost) < sum(wanted.values())  # why the scheme matters
    converter = tf.lite.TFLiteConverter.from_keras_model(aware)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    sizes = {mask.size: key for key, mask in masks.items()}
    found = {}
    for tensor in interpreter.get_tensor_details():
        key = sizes.get(int(np.prod(tensor["shape"])))
        if tensor["dtype"] == np.int8 and key and len(tensor["shape"]) in (2, 4):
            try:
                value = interpreter.get_tensor(tensor["index"])
            except ValueError:
                continue  # no constant
            if value.shape[0] in (6, 12, 3):
                found[key] = int((value == 0).sum())
    for key, count in wanted.items():
        assert found[key] >= count
    assert interpreter.get_input_details()[0]["shape"].tolist() == [1, 8, 8, 2]


# --- complaints about tfmot -------------------------------------------------------------------


def test_one_unknown_layer_does_not_refuse_the_model():
    model = tf_keras.Sequential(
        [layers.InputLayer((6,)), Own(4), layers.EinsumDense("ab,bc->ac", 5), layers.Dense(3)]
    )
    with pytest.raises(ValueError, match="supported layer"):
        sparsity.prune_low_magnitude(model)
    wrapped = sparsity.prune_low_magnitude(model, pruning_policy=bridge.PruneSupportedLayers())
    assert list(bridge.get_masks(wrapped)) == ["dense/kernel"]


def test_keras_3_models_are_not_refused():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="can only prune"):
        sparsity.prune_low_magnitude(model)
    keras_ntt.prune_low_magnitude(model, sparsity.ConstantSparsity(0.5, 1))
    assert keras_ntt.sparsity_report(model).sparsity == 0.5


def test_tfmots_callback_in_a_transfer_is_noticed():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    with pytest.warns(UserWarning, match="a callback of tf_keras"):
        keras_ntt.prune_neural_tangent(
            model, x, sparsity=0.5, epochs=1, verbose=0, callbacks=[sparsity.UpdatePruningStep()]
        )
