"""Bad input: each message says what is wrong, and the models stay as they are."""

from __future__ import annotations

import re
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.errors import kernels_of, ready, refused, samples, small

from keras_ntt import (
    SNIPER,
    GraNet,
    NeuralTangentTransfer,
    NTTSchedule,
    PruningPolicy,
    PruningSchedule,
    apply_masks,
    empirical_ntk,
    export_tflite,
    get_masks,
    load_masks,
    ntt_loss,
    prune_neural_tangent,
    restore_masks,
    save_masks,
    sparsity_report,
    strip_pruning,
)

# --- the model -------------------------------------------------------------------------------

ENTRY_POINTS = {
    "empirical_ntk": lambda m, p: empirical_ntk(m, samples()),
    "ntt_loss student": lambda m, p: ntt_loss(m, small(), samples(), sparsity=0.5),
    "ntt_loss teacher": lambda m, p: ntt_loss(small(), m, samples(), sparsity=0.5),
    "transfer": lambda m, p: NeuralTangentTransfer(m, pruning_schedule=0.5),
    "transfer teacher": lambda m, p: NeuralTangentTransfer(small(), m, pruning_schedule=0.5),
    "prune": lambda m, p: prune_neural_tangent(m, samples(), sparsity=0.5, epochs=1),
    "prune teacher": lambda m, p: prune_neural_tangent(
        small(), samples(), sparsity=0.5, epochs=1, teacher=m
    ),
    "apply_masks": lambda m, p: apply_masks(m, {}),
    "restore_masks": lambda m, p: restore_masks(m),
    "strip_pruning": lambda m, p: strip_pruning(m),
    "get_masks": lambda m, p: get_masks(m),
    "save_masks": lambda m, p: save_masks(m, p / "masks.npz"),
    "load_masks": lambda m, p: load_masks(m, mask_file(p)),
    "sparsity_report": lambda m, p: sparsity_report(m),
    "export_tflite": lambda m, p: export_tflite(m, p / "model.tflite"),
}
DIFFERENTIATING = [
    name
    for name in ENTRY_POINTS
    if name.split()[0] in {"empirical_ntk", "ntt_loss", "transfer", "prune"}
]
LOOKING = {"get_masks", "save_masks", "strip_pruning"}  # of use on any model


def mask_file(directory):
    np.savez(directory / "foreign.npz", kernel=np.ones((2, 2), bool))
    return directory / "foreign.npz"


@pytest.fixture(params=ENTRY_POINTS)
def entry(request, tmp_path):
    return lambda model: ENTRY_POINTS[request.param](model, tmp_path)


@pytest.fixture(params=[name for name in ENTRY_POINTS if name not in LOOKING])
def computing(request, tmp_path):
    return lambda model: ENTRY_POINTS[request.param](model, tmp_path)


def test_a_legacy_keras_model(entry):
    legacy = type("Model", (), {"__module__": "tf_keras.src.engine", "name": "old", "weights": []})
    with pytest.raises(TypeError, match=r"is a tf_keras \(Keras 2\) model.*import keras"):
        entry(legacy())


@pytest.mark.parametrize("thing", ["model", keras.layers.Dense(2), [small]])
def test_rejects_objects_that_are_not_models(entry, thing):
    with pytest.raises(TypeError, match=r"must be a keras\.Model\. Received"):
        entry(thing)


@pytest.mark.parametrize(
    "name", [name for name in ENTRY_POINTS if name not in ("transfer teacher", "prune teacher")]
)
def test_rejects_none_as_a_model(name, tmp_path):
    with pytest.raises(TypeError, match=r"must be a keras\.Model\. Received.*NoneType"):
        ENTRY_POINTS[name](None, tmp_path)


def never_built():
    return keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(2)])


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(3)

    def get_config(self):
        return {}

    def call(self, x):
        return self.head(x)


@pytest.mark.parametrize("make", [never_built, Own], ids=["sequential", "subclass"])
def test_a_model_that_is_not_built(computing, make):
    with pytest.raises(ValueError, match=r"has no weights yet.*keras\.Input.*not built"):
        computing(make())


@pytest.mark.filterwarnings("ignore:.*build.*:UserWarning")
def test_a_subclass_that_says_it_is_built_and_is_not():
    model = Own()
    model.built = True
    with refused(ValueError, "has no weights yet.*Call it once on a batch"):
        empirical_ntk(model, samples())


