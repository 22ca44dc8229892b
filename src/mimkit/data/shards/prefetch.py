"""Remote files, read as if local: each is fetched into the cache when it is first read, or shortly before."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from mimkit.data.shards.cache import Cache
from mimkit.data.shards.urls import WAITS, RemoteFile, download
from mimkit.errors import DataUnreachable

MOST_OPEN = 32
_PAUSE = 10.0

Make = Callable[[RemoteFile, Path, Sequence[float]], None]


@dataclass(frozen=True, eq=False)
class RemoteFiles:
    """Remote files, and the cache for them.

    Args:
        files: the files, S of them.
        cache: the cache.
        make: writes what is cached of a file to a path, with a retry after each of some waits; by default the file as
            it is.
        suffix: of the cached files' names, for people who look into the cache.
    """

    files: Sequence[RemoteFile]
    cache: Cache
    make: Make = download
    suffix: str = ".tar"

    def name(self, number: int) -> str:
        """The name of a file in the cache."""
        return self.files[number].key + self.suffix

    def fetch(self, number: int, *, wait: bool = True) -> bool:
        """Fetch a file unless it is cached.

        Args:
            number: of the file.
            wait: for another process that fetches it, and before retries. Without, there is one try, and the result is
                False where another process is fetching the file.

        Raises:
            DataUnreachable: it cannot be fetched or cached.
        """
        remote, waits = self.files[number], WAITS if wait else ()

        def make(path: Path) -> None:
            self.make(remote, path, waits)

        try:
            return self.cache.fetch(self.name(number), remote.size, make, wait=wait)
        except OSError as error:
            raise DataUnreachable(
                f"{remote.url} cannot be stored in {self.cache.folder}: {(error.strerror or str(error)).lower()}"
            ) from error


class FetchedFiles:
    """Bytes of remote files: `Files`.

    Each process opens files and prefetches for itself; locks in the cache ensure that a file is fetched only once.

    Args:
        remote: the files.
    """

    def __init__(self, remote: RemoteFiles) -> None:
        self.remote = remote
        self._begin()

    def __reduce__(self) -> tuple[object, ...]:
        return FetchedFiles, (self.remote,)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, FileIO] = OrderedDict()
        self._ahead: _Prefetcher | None = None
        weakref.finalize(self, _close, self._open)

    def read(self, number: int, start: int, length: int) -> bytes:
        """Some bytes of a file, fewer at its end.

        Raises:
            DataUnreachable: the file cannot be fetched or cached.
        """
        file = self.file(number)
        file.seek(start)
        return file.read(length)

    def file(self, number: int) -> FileIO:
        """A file, open for reading.

        Raises:
            DataUnreachable: it cannot be fetched or cached.
        """
        self._in_this_process()
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        name = self.remote.name(number)
        while (file := self.remote.cache.open(name)) is None:  # another process may evict it at once
            self.remote.fetch(number)
        self._open[number] = file
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        return file

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Fetch files in the background, and allow all others to be evicted.

        Args:
            current: the files that are being read.
            upcoming: those that come next, in order.
        """
        self._in_this_process()
        for number in self._open.keys() - set(current):
            self._open.pop(number).close()
        if self._ahead is None:
            self._ahead = _Prefetcher(self.remote)
            weakref.finalize(self, self._ahead.set_wanted, None)
        self._ahead.set_wanted([*current, *upcoming])

    def _in_this_process(self) -> None:
        """After a fork, start afresh: the open files and their locks are the parent's, and its thread is not here."""
        if self._process != os.getpid():
            _close(self._open)
            self._begin()


def _close(files: dict[int, FileIO]) -> None:
    for file in files.values():
        file.close()
    files.clear()


class _Prefetcher:
    """A thread that fetches files. It ignores failures: whoever reads the file meets them again."""

    def __init__(self, remote: RemoteFiles) -> None:
        self.remote = remote
        self.wanted: list[int] | None = []
        self.changed = threading.Condition()
        threading.Thread(target=self._run, name="prefetch", daemon=True).start()

    def set_wanted(self, numbers: list[int] | None) -> None:
        """Fetch these from now on; None ends the thread."""
        with self.changed:
            if numbers != self.wanted:
                self.wanted = numbers
                self.changed.notify()

    def _run(self) -> None:
        done: list[int] = []
        while True:
            with self.changed:
                while self.wanted == done:
                    self.changed.wait()
                wanted = self.wanted
            if wanted is None:
                return
            done = wanted if self._fetch_all(wanted) else []

    def _fetch_all(self, numbers: list[int]) -> bool:
        """Fetch files; False if some are still missing, or others are wanted by now."""
        missing = 0
        for number in numbers:
            if self.wanted is not numbers:
                return False
            try:
                missing += not self.remote.fetch(number, wait=False)
            except DataUnreachable:
                missing += 1
        if missing:
            with self.changed:
                self.changed.wait_for(lambda: self.wanted is not numbers, _PAUSE)
        return not missing
