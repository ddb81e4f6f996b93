"""What happens to masks while a network trains: SNIPER, GraNet; and what is watched meanwhile."""

from __future__ import annotations

import csv
import functools
import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt
from keras_ntt import SNIPER, GraNet, TrainingDynamics, effective_gradient_flow, get_masks
from keras_ntt.masks.policies import choose_weights
from keras_ntt.pruning.dynamics import ntk_alignment, ntk_distance
from keras_ntt.pruning.granet import exchange
from keras_ntt.saliency import NetworkSaliency

SIZES = [48, 24]


def mlp(compiled=True, **options):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(3)])
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, **{"jit_compile": False, **options})
    return model


def data(n=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)


def kernels(model):
    return [keras.ops.convert_to_numpy(v) for v in choose_weights(model).weights]


def masks_of(model):
    return [m.copy() for m in get_masks(model).values()]


class Watch(keras.callbacks.Callback):
    """Notes masks and kernels after each batch, and at the beginning of each epoch."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append((masks_of(self.model), kernels(self.model)))

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append((masks_of(self.model), kernels(self.model)))


def total(masks):
    return sum(int(m.sum()) for m in masks)


# --- SNIPER -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_sniper_lets_entries_come_back_with_their_initial_values(options):
    model, watch = mlp(**options), Watch()
    initial = kernels(model)
    sparsities = {0: 0.5, 2: 0.25, 3: 0.0}
    model.fit(*data(), epochs=5, callbacks=[SNIPER(sparsities, data()), watch], verbose=0)
    masks = [m for m, _ in watch.epochs]
    assert [total(m) for m in masks] == [36, 36, 54, 72, 72]
    for before, after in itertools.pairwise(masks):
        for a, b in zip(before, after, strict=True):
            assert not (a & ~b).any()
    _, trained = watch.batches[1]  # after epoch 1, of one batch
    for old, new, first, now, start in zip(
        masks[1], masks[2], trained, watch.epochs[2][1], initial, strict=True
    ):
        back = new & ~old
        assert back.any()
        np.testing.assert_array_equal(now[back], start[back])
        np.testing.assert_array_equal(now[old], first[old])
        assert (first[old] != start[old]).any()
    for mask, values in watch.batches:
        for m, v in zip(mask, values, strict=True):
            assert not v[~m].any()
    assert all((a != b).any() for a, b in zip(kernels(model), initial, strict=True))


class Given(NetworkSaliency):
    """Scores of which those of the second weight are far lower."""

    def __call__(self, subject):
        rng = np.random.default_rng(0)
        return [
            tf.constant(rng.random(w.shape) + 2 * (i == 0)) for i, w in enumerate(subject.weights)
        ]


def test_sniper_keeps_every_weight_below_its_highest_sparsity():
    model, watch = mlp(), Watch()
    callback = SNIPER({0: 0.6, 1: 0.3}, saliency=Given(), max_sparsity=0.75)
    model.fit(*data(), epochs=2, callbacks=[callback, watch], verbose=0)
    # 0.6: 29 of 72 are kept; a quarter of the second weight, 6, and the rest from the first.
    assert [[int(m.sum()) for m in masks] for masks, _ in watch.epochs] == [[23, 6], [44, 6]]


def test_sniper_goes_on_in_a_second_fit():
    model, watch = mlp(), Watch()
    initial = kernels(model)
    callback = SNIPER({0: 0.5, 2: 0.0}, data())
    model.fit(*data(), epochs=1, callbacks=[callback], verbose=0)
    model.fit(*data(), initial_epoch=1, epochs=3, callbacks=[callback, watch], verbose=0)
    (old, _), (new, values) = watch.epochs
    assert (total(old), total(new)) == (36, 72)
    for mask, value, start in zip(old, values, initial, strict=True):
        np.testing.assert_array_equal(value[~mask], start[~mask])


def test_sniper_never_prunes_again_what_came_back():
    model = mlp()
    callback = SNIPER({0: 0.5, 1: 0.0}, data())
    model.fit(*data(), epochs=2, callbacks=[callback], verbose=0)
    watch = Watch()
    model.fit(*data(), epochs=2, callbacks=[callback, watch], verbose=0)
    assert [total(masks) for masks, _ in watch.epochs] == [72, 72]


class StoppedError(Exception):
    pass


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise StoppedError


def sniper_run(seed, *callbacks, first=True, epochs=4):
    keras.utils.set_random_seed(seed)
    model = mlp()
    sniper = SNIPER({0: 0.7, 2: 0.4, 3: 0.1}, data())
    order = [sniper, *callbacks] if first else [*callbacks, sniper]
    model.fit(*data(), epochs=epochs, shuffle=False, callbacks=order, verbose=0)
    return model


@functools.cache
def whole_run(run):
    return run(0)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_sniper_in_a_run_that_is_resumed(tmp_path, epoch):
    whole = whole_run(sniper_run)
    with pytest.raises(StoppedError):
        sniper_run(0, keras_ntt.BackupAndRestore(tmp_path), Stop(epoch))
    resumed = sniper_run(0, keras_ntt.BackupAndRestore(tmp_path))
    for a, b in zip(masks_of(resumed), masks_of(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("seed", "first", "message"),
    [(0, False, "List it before BackupAndRestore"), (1, True, "other initial weights.*seed")],
)
def test_sniper_refuses_a_run_that_it_cannot_go_on_with(tmp_path, seed, first, message):
    with pytest.raises(StoppedError):
        sniper_run(0, keras_ntt.BackupAndRestore(tmp_path), Stop(1))
    with pytest.raises(ValueError, match=message):
        sniper_run(seed, keras_ntt.BackupAndRestore(tmp_path), first=first)


@pytest.mark.parametrize(
    ("sparsities", "options", "message"),
    [
        ({0: 0.4, 5: 0.5}, {}, "that do not increase"),
        ({1: 0.4}, {}, "beginning\\s+with epoch 0"),
        ({0: 1.0}, {}, r"sparsities in \[0, 1\)"),
        ([0.4], {}, "sparsities must map epochs"),
        ({0: 0.8}, {}, "max_sparsity=0.75"),
        ({0: 0.4}, {"max_sparsity": 2}, r"max_sparsity must be a number in \[0, 1\]"),
        ({0: 0.4}, {"saliency": "other"}, "saliency must be one of"),
        ({0: 0.4}, {"data": data()[0]}, "SNIP needs labels"),
    ],
)
def test_sniper_settings_that_do_not_fit(sparsities, options, message):
    with pytest.raises(ValueError, match=message):
        SNIPER(sparsities, **{"data": data(), **options})


# --- GraNet -----------------------------------------------------------------------------------


def test_exchange_by_hand():
    values = [np.array([[5.0, -4.0, 0.1, 0.0], [3.0, 0.0, 0.2, 0.0]])]
    masks = [np.array([[True, True, True, False], [True, False, True, False]])]
    gradients = [np.array([[9.0, 9.0, 1.0, 2.0], [9.0, -3.0, 0.5, 1.0]])]
    # To four: 0.1 is dropped. Half of four: 0.2 and 3 go; 9 (of the 3) and |-3| come.
    (found,) = exchange(values, masks, lambda: gradients, total=4, fraction=0.5)
    assert found.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    gradients[0][1, 0] = 0.0
    (found,) = exchange(values, masks, lambda: gradients, total=4, fraction=0.5)
    assert found.astype(int).tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]


def test_exchange_needs_no_gradient_for_nothing():
    values, masks = [np.arange(8.0)], [np.ones(8, bool)]
    (found,) = exchange(values, masks, lambda: pytest.fail("asked"), total=3, fraction=0.2)
    assert np.flatnonzero(found).tolist() == [5, 6, 7]


def granet(**options):
    settings = {"end_step": 8, "frequency": 2, "batch_size": 8, **options}
    return GraNet(settings.pop("sparsity", 0.75), settings.pop("data", data()), **settings)


def test_granet_with_fewer_entries_than_weights():
    """One of 72 entries for two weights."""
    model = mlp()
    with pytest.raises(ValueError, match=r"fewer entries to keep.*Received: sparsity=0\.985"):
        model.fit(*data(), callbacks=[GraNet(0.985, data(), end_step=2)], verbose=0)
    assert get_masks(model) == {}


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}], ids=str)
def test_granet_prunes_to_its_curve_and_regrows(options):
    model, watch, callback = mlp(**options), Watch(), granet()
    x, y = data(n=64)
    model.fit(x, y, epochs=1, batch_size=6, callbacks=[callback, watch], verbose=0)
    totals = [total(m) for m, _ in watch.batches]
    # (1 - progress)^3 with progress 0, 1/4, 1/2, 3/4, 1 after 0, 2, 4, 6, 8 steps.
    curve = [round(72 * (1 - (0.75 - 0.75 * (1 - k / 4) ** 3))) for k in range(5)]
    assert totals == [curve[0], *np.repeat(curve[1:], 2), curve[4], curve[4]][: len(totals)]
    regrown = 0
    for (before, _), (after, values) in itertools.pairwise(watch.batches):
        for a, b, value in zip(before, after, values, strict=True):
            new = b & ~a
            regrown += new.sum()
            assert not value[new].any(), "what is regrown begins at 0"
            assert not value[~b].any()
    assert regrown > 0
    for mask, value in zip(masks_of(model), kernels(model), strict=True):
        np.testing.assert_array_equal(value != 0, mask)


def test_granet_regrows_where_the_gradient_is_largest():
    model, callback = mlp(), granet(end_step=1, frequency=1, regrow=0.5, sparsity=0.5, data=data(8))
    callback.set_model(model)
    start = kernels(model)
    x, y = data(8)
    masks = {
        v.path: np.abs(w) >= np.median(np.abs(w))
        for v, w in zip(choose_weights(model).weights, start, strict=True)
    }
    keras_ntt.apply_masks(model, masks)
    with tf.GradientTape() as tape:
        logits = model(x, training=False)
        loss = tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        )
    gradients = tape.gradient(loss, [v.value for v in choose_weights(model).weights])
    callback.initial_sparsity = 0.5
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    for old, new, gradient, value in zip(
        masks.values(), masks_of(model), gradients, start, strict=True
    ):
        n = int(old.sum()) // 2
        stays = old & (np.abs(value) >= np.sort(np.abs(value[old]))[n])
        assert (new & stays).sum() == stays.sum() == old.sum() - n
        slope = np.abs(gradient.numpy())
        assert slope[new & ~stays].min() >= slope[~new].max()


def test_granet_on_data_without_batches():
    model = mlp()
    none = tf.data.Dataset.from_tensor_slices(data()).batch(8).filter(lambda x, y: False)
    with pytest.raises(ValueError, match="data hold no batches"):
        model.fit(*data(), callbacks=[GraNet(0.5, none, end_step=2)], verbose=0)
    assert get_masks(model) == {}


def test_granet_works_on_a_network_that_is_pruned_already():
    model = keras_ntt.prune_at_init(mlp(), sparsity=0.75, saliency="random", allocation="erk")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    first, watch = masks_of(model), Watch()
    x, y = data(n=64)
    model.fit(x, y, batch_size=6, callbacks=[granet(initial_sparsity=0.75), watch], verbose=0)
    assert {total(m) for m, _ in watch.batches} == {18}
    assert any((a != b).any() for a, b in zip(first, masks_of(model), strict=True))


def test_granet_with_several_steps_an_execution():
    model, watch = mlp(steps_per_execution=3), Watch()
    x, y = data(n=54)
    model.fit(x, y, batch_size=6, callbacks=[granet(), watch], verbose=0)
    assert total(masks_of(model)) == 18


def granet_run(seed, *callbacks, first=True):
    keras.utils.set_random_seed(seed)
    model = mlp()
    granet = GraNet(0.8, data(), end_step=12, frequency=2, regrow=0.5)
    order = [granet, *callbacks] if first else [*callbacks, granet]
    model.fit(*data(), batch_size=8, epochs=5, shuffle=False, callbacks=order, verbose=0)
    return model


@pytest.mark.parametrize(("epoch", "first"), [(0, True), (1, False), (3, True), (3, False)])
def test_granet_in_a_run_that_is_resumed(tmp_path, epoch, first):
    whole = whole_run(granet_run)
    with pytest.raises(StoppedError):
        granet_run(0, keras_ntt.BackupAndRestore(tmp_path), Stop(epoch), first=first)
    resumed = granet_run(5, keras_ntt.BackupAndRestore(tmp_path), first=first)
    assert total(masks_of(resumed)) == total(masks_of(whole)) == 14
    if epoch == 3:  # after its end; before, it goes on with other batches for the gradient
        for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_granet_goes_on_from_zeros_where_there_are_no_masks(tmp_path):
    with pytest.raises(StoppedError):
        granet_run(0, keras.callbacks.BackupAndRestore(tmp_path), Stop(3), first=False)
    resumed = granet_run(5, keras.callbacks.BackupAndRestore(tmp_path), first=False)
    assert total(masks_of(resumed)) == sum(np.count_nonzero(k) for k in kernels(resumed)) == 14


def test_granet_takes_labels_of_several_outputs():
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(inputs)
    outputs = {name: layers.Dense(n, name=name)(hidden) for name, n in (("a", 1), ("b", 2))}
    model = keras.Model(inputs, outputs)
    x, rng = data()[0], np.random.default_rng(1)
    y = {name: rng.normal(size=(32, n)).astype("float32") for name, n in (("a", 1), ("b", 2))}
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    found = []
    start = model.get_weights()
    for given in ((x, y), batches):
        model.set_weights(start)
        keras_ntt.strip_pruning(model)
        model.compile("adam", {"a": "mse", "b": "mse"}, jit_compile=False)
        granet = GraNet(0.7, given, end_step=8, frequency=2, batch_size=8)
        model.fit(batches, epochs=3, shuffle=False, callbacks=[granet], verbose=0)
        found.append(masks_of(model))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert total(found[0]) == round(0.3 * sum(m.size for m in found[0]))
    wrong = GraNet(0.7, (x, {**y, "b": y["b"][:5]}), end_step=8)
    with pytest.raises(ValueError, match="one label for each sample"):
        model.fit(batches, shuffle=False, callbacks=[wrong], verbose=0)


def test_granet_says_when_training_is_too_short():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        mlp().fit(*data(), callbacks=[granet()], verbose=0)
    (text,) = [str(w.message) for w in found if w.category is UserWarning]
    assert "ended at step 1, before GraNet's last one, 8" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1}, "sparsity is the fraction of zeros"),
        ({"initial_sparsity": 0.9}, "initial_sparsity must be at most"),
        ({"begin_step": 8}, "end_step must be after begin_step"),
        ({"begin_step": -1}, "begin_step must be a positive integer"),
        ({"frequency": 0}, "frequency must be a positive integer"),
        ({"regrow": 1.0}, r"regrow must be a number in \[0, 1\)"),
        ({"data": data()[0]}, "data must be labelled"),
    ],
)
def test_granet_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        granet(**options)


# --- what is watched --------------------------------------------------------------------------


def test_gradient_flow_by_hand():
    """f = x W, L = mean of f^2 / 2: the gradient is x^T f / n, and masked entries do not count."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    model.set_weights([np.array([[1, 2], [0, 3]], "float32")])
    x, y = np.array([[1.0, 1.0]], "float32"), np.zeros((1, 2), "float32")

    def loss(labels, outputs):
        return tf.reduce_sum(tf.square(outputs - labels)) / 2

    # f = (1, 5), the gradient is [[1, 5], [1, 5]], of which the zero's entry is left out.
    assert effective_gradient_flow(model, x, y, loss=loss, order=1) == pytest.approx(11)
    assert effective_gradient_flow(model, x, y, loss=loss) == pytest.approx(np.sqrt(51))
    keras_ntt.apply_masks(model, {model.weights[0].path: [[1, 0], [0, 1]]})
    # f = (1, 3) now.
    assert effective_gradient_flow(model, x, y, loss=loss, order=1) == pytest.approx(4)