@pytest.mark.parametrize(
    ("bad", "which"), [(np.nan, 0), (-np.inf, 3)], ids=["nan_kernel", "inf_bias"]
)
def test_weights_that_are_not_finite(computing, bad, which):
    model = small()
    weights = model.get_weights()
    weights[which].flat[1] = bad
    model.set_weights(weights)
    path = model.weights[which].path
    size = weights[which].size
    with refused(ValueError, f"{path}.*NaN or infinity.*Received: 1 .*of {size}", model):
        computing(model)


def test_bfloat16_weights_that_are_not_finite():
    keras.config.set_dtype_policy("bfloat16")
    model = small()
    model.weights[0].assign(np.full((6, 4), np.nan))
    with refused(ValueError, "NaN or infinity", model):
        NeuralTangentTransfer(model, pruning_schedule=0.5)


def frozen():
    model = small()
    model.trainable = False
    return model


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_a_model_without_trainable_weights(name, tmp_path):
    model = frozen()
    with refused(ValueError, r"has no trainable weights.*layer\.trainable = True", model):
        ENTRY_POINTS[name](model, tmp_path)


def stateful():
    layers = [keras.layers.GRU(3, stateful=True, name="memory"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input(batch_shape=(8, 6, 1)), *layers])


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_a_model_with_a_state_between_calls(name, tmp_path):
    model = stateful()
    with refused(ValueError, r"depend on earlier batches.*stateful=True.*memory", model):
        ENTRY_POINTS[name](model, tmp_path)


def no_kernels():
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    )


PRUNING = ["transfer", "prune", "restore_masks", "sparsity_report", "ntt_loss student"]


@pytest.mark.parametrize("name", PRUNING)
def test_a_model_without_prunable_weights(name, tmp_path):
    model = no_kernels()
    teacher = no_kernels() if "loss" in name else None
    with refused(ValueError, "nothing to prune.*get_prunable_weights.*gamma", model):
        if teacher is not None:
            ntt_loss(model, teacher, samples(), sparsity=0.5)
        else:
            ENTRY_POINTS[name](model, tmp_path)


# --- pairs of models -------------------------------------------------------------------------

PAIRS = {
    "ntt_loss": lambda s, t: ntt_loss(s, t, samples(), sparsity=0.5),
    "transfer": lambda s, t: NeuralTangentTransfer(s, t, pruning_schedule=0.5),
    "prune": lambda s, t: prune_neural_tangent(s, samples(), sparsity=0.5, epochs=1, teacher=t),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ({"outputs": 2}, r"outputs of the same shape.*\(None, 3\).*\(None, 2\)"),
        ({"inputs": 5}, r"inputs of the same shape.*\(None, 6\).*\(None, 5\)"),
    ],
)
def test_student_and_teacher_of_different_shapes(name, shape, match):
    student, teacher = small(), small(**shape)
    with refused(ValueError, match, student, teacher):
        PAIRS[name](student, teacher)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_outputs_of_a_subclass_that_differ(which):
    own = Own()
    own(samples())
    other = small(outputs=2)
    pair = (own, other) if which == "student" else (other, own)
    with refused(ValueError, r"outputs of the same shape.*Received", *pair):
        ntt_loss(*pair, samples(), sparsity=0.5)
    with refused(ValueError, r"outputs of the same shape.*Received", *pair):
        ready(*pair).fit(samples(), verbose=0)


def test_outputs_of_a_subclass_that_would_broadcast():
    own, other = Own(), small(outputs=1)
    own(samples())
    with refused(ValueError, r"outputs of the same shape.*Received", own, other):
        ntt_loss(own, other, samples(), sparsity=0.5)


def test_a_student_that_is_its_teacher():
    model = small()
    with refused(ValueError, "same model.*Leave the teacher out", model):
        NeuralTangentTransfer(model, model, pruning_schedule=0.5)


def test_a_student_that_shares_weights_with_its_teacher():
    model = small()
    twin = keras.Model(model.inputs, model.outputs)
    with refused(ValueError, "Received", model):
        NeuralTangentTransfer(model, twin, pruning_schedule=0.5)


