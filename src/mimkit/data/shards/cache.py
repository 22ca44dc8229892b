"""A folder that keeps what was fetched, up to a size: whole files only, shared by all processes of a machine.

A file is made under another name, by one process while the others wait, and renamed when it is complete. Those used
least recently make room for new ones. One that any living process has open stays: on POSIX its readers hold a shared
lock on it, and elsewhere open files cannot be removed.
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
        folder: is made when it is needed.
        limit: bytes of all files together. Those that processes have open are kept even where they alone are more.
    """

    folder: Path
    limit: int

    @classmethod
    def at(cls, folder: Path | None = None, gigabytes: float | None = None) -> "Cache":
        """The cache at a place; what is None comes from MIMKIT_CACHE and MIMKIT_CACHE_GB, or is the platform's.

        Raises:
            ValueError: MIMKIT_CACHE_GB is no number above 0.
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
        """What `put_small` has kept, or None."""
        try:
            return (self.folder / "index" / name).read_bytes()
        except OSError:
            return None

    def put_small(self, name: str, data: bytes) -> None:
        """Keep a small file for good, outside the bound.

        Raises:
            DataUnreachable: it cannot be written.
        """
        try:
            (self.folder / "index").mkdir(parents=True, exist_ok=True)
            with self._lock("index", wait=True):  # several processes may have learned the same
                write_bytes(self.folder / "index" / name, data)
        except OSError as error:
            raise DataUnreachable(f"nothing can be kept in {self.folder}: {error.strerror or error}") from error

    def fetch(self, name: str, size: int, make: Callable[[Path], None], *, wait: bool = True) -> bool:
        """See to it that there is a file of a name. False where another process is making it and this one won't wait.

        Args:
            name: of the file.
            size: bytes that it is going to have, about.
            make: writes it, whole, to a path.
            wait: for another process that is making it.

        Raises:
            OSError: there is no room on the disk, and the like.
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
        """A file for reading, which stays as long as it is open; None if it is not there."""
        path = self.folder / name
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        if HAS_LOCKS:
            lock_open_file(file, shared=True)
            if not os.fstat(file.fileno()).st_nlink:  # removed just before
                file.close()
                return None
        os.utime(path)
        return file

    def _lock(self, name: str, *, wait: bool) -> FileLock:
        (self.folder / "locks").mkdir(exist_ok=True)
        return FileLock(self.folder / "locks" / f"{name}.lock", timeout=-1 if wait else 0)

    def _make_room(self, name: str, size: int) -> Path:
        """Remove what was used longest ago until a file fits; returns where to write it, its size announced."""
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
                f"mimkit: the shards being read, {total / GIGABYTE:.3g} GB, are more than the "
                f"{self.limit / GIGABYTE:.3g} GB that {self.folder} may hold (--cache-gb)",
                file=sys.stderr,
            )
        return unfinished

    def _is_left_behind(self, path: Path, name: str, *, ours: str) -> bool:
        """Whether the process that was writing a file has ended; then it is removed. The lock of `ours` is held."""
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
