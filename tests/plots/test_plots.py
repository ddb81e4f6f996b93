"""Pictures: the data in what is drawn, and the words above it."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import keras
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import keras_ntt
from keras_ntt import plots
from keras_ntt.compression.report import CompressionReport, CompressionRow
from keras_ntt.litert.runtime.benchmark import Benchmark
from keras_ntt.plots import style
from keras_ntt.plots.kernels import eigenvalues


def lines(figure):
    """Return the labelled lines of a figure's first axes: label -> (x, y)."""
    axes = figure.axes[0]
    named = {line.get_label(): line for line in axes.get_lines()}
    named |= {c.get_label(): c.lines[0] for c in axes.containers}
    return {
        label: tuple(np.asarray(part, "float64") for part in line.get_data())
        for label, line in named.items()
        if not label.startswith("_")
    }


def title(figure, axes=0):
    return figure.axes[axes].get_title(loc="left").replace("\n", " ")


def big_title(figure):
    return figure.get_suptitle().replace("\n", " ")


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def tiny(shape=(6,), units=8):
    parts = [keras.Input(shape), keras.layers.Flatten()] if len(shape) > 1 else [keras.Input(shape)]
    parts += [keras.layers.Dense(units, name="first"), keras.layers.Dense(3, name="last")]
    return keras.Sequential(parts)


@pytest.fixture(scope="module")
def history():
    keras.utils.set_random_seed(0)
    transfer = keras_ntt.NeuralTangentTransfer(tiny(), pruning_schedule=0.5, ntk_weight=1.0)
    transfer.compile(keras.optimizers.Adam(0.01))
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    return transfer.fit(x, epochs=4, batch_size=8, validation_data=x, verbose=0)


# --- curves -----------------------------------------------------------------------------------


def test_transfer_curves_are_the_history(history):
    figure = plots.transfer_curves(history)
    found = lines(figure)
    for key, label in (
        ("loss", "objective"),
        ("ntk_distance", "distance of the kernels"),
        ("val_output_distance", "distance of the outputs, validation"),
    ):
        np.testing.assert_array_equal(found[label][0], [1, 2, 3, 4])
        np.testing.assert_allclose(found[label][1], history.history[key])
    assert len(found) == 6 == len(legend(figure))
    assert figure.axes[0].get_yscale() == "log"
    first, *_, last = history.history["ntk_distance"]
    assert (
        title(figure) == f"The distance of the kernels falls by {1 - last / first:.0%} in 4 epochs"
    )
    assert lines(plots.transfer_curves(history.history)).keys() == found.keys()


def test_transfer_curves_say_if_nothing_falls():
    curves = {"loss": [1.0, 0.0], "ntk_distance": [1.0, 2.0], "output_distance": [1.0, 1.0]}
    figure = plots.transfer_curves(curves)
    assert "does not fall in 2 epochs" in title(figure)
    assert figure.axes[0].get_yscale() == "linear"  # the objective reaches 0


def test_training_curves_are_means_with_their_spread():
    runs = {"dense": [0.5, 0.9], "a": [[0.1, 0.4], [0.3, 0.4]], "b": [[0.1, 0.6], [0.1, 0.8]]}
    figure = plots.training_curves(runs, names={"a": "method a"}, label="test accuracy (%)")
    found = lines(figure)
    np.testing.assert_allclose(found["dense"], [[1, 2], [50, 90]])
    np.testing.assert_allclose(found["method a"][1], [20, 40])
    np.testing.assert_allclose(found["b"][1], [10, 70])
    bands = figure.axes[0].collections
    assert len(bands) == 2  # the dense network was trained once
    heights = {round(float(y), 6) for y in bands[0].get_paths()[0].vertices[:, 1]}
    assert heights == {round(20 - 10 * 2**0.5, 6), round(20 + 10 * 2**0.5, 6), 40.0}
    assert legend(figure) == ["dense", "method a", "b"]
    assert figure.legends[0].get_title().get_text() == "mean ± standard deviation over seeds"
    assert title(figure) == "After 2 epochs b is best, 30 points ahead of a"
    assert figure.axes[0].get_ylabel() == "test accuracy (%)"
    colours = [line.get_color() for line in figure.axes[0].get_lines()]
    assert colours[0] == style.BLACK
    assert len(set(colours)) == 3