@pytest.mark.parametrize("name", ["transfer", "prune"])
def test_a_student_that_holds_masks(name, tmp_path):
    model = small()
    apply_masks(model, {kernels_of(model)[0]: np.eye(6, 4)})
    if name == "transfer":
        with refused(ValueError, r"pruned already.*strip_pruning.*masks on \['", model):
            ENTRY_POINTS[name](model, tmp_path)
    else:  # works on a copy, which holds none
        pruned = prune_neural_tangent(model, samples(), sparsity=0.5, epochs=1, verbose=0)
        assert list(get_masks(pruned)) == kernels_of(pruned)
        assert list(get_masks(model)) == kernels_of(model)[:1]


# --- sparsity, schedules, settings -----------------------------------------------------------

BAD_SPARSITIES = [-0.1, 1, 1.0, 1.5, 97, float("nan"), float("inf"), True, False, "0.5", "half"]
BAD_SPARSITIES += [None, [0.5]]


@pytest.mark.parametrize("sparsity", BAD_SPARSITIES, ids=repr)
@pytest.mark.parametrize("name", ["schedule", "transfer", "prune"])
@pytest.mark.few(13)
def test_rejects_sparsities_outside_their_range(name, sparsity):
    model = small()
    with refused(ValueError, r"sparsity.*in \[0, 1\).*Received: (pruning_schedule|spars)", model):
        if name == "schedule":
            NTTSchedule(sparsity)
        elif name == "transfer":
            NeuralTangentTransfer(model, pruning_schedule=sparsity)
        else:
            prune_neural_tangent(model, samples(), sparsity=sparsity, epochs=1)


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.5, np.float32(0.5), np.float64(0.5), np.int64(0)])
def test_a_sparsity_may_be_any_number(sparsity):
    model = small()
    NeuralTangentTransfer(model, pruning_schedule=sparsity)
    assert NTTSchedule(sparsity)(0) == (True, float(sparsity))


@pytest.mark.parametrize("value", [-0.5, 1, 1.5, float("nan"), float("inf"), True, "0.5"], ids=repr)
def test_rejects_sparsities_of_the_loss_outside_their_range(value):
    pair = small(), small()
    with refused(ValueError, r"sparsity is.*in \[0, 1\).*Received: sparsity=", *pair):
        ntt_loss(*pair, samples(), sparsity=value)


@pytest.mark.parametrize(
    "density", [0, -0.5, 1.5, float("nan"), float("inf"), True, "0.5"], ids=repr
)
def test_rejects_densities_outside_their_range(density):
    pair = small(), small()
    with refused(ValueError, r"density is.*in \(0, 1\].*Received: density=", *pair):
        ntt_loss(*pair, samples(), density=density)


@pytest.mark.parametrize("both", [{}, {"sparsity": 0.5, "density": 0.5}], ids=["none", "both"])
def test_the_loss_needs_a_sparsity_by_one_name(both):
    with pytest.raises(TypeError, match=r"needs sparsity.*Received: sparsity="):
        ntt_loss(small(), small(), samples(), **both)


def test_the_former_name_of_the_sparsity_works_and_warns():
    pair = small(), small()
    with pytest.warns(DeprecationWarning, match=r"pass sparsity.*Received: density=0.25"):
        found = ntt_loss(*pair, samples(), density=0.25)
    assert found == ntt_loss(*pair, samples(), sparsity=0.75)


@pytest.mark.parametrize("frequency", [0, -1, 1.5, True, float("nan"), "often", [1]], ids=repr)
def test_rejects_frequencies_that_are_not_positive_integers(frequency):
    with refused(ValueError, "frequency must be a positive integer.*Received: frequency="):
        NTTSchedule(0.5, frequency=frequency)


NONSENSE = {
    "nothing": None,
    "number": 0.5,
    "string": "ab",
    "one": (True,),
    "three": (True, 0.5, 1),
    "too high": (True, 1.0),
    "negative": (True, -0.1),
    "nan": (True, float("nan")),
    "words": (True, "half"),
    "no sparsity": (True, None),
}


class Answering(PruningSchedule):
    """Gives a good answer before the first step and another one after it."""

    def __init__(self, answer, begin):
        self.answer, self.begin = answer, begin

    def __call__(self, step):
        return self.answer if step >= self.begin else (True, 0.5)

    def get_config(self):
        return {"answer": self.answer, "begin": self.begin}


