"""The public functions and classes: their arguments, good and bad, and what they may raise."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fuzz_values as values
import keras
import numpy as np
import tensorflow as tf
from fuzz_models import GOOD, OTHER, World, mlp

import keras_ntt
from keras_ntt import allocations, layer_rules, masks, saliency
from keras_ntt.layer_rules import base
from keras_ntt.network import call_on
from keras_ntt.structures import as_pattern

Draw = Callable[[random.Random, World], Any]


@dataclass(frozen=True)
class Argument:
    """How an argument is drawn.

    Attributes:
        good: A value that fits.
        bad: One that may not; None draws any value.
        spoil: How often it is the one that is bad, relative to the others.
    """

    good: Draw
    bad: Draw | None = None
    spoil: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A public function or class.

    Attributes:
        name: Its name.
        call: What is called, with the arguments by name.
        arguments: How they are drawn.
        raises: What it may raise.
        weight: How often it is called, relative to the others.
        changes: Whether it changes models or writes files when it succeeds.
        foreign: Arguments that Keras checks, with messages of its own.
    """

    name: str
    call: Callable[..., Any]
    arguments: Mapping[str, Argument]
    raises: tuple[type[BaseException], ...] = (TypeError, ValueError)
    weight: float = 1.0
    changes: bool = False
    foreign: frozenset[str] = field(default_factory=frozenset)


ENTRIES: dict[str, Entry] = {}


def entry(call: Any, name: str | None = None, **options: Any) -> Callable[..., None]:
    """Add an entry: ``entry(function, option=...)(argument=how it is drawn, ...)``."""

    def add(**arguments: Argument) -> None:
        title = name or call.__name__
        ENTRIES[title] = Entry(title, call, arguments, **options)

    return add


# --- arguments -------------------------------------------------------------------------------


def of(*choices: Any, spoil: float = 1.0, bad: Any = None) -> Argument:
    """Return an argument that is one of some values."""
    drawn = None if bad is None else lambda rng, world: bad(rng)
    return Argument(lambda rng, world: rng.choice(choices), drawn, spoil)


def _bad_model(rng: random.Random, world: World) -> Any:
    if rng.random() < 0.3:
        return values.nasty(rng)
    return world.model(rng.choice(list(OTHER)))


def model(*kinds: str, spoil: float = 1.0) -> Argument:
    """Return an argument that is a model of a kind."""
    good = kinds or tuple(GOOD)
    return Argument(lambda rng, world: world.model(rng.choice(good)), _bad_model, spoil)


def drawn(good: Callable[[], Any], bad: values.Make, spoil: float = 1.0) -> Argument:
    """Return an argument of a value, watched if it is an array, or a bad one by a function."""
    return Argument(
        lambda rng, world: world.watch(good()), lambda rng, world: world.watch(bad(rng)), spoil
    )


def fraction() -> Argument:
    """Return an argument that is a fraction below 1."""
    return of(0.0, 0.3, 0.5, np.float32(0.5))


INPUTS = drawn(values.samples, values.bad_inputs, 3.0)
LABELS = drawn(lambda: np.arange(8) % 3, values.bad_labels)
FILTERS = of(None, "first", spoil=1.0, bad=values.bad_filters)
POLICY = of(None, keras_ntt.KernelPolicy(), bad=values.bad_policy)
SALIENCY = of("magnitude", "random", bad=values.bad_saliency)
ALLOCATION = of("layerwise", "global", bad=values.bad_allocation)
SCHEDULE = of(0.5, keras_ntt.ConstantSparsity(0.5, 1), bad=values.bad_schedule)
SEED = of(0, 7, np.int64(3))
CHOICE: dict[str, Argument] = {
    "wrt": of("all", "kept"),
    "outputs": of("full", "trace"),
    "count_rule": of("nearest", "original"),
    "output_projections": of(None, spoil=0.5),
    "ntk_weight": of(1e-3, 0),
    "l2": of(0.0, 1e-5),
    "filters": FILTERS,
    "pruning_policy": POLICY,
}


def chosen(*names: str) -> dict[str, Argument]:
    """Return arguments that several functions have."""
    return {name: CHOICE[name] for name in names}


def _bad_masks(rng: random.Random, world: World) -> Any:
    given = world.model(rng.choice([*GOOD, "held", "scheduled", "cnn"]))
    result: dict[Any, Any] = {}
    for variable in given.weights:
        kind = rng.random()
        if kind < 0.2:
            result[variable.path] = values.bad_mask(rng, tuple(variable.shape))
        elif kind < 0.6:
            result[variable.path] = np.ones(variable.shape, bool)
    if rng.random() < 0.4:
        key = rng.choice([*(w for w in values.WORDS), None, 3, ("a",), "first/kernel"])
        result[key] = np.ones((6, 4), bool)
    return result if rng.random() < 0.9 else values.nasty(rng)


