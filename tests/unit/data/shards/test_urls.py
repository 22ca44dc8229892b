"""Files at URLs: fetched whole, tried again with patience, refused in one line."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from helpers.servers import ShardServer
from helpers.shards import batches, tars
from mimkit.data import Cache, find_images
from mimkit.data.shards import urls as remote_module
from mimkit.data.shards.prefetch import FetchedFiles, RemoteFiles
from mimkit.data.shards.urls import remote_files
from mimkit.errors import DataUnreachable

pytest.importorskip("aiohttp")
pytestmark = [
    pytest.mark.usefixtures("short_waits"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_leaves_its_parents_connections_alone(server: ShardServer) -> None:
    """Where it closes them, the parent waits for an answer until its time is up: a minute."""
    url = f"{server.url}/train-000.tar"
    expected = remote_module.download_small(url, 10**6)
    assert expected
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=remote_module.download_small, args=(url, 10**6))
        process.start()
        process.join()
        assert process.exitcode == 0
        started = time.monotonic()
        assert remote_module.download_small(url, 10**6) == expected
        assert time.monotonic() - started < 20


def test_a_download_cut_short_is_noticed_and_repeated(local: Path, server: ShardServer, cache: Cache) -> None:
    asked: list[str] = []

    def cut_twice(method: str, path: str) -> str | None:
        asked.append(path)
        return "cut" if method == "GET" and asked.count("train-000.tar") < 4 else None  # the first is for its size

    server.fail = cut_twice
    assert find_images(f"{server.url}/train-000.tar", cache).paths == find_images(local / "train-000.tar").paths
    assert server.gets["train-000.tar"] == 3
    server.fail = lambda method, path: "cut" if method == "GET" else None
    with pytest.raises(DataUnreachable, match=r"train-001\.tar cannot be fetched: .*\(3 tries in 0\.02 s\)"):
        find_images(f"{server.url}/train-001.tar", cache)
    assert len(tars(cache)) == 1


def test_a_checksum_that_the_server_reports(local: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    file = remote_files(f"file://{local}/train-000.tar")[0]
    wrong = remote_module.RemoteFile(file.url, file.name, file.size, file.version, ("md5", "0" * 32))
    with pytest.raises(DataUnreachable, match="does not have the md5 checksum that the server reports"):
        FetchedFiles(RemoteFiles([wrong], cache)).file(0)
    assert remote_module._checksum({"md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg=="}) == (
        "md5",
        "d41d8cd98f00b204e9800998ecf8427e",
    )
    assert remote_module._checksum({"ETag": '"abc"', "Content-MD5": "no"}) is None
    assert remote_module._checksum({"lfs": {"sha256": "a" * 64}}) == ("sha256", "a" * 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_dies_ends_the_work_in_one_line(server: ShardServer, cache: Cache, workers: int) -> None:
    images = find_images(f"{server.url}/train-{{000..003}}.tar", cache)
    for path in tars(cache):
        path.unlink()
    server.fail = lambda method, path: 503
    running = batches(images, workers=workers).from_step(0)
    with pytest.raises(DataUnreachable, match=r"^http://127.*\.tar cannot be fetched: .*503.*3 tries"):
        next(running)
    running.close()
    server.fail = lambda method, path: 404
    with pytest.raises(DataUnreachable, match=r"cannot be fetched: FileNotFoundError"):
        batches(images).micro_batch_at(0)


# Wrong requests


def test_wrong_urls_are_one_line_each(local: Path, server: ShardServer, cache: Cache, monkeypatch) -> None:
    for url, kind, words in (
        (f"{server.url}/train-{{000..004}}.tar", FileNotFoundError, r"the shard http.*train-004\.tar does not exist"),
        (f"{server.url}/train-{{3..1}}.tar", ValueError, r"the range 3\.\.1 is empty"),
        (f"file://{local}/no/*.tar", FileNotFoundError, r"there are no \.tar or \.parquet files at file"),
        ("memory://no/a.tar", FileNotFoundError, r"the shard memory://no/a\.tar does not exist"),
        ("nothing://host/a.tar", ValueError, "Protocol not known: nothing"),
        (f"file://x::{server.url}/a.tar", ValueError, "chains of file systems"),
    ):
        with pytest.raises(kind, match=words):
            find_images(url, cache)
    with pytest.raises(ValueError, match=r"a cache of 1e-05 GB cannot hold the 4 shards .* --cache-gb"):
        find_images(f"{server.url}/train-{{000..003}}.tar", Cache(cache.folder, 10**4))
    server.fail = lambda method, path: 403
    with pytest.raises(ValueError, match=r"may not be read: .*403"):
        find_images(f"{server.url}/train-000.tar", cache)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ValueError, match=r"pip install 'mimkit\[stream\]'"):
        find_images(f"{server.url}/train-000.tar", cache)


def test_nobody_answers(cache: Cache) -> None:
    with pytest.raises(DataUnreachable, match=r"http://127\.0\.0\.1:9/a\.tar cannot be fetched: .*3 tries"):
        find_images("http://127.0.0.1:9/a.tar", cache)