@pytest.mark.parametrize("answer", NONSENSE)
@pytest.mark.parametrize("kind", ["function", "schedule"])
@pytest.mark.parametrize("begin", [0, 1], ids=["at_once", "in_fit"])
@pytest.mark.few(13)
def test_rejects_answers_of_schedules_that_are_not_pairs(answer, kind, begin):
    schedule = Answering(NONSENSE[answer], begin)
    given = schedule if kind == "schedule" else lambda step: schedule(step)
    model = small()
    match = r"(must return \(should_prune, sparsity\)|in \[0, 1\)).*Received"
    with refused(ValueError, match, model):
        ready(model, pruning_schedule=given).fit(samples(), batch_size=4, verbose=0)


@pytest.mark.parametrize("schedule", [NTTSchedule, object(), "constant", [0.5, 0.6]])
def test_rejects_objects_that_are_not_schedules(schedule):
    model = small()
    with refused(ValueError, "pruning_schedule must be.*Received: pruning_schedule=", model):
        NeuralTangentTransfer(model, pruning_schedule=schedule)


@pytest.mark.parametrize("option", ["ntk_weight", "l2"])
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf"), "1e-3", None, True], ids=repr)
@pytest.mark.parametrize("name", ["loss", "transfer", "prune"])
@pytest.mark.few(12)
def test_rejects_weights_of_the_objective_that_are_not_finite_numbers(name, option, value):
    model, teacher = small(), small()
    match = f"{option} must be a finite number of at least 0.*Received: {option}="
    with refused(ValueError, match, model, teacher):
        if name == "loss":
            ntt_loss(model, teacher, samples(), sparsity=0.5, **{option: value})
        elif name == "transfer":
            NeuralTangentTransfer(model, pruning_schedule=0.5, **{option: value})
        else:
            prune_neural_tangent(model, samples(), sparsity=0.5, epochs=1, **{option: value})


CHOICES = {
    "allocation": ("'layerwise', 'global'", "transfer"),
    "count_rule": ("'nearest', 'original'", "transfer"),
    "saliency": ("'magnitude'", "transfer"),
    "wrt": ("'all', 'kept'", "transfer ntk loss"),
    "outputs": ("'full', 'trace'", "ntk"),
    "implementation": ("'auto', 'jacobian'", "ntk"),
}


@pytest.mark.parametrize(
    ("option", "name"), [(o, n) for o, (_, where) in CHOICES.items() for n in where.split()]
)
@pytest.mark.parametrize("value", ["other", "", None, 3, ["all"]], ids=repr)
@pytest.mark.few(20)
def test_rejects_unknown_choices(option, name, value):
    model, teacher = small(), small()
    choices = re.escape(CHOICES[option][0])
    with refused(ValueError, f"{option} must be.*{choices}.*Received: {option}=", model, teacher):
        if name == "ntk":
            empirical_ntk(model, samples(), **{option: value})
        elif name == "loss":
            ntt_loss(model, teacher, samples(), sparsity=0.5, **{option: value})
        else:
            NeuralTangentTransfer(model, pruning_schedule=0.5, **{option: value})


@pytest.mark.parametrize(
    "scores",
    [
        lambda weights: None,
        lambda weights: [tf.abs(w) for w in weights][:1],
        lambda weights: [tf.abs(w)[:1] for w in weights],
        lambda weights: [tf.fill(w.shape, float("nan")) for w in weights],
    ],
    ids=["nothing", "too few", "wrong shapes", "nan"],
)
def test_a_saliency_that_returns_nonsense(scores):
    model = small()
    with refused(ValueError, "saliency.*Received", model):
        NeuralTangentTransfer(model, pruning_schedule=0.5, saliency=scores)


# --- what is pruned --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filters",
    ["no such layer", [], ["a^", "b^"], lambda layer: False],
    ids=["expression", "empty", "list", "callable"],
)
@pytest.mark.parametrize("name", ["transfer", "prune"])
def test_filters_that_match_nothing(name, filters):
    model = small()
    with refused(ValueError, "nothing to prune.*Check `filters`.*left out by filters", model):
        if name == "transfer":
            NeuralTangentTransfer(model, pruning_schedule=0.5, filters=filters)
        else:
            prune_neural_tangent(model, samples(), sparsity=0.5, epochs=1, filters=filters)


@pytest.mark.parametrize("filters", ["(", ["dense", "["], [3], 3, True], ids=repr)
def test_rejects_filters_that_are_not_filters(filters):
    model = small()
    with refused(ValueError, "filters must be a regular expression.*Received: filters=", model):
        NeuralTangentTransfer(model, pruning_schedule=0.5, filters=filters)