@pytest.mark.parametrize(
    ("curves", "metric", "text"),
    [
        (
            {"a": [[0.5], [0.7]], "b": [[0.6], [0.61]]},
            "val_accuracy",
            "b and a cannot be told apart with",
        ),
        ({"a": [0.5], "b": [0.75]}, "val_accuracy", "b is 25 points ahead of a, in one run"),
        ({"a": [0.5], "b": [0.75]}, "val_loss", "a is 0.25 ahead of b, in one run"),
        ({"a": [[3.0], [3.1]], "b": [[1.0], [1.1]]}, "ntk_distance", "b is best, 2 ahead of a"),
        ({"dense": [0.9], "a": [0.5]}, "val_accuracy", "a has 50 points"),
        ({"dense": [0.9]}, "val_accuracy", "dense has 90 points"),
    ],
)
def test_titles_say_which_is_best_and_not_more(curves, metric, text):
    assert text in title(plots.training_curves(curves, metric=metric))


def test_epochs_without_a_number_are_passed_by():
    """Of two, as `TrainingDynamics` measures them with every=2."""
    nan = float("nan")
    runs = {"a": [[nan, 4.0, nan, 2.0, nan], [nan, 2.0, nan, 2.0, nan]], "b": [nan, 3, nan, 3, nan]}
    figure = plots.training_curves(runs, metric="ntk_distance")
    np.testing.assert_allclose(lines(figure)["a"], [[2, 4], [3, 2]])
    np.testing.assert_allclose(lines(figure)["b"], [[2, 4], [3, 3]])
    assert title(figure) == "After 4 epochs a is 1 ahead of b, in one run"
    assert figure.axes[0].get_xlim()[1] > 5
    assert np.isfinite(figure.axes[0].collections[0].get_paths()[0].vertices).all()


@pytest.mark.parametrize(
    ("curves", "text"),
    [
        (
            {"a": [0.1, np.nan], "b": [0.1, 0.3]},
            "After 2 epochs b has 30 points, a is NaN or infinite",
        ),
        (
            {"a": [0.1, np.nan], "b": [0.1, 0.3], "c": [0.1, 0.5], "d": [0.1, np.inf]},
            "After 2 epochs c is 20 points ahead of b, in one run, a, d are NaN or infinite",
        ),
        ({"a": [np.nan, np.nan]}, "After 2 epochs a is NaN or infinite"),
    ],
)
def test_titles_compare_numbers_only(curves, text):
    assert title(plots.training_curves(curves)) == text


def test_a_transfer_that_came_to_nothing():
    curves = {"loss": [1.0, np.nan], "ntk_distance": [1.0, np.nan], "output_distance": [1.0, 1.0]}
    figure = plots.transfer_curves(curves)
    assert title(figure) == "The distance of the kernels is NaN or infinite after 2 epochs"


@pytest.mark.parametrize("draw_in", [plots.training_curves, plots.transfer_curves])
def test_axes_of_others_keep_a_scale_of_their_own(draw_in):
    mine = Figure()
    left, right = mine.subplots(1, 2)
    left.set_xscale("log")
    right.set_xticks([1, 3])
    curves = {"loss": [3.0, 2.0, 1.0], "ntk_distance": [3, 2, 1], "output_distance": [3, 2, 1]}
    for axes in (left, right):
        draw_in(curves, ax=axes)
    assert left.get_xscale() == "log"
    assert left.get_xlim()[0] > 0
    assert right.get_xticks().tolist() == [1, 3]
    mine.savefig(io.BytesIO())


def test_training_curves_take_histories():
    model = tiny()
    model.compile("sgd", "mse")
    x, y = np.ones((4, 6), "float32"), np.ones((4, 3), "float32")
    runs = [model.fit(x, y, epochs=n, verbose=0) for n in (3, 2)]
    figure = plots.training_curves({"a": runs, "b": runs[0]}, metric="loss")
    short = np.array([run.history["loss"][:2] for run in runs])
    np.testing.assert_allclose(lines(figure)["a"][1], short.mean(axis=0))
    np.testing.assert_allclose(lines(figure)["b"][1], runs[0].history["loss"])
    assert figure.axes[0].get_ylabel() == "loss"


