"""Whole files or none: written under another name, flushed to the disk, renamed."""

import os
from pathlib import Path


def refuse_unwritable(path: Path) -> None:
    """Look, before the work is done, whether its file can be written.

    Raises:
        ValueError: the path is a folder, or no folder can be made or written to where it should lie.
    """
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder, not a file")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"--out {path} cannot be written: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--out {path} cannot be written: {above} allows no new files")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(data)
        flush(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is None:
            raise
        # Some name the unfinished file, those of a full disk name none.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file atomically, in UTF-8."""
    write_bytes(path, text.encode())


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