@pytest.mark.parametrize("policy", ["policy", object(), 3, type("P", (), {"allow_pruning": 1})()])
def test_a_policy_without_allow_pruning(policy):
    model = small()
    with refused(ValueError, r"pruning_policy must be.*allow_pruning\(layer\).*Received", model):
        NeuralTangentTransfer(model, pruning_schedule=0.5, pruning_policy=policy)


class Nothing(PruningPolicy):
    def allow_pruning(self, layer):
        return False


class Whole(PruningPolicy):
    def allow_pruning(self, layer):
        return True

    def ensure_model_supports_pruning(self, model):
        raise ValueError(f"not this model: {model.name}")


def test_a_policy_that_allows_nothing():
    model = small()
    with refused(ValueError, "nothing to prune.*refused by Nothing", model):
        NeuralTangentTransfer(model, pruning_schedule=0.5, pruning_policy=Nothing())


def test_a_policy_that_refuses_the_model():
    model = small()
    with refused(ValueError, f"not this model: {model.name}", model):
        NeuralTangentTransfer(model, pruning_schedule=0.5, pruning_policy=Whole())


def test_a_policy_class_in_place_of_a_policy():
    model = small()
    with refused(ValueError, "pruning_policy must be", model):
        NeuralTangentTransfer(model, pruning_schedule=0.5, pruning_policy=Nothing)


# --- inputs ----------------------------------------------------------------------------------


def with_entry(value):
    x = samples()
    x[2, 3] = value
    return x


def dataset(x, batch=4):
    return tf.data.Dataset.from_tensor_slices(x).batch(batch)


