"""Which values a frozen dataclass takes for its types, and the one line that refuses the others."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from mimkit.typed import check_types, given_as


@dataclass(frozen=True, kw_only=True)
class Values:
    """A field of each form."""

    whole_one: int = 1
    real: float = 0.5
    yes: bool = False
    name: str = ""
    place: Path = Path()
    maybe: Annotated[str | None, "help"] = None
    choice: Literal["one", "two", "three"] = "one"
    count: int | Literal["auto"] | None = None
    sides: tuple[int, ...] | None = None
    bias: tuple[float, ...] = ()
    pair: tuple[float, float] = (0.9, 0.95)
    where: str | Path | None = None

    def __post_init__(self) -> None:
        check_types(self, pair="betas")


FITTING = {
    "whole float": ({"whole_one": 3.0}, 3),
    "negative zero": ({"whole_one": -0.0}, 0),
    "NumPy's int": ({"whole_one": np.int64(3)}, 3),
    "NumPy's float": ({"whole_one": np.float32(3)}, 3),
    "array of no dimension": ({"whole_one": np.array(3)}, 3),
    "tensor of no dimension": ({"whole_one": torch.tensor(3)}, 3),
    "the largest": ({"whole_one": 2**63 - 1}, 2**63 - 1),
    "an int for a float": ({"real": 3}, 3),
    "NumPy's float for a float": ({"real": np.float64(0.25)}, 0.25),
    "NumPy's int for a float": ({"real": np.uint8(3)}, 3),
    "fraction": ({"real": Fraction(1, 4)}, 0.25),
    "NumPy's bool": ({"yes": np.bool_(True)}, True),
    "NumPy's string": ({"name": np.str_("a")}, "a"),
    "NumPy's string of several": ({"choice": np.str_("two")}, "two"),
    "string for a path": ({"place": "a/b"}, Path("a/b")),
    "another path for a path": ({"place": PurePosixPath("a/b")}, Path("a/b")),
    "another path for either": ({"where": PurePosixPath("a/b")}, Path("a/b")),
    "string for either": ({"where": "a/b"}, "a/b"),
    "word beside numbers": ({"count": "auto"}, "auto"),
    "number beside a word": ({"count": np.int32(8)}, 8),
    "nothing": ({"count": None}, None),
    "list": ({"sides": [32, 64]}, (32, 64)),
    "array": ({"sides": np.array([32.0, 64.0])}, (32, 64)),
    "tensor": ({"bias": torch.tensor([0.5, 0.25])}, (0.5, 0.25)),
    "single number": ({"sides": 32}, (32,)),
    "single number of NumPy's": ({"bias": np.float64(0.5)}, (0.5,)),
    "numbers of NumPy's": ({"sides": (np.int64(32), np.float32(64))}, (32, 64)),
    "pair": ({"pair": [1, 0.5]}, (1, 0.5)),
}


@pytest.mark.parametrize(("given", "expected"), FITTING.values(), ids=FITTING)
def test_values_that_fit(given, expected):
    ((name, _),) = given.items()
    value = getattr(Values(**given), name)
    assert value == expected
    assert type(value) is type(expected)
    assert not isinstance(value, tuple) or [type(one) for one in value] == [type(one) for one in expected]


LONG = "a text of many words " * 20
MISFITS = {
    "beyond 64 bits": ({"whole_one": 10**400}, "--whole-one takes a whole number, got one beyond 2**64"),
    "part of a whole": ({"whole_one": 2.5}, "--whole-one takes a whole number, got 2.5"),
    "part of a whole of NumPy's": ({"whole_one": np.float32(2.5)}, "--whole-one takes a whole number, got 2.5"),
    "bool for an int": ({"whole_one": True}, "--whole-one takes a whole number, got True"),
    "bool of NumPy's": ({"whole_one": np.bool_(True)}, "--whole-one takes a whole number, got True"),
    "string for an int": ({"whole_one": "3"}, "--whole-one takes a whole number, got '3' (a str)"),
    "nothing for an int": ({"whole_one": None}, "--whole-one takes a whole number, got None"),
    "infinity for an int": ({"whole_one": float("inf")}, "--whole-one takes a whole number, got inf"),
    "array for an int": ({"whole_one": np.zeros(2)}, "--whole-one takes a whole number, got an ndarray"),
    "string for a float": ({"real": "1e-3"}, "--real takes a number, got '1e-3' (a str)"),
    "NaN": ({"real": float("nan")}, "--real takes a number, got nan"),
    "infinity": ({"real": -np.float32("inf")}, "--real takes a number, got -inf"),
    "complex": ({"real": 1j}, "--real takes a number, got a complex"),
    "more than a float": ({"real": 10**5000}, "--real takes a number, got one beyond 2**64"),
    "string for a bool": ({"yes": "yes"}, "--yes takes True or False, got 'yes'"),
    "int for a bool": ({"yes": 1}, "--yes takes True or False, got 1"),
    "nothing for a bool": ({"yes": None}, "--yes takes True or False, got None"),
    "path for a name": ({"name": Path("a")}, f"--name takes a string, got {Path('a')!r}"),
    "bytes for a name": ({"maybe": b"a"}, "--maybe takes a string, got a bytes"),
    "class for a name": ({"maybe": Path}, "--maybe takes a string, got a type"),
    "number for a path": ({"place": 3}, "--place takes a path, got 3"),
    "empty path": ({"place": ""}, "--place takes a path, got ''"),
    "number for either": ({"where": 3}, "--where takes a string or a path, got 3"),
    "other word": ({"choice": "four"}, "--choice takes one, two or three, got 'four'"),
    "no word": ({"choice": None}, "--choice takes one, two or three, got None"),
    "other word beside numbers": ({"count": "most"}, "--count takes a whole number or auto, got 'most' (a str)"),
    "text for numbers": ({"sides": "32"}, "--sides takes whole numbers, got '32' (a str)"),
    "texts for numbers": ({"sides": ["32"]}, "--sides takes whole numbers, got ['32']"),
    "part among wholes": ({"sides": (32, 0.5)}, "--sides takes whole numbers, got (32, 0.5)"),
    "nothing among numbers": ({"bias": [None]}, "--bias takes numbers, got [None]"),
    "nothing for numbers": ({"bias": None}, "--bias takes numbers, got None"),
    "set": ({"sides": {32}}, "--sides takes whole numbers, got a set"),
    "two dimensions": ({"bias": np.zeros((1, 2))}, "--bias takes numbers, got an ndarray"),
    "three of two": ({"pair": (1, 2, 3)}, "--betas takes 2 numbers, got (1, 2, 3)"),
    "long text": ({"whole_one": LONG}, "--whole-one takes a whole number, got a str"),
    "text of lines": ({"choice": "one\n"}, r"--choice takes one, two or three, got 'one\n'"),
}


@pytest.mark.parametrize(("given", "line"), MISFITS.values(), ids=MISFITS)
def test_values_that_do_not_fit(given: dict[str, Any], line: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - all of the message is compared
        Values(**given)
    assert str(error.value) == line


def test_a_field_of_an_unknown_type_is_its_authors_mistake():
    @dataclass(frozen=True)
    class Strange:
        """Not what a setting may be."""

        values: dict[str, int]

    with pytest.raises(TypeError, match="no type that a setting may have"):
        check_types(Strange({}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "3"),
        (np.int64(3), "3"),
        ("a", "'a'"),
        ({"a": 1}, "{'a': 1}"),
        (torch.zeros(2), "a Tensor"),
        (np.zeros(2), "an ndarray"),
        ([torch.zeros(2, 2)], "a list"),
        (LONG, "a str"),
        (object(), "an object"),
    ],
)
def test_values_in_words(value, words):
    assert given_as(value) == words