MASKS = Argument(lambda rng, world: {}, _bad_masks, 4.0)

# --- pruning ---------------------------------------------------------------------------------

entry(keras_ntt.apply_masks, weight=6, changes=True)(model=model(), masks=MASKS)
entry(keras_ntt.get_masks, weight=2)(model=model("held", *GOOD))
entry(keras_ntt.strip_pruning, weight=2, changes=True)(model=model("mlp", "functional"))
entry(keras_ntt.restore_masks, weight=2, changes=True)(model=model("zeros"))
entry(keras_ntt.sparsity_report, weight=3)(model=model())
entry(keras_ntt.remove_dead_units, weight=2)(model=model("mlp", "functional"))
entry(keras_ntt.prune_scope, weight=0.1)()
entry(keras_ntt.prune_low_magnitude, weight=3, changes=True)(
    to_prune=Argument(
        lambda rng, world: world.model(rng.choice(list(GOOD))),
        lambda rng, world: rng.choice(
            [
                lambda: _bad_model(rng, world),
                lambda: list(world.model(rng.choice(list(GOOD))).layers),
                lambda: [keras.layers.Dense(2), values.nasty(rng)],
                lambda: {"pruning_schedule": 0.5},
            ]
        )(),
    ),
    pruning_schedule=of(
        0.5,
        None,
        keras_ntt.PolynomialDecay(0, 0.5, 0, 9),
        bad=lambda rng: values.bad_schedule(rng) if rng.random() < 0.02 else values.nasty(rng),
    ),
    block_size=of((1, 1), (2, 2)),
    block_pooling_type=of("AVG", "MAX"),
    pruning_policy=POLICY,
    sparsity_m_by_n=of(None, spoil=1.0),
    filters=FILTERS,
)
entry(keras_ntt.prune_at_init, weight=1.5)(
    model=model(),
    sparsity=fraction(),
    saliency=SALIENCY,
    data=Argument(
        lambda rng, world: None,
        lambda rng, world: (values.bad_inputs(rng), values.bad_labels(rng)),
    ),
    allocation=ALLOCATION,
    pattern=of(None, "filters", (2, 1), bad=values.bad_saliency),
    rounds=of(None, 1, 2),
    randomize=of(False, True, spoil=0.0),
    allow_empty_layers=of(False, True, spoil=0.0),
    batch_size=of(4, 256),
    seed=SEED,
    verbose=of(0, spoil=0.0),
    **chosen("filters", "pruning_policy", "count_rule"),
)
entry(keras_ntt.saliency_scores, weight=1.5)(
    model=model(),
    saliency=of("snip", "logit_snip", "magnitude", "grasp", bad=values.bad_saliency),
    data=Argument(
        lambda rng, world: (values.samples(), np.arange(8) % 3),
        lambda rng, world: rng.choice(
            [
                lambda: values.bad_inputs(rng),
                lambda: (values.bad_inputs(rng), np.arange(8) % 3),
                lambda: (values.samples(), values.bad_labels(rng)),
            ]
        )(),
        3.0,
    ),
    batch_size=of(4, 256),
    seed=SEED,
    **chosen("filters", "pruning_policy"),
)

# --- the tangent kernel ----------------------------------------------------------------------

entry(keras_ntt.empirical_ntk, weight=1.5)(
    model=model(),
    x1=INPUTS,
    x2=Argument(lambda rng, world: None, INPUTS.bad),
    seed=SEED,
    implementation=of("auto"),
    **chosen("wrt", "outputs", "output_projections"),
)
entry(keras_ntt.ntt_loss, weight=1.5)(
    student=model(),
    teacher=Argument(lambda rng, world: mlp("teacher"), _bad_model),
    x=INPUTS,
    density=of(0.5, 1, np.float32(0.1)),
    seed=SEED,
    masks=Argument(lambda rng, world: None, _bad_masks),
    **chosen("ntk_weight", "l2", "wrt", "outputs", "output_projections"),
)
TRANSFER = dict(
    pruning_schedule=SCHEDULE,
    saliency=SALIENCY,
    saliency_data=Argument(lambda rng, world: None, INPUTS.bad, 0.3),
    allocation=ALLOCATION,
    memory_limit=of(None, 2**40),
    **{**CHOICE, "outputs": of("full")},
)
entry(keras_ntt.NeuralTangentTransfer, weight=1)(
    student=model(),
    teacher=Argument(lambda rng, world: None, _bad_model),
    seed=of(0, None, 7),
    name=of(None, "transfer", spoil=0.0),
    **TRANSFER,
)