BAD_ARRAYS = {
    "integers": (np.ones((8, 6), "int32"), "hold whole numbers.*255.*int32"),
    "bytes": (np.ones((8, 6), "uint8"), "hold whole numbers.*255.*uint8"),
    "booleans": (np.ones((8, 6), bool), "hold whole numbers.*bool"),
    "nan": (with_entry(np.nan), "hold NaN or infinity.*1 such entries of 48"),
    "inf": (with_entry(np.inf), "hold NaN or infinity.*1 such entries of 48"),
    "width": (samples(8, 5), r"do not have the shape.*\('batch', 6\).*\(8, 5\)"),
    "rank": (samples()[:, :, None], r"do not have the shape.*\(8, 6, 1\)"),
    "no batch": (samples()[0], r"do not have the shape.*\(6,\)"),
    "empty": (samples(0), r"hold no samples.*\(0, 6\)"),
    "two": ([samples(), samples()], r"takes 1 input.*2 array"),
}
ON_ARRAYS = {
    "ntk x1": lambda m, x: empirical_ntk(m, x),
    "ntk x2": lambda m, x: empirical_ntk(m, samples(), x),
    "ntk jacobian": lambda m, x: empirical_ntk(m, x, implementation="jacobian"),
    "loss": lambda m, x: ntt_loss(m, small(), x, sparsity=0.5),
    "fit": lambda m, x: ready(m).fit(x, verbose=0),
    "validation": lambda m, x: ready(m).fit(samples(), validation_data=x, verbose=0),
    "prune": lambda m, x: prune_neural_tangent(m, x, sparsity=0.5, epochs=1, verbose=0),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.parametrize("name", ON_ARRAYS)
@pytest.mark.few(12)
def test_arrays_that_do_not_fit(name, kind):
    x, match = BAD_ARRAYS[kind]
    model = small()
    with refused(ValueError, match, model):
        ON_ARRAYS[name](model, x)


@pytest.mark.parametrize("fill", ["a", None], ids=["strings", "objects"])
@pytest.mark.parametrize("name", ["ntk x1", "fit"])
def test_arrays_that_hold_no_numbers(name, fill):
    model = small()
    with refused((TypeError, ValueError), "(x1|inputs).*Received", model):
        ON_ARRAYS[name](model, np.full((8, 6), fill))


@pytest.mark.parametrize("kind", ["integers", "nan", "width", "rank", "empty"])
def test_tensors_that_do_not_fit(kind):
    x, match = BAD_ARRAYS[kind]
    model = small()
    for name in ("ntk x1", "loss", "fit"):
        with refused(ValueError, match, model):
            ON_ARRAYS[name](model, tf.constant(x))


BAD_BATCHES = {
    "integers": (np.ones((8, 6), "int32"), "hold whole numbers.*255.*int32"),
    "width": (samples(8, 5), r"do not have the shape.*\('batch', 6\).*\((None|4|8), 5\)"),
    "rank": (samples()[:, :, None], r"do not have the shape.*\((None|4|8), 6, 1\)"),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_batches_that_do_not_fit(kind):
    x, match = BAD_BATCHES[kind]
    model = small()
    for data in (dataset(x), dataset((x, np.zeros(len(x)))), iter([x, x]), iter([(x, x)])):
        with refused(ValueError, match, model):
            ready(model).fit(data, steps_per_epoch=2, verbose=0)
    with refused(ValueError, match, model):
        ready(model).fit(samples(), validation_data=dataset(x), verbose=0)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def test_a_pydataset_that_does_not_fit():
    model = small()
    x, match = BAD_BATCHES["width"]
    with refused(ValueError, match, model):
        ready(model).fit(Batches([(x, x)]), verbose=0)
    with refused(ValueError, "hold no batches.*empty PyDataset", model):
        ready(model).fit(Batches([]), verbose=0)


LATER_BATCHES = {
    "width": (
        np.ones((4, 5), "float32"),
        "do not have the shape.*takes, \\('batch', 6\\).*\\(4, 5\\)",
    ),
    "rank": (np.ones(4, "float32"), "do not have the shape"),
    "text": (np.array(["a", "b"]), "must hold numbers"),
    "whole numbers": (np.ones((4, 6), "int32"), "hold whole numbers"),
    "nothing": (None, "must be NumPy arrays or tensors.*NoneType"),
    "number": (3.0, "must be NumPy arrays or tensors.*float"),
    "labels": ((np.ones((4, 6), "float32"), np.ones(4)), "must all be of one form.*a tuple of 2"),
}


# Each batch from each source and as either kind of data, and each source as either.
LATER = [
    (kind, make, (i + j) % 2 == 1)
    for i, kind in enumerate(LATER_BATCHES)
    for j, make in enumerate((Batches, iter))
]


@pytest.mark.parametrize(("kind", "make", "validation"), LATER)
@pytest.mark.few(2)
def test_rejects_a_later_batch_that_does_not_fit(kind, make, validation):
    model = small()
    assert model.input_shape == (None, 6)
    batch, match = LATER_BATCHES[kind]
    data = make([np.ones((4, 6), "float32"), batch])
    if validation:
        with pytest.raises(ValueError, match=f"batches of validation_data {match}"):
            ready(model).fit(samples(), validation_data=data, validation_steps=2, verbose=0)
    else:
        # Batches are taken ahead, and the model is as it was or as some steps have left it.
        with pytest.raises(ValueError, match=f"batches of the inputs {match}"):
            ready(model).fit(data, steps_per_epoch=2, verbose=0)


@pytest.mark.parametrize(("make", "workers"), [(Batches, 1), (Batches, 2), (iter, None)])
@pytest.mark.few(1)
def test_rejects_a_batch_that_does_not_fit_after_forty_steps(make, workers):
    """TensorFlow makes other errors of those in its threads."""
    fit = np.ones((4, 6), "float32")
    data = make([fit] * 40 + [fit[:, :5]])
    if make is Batches:
        data.workers = workers
    model = small()
    transfer = ready(model)
    with pytest.raises(ValueError, match="batches of the inputs do not have the shape"):
        transfer.fit(data, steps_per_epoch=41, shuffle=False, verbose=0)
    assert transfer.step == 40


def test_an_error_of_a_callback_is_not_taken_for_one_of_a_batch_read_ahead():
    read = threading.Event()

    class Ahead(Batches):
        def __getitem__(self, index):
            if index == 2:
                read.set()
            return super().__getitem__(index)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert read.wait(60)
            time.sleep(0.2)  # until it is refused, too
            raise ZeroDivisionError("mine")

    fit = np.ones((4, 6), "float32")
    data = Ahead([fit, fit, fit[:, :5]])
    data.workers = 2
    with pytest.raises(ZeroDivisionError, match="mine"):
        ready(small()).fit(data, callbacks=[Stop()], shuffle=False, verbose=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dataset(samples()).take(0),
        lambda: dataset(samples(0)),
    ],
    ids=["taken", "sliced"],
)
@pytest.mark.parametrize("name", ["fit", "prune", "validation"])
def test_a_data_set_without_batches(name, make):
    model = small()
    with refused(ValueError, "hold no batches.*Received: an empty", model):
        ON_ARRAYS[name](model, make())


def nothing_passes(x):
    return tf.reduce_any(tf.math.is_nan(x))


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
@pytest.mark.parametrize(
    "make",
    [lambda: dataset(samples()).filter(nothing_passes), lambda: iter([])],
    ids=["data_set", "generator"],
)
def test_data_of_a_length_that_is_not_known_and_is_none(make):
    model = small()
    with refused(ValueError, "no batches|at least one batch|exhausted", model):
        ready(model).fit(make(), verbose=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_batches_that_turn_out_not_finite(bad):
    model = small()
    with pytest.raises(FloatingPointError, match=r"NaN or infinite after step 0.*NaN or inf"):
        ready(model).fit(dataset(with_entry(bad)), verbose=0)


@pytest.mark.parametrize("x", [None, 3, "data", [[0.1] * 6], {"x": 1}], ids=repr)
@pytest.mark.parametrize("name", ["fit", "prune"])
def test_rejects_inputs_that_are_not_arrays(name, x):
    model = small()
    with refused(ValueError, r"(inputs must be arrays|There are no inputs).*Received", model):
        ON_ARRAYS[name](model, x)


@pytest.mark.parametrize("x", [None, 0.5, "data", [0.5]], ids=repr)
@pytest.mark.parametrize("name", ["ntk x1", "loss"])
def test_rejects_samples_that_are_not_arrays(name, x):
    model = small()
    with refused((TypeError, ValueError), "x1?.*Received", model):
        ON_ARRAYS[name](model, x)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "64", float("nan"), [4]], ids=repr)
