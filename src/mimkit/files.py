"""Locations of data: paths, and URLs, which a `Path` would mangle. Files: written atomically, flushed, locked."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
"""False on Windows, where `process_lock` and `lock_open_file` do nothing."""

Location = Path | str
"""A path, or a URL as a string."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_CHOICE = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def refuse_unwritable(path: Path) -> None:
    """Check up front that `path` can be written.

    Raises:
        ValueError: the path is a folder, or its parent folder cannot be created or written to.
    """
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder, not a file")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"--out {path} cannot be written: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--out {path} cannot be written: {above} allows no new files")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name, or replaces the one there, only when complete; never after an error."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        flush(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is None:
            raise
        # Name the file asked for: the error names the unfinished one, or, where the disk is full, none.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file atomically, in UTF-8."""
    write_bytes(path, text.encode())


def flush(path: Path) -> None:
    """Wait until a file or folder is written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def process_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, created if needed. The system releases it when the process ends.

    Only this process holds it, not its forked children, which may outlive it for a moment. On Windows nothing is
    locked.

    Raises:
        BlockingIOError: another process holds it.
    """
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def lock_open_file(file: IO[Any], *, shared: bool) -> None:
    """Lock a file until it is closed, also by forked children. On Windows nothing is locked.

    Args:
        file: open for reading.
        shared: with others that share it, waiting for one that does not; else alone, without waiting.

    Raises:
        BlockingIOError: others have it locked, and it is not to be shared.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)


def located(data: str | Path) -> Location:
    """A URL as a string, anything else as a path, with `~` for the home folder."""
    return data if isinstance(data, str) and _URL.match(data) else home(data)


def home(path: str | Path) -> Path:
    """A path whose `~` is replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(path))


def absolute(data: Location) -> Location:
    """The location independent of the working directory."""
    return data if isinstance(data, str) else data.resolve()


def below(root: Location, name: str) -> Location:
    """The location of a name, with `/` between folders, below another location."""
    return f"{root}/{name}" if isinstance(root, str) else root / name


def expand(pattern: str) -> list[str]:
    """All names that a pattern with `{000..012}` or `{train,val}` stands for, in order.

    Raises:
        ValueError: a range ends before it begins.
    """
    match = _CHOICE.search(pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        choices = words.split(",")
    elif int(last) < int(first):
        raise ValueError(f"{pattern}: the range {first}..{last} is empty")
    else:
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    ends = expand(pattern[match.end() :])
    return [pattern[: match.start()] + choice + end for choice in choices for end in ends]
