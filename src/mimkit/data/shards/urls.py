"""Files at URLs, by fsspec: list them, describe them, download them with retries.

http(s), s3, gs, hf, memory, file: everything that fsspec reads goes through the same code. A file that cannot be
downloaded stops the run with one line; it never counts as unreadable images, or results would depend on the network.
"""

import base64
import contextlib
import errno
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mimkit.errors import DataUnreachable
from mimkit.files import expand

WAITS = (1, 2, 5, 15, 30, 60)
"""Seconds before each retry: nearly two minutes in all."""
FIRST_WAITS = WAITS[:3]
"""The same while files are first listed, as a mistyped host will never answer."""

_AT_ONCE = 16
_SUFFIXES = (".tar", ".parquet")
_PACKAGES = {
    "http": "'mimkit[stream]'", "https": "'mimkit[stream]'", "hf": "'mimkit[stream]'", "s3": "s3fs", "s3a": "s3fs",
    "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
}  # fmt: skip
_VERSIONS = ("ETag", "etag", "md5Hash", "sha256", "blob_id", "Last-Modified", "LastModified", "mtime", "created")
_WRONG_REQUESTS = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError, ValueError)

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE)

Item = TypeVar("Item")
_SYSTEMS: list[Any] = []

Made = TypeVar("Made")


@dataclass(frozen=True)
class RemoteFile:
    """A file as its server describes it.

    Args:
        url: its URL.
        name: relative to the URL asked for.
        size: in bytes.
        version: text that changes when the file does, as far as the server reports.
        checksum: (algorithm, hexadecimal digest), if the server reports one.
    """

    url: str
    name: str
    size: int
    version: str
    checksum: tuple[str, str] | None = None

    @property
    def key(self) -> str:
        """A name for this version of the file in the cache."""
        return hashlib.sha256(f"{self.url}\0{self.size}\0{self.version}".encode()).hexdigest()[:32]


def remote_files(url: str) -> list[RemoteFile]:
    """The files that a URL names: itself, those of `{000..012}`, `{train,val}` or `*`, or all shards of a folder.

    Raises:
        FileNotFoundError: one does not exist.
        ValueError: the URL is malformed, or the package that reads its kind is missing.
        DataUnreachable: the server does not answer.
    """
    if "::" in url:
        raise ValueError(f"{url}: chains of file systems are not supported")
    if "*" not in url and path_of(url).endswith(_SUFFIXES):
        urls = expand(url)
        found = list(zip(urls, map_in_threads(_file_info, urls, _AT_ONCE), strict=True))
    else:
        patterns = expand(url)
        if "*" not in url:
            patterns = [f"{root_of(url)}/{folders}*{suffix}" for suffix in _SUFFIXES for folders in ("", "*/")]
        found = list({one: info for pattern in patterns for one, info in _matches(pattern)}.items())
        suffix = next((suffix for suffix in _SUFFIXES if any(path_of(one).endswith(suffix) for one, _ in found)), None)
        if suffix is None:
            raise FileNotFoundError(f"there are no .tar or .parquet files at {url}")
        found = sorted((one, info) for one, info in found if path_of(one).endswith(suffix))
    above = _connect(root_of(url))[1].rstrip("/") + "/"
    return [_remote_file(one, _connect(one)[1].removeprefix(above), info) for one, info in found]


def download(file: RemoteFile, target: Path, waits: Sequence[float] = WAITS) -> None:
    """Download a file completely and check its size and checksum; retry after each wait.

    Raises:
        DataUnreachable: it does not exist any more, has changed, or the server does not answer.
        OSError: the disk is full, and the like.
    """

    def once() -> None:
        system, path = _connect(file.url)
        system.get_file(path, str(target))
        length = target.stat().st_size
        if length != file.size:
            raise EOFError(f"received {length} of {file.size} bytes")
        if file.checksum is not None:
            algorithm, expected = file.checksum
            with target.open("rb") as written:
                if hashlib.file_digest(written, algorithm).hexdigest() != expected:
                    raise EOFError(f"it does not have the {algorithm} checksum that the server reports")

    try:
        with_retries(once, file.url, waits)
    except _WRONG_REQUESTS as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename == str(target):
            raise
        raise DataUnreachable(f"{file.url} cannot be fetched: {_message(error)}") from error


def download_small(url: str, most: int) -> bytes | None:
    """The content of a file, or None where there is none, or it is larger than `most` bytes."""
    system, path = _connect(url)
    try:
        info = with_retries(lambda: system.info(path), url, FIRST_WAITS)
        if info.get("size") is None or info["size"] > most:
            return None
        return with_retries(lambda: system.cat_file(path), url, FIRST_WAITS)
    except _WRONG_REQUESTS:
        return None


def open_remote(url: str) -> Any:
    """A file object that downloads only the ranges that are read."""
    system, path = _connect(url)
    return system.open(path, "rb")