@pytest.mark.parametrize("name", ["fit", "prune"])
@pytest.mark.few(5)
def test_rejects_batch_sizes_that_are_not_positive_integers(name, size):
    model = small()
    with refused(ValueError, "batch_size must be a positive integer.*Received: batch_", model):
        if name == "fit":
            ready(model).fit(samples(), batch_size=size, verbose=0)
        else:
            prune_neural_tangent(
                model, samples(), sparsity=0.5, epochs=1, batch_size=size, verbose=0
            )


def test_arrays_of_different_lengths():
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], keras.layers.Dense(2)(keras.layers.Add()([a, b])))
    x = [samples(8, 2), samples(7, 2)]
    for name in ("ntk x1", "fit"):
        with refused(ValueError, r"Received.*7", model):
            ON_ARRAYS[name](model, x)


# --- the order of calls ----------------------------------------------------------------------


def test_compile_without_an_optimizer():
    model = small()
    transfer = NeuralTangentTransfer(model, pruning_schedule=0.5)
    with refused(ValueError, "needs the optimizer.*Received: optimizer=None", model):
        transfer.compile()


def test_fit_before_compile():
    model = small()
    transfer = NeuralTangentTransfer(model, pruning_schedule=0.5)
    with refused(ValueError, r"no optimizer yet.*compile\(\).*before compile", model):
        transfer.fit(samples())


def test_rejects_unknown_optimizers():
    model = small()
    transfer = NeuralTangentTransfer(model, pruning_schedule=0.5)
    with refused(ValueError, "no_such_optimizer", model):
        transfer.compile("no_such_optimizer")


@pytest.mark.parametrize("argument", ["sample_weight", "class_weight"])
def test_weights_of_samples(argument):
    model = small()
    given = {"sample_weight": np.ones(len(samples())), "class_weight": {0: 2.0}}[argument]
    with refused(ValueError, f"{argument} is not supported.*Received: {argument} of type", model):
        ready(model).fit(samples(), **{argument: given})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"filters": 3}, "filters must be a regular expression"),
        ({"pruning_policy": 3}, "pruning_policy must be a PruningPolicy"),
    ],
)
def test_callbacks_that_prune_look_at_their_settings_when_they_are_made(setting, message):
    labelled = samples(), samples()
    with refused(ValueError, message):
        GraNet(0.5, labelled, end_step=9, **setting)
    with refused(ValueError, message):
        SNIPER({0: 0.5}, labelled, **setting)


