"""What rounding does to a model: measured on held-out samples, reported, refused where it ruins."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from helpers.architectures import sequential
from keras import layers

from keras_ntt import ExportError, export_tflite, tflite_predict
from keras_ntt.litert.rounding import (
    decisions,
    judge_rounding,
    relative_error,
    signal_to_noise,
)

pytestmark = pytest.mark.oldest


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- the figures ------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_signal_to_noise_of_noise_of_known_strength(ratio, offset):
    y = normal((40_000, 3)) + offset
    found = y + ratio * normal((40_000, 3), 1)
    assert signal_to_noise(found, y) == pytest.approx(-20 * np.log10(ratio), abs=0.05)


def test_signal_to_noise_does_not_grow_with_the_number_of_samples():
    y, noise = normal((50, 4)), 0.1 * normal((50, 4), 1)
    once = signal_to_noise(y + noise, y)
    often = signal_to_noise(np.tile(y + noise, (100, 1)), np.tile(y, (100, 1)))
    assert often == pytest.approx(once, abs=1e-9)


def test_signal_to_noise_at_the_ends():
    y = normal((5, 2))
    assert signal_to_noise(y, y) == np.inf
    assert signal_to_noise(np.full_like(y, np.nan), y) == -np.inf
    assert signal_to_noise(np.full_like(y, np.inf), y) == -np.inf
    assert signal_to_noise(y[:1] * 1.1, y[:1]) == pytest.approx(20)  # of one: its own strength
    constant = np.ones((6, 2))
    assert signal_to_noise(constant + 0.1, constant) == -np.inf


def test_decisions_and_accuracy_counted_by_hand():
    wanted = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    found = np.array([[0.6, 0.3, 0.1], [0.1, 0.4, 0.5], [0.3, 0.2, 0.5], [0.4, 0.5, 0.1]])
    labels = np.array([0, 2, 2, 2])
    rounding = judge_rounding([[found], [wanted]], [wanted], held_out=False, labels=labels)
    assert rounding.agreement == 0.5  # of the worse way to run the file
    assert (rounding.accuracy, rounding.model_accuracy) == (0.5, 0.5)
    assert rounding.probabilities
    assert rounding.error == pytest.approx(relative_error(found, wanted))
    one = np.array([[0.1], [0.6], [0.49]])
    np.testing.assert_array_equal(decisions(one, one), [False, True, False])
    assert decisions(5 * one, 5 * one) is None  # a number, not a probability
    assert decisions(one[:, 0], one[:, 0]) is None


def test_the_mean_output_ruins_a_model_and_a_constant_one_is_not_ruined():
    y = normal((100, 3))
    mean = np.broadcast_to(y.mean(axis=0), y.shape)
    assert judge_rounding([[mean]], [y], held_out=True).is_ruined
    assert not judge_rounding([[y + 0.3]], [y], held_out=True).is_ruined
    level = 1000 + 1e-3 * y  # hardly varies: nothing can be told from the ratio
    rounding = judge_rounding([[level + 1.0]], [level], held_out=True)
    assert rounding.is_poor
    assert not rounding.is_ruined


def test_a_figure_that_is_not_finite_can_be_written_as_json():
    y = normal((3, 2))
    data = json.dumps(judge_rounding([[y]], [y], held_out=True).to_dict(), allow_nan=False)
    assert json.loads(data)["signal_to_noise"] is None


# --- exports ----------------------------------------------------------------------------------


def steep(classes=4):
    """A classifier whose probabilities jump: rounding flips one now and then."""
    model = sequential((6,), layers.Dense(32, "relu"), layers.Dense(classes, "softmax"))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) * 6 for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model, path = steep(), tmp_path_factory.mktemp("rounding") / "m.tflite"
    x = normal((700, 6)).astype("float32")
    labels = model.predict(x, verbose=0).argmax(axis=1)
    labels[:600:10] += 1
    report = export_tflite(
        model, path, target="int8", representative_data=x, labels=labels[:, None] % 4
    )
    return model, path, x, labels % 4, report


def test_a_good_file_is_written_though_single_probabilities_jump(written):
    model, path, x, _, report = written
    found, expected = tflite_predict(path, x), model.predict(x, verbose=0)
    assert report.max_difference > 0.2  # more than was allowed once
    assert report.tolerance == np.inf
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.95
    assert report.rounding.agreement > 0.95
    assert not any("rounding changes" in note for note in report.warnings)


def test_rounding_is_judged_on_the_samples_that_follow(written):
    model, path, x, labels, report = written
    rounding = report.rounding
    assert (rounding.samples, rounding.held_out) == (256, True)
    rest = slice(256, 512)
    found, expected = tflite_predict(path, x[rest]), model.predict(x[rest], verbose=0)
    assert rounding.signal_to_noise == pytest.approx(signal_to_noise(found, expected), abs=0.3)
    same = np.mean(found.argmax(1) == expected.argmax(1))
    assert rounding.agreement == pytest.approx(same, abs=2 / 256)
    right = np.mean(found.argmax(1) == labels[rest])
    assert rounding.accuracy == pytest.approx(right, abs=2 / 256)
    assert rounding.model_accuracy == np.mean(expected.argmax(1) == labels[rest])
    assert f"{rounding.agreement:.1%} of decisions" in str(report)
    assert "on 256 held-out samples" in str(report)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["rounding"]["agreement"] == rounding.agreement
    assert data["tolerance"] is None


@pytest.mark.parametrize("quantization", ["float16", "int8_weights", "int16"])
@pytest.mark.few(1)
def test_other_roundings_are_judged_alike(quantization, tmp_path):
    x = normal((100, 6)).astype("float32")
    report = export_tflite(
        steep(), tmp_path / "m.tflite", quantization=quantization, representative_data=x
    )
    assert (report.rounding.samples, report.rounding.held_out) == (100, False)
    assert report.rounding.agreement > 0.97
    assert "the same that ranges come from" in str(report)


def test_float32_is_not_rounded(tmp_path):
    report = export_tflite(steep(), tmp_path / "m.tflite")
    assert report.rounding is None
    assert report.tolerance < 1e-3


def of_two_scales():
    """A model of an input that has one feature 10,000 times the others, which it passes over."""
    model = sequential((5,), layers.Dense(16, "tanh"), layers.Dense(3))
    kernel, bias, *rest = model.get_weights()
    kernel[0] = 0
    model.set_weights([kernel, bias, *rest])
    x = normal((64, 5)).astype("float32")
    x[:, 0] *= 1e4
    return model, x


def test_a_ruined_model_is_refused_and_the_advice_of_the_message_helps(tmp_path):
    model, x = of_two_scales()
    path = tmp_path / "m.tflite"
    with pytest.raises(ExportError, match=r"Rounding has ruined.*Received: quant") as caught:
        export_tflite(model, path, target="int8", representative_data=x)
    assert not path.exists()
    assert "quantization='int16' or 'int8_weights'" in str(caught.value)
    assert "tolerance=2" in str(caught.value)
    report = export_tflite(model, path, quantization="int8_weights", representative_data=x)
    assert report.rounding.signal_to_noise > 20
    report = export_tflite(model, path, target="int8", representative_data=x, tolerance=2)
    assert report.rounding.is_ruined
    assert any("rounding changes" in note for note in report.warnings)


def test_a_tolerance_is_a_limit_as_before(tmp_path):
    x = normal((50, 6)).astype("float32")
    with pytest.raises(ExportError, match=r"allow it by tolerance=\d.*0\.001 is allowed"):
        export_tflite(
            steep(), tmp_path / "m.tflite", target="int8", representative_data=x, tolerance=1e-3
        )


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.zeros(10, int), r"one for each sample.*\(10,\).*for 50 samples"),
        (np.full(50, 0.5), "class numbers"),
        (["a"] * 50, "class numbers"),
    ],
)
def test_labels_that_are_none(labels, match, tmp_path):
    x = normal((50, 6)).astype("float32")
    with pytest.raises(ValueError, match=match):
        export_tflite(
            steep(), tmp_path / "m.tflite", target="int8", representative_data=x, labels=labels
        )


def test_labels_for_a_model_that_decides_nothing(tmp_path):
    model = sequential((6,), layers.Dense(1))
    x = normal((50, 6)).astype("float32")
    with pytest.raises(ValueError, match=r"score for each class.*shape \(50, 1\)"):
        export_tflite(
            model, tmp_path / "m.tflite", target="int8", representative_data=x, labels=x[:, 0] > 0
        )


def test_labels_as_rows_of_weights_and_of_one_probability(tmp_path):
    x = normal((40, 6)).astype("float32")
    model = steep()
    rows = keras.utils.to_categorical(model.predict(x, verbose=0).argmax(1), 4)
    options = {"quantization": "float16", "representative_data": x}
    report = export_tflite(model, tmp_path / "m.tflite", labels=rows, **options)
    assert report.rounding.model_accuracy == 1
    yes = sequential((6,), layers.Dense(1, "sigmoid"))
    answers = yes.predict(x, verbose=0)[:, 0] >= 0.5
    report = export_tflite(yes, tmp_path / "m.tflite", labels=~answers, **options)
    assert (report.rounding.model_accuracy, report.rounding.accuracy) == (0, 0)