def with_retries(work: Callable[[], Made], what: str, waits: Sequence[float]) -> Made:
    """The result of some work, retried after each wait when the network fails.

    Args:
        work: called without arguments.
        what: the URL, for messages.
        waits: seconds before each retry.

    Raises:
        DataUnreachable: it failed each time.
        FileNotFoundError, PermissionError, ValueError and the like: at once, as a retry would not help.
    """
    for wait in (*waits, None):
        try:
            return work()
        except Exception as error:
            error = _as_builtin(error)
            if isinstance(error, _WRONG_REQUESTS) or _is_local(error):
                raise error from None
            if wait is None:
                tries = f"{len(waits) + 1} tries in {sum(waits):.3g} s"
                raise DataUnreachable(f"{what} cannot be fetched: {_message(error)} ({tries})") from error
            if wait >= 5:
                print(f"mimkit: {what}: {_message(error)}; retrying in {wait} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    raise AssertionError


def root_of(url: str) -> str:
    """The folder that the names of a URL's files are relative to."""
    start = min((url.find(mark) for mark in "{*" if mark in url), default=len(url))
    is_folder = start == len(url) and not path_of(url).endswith(_SUFFIXES)
    return url.rstrip("/") if is_folder else url[:start].rpartition("/")[0]


def map_in_threads(work: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """`map(work, items)` in several threads, in order. After a failure no further item is started."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def path_of(url: str) -> str:
    """A URL without its query, which only http has."""
    return urlsplit(url)._replace(query="", fragment="").geturl() if url.startswith("http") else url


def _connect(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    fsspec caches one per process, and in a forked process drops its parent's, which would close connections that the
    parent still uses and leave it waiting for an answer. So references to all file systems are kept.
    """
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    scheme = url.partition("://")[0].lower()
    try:
        if scheme in ("http", "https"):
            import aiohttp

            # The defaults limit a whole download to five minutes, and allow compression, which hides the length.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options = {"client_kwargs": {"timeout": timeout}, "headers": {"Accept-Encoding": "identity"}}
        system, path = url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        how = f"pip install {package}" if package else str(error)
        raise ValueError(f"{url} cannot be read without another package: {how}") from error
    if not any(system is kept for kept in _SYSTEMS):
        _SYSTEMS.append(system)
    return system, path


def _file_info(url: str) -> dict[str, Any]:
    system, path = _connect(url)
    try:
        return with_retries(lambda: system.info(path), url, FIRST_WAITS)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the shard {url} does not exist") from error
    except PermissionError as error:
        raise ValueError(f"{url} may not be read: {_message(error)}") from error


def _matches(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """(URL, the server's description) of each file that matches a pattern with `*`."""
    system, path = _connect(pattern)
    try:
        found = with_retries(lambda: system.glob(path, detail=True), pattern, FIRST_WAITS)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise ValueError(f"{pattern} may not be listed: {_message(error)}") from error
    files = {system.unstrip_protocol(one): info for one, info in found.items() if info.get("type") != "directory"}
    if any(info.get("size") is None for info in files.values()):  # http lists names without sizes
        return list(zip(files, map_in_threads(_file_info, files, _AT_ONCE), strict=True))
    return list(files.items())


def _remote_file(url: str, name: str, info: dict[str, Any]) -> RemoteFile:
    size = info.get("size")
    if not isinstance(size, int):
        raise ValueError(f"the server does not report the size of {url}: a broken download could not be noticed")
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return RemoteFile(url, path_of(name), size, version, _checksum(info))


def _checksum(info: dict[str, Any]) -> tuple[str, str] | None:
    for key in ("md5Hash", "Content-MD5"):
        with contextlib.suppress(ValueError, TypeError):
            digest = base64.b64decode(info.get(key) or "", validate=True)
            if len(digest) == 16:
                return "md5", digest.hex()
    large = info.get("lfs") or {}
    sha256 = large.get("sha256") if isinstance(large, dict) else getattr(large, "sha256", None)
    return ("sha256", sha256) if isinstance(sha256, str) and len(sha256) == 64 else None


def _as_builtin(error: Exception) -> Exception:
    """An error as the built-in type that tells whether a retry helps: a missing file, a refusal, or itself."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and (isinstance(cause, OSError) or _status(cause) is not None):
        assert isinstance(cause, Exception)
        error = cause  # fsspec reports every http failure as a missing file
    status = _status(error)
    if status in (404, 410):
        return FileNotFoundError(f"the server answers {status}")
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return PermissionError(f"the server answers {status}")
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status in an error of aiohttp or of Hugging Face's Hub."""
    found = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _is_local(error: Exception) -> bool:
    """Whether this machine's disk or a programming error is the cause, not the network."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _OF_DISKS):
        return True
    return isinstance(error, TypeError | AttributeError | MemoryError | AssertionError)


def _message(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
