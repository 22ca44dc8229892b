"""Shards at URLs: fetched once and whole, kept within bounds, and read as if they lay here."""

import io
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.servers import ShardServer, serving
from helpers.shards import batches, same, shards, tars
from mimkit.data import Cache, DataUnreachable, TrainBatches, find_images, loader, read_image, split
from mimkit.data.shards import urls as remote_module
from mimkit.data.shards.prefetch import Fetched, Source
from mimkit.data.shards.urls import patiently, remote_files

pytest.importorskip("aiohttp")
pytestmark = [
    pytest.mark.usefixtures("short_waits"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def assert_same_from(step: int, count: int, some: TrainBatches, reference: TrainBatches) -> None:
    running = some.starting_at(step)
    for number in range(step, step + count):
        assert same(next(running), reference.part(number))
    running.close()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


# The same as local ones


@pytest.mark.parametrize("pattern", ["train-{000..003}.tar", "train-{000..001}.tar", "train-002.tar"])
def test_what_is_far_is_what_is_here(local: Path, server: ShardServer, cache: Cache, pattern: str) -> None:
    here, far = find_images(local / pattern), find_images(f"{server.url}/{pattern}", cache)
    assert far.paths == here.paths
    assert far.fingerprint() == here.fingerprint()
    assert far.classes == here.classes == ["0", "1"]
    assert far.labels is not None
    assert far.labels.tolist() == here.labels.tolist()
    assert [far.content(i) for i in range(len(far))] == [here.content(i) for i in range(len(here))]
    assert far.path(1) == f"{server.url}/{far.paths[1]}"


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_is_that_of_the_same_shards_here(
    local: Path, server: ShardServer, cache: Cache, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimkit.data.order.SHARDS_AT_ONCE", 2)
    reference = batches(find_images(local))
    far = batches(find_images(f"{server.url}/train-{{000..003}}.tar", cache), workers=workers)
    assert_same_from(0, 8, far, reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_in_the_midst_of_a_pass_with_nothing_kept(
    local: Path, server: ShardServer, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimkit.data.order.SHARDS_AT_ONCE", 2)
    reference = batches(find_images(local))
    for start in (2, 5):
        far = find_images(f"{server.url}/train-{{000..003}}.tar", Cache(tmp_path / f"empty-{start}", 10**9))
        assert_same_from(start, 3, batches(far, workers=workers), reference)


def test_splits_and_folders(local: Path, server: ShardServer, cache: Cache, tmp_path: Path) -> None:
    shards(local, (2, 1), stem="val")
    train, held_out = split(f"{server.url}/{{train,val}}-{{000..001}}.tar", cache=cache)
    assert (len(train), len(held_out)) == (7, 3)
    for one in (f"file://{local}", f"file://{local}/*.tar", f"file://{tmp_path}/l*/*.tar", f"file://{local}/"):
        assert [len(part) for part in split(one, cache=cache)] == [14, 3]
    assert find_images(f"file://{local}", cache).fingerprint() == find_images(local).fingerprint()


def test_the_memory_file_system(local: Path, cache: Cache) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in local.glob("*.tar"):
        memory.pipe_file(f"/bucket/some/{path.name}", path.read_bytes())
    far = find_images("memory://bucket/some", cache)
    assert far.fingerprint() == find_images(local).fingerprint()
    assert same(batches(far).part(1), batches(find_images(local)).part(1))


# The index


def test_the_index_is_kept_for_good(local: Path, server: ShardServer, cache: Cache, capfd) -> None:
    url = f"{server.url}/train-{{000..003}}.tar"
    first = find_images(url, cache)
    assert "4 shards" in (said := capfd.readouterr().err)
    assert "have no index beside them: each is read through, this once" in said
    server.gets.clear()
    assert find_images(url, cache).fingerprint() == first.fingerprint()
    for path in tars(cache):
        path.unlink()
    assert find_images(url, cache).fingerprint() == first.fingerprint()
    assert not server.gets
    shards(local, (2, 2, 2, 2))  # others, under the same names
    assert len(find_images(url, cache)) == 8


@pytest.mark.parametrize("dot", [".", ""])
def test_an_index_beside_its_shard_is_all_that_is_fetched(
    local: Path, server: ShardServer, cache: Cache, dot: str
) -> None:
    here = find_images(local)  # writes them
    for path in local.glob(".*.npz"):
        path.rename(local / (dot + path.name.removeprefix(".")))
    far = find_images(f"{server.url}/train-{{000..003}}.tar", cache)
    assert far.fingerprint() == here.fingerprint()
    assert not any(path.endswith(".tar") for path in server.gets)
    assert far.content(5) == here.content(5)
    assert sum(path.endswith(".tar") for path in server.gets) == 1


def test_an_index_of_another_shard_is_noticed(tmp_path: Path, cache: Cache) -> None:
    root = shards(tmp_path / "some", (2,))
    find_images(root)
    tar = root / "train-000.tar"
    size_before = tar.stat().st_size
    with tarfile.open(tar, "w") as archive:
        for name, size in (("0-0.png", 2000), ("0-1.png", 10)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(b"x" * size))
    assert tar.stat().st_size == size_before
    with serving(root) as server:
        images = find_images(f"{server.url}/train-000.tar", cache)
        with pytest.raises(DataUnreachable, match=r"the index that lies beside http.*train-000\.tar is of another"):
            images.content(0)


def test_a_forged_index_is_none(local: Path, server: ShardServer, cache: Cache) -> None:
    """Its places must lie in the shard, and it may hold no objects."""
    here = find_images(local)
    size = (local / "train-000.tar").stat().st_size
    good = dict(np.load(local / ".train-000.tar.index.npz"))
    for forged in (
        good | {"places": good["places"] + size},
        good | {"places": -good["places"]},
        good | {"limits": good["limits"] + 10**6},
        good | {"text": np.array([{}] * len(good["text"]), dtype=object)},
        good | {"stamp": good["stamp"][:2]},
    ):
        np.savez(local / ".train-000.tar.index.npz", **forged)
        server.gets.clear()
        far = find_images(f"{server.url}/train-000.tar", Cache(cache.folder / str(np.random.rand()), 10**9))
        assert far.paths == here.take(range(3)).paths
        assert server.gets["train-000.tar"] == 1  # it was read through


# Fetching


def test_each_shard_comes_once_and_ahead_of_its_window(
    server: ShardServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimkit.data.order.SHARDS_AT_ONCE", 1)
    images = find_images(f"{server.url}/train-{{000..003}}.tar", cache)
    for path in tars(cache):
        path.unlink()
    server.gets.clear()
    train = batches(images, batch_size=1)
    train.part(0)
    until(lambda: len(tars(cache)) == 2)  # the window's shard and the next one's
    time.sleep(0.1)
    assert len(tars(cache)) == 2
    for number in range(len(images)):
        train.part(number)
    assert set(server.gets.values()) == {1}


def fetch_all(files: list, folder: Path, ready) -> None:
    fetched = Fetched(Source(files, Cache(folder, 10**9)))
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_leaves_its_parents_connections_alone(server: ShardServer) -> None:
    """Where it closes them, the parent waits for an answer until its time is up: a minute."""
    url = f"{server.url}/train-000.tar"
    expected = remote_module.fetch_small(url, 10**6)
    assert expected
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=remote_module.fetch_small, args=(url, 10**6))
        process.start()
        process.join()
        assert process.exitcode == 0
        started = time.monotonic()
        assert remote_module.fetch_small(url, 10**6) == expected
        assert time.monotonic() - started < 20


def test_the_bound_is_kept_and_what_is_in_use_stays(server: ShardServer, cache: Cache) -> None:
    files = remote_files(f"{server.url}/train-{{000..003}}.tar")
    sizes = [file.size for file in files]
    small = Cache(cache.folder, sum(sizes[:3]))
    first, other = Fetched(Source(files, small)), Fetched(Source(files, small))
    first.file(0)
    for number in (1, 2, 3, 1, 2, 3):
        other.expect([number], [])
        other.file(number)
        assert sum(path.stat().st_size for path in tars(small)) <= small.limit
        assert (small.folder / first.source.name(0)).exists()
    first.expect([], [])
    other.expect([], [])
    other.file(1)
    other.file(2)
    other.file(3)
    assert not (small.folder / first.source.name(0)).exists()
    # Where what is in use is more than the bound, it stays all the same.
    tight = Cache(cache.folder / "tight", sizes[0])
    both = Fetched(Source(files, tight))
    data = [both.read(number, 0, sizes[number]) for number in range(4)]
    assert data == [both.read(number, 0, sizes[number]) for number in range(4)]
    assert len(tars(tight)) == 4


def test_what_a_killed_process_left_is_cleared_away(server: ShardServer, cache: Cache) -> None:
    files = remote_files(f"{server.url}/train-{{000..001}}.tar")
    cache.folder.mkdir()
    for name in (f"{files[0].key}.tar.{files[0].size}", f"{'0' * 32}.tar.5", f"{files[0].key}.tar.1"):
        (cache.folder / f"{name}.unfinished").write_bytes(b"half")
    Fetched(Source(files, cache)).file(0)
    assert [path.name for path in cache.folder.iterdir() if path.is_file()] == [f"{files[0].key}.tar"]


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


def test_a_checksum_that_the_server_tells(local: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    file = remote_files(f"file://{local}/train-000.tar")[0]
    wrong = remote_module.RemoteFile(file.url, file.name, file.size, file.version, ("md5", "0" * 32))
    with pytest.raises(DataUnreachable, match="does not have the md5 checksum that the server tells"):
        Fetched(Source([wrong], cache)).file(0)
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
    running = batches(images, workers=workers).starting_at(0)
    with pytest.raises(DataUnreachable, match=r"^http://127.*\.tar cannot be fetched: .*503.*3 tries"):
        next(running)
    running.close()
    server.fail = lambda method, path: 404
    with pytest.raises(DataUnreachable, match=r"cannot be fetched: FileNotFoundError"):
        batches(images).part(0)


def test_a_full_disk(server: ShardServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    images = find_images(f"{server.url}/train-000.tar", cache)
    tars(cache)[0].unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mimkit.data.shards.cache.flush", full)
        with pytest.raises(DataUnreachable, match=r"cannot be kept in .*cache: no space left on device"):
            images.content(0)
    with pytest.raises(OSError, match="No space left"):  # not tried again
        patiently(full, "a file", (1000,))
    assert not [path for path in cache.folder.iterdir() if path.is_file()]
    assert len(images.content(0)) > 1000


# Wrong requests


def test_wrong_urls_are_one_line_each(local: Path, server: ShardServer, cache: Cache, monkeypatch) -> None:
    for url, kind, words in (
        (f"{server.url}/train-{{000..004}}.tar", FileNotFoundError, r"the shard http.*train-004\.tar does not exist"),
        (f"{server.url}/train-{{3..1}}.tar", ValueError, "3 to 1 are no shards"),
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


def test_a_shard_that_is_no_tar(local: Path, server: ShardServer, cache: Cache) -> None:
    (local / "bad.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"http.*bad\.tar cannot be read as an uncompressed tar file"):
        find_images(f"{server.url}/bad.tar", cache)


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


def test_a_broken_image_in_a_good_shard_is_a_bad_image(tmp_path: Path, cache: Cache) -> None:
    root = shards(tmp_path / "some", (6,))
    with tarfile.open(root / "train-000.tar", "a") as archive:
        member = tarfile.TarInfo("broken.png")
        member.size = 30
        archive.addfile(member, io.BytesIO(b"abc" * 10))
    with serving(root) as server:
        images = find_images(f"{server.url}/train-000.tar", cache)
        batch = next(iter(loader.load_images(images, (8, 8))))
        assert batch.skipped == [(f"{server.url}/train-000.tar/broken.png", "not an image, or broken at its start")]
        assert read_image(images.content(0)).size == (30, 20)
