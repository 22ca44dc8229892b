"""The cache of shards: kept within bounds, whole or not there, cleared of what others left."""

import os
import sys
from pathlib import Path

import pytest

from helpers.servers import ShardServer
from helpers.shards import tars
from mimkit.data import Cache, find_images
from mimkit.data.shards.prefetch import FetchedFiles, RemoteFiles
from mimkit.data.shards.urls import remote_files, with_retries
from mimkit.errors import DataUnreachable

pytest.importorskip("aiohttp")
pytestmark = [
    pytest.mark.usefixtures("short_waits"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def test_the_bound_is_kept_and_what_is_in_use_stays(server: ShardServer, cache: Cache) -> None:
    files = remote_files(f"{server.url}/train-{{000..003}}.tar")
    sizes = [file.size for file in files]
    small = Cache(cache.folder, sum(sizes[:3]))
    first, other = FetchedFiles(RemoteFiles(files, small)), FetchedFiles(RemoteFiles(files, small))
    first.file(0)
    for number in (1, 2, 3, 1, 2, 3):
        other.prefetch([number], [])
        other.file(number)
        assert sum(path.stat().st_size for path in tars(small)) <= small.limit
        assert (small.folder / first.remote.name(0)).exists()
    first.prefetch([], [])
    other.prefetch([], [])
    other.file(1)
    other.file(2)
    other.file(3)
    assert not (small.folder / first.remote.name(0)).exists()
    # Where what is in use is more than the bound, it stays all the same.
    tight = Cache(cache.folder / "tight", sizes[0])
    both = FetchedFiles(RemoteFiles(files, tight))
    data = [both.read(number, 0, sizes[number]) for number in range(4)]
    assert data == [both.read(number, 0, sizes[number]) for number in range(4)]
    assert len(tars(tight)) == 4


def test_what_a_killed_process_left_is_cleared_away(server: ShardServer, cache: Cache) -> None:
    files = remote_files(f"{server.url}/train-{{000..001}}.tar")
    cache.folder.mkdir()
    for name in (f"{files[0].key}.tar.{files[0].size}", f"{'0' * 32}.tar.5", f"{files[0].key}.tar.1"):
        (cache.folder / f"{name}.unfinished").write_bytes(b"half")
    FetchedFiles(RemoteFiles(files, cache)).file(0)
    assert [path.name for path in cache.folder.iterdir() if path.is_file()] == [f"{files[0].key}.tar"]


def test_a_full_disk(server: ShardServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    images = find_images(f"{server.url}/train-000.tar", cache)
    tars(cache)[0].unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mimkit.data.shards.cache.flush", full)
        with pytest.raises(DataUnreachable, match=r"cannot be stored in .*cache: no space left on device"):
            images.content(0)
    with pytest.raises(OSError, match="No space left"):  # not tried again
        with_retries(full, "a file", (1000,))
    assert not [path for path in cache.folder.iterdir() if path.is_file()]
    assert len(images.content(0)) > 1000


def test_the_cache_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("MIMKIT_CACHE_GB", "2.5")
    assert Cache.at() == Cache(tmp_path / "c", 2_500_000_000)
    assert Cache.at(tmp_path, 1) == Cache(tmp_path, 10**9)
    monkeypatch.setenv("MIMKIT_CACHE_GB", "much")
    with pytest.raises(ValueError, match="MIMKIT_CACHE_GB must be a number above 0, got much"):
        Cache.at()
    for name in ("MIMKIT_CACHE", "MIMKIT_CACHE_GB"):
        monkeypatch.delenv(name)
    if os.name == "posix" and sys.platform != "darwin":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert Cache.at() == Cache(tmp_path / "mimkit" / "shards", 50 * 10**9)