def _fit(compiled: Any, fitted: Any) -> Any:
    transfer = keras_ntt.NeuralTangentTransfer(mlp("student"), pruning_schedule=0.5, seed=0)
    before = transfer.student.get_weights()
    try:
        transfer.compile(run_eagerly=True, **compiled)
        transfer.fit(**{"verbose": 0, **fitted})
    except Exception:
        if transfer.step:
            raise
        for old, new in zip(before, transfer.student.get_weights(), strict=True):
            assert np.array_equal(old, new), "the student was changed"
        assert not keras_ntt.get_masks(transfer.student), "the student holds masks"
        raise


def _fit_by_parts(optimizer: Any, **options: Any) -> Any:
    return _fit({"optimizer": optimizer}, options)


entry(
    _fit_by_parts,
    "NeuralTangentTransfer.fit",
    weight=0.15,
    raises=(TypeError, ValueError, FloatingPointError),
    foreign=frozenset({"optimizer", "callbacks", "verbose", "steps_per_epoch"}),
)(
    optimizer=of("adam", "sgd", spoil=0.5),
    x=INPUTS,
    y=of(None, spoil=0.3),
    batch_size=of(4, None),
    epochs=of(1),
    validation_data=Argument(lambda rng, world: None, INPUTS.bad),
    callbacks=of(None, spoil=0.2),
)
entry(
    lambda **options: keras_ntt.NeuralTangentTransfer(mlp(), pruning_schedule=0.5).estimate_memory(
        **options
    ),
    "NeuralTangentTransfer.estimate_memory",
    weight=0.05,
)(batch=INPUTS, parts=of(1, 2))
entry(keras_ntt.prune_neural_tangent, weight=0.12, raises=(TypeError, ValueError))(
    model=model("mlp", spoil=3.0),
    inputs=INPUTS,
    sparsity=fraction(),
    epochs=of(1),
    batch_size=of(8),
    teacher=Argument(lambda rng, world: None, _bad_model),
    seed=of(0),
    verbose=of(0, spoil=0.0),
    **{k: v for k, v in TRANSFER.items() if k not in ("pruning_schedule", "saliency_data")},
)
entry(keras_ntt.effective_gradient_flow, weight=1.5, foreign=frozenset({"y", "loss"}))(
    model=model("mlp", "functional", "held", "compiled"),
    x=INPUTS,
    y=LABELS,
    loss=of(None, "mse", bad=values.bad_loss),
    order=of(1, 2, float("inf")),
)
entry(keras_ntt.TrainingDynamics, weight=2)(
    dense=model(), x=INPUTS, y=LABELS, order=of(2), every=of(1, 3), **chosen("wrt", "outputs")
)

# --- schedules, policies, callbacks ----------------------------------------------------------

STEPS = (0, 1, 5, np.int64(7))
entry(keras_ntt.ProjectedGradient, weight=4)(
    epsilon=of(0.1, 0),
    steps=of(1, 3),
    step_size=of(None, 0.05),
    bounds=of(None, (0.0, 1.0), [-1, 1]),
)
entry(keras_ntt.ConstantSparsity, weight=8)(
    target_sparsity=fraction(), begin_step=of(*STEPS), end_step=of(-1, 9), frequency=of(1, 100)
)
entry(keras_ntt.PolynomialDecay, weight=8)(
    initial_sparsity=fraction(),
    final_sparsity=fraction(),
    begin_step=of(*STEPS),
    end_step=of(9, 100),
    power=of(3, 0.5),
    frequency=of(1, 100),
)
entry(keras_ntt.NTTSchedule, weight=8)(
    sparsity=fraction(), frequency=of(1, 100), end_step=of(None, 9, 1000)
)


def _answer(kind: str, step: Any) -> Any:
    schedule = {
        "constant": keras_ntt.ConstantSparsity(0.5, 1, 90, 3),
        "polynomial": keras_ntt.PolynomialDecay(0.1, 0.5, 1, 90, 3, 7),
        "ntt": keras_ntt.NTTSchedule(0.5, 3, 90),
    }[kind]
    prune, sparsity = schedule(step)
    assert isinstance(prune, (bool, np.bool_)), prune
    assert 0 <= sparsity < 1, sparsity


