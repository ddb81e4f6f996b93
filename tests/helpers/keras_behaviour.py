"""What Keras does with a pruned model, case by case; `docs/keras_behaviour.md` is made from it.

python tests/helpers/keras_behaviour.py > docs/keras_behaviour.md
"""

from __future__ import annotations

import copy
import pathlib
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt

SAMPLES, BATCH = 16, 4
KEPT, LOST, HELD, GONE, NONE = "kept", "lost", "held", "gone", "-"


def dense() -> keras.Model:
    """Return a network of two Dense layers."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="first"),
            keras.layers.Dense(3, name="second"),
        ]
    )


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels."""
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(SAMPLES, n)).astype("float32") for n in (6, 3))


def by_apply_masks() -> keras.Model:
    """Return a model with masks drawn at random."""
    model, rng = dense(), np.random.default_rng(0)
    return keras_ntt.apply_masks(model, {v.path: rng.random(v.shape) < 0.5 for v in kernels(model)})


def by_prune_at_init() -> keras.Model:
    """Return a model pruned at initialization."""
    return keras_ntt.prune_at_init(dense(), sparsity=0.5, saliency="magnitude")


def by_prune_low_magnitude() -> keras.Model:
    """Return a model whose masks a schedule moves, pruned by now."""
    return keras_ntt.prune_low_magnitude(dense(), keras_ntt.ConstantSparsity(0.5, 1, 1, 1))


def by_neural_tangent() -> keras.Model:
    """Return a model pruned by Neural Tangent Transfer."""
    transfer = keras_ntt.NeuralTangentTransfer(dense(), pruning_schedule=0.5, seed=0)
    transfer.compile("adam", run_eagerly=True)
    transfer.fit(data()[0], epochs=1, verbose=0)
    return transfer.student


MAKERS = {
    "apply_masks": by_apply_masks,
    "prune_at_init": by_prune_at_init,
    "prune_low_magnitude": by_prune_low_magnitude,
    "prune_neural_tangent": by_neural_tangent,
}


def kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the kernels of a model, in order."""
    return [v for v in model.weights if v.name == "kernel"]


def masks_of(model: keras.Model) -> list[np.ndarray]:
    """Return the masks that a pruned model holds, one for each kernel."""
    masks = list(keras_ntt.get_masks(model).values())
    assert len(masks) == len(kernels(model)) == 2
    assert all(0.3 < 1 - m.mean() < 0.7 for m in masks)
    return masks


def zeros_in(model: keras.Model, masks: list[np.ndarray]) -> str:
    """Tell whether all that is masked is zero."""
    values = [keras.ops.convert_to_numpy(v) for v in kernels(model)]
    kept = all(not value[~mask].any() for value, mask in zip(values, masks, strict=True))
    return KEPT if kept else LOST


def masks_in(model: keras.Model, masks: list[np.ndarray]) -> str:
    """Tell whether a model holds the masks."""
    held = list(keras_ntt.get_masks(model).values())
    if not held:
        return GONE
    assert all(np.array_equal(a, b) for a, b in zip(held, masks, strict=True))
    return HELD


class Watch(keras.callbacks.Callback):
    """Looks for the zeros whenever a batch ends."""

    def __init__(self, masks: list[np.ndarray]):
        super().__init__()
        self.masks, self.found = masks, []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look."""
        self.found.append(zeros_in(self.model, self.masks))


def train(
    model: keras.Model,
    masks: list[np.ndarray],
    *callbacks: Any,
    epochs: int = 1,
    optimizer: Any = None,
    again: bool = True,
    eager: bool = True,
) -> str:
    """Train a model, and tell whether its zeros were there after every batch and at the end."""
    if again:
        options = {"jit_compile": False, "run_eagerly": eager}
        model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", **options)
    watch = Watch(masks)
    x, y = data()
    before = model.get_weights()
    model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=[*callbacks, watch], verbose=0)
    assert len(watch.found) == SAMPLES // BATCH * epochs
    assert any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    return LOST if LOST in [*watch.found, zeros_in(model, masks)] else KEPT


