"""Schedules, policies, callbacks, scores, allocations and layer rules."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.fuzz import values
from benchmarks.fuzz.arguments import (
    CHOICE,
    INPUTS,
    SALIENCY,
    SEED,
    Argument,
    chosen,
    drawn,
    entry,
    fraction,
    model,
    of,
)
from benchmarks.fuzz.models import World, mlp
from keras_ntt import saliency
from keras_ntt.core.channels.rules import table
from keras_ntt.core.network import call_on
from keras_ntt.ntk import layer_rules
from keras_ntt.ntk.layer_rules import base

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
    sparsity=fraction(), frequency=of(1, 100, None), end_step=of(None, 9, 1000)
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
    assert all(hasattr(v, "path") for v in found), found


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


_BAD_SCHEDULE = of(None, keras_ntt.ConstantSparsity(0.5, 1), bad=values.nasty)
for _method in (keras_ntt.RigL, keras_ntt.SET):
    entry(_method, weight=3)(
        sparsity=of(None, 0.5),
        drop_fraction=of(0.3, 0.5),
        anneal=of(None, "cosine", "constant"),
        scope=of("layerwise", "global"),
        begin_step=of(0, 5),
        end_step=of(9, 100),
        frequency=of(1, 100),
        schedule=_BAD_SCHEDULE,
        replace_step=of(None, True, False),
        seed=SEED,
        **chosen("filters", "pruning_policy"),
    )


entry(keras_ntt.SparseGAN, weight=3)(
    real=of(np.zeros((4, 3), "float32"), bad=values.nasty),
    noise=of(3, bad=values.nasty),
    sparsity=of(0.5, 0.9),
    discriminator_sparsity=of(None, 0.5),
    control=of("static", "dda", "adapt", "adapt_strict"),
    end_step=of(9, 100),
    lower=of(None, 0.3),
    upper=of(None, 0.8),
    frequency=of(None, 10),
    change=of(0.05),
    min_density=of(0.05),
    max_density=of(None, 0.5),
    window=of(100),
    ratio_frequency=of(10),
    exchange_frequency=of(50),
    drop_fraction=of(0.5),
    drop_fraction_end=of(0.005),
    batch_size=of(8),
    networks=of(("generator", "discriminator"), bad=values.nasty),
    seed=SEED,
    **chosen("filters", "pruning_policy"),
)


def _train(make: Callable[..., Any], seen: Any, **options: Any) -> None:
    """Begin and take part in training as Keras does, on a new model."""
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
    entry(
        functools.partial(_train, getattr(keras_ntt, _name)),
        f"{_name} in fit",
        weight=0.15,
        raises=(TypeError, ValueError, tf.errors.InvalidArgumentError),
        foreign=frozenset({"data"}),
    )(
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
entry(saliency.LossGradient, "saliency.LossGradient", weight=1, foreign=frozenset({"loss"}))(
    loss=LOSS, rounds=of(1)
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
entry(saliency.Balanced, "saliency.Balanced")(min_fan_out=of(0, 6))
entry(saliency.check_scores, "saliency.check_scores")(
    scores=of([tf.ones((2, 3))]), weights=of([tf.ones((2, 3))], spoil=0.0)
)
entry(saliency.Batches, "saliency.Batches", weight=2)(
    data=INPUTS, model=model("mlp", "functional", spoil=0.0), batch_size=of(4)
)
entry(keras_ntt.erdos_renyi, "erdos_renyi", weight=2)(
    shapes=of(
        [(6, 4), (4, 3)],
        bad=lambda rng: rng.choice(
            [[(6,), (4, 3)], [(0, 3)], [(-1, 3)], [()], [], [(2.5, 2)], ["ab"], values.nasty(rng)]
        ),
    ),
    density=of(0.5, 1, 0),
    kernel=of(True, False, spoil=0.0),
)
entry(keras_ntt.keep_count, "keep_count", weight=2)(
    size=of(10, 1), sparsity=fraction(), rule=CHOICE["count_rule"]
)
entry(keras_ntt.as_pattern, "as_pattern", weight=2)(
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


def _register_channels(layer_class: Any, rule: Any) -> None:
    known = dict(table._OWN)
    try:
        keras_ntt.register_channel_rule(layer_class)(rule)
    finally:
        table._OWN.clear()
        table._OWN.update(known)


entry(_register_channels, "register_channel_rule", weight=2, changes=True)(
    layer_class=Argument(
        lambda rng, world: type("Own", (keras.layers.Layer,), {}),
        lambda rng, world: rng.choice([values.nasty(rng), int, values.UserError]),
    ),
    rule=of(lambda call: call.inputs[0].axes),
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
NTK = drawn(lambda: np.eye(3, dtype="float32"), values.bad_inputs)
entry(keras_ntt.ntk_distance)(first=NTK, second=NTK)
entry(keras_ntt.ntk_alignment)(first=NTK, second=NTK)
FULL_NTK = drawn(lambda: np.eye(6).reshape(3, 2, 3, 2).swapaxes(1, 2), values.bad_inputs)
OUTPUTS = drawn(lambda: np.zeros((3, 2)), values.bad_inputs)
entry(keras_ntt.predict_training)(
    ntk=FULL_NTK,
    outputs=OUTPUTS,
    targets=OUTPUTS,
    learning_rate=of(0.1, 1.0),
    steps=of([0, 3], (10,), bad=lambda rng: rng.choice([[-1], [0.5], "ab", 3, values.nasty(rng)])),
)
