"""What calls with odd arguments brought to light, each with a test of its own."""

from __future__ import annotations

import io
import os
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.errors import ready, refused, samples, small
from helpers.expect import warned

import keras_ntt
from keras_ntt import get_masks, prune_low_magnitude, saliency_scores
from keras_ntt.core import checks
from keras_ntt.core.network import unroll
from keras_ntt.masks.policies import KernelPolicy
from keras_ntt.ntk.layer_rules import composite
from keras_ntt.saliency import NTKSAP
from keras_ntt.selection.allocations import erdos_renyi
from keras_ntt.selection.counts import keep_count

layers = keras.layers

# --- numbers ---------------------------------------------------------------------------------

BEYOND = [10**30, 10**400, -(10**400), 1e308, float("nan"), float("inf"), np.float64("nan")]


@pytest.mark.parametrize("value", BEYOND, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: keras_ntt.NTTSchedule(0.5, frequency=v),
        lambda v: keras_ntt.NTTSchedule(0.5, end_step=v),
        lambda v: keras_ntt.ConstantSparsity(0.5, v),
        lambda v: keras_ntt.ConstantSparsity(0.5, 0, end_step=v),
        lambda v: keras_ntt.PolynomialDecay(0, 0.5, 0, v),
        lambda v: keras_ntt.GraNet(0.5, (samples(), samples()), begin_step=v, end_step=9),
        lambda v: keras_ntt.SNIPER({0: 0.5, v: 0.2}, saliency="magnitude"),
        lambda v: NTKSAP(batches=v),
        lambda v: saliency_scores(small(), "random", seed=v),
        lambda v: keras_ntt.empirical_ntk(small(), samples(), seed=v),
        lambda v: keras_ntt.NeuralTangentTransfer(small(), pruning_schedule=0.5, seed=v),
    ],
)
def test_whole_numbers_that_are_none_or_beyond_64_bits(make, value):
    with refused(ValueError, r"(integer|epochs to sparsities).*Received: \w+="):
        make(value)


@pytest.mark.parametrize("end_step", ["9", -1, 2.5, True, [9]], ids=repr)
def test_an_end_step_that_is_none(end_step):
    with refused(ValueError, "end_step must be the last step.*Received: end_step="):
        keras_ntt.NTTSchedule(0.5, end_step=end_step)


def test_a_number_beyond_all_floats():
    with refused(ValueError, "power must be a finite number.*Received: power="):
        keras_ntt.PolynomialDecay(0, 0.5, 0, 9, power=10**400)
    with refused(ValueError, "must return.*Received", small()):
        keras_ntt.NeuralTangentTransfer(small(), pruning_schedule=lambda step: (True, 10**400))


@pytest.mark.parametrize("value", [np.array(["all"]), np.array(["all", "kept"]), tf.constant("a")])
def test_a_choice_that_is_an_array(value):
    with refused(ValueError, "wrt must be one of.*Received: wrt="):
        keras_ntt.empirical_ntk(small(), samples(), wrt=value)


def test_whole_numbers_of_any_kind():
    for value in (3, 3.0, np.int8(3), np.uint64(3), np.float16(3)):
        assert checks.check_count("n", value) == 3
        assert type(checks.check_count("n", value)) is int


# --- what users' objects answer ----------------------------------------------------------------


class Answering(keras_ntt.PruningPolicy):
    def __init__(self, allow=True, weights=None):
        self.allow = allow
        if weights is not None:
            self.prunable_weights = lambda layer: weights

    def allow_pruning(self, layer):
        return self.allow


@pytest.mark.parametrize("answer", [np.array([1, 0]), tf.constant([True, False])], ids=repr)
def test_answers_without_truth(answer):
    model = small()
    for options, name in (
        ({"filters": lambda layer: answer}, "filters"),
        ({"pruning_policy": Answering(answer)}, r"pruning_policy.allow_pruning"),
    ):
        match = rf"{name}\(layer\) must return True or False.*Received"
        with refused(ValueError, match, model):
            keras_ntt.NeuralTangentTransfer(model, pruning_schedule=0.5, **options)


