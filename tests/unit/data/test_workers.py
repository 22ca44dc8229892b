"""What may be sent to data workers that are no forks."""

import multiprocessing
from functools import partial

import numpy as np
import pytest
import torch

from mimkit.data.workers import refuse_unsendable
from mimkit.errors import CannotBeSent
from mimkit.views import RandomResizedCrop


class Heavy(np.ndarray):
    """An array of a kind of its own."""


SENDABLE = {
    "view": RandomResizedCrop(),
    "partial": partial(np.add, 1),
    "method": RandomResizedCrop().__call__,
    "class": RandomResizedCrop,
    "array of objects": np.array([None, "a"], dtype=object),
    "array of a kind": np.zeros(3).view(Heavy),
    "lock": multiprocessing.get_context("spawn").Lock(),
    "shared value": multiprocessing.get_context("spawn").Value("i", 3),
}


@pytest.mark.parametrize("value", SENDABLE.values(), ids=SENDABLE)
def test_what_can_be_sent(value):
    refuse_unsendable([value])


def test_tensors_stay_as_they_are():
    tensor = torch.zeros(3)
    refuse_unsendable({"images": tensor, "more": tensor.untyped_storage()})
    assert not tensor.is_shared()


class Refusing:
    """It has its own reason."""

    def __getstate__(self) -> None:
        raise RuntimeError("not me\nnor you")


def local() -> type:
    """A class that no module has."""

    class Inner:
        pass

    return Inner


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda number: number, "<lambda>"),
        (local(), "Inner"),
        (local()(), "Inner"),
        ((number for number in range(3)), "generator"),
        (np.array([lambda: 3], dtype=object), "<lambda>"),
        (Refusing(), "not me;"),
    ],
    ids=["function", "class", "object", "generator", "in an array", "own reason"],
)
def test_what_cannot_be_sent(value, what):
    with pytest.raises(CannotBeSent, match=f"^data workers cannot be sent what they need: [^\n]*{what}[^\n]*workers=0"):
        refuse_unsendable(("some", value))
