"""The public functions that prune, and those of the tangent kernel."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_ntt
from benchmarks.fuzz import values
from benchmarks.fuzz.arguments import (
    ALLOCATION,
    CHOICE,
    FILTERS,
    INPUTS,
    LABELS,
    MASKS,
    POLICY,
    SALIENCY,
    SCHEDULE,
    SEED,
    Argument,
    bad_masks,
    bad_model,
    chosen,
    entry,
    fraction,
    model,
    of,
    of_work,
)
from benchmarks.fuzz.models import GOOD, mlp

# --- pruning ---------------------------------------------------------------------------------

entry(keras_ntt.apply_masks, weight=6, changes=True)(model=model(), masks=MASKS)
entry(keras_ntt.freeze_entries, weight=2, changes=True)(model=model(), masks=MASKS)
entry(keras_ntt.trained_entries)(model=model("mlp", "held"))
entry(keras_ntt.freeze_at_init, weight=1)(
    model=model(),
    frozen=fraction(),
    data=Argument(
        lambda rng, world: (values.samples(), np.arange(8) % 3),
        lambda rng, world: (values.bad_inputs(rng), values.bad_labels(rng)),
    ),
    saliency=SALIENCY,
    allocation=ALLOCATION,
    allow_empty_layers=of(False, True, spoil=0.0),
    filters=FILTERS,
    pruning_policy=POLICY,
    batch_size=of(4, 256),
    seed=of(0, None, 7),
)
entry(keras_ntt.get_masks, weight=2)(model=model("held", *GOOD))
entry(keras_ntt.strip_pruning, weight=2, changes=True)(model=model("mlp", "functional"))
entry(keras_ntt.restore_masks, weight=2, changes=True)(model=model("zeros"))
entry(keras_ntt.sparsity_report, weight=3)(model=model())
entry(keras_ntt.advance_pruning, weight=2, changes=True)(model=model("scheduled"))


def _kept_gradients(model: Any, gradients: Any) -> None:
    keras_ntt.kept_gradients(gradients, model.trainable_variables)


entry(_kept_gradients, "kept_gradients", weight=2)(
    model=model("mlp", "held", "clipped", spoil=0.0),
    gradients=of([None] * 4, [np.ones((6, 4)), None, np.ones((4, 3)), None]),
)
entry(keras_ntt.is_pruned_m_by_n, weight=2)(
    mask=of(np.eye(4), np.ones((2, 2, 8, 3)), [[1, 0], [0, 2]]),
    m_by_n=of((2, 4), (1, 2)),
    last_channel=of("C_OUT", "C_IN"),
)
entry(keras_ntt.reestimate_batch_norm, weight=1, changes=True)(
    model=model("functional", "mlp"), inputs=INPUTS
)
entry(keras_ntt.choose_samples, weight=1)(
    model=model("mlp", "functional"),
    inputs=INPUTS,
    n=of(1, 3),
    method=of("norm", "gram_schmidt"),
    layer=of(None),
    batch_size=of(4, 128),
    seed=SEED,
)
entry(keras_ntt.prune_post_training, weight=2)(
    model=model(),
    inputs=INPUTS,
    sparsity=fraction(),
    method=of("obc", "sparsegpt", "alps", "wanda", "magnitude"),
    allocation=of("sensitivity", "error", "global", "layerwise", bad=values.bad_allocation),
    pattern=of(None, "2:4", bad=values.bad_pattern),
    filters=FILTERS,
    pruning_policy=POLICY,
    refit=of(True, False),
    steps=of_work(2),
    samples=of(None, 4),
    batch_size=of(4, 128),
    memory_limit=of(None, 10**6),
    epochs=of_work(0),
    recovery=of("held"),
    learning_rate=of(1e-3),
    temperature=of(3.0),
    seed=SEED,
    verbose=of(0, spoil=0.0),
)
entry(keras_ntt.remove_dead_units, weight=2)(
    model=model("mlp", "functional"), tolerance=of(0.0, 1e-6)
)
entry(keras_ntt.to_monarch, weight=1)(
    model=model("mlp", "functional"),
    inputs=Argument(lambda rng, world: None, INPUTS.bad),
    blocks=of(1, 2),
    filters=FILTERS,
    samples=of(4, 1024),
    seed=SEED,
)
entry(keras_ntt.random_ternary_features)(
    widths=of([3], [4, 2]),
    data=of(np.ones((3, 4)), bad=lambda rng: rng.choice([None, "a", np.zeros((2, 2)), np.ones(3)])),
    zeros=of(0.0, 0.9),
    seed=SEED,
)
entry(keras_ntt.EntropyPenalty)(weight=of(0.0, 1e-4), levels=of(1, 127), filters=FILTERS, seed=SEED)
entry(keras_ntt.MonarchDense)(units=of(1, 7), blocks=of(1, 4))
entry(keras_ntt.channel_groups, weight=2)(model=model())
entry(keras_ntt.prune_channels, weight=3)(
    model=model("mlp", "functional"),
    inputs=INPUTS,
    channels=fraction(),
    importance=of(None, "magnitude", "activation", "random"),
    allocation=of("uniform", "global"),
    round_to=of(1, 8),
    min_channels=of(1, 2),
    filters=FILTERS,
    refit=of(True, False),
    epochs=of_work(0),
    learning_rate=of(1e-3),
    samples=of(4, 1024),
    batch_size=of(4, 128),
    seed=SEED,
)
entry(keras_ntt.prune_scope, weight=0.1)()
entry(keras_ntt.prune_low_magnitude, weight=3, changes=True)(
    model=Argument(
        lambda rng, world: world.model(rng.choice(list(GOOD))),
        lambda rng, world: rng.choice(
            [
                lambda: bad_model(rng, world),
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
    pattern=of(None, "filters", (2, 1), bad=values.bad_pattern),
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
    teacher=Argument(lambda rng, world: mlp("teacher"), bad_model),
    x=INPUTS,
    sparsity=of(0.5, 0, np.float32(0.9)),
    seed=SEED,
    masks=Argument(lambda rng, world: None, bad_masks),
    **chosen("ntk_weight", "l2", "normalize", "wrt", "outputs", "output_projections"),
)
TRANSFER = dict(
    pruning_schedule=SCHEDULE,
    saliency=SALIENCY,
    saliency_data=Argument(lambda rng, world: None, INPUTS.bad, 0.3),
    allocation=ALLOCATION,
    memory_limit=of(None, 2**40),
    pattern=of(None, "filters", bad=values.bad_pattern),
    adversarial=of(None, keras_ntt.ProjectedGradient(0.1)),
    **{**CHOICE, "outputs": of("full")},
)
entry(keras_ntt.NeuralTangentTransfer, weight=1)(
    student=model(),
    teacher=Argument(lambda rng, world: None, bad_model),
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
    epochs=of_work(1),
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
    epochs=of_work(1),
    batch_size=of(8),
    teacher=Argument(lambda rng, world: None, bad_model),
    seed=of(0),
    verbose=of(0, spoil=0.0),
    **{k: v for k, v in TRANSFER.items() if k not in ("pruning_schedule", "saliency_data")},
)
entry(keras_ntt.ProjectedGradient, weight=3)(
    epsilon=of(0.1), steps=of(1, 3), step_size=of(None, 0.1), bounds=of(None, (0.0, 1.0))
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
