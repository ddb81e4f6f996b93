"""What Keras does with a pruned model: each row of the page, for each way of pruning."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from helpers import keras_behaviour as page
from helpers.paths import ROOT

import keras_ntt

DOCS = ROOT / "docs"
PAIRS = [(name, maker) for name, case in page.CASES.items() for maker in case.makers]
NEEDS = {
    "quantized": hasattr(keras.layers.Dense, "quantize"),
    "litert": "litert" in (keras.Model.export.__doc__ or ""),
    "swapped_averages": hasattr(keras.callbacks, "SwapEMAWeights"),
}


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
@pytest.mark.parametrize(("name", "maker"), PAIRS)
@pytest.mark.few(5)
def test_a_row_of_the_page_is_what_keras_does(name, maker, tmp_path):
    if not NEEDS.get(name, True):
        pytest.skip("an older Keras")
    case = page.CASES[name]
    assert case.run(page.MAKERS[maker](), tmp_path) == case.wanted


def test_the_page_is_made_of_the_rows():
    path = DOCS / "keras_behaviour.md"
    assert path.read_text() == page.markdown(), "python tests/helpers/keras_behaviour.py > docs/..."


def warned_of(model):
    model.compile("sgd", "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback = keras_ntt.UpdatePruningStep()
        model.fit(*page.data(), epochs=1, callbacks=[callback], verbose=0)
    return [str(w.message) for w in caught if "keras_ntt" in str(w.message)]


@pytest.mark.parametrize("maker", ["apply_masks", "prune_low_magnitude"])
def test_lora_beside_masks_is_warned_of(maker):
    model = page.MAKERS[maker]()
    assert warned_of(model) == []
    model.layers[0].enable_lora(2)
    [message] = warned_of(model)
    assert "LoRA" in message
    assert model.layers[0]._kernel.path in message


def test_the_best_weights_of_a_growing_schedule_come_back_under_the_last_masks():
    """A batch without zeros was the best; its weights return with the zeros of the end."""
    schedule = keras_ntt.PolynomialDecay(0.0, 0.75, 1, 8, power=1, frequency=1)
    model = keras_ntt.prune_low_magnitude(page.dense(), schedule)
    first = [v.numpy() for v in page.kernels(model)]
    best = keras.callbacks.EarlyStopping("loss", mode="max", patience=5, restore_best_weights=True)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(*page.data(), batch_size=4, epochs=3, callbacks=[best], verbose=0)
    masks = list(keras_ntt.get_masks(model).values())
    for variable, mask, before in zip(page.kernels(model), masks, first, strict=True):
        assert np.isclose(1 - mask.mean(), 0.75, atol=0.05)
        np.testing.assert_array_equal(variable.numpy() != 0, mask & (before != 0))