def test_accuracy_by_sparsity():
    results = {"a": {0.99: [0.2, 0.4], 0.9: [0.8, 0.8]}, "b": {0.9: 0.7, 0.99: [0.9, 0.9]}}
    figure = plots.accuracy_by_sparsity(results, dense=[0.9, 1.0])
    found = lines(figure)
    np.testing.assert_allclose(found["a"][1], [80, 30])
    np.testing.assert_allclose(found["b"][1], [70, 90])
    np.testing.assert_allclose(found["dense"][1], [95, 95])
    np.testing.assert_allclose(found["a"][0] / [0.1, 0.01], 1, atol=0.03)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["90%", "99%"]
    assert axes.get_xlim()[0] > 0.1 > 0.01 > axes.get_xlim()[1]  # sparser to the right
    (bars, _) = (c.lines[2][0] for c in axes.containers)
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends[1], [30 - 10 * 2**0.5, 30 + 10 * 2**0.5])
    assert title(figure) == "At 99% zeros b is best, 60 points ahead of a"


# --- kernels ----------------------------------------------------------------------------------


def test_kernel_matrices_are_in_the_order_of_classes(rng):
    full = rng.normal(size=(4, 4, 2, 2))
    other = rng.normal(size=(4, 4, 2, 2))
    figure = plots.kernel_matrices({"dense": full, "NTT": other}, labels=[1, 0, 1, 0])
    first, second, bar = figure.axes
    mean, less = ((k[:, :, 0, 0] + k[:, :, 1, 1]) / 2 for k in (full, other))
    order = [1, 3, 0, 2]
    np.testing.assert_allclose(first.images[0].get_array(), mean[order][:, order])
    np.testing.assert_allclose(second.images[0].get_array(), less[order][:, order])
    assert first.images[0].get_clim() == second.images[0].get_clim()
    np.testing.assert_allclose(
        first.images[0].get_clim(), [min(mean.min(), less.min()), max(mean.max(), less.max())]
    )
    assert next(iter(first.get_lines())).get_ydata()[0] == 1.5
    cosine = (full * other).sum() / np.sqrt((full**2).sum() * (other**2).sum())
    assert f"alignment {cosine:.2f}" in second.get_title(loc="left")
    assert bar.get_ylabel() == "kernel, mean over outputs"
    assert f"alignment of {cosine:.2f} with that of dense" in big_title(figure)


def test_classes_may_have_names(rng):
    kernel = rng.normal(size=(4, 4))
    numbers, names = (
        plots.kernel_matrices({"a": kernel}, labels=labels).axes[0]
        for labels in ([1, 0, 1, 0], ["dog", "cat", "dog", "cat"])
    )
    np.testing.assert_array_equal(names.images[0].get_array(), numbers.images[0].get_array())
    assert next(iter(names.get_lines())).get_ydata()[0] == 1.5


def test_kernels_with_scales_of_their_own(rng):
    kernels = {name: k * np.eye(3) for k, name in enumerate("abc", start=1)}
    kernels["b"] = kernels["b"] + 1.0
    figure = plots.kernel_matrices(kernels, shared=False)
    limits = [ax.images[0].get_clim() for ax in figure.axes[:3]]
    assert limits == [(0, 1), (1, 3), (0, 3)]
    assert "c is the closest in shape to that of a: 1.00" in big_title(figure)


def test_eigenvalues_of_a_full_kernel(float64, rng):
    """They are the squared singular values of the Jacobian."""
    model = tiny()
    x = rng.normal(size=(3, 6))
    kernel = keras_ntt.empirical_ntk(model, x)
    rows = keras_ntt.ntk.empirical._tangents_by_definition
    from keras_ntt.core.network import unroll

    jacobian = rows(unroll(model).bound_to(x), x).factors[0].matrix.numpy()
    values = np.linalg.svd(jacobian, compute_uv=False) ** 2
    np.testing.assert_allclose(eigenvalues(kernel), values, rtol=1e-6, atol=1e-9)
    figure = plots.eigenvalue_spectra({"dense": kernel, "half": np.asarray(kernel) / 2})
    found = lines(figure)
    np.testing.assert_allclose(found["dense"][1], values, rtol=1e-6)
    np.testing.assert_allclose(found["half"], [found["dense"][0], found["dense"][1] / 2])
    counts = [(v > values[0] / 100).sum() for v in (values / 2, values)]
    assert title(figure) == (
        "Eigenvalues above 1% of the largest of dense: half has {}; dense has {}".format(*counts)
    )