def test_gradient_flow_is_the_mean_over_the_weights():
    model, (x, y) = mlp(), data()
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x))
    gradients = tape.gradient(loss, [v.value for v in choose_weights(model).weights])
    wanted = np.mean([np.linalg.norm(g.numpy().ravel()) for g in gradients])
    assert effective_gradient_flow(model, x, y) == pytest.approx(wanted, rel=1e-5)
    uncompiled = mlp(compiled=False)
    uncompiled.set_weights(model.get_weights())
    assert effective_gradient_flow(uncompiled, x, y) == pytest.approx(wanted, rel=1e-5)


def test_alignment_and_distance():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 2))
    assert ntk_alignment(kernel, 3 * kernel) == pytest.approx(1)
    assert ntk_alignment(kernel, -kernel) == pytest.approx(-1)
    assert ntk_distance(kernel, 3 * kernel) == pytest.approx(4 * (kernel**2).mean())
    assert np.isnan(ntk_alignment(kernel, 0 * kernel))


@pytest.mark.parametrize("compare", [ntk_distance, ntk_alignment])
def test_kernels_of_other_shapes_are_not_compared(compare):
    with pytest.raises(ValueError, match=r"first of shape \(2, 2\) and second of shape \(1, 2\)"):
        compare(np.eye(2), np.ones((1, 2)))


