"""The report of what is pruned, counted by hand."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from keras_ntt import (
    apply_masks,
    sparsity_report,
)

pytestmark = pytest.mark.oldest


def counted():
    """Return a model whose entries are known: 20 + 5 + 5 + 5 + 10 + 2 of them."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="last"),
        ],
        name="m",
    )
    for v in model.weights:
        v.assign(keras.ops.ones_like(v))
    first = np.ones((4, 5), "float32")
    first[0] = 0  # 5 of 20
    model.get_layer("first").kernel.assign(first)
    model.get_layer("first").bias.assign([0.0, 0.0, 0.0, 1.0, 1.0])
    mask = np.ones((5, 2), bool)
    mask[:, 0] = False  # 5 of 10
    mask[0, 1] = False  # 1 more
    return apply_masks(model, {"m/last/kernel": mask})


ROWS = [
    ("m/first/kernel", (4, 5), 20, 15, False, ""),
    ("m/first/bias", (5,), 5, 2, False, "biases are never pruned"),
    ("m/norm/gamma", (5,), 5, 5, False, "scales and offsets of normalizations are never pruned"),
    ("m/norm/beta", (5,), 5, 5, False, "scales and offsets of normalizations are never pruned"),
    ("m/last/kernel", (5, 2), 10, 4, True, ""),
    ("m/last/bias", (2,), 2, 2, False, "biases are never pruned"),
]


def test_the_report_counts_as_one_counts_by_hand():
    report = sparsity_report(counted())
    found = [(r.path, r.shape, r.size, r.nonzeros, r.masked, r.note) for r in report.rows]
    assert found == ROWS
    assert [row.sparsity for row in report.rows] == pytest.approx([0.25, 0.6, 0, 0, 0.6, 0])
    assert [row.path for row in report.pruned] == ["m/first/kernel", "m/last/kernel"]
    assert report.sparsity == pytest.approx(11 / 30)
    assert report.nonzeros == 15 + 2 + 5 + 5 + 4 + 2


def test_the_report_as_plain_data():
    report = sparsity_report(counted())
    data = json.loads(json.dumps(report.to_dict()))
    assert data["sparsity"] == pytest.approx(11 / 30)
    assert data["nonzeros"] == 33
    assert [w["path"] for w in data["weights"]] == [row[0] for row in ROWS]
    assert data["weights"][4] == {
        "path": "m/last/kernel",
        "shape": [5, 2],
        "size": 10,
        "nonzeros": 4,
        "masked": True,
        "note": "",
        "progress": "",
        "negligible": 0,
        "reason": "",
        "lost": 0,
        "sparsity": pytest.approx(0.6),
    }


def test_the_report_as_a_table():
    lines = sparsity_report(counted()).table(all_weights=True).split("\n")
    head, rule, *body, second_rule, total = lines
    assert head.split() == ["weight", "shape", "size", "non-zeros", "sparsity"]
    assert set(rule) == {"-"}
    assert rule == second_rule
    assert max(map(len, lines)) <= len(rule)
    never = ["scales", "and", "offsets", "of", "normalizations", "are", "never", "pruned"]
    assert [line.split() for line in body] == [
        ["m/first/kernel", "4x5", "20", "15", "25.00%", "zeros", "without", "a", "mask"],
        ["m/first/bias", "5", "5", "2", "biases", "are", "never", "pruned"],
        ["m/norm/gamma", "5", "5", "5", *never],
        ["m/norm/beta", "5", "5", "5", *never],
        ["m/last/kernel", "5x2", "10", "4", "60.00%", "masked"],
        ["m/last/bias", "2", "2", "2", "biases", "are", "never", "pruned"],
    ]
    assert total.split() == ["prunable", "weights", "30", "19", "36.67%"]
    ends = {line.index("%") for line in [*body, total] if "%" in line}
    assert len(ends) == 1, "the columns are not aligned"


def test_what_nobody_prunes_is_counted_at_the_end():
    _, _, first, last, _, total, biases, scales = str(sparsity_report(counted())).split("\n")
    assert [first.split()[0], last.split()[0]] == ["m/first/kernel", "m/last/kernel"]
    assert total.split() == ["prunable", "weights", "30", "19", "36.67%"]
    assert biases == "not listed: biases (2 weights, 7 entries)"
    assert scales == "not listed: scales and offsets (2 weights, 10 entries)"


def deep(blocks):
    """Return a model with two layers a block and a head: Dense kernels of 9 and of 6 entries."""
    x = inputs = keras.Input((3,))
    for i in range(blocks):
        x = keras.layers.Dense(3, use_bias=False, name=f"block{i}_expand")(x)
        x = keras.layers.Dense(3, use_bias=False, name=f"block{i}_project")(x)
    x = keras.layers.Dense(2, use_bias=False, name="head")(x)
    return keras.Model(inputs, x, name="m")


def test_weights_of_deep_models_are_grouped_by_their_names():
    model = deep(21)
    model.get_layer("block1_expand").kernel.assign(np.diag([1.0, 1.0, 1.0]))
    lines = str(sparsity_report(model)).split("\n")
    assert len(lines) == 2 + 22 + 2
    assert lines[2].split()[:5] == ["block0_...", "(2)", "18", "18", "0.00%"]
    assert lines[3].split()[:5] == ["block1_...", "(2)", "18", "12", "33.33%"]
    assert lines[3].endswith("zeros without a mask / not masked")
    assert lines[-3].split()[:2] == ["head/kernel", "3x2"]
    every = sparsity_report(model).table(all_weights=True).split("\n")
    assert [line.split()[0] for line in every[2:-2]] == [
        row.path for row in sparsity_report(model).rows
    ]


def test_models_of_forty_weights_are_not_grouped():
    assert "..." not in str(sparsity_report(deep(19)))


def test_frozen_kernels_are_reported_as_such():
    model = counted()
    model.get_layer("first").trainable = False
    report = sparsity_report(model)
    paths = [row[0] for row in ROWS]
    assert [row.path for row in report.rows] == [paths[0], *paths[2:]]
    assert report.rows[0].note == "frozen: trainable=False"
    assert report.sparsity == pytest.approx(0.6)


def test_a_mask_on_any_weight_counts_as_pruned():
    model = counted()
    apply_masks(model, {"m/first/bias": np.array([1, 0, 0, 1, 1])})
    row = sparsity_report(model).rows[1]
    assert (row.masked, row.note, row.nonzeros) == (True, "", 2)
    assert sparsity_report(model).sparsity == pytest.approx((11 + 3) / 35)