def test_spectra_leave_rounding_out_and_name_the_closest():
    reference, near, far = (np.diag([s * 4.0, s * s / 100, 1e-9]) for s in (1, 3, 10))
    figure = plots.eigenvalue_spectra(
        {"far": far, "dense": reference, "near": near}, reference="dense"
    )
    np.testing.assert_allclose(lines(figure)["near"], [[1, 2], [12, 0.09]])
    assert title(figure).endswith("of dense: far has the most, 2; dense has 1")


# --- masks ------------------------------------------------------------------------------------


def test_mask_maps_show_pixels_and_matrices():
    model = tiny((2, 3, 2))
    first = np.zeros((12, 8), bool)
    first[0, :3] = first[1, 0] = first[11, :] = True  # pixel (0, 0) by both channels, (1, 2) by one
    last = np.zeros((8, 3), bool)
    last[2, 1] = True
    kernels = [layer.kernel.path for layer in model.layers if layer.weights]
    keras_ntt.apply_masks(model, dict(zip(kernels, (first, last), strict=True)))
    figure = plots.mask_maps(model)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), [[4, 0, 0], [0, 0, 8]])
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), last)
    assert figure.axes[0].get_title(loc="left") == "first\n12 of 96 kept"
    assert big_title(figure) == (
        "1 of 6 pixels have half of the first layer's weights; 4 are read by none"
    )
    keras_ntt.strip_pruning(model)  # then by exact zeros
    stripped = plots.mask_maps(model)
    np.testing.assert_array_equal(stripped.axes[1].images[0].get_array(), last)


def test_mask_maps_of_convolutions_and_large_kernels(cnn):
    model = keras_ntt.prune_at_init(cnn(), sparsity=0.75, saliency="random")
    masks = list(keras_ntt.get_masks(model).values())
    figure = plots.mask_maps(model)
    np.testing.assert_array_equal(
        figure.axes[0].images[0].get_array(), masks[0].reshape(3 * 3 * 2, 4)
    )
    assert "75% of the weights of 2 layers" in big_title(figure)
    wide = np.zeros((250, 4), bool)
    wide[:3, 0] = True
    figure = plots.mask_maps(
        {"a/kernel": wide, "b/kernel": masks[1], "c/kernel": masks[1]}, limit=2
    )
    blocks = figure.axes[0].images[0].get_array()
    assert blocks.shape == (84, 4)  # of 3 rows, the last of 1
    np.testing.assert_array_equal(blocks[:, 0], [1.0, *[0.0] * 83])
    assert "the first 2 are shown" in big_title(figure)


def test_sparsity_by_layer():
    dense = tiny()
    even = keras_ntt.prune_at_init(dense, sparsity=0.75, saliency="random", allocation="layerwise")
    own = keras_ntt.prune_at_init(
        dense, sparsity=0.75, saliency="random", allocation={"first": 0.875, "last": 0.0}
    )
    figure = plots.sparsity_by_layer({"even": even, "own": own})
    found = lines(figure)
    np.testing.assert_allclose(found["even"][0], [25, 25])
    np.testing.assert_allclose(found["own"][0], [12.5, 100])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["first", "last"]
    assert title(figure) == "even keeps 25% of every layer; own keeps 12% of first and 100% of last"
    three = plots.sparsity_by_layer({"dense": dense, "even": even, "own": own})
    assert title(three) == "Kept of first: from 12.5% (own) to 100% (dense)"
    alone = plots.sparsity_by_layer(keras_ntt.sparsity_report(own))
    assert [t.get_text() for t in alone.axes[0].texts] == ["6 of 48", "24 of 24"]


# --- files ------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_reports(tmp_path):
    reports = {}
    for sparsity in (0.9, 0.5):
        model = keras_ntt.prune_at_init(tiny(units=64), sparsity=sparsity, saliency="random")
        reports[sparsity] = keras_ntt.export_tflite(model, tmp_path / "a.tflite")
    figure = plots.size_by_sparsity(reports)
    found = lines(figure)
    np.testing.assert_allclose(found["the file"][0], [0.5, 0.1])
    np.testing.assert_allclose(
        found["the file"][1], [reports[0.5].size / 1000, reports[0.9].size / 1000]
    )
    np.testing.assert_allclose(
        found["entropy limit"][1], [reports[0.5].limit / 1000, reports[0.9].limit / 1000]
    )
    times = reports[0.9].dense.raw / reports[0.9].size
    assert title(figure) == f"At 90% zeros the file is {times:.3g} times smaller than dense float32"
    packed = lines(plots.size_by_sparsity({"float32": reports}, packed=True))
    assert packed.keys() == {"float32", "dense float32"}
    np.testing.assert_allclose(packed["float32"][1][0], reports[0.5].sizes.gzip / 1000)
    with pytest.raises(ValueError, match="no measured latency"):
        plots.latency_by_sparsity(reports)