@dataclass(frozen=True)
class Outcome:
    """What became of a pruned model.

    Attributes:
        zeros: Whether its zeros are there.
        masks: Whether it holds its masks.
        training: Whether its zeros are there after each batch of further training.
        remedy: The same, after what the row says to do.
    """

    zeros: str
    masks: str
    training: str
    remedy: str = NONE


@dataclass(frozen=True)
class Case:
    """A row of the page.

    Attributes:
        what: What is done with the model.
        run: Does it.
        wanted: What becomes of it.
        advice: What to do, or know.
        makers: The ways of pruning that it is tried with.
    """

    what: str
    run: Callable[[keras.Model, pathlib.Path], Outcome]
    wanted: Outcome
    advice: str
    makers: tuple[str, ...] = ("apply_masks", "prune_low_magnitude")


CASES: dict[str, Case] = {}
ALL = tuple(MAKERS)


def case(what: str, *wanted: str, advice: str = "", makers: tuple[str, ...] = ()) -> Any:
    """Add the decorated function as a row."""

    def add(run: Any) -> Any:
        options = {"makers": makers} if makers else {}
        CASES[run.__name__] = Case(what, run, Outcome(*wanted), advice, **options)
        return run

    return add


def outcome(
    model: keras.Model, masks: list[np.ndarray], *, remedy: Callable | None = None, **options: Any
) -> Outcome:
    """Look at a model, train it, and train it again after a remedy from where it was."""
    weights = model.get_weights()
    zeros, held = zeros_in(model, masks), masks_in(model, masks)
    training = train(model, masks, **options)
    if remedy is None:
        return Outcome(zeros, held, training)
    model.set_weights(weights)
    remedy(model)
    assert masks_in(model, masks) == HELD
    return Outcome(zeros, held, training, train(model, masks))


# --- files -----------------------------------------------------------------------------------

RESTORE = "Call `restore_masks(loaded)` or `load_masks(loaded, path)` before training."


@case("`save` and `load_model` of a `.keras` file", KEPT, GONE, LOST, KEPT, advice=RESTORE,
      makers=ALL)  # fmt: skip