@pytest.mark.parametrize("found", [None, 3, ["kernel"], [np.ones((6, 4))]], ids=repr)
def test_prunable_weights_that_are_none(found):
    class Odd(layers.Dense):
        def get_prunable_weights(self):
            return found

    model = keras.Sequential([keras.Input((6,)), Odd(4, name="odd"), layers.Dense(3)])
    match = r"get_prunable_weights\(\) of 'odd' must return a list of the layer's variables.*Rec"
    for prune in (keras_ntt.sparsity_report, prune_low_magnitude):
        with refused(ValueError, match, model):
            prune(model)
    if found is not None:
        model = small()
        with refused(ValueError, r"prunable_weights\(layer\) of Answering must return", model):
            prune_low_magnitude(model, pruning_policy=Answering(weights=found))


@pytest.mark.parametrize("filters", [[b"dense"], b"dense", layers.Dense, {3}, [None]], ids=repr)
def test_filters_of_other_types(filters):
    model = small()
    with refused(ValueError, "(filters must be a regular|nothing to prune).*Received", model):
        prune_low_magnitude(model, 0.5, filters=filters)


def test_a_layer_given_twice_is_pruned_once():
    model = small()
    first = model.layers[0]
    prune_low_magnitude([first, first, model.layers[1]], 0.5)
    assert all(v.constraint.inner is None for v in model.weights if v.name == "kernel")
    keras_ntt.strip_pruning(model)
    assert get_masks(model) == {}


def test_a_layer_rule_that_is_no_function():
    class Mine(layers.Layer):
        pass

    with pytest.raises(TypeError, match=r"must be a function\..*Received: rule=None"):
        keras_ntt.register_layer_rule(Mine)(None)
    assert Mine not in keras_ntt.layer_rules.registered_rules()


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "longdouble", "datetime64[s]", "V8"])
def test_inputs_that_are_no_real_numbers(dtype):
    model = small()
    with refused(ValueError, "x1 must hold numbers.*Received: x1 of dtype", model):
        keras_ntt.empirical_ntk(model, np.zeros((8, 6), dtype))


# --- paths and files -------------------------------------------------------------------------

PATHS = {
    "save_masks": lambda p: keras_ntt.save_masks(prune_low_magnitude(small(), 0.5), p),
    "load_masks": lambda p: keras_ntt.load_masks(small(), p),
    "export_tflite": lambda p: keras_ntt.export_tflite(small(), p),
    "inspect_tflite": lambda p: keras_ntt.inspect_tflite(p),
    "tflite_predict": lambda p: keras_ntt.tflite_predict(p, samples()),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("path", [None, 3, b"file", ["file"]], ids=repr)
def test_rejects_objects_that_are_not_paths(name, path):
    with refused(TypeError, "path must be the path of a file.*Received: path="):
        PATHS[name](path)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("path", ["", ".", "/", "a\0b", "\ud800"], ids=ascii)
def test_what_no_file_is_called(name, path):
    with refused(ValueError, "path must be the path of a file.*Received: path="):
        PATHS[name](path)


@pytest.mark.parametrize("name", ["save_masks", "export_tflite"])
def test_folders_that_are_missing_or_in_the_way(name, tmp_path):
    with refused(FileNotFoundError, "no such folder.*missing"):
        PATHS[name](tmp_path / "missing" / "file")
    with refused(IsADirectoryError, "folder is in the way"):
        PATHS[name](tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_as_long_as_the_file_system_takes(tmp_path):
    path = tmp_path / ("a" * 255)
    PATHS["save_masks"](path)
    assert os.listdir(tmp_path) == [path.name]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_mask_file_whose_list_of_weights_is_another(tmp_path):
    model = small()
    masks = {v.path: np.ones(v.shape, bool) for v in model.weights if v.name == "kernel"}
    lines = [f"x{v.path} {'x'.join(map(str, v.shape))} False" for v in model.weights]
    np.savez(tmp_path / "m.npz", __weights__=np.array(lines), **masks)
    with refused(ValueError, "not a whole mask file.*does not list", model):
        keras_ntt.load_masks(model, tmp_path / "m.npz")


def test_a_mask_file_that_unpacks_to_more_than_a_model_needs(tmp_path):
    model = small()
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{model.weights[0].path}.npy", npy(np.zeros(10**8, bool)))
    assert path.stat().st_size < 10**6
    with refused(ValueError, "not a whole mask file.*100,000,128 bytes of masks for 43", model):
        keras_ntt.load_masks(model, path)


# --- determinism, caches, policies -----------------------------------------------------------


class Drawn(keras.initializers.Initializer):
    """An initializer of the user's own, whose configuration has no seed."""

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype)


class Closed(Drawn):
    def get_config(self):
        raise NotImplementedError


class Fixed(Drawn):
    """One whose configuration has a seed that its constructor does not take."""

    def __init__(self):
        super().__init__()

    def get_config(self):
        return {"seed": 3}


def by_function(shape, dtype=None):
    return keras.random.normal(shape, dtype=dtype)


@pytest.mark.parametrize("initializer", [Drawn(), Closed(), Fixed(), by_function])
def test_scores_are_those_of_the_seed_whatever_the_initializer(initializer):
    parts = [layers.Dense(4, "tanh", kernel_initializer=initializer), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *parts])
    found = [list(saliency_scores(model, NTKSAP(batches=2), seed=s).values()) for s in (1, 1, 2)]
    for first, again, other in zip(*found, strict=True):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