def test_sizes_as_numbers():
    figure = plots.size_by_sparsity({"f": {0.9: 2000, 0.5: 9000}, "i": {0.9: 1000}})
    np.testing.assert_allclose(lines(figure)["f"], [[0.5, 0.1], [9, 2]])
    assert title(figure) == "At 90% zeros i has 1.0 kB"


def test_latency_with_quartiles():
    def measured(low, speedup, high):
        return Benchmark("a CPU", 1.0, speedup, speedup, low, high, None, None)

    row = {0.8: measured(0.4, 0.5, 0.6), 0.9: measured(0.9, 1.2, 1.4), 0.99: measured(4, 5, 7)}
    figure = plots.latency_by_sparsity(row)
    np.testing.assert_allclose(lines(figure)["the file"][1], [0.5, 1.2, 5])
    (bars,) = (c.lines[2][0] for c in figure.axes[0].containers)
    np.testing.assert_allclose(bars.get_segments()[2][:, 1], [4, 7])
    assert title(figure) == "The file is faster than dense from 99% zeros, 5 times at 99%"
    losing = plots.latency_by_sparsity({"a": {0.5: 1.5, 0.9: 0.5}, "b": {0.5: 0.5, 0.9: 2.0}})
    assert title(losing) == (
        "a: not faster than dense at 90% zeros; b: faster than dense from 90% zeros, 2 times at 90%"
    )


def test_bytes_by_part_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.tflite"
    keras_ntt.export_tflite(tiny(units=64), path)
    report = keras_ntt.inspect_tflite(path)
    figure = plots.bytes_by_part({"a": report, "b": report}, code={"b": 11_000})
    widths = {
        bars.get_label(): [patch.get_width() for patch in bars]
        for bars in figure.axes[0].containers
    }
    kept = {name: size for name, size in report.parts.items() if size}
    assert list(widths) == [*kept, "code that unpacks"]
    for name, size in kept.items():
        np.testing.assert_allclose(widths[name], [size / 1000] * 2)
    assert widths["code that unpacks"] == [0, 11]
    total = path.stat().st_size / 1000
    ends = [max(p.get_x() + p.get_width() for p in figure.axes[0].patches if p.get_width())]
    np.testing.assert_allclose(ends, total + 11)
    assert title(figure).startswith(f"a: {total:.1f} kB; b: {total + 11:.1f} kB")


def searched(**options):
    rows = [CompressionRow(0.0, None, size=4000, agreement=1.0, drop=0.0)]
    rows.append(CompressionRow(0.5, None, size=2000, agreement=0.99, drop=0.01))
    rows.append(CompressionRow(0.9, None, size=500, agreement=0.8, drop=0.2))
    rows.append(CompressionRow(0.0, None, channels=0.5, size=1000, agreement=0.9, drop=0.1))
    rows.append(CompressionRow(0.0, "int8", note="not written"))
    given = {"max_drop": 0.02, "target": "size", "held_out": 100, **options}
    return CompressionReport(tiny(), tuple(rows), rows[1], **given)


def test_sizes_and_agreements_are_those_of_the_rows():
    figure = plots.size_by_agreement(searched())
    found = lines(figure)
    np.testing.assert_allclose(found["zeros, float32"], [[2, 0.5], [99, 80]])
    np.testing.assert_allclose(found["fewer channels, float32"], [[1], [90]])
    np.testing.assert_allclose(found["best"], [[2], [99]])
    np.testing.assert_allclose(found["what may be lost"][1], 98)
    assert title(figure) == "50 % zeros, float32: 2.0 times smaller than the dense float32 file"
    assert {"50%", "90%"} <= {text.get_text() for text in figure.axes[0].texts}


# --- all --------------------------------------------------------------------------------------

