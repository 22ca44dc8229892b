"""Many strings in little memory: three arrays in place of a million Python objects.

Forked workers share arrays; reading a list of strings would copy its pages, as reference counts change.

Shapes: N strings, T bytes of text.
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_AT_ONCE = 1 << 16


class StringArray(Sequence[str]):
    """An immutable sequence of strings.

    Args:
        text: uint8 [T], UTF-8; file names need not be valid text, as in `os.fsencode`.
        starts: int64 [N], offset of each string.
        ends: int64 [N], offset of its end.
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.starts, self.ends = text, starts, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "StringArray":
        """An array of some strings."""
        if isinstance(strings, StringArray):
            return strings
        text, lengths, strings = bytearray(), array("q", [0]), iter(strings)
        while some := [one.encode("utf-8", "surrogateescape") for one in itertools.islice(strings, _AT_ONCE)]:
            text += b"".join(some)
            lengths.extend(map(len, some))
        limits = np.frombuffer(lengths, dtype=np.int64).cumsum()
        return cls(np.frombuffer(text, dtype=np.uint8), limits[:-1], limits[1:])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "StringArray": ...

    def __getitem__(self, index: int | slice) -> "str | StringArray":
        if isinstance(index, slice):
            return StringArray(self.text, self.starts[index], self.ends[index])
        return self.text[self.starts[index] : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (one.decode("utf-8", "surrogateescape") for one in self.encoded())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr([*self[:3], *(["..."] if len(self) > 3 else [])])

    def encoded(self) -> Iterator[bytes]:
        """The bytes of each string."""
        for start in range(0, len(self), _AT_ONCE):  # so that the lists stay small
            some = slice(start, start + _AT_ONCE)
            for first, end in zip(self.starts[some].tolist(), self.ends[some].tolist(), strict=True):
                yield self.text[first:end].tobytes()

    def take(self, indices: np.ndarray) -> "StringArray":
        """Some of the strings, in the order given; the text is shared."""
        return StringArray(self.text, self.starts[indices], self.ends[indices])
