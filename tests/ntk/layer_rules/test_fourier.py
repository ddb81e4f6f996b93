import itertools
import os
import platform
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures
from keras import layers

import keras_ntt
from keras_ntt.core import host
from keras_ntt.ntk.layer_rules import fourier

IMAGES = [(8, 8), (12, 12), (5, 9), (7, 4)]
KERNELS = [(5, 5), (3, 3), (2, 4), (1, 3), (4, 1)]
SIZES = [
    (image, kernel, padding)
    for image, kernel, padding in itertools.product(IMAGES, KERNELS, ["valid", "same"])
    if padding == "same" or all(n >= k for n, k in zip(image, kernel, strict=True))
]


def gradients(image, kernel, channels, padding, dtype, rng):
    """Return what the two ways give: the cotangent, and its gradients by delta and kernel."""
    shapes = fourier.Shapes.of(image, kernel, padding)
    samples, inputs, outputs = 3, *channels
    delta = tf.constant(rng.standard_normal([samples, outputs, np.prod(shapes.result)]), dtype)
    weights = tf.constant(rng.standard_normal([*kernel, inputs, outputs]), dtype)
    upstream = tf.constant(rng.standard_normal([samples, inputs, *image]), dtype)

    def by_convolution():
        x = tf.zeros([samples, *image, inputs], dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tf.nn.conv2d(x, weights, 1, padding.upper())
        rows = tf.reshape(tf.transpose(delta, [0, 2, 1]), tf.shape(z))
        return tf.transpose(tape.gradient(z, x, rows), [0, 3, 1, 2])

    def by_frequencies():
        return fourier.cotangent_of_input(delta, weights, shapes)

    found = []
    for way in (by_frequencies, by_convolution):
        with tf.GradientTape() as tape:
            tape.watch([delta, weights])
            result = way()
        found.append([result, *tape.gradient(result, [delta, weights], upstream)])
    return found


def error(found, expected):
    found, expected = (keras.ops.convert_to_numpy(a) for a in (found, expected))
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("image", "kernel", "padding"), SIZES)
@pytest.mark.few(16)
def test_it_is_the_gradient_of_the_convolution(image, kernel, padding, rng):
    ways = gradients(image, kernel, (2, 3), padding, "float64", rng)
    for found, expected in zip(*ways, strict=True):
        assert error(found, expected) < 1e-13


def test_float32_is_as_exact_as_the_convolution(rng):
    ways = gradients((12, 12), (5, 5), (20, 50), "valid", "float32", rng)
    for found, expected in zip(*ways, strict=True):
        assert error(found, expected) < 5e-6


@pytest.mark.parametrize(("image", "kernel", "padding"), SIZES)
def test_periods_are_the_shortest_that_fold_nothing_wanted(image, kernel, padding):
    shapes = fourier.Shapes.of(image, kernel, padding)
    for axis, period in enumerate(shapes.periods):
        full = np.arange(shapes.result[axis] + kernel[axis] - 1)
        before = shapes.before[axis]
        wanted = (full >= before) & (full < before + image[axis])

        def fits(n, full=full, wanted=wanted):
            return full[wanted].max() < n and all(
                wanted[full % n == place].sum() == 0 or (full % n == place).sum() == 1
                for place in range(n)
            )

        assert period % 2 == 0
        assert fits(period)
        assert not fits(period - 2)


def test_operations_are_counted():
    shapes = fourier.Shapes.of((12, 12), (5, 5), "valid")
    sizes = [m.size for m in fourier.matrices(shapes)]
    # The matrices' entries, each for as many numbers as it meets along the other axis.
    there, back = sizes[0] * 8 + sizes[1], sizes[3] + sizes[4] * 12
    by_frequencies = 50 * there + 2 * 12 * 12 * 20 * 50 + 20 * back
    direct = 8 * 8 * 5 * 5 * 20 * 50
    assert direct / by_frequencies == pytest.approx(2.9, abs=0.05)
    assert fourier.pays(shapes, 20, 50)
    assert not fourier.pays(shapes, 1, 50)
    assert not fourier.pays(fourier.Shapes.of((12, 12), (1, 1), "valid"), 20, 50)
    assert not fourier.pays(fourier.Shapes.of((32, 32), (3, 3), "same"), 64, 64)


@pytest.fixture
def taken(monkeypatch):
    """The kernels whose way back is by frequencies, one entry a call, as if with oneDNN."""
    monkeypatch.setattr(host, "has_onednn", lambda: True)
    found = []
    original = fourier.cotangent_of_input

    def remember(delta, kernel, shapes):
        found.append(tuple(kernel.shape))
        return original(delta, kernel, shapes)

    monkeypatch.setattr(fourier, "cotangent_of_input", remember)
    return found


@pytest.fixture
def always(monkeypatch):
    """Send all plain convolutions that way, however small they are."""
    monkeypatch.setattr(fourier, "_GAIN", 0)


def model_of(*parts, shape=(12, 12, 12)):
    return architectures.randomize(keras.Sequential([keras.Input(shape), *parts]))