EVERY = {
    "transfer_curves": {"loss": [1.0], "ntk_distance": [1.0], "output_distance": [1.0]},
    "training_curves": {"a": [0.1, 0.2]},
    "accuracy_by_sparsity": {"a": {0.5: 0.1}},
    "kernel_matrices": {"a": np.eye(2), "b": np.eye(2)},
    "eigenvalue_spectra": {"a": np.eye(2)},
    "mask_maps": {"a/kernel": np.eye(2, dtype=bool)},
    "sparsity_by_layer": None,
    "size_by_sparsity": {0.5: 10},
    "latency_by_sparsity": {0.5: 2.0},
    "bytes_by_part": {"a": {"weights": 10, "names": 5}},
    "size_by_agreement": None,
}


def draw(name, **options):
    made = {"sparsity_by_layer": lambda: keras_ntt.sparsity_report(tiny())}
    made["size_by_agreement"] = searched
    given = made[name]() if name in made else EVERY[name]
    return getattr(plots, name)(given, **options)


def test_every_picture_is_listed():
    assert sorted(EVERY) == sorted(plots.__all__)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.few(4)
def test_pictures_change_no_settings_and_are_drawn(name):
    before = mpl.rcParams.copy()
    figure = draw(name, title="what I say")
    assert mpl.rcParams.copy() == before
    assert isinstance(figure, Figure)
    assert "what I say" in (title(figure), big_title(figure))
    png = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 3000
    assert draw(name)._repr_png_() != png  # another title


NAMED = {
    "training_curves": lambda a, b: {a: [0.1, 0.2], b: [0.1, 0.3]},
    "accuracy_by_sparsity": lambda a, b: {a: {0.5: 0.1}, b: {0.5: 0.2}},
    "eigenvalue_spectra": lambda a, b: {a: np.eye(2), b: np.eye(2)},
    "sparsity_by_layer": lambda a, b: dict.fromkeys((a, b), keras_ntt.sparsity_report(tiny())),
    "size_by_sparsity": lambda a, b: {a: {0.5: 10}, b: {0.5: 20}},
    "latency_by_sparsity": lambda a, b: {a: {0.5: 2.0}, b: {0.5: 3.0}},
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("names", [("_mine", "b"), ("_a", "_b"), ("", "b"), ("$5", "$7")], ids=str)
def test_every_name_is_in_the_legend(name, names):
    figure = getattr(plots, name)(NAMED[name](*names))
    assert [text for text in legend(figure) if text != "as fast as dense"] == list(names)
    mine = Figure()
    axes = mine.subplots()
    axes.plot([0.5, 0.6], [1, 2], label="theirs")
    getattr(plots, name)(NAMED[name](*names), ax=axes)
    found = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text for text in found if text != "as fast as dense"] == ["theirs", *names]


@pytest.mark.parametrize("name", ["training_curves", "sparsity_by_layer", "eigenvalue_spectra"])
def test_dollars_are_no_mathematics(name):
    """In SVG a text is one element; what Matplotlib sets as mathematics is in pieces."""
    figure = getattr(plots, name)(NAMED[name]("cost $5", "cost $7"), title="from $5 to $7")
    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(content, format="svg")
    for text in ("cost $5", "cost $7", "from $5 to $7"):
        assert f">{text}</text>" in content.getvalue()
    assert ">$" not in content.getvalue()  # the ticks of logarithmic axes are mathematics


def test_names_that_would_be_wrong_mathematics():
    figure = plots.training_curves({r"$\lambda_": [0.1, 0.2], "b$": [0.1, 0.3]})
    assert figure._repr_png_().startswith(b"\x89PNG")
    masks = plots.mask_maps({r"$\lambda_/b$/kernel": np.eye(2), r"$\mu_/b$/kernel": np.eye(2)})
    assert masks._repr_png_().startswith(b"\x89PNG")
    kernels = plots.kernel_matrices({r"$\lambda_": np.eye(2), "b$": np.eye(2)})
    assert kernels._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("kernel_matrices", "mask_maps")])
def test_pictures_go_into_axes_of_others(name):
    mine = Figure()
    axes = mine.subplots(1, 2)
    assert draw(name, ax=axes[1]) is mine
    assert axes[1].get_title(loc="left")
    assert not axes[0].has_data()
    assert not mine.legends


