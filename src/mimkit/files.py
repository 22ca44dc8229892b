"""Whole files or none: written under another name, flushed to the disk, renamed."""

import os
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(data)
        flush(unfinished)
        os.replace(unfinished, path)
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