def after(layer, channels=20):
    """A network in which a layer sees images of which the cotangent is wanted."""
    first = layers.Conv2D(channels, 1, activation="tanh")
    return model_of(first, layer, layers.Flatten(), layers.Dense(2), shape=(12, 12, 3))


PLAIN = {
    "valid": {},
    "same": {"padding": "same"},
    "relu": {"activation": "relu"},
    "softmax": {"activation": "softmax"},
    "no bias": {"use_bias": False},
}
OTHER = {
    "stride": {"strides": 2},
    "dilation": {"dilation_rate": 2},
    "groups": {"groups": 2},
    "one point": {"kernel_size": 1},
    "few channels": {"filters": 2},
    "half": {"dtype": "mixed_float16"},
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_plain_convolutions_take_it(options, taken):
    model = after(layers.Conv2D(**{"filters": 20, "kernel_size": 5, **options}))
    keras_ntt.empirical_ntk(model, np.ones((2, 12, 12, 3), "float32"))
    assert taken == [(5, 5, 20, 20)]


@pytest.mark.parametrize("options", OTHER.values(), ids=OTHER)
def test_other_convolutions_do_not(options, taken):
    model = after(layers.Conv2D(**{"filters": 20, "kernel_size": 5, **options}))
    keras_ntt.empirical_ntk(model, np.ones((2, 12, 12, 3), "float32"))
    assert taken == []


def test_first_layers_do_not(taken):
    model = model_of(layers.Conv2D(20, 5), layers.Flatten(), layers.Dense(2))
    keras_ntt.empirical_ntk(model, np.ones((2, 12, 12, 12), "float32"))
    assert taken == []


def test_it_is_left_to_the_libraries_of_a_gpu(taken, monkeypatch):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: [kind])
    keras_ntt.empirical_ntk(after(layers.Conv2D(20, 5)), np.ones((2, 12, 12, 3), "float32"))
    assert taken == []


@pytest.mark.long
def test_without_onednn_xla_alone_takes_it(taken, monkeypatch):
    monkeypatch.setattr(host, "has_onednn", lambda: False)
    model, x = after(layers.Conv2D(20, 5)), tf.ones((2, 12, 12, 3))
    found = []
    for compiled in (False, True):
        loss = tf.function(
            lambda x: keras_ntt.ntt_loss(model, model, x, sparsity=0.5).total,
            jit_compile=compiled,
            autograph=False,
        )
        loss(x)
        found.append(len(taken))
    assert found == [0, 2]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the setting is for x86")
@pytest.mark.long
def test_onednn_is_seen():
    """Its setting is read once a process: here it is one, there the other."""
    here = host.has_onednn()
    program = "from keras_ntt.core import host; print(host.has_onednn())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0" if here else "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == str(not here)


def tied():
    inputs = keras.Input((8, 9, 3))
    conv = layers.Conv2D(3, 5, padding="same", activation="tanh")
    outputs = layers.GlobalAveragePooling2D()(conv(conv(conv(inputs))))
    return architectures.randomize(keras.Model(inputs, outputs))


def tied_on_two_sizes():
    inputs = keras.Input((7, 7, 3))
    conv = layers.Conv2D(3, 5, activation="tanh")
    x = layers.Conv2D(3, 1)(inputs)
    ends = [conv(x), conv(layers.ZeroPadding2D(2)(x))]
    outputs = layers.add([layers.GlobalAveragePooling2D()(end) for end in ends])
    return architectures.randomize(keras.Model(inputs, outputs))


def frozen(*names):
    model = after(layers.Conv2D(5, 3, activation="relu"), channels=4)
    for name in names:
        getattr(model.layers[1], name).trainable = False
    return model


def two_branches():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(3, 3, padding="same", activation="tanh")(inputs)
    one = layers.Conv2D(3, 5, padding="same", activation="relu")(x)
    x = layers.add([x, layers.MaxPooling2D(3, 1, "same")(one)])
    return architectures.randomize(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))


