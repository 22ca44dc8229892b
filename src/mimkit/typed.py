"""Values of frozen dataclasses held against the types of their fields, when they are made."""

import functools
import math
import os
import types
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mimkit.errors import flag

LONGEST = 60  # of a value that is shown as it is


def check_types(instance: Any, /, **flags: str) -> None:
    """Give each field of a frozen dataclass a value of its type, or refuse what was given.

    A whole float is taken for an int, an int for a float; single numbers of NumPy and torch become Python's. Lists,
    arrays and a single number are taken for a tuple, a string for a path. A bool is no number, a string is never parsed
    as one, and NaN and the infinities are none. None is taken where the type says so.

    Args:
        instance: the dataclass, in its `__post_init__`. Its types are made of int, float, bool, str, Path, Literal,
            unions and tuples.
        flags: the settings that give the fields of another name.

    Raises:
        ValueError: a value of another type; the message names the flag, what it takes, and what was given.
    """
    kind: type = type(instance)
    hints = _hints(kind)
    for field in fields(instance):
        given, hint = getattr(instance, field.name), hints[field.name]
        fitted = _fitted(given, hint)
        if fitted is _NO_FIT:
            name = flag(flags.get(field.name, field.name))
            raise ValueError(f"{name} takes {_expected(hint)}, got {_shown(given, hint)}")
        object.__setattr__(instance, field.name, fitted)


def given_as(value: Any) -> str:
    """A value in a message: short ones as they are written, others by their type."""
    value = _single(value)
    plain = value is None or isinstance(value, bool | int | float | str | list | tuple | dict | os.PathLike)
    try:
        text = repr(value) if plain else ""
    except ValueError:  # an int of thousands of digits
        text = ""
    if text and len(text) <= LONGEST and text.isprintable():
        return text
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' or kind == 'ndarray' else 'a'} {kind}"


_NO_FIT = object()


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or a type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fitted(value: Any, hint: Any) -> Any:
    """The value as one of a type, or `_NO_FIT`."""
    value = _single(value)
    for member in _members(hint):
        fitted = _fitted_one(value, member)
        if fitted is not _NO_FIT:
            return fitted
    return _NO_FIT


def _fitted_one(value: Any, hint: Any) -> Any:
    if hint is types.NoneType:
        return None if value is None else _NO_FIT
    if hint is bool:
        return value if isinstance(value, bool) else _NO_FIT
    if hint in (int, float):
        return _number(value, hint)
    if hint is str:
        return "" + value if isinstance(value, str) else _NO_FIT  # of an enumeration's member the string, not its name
    if hint is Path:
        path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        return Path(path) if isinstance(path, str) and path else _NO_FIT
    if get_origin(hint) is Literal:
        return next((option for option in get_args(hint) if type(option) is type(value) and option == value), _NO_FIT)
    if get_origin(hint) is tuple:
        return _tuple(value, get_args(hint))
    raise TypeError(f"{hint} is no type that a setting may have")


def _single(value: Any) -> Any:
    """NumPy's and torch's single numbers as Python's."""
    shape = getattr(value, "shape", None)
    return value.item() if isinstance(shape, tuple) and not shape and hasattr(value, "item") else value


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        return _NO_FIT
    try:
        number = int(value) if isinstance(value, Integral) else float(value)
        if not math.isfinite(number) or (kind is int and (number != int(number) or abs(number) >= 2**64)):
            return _NO_FIT
    except OverflowError:  # beyond all floats
        return _NO_FIT
    return int(number) if kind is int else number


def _tuple(value: Any, members: tuple[Any, ...]) -> Any:
    if hasattr(value, "tolist"):  # an array's
        value = value.tolist()
    if isinstance(value, Real):
        value = (value,)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        return _NO_FIT
    hints = [members[0]] * len(value) if members[-1] is ... else list(members)
    fitted = [_fitted(one, hint) for one, hint in zip(value, hints, strict=False)]
    return tuple(fitted) if len(value) == len(hints) and _NO_FIT not in fitted else _NO_FIT


WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", Path: "a path"}


def _expected(hint: Any) -> str:
    """A type in words."""
    words: list[str] = []
    for member in _members(hint):
        if get_origin(member) is Literal:
            words += map(str, get_args(member))
        elif get_origin(member) is tuple:
            inner, count = get_args(member)[0], len(get_args(member))
            word = WORDS[inner].removeprefix("a ") + "s"
            words.append(word if get_args(member)[-1] is ... else f"{count} {word}")
        elif member is not types.NoneType:
            words.append(WORDS[member])
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _shown(value: Any, hint: Any) -> str:
    """A value that does not fit, and that it is a string where a number is wanted."""
    inner = {part for member in _members(hint) for part in (member, *get_args(member))}
    is_text = isinstance(value, str) and inner & {int, float}
    if isinstance(value, Integral) and abs(int(value)) >= 2**64:
        return "one beyond 2**64"
    words = given_as(value)
    return f"{words} (a str)" if is_text and words != "a str" else words