class Forgiving(layers.Layer):
    """Tries one layer, which raises while it runs, and goes on without it."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Conv1D(2, 5)

    def build(self, shape):
        self.inner.build((None, 9, 1))
        self.matrix = self.add_weight(shape=(6, 3), name="matrix")

    def call(self, x):
        try:
            x = x + self.inner(x[:, :3, None])[:, 0]
        except (ValueError, tf.errors.InvalidArgumentError):
            x = keras.ops.tanh(x)
        return keras.ops.matmul(x, self.matrix)


def test_what_follows_a_layer_that_raised_is_still_structured():
    layer = Forgiving()
    x = tf.constant(samples(4))
    model = keras.Sequential([keras.Input((6,)), layer])
    (call,) = unroll(model).calls
    division = composite.divide(call, [x])
    assert [v.name for v in division.factors] == ["matrix"]
    found = keras_ntt.empirical_ntk(model, x)
    wanted = keras_ntt.empirical_ntk(model, x, implementation="jacobian")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(4, "tanh"), layers.Dense(3)
        self.scale = self.add_weight(shape=(3,), initializer="ones", name="scale")

    def call(self, x):
        return self.second(self.first(x)) * self.scale


def test_a_layer_that_is_frozen_after_a_network_was_unrolled():
    from keras_ntt.ntk.empirical import kernel_matrix, tangents

    model, x = Two(), tf.constant(samples(4))
    model(x)
    network = unroll(model).bound_to(x)
    for frozen in (False, True, False):
        model.first.trainable = not frozen
        factors = tangents(network, x).factors
        found = tf.reshape(kernel_matrix(factors, factors), [4, 3, 4, 3])
        wanted = keras_ntt.empirical_ntk(model, x, implementation="jacobian")
        np.testing.assert_allclose(tf.transpose(found, [0, 2, 1, 3]), wanted, rtol=1e-5, atol=1e-6)


def test_a_student_that_is_frozen_in_part_after_a_transfer_was_made():
    """The teacher is the student of the beginning, whatever of it is trainable by now."""
    student = small(inputs=4, units=4, outputs=4)  # kernels of one shape, which could be confused
    teacher = keras.models.clone_model(student)
    teacher.set_weights(student.get_weights())
    transfer = ready(student, ntk_weight=0.0, l2=0.0)
    student.layers[0].trainable = False
    x = samples(8, 4)
    values = transfer._state.pair(transfer.weighting).teacher_values
    assert len(values) == 4
    for (variable, value), wanted in zip(values.values(), teacher.weights, strict=True):
        assert variable.shape == wanted.shape
        np.testing.assert_array_equal(value, wanted.numpy())
    transfer.compile("sgd")
    transfer._state.begin()
    expected = np.mean((student(x).numpy() - teacher(x).numpy()) ** 2)
    logs = transfer.evaluate(x, batch_size=8, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["output_distance"], expected, rtol=1e-4)


def depthwise():
    parts = [
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.SeparableConv2D(4, 3, name="separable"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, name="head"),
    ]
    return keras.Sequential([keras.Input((8, 8, 4)), *parts])


def test_depthwise_kernels_are_pruned_by_magnitude_if_a_policy_says_so(tmp_path):
    usual = {"separable/pointwise_kernel", "head/kernel"}
    more = usual | {"depthwise/kernel", "separable/depthwise_kernel"}
    for policy, wanted in ((None, usual), (KernelPolicy(), usual), (KernelPolicy(True), more)):
        model = prune_low_magnitude(depthwise(), 0.5, pruning_policy=policy)
        masks = get_masks(model)
        assert {"/".join(path.split("/")[-2:]) for path in masks} == wanted
        assert all(mask.mean() == 0.5 for mask in masks.values())
    assert keras_ntt.sparsity_report(model).sparsity == 0.5
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8, 8, 4)), rng.normal(size=(8, 3))
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(x, y, batch_size=4, verbose=0)
    for v in model.weights:
        if v.path in masks:
            np.testing.assert_array_equal(v.numpy() != 0, get_masks(model)[v.path])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert len(get_masks(keras_ntt.restore_masks(loaded))) == 4


def test_depthwise_layers_by_themselves_and_in_lists():
    model = depthwise()
    prune_low_magnitude(model.layers[:2], 0.5, pruning_policy=KernelPolicy(depthwise=True))
    assert len(get_masks(model)) == 3
    embedding = keras.Sequential([keras.Input((3,)), layers.Embedding(9, 4)])
    masks = get_masks(prune_low_magnitude(embedding, 0.5, pruning_policy=KernelPolicy(True)))
    assert len(masks) == 1  # a policy adds to what is pruned anyway


def test_a_policy_can_leave_embeddings_out_of_pruning_by_magnitude():
    for embeddings, wanted in ((None, 2), (True, 2), (False, 1)):
        parts = [layers.Embedding(9, 4), layers.Flatten(), layers.Dense(3)]
        model = keras.Sequential([keras.Input((3,)), *parts])
        policy = KernelPolicy(embeddings=embeddings)
        assert len(get_masks(prune_low_magnitude(model, 0.5, pruning_policy=policy))) == wanted


class Halved(KernelPolicy):
    """A policy that takes nothing of separable layers."""

    def prunable_weights(self, layer):
        return [] if "separable" in layer.name else super().prunable_weights(layer)


def test_a_subclass_of_the_policy_is_asked_by_magnitude_too():
    masks = get_masks(prune_low_magnitude(depthwise(), 0.5, pruning_policy=Halved(depthwise=True)))
    assert {path.split("/")[-2] for path in masks} == {"depthwise", "head"}


def test_depthwise_kernels_of_a_stripped_model_are_counted():
    model = depthwise()
    pruned = prune_low_magnitude(model, 0.5, pruning_policy=KernelPolicy(depthwise=True))
    sizes = sum(mask.size for mask in get_masks(pruned).values())
    report = keras_ntt.sparsity_report(keras_ntt.strip_pruning(pruned))
    assert sum(row.size for row in report.pruned) == sizes
    assert report.sparsity == 0.5


class WithUnused(keras.Model):
    """A model whose code never calls one of its layers."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = layers.Dense(3), layers.Dense(5)
        self.cell = layers.LSTM(2)

    def call(self, x):
        return self.used(x)


