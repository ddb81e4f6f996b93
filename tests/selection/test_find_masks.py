"""Masks from scores: in rounds, drawn at random, by patterns."""

from __future__ import annotations

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_classifiers import data, mlp
from keras import layers

import keras_ntt
from keras_ntt import (
    get_masks,
    prune_at_init,
)
from keras_ntt.saliency import SynFlow
from keras_ntt.selection.find_masks import find_masks, recipe_of, subject_of
from keras_ntt.selection.patterns import whole_filters


class Recorder(SynFlow):
    """Notes the masks of each round."""

    def __init__(self):
        super().__init__(rounds=4)
        self.kept = []

    def __call__(self, subject):
        self.kept.append([np.asarray(m).astype(bool) for m in subject.masks])
        return super().__call__(subject)


@pytest.mark.parametrize("allocation", ["global", "layerwise", "erk"])
def test_rounds_are_exponential_and_nested(allocation):
    model, recorder = mlp(), Recorder()
    pruned = prune_at_init(model, sparsity=0.9, saliency=recorder, allocation=allocation, verbose=0)
    history = [*recorder.kept, list(get_masks(pruned).values())]
    totals = [sum(int(m.sum()) for m in masks) for masks in history]
    assert len(history) == 5
    if allocation == "global":
        assert totals == [103, *(int(np.ceil(103 * (10 / 103) ** (k / 4))) for k in (1, 2, 3)), 10]
    for before, after in itertools.pairwise(history):
        for a, b in zip(before, after, strict=True):
            assert not (b & ~a).any()
            assert b.sum() < a.sum() or b.sum() == a.sum() == 1 or allocation != "layerwise"


def test_one_round_of_synflow_is_the_top_of_its_scores():
    model = mlp((6, 6, 6))
    scores = keras_ntt.saliency_scores(model, "synflow")
    pruned = prune_at_init(model, sparsity=0.5, saliency="synflow", rounds=1)
    chosen = np.concatenate([m.ravel() for m in get_masks(pruned).values()])
    values = np.concatenate([s.ravel() for s in scores.values()])
    assert values[chosen].min() > values[~chosen].max()


def test_drawing_by_score_has_the_right_probabilities():
    """One entry of four is drawn, with probabilities 1, 2, 3, 4 tenths."""
    model = mlp((2, 2), use_bias=False)
    model.set_weights([np.array([[1, -2], [3, 4]], "float32")])
    counts = np.zeros((2, 2))
    trials = 300
    for seed in range(trials):
        subject = subject_of(model, model.weights, None, seed=seed)
        recipe = recipe_of(
            model, model.weights, keras_ntt.saliency.as_saliency("magnitude"), randomize=True
        )
        (mask,) = find_masks(subject, recipe, 0.75)
        assert mask.sum() == 1
        counts += mask
    wanted = trials * np.array([[0.1, 0.2], [0.3, 0.4]])
    assert ((counts - wanted) ** 2 / wanted).sum() < 16.3  # one in a thousand of 3 degrees


def test_drawing_takes_scores_of_zero_last():
    model = mlp((4, 4), use_bias=False)
    kernel = np.zeros((4, 4), "float32")
    kernel[1], kernel[3, :2] = 1e-30, 5
    model.set_weights([kernel])
    for seed in range(5):
        pruned = prune_at_init(model, sparsity=0.5, saliency="magnitude", randomize=True, seed=seed)
        (mask,) = get_masks(pruned).values()
        assert mask.sum() == 8
        assert mask[kernel > 0].all()


def test_drawing_depends_on_the_seed_alone():
    model = mlp((20, 20))
    masks = [
        next(
            iter(
                get_masks(
                    prune_at_init(
                        model, sparsity=0.5, saliency="magnitude", randomize=True, seed=seed
                    )
                ).values()
            )
        )
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def columns(scores, sparsity, *, axis):
    """Keep whole columns (or rows) of a matrix by the sum of their scores."""
    sums = tf.reduce_sum(scores, axis=axis)
    count = round(sums.shape[0] * (1 - sparsity))
    best = tf.reduce_max(tf.one_hot(tf.argsort(-sums)[:count], sums.shape[0]), axis=0)
    return tf.broadcast_to(tf.expand_dims(best, axis), scores.shape)


def test_rounds_without_end_are_refused():
    with pytest.raises(ValueError, match=r"rounds must be at most.*Received: rounds=2147483648"):
        prune_at_init(mlp(), sparsity=0.5, saliency="random", rounds=2**31)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_pattern_of_ones_own(rounds):
    model = mlp((6, 8, 4))
    pattern = functools.partial(columns, axis=0)
    pruned = prune_at_init(
        model,
        sparsity=0.5,
        saliency="logit_snip",
        data=data()[0],
        allocation="layerwise",
        pattern=pattern,
        rounds=rounds,
        verbose=0,
    )
    scores = keras_ntt.saliency_scores(model, "logit_snip", data=data()[0])
    for mask, score in zip(get_masks(pruned).values(), scores.values(), strict=True):
        whole = mask.all(axis=0)
        assert (whole == mask.any(axis=0)).all()
        assert whole.sum() == mask.shape[1] // 2
        if rounds == 1:
            sums = score.sum(axis=0)
            assert sums[whole].min() > sums[~whole].max()


def test_whole_filters():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    scores = keras_ntt.saliency_scores(model, "magnitude", filters="conv")
    pruned = prune_at_init(
        model,
        sparsity=0.5,
        saliency="magnitude",
        allocation="layerwise",
        pattern=whole_filters,
        filters="conv",
    )
    masks = get_masks(pruned)
    assert len(masks) == 2
    for mask, score in zip(masks.values(), scores.values(), strict=True):
        kept = mask.all(axis=(0, 1, 2))
        assert (kept == mask.any(axis=(0, 1, 2))).all()
        assert kept.sum() == mask.shape[-1] // 2
        sums = score.sum(axis=(0, 1, 2))
        assert sums[kept].min() > sums[~kept].max()


def test_whole_filters_of_a_vector():
    with pytest.raises(ValueError, match="Whole filters: only kernels of at least 2 axes"):
        whole_filters(tf.ones([3]), 0.5)
