"""Every exception that a user meets, and the flags that a message names."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(*flags: str) -> Iterator[None]:
    """Put the flags concerned before the message of a ValueError or FileNotFoundError raised inside."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{', '.join(flags)}: {error}") from error


@contextmanager
def refusing_damage(source: object) -> Iterator[None]:
    """Around reading what a file says of itself: what is missing or of a wrong type becomes a ValueError naming it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(f"{source} is damaged, or of another version of mimkit: {said}") from error


def refuse_unknown(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for a keyword argument that a function does not know, with the one that it may be meant for."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise TypeError(f"{function}() takes no argument {name!r}{hint}")


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


class CannotGoOn(RuntimeError):
    """No more batches can be made; the message says why, in a line."""


class CannotBeSent(ValueError):
    """Something cannot be sent to another process; the message says what, and what to do, in a line."""


class TooManyBadImages(CannotGoOn):
    """One image after the other could not be read."""


class DataUnreachable(CannotGoOn):
    """Remote data cannot be fetched, whether for now or for good."""


class BadImage(Exception):
    """A file that gives no image: missing, broken, too large, or of no known format.

    Args:
        path: the file.
        reason: one short line.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Torn(Exception):
    """A checkpoint that is incomplete or whose contents do not match their checksums."""


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and what is kept."""