@pytest.mark.filterwarnings("ignore:.*build.*:UserWarning")
def test_a_layer_that_is_never_called():
    model = WithUnused()
    model(samples())
    report = keras_ntt.sparsity_report(prune_low_magnitude(model, 0.5))
    assert [row.path.split("/")[-1] for row in report.pruned] == ["kernel"]
    assert report.sparsity == 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classes": 2.5}, "classes must be a positive integer"),
        ({"width": 0}, "width must be above 0"),
        ({"width": 1e308}, "width must be above 0 and at most 100"),
        ({"blocks": [(8, 3)]}, "blocks must be pairs"),
        ({"blocks": 8}, "blocks must be pairs"),
        ({"input_shape": 96}, "input_shape must be"),
        ({"input_shape": (96.5, 96, 3)}, "input_shape must be"),
        ({"input_shape": (0, 96, 3)}, "input_shape must be"),
    ],
)
def test_an_edge_network_of_odd_sizes(options, match):
    with refused(ValueError, f"{match}.*Received"):
        keras_ntt.edge_mobilenet(**options)


@pytest.mark.parametrize(
    ("shapes", "density"),
    [(3, 0.5), ([()], 0.5), ([(0, 3)], 0.5), (["ab"], 0.5), ([(2, 3)], 1.5), ([(2, 3)], np.nan)],
)
def test_shapes_and_densities_that_are_none(shapes, density):
    with refused(ValueError, "(shapes|density) must be.*Received"):
        erdos_renyi(shapes, density)