MODELS = {
    "pooled": lambda: model_of(
        layers.Conv2D(3, 5, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(4, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(2),
        shape=(20, 20, 1),
    ),
    "lenet": lambda: model_of(
        layers.Conv2D(3, 5),
        layers.MaxPooling2D(),
        layers.Conv2D(4, 5),
        layers.MaxPooling2D(),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(7),
        shape=(21, 20, 1),
    ),
    "few positions": lambda: model_of(
        layers.Conv2D(3, 2, activation="tanh"),
        layers.Conv2D(40, 4, activation="tanh"),
        layers.Flatten(),
        layers.Dense(2),
        shape=(6, 6, 3),
    ),
    "one position": lambda: model_of(
        layers.Conv2D(3, 2, activation="tanh"),
        layers.Conv2D(4, 5),
        layers.Flatten(),
        shape=(6, 6, 3),
    ),
    "many windows": lambda: model_of(
        layers.Conv2D(3, 3, padding="same"),
        layers.Conv2D(4, 7, activation="relu"),
        layers.MaxPooling2D((2, 1)),
        layers.GlobalAveragePooling2D(),
        shape=(20, 19, 1),
    ),
    "in a row": lambda: model_of(
        layers.Conv2D(3, 3, padding="same", activation="relu"),
        layers.Conv2D(4, 5, padding="same", activation="gelu"),
        layers.BatchNormalization(),
        layers.Conv2D(3, (4, 5), padding="same"),
        layers.MaxPooling2D((5, 3)),
        layers.Flatten(),
        layers.Dense(2),
        shape=(11, 9, 2),
    ),
    "two branches": two_branches,
    "tied": tied,
    "tied on two sizes": tied_on_two_sizes,
    "frozen kernel": lambda: frozen("_kernel"),
    "frozen bias": lambda: frozen("bias"),
    "frozen": lambda: frozen("_kernel", "bias"),
}


@pytest.fixture(params=MODELS)
def model(request, float64):
    return MODELS[request.param]()


def batch(model, n, rng):
    return rng.standard_normal((n, *model.input_shape[1:]))


@pytest.mark.parametrize("wrt", ["all", "kept"])
@pytest.mark.few(5)
def test_kernels_are_those_of_the_jacobian(model, wrt, rng, always, taken):
    kernels = [v for v in model.trainable_variables if v.shape.rank == 4]
    keras_ntt.apply_masks(model, {v.path: rng.random(v.shape) < 0.5 for v in kernels})
    x1, x2 = batch(model, 2, rng), batch(model, 3, rng)
    found = keras_ntt.empirical_ntk(model, x1, x2, wrt=wrt)
    assert taken
    expected = keras_ntt.empirical_ntk(model, x1, x2, wrt=wrt, implementation="jacobian")
    assert error(found, expected) < 1e-12


def test_gradient_of_the_loss_is_its_finite_difference(rng, always, taken, float64):
    model, teacher = MODELS["lenet"](), MODELS["lenet"]()
    for variable in teacher.variables:
        variable.assign(variable + 0.1 * rng.standard_normal(variable.shape))
    x, variables = batch(model, 4, rng), [v.value for v in model.trainable_variables]

    def loss():
        return keras_ntt.ntt_loss(model, teacher, x, sparsity=0.5, ntk_weight=0.3).total

    with tf.GradientTape() as tape:
        total = loss()
    assert taken
    slope, start, steps = 0.0, model.get_weights(), []
    for gradient, variable in zip(tape.gradient(total, variables), variables, strict=True):
        steps.append(rng.standard_normal(variable.shape))
        slope += float(tf.reduce_sum(gradient * steps[-1]))
    h, ends = 1e-6, []
    for sign in (-1, 1):
        model.set_weights([w + sign * h * step for w, step in zip(start, steps, strict=True)])
        ends.append(float(loss()))
    assert slope == pytest.approx((ends[1] - ends[0]) / (2 * h), rel=1e-6)


class Forgetful(layers.Layer):
    """A layer whose gradient has no static shape."""

    def call(self, x):
        doubled = tf.py_function(lambda a: a + a, [x], x.dtype)
        doubled.set_shape(x.shape)
        return doubled


class Gathered(layers.Layer):
    """A layer whose gradient is slices of a tensor."""

    def call(self, x):
        return tf.gather(x, tf.range(tf.shape(x)[0]))


@pytest.mark.parametrize("own", [Forgetful, Gathered])
@pytest.mark.parametrize("last", [layers.ReLU, layers.MaxPooling2D])
@pytest.mark.parametrize("gain", [0, 1000])
@pytest.mark.few(1)
def test_open_batch_and_gradients_of_unknown_shape(
    own, last, gain, monkeypatch, rng, taken, float64
):
    monkeypatch.setattr(fourier, "_GAIN", gain)
    models = []
    for seed in (0, 1):
        convs = [layers.Conv2D(3, 1, activation="tanh"), layers.Conv2D(4, 3)]
        inner = keras.Sequential([*convs, own(), last(), own(), layers.Flatten()])
        whole = keras.Sequential([keras.Input((12, 12, 3)), inner, layers.Dense(2)])
        models.append(architectures.randomize(whole, seed=seed))
    x = batch(models[0], 4, rng)
    compiled = tf.function(
        lambda x: keras_ntt.ntt_loss(*models, x, sparsity=0.5),
        input_signature=[tf.TensorSpec([None, 12, 12, 3], x.dtype)],
        autograph=False,
    )
    found = compiled(x)
    assert bool(taken) == (gain == 0)
    assert found.ntk_distance > 0
    np.testing.assert_allclose(found, keras_ntt.ntt_loss(*models, x, sparsity=0.5), rtol=1e-10)


def test_kernel_where_a_gradient_is_slices(rng, always, taken, float64):
    convs = [layers.Conv2D(3, 1, activation="tanh"), Gathered(), layers.Conv2D(4, 3), Gathered()]
    model = model_of(*convs, layers.Flatten(), layers.Dense(2))
    x = batch(model, 3, rng)
    found = keras_ntt.empirical_ntk(model, x)
    assert taken
    assert error(found, keras_ntt.empirical_ntk(model, x, implementation="jacobian")) < 1e-12