entry(_answer, "PruningSchedule.__call__", weight=4)(
    kind=of("constant", "polynomial", "ntt", spoil=0.0),
    step=of(0, 1, 89, 90, 91, 10**9, -1, np.int64(5), bad=lambda rng: rng.randrange(-9, 10**6)),
)


def _policy(policy: Any, layer: Any) -> Any:
    found = policy.prunable_weights(layer)
    assert policy.allow_pruning(layer) in (True, False)
    assert all(isinstance(v, keras.Variable) for v in found), found


entry(_policy, "KernelPolicy", weight=2)(
    policy=of(
        keras_ntt.KernelPolicy(), keras_ntt.KernelPolicy(depthwise=True, embeddings=True), spoil=0
    ),
    layer=Argument(
        lambda rng, world: rng.choice(world.model(rng.choice(["mlp", "cnn", "words"])).layers),
        lambda rng, world: rng.choice(
            [
                lambda: keras.layers.Dense(2),
                lambda: keras.layers.LSTM(2),
                lambda: world.model("odd number").layers[-1],
                lambda: values.nasty(rng),
            ]
        )(),
    ),
)
entry(
    lambda model: keras_ntt.PruneForLatencyOnXNNPack().ensure_model_supports_pruning(model),
    "PruneForLatencyOnXNNPack",
    weight=2,
)(model=model())
entry(
    lambda layer: keras_ntt.PruneForLatencyOnXNNPack().allow_pruning(layer),
    "PruneForLatencyOnXNNPack.allow_pruning",
)(layer=of(keras.layers.Dense(2)))
entry(keras_ntt.PruningSummaries, weight=1, foreign=frozenset({"update_freq"}))(
    log_dir=of("logs"), update_freq=of("epoch", spoil=0.2)
)


def _look_ahead(model: Any, params: Any) -> None:
    callback = keras_ntt.UpdatePruningStep()
    callback.set_params(params)
    callback.set_model(model)
    callback.on_train_begin()


entry(_look_ahead, "UpdatePruningStep", weight=2)(
    model=model("mlp", "held", "scheduled", "zeros", spoil=0.0),
    params=of({"epochs": 1, "steps": 3}, {"epochs": 2, "steps": None}, spoil=0.0),
)
entry(keras_ntt.SNIPER, weight=4)(
    sparsities=of({0: 0.5, 3: 0.2, 5: 0}, bad=lambda rng: _bad_sparsities(rng)),
    data=of((values.samples(), np.arange(8) % 3), bad=values.bad_inputs),
    saliency=of("snip", "magnitude", bad=values.bad_saliency),
    max_sparsity=of(0.75, 1),
    seed=SEED,
    **chosen("filters", "pruning_policy"),
)


def _bad_sparsities(rng: random.Random) -> Any:
    if rng.random() < 0.3:
        return values.nasty(rng)
    found = {0: 0.5}
    for _ in range(3):
        key = rng.choice([1, 2, 0.5, *values.NUMBERS[:30], "0", None])
        found[key] = rng.choice([0.5, 0.2, 0, values.nasty(rng)])
    return found


entry(keras_ntt.GraNet, weight=4)(
    sparsity=of(0.5, 0.9),
    data=of((values.samples(), np.arange(8) % 3), bad=values.bad_inputs),
    begin_step=of(0, 5),
    end_step=of(9, 100),
    frequency=of(1, 100),
    initial_sparsity=of(0.0, 0.1),
    regrow=of(0.5),
    regrow_end=of(0.005),
    batch_size=of(4),
    **chosen("filters", "pruning_policy"),
)


def _train(make: Callable[..., Any], seen: Any, **options: Any) -> None:
    """Begin and take part in training as Keras does, on a model of its own."""
    callback = make(**options)
    network = mlp("trained")
    network.compile("sgd", seen[2], run_eagerly=True, jit_compile=False)
    before = network.get_weights()
    try:
        network.fit(*seen[:2], batch_size=4, epochs=1, callbacks=[callback], verbose=0)
    except Exception:
        for old, new in zip(before, network.get_weights(), strict=True):
            assert np.array_equal(old, new), "the model was changed"
        raise


SEEN = Argument(lambda rng, world: (values.samples(), np.arange(8) % 3, _CROSSENTROPY), None, 0.0)
_CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
for _name, _more in (
    ("SNIPER", {"sparsities": of({0: 0.5}, spoil=0.0)}),
    ("GraNet", {"sparsity": of(0.5, spoil=0.0), "end_step": of(2, spoil=0.0)}),
):
    entry(functools.partial(_train, getattr(keras_ntt, _name)), f"{_name} in fit", weight=0.15)(
        seen=SEEN,
        data=Argument(
            lambda rng, world: (values.samples(), np.arange(8) % 3),
            lambda rng, world: (values.bad_inputs(rng), values.bad_labels(rng)),
            3.0,
        ),
        **_more,
        **chosen("filters", "pruning_policy"),
    )