def test_counts_of_arguments_that_are_none():
    for arguments in ((10, 0.5, "other"), (10, np.nan), (10, "0.5"), (0, 0.5), (None, 0.5)):
        with refused(ValueError, "(rule|sparsity|size) must be.*Received"):
            keep_count(*arguments)


def test_labels_that_are_none():
    model, x = small(), samples()
    for y in (np.array(["a"] * 8), np.array([None] * 8), np.zeros((8, 3, 1))):
        with refused(ValueError, "(labels|data).*Received", model):
            saliency_scores(model, "snip", data=(x, y))
    with refused(ValueError, "Labels can be passed only with arrays.*Received", model):
        data = tf.data.Dataset.from_tensor_slices(x).batch(4)
        saliency_scores(model, "snip", data=(data, np.zeros(8)))
    with refused(ValueError, "A generator can be read only once", model):
        saliency_scores(model, "snip", data=(iter([x]), np.zeros(8)))
    with refused(ValueError, "The loss cannot be taken.*Received", model):
        keras_ntt.effective_gradient_flow(model, x, np.zeros((8, 2)), loss="mse")


def test_recurrent_layers_on_batches_of_open_length():
    layers = keras.layers
    model = keras.Sequential([keras.Input((None, 2)), layers.GRU(3, reset_after=False)])
    batches = tf.data.Dataset.from_generator(
        lambda: (np.zeros((4, length, 2), "float32") for length in (3, 5)),
        output_signature=tf.TensorSpec((None, None, 2)),
    )
    with refused(ValueError, "sequences of a known length.*Received.*gru", model):
        keras_ntt.prune_neural_tangent(model, batches, sparsity=0.5, epochs=1, verbose=0)


def test_callbacks_optimizers_and_epochs_that_are_none():
    model = small()
    for callback in (3, "EarlyStopping", [None]):
        with refused(ValueError, "callbacks must be.*Received", model):
            ready(model).fit(samples(), callbacks=callback)
    for optimizer in ({}, 3, keras.optimizers.Adam):
        with refused(ValueError, "optimizer must be.*Received", model):
            keras_ntt.NeuralTangentTransfer(model, pruning_schedule=0.5).compile(optimizer)
    for epochs in ("3", 0, -1, 1.5, None):
        with refused(ValueError, "epochs must be a positive integer.*Received", model):
            ready(model).fit(samples(), epochs=epochs)


def test_data_that_do_not_end():
    endless = tf.data.Dataset.from_tensor_slices(samples()).batch(4).repeat()
    transfer = ready(small())
    with refused(ValueError, "inputs repeat for ever.*steps_per_epoch", transfer.student):
        transfer.fit(endless, verbose=0)
    with refused(ValueError, "validation_data repeat for ever.*validation_st", transfer.student):
        transfer.fit(samples(), validation_data=endless, verbose=0)
    transfer.fit(endless, steps_per_epoch=3, verbose=0)
    assert transfer.step == 3


@pytest.mark.filterwarnings("ignore:.*build.*:UserWarning")
@pytest.mark.parametrize("x", [[], {}, ()], ids=repr)
def test_inputs_without_arrays(x):
    model = WithUnused()
    model(samples())
    for call in (keras_ntt.empirical_ntk, lambda m, x: keras_ntt.ntt_loss(m, m, x, sparsity=0.5)):
        with refused(ValueError, "x1? hold no arrays.*Received", model):
            call(model, x)