def test_dynamics_are_in_the_history():
    dense, (x, y) = mlp(), data(n=16)
    sparse = keras_ntt.prune_at_init(dense, sparsity=0.5, saliency="magnitude")
    sparse.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watch = TrainingDynamics(dense, x[:4], y[:4])
    before = keras_ntt.empirical_ntk(sparse, x[:4], wrt="kept")
    target = np.asarray(keras_ntt.empirical_ntk(dense, x[:4]))
    history = sparse.fit(x, y, epochs=3, callbacks=[watch], verbose=0).history
    assert {len(history[key]) for key in ("ntk_distance", "ntk_alignment", "gradient_flow")} == {3}
    assert watch.start["ntk_distance"] == pytest.approx(((before - target) ** 2).numpy().mean())
    after = np.asarray(keras_ntt.empirical_ntk(sparse, x[:4], wrt="kept"))
    cosine = (after * target).sum() / np.sqrt((after**2).sum() * (target**2).sum())
    assert history["ntk_alignment"][-1] == pytest.approx(cosine, rel=1e-5)
    flow = effective_gradient_flow(sparse, x[:4], y[:4])
    assert history["gradient_flow"][-1] == pytest.approx(flow, rel=1e-5)


def test_dynamics_of_a_network_beside_itself():
    model, (x, y) = mlp(), data(n=16)
    watch = TrainingDynamics(model, x[:3], wrt="all", every=3)
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[watch]).history
    np.testing.assert_array_equal(history["ntk_distance"], [0, np.nan, 0, np.nan])
    np.testing.assert_allclose(history["ntk_alignment"], [1, np.nan, 1, np.nan], rtol=1e-6)
    assert "gradient_flow" not in history


