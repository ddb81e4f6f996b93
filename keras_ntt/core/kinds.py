"""The kind of a layer: its class, or the class of Keras whose computation a subclass keeps.

Some subclasses take another argument, have another name, or add a method, and change nothing that
is computed. They occur in files of Keras 2 and in user code. They are treated as their base class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

Rule = TypeVar("Rule")

# A subclass may define these and still compute what its base computes. It may also define names
# that its base does not have, because no code of the base uses them.
_NAMES = """
    __init__ __module__ __doc__ __qualname__ __firstlineno__ __static_attributes__ __annotations__
    __annotate__ __annotations_cache__ __annotate_func__ __dict__ __weakref__ __abstractmethods__
    __parameters__ __orig_bases__ _abc_impl get_config from_config
"""
_HARMLESS = frozenset(_NAMES.split())


def kinds_of(thing: Any) -> Iterator[type]:
    """Yield the classes whose rules apply to an object.

    These are its own class, and bases that compute the same.

    Args:
        thing: A layer, an operation, a schedule, ...

    Yields:
        Its class, and each base as long as only the constructor and the configuration are
        overridden. Nothing if ``call`` is replaced on the object.
    """
    if "call" in getattr(thing, "__dict__", ()):
        return
    order = type(thing).__mro__
    for number, cls in enumerate(order):
        yield cls
        if _changes_something(cls, order[number + 1 :]):
            return


def _changes_something(cls: type, bases: Sequence[type]) -> bool:
    """Tell whether a class overrides a part of its bases that changes what is computed.

    Args:
        cls: The class.
        bases: The classes after it in the method resolution order.
    """
    names = set(vars(cls)) - _HARMLESS
    if _is_of_keras(cls):  # which calls what its subclasses add
        return bool(names)
    return any(name in vars(base) for name in names for base in bases)


def _is_of_keras(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("keras", "tf_keras")


def kind_of(thing: Any) -> type | None:
    """Return the class whose computation an object has: one of Keras's, if possible.

    Args:
        thing: A layer, a cell or an operation.

    Returns:
        The first class of Keras among those whose rules apply to it. Its own class if there is
        none, and None if ``call`` is replaced on the object.
    """
    found = list(kinds_of(thing))
    return next(filter(_is_of_keras, found), found[0] if found else None)


def computes_as(thing: Any, *classes: type) -> bool:
    """Tell whether an object computes as one of some classes, or as their base in Keras."""
    kind = kind_of(thing)
    return kind is not None and _is_of_keras(kind) and issubclass(kind, classes)


def rule_for(thing: Any, rules: Mapping[type, Rule]) -> Rule | None:
    """Return the entry for an object in a table of classes, or None.

    >>> class Named(int): ...
    >>> class Other(int):
    ...     def __add__(self, value): return 0
    >>> rule_for(Named(1), {int: "whole"}), rule_for(Other(1), {int: "whole"})
    ('whole', None)
    """
    return next((rules[cls] for cls in kinds_of(thing) if cls in rules), None)