@pytest.mark.parametrize("size", [0.999999, "4", 0])
def test_a_batch_size_that_is_none_beside_a_limit_of_memory(size):
    transfer = ready(small(), memory_limit=2**40)
    with refused(ValueError, "batch_size must be a positive.*Received", transfer.student):
        transfer.fit(samples(), batch_size=size, verbose=0)


def test_batches_whose_memory_cannot_be_told():
    transfer = ready(small())
    for batch in (samples(8, 5), tf.TensorSpec((None, 6)), samples(0), "batch"):
        with refused(ValueError, "batch.*Received", transfer.student):
            transfer.estimate_memory(batch)


@pytest.mark.parametrize("bounds", [3, (1,), (1, 0), ("a", "b"), (0, np.nan), (0, 1, 2)], ids=repr)
def test_bounds_that_are_none(bounds):
    with refused(ValueError, "bounds are.*Received: bounds="):
        keras_ntt.ProjectedGradient(0.1, bounds=bounds)
    with refused(ValueError, "epsilon must be a finite number.*Received: epsilon=None"):
        keras_ntt.ProjectedGradient(None)


def test_a_whole_number_of_projections_may_be_a_float():
    pair, x = (small(), small()), samples()
    first, second = (
        keras_ntt.ntt_loss(*pair, x, sparsity=0.5, output_projections=k) for k in (2, 2.0)
    )
    assert float(first.total) == float(second.total)


# --- what a later run of the fuzz brought to light -----------------------------------------------


def test_a_teacher_that_takes_other_inputs():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.last = layers.Dense(3)

        def call(self, x):
            return self.last(x)

    student = Own()
    student(samples())
    teacher = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3)]
    )
    with pytest.raises(ValueError, match=r"x do not have the shape.*\('batch', 4, 4, 1\)"):
        keras_ntt.ntt_loss(student, teacher, samples(), sparsity=0.5)


def test_an_allocation_that_is_a_variable():
    with pytest.raises(ValueError, match=r"allocation must be one of.*Received"):
        keras_ntt.NeuralTangentTransfer(
            small(), pruning_schedule=0.5, allocation=keras.Variable(0.5)
        )


def test_representative_data_by_the_name_of_the_input(tmp_path):
    pytest.importorskip("ai_edge_litert")
    report = keras_ntt.export_tflite(
        small(), tmp_path / "model.tflite", representative_data={"x": samples()}
    )
    assert report.size > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_labels_that_are_not_finite(bad):
    labels = np.full(len(samples()), bad)
    with pytest.raises(ValueError, match=r"finite numbers as labels.*Received"):
        saliency_scores(small(), saliency="snip", data=(samples(), labels))


def test_a_class_is_no_pattern():
    with pytest.raises(ValueError, match=r"pattern must be None.*Received: pattern=<class 'int'>"):
        keras_ntt.prune_at_init(small(), sparsity=0.5, saliency="random", pattern=int)


def test_projections_without_end():
    with pytest.raises(ValueError, match=r"at most 10,000.*Received: output_projections=10001"):
        keras_ntt.empirical_ntk(small(), samples(), output_projections=10_001)


@pytest.mark.parametrize("data", [(), [], (None,)], ids=repr)
def test_data_that_hold_nothing(data):
    with pytest.raises(ValueError, match=r"(data must be arrays|There are no data).*Received"):
        saliency_scores(small(), saliency="logit_snip", data=data)


def test_a_batch_of_scores_that_is_nothing():
    class Nothing(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return (None,)

    with pytest.raises(ValueError, match=r"data must be NumPy arrays or tensors.*NoneType"):
        saliency_scores(small(), saliency="logit_snip", data=Nothing())


def test_masks_that_are_restored_too_late():
    model = small()
    weights = [np.ones(w.shape, "float32") for w in model.weights]
    weights[0][0, 0] = 0
    model.set_weights(weights)
    with warned(r"No kernel of .* holds more than 4\.2% zeros"):
        keras_ntt.restore_masks(model)
    (mask,) = get_masks(model).values()
    assert mask.sum() == mask.size - 1