def test_other_callbacks_beside_dynamics_that_skip_epochs(tmp_path, capsys):
    """A table has their columns, and what is watched for the best has a number to begin with."""
    model, (x, y) = mlp(), data(n=16)
    watch = TrainingDynamics(mlp(), x[:3], y[:3], every=2)
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    best = keras.callbacks.EarlyStopping("ntk_distance", mode="max", patience=4)
    saved = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "ntk_distance", mode="max", save_best_only=True
    )
    callbacks = [watch, table, best, saved]
    history = model.fit(x, y, epochs=5, verbose=2, callbacks=callbacks).history
    keys = ("loss", "ntk_distance", "ntk_alignment", "gradient_flow")
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for key in keys:
        np.testing.assert_allclose([float(row[key]) for row in rows], history[key], rtol=1e-6)
    for key in keys[1:]:
        assert np.isnan(history[key]).tolist() == [False, False, True, False, True]
    assert best.best == saved.best == np.nanmax(history["ntk_distance"])
    assert capsys.readouterr().out.count("ntk_distance: nan") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrt": "some"}, "wrt must be one of"),
        ({"outputs": "diagonal"}, "outputs must be one of"),
        ({"order": 0.5}, "order must be a number of at least 1"),
        ({"every": 0}, "every must be a positive integer"),
        ({"x": np.zeros((2, 5), "float32")}, "do not have the shape"),
    ],
)
def test_dynamics_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingDynamics(mlp(), **{"x": data(4)[0], **options})


