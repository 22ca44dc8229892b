"""Shards are fetched once, by one process, and ahead of where they are read."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.servers import ShardServer
from helpers.shards import batches, tars
from mimkit.data import Cache, find_images
from mimkit.data.shards.prefetch import FetchedFiles, RemoteFiles
from mimkit.data.shards.urls import remote_files

pytest.importorskip("aiohttp")
pytestmark = [
    pytest.mark.usefixtures("short_waits"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


def test_each_shard_comes_once_and_ahead_of_its_window(
    server: ShardServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimkit.data.order.SHARDS_AT_ONCE", 1)
    images = find_images(f"{server.url}/train-{{000..003}}.tar", cache)
    for path in tars(cache):
        path.unlink()
    server.gets.clear()
    train = batches(images, batch_size=1)
    train.micro_batch_at(0)
    until(lambda: len(tars(cache)) == 2)  # the window's shard and the next one's
    time.sleep(0.1)
    assert len(tars(cache)) == 2
    for number in range(len(images)):
        train.micro_batch_at(number)
    assert set(server.gets.values()) == {1}


def fetch_all(files: list, folder: Path, ready) -> None:
    fetched = FetchedFiles(RemoteFiles(files, Cache(folder, 10**9)))
    ready.wait()
    for number in range(len(files)):
        assert fetched.read(number, 0, 7) == b"%d-0.png" % number


def test_two_processes_fetch_a_shard_once(server: ShardServer, cache: Cache) -> None:
    files = remote_files(f"{server.url}/train-{{000..003}}.tar")
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(2)
    both = [context.Process(target=fetch_all, args=(files, cache.folder, ready)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert dict(server.gets) == {f"train-{number:03d}.tar": 1 for number in range(4)}