def test_numbers_of_callbacks_that_prune():
    labelled = samples(), samples()
    with refused(ValueError, "batch_size must be a positive integer.*Received: batch_size=-3"):
        GraNet(0.5, labelled, end_step=9, batch_size=-3)
    with refused(ValueError, "seed must be.*Received: seed=-5"):
        SNIPER({0: 0.5}, labelled, seed=-5)


def test_a_validation_split():
    model = small()
    with refused(ValueError, "validation_split is not supported.*Received", model):
        ready(model).fit(samples(), validation_split=0.5)


def test_a_refused_fit_can_be_repeated():
    model = small()
    transfer = ready(model)
    with refused(ValueError, "do not have the shape", model):
        transfer.fit(dataset(samples(8, 5)), verbose=0)
    transfer.fit(samples(), verbose=0)
    assert transfer.step == 1
    assert list(get_masks(model)) == kernels_of(model)


def test_a_class_that_cannot_be_copied():
    class Closed(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.dense = keras.layers.Dense(width)

        def call(self, x):
            return self.dense(x)

        def get_config(self):
            raise NotImplementedError("no configuration")

    model = Closed(3)
    model(samples())
    with refused(ValueError, "cannot be copied: .*no configuration.*in place.*Closed", model):
        prune_neural_tangent(model, samples(), sparsity=0.5, epochs=1)


# --- masks -----------------------------------------------------------------------------------

BAD_MASKS = {
    "shape": (np.ones((4, 6)), r"must have the weight's shape \(6, 4\).*\(4, 6\)"),
    "scalar": (np.True_, r"must have the weight's shape \(6, 4\).*\(\)"),
    "broadcast": (np.ones((6, 1)), r"must have the weight's shape \(6, 4\).*\(6, 1\)"),
    "half": (np.full((6, 4), 0.5), "must be boolean or hold only 0 and 1.*Received"),
    "two": (np.full((6, 4), 2), "must be boolean or hold only 0 and 1.*Received"),
    "negative": (np.full((6, 4), -1), "must be boolean or hold only 0 and 1.*Received"),
    "nan": (np.full((6, 4), np.nan), "must be boolean or hold only 0 and 1.*Received"),
    "strings": (np.full((6, 4), "1"), "must be boolean or hold only 0 and 1.*Received"),
    "objects": (np.full((6, 4), None), "must be boolean or hold only 0 and 1.*Received"),
    "none": (None, "mask of.*Received"),
    "ragged": ([[1, 0], [1]], "mask of.*Received"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
@pytest.mark.parametrize("held", [False, True], ids=["plain", "masked"])
@pytest.mark.few(11)
def test_a_mask_that_does_not_fit(kind, held):
    mask, match = BAD_MASKS[kind]
    model = small()
    first, second = kernels_of(model)
    good = {second: np.eye(4, 3)}
    if held:
        apply_masks(model, {first: np.eye(6, 4), second: np.eye(4, 3)[::-1]})
    before = get_masks(model)
    with refused(ValueError, match, model):
        apply_masks(model, {**good, first: mask})  # the good one must not be applied either
    for key, value in get_masks(model).items():
        np.testing.assert_array_equal(value, before[key])
    with refused(ValueError, match, model):
        ntt_loss(model, small(), samples(), sparsity=0.5, masks={first: mask})


@pytest.mark.parametrize("key", ["no such weight", "kernel", "", 3, None, ("a",)], ids=repr)
def test_a_mask_of_an_unknown_weight(key):
    model = small()
    masks = {kernels_of(model)[0]: np.eye(6, 4), key: np.ones((4, 3))}
    with refused(ValueError, "masks are for other weights.*Received: masks for", model):
        apply_masks(model, masks)
    with refused(ValueError, "masks are for other weights.*Received: masks for", model):
        ntt_loss(model, small(), samples(), sparsity=0.5, masks=masks)


@pytest.mark.parametrize("masks", [None, [np.ones((6, 4))], "masks", 3], ids=str)
def test_masks_that_are_no_mapping(masks):
    model = small()
    with refused(TypeError, "masks must map paths of variables.*Received: masks of type", model):
        apply_masks(model, masks)


def test_restore_masks_of_a_dense_model():
    model = small()
    with refused(ValueError, "holds no zeros to restore.*Received.*dense", model):
        restore_masks(model)
    assert get_masks(model) == {}
