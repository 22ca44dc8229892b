"""A cache of fetched files, bounded in size and shared by all processes of a machine.

One process writes a file under another name, while the others wait, and renames it when it is complete. The least
recently used files make room for new ones. Files that a process has open are never removed: on POSIX their readers hold
a shared lock, and Windows refuses to remove open files.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from mimkit.errors import DataUnreachable
from mimkit.files import HAS_LOCKS, flush, lock_open_file, write_bytes

GIGABYTE = 10**9
DEFAULT_GB = 50.0

_UNFINISHED = re.compile(r"(.+)\.(\d+)\.unfinished")


@dataclass(frozen=True)
class Cache:
    """A bounded folder of files.

    Args:
        folder: created when first needed.
        limit: total bytes of all files. Files that are open are kept even where they alone exceed it.
    """

    folder: Path
    limit: int

    @classmethod
    def at(cls, folder: Path | None = None, gigabytes: float | None = None) -> "Cache":
        """The cache in a folder; None means MIMKIT_CACHE and MIMKIT_CACHE_GB, or else the platform's default.

        Raises:
            ValueError: MIMKIT_CACHE_GB is not a number above 0.
        """
        if gigabytes is None:
            text = os.environ.get("MIMKIT_CACHE_GB", str(DEFAULT_GB))
            try:
                gigabytes = float(text)
            except ValueError:
                gigabytes = 0
            if not gigabytes > 0:
                raise ValueError(f"MIMKIT_CACHE_GB must be a number above 0, got {text}")
        named = os.environ.get("MIMKIT_CACHE")
        return cls(folder or (Path(named) if named else _platform_cache()), int(gigabytes * GIGABYTE))

    def get_small(self, name: str) -> bytes | None:
        """The data that `put_small` has stored, or None."""
        try:
            return (self.folder / "index" / name).read_bytes()
        except OSError:
            return None

    def put_small(self, name: str, data: bytes) -> None:
        """Store a small file that is never evicted and does not count towards the limit.

        Raises:
            DataUnreachable: it cannot be written.
        """
        try:
            (self.folder / "index").mkdir(parents=True, exist_ok=True)
            with self._lock("index", wait=True):  # several processes may store the same
                write_bytes(self.folder / "index" / name, data)
        except OSError as error:
            raise DataUnreachable(f"the cache {self.folder} cannot be written: {error.strerror or error}") from error

    def fetch(self, name: str, size: int, make: Callable[[Path], None], *, wait: bool = True) -> bool:
        """Make sure that a file is in the cache. False if another process is writing it and `wait` is not set.

        Args:
            name: of the file.
            size: its expected bytes.
            make: writes it completely to a path.
            wait: for another process that is writing it.

        Raises:
            OSError: the disk is full, and the like.
            Whatever `make` raises.
        """
        path = self.folder / name
        if path.exists():
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock(name, wait=wait):
                if path.exists():
                    return True
                unfinished = self._make_room(name, size)
                try:
                    make(unfinished)
                    flush(unfinished)
                    os.replace(unfinished, path)
                finally:
                    unfinished.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def open(self, name: str) -> FileIO | None:
        """A file for reading, which is not evicted while it is open; None if it is not in the cache."""
        path = self.folder / name
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        if HAS_LOCKS:
            lock_open_file(file, shared=True)
            if not os.fstat(file.fileno()).st_nlink:  # removed between opening and locking
                file.close()
                return None
        os.utime(path)
        return file

    def _lock(self, name: str, *, wait: bool) -> FileLock:
        (self.folder / "locks").mkdir(exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock", timeout=-1 if wait else 0)

    def _make_room(self, name: str, size: int) -> Path:
        """Evict least recently used files until a new one fits; returns the path to write it to.

        The size that the file is going to have is part of this path, so that other processes count it.
        """
        with self._lock("room", wait=True):
            kept: list[tuple[int, int, Path]] = []
            total = size
            for path in self.folder.iterdir():
                match = _UNFINISHED.fullmatch(path.name)
                if match is not None:
                    total += 0 if self._is_left_behind(path, match[1], ours=name) else int(match[2])
                elif path.is_file():
                    status = path.stat()
                    total += status.st_size
                    kept.append((status.st_mtime_ns, status.st_size, path))
            for _, length, path in sorted(kept):
                if total <= self.limit:
                    break
                total -= length if _remove_unused(path) else 0
            unfinished = self.folder / f"{name}.{size}.unfinished"
            unfinished.touch()
        if total > self.limit:
            print(
                f"mimkit: the shards being read, {total / GIGABYTE:.3g} GB, exceed the limit of "
                f"{self.limit / GIGABYTE:.3g} GB of the cache {self.folder} (--cache-gb)",
                file=sys.stderr,
            )
        return unfinished

    def _is_left_behind(self, path: Path, name: str, *, ours: str) -> bool:
        """Remove an unfinished file whose writer has ended; False if one is writing it. The lock of `ours` is held."""
        try:
            with contextlib.nullcontext() if name == ours else self._lock(name, wait=False):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True


def _remove_unused(path: Path) -> bool:
    try:
        if not HAS_LOCKS:  # on Windows the system refuses to remove open files
            path.unlink(missing_ok=True)
            return True
        with path.open("rb") as file:
            lock_open_file(file, shared=False)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:  # in use
        return False
    return True


def _platform_cache() -> Path:
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mimkit" / "shards"
