"""Which layers a user means: by regular expressions, or a function of the layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import keras

from keras_ntt.core import checks, host

Filters = str | Sequence[str] | Callable[[keras.layers.Layer], bool] | None


def check_filters(filters: Filters) -> None:
    """Raise a ValueError unless `filters` is valid."""
    as_predicate(filters, None)


def as_predicate(
    filters: Filters, model: keras.Layer | None
) -> Callable[[keras.layers.Layer], bool]:
    """Return a function that accepts or refuses a layer of a model, or part of a layer.

    Paths are searched without their root, the model's name.
    """
    root = "" if model is None else f"{model.name}/"
    if filters is None:
        return lambda layer: True
    if callable(filters) and not isinstance(filters, type):
        return lambda layer: checks.check_truth("filters(layer)", filters(layer))
    try:
        if not isinstance(filters, str | Collection):
            raise TypeError("it is none")
        patterns = [filters] if isinstance(filters, str) else list(filters)
        if not all(isinstance(pattern, str | re.Pattern) for pattern in patterns):
            raise TypeError("not all of them are strings")
        given = [re.compile(pattern) for pattern in patterns]
        compiled = [re.compile(without_root(p.pattern, root), p.flags) for p in given]
        for pattern in compiled:
            pattern.search("")
    except (re.error, TypeError, OverflowError) as error:
        raise ValueError(
            "filters must be a regular expression, a list of them or a callable on the layer: "
            f"{error}. Received: filters={filters!r}"
        ) from error

    around = {} if model is None else _names_around(model)

    def accepts(layer: keras.layers.Layer) -> bool:
        paths = [v.path.removeprefix(root) for v in layer.variables]
        names = [layer.name, *around.get(id(layer), ()), *paths]
        return any(p.search(name) for p in compiled for name in names)

    return accepts


def _names_around(whole: keras.Layer) -> dict[int, tuple[str, ...]]:
    """Return the names of the layers that each layer is in, which its paths may leave out."""
    found: dict[int, tuple[str, ...]] = {}

    def visit(layer: keras.Layer, names: tuple[str, ...]) -> None:
        for part in host.layers_of(layer, include_itself=False, recursive=False):
            if id(part) not in found:
                found[id(part)] = names
                visit(part, (*names, part.name))

    visit(whole, ())
    return found


def without_root(expression: str, root: str) -> str:
    """Return a regular expression for paths without their root, the name of the model.

    The root is taken away where an expression, a group or an alternative begins.

    >>> without_root("^net/dense", "net/"), without_root("net", "net/")
    ('^dense', 'net')
    >>> without_root("^net/a|net/(b|net/c)", "net/"), without_root("a/net/b", "net/")
    ('^a|(b|c)', 'a/net/b')
    """
    return re.sub(rf"(^|[|(])(\^?){re.escape(root)}", r"\1\2", expression)
