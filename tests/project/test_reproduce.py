"""The reproduction script on a few images: what it measures, that it resumes, and its tables."""

from __future__ import annotations

import dataclasses
import gzip
import json

import numpy as np
import pytest

from benchmarks.accuracy import experiment, transfer_losses


@pytest.fixture(scope="module")
def reproduce():
    # Late, because it turns oneDNN on for its process.
    from benchmarks.accuracy import reproduce

    return reproduce


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype("uint8").tobytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten classes of images, told apart by a bright row, in four IDX files."""
    folder, rng = tmp_path_factory.mktemp("idx"), np.random.default_rng(0)
    for stem, n in (("train", 320), ("t10k", 100)):
        labels = np.arange(n) % 10
        pictures = rng.integers(0, 60, (n, 28, 28))
        pictures[np.arange(n), 2 * labels + 4] = 255
        content = gzip.compress(idx(pictures))
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(content)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def words(images, folder, *more):
    return [
        *(
            "--idx-dir",
            str(images),
            "--output",
            str(folder / "work"),
            "--seeds",
            "2",
            "--epochs",
            "2",
        ),
        *("--densities", "0.05", "--allocations", "layerwise", "--transfer-epochs", "1"),
        *("--score-samples", "64", *more),
    ]


def test_images_are_standardized_by_those_to_train_on(reproduce, images):
    data = reproduce.load("fashion_mnist", idx_dir=images, tfds_dir=None, split="test")
    assert data.x_train.shape == (320, 28, 28, 1)
    assert data.y_test.tolist() == [i % 10 for i in range(100)]
    assert data.x_train.mean() == pytest.approx(0, abs=1e-5)
    assert data.x_train.std() == pytest.approx(1, abs=1e-5)
    bright = data.x_train.max()
    assert (data.x_train[3, 10] == bright).all()
    assert (data.x_test[3, 10] == bright).all()
    assert data.x_train[3, 0].max() < bright / 3


@pytest.mark.long
def test_runs_that_are_done_are_not_repeated(reproduce, images, tmp_path, capsys):
    runs = tmp_path / "work" / "runs"
    methods = ("dense", "ntt-kept", "erk-random")
    first = words(images, tmp_path, "--methods", *methods[:2])
    assert reproduce.main(first) == 0
    files = {p: p.stat().st_mtime_ns for p in runs.iterdir()}
    assert len(files) == 4
    assert reproduce.main(words(images, tmp_path, "--methods", *methods)) == 0
    assert "6 runs, 4 done." in capsys.readouterr().out
    for path, time in files.items():
        assert path.stat().st_mtime_ns == time
    results = [json.loads(p.read_text()) for p in runs.iterdir()]
    assert len(results) == 6
    sizes = {784 * 300: 11760, 300 * 100: 1500, 100 * 10: 50}
    for result in results:
        method, kept = result["settings"]["method"], list(result["kept"].values())
        if method == "dense":
            assert kept == []
        elif method == "erk-random":
            assert sum(kept) == round(266_200 * 0.05)
        else:
            assert kept == list(sizes.values())
        if method == "ntt-kept":
            assert result["transfer"]["steps"] == 5
            assert [row["step"] for row in result["transfer"]["curve"]] == [5]
    assert not any((tmp_path / "work" / "unfinished").iterdir())
    (tmp_path / "work.md").unlink()
    assert reproduce.main(words(images, tmp_path, "--only-tables")) == 0
    assert len(list(runs.iterdir())) == 6
    table = (tmp_path / "work.md").read_text()
    assert json.loads((tmp_path / "work.json").read_text()) == reproduce.read(runs)
    dense = [100 * r["accuracy"][1] for r in results if r["settings"]["method"] == "dense"]
    (row,) = [line for line in table.splitlines() if "| dense |" in line]
    assert row.endswith(
        f"| 2 | {row.split('|')[-3].strip()} | {np.mean(dense):.1f} ± {np.std(dense, ddof=1):.1f} |"
    )


def test_runs_are_listed_and_told_apart(reproduce, images, tmp_path, capsys):
    assert reproduce.main(words(images, tmp_path, "--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "26 runs, 0 done."
    assert len(set(lines[1:])) == 26
    assert not (tmp_path / "work" / "runs").exists()
    reproduce.main(words(images, tmp_path, "--list", "--label-fraction", "0.1"))
    assert not {*lines[1:]} & {*capsys.readouterr().out.splitlines()[1:]}


MOVING = ("rigl", "set-balanced", "granet", "gradual")


def test_settings_of_masks_that_move_come_from_validation_images(reproduce, images, tmp_path):
    grid = ("--methods", "rigl", "--frequency", "2", "9", "--end", "0.5", "--allocations", "erk")
    options = reproduce.arguments([*words(images, tmp_path, *grid), "--split", "validation"])
    runs = list(reproduce.plan(options))
    assert [(r.seed, r.frequency, r.end, r.begin) for r in runs] == [
        *((0, 2, 0.5, 0.0), (0, 9, 0.5, 0.0), (1, 2, 0.5, 0.0), (1, 9, 0.5, 0.0))
    ]
    accuracies = [0.5, 0.6, 0.9, 0.6]  # of the seeds together the first is better
    results = [
        {"settings": dataclasses.asdict(run), "accuracy": [0.0, accuracy]}
        for run, accuracy in zip(runs, accuracies, strict=True)
    ]
    tuned = words(images, tmp_path, "--methods", "rigl", "--allocations", "erk")
    options = reproduce.arguments([*tuned, "--tuned", "lenet-300-100"])
    assert {run.frequency for run in reproduce.plan(options, results)} == {2}
    with pytest.raises(SystemExit, match="No run on validation images"):
        list(reproduce.plan(options, []))


@pytest.mark.long
def test_masks_that_move_end_at_the_density(reproduce, images, tmp_path):
    more = ("--methods", *MOVING, "--frequency", "2", "--allocations", "erk", "--seeds", "1")
    assert reproduce.main(words(images, tmp_path, *more)) == 0
    results = reproduce.read(tmp_path / "work" / "runs")
    assert {result["settings"]["method"] for result in results} == set(MOVING)
    for result in results:
        weights = 28 * 28 * 300 + 300 * 100 + 100 * 10
        assert sum(result["kept"].values()) == pytest.approx(0.05 * weights, abs=3)


@pytest.mark.long
def test_found_networks_serve_other_ways_to_train(reproduce, images, tmp_path):
    found = tmp_path / "work" / "found"
    command = words(images, tmp_path, "--methods", "ntt-all", "snip", "--seeds", "1")
    assert reproduce.main(command) == 0
    files = {path: path.read_bytes() for path in found.iterdir()}
    assert len(files) == 3  # of the transfer, which takes long; weights, masks and notes
    assert reproduce.main([*command, "--label-fraction", "0.2", "--epochs", "3"]) == 0
    assert {path: path.read_bytes() for path in found.iterdir()} == files
    results = reproduce.read(tmp_path / "work" / "runs")
    assert len(results) == 4
    kept = {tuple(result["kept"].values()) for result in results}
    assert kept == {(11760, 1500, 50)}
    whole, few = (
        next(r for r in results if r["settings"]["method"] == "ntt-all" and len(r["accuracy"]) == n)
        for n in (2, 3)
    )
    assert whole["transfer"] == few["transfer"]


@pytest.mark.long
def test_patterns_share_the_zeros_out(reproduce, images, tmp_path):
    more = ["--methods", "dense", "ntt-all", "random", "erk-random", "--patterns", "1:4", "4x1"]
    assert reproduce.main([*words(images, tmp_path, *more), "--seeds", "1"]) == 0
    kept = {}
    for result in reproduce.read(tmp_path / "work" / "runs"):
        s = result["settings"]
        kept[s["method"], s["pattern"], s["density"]] = list(result["kept"].values())
    quarter, blocks = [58_800, 7500, 250], [11_760, 1500, 52]  # 4 x 13 of 1,000 entries
    assert kept == {
        ("dense", "none", 1.0): [],
        ("ntt-all", "1:4", 0.25): quarter,
        ("random", "1:4", 0.25): quarter,
        ("ntt-all", "4x1", 0.05): blocks,
        ("random", "4x1", 0.05): blocks,
    }


def test_parts_are_all_of_the_runs(reproduce, images, tmp_path, capsys):
    def listed(*more):
        reproduce.main(words(images, tmp_path, "--list", *more))
        return capsys.readouterr().out.splitlines()[1:]

    parts = [listed("--part", f"{i}/3") for i in (1, 2, 3)]
    assert sorted(line for part in parts for line in part) == sorted(listed())


def test_tables_are_ranked_and_put_into_a_report(reproduce, tmp_path):
    settings = {
        **{"dataset": "fashion_mnist", "network": "conv-4", "split": "test", "label_fraction": 1.0},
        **{"epochs": 2, "transfer_epochs": 0, "allocation": "layerwise", "pattern": "none"},
        **{"density": 0.03, "learning_rate": 0.0, "ntk_weight": 0.0},
    }
    other = {"method": "ntt-all", "transfer_epochs": 5, "learning_rate": 3e-3, "ntk_weight": 1e-3}
    decay = {**other, "learning_rate": 5e-4, "l2": 1e-6}
    runs = [
        {"settings": {**settings, **own}, "accuracy": accuracy, "environment": {"keras": "3"}}
        for own, accuracy in (
            ({"method": "random"}, [0.5, 0.6]),
            ({"method": "random"}, [0.5, 0.8]),
            ({**other, "l2": 1e-5}, [0.4, 0.9]),
            (decay, [0.3, 0.8]),
        )
    ]
    report = tmp_path / "report.md"
    report.write_text("# Before\n<!-- tables -->\nold\n<!-- tables -->\nAfter\n")
    shown = reproduce.insert(reproduce.tables(runs), report)
    assert "old" not in shown
    lines = [line for line in shown.splitlines() if line]
    assert lines[:3] == ["# Before", "<!-- tables -->", "### conv-4 on fashion_mnist"]
    assert lines[5:8] == [
        "| 0.03 | layerwise | ntt-all (Adam 0.003) | 5 | 1 | 40.0 | 90.0 |",
        "| 0.03 | layerwise | ntt-all (L2 1e-06) | 5 | 1 | 30.0 | 80.0 |",
        "| 0.03 | layerwise | random |  | 2 | 50.0 ± 0.0 | 70.0 ± 14.1 |",
    ]
    assert lines[-3:] == ["*keras 3*", "<!-- tables -->", "After"]
    report.write_text("nothing")
    with pytest.raises(ValueError, match="needs two lines"):
        reproduce.insert("", report)


@pytest.fixture
def transfers(reproduce):
    """Two seeds of a transfer of two epochs of five steps, whose losses are known step by step."""
    loss = np.array([[9.0, 7, 5, 3, 1, 0.9, 0.7, 0.5, 0.3, 0.1], [2.0, 4, 4, 2, 3, 2, 1, 1, 2, 1]])
    results = []
    for seed, losses in enumerate(loss):
        rows = [
            {"step": 5 * e + n, "loss": losses[5 * e : 5 * e + n].mean()}
            for e, n in ((0, 1), (0, 3), (0, 4), (1, 2), (1, 4))
        ]
        for row in rows:
            row.update(ntk_distance=100 * row["loss"], output_distance=row["loss"] / 100)
        run = experiment.Run(
            **{"dataset": "fashion_mnist", "network": "conv-4", "method": "ntt-all", "seed": seed},
            **{"allocation": "global", "pattern": "none", "density": 0.03, "split": "test"},
            **{"label_fraction": 1.0, "epochs": 3, "transfer_epochs": 2, "learning_rate": 5e-4},
            **{"ntk_weight": 1e-3, "l2": 1e-5},
        )
        settings = dataclasses.asdict(run)
        transfer = {"curve": rows, "steps": 10}
        results.append({"settings": settings, "transfer": transfer})
        results.append({"settings": {**settings, "epochs": 7}, "transfer": transfer})
    return loss, results


def test_losses_are_means_between_the_rows_of_a_curve(transfers):
    loss, results = transfers
    parts = transfer_losses.parts(results[0]["transfer"]["curve"], 5.0)
    assert [(part.start, part.stop) for part in parts] == [(0, 1), (1, 3), (3, 4), (5, 7), (7, 9)]
    for start, stop, means in parts:
        expected = loss[0, start:stop].mean()
        assert means["loss"] == pytest.approx(expected)
        assert means["ntk_distance"] == pytest.approx(100 * expected)
        assert means["output_distance"] == pytest.approx(expected / 100)


def test_losses_are_tabulated_and_drawn_once_a_transfer(reproduce, transfers, tmp_path):
    loss, results = transfers
    text = reproduce.losses(results)
    (row,) = [line for line in text.splitlines() if "conv-4" in line]
    first, last = loss[:, 0], loss[:, 7:9].mean(1)  # 9 and 2, 0.4 and 1.5
    assert row.split(" | ")[1:8] == [
        "0.03",
        "global",
        "ntt-all",
        "10",
        "2",
        "5.50 ± 4.95",
        "0.950 ± 0.778",
    ]
    assert (first.mean(), first.std(ddof=1)) == pytest.approx((5.5, 4.9497), abs=1e-4)
    assert (last.mean(), last.std(ddof=1)) == pytest.approx((0.95, 0.7778), abs=1e-4)
    assert reproduce.draw(results, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    dense = {"settings": {**results[0]["settings"], "method": "dense"}}
    assert reproduce.losses([dense]) == ""
    assert not reproduce.draw([dense], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# Kernels and biases. Conv-4 without padding: 32 -> 30 -> 28 -> 14 -> 12 -> 10 -> 5.
SIZES = {
    "lenet-300-100": (784 * 300, 300 * 100, 1000, 300 + 100 + 10),
    "lenet-5-caffe": (500, 25_000, 800 * 500, 5000, 20 + 50 + 500 + 10),
    "conv-4": (27 * 64, 576 * 64, 576 * 128, 1152 * 128, 3200 * 512, 5120, 64 * 6 + 512 + 10),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_published_sizes(reproduce, name):
    model = experiment.network(name, (32, 32, 3) if name == "conv-4" else (28, 28, 1))
    assert model.output_shape == (None, 10)
    assert model.count_params() == sum(SIZES[name])


@pytest.mark.long
def test_known_results_are_not_repeated(reproduce, images, tmp_path, capsys):
    first = words(images, tmp_path / "first", "--methods", "dense", "erk-random")
    assert reproduce.main(first) == 0
    known = tmp_path / "first" / "work.json"
    again = words(images, tmp_path / "again", "--methods", "dense", "random", "--known", str(known))
    capsys.readouterr()
    assert reproduce.main(again) == 0
    assert "4 runs, 2 done." in capsys.readouterr().out
    results = json.loads((tmp_path / "again" / "work.json").read_text())
    assert sorted(r["settings"]["method"] for r in results) == sorted(
        ["dense", "erk-random", "random"] * 2
    )
    for result in json.loads(known.read_text()):
        assert result in results


@pytest.mark.long
def test_only_1x1_convolutions_of_the_separable_network_are_pruned(reproduce, images, tmp_path):
    command = words(images, tmp_path, "--networks", "separable", "--seeds", "1", "--epochs", "1")
    assert reproduce.main([*command, "--methods", "ntt-all", "random"]) == 0
    for result in reproduce.read(tmp_path / "work" / "runs"):
        assert list(result["kept"].values()) == [102, 410, 819]  # of 2048, 8192 and 16384
