"""What users of magnitude pruning complain of, each shown to be answered here."""

import gzip
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt
from keras_ntt import ConstantSparsity, PolynomialDecay, UpdatePruningStep, prune_low_magnitude

HALF = ConstantSparsity(0.5, 2, frequency=2)


@pytest.fixture
def data(rng):
    x = rng.normal(size=(32, 6)).astype("float32")
    return x, rng.normal(size=(32, 3)).astype("float32")


def trained(model, data, *, optimizer="sgd", epochs=1, callbacks=(), **options):
    model.compile(optimizer, "mse", **{"jit_compile": False, **options})
    model.fit(*data, batch_size=4, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def half_is_zero(model, names=("kernel",)):
    found = [v for v in model.weights if v.name in names]
    assert found
    for v in found:
        value = keras.ops.convert_to_numpy(v)
        assert np.count_nonzero(value) == max(round(value.size / 2), 1), v.path
    return True


def functional(middle):
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(3)(middle(x)))


def test_can_only_prune_sequential_you_passed_sequential(mlp, data):
    assert half_is_zero(trained(prune_low_magnitude(mlp(), HALF), data))


def test_functional_models(data):
    model = functional(lambda x: layers.Dense(4)(x) + layers.Dense(4)(x))
    assert half_is_zero(trained(prune_low_magnitude(model, HALF), data))


def test_subclassed_models(data):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = {"a": layers.Dense(4, "relu"), "b": layers.Dense(3)}

        def call(self, x):
            return self.blocks["b"](self.blocks["a"](x))

    model = Own()
    with pytest.raises(ValueError, match="Call it once on a batch"):
        prune_low_magnitude(model, HALF)
    model(data[0][:1])
    assert half_is_zero(trained(prune_low_magnitude(model, HALF), data))


def test_nested_models(data):
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    block = keras.Sequential([keras.Input((6,)), inner, layers.Dense(4)])
    assert half_is_zero(trained(prune_low_magnitude(functional(block), HALF), data))


def test_bidirectional_layers(data):
    model = functional(lambda x: layers.Bidirectional(layers.LSTM(2))(layers.Reshape((3, 2))(x)))
    model = trained(prune_low_magnitude(model, HALF), data)
    assert half_is_zero(model, ("kernel", "recurrent_kernel"))


def test_einsum_dense_and_attention(data):
    def middle(x):
        x = layers.EinsumDense("ab,bc->ac", 6)(x)
        x = layers.Reshape((3, 2))(x)
        return layers.Flatten()(layers.MultiHeadAttention(1, 2)(x, x))

    assert half_is_zero(trained(prune_low_magnitude(functional(middle), HALF), data))


def test_subclasses_of_dense(data):
    class Mine(layers.Dense):
        def call(self, x, training=None):
            return 2 * super().call(x)

    assert half_is_zero(trained(prune_low_magnitude(functional(Mine(4)), HALF), data))


def test_operators_between_layers(data):
    model = functional(lambda x: keras.ops.relu(layers.Dense(4)(x) + 1) * 2)
    assert half_is_zero(trained(prune_low_magnitude(model, HALF), data))


def test_layers_of_ones_own(data):
    class Mine(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(6, 4), name="matrix")
            self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

        def call(self, x):
            return keras.ops.matmul(x, self.w) * self.scale

    class Willing(Mine):
        def get_prunable_weights(self):
            return [self.w]

    untouched = prune_low_magnitude(functional(Mine()), HALF)  # not refused, and not pruned
    assert [path.split("/")[-1] for path in keras_ntt.get_masks(untouched)] == ["kernel"]
    model = trained(prune_low_magnitude(functional(Willing()), HALF), data)
    assert half_is_zero(model, ("kernel", "matrix"))


def test_training_loops_of_ones_own(mlp, data):
    model = prune_low_magnitude(mlp(), HALF)
    optimizer = keras.optimizers.Adam()
    x, y = map(tf.constant, data)
    for _ in range(4):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    assert half_is_zero(model)


def test_weights_of_an_unpruned_checkpoint_load_and_names_stay(mlp, tmp_path):
    plain = mlp()
    plain.save_weights(tmp_path / "plain.weights.h5")
    names = [v.path for v in plain.weights]
    prune_low_magnitude(plain, HALF)
    assert [v.path for v in plain.weights] == names
    plain.load_weights(tmp_path / "plain.weights.h5")


