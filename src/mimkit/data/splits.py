"""Which images are for training and which are held out, by the names of folders, files and splits."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

TRAIN, HELD_OUT = 1, 2
HELD_OUT_NAMES = ("val", "valid", "validation", "test")
"""What the held-out split may be called, in the order of preference."""

_SPLIT = re.compile(rf"({'|'.join(('train', *HELD_OUT_NAMES))})(?=[-_./\d]|$)")


def split_of(name: str) -> str | None:
    """The split that a shard's name, or one of its folders, begins with: "train", one of `HELD_OUT_NAMES`, or None."""
    matches = (_SPLIT.match(part) for part in name.split("/"))
    return next((match[1] for match in matches if match), None)


def choose_splits(items: Sequence[Any], names: Sequence[str | None]) -> tuple[list[Any], np.ndarray | None]:
    """Of files or tables with the names of their splits: those to use, and TRAIN or HELD_OUT for each.

    Where there is no "train", or nothing held out, all are used, and the second value is None.
    """
    held_out = next((name for name in HELD_OUT_NAMES if name in names), None)
    if "train" not in names or held_out is None:
        return list(items), None
    chosen = [(item, name) for item, name in zip(items, names, strict=True) if name in ("train", held_out)]
    splits = np.array([TRAIN if name == "train" else HELD_OUT for _, name in chosen], dtype=np.uint8)
    return [item for item, _ in chosen], splits
