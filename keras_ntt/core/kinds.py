"""What a layer is: its class, or the class of Keras that a subclass computes as.

Files of Keras 2 and code of users have subclasses that take another argument, have another name,
or a method more, and change nothing that is computed. They are treated as their base class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

Rule = TypeVar("Rule")

# What a subclass may define and still compute what its base computes. It may also define what
# its base does not have, for nothing of the base calls that.
_NAMES = """
    __init__ __module__ __doc__ __qualname__ __firstlineno__ __static_attributes__ __annotations__
    __annotate__ __annotations_cache__ __annotate_func__ __dict__ __weakref__ __abstractmethods__
    __parameters__ __orig_bases__ _abc_impl get_config from_config
"""
_HARMLESS = frozenset(_NAMES.split())


def kinds_of(thing: Any) -> Iterator[type]:
    """Yield the classes whose rules hold for an object: its own, and bases that it computes as.

    Args:
        thing: A layer, an operation, a schedule, ...

    Yields:
        Its class, and each base for as long as nothing that the bases have is overridden but
        the constructor and the configuration. None where ``call`` is replaced on the object.
    """
    if "call" in getattr(thing, "__dict__", ()):
        return
    order = type(thing).__mro__
    for number, cls in enumerate(order):
        yield cls
        if _changes_something(cls, order[number + 1 :]):
            return


def _changes_something(cls: type, bases: Sequence[type]) -> bool:
    """Tell whether a class overrides something of the class that it computes as.

    Args:
        cls: The class.
        bases: Those that are looked in after it.
    """
    names = set(vars(cls)) - _HARMLESS
    if _is_of_keras(cls):  # which calls what its subclasses add
        return bool(names)
    return any(name in vars(base) for name in names for base in bases)


def _is_of_keras(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("keras", "tf_keras")


def kind_of(thing: Any) -> type | None:
    """Return the class that an object computes as: one of Keras's own, if it can be.

    Args:
        thing: A layer, a cell or an operation.

    Returns:
        The first class of Keras among those whose rules hold for it; its own class where there is
        none, and None where ``call`` is replaced on the object.
    """
    found = list(kinds_of(thing))
    return next(filter(_is_of_keras, found), found[0] if found else None)


def computes_as(thing: Any, *classes: type) -> bool:
    """Tell whether an object computes as one of some classes of Keras, or as theirs of Keras."""
    kind = kind_of(thing)
    return kind is not None and _is_of_keras(kind) and issubclass(kind, classes)


def rule_for(thing: Any, rules: Mapping[type, Rule]) -> Rule | None:
    """Return what a table of classes has for an object, None if it has nothing.

    >>> class Named(int): ...
    >>> class Other(int):
    ...     def __add__(self, value): return 0
    >>> rule_for(Named(1), {int: "whole"}), rule_for(Other(1), {int: "whole"})
    ('whole', None)
    """
    return next((rules[cls] for cls in kinds_of(thing) if cls in rules), None)