def test_checkpoints_of_a_pruned_model_are_sparse(mlp, data, tmp_path):
    file = tmp_path / "best.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
    trained(prune_low_magnitude(mlp(), HALF), data, callbacks=[checkpoint])
    other = mlp()
    other.load_weights(file)
    assert half_is_zero(other)


def test_models_load_without_a_scope(mlp, data, tmp_path):
    trained(prune_low_magnitude(mlp(), HALF), data).save(tmp_path / "m.keras")
    assert half_is_zero(keras.models.load_model(tmp_path / "m.keras"))


def test_the_schedule_goes_on_after_a_restart(mlp, data, tmp_path):
    schedule = PolynomialDecay(0.0, 0.5, 0, 16, power=1, frequency=4)
    first = trained(prune_low_magnitude(mlp(), schedule), data)
    first.save_weights(tmp_path / "m.weights.h5")
    assert keras_ntt.sparsity_report(first).sparsity == 0.25
    second = prune_low_magnitude(mlp(), schedule)
    second.load_weights(tmp_path / "m.weights.h5")
    assert half_is_zero(trained(second, data))


def test_steps_per_execution(mlp, data):
    assert half_is_zero(trained(prune_low_magnitude(mlp(), HALF), data, steps_per_execution=8))


def test_averaged_weights(mlp, data):
    average = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5)
    assert half_is_zero(trained(prune_low_magnitude(mlp(), HALF), data, optimizer=average))


def test_mixed_precision(mlp, data):
    keras.config.set_dtype_policy("mixed_float16")
    assert half_is_zero(trained(prune_low_magnitude(mlp(), HALF), data))


def test_frozen_layers_are_left_dense(mlp, data):
    model = mlp()
    model.layers[0].trainable = False
    trained(prune_low_magnitude(model, HALF), data)
    report = keras_ntt.sparsity_report(model)
    assert [row.sparsity for row in report.pruned] == [0.5]


def test_nothing_was_pruned_and_nobody_said_so(mlp, data):
    model = prune_low_magnitude(mlp(), ConstantSparsity(0.5, begin_step=1000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(model, data, callbacks=[UpdatePruningStep()])
        keras_ntt.strip_pruning(model)
    found = [str(w.message) for w in caught]
    assert any("Nothing will be pruned" in message for message in found)
    assert any("the schedule never fired" in message for message in found)


def test_the_final_sparsity_is_not_missed(mlp, data):
    model = prune_low_magnitude(mlp(), PolynomialDecay(0.1, 0.5, 0, 8, frequency=3))
    assert half_is_zero(trained(model, data))


def test_sparsity_is_lost_in_fine_tuning(mlp, data):
    model = trained(prune_low_magnitude(mlp(), HALF), data)
    keras_ntt.strip_pruning(model)
    assert half_is_zero(trained(keras_ntt.restore_masks(model), data))
    keras_ntt.strip_pruning(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(model, data, callbacks=[UpdatePruningStep()])
    assert any("restore_masks" in str(w.message) for w in caught)
    assert keras_ntt.sparsity_report(model).sparsity < 0.5  # as was warned of


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
@pytest.mark.skipif(not hasattr(keras.layers.Dense, "quantize"), reason="an older Keras")
def test_sparsity_is_lost_in_quantization(data):
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(4)(layers.Dense(8)(x)))
    prune_low_magnitude(model, 0.5)
    masks = list(keras_ntt.get_masks(model).values())
    keras_ntt.strip_pruning(model)
    model.quantize("int8")
    kernels = [v for v in model.weights if re.search("kernel$", v.name)]
    assert [v.dtype for v in kernels] == ["int8", "int8"]
    for v, mask in zip(kernels, masks, strict=True):
        assert not keras.ops.convert_to_numpy(v)[~mask].any()


def test_files_are_not_smaller_until_they_are_compressed(tmp_path):
    sizes = {}
    for name, sparsity in (("dense", 0.0), ("sparse", 0.9)):
        model = keras.Sequential([keras.Input((100,)), layers.Dense(100)])
        keras_ntt.strip_pruning(prune_low_magnitude(model, sparsity))
        model.save_weights(tmp_path / f"{name}.weights.h5")
        sizes[name] = len(gzip.compress((tmp_path / f"{name}.weights.h5").read_bytes()))
    assert sizes["sparse"] < 0.3 * sizes["dense"]


def test_a_dictionary_passed_by_position(mlp):
    with pytest.raises(ValueError, match=r"\*\*pruning_params"):
        prune_low_magnitude(mlp(), {"pruning_schedule": HALF})