def test_dynamics_of_networks_that_cannot_be_compared():
    other = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="must have outputs of the same shape"):
        mlp().fit(*data(), callbacks=[TrainingDynamics(other, data(4)[0])], verbose=0)


class Coded(keras.Model):
    """Code of its own, whose outputs only its kernel tells."""

    def __init__(self, units):
        super().__init__()
        self.last = layers.Dense(units)

    def call(self, x):
        return self.last(x)


@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_dynamics_of_code_with_other_outputs(outputs):
    dense, model, (x, y) = Coded(1), Coded(3), data()
    dense(x), model(x)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watch = TrainingDynamics(dense, x[:4], outputs=outputs)
    with pytest.raises(ValueError, match=r"of shape \(4, 3\) and, of dense, \(4, 1\)"):
        model.fit(x, y, callbacks=[watch], verbose=0)


def test_dynamics_are_refused_in_a_transfer():
    """A transfer has an ntk_distance of its own in the logs."""
    student, (x, _) = mlp(compiled=False), data()
    before = student.get_weights()
    transfer = keras_ntt.NeuralTangentTransfer(student, pruning_schedule=0.5, seed=0)
    transfer.compile("adam")
    with pytest.raises(ValueError, match=r"ordinary training.*leave the callback out"):
        transfer.fit(x, callbacks=[TrainingDynamics(mlp(), x[:4])], verbose=0)
    for now, then in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    transfer.fit(x, verbose=0)
    assert keras_ntt.sparsity_report(student).sparsity == 0.5
