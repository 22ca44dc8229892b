"""Parts as names and values: what run.json and exported files keep of them, and parts made again from that.

A record is `{"name": "RandomMask", "values": {"ratio": 0.75, ...}}`; values may be records, or lists of them. It has
all values, defaults too, so that a part is restored as it was even after a default has changed. Files of format 1 have
a part's repr instead, `RandomMask(ratio=0.75)`, which `parse_text` reads.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any

Record = dict[str, Any]

FILLED_IN = {"image_size", "channels", "out_grid", "complete"}  # arguments that depend on the other parts

# Names that have changed since files were written with them: old -> today's. Never remove one.
FORMER_PARTS: dict[str, str] = {}
FORMER_VALUES: dict[tuple[str, str], str] = {  # (today's part, old value) -> today's
    ("Train", "drops"): "milestones",
    ("Train", "ema"): "ema_decay",
}


def record_of(part: Any) -> Any:
    """A part, or a list of them, as a record; plain values are themselves, with lists for tuples.

    Args:
        part: a dataclass, an enumeration's member, a class or function, or a `partial` of one, whose keyword arguments
            and keyword defaults are kept. Of any other object the name of its class is kept, and of other values that
            JSON cannot hold Python's text, to compare by.
    """
    if isinstance(part, list | tuple):
        return [record_of(one) for one in part]
    if isinstance(part, Enum):
        return {"name": part.name, "values": {}}
    if is_dataclass(part) and not isinstance(part, type):
        values = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
        return {"name": type(part).__name__, "values": {name: record_of(value) for name, value in values.items()}}
    if callable(part) and not hasattr(part, "__name__") and not isinstance(part, partial):  # an object of a class
        return {"name": name_of(part), "values": {name: record_of(value) for name, value in vars(part).items()}}
    if callable(part):
        made, bound = (part.func, part.keywords) if isinstance(part, partial) else (part, {})
        values = {name: bound.get(name, default) for name, default in defaults_of(made).items()} | bound
        if isinstance(part, partial) and part.args:
            values["*"] = part.args
        if hasattr(made, "__self__"):
            values["self"] = made.__self__
        return {"name": name_of(made), "values": {name: record_of(value) for name, value in values.items()}}
    if isinstance(part, dict):
        return {str(key): record_of(value) for key, value in part.items()}
    if part is None or isinstance(part, bool | int | float | str):
        return part
    return type(part).__name__ if " at 0x" in repr(part) else repr(part)  # an address is another one in each process


def name_of(made: Callable[..., Any]) -> str:
    """The name of a class or function, or that of an object's class."""
    return str(getattr(made, "__name__", type(made).__name__))


def unknown_parts(part: Any, known: Mapping[str, Any]) -> list[str]:
    """What `make` would not make again from a part's record: classes, functions and members that are not the known
    ones, by their names, and values that JSON cannot hold, as Python's text."""
    if part is None or isinstance(part, bool | int | float | str):
        return []
    if isinstance(part, list | tuple):
        return [name for one in part for name in unknown_parts(one, known)]
    if isinstance(part, Enum):
        return [] if known.get(part.name) is part else [part.name]
    values: dict[str, Any] = {}
    if isinstance(part, partial):
        if part.args:
            return [f"{name_of(part.func)} with arguments that have no name"]
        part, values = part.func, part.keywords
    elif is_dataclass(part) and not isinstance(part, type):
        part, values = type(part), {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    elif not callable(part):
        return [repr(part)]
    own = [] if known.get(name_of(part)) is part else [name_of(part)]
    return own + [name for value in values.values() for name in unknown_parts(value, known)]


def defaults_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a class or function that have defaults, apart from those that `build` fills in."""
    parameters = inspect.signature(make).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in FILLED_IN}


def parse_text(text: str) -> Any:
    """The record, or list of records, for the repr of a part or of several: `Hog(bins=9, offsets=())`.

    Raises:
        ValueError: it is no such text.
    """

    def understood(node: ast.expr) -> Any:
        match node:
            case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
                return {"name": name, "values": {str(k.arg): understood(k.value) for k in keywords}}
            case ast.Name(id=name):
                return {"name": name, "values": {}}
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return [understood(item) for item in items]
        return ast.literal_eval(node)

    try:
        found = understood(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text!r} names no part of mimkit's") from error
    return found


def up_to_date(record: Any) -> Any:
    """A record with today's names for parts and values."""
    if isinstance(record, list):
        return [up_to_date(one) for one in record]
    if not is_record(record):
        return record
    name = FORMER_PARTS.get(record["name"], record["name"])
    return {
        "name": name,
        "values": {FORMER_VALUES.get((name, key), key): up_to_date(value) for key, value in record["values"].items()},
    }


def make(record: Any, known: Mapping[str, Any]) -> Any:
    """The inverse of `record_of`, from known dataclasses, classes, functions and members by name. Calls nothing else.

    Values that a record lacks have today's defaults.

    Raises:
        ValueError: a name or a value is not known.
    """
    if isinstance(record, list):
        return tuple(make(one, known) for one in record)
    if not is_record(record):
        return record
    record = up_to_date(record)
    if record["name"] not in known:
        raise ValueError(f"this version of mimkit has no {record['name']}")
    part: Any = known[record["name"]]
    values = {key: make(value, known) for key, value in record["values"].items()}
    if not callable(part):
        return part
    unknown = values.keys() - inspect.signature(part).parameters.keys()
    if unknown:
        raise ValueError(f"this version of mimkit's {record['name']} has no {', '.join(sorted(unknown))}")
    if is_dataclass(part):
        return part(**values)  # type: ignore[operator]
    return partial(part, **values) if values else part


def is_record(value: Any) -> bool:
    """Whether it is a record, rather than a plain value."""
    if not isinstance(value, dict) or value.keys() != {"name", "values"}:
        return False
    return isinstance(value["name"], str) and isinstance(value["values"], dict)


def same(then: Any, now: Any, known: Mapping[str, Any]) -> bool:
    """Whether two records describe equal parts: a value that one lacks must be the default in the other."""
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(same(a, b, known) for a, b in zip(then, now, strict=True))
    if not (is_record(then) and is_record(now)):
        return bool(then == now or (then != then and now != now))  # NaN is NaN
    then, now = up_to_date(then), up_to_date(now)
    if then["name"] != now["name"]:
        return False
    part = known.get(now["name"])
    defaults = {k: record_of(v) for k, v in defaults_of(part).items()} if callable(part) else {}
    pairs = [(defaults | record["values"]) for record in (then, now)]
    return pairs[0].keys() == pairs[1].keys() and all(same(pairs[0][key], pairs[1][key], known) for key in pairs[0])


def as_text(record: Any) -> str:
    """A record as it would be written in Python."""
    if isinstance(record, list):
        return f"({', '.join(as_text(one) for one in record)}{',' * (len(record) == 1)})"
    if not is_record(record):
        return repr(record)
    values = ", ".join(f"{key}={as_text(value)}" for key, value in record["values"].items())
    return f"{record['name']}({values})" if values else record["name"]