@pytest.mark.parametrize(
    ("name", "given", "options", "text"),
    [
        ("transfer_curves", {"loss": [1.0]}, {}, "history must have the curves"),
        (
            "transfer_curves",
            {"loss": [], "ntk_distance": [], "output_distance": []},
            {},
            "Received: 0 epochs",
        ),
        ("training_curves", {}, {}, "curves must map names"),
        ("training_curves", [0.1], {}, "curves must map names"),
        ("training_curves", {"a": [[1.0], [1.0, 2.0]]}, {}, "curves of 'a' must be"),
        ("training_curves", {"a": "b"}, {}, "curves of 'a' must be"),
        ("training_curves", {"a": []}, {}, "curves of 'a' must be"),
        ("accuracy_by_sparsity", {"a": {1.0: 0.1}}, {}, "in \\[0, 1\\)"),
        (
            "accuracy_by_sparsity",
            {"a": {"0.9": 0.1}},
            {},
            "a number.*Received: sparsities \\['0.9'",
        ),
        ("accuracy_by_sparsity", {"a": [0.3, 0.4]}, {}, "Received: sparsities \\['a list'"),
        ("accuracy_by_sparsity", {"a": {0.5: "b"}}, {}, "'a' must have a number"),
        ("accuracy_by_sparsity", {"a": {0.5: []}}, {}, "'a' must have a number"),
        ("eigenvalue_spectra", {"a": np.zeros((2, 2)), "b": np.eye(2)}, {}, "without: \\['a'\\]"),
        ("kernel_matrices", {"a": np.eye(2), "b": np.eye(3)}, {}, "of the same samples"),
        ("kernel_matrices", {"a": np.eye(2)}, {"labels": [1]}, "labels must be one class"),
        ("kernel_matrices", {"a": np.ones(2)}, {}, "must be \\[n1, n2\\]"),
        ("eigenvalue_spectra", {"a": np.ones((2, 3))}, {}, "with themselves"),
        ("eigenvalue_spectra", {"a": [[0.0, 1.0], [0.0, 0.0]]}, {}, "symmetric"),
        ("eigenvalue_spectra", {"a": np.eye(2)}, {"reference": "b"}, "one of 'a'"),
        ("mask_maps", {}, {}, "no masks to draw"),
        ("mask_maps", {"a": np.eye(2)}, {"image_shape": (3, 1)}, "image_shape must be"),
        ("mask_maps", {"a": np.eye(2)}, {"limit": 0}, "limit must be"),
        ("sparsity_by_layer", {}, {}, "one model or report"),
        ("size_by_sparsity", {1.0: 10}, {}, "sparsities in"),
        ("size_by_sparsity", {}, {}, "sparsities in"),
        ("latency_by_sparsity", {"a": {}}, {}, "sparsities in"),
        ("size_by_agreement", {}, {}, "report must be what compress returned"),
        ("bytes_by_part", {}, {}, "one or more reports"),
        ("bytes_by_part", {"a": {"names": 1}, "b": {"weights": 1}}, {}, "of the same parts"),
        ("bytes_by_part", {"a": {"names": 1}}, {"code": {"b": 1}}, "none but their names"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, given, options, text):
    with pytest.raises(ValueError, match=text):
        getattr(plots, name)(given, **options)


def test_metric_that_a_history_lacks(history):
    with pytest.raises(ValueError, match="metric must be a curve that the history of 'a' has"):
        plots.training_curves({"a": history}, metric="accuracy")


@pytest.mark.long
def test_matplotlib_is_imported_when_something_is_drawn():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from keras_ntt import plots\n"
        "try:\n"
        "    plots.training_curves({'a': [0.1]})\n"
        "except ImportError as error:\n"
        "    assert \"pip install 'keras-ntt[plots]'\" in str(error), error\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Machado, Oliveira & Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", 2009: severity 1, on linear RGB.
SEEN = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("eyes", ["usual", *SEEN])
def test_colours_can_be_told_apart(eyes):
    """By at least 10 in CIE Lab, several times what is just noticeable."""
    seen = np.asarray(SEEN.get(eyes, np.eye(3)))
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]

    def lab(colour):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz = to_xyz @ np.clip(seen @ linear, 0, 1) / [0.9505, 1, 1.089]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    colours = [lab(c) for c in (style.BLACK, *style.COLOURS)]
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)]
    assert min(apart) > 10


def test_curves_can_be_told_apart_in_grey():
    styles = style.styles_of([f"method {i}" for i in range(20)], "dense")
    assert len({(s.dash, s.marker) for s in styles.values()}) == len(styles)
    assert style.styles_of("ab", "a") == {**style.styles_of("b"), "a": styles["dense"]}
