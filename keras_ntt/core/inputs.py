"""Unlabelled inputs, in an order that a resumed run can repeat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import input_checks


def without_labels(data: Any) -> Any:
    """Return the inputs of a batch: x of ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``."""
    return data[0] if isinstance(data, tuple) and data else data


def batches(x: Any, batch_size: int, *, key: tf.Variable, shuffle: bool) -> tf.data.Dataset:
    """Return a data set of batches whose order depends only on a key.

    Args:
        x: Arrays ``[n, ...]``, nested as the model takes them.
        batch_size: Samples per batch; the last one may be smaller.
        key: Integer variable ``[2]``. It is read between the beginning of an epoch and its first
            batch, and must not change while an epoch runs.
        shuffle: Whether to draw a random order from the key.

    Returns:
        The data set, of ``ceil(n / batch_size)`` batches.
    """
    if isinstance(x, list):
        x = (tuple(x),)  # tf.data would split a list into inputs and labels
    arrays = keras.tree.map_structure(tf.convert_to_tensor, x)
    n = int(keras.tree.flatten(arrays)[0].shape[0])

    def order(_: tf.Tensor) -> tf.data.Dataset:
        indices = tf.range(n)
        if shuffle:
            indices = tf.random.experimental.stateless_shuffle(indices, key)
        return tf.data.Dataset.from_tensor_slices(indices)

    def take(indices: tf.Tensor) -> Any:
        return keras.tree.map_structure(lambda a: tf.gather(a, indices), arrays)

    # Shapes that are known make a better graph.
    dataset = tf.data.Dataset.range(1).flat_map(order)
    dataset = dataset.batch(batch_size, drop_remainder=n % batch_size == 0).map(take)
    cardinality = tf.data.experimental.assert_cardinality(-(-n // batch_size))
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread can delay the end of fit by two seconds
    return dataset.apply(cardinality).prefetch(2).with_options(options)


def batch_spec(x: Any, batch_size: int) -> Any:
    """Return the shape and dtype of the largest batch of inputs.

    Args:
        x: As for `NeuralTangentTransfer.fit`.
        batch_size: Samples per batch, for arrays.

    Returns:
        ``tf.TensorSpec``, nested as the model takes its inputs.

    Raises:
        ValueError: If the size of a batch is not known beforehand.
    """
    specs: Any = None
    if input_checks.is_array(x):
        size = min(batch_size, len(keras.tree.flatten(x)[0]))
        specs = keras.tree.map_structure(lambda a: tf.TensorSpec([size, *a.shape[1:]], a.dtype), x)
    elif isinstance(x, tf.data.Dataset):
        specs = without_labels(x.element_spec)
    elif isinstance(x, keras.utils.PyDataset):
        specs = keras.tree.map_structure(
            lambda a: tf.TensorSpec(a.shape, a.dtype), without_labels(x[0])
        )
    if specs is None or any(not s.shape.is_fully_defined() for s in keras.tree.flatten(specs)):
        raise ValueError(
            "memory_limit needs to know how large a batch is. Pass arrays, or a tf.data.Dataset "
            "with dataset.batch(size, drop_remainder=True). "
            f"Received: batches of {'a generator' if specs is None else specs}"
        )
    return specs


def some_of(x: Any) -> Any | None:
    """Return a few inputs for a look at the outputs of a model, None if there are none.

    Nothing is read from a data set, because its order may matter: instead, inputs of its shapes are
    drawn from a standard normal distribution, or are zeros.

    Args:
        x: As for `NeuralTangentTransfer.fit`.

    Returns:
        Arrays, nested as the model takes them.
    """
    if input_checks.is_array(x):
        return keras.tree.map_structure(lambda a: a[:32], x)
    if isinstance(x, keras.utils.PyDataset):
        return without_labels(x[0])
    if not isinstance(x, tf.data.Dataset):
        return None
    specs = without_labels(x.element_spec)
    if any(spec.shape.rank in (None, 0) for spec in keras.tree.flatten(specs)):
        return None
    rng = np.random.default_rng(0)

    def made_up(spec: tf.TensorSpec) -> np.ndarray:
        shape = (8, *(side or 8 for side in spec.shape[1:]))
        drawn = rng.normal(size=shape) if spec.dtype.is_floating else np.zeros(shape)
        return drawn.astype(spec.dtype.as_numpy_dtype)

    return keras.tree.map_structure(made_up, specs)


def check_ends(x: Any, steps: Any, name: str, argument: str) -> None:
    """Raise a ValueError for an infinite data set, unless the number of steps is given."""
    endless = isinstance(x, tf.data.Dataset) and x.cardinality() == tf.data.INFINITE_CARDINALITY
    if endless and steps is None:
        raise ValueError(
            f"{name} repeat for ever, so an epoch would not end. Pass {argument}, or shorten them "
            "by take(number of batches). Received: a tf.data.Dataset without an end"
        )


def check_batch(batch: Any, model: keras.Model) -> None:
    """Raise a ValueError unless a batch, or its specs, fits a model and has known shapes."""
    input_checks.check_structure(batch, model, "batch")
    shapes = [tf.TensorShape(leaf.shape) for leaf in keras.tree.flatten(batch)]
    if not all(shape.is_fully_defined() and shape.rank and shape[0] for shape in shapes):
        raise ValueError(
            "batch must have shapes that are fully known, of one sample or more. "
            f"Received: batch of shape {[tuple(shape) for shape in shapes]}"
        )


def is_generator(x: Any) -> bool:
    """Tell whether `x` is an iterator over batches."""
    return hasattr(x, "__next__")


class Watch:
    """Checks batches as they come, if they cannot be checked beforehand.

    Attributes:
        refusal: The error of the first batch that did not fit. TensorFlow changes errors in its
            threads into others.
    """

    def __init__(self, model: keras.Model, name: str):
        self._signature, self._name = input_checks.signature_of(model), name
        self._structure: Any = None
        self.refusal: ValueError | None = None

    def over(self, x: Any) -> Any:
        """Return inputs whose batches are checked.

        Args:
            x: Inputs that have passed `check`.

        Returns:
            A generator or a ``PyDataset`` that raises a ValueError for a batch that does not fit
            the model; other inputs are returned unchanged.
        """
        if is_generator(x):
            return self._generate(x)
        return Watched(x, self) if isinstance(x, keras.utils.PyDataset) else x

    def look(self, batch: Any) -> Any:
        """Return a batch, or raise a ValueError if it does not fit."""
        try:
            input_checks.check_fits(without_labels(batch), self._signature, self._name)
            structure = keras.tree.map_structure(lambda _: None, batch)
            if self._structure is not None and structure != self._structure[0]:
                raise ValueError(
                    f"{self._name} must all be of one form: x, (x, y) or (x, y, sample_weight), "
                    f"with x nested alike. Received: {_form(batch)} after others"
                )
            self._structure = (structure,)
        except ValueError as error:
            self.refusal = self.refusal or error
            raise
        return batch

    def _generate(self, batches: Iterator[Any]) -> Iterator[tuple[Any, ...]]:
        for batch in batches:
            self.look(batch)
            # A tuple, because Keras expects one from a generator.
            yield batch if isinstance(batch, tuple) else (batch,)


class Watched(keras.utils.PyDataset):
    """The batches of a ``PyDataset``, each checked before it is used."""

    def __init__(self, batches: keras.utils.PyDataset, watch: Watch):
        super().__init__(
            workers=batches.workers,
            use_multiprocessing=batches.use_multiprocessing,
            max_queue_size=batches.max_queue_size,
        )
        self._batches, self._watch = batches, watch

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def num_batches(self) -> int | None:
        """The number of batches, or None if there is no end."""
        return self._batches.num_batches

    def __getitem__(self, index: int) -> Any:
        return self._watch.look(self._batches[index])

    def on_epoch_begin(self) -> None:
        """Tell the batches that an epoch begins."""
        getattr(self._batches, "on_epoch_begin", lambda: None)()  # missing in Keras 3.3

    def on_epoch_end(self) -> None:
        """Tell the batches that an epoch has ended."""
        self._batches.on_epoch_end()


def _form(batch: Any) -> str:
    return f"a tuple of {len(batch)}" if isinstance(batch, tuple) else f"a {type(batch).__name__}"


def check(x: Any, model: keras.Model, name: str) -> None:
    """Raise a ValueError if inputs that can be checked beforehand do not fit a model.

    Args:
        x: Arrays or a data set. Generators are checked batch by batch, as the batches come.
        model: The model.
        name: The name of the inputs in the message.
    """
    if x is None:
        raise ValueError(f"There are no {name}. Received: None")
    if input_checks.is_array(x):
        input_checks.check_arrays(x, model, name)
    elif isinstance(x, tf.data.Dataset):
        input_checks.check_structure(without_labels(x.element_spec), model, name)
        if int(x.cardinality()) == 0:
            raise ValueError(f"{name} hold no batches. Received: an empty tf.data.Dataset")
    elif isinstance(x, keras.utils.PyDataset):
        if x.num_batches == 0:
            raise ValueError(f"{name} hold no batches. Received: an empty PyDataset")
    elif not is_generator(x):
        raise ValueError(
            f"{name} must be arrays, a tf.data.Dataset, a keras.utils.PyDataset or a generator of "
            f"batches. Received: {name} of type {type(x).__name__}"
        )