def keras_file(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    model.save(folder / "m.keras")
    loaded = keras.models.load_model(folder / "m.keras")
    return outcome(loaded, masks, remedy=keras_ntt.restore_masks, eager=False)


@case("`pickle`, `copy.deepcopy`", KEPT, GONE, LOST, KEPT, advice=RESTORE)
def pickled(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    first = outcome(pickle.loads(pickle.dumps(model)), masks, remedy=keras_ntt.restore_masks)
    assert first == outcome(copy.deepcopy(model), masks, remedy=keras_ntt.restore_masks)
    return first


@case("`save_weights`, and `load_weights` into a dense model", KEPT, GONE, LOST, KEPT,
      advice=RESTORE, makers=ALL)  # fmt: skip
def weights_file(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    model.save_weights(folder / "m.weights.h5")
    plain = dense()
    plain.load_weights(folder / "m.weights.h5")
    return outcome(plain, masks, remedy=keras_ntt.restore_masks)


@case("`load_weights` and `set_weights` of dense weights into the pruned model", KEPT, HELD, KEPT,
      advice="The masks stay: masked entries of the new weights become 0.", makers=ALL)  # fmt: skip
def dense_weights(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    plain = dense()
    plain.save_weights(folder / "m.weights.h5")
    model.load_weights(folder / "m.weights.h5")
    assert zeros_in(model, masks) == KEPT
    model.set_weights(plain.get_weights())
    for mine, theirs, mask in zip(kernels(model), kernels(plain), masks, strict=True):
        np.testing.assert_array_equal(mine.numpy(), np.where(mask, theirs.numpy(), 0))
    return outcome(model, masks)


@case("`get_config` and `from_config`, `to_json` and `model_from_json`", LOST, GONE, LOST, KEPT,
      advice="These carry no weights. Call `load_masks(model, path)`.")  # fmt: skip
def configuration(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    keras_ntt.save_masks(model, folder / "m.npz")
    assert "keras_ntt" not in model.to_json()
    made = [keras.models.model_from_json(model.to_json())]
    made.append(keras.Sequential.from_config(model.get_config()))

    def remedy(new: keras.Model) -> None:
        keras_ntt.load_masks(new, folder / "m.npz")

    first, second = (outcome(new, masks, remedy=remedy) for new in made)
    assert first == second
    return first


@case("`clone_model`, and `set_weights` with the pruned weights", KEPT, GONE, LOST, KEPT,
      advice="Call `apply_masks(clone, get_masks(model))` or `restore_masks(clone)`.")  # fmt: skip
def clone(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks, named = masks_of(model), keras_ntt.get_masks(model)
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    return outcome(new, masks, remedy=lambda new: keras_ntt.apply_masks(new, named))


# --- changing the model ----------------------------------------------------------------------


@case("`compile` again, with another optimizer", KEPT, HELD, KEPT, makers=ALL)
def compiled_again(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    assert train(model, masks, eager=False) == KEPT
    return outcome(
        model, masks, optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.1), eager=False
    )


@case("Freezing layers (`trainable = False`), training, unfreezing", KEPT, HELD, KEPT)
def freezing(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    model.layers[0].trainable = False
    frozen = model.layers[0].kernel.numpy()
    assert train(model, masks, eager=False) == KEPT
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), frozen)
    assert masks_in(model, masks) == HELD
    model.layers[0].trainable = True
    result = outcome(model, masks)
    assert (model.layers[0].kernel.numpy() != frozen).any()
    return result


@case("Layers of the pruned model in a new model", KEPT, HELD, KEPT,
      advice="The layers are shared, and so are their masks.")  # fmt: skip
def layers_taken(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    x = keras.Input((6,))
    new = keras.Model(x, model.layers[1](model.layers[0](x)))
    assert kernels(new)[0] is kernels(model)[0]
    return outcome(new, masks)


@case("Masks put on a part of a model that was compiled and trained before", KEPT, HELD, LOST, KEPT,
      advice="`compile` the whole model again: its step was traced without the masks.")  # fmt: skip
def part_of_a_trained_model(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks, named = masks_of(model), keras_ntt.get_masks(model)
    keras_ntt.strip_pruning(model)
    x = keras.Input((6,))
    whole = keras.Model(x, model(x))
    assert train(whole, masks, eager=False) == LOST
    keras_ntt.apply_masks(model, named)
    return outcome(whole, masks, remedy=lambda whole: None, again=False)


@case("New layers by `from_config` and `set_weights`", KEPT, GONE, LOST, KEPT,
      advice="Call `restore_masks(model)`.")  # fmt: skip
def layers_copied(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    x = keras.Input((6,))
    made = [keras.layers.Dense.from_config(layer.get_config()) for layer in model.layers]
    new = keras.Model(x, made[1](made[0](x)))
    for mine, theirs in zip(made, model.layers, strict=True):
        mine.set_weights(theirs.get_weights())
    return outcome(new, masks, remedy=keras_ntt.restore_masks)


# --- callbacks -------------------------------------------------------------------------------


@case("`ModelCheckpoint` of weights and of whole models", KEPT, GONE, LOST, KEPT,
      advice=RESTORE)  # fmt: skip
def checkpoints(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    save = [
        keras.callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
    ]
    assert train(model, masks, *save, epochs=2) == KEPT
    for epoch in (1, 2):
        plain = dense()
        plain.load_weights(folder / f"{epoch}.weights.h5")
        assert zeros_in(plain, masks) == KEPT
        loaded = keras.models.load_model(folder / f"{epoch}.keras")
        assert zeros_in(loaded, masks) == KEPT
    return outcome(loaded, masks, remedy=keras_ntt.restore_masks)


@case(
    "`EarlyStopping(restore_best_weights=True)`",
    *(KEPT, HELD, KEPT),
    advice="The best weights return under the present masks, which a schedule may have updated.",
)
def early_stopping(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    stop = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=1, restore_best_weights=True, start_from_epoch=0
    )
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    watch = Watch(masks)
    model.fit(*data(), batch_size=BATCH, epochs=9, callbacks=[stop, watch], verbose=0)
    assert stop.stopped_epoch > 0
    assert LOST not in watch.found
    return outcome(model, masks)


@case("`SwapEMAWeights`, with averages swapped in at each epoch", KEPT, HELD, KEPT)
def swapped_averages(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    seen: list[str] = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(zeros_in(model, masks))
    )
    assert train(model, masks, swap, look, epochs=3, optimizer=optimizer, eager=False) == KEPT
    assert seen == [KEPT] * 3
    return outcome(model, masks, again=False)


@case("`BackupAndRestore`, resumed by a model with masks", KEPT, HELD, KEPT,
      advice="Prune the model or call `load_masks` before `fit` resumes it. "
      "`keras_ntt.BackupAndRestore` has the masks in its state.")  # fmt: skip
def backup(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks, named = masks_of(model), keras_ntt.get_masks(model)

    class Killed(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    saved = keras.callbacks.BackupAndRestore(folder / "backup")
    try:
        train(model, masks, saved, Killed(), epochs=3)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it was to be killed")
    other = keras_ntt.apply_masks(dense(), named)
    other.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    watch = Watch(masks)
    resumed = keras.callbacks.BackupAndRestore(folder / "backup")
    other.fit(*data(), batch_size=BATCH, epochs=3, callbacks=[resumed, watch], verbose=0)
    assert watch.found == [KEPT] * (SAMPLES // BATCH)  # of epoch 3
    return Outcome(zeros_in(other, masks), masks_in(other, masks), watch.found[-1])


# --- assigning -------------------------------------------------------------------------------


@case("`kernel.assign`, `assign_add`, `assign_sub` outside of `fit` and by callbacks", KEPT, HELD,
      KEPT)  # fmt: skip
def assigned(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)

    def disturb(*_: Any, **__: Any) -> None:
        for variable in kernels(model):
            for method in (variable.assign, variable.assign_add, variable.assign_sub):
                method(np.full(variable.shape, 2.0, "float32"))
                assert zeros_in(model, masks) == KEPT
            variable.assign(0.1 * np.ones(variable.shape, "float32"))

    disturb()
    call = keras.callbacks.LambdaCallback(on_train_batch_end=disturb, on_epoch_end=disturb)
    assert train(model, masks, call, epochs=2) == KEPT
    return outcome(model, masks)


class Assigning(keras.Model):
    """A model that writes to its kernels after each step of its optimizer."""

    def train_step(self, data: Any) -> Any:
        """Train, and write to the kernels."""
        logs = super().train_step(data)
        for variable in kernels(self):
            variable.assign(0.9 * variable + 0.01)
        return logs


@case("`kernel.assign` in a compiled custom `train_step`", KEPT, HELD, KEPT)
def assigned_in_step(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    return outcome(Assigning(model.inputs, model.outputs), masks, eager=False)


@case(
    "Writing to the `tf.Variable` itself, without Keras: `assign_add`",
    *(LOST, HELD, KEPT),
    advice="Keras itself does this only before it applies constraints, but "
    "`tf.train.Checkpoint.restore` does it too. The next batch restores the zeros of the present "
    "masks.",
)
def raw_assignment(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    for variable in kernels(model):
        variable.value.assign_add(tf.ones(variable.shape))
    return outcome(model, masks)


@case("Masks applied after a custom step was compiled by `tf.function`", KEPT, HELD, LOST,
      KEPT, advice="Make the `tf.function` again: it was traced without the masks.",
      makers=("apply_masks",))  # fmt: skip
def traced_before(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks, named = masks_of(model), keras_ntt.get_masks(model)
    keras_ntt.strip_pruning(model)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    x, y = map(tf.constant, data())

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    compiled = tf.function(step)
    compiled()
    keras_ntt.apply_masks(model, named)
    weights, zeros, held = model.get_weights(), zeros_in(model, masks), masks_in(model, masks)
    compiled()
    training = zeros_in(model, masks)
    model.set_weights(weights)
    again = tf.function(step)
    again()
    return Outcome(zeros, held, training, zeros_in(model, masks))


# --- quantizing, LoRA, exporting -------------------------------------------------------------


def _int8_kernels(model: keras.Model) -> list[np.ndarray]:
    found = [keras.ops.convert_to_numpy(v) for v in kernels(model)]
    assert all(value.dtype == np.int8 for value in found)
    return found


@case('`quantize("int8")`', KEPT, GONE, NONE,
      advice="Kernels of int8 are not trained. Their zeros are exact.", makers=ALL)  # fmt: skip
def quantized(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    x = keras.Input((6,))
    model = keras.Model(x, model.layers[1](model.layers[0](x)))
    model.quantize("int8")
    _int8_kernels(model)
    return Outcome(zeros_in(model, masks), masks_in(model, masks), NONE)


@case("LoRA (`enable_lora`) while it is trained", KEPT, HELD, KEPT,
      advice="The kernel stays masked. LoRA's product is added to it and is dense.")  # fmt: skip
def lora(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    for layer in model.layers:
        layer.enable_lora(2)
    values = [layer._kernel for layer in model.layers]
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.fit(*data(), batch_size=BATCH, verbose=0)
    assert all(layer.lora_kernel_b.numpy().any() for layer in model.layers)
    kept = all(not v.numpy()[~m].any() for v, m in zip(values, masks, strict=True))
    return Outcome(KEPT if kept else LOST, masks_in(model, masks), KEPT if kept else LOST)


@case("A model with LoRA in a file", LOST, GONE, LOST, KEPT,
      advice="Keras adds LoRA's dense product to the kernel. `UpdatePruningStep` warns of it. "
      "`load_masks(loaded, path)` prunes the sum, which changes the outputs.")  # fmt: skip
def lora_merged(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    keras_ntt.save_masks(model, folder / "m.npz")
    for layer in model.layers:
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(keras.ops.ones_like(layer.lora_kernel_b))
    model.save_weights(folder / "m.weights.h5")
    plain = dense()
    plain.load_weights(folder / "m.weights.h5")
    return outcome(plain, masks, remedy=lambda new: keras_ntt.load_masks(new, folder / "m.npz"))


@case('`export(format="tf_saved_model")`', KEPT, NONE, NONE)
def saved_model(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    model.export(folder / "saved", verbose=False)
    loaded = tf.saved_model.load(str(folder / "saved"))
    values = [v.numpy() for v in loaded.variables]
    found = [v for mask in masks for v in values if v.shape == mask.shape]
    assert len(found) == 2
    kept = all(np.array_equal(v != 0, m) for v, m in zip(found, masks, strict=True))
    x, _ = data()
    np.testing.assert_allclose(loaded.serve(x), model(x), atol=1e-6)
    assert masks_in(model, masks) == HELD
    return Outcome(KEPT if kept else LOST, NONE, NONE)


@case(
    '`export(format="litert")`',
    *(KEPT, NONE, NONE),
    advice="The zeros are stored as numbers. `keras_ntt.export_tflite` stores them sparsely.",
)
def litert(model: keras.Model, folder: pathlib.Path) -> Outcome:
    masks = masks_of(model)
    model.export(folder / "m.tflite", format="litert", verbose=False)
    rows = keras_ntt.inspect_tflite(folder / "m.tflite").weights
    found = {row.shape: row.nonzeros for row in rows}
    kept = found == {m.T.shape: int(m.sum()) for m in masks}
    return Outcome(KEPT if kept else LOST, NONE, NONE)


# --- the page --------------------------------------------------------------------------------

_HEAD = """# What Keras does with a pruned model

A pruned model is an ordinary Keras model. Its masks are constraints of its variables. This page
lists what happens to its zeros and its masks in everything that Keras does with a model. It is
generated by `python tests/helpers/keras_behaviour.py > docs/keras_behaviour.md` from the cases that
`tests/project/test_keras_behaviour.py` runs. Each case checks the zeros at its end, and after every
batch of further training.

*Zeros* and *Masks* say whether they are there afterwards. *Further training* says whether the zeros
are there after every further batch. *With the advice* says the same if the advice is followed.
Nothing marks a model that is loaded without its masks as pruned, so nothing keeps its zeros in
training. `UpdatePruningStep()` among the callbacks of `fit` warns about this.

| What is done | Zeros | Masks | Further training | With the advice | Advice |
| --- | --- | --- | --- | --- | --- |
"""


def markdown() -> str:
    """Return the page."""
    rows = []
    for one in CASES.values():
        wanted = one.wanted
        cells = (one.what, wanted.zeros, wanted.masks, wanted.training, wanted.remedy, one.advice)
        rows.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