# --- scores and shares -----------------------------------------------------------------------

LOSS = of(None, "mse", bad=values.bad_loss)
entry(saliency.SNIP, "saliency.SNIP", weight=2, foreign=frozenset({"loss"}))(
    loss=LOSS, rounds=of(1, 3)
)
entry(saliency.GraSP, "saliency.GraSP", weight=2, foreign=frozenset({"loss"}))(
    loss=LOSS, temperature=of(200.0)
)
entry(saliency.SynFlow, "saliency.SynFlow")(rounds=of(1, 100))
entry(saliency.SynFlowL2, "saliency.SynFlowL2")(rounds=of(1, 100))
entry(saliency.LogitSNIP, "saliency.LogitSNIP")(rounds=of(1))
entry(saliency.NTKTrace, "saliency.NTKTrace", weight=2)(rounds=of(1), wrt=CHOICE["wrt"])
entry(saliency.NTKSAP, "saliency.NTKSAP", weight=2)(
    rounds=of(1), batches=of(1), batch_size=of(4), epsilon=of(0.01), redraw=of(True, spoil=0.0)
)
entry(saliency.as_saliency, "saliency.as_saliency", weight=2)(saliency=SALIENCY)
entry(saliency.magnitude, "saliency.magnitude")(
    weights=of([tf.ones((2, 3))], bad=lambda rng: rng.choice(values.NUMBERS))
)
entry(saliency.Random, "saliency.Random", weight=0.1)()
entry(saliency.check_scores, "saliency.check_scores")(
    scores=of([tf.ones((2, 3))]), weights=of([tf.ones((2, 3))], spoil=0.0)
)
entry(saliency.Batches, "saliency.Batches", weight=2)(
    data=INPUTS, model=model("mlp", "functional", spoil=0.0), batch_size=of(4)
)
entry(allocations.erdos_renyi, "allocations.erdos_renyi", weight=2)(
    shapes=of(
        [(6, 4), (4, 3)],
        bad=lambda rng: rng.choice(
            [[(6,), (4, 3)], [(0, 3)], [(-1, 3)], [()], [], [(2.5, 2)], ["ab"], values.nasty(rng)]
        ),
    ),
    density=of(0.5, 1, 0),
    kernel=of(True, False, spoil=0.0),
)
entry(masks.keep_count, "masks.keep_count", weight=2)(
    size=of(10, 1), sparsity=fraction(), rule=CHOICE["count_rule"]
)
entry(as_pattern, "structures.as_pattern", weight=2)(
    value=of(None, "2:4", (4, 1), "filters", bad=values.bad_saliency)
)

# --- layer rules -----------------------------------------------------------------------------


def _register(types: Any, rule: Any) -> None:
    known = dict(base._rules)
    try:
        keras_ntt.register_layer_rule(*types)(rule)
    finally:
        base._rules.clear()
        base._rules.update(known)


def _good_types(rng: random.Random, world: World) -> Any:
    return [type("Own", (keras.layers.Layer,), {})]


entry(_register, "register_layer_rule", weight=2, changes=True)(
    types=Argument(
        _good_types,
        lambda rng, world: rng.choice(
            [
                [],
                [values.nasty(rng)],
                [keras.layers.Layer, values.nasty(rng)],
                [int],
                [values.UserError],
            ]
        ),
    ),
    rule=of(lambda call, tensors: None),
)


def _linearized(rule: Any, **options: Any) -> Any:
    layer = keras.layers.Dense(3)
    layer.build((None, 6))
    return rule(call_on(layer), [tf.constant(values.samples(2))], **options)


entry(
    functools.partial(_linearized, layer_rules.Einsum),
    "layer_rules.Einsum",
    foreign=frozenset({"equation"}),
)(
    equation=of(
        "nk,ko->no",
        bad=lambda rng: rng.choice(
            [
                "kn,ko->no",
                "nk,ko",
                "nk->no",
                "",
                "nk,ko->on",
                "nkk,ko->no",
                "n,ko->no",
                "...k,ko->...o",
                "nk,ko->no,x",
                values.nasty(rng),
            ]
        ),
    ),
    kernel=Argument(lambda rng, world: world.model("mlp").layers[0].kernel, spoil=0.0),
)
