"""Shards at URLs are indexed and read as if they lay here."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from helpers.samples import centred
from helpers.servers import ShardServer, serving
from helpers.shards import batches, same, shards, tars
from mimkit.data import Cache, TrainBatches, find_images, loader, read_image, split
from mimkit.errors import DataUnreachable

pytest.importorskip("aiohttp")
pytestmark = [
    pytest.mark.usefixtures("short_waits"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def assert_same_from(step: int, count: int, some: TrainBatches, reference: TrainBatches) -> None:
    running = some.from_step(step)
    for number in range(step, step + count):
        assert same(next(running), reference.micro_batch_at(number))
    running.close()


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
    assert same(batches(far).micro_batch_at(1), batches(find_images(local)).micro_batch_at(1))


def test_the_index_is_kept_for_good(local: Path, server: ShardServer, cache: Cache, capfd) -> None:
    url = f"{server.url}/train-{{000..003}}.tar"
    first = find_images(url, cache)
    assert "4 shards" in (said := capfd.readouterr().err)
    assert "have no index beside them: reading each once to build it" in said
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
        with pytest.raises(DataUnreachable, match=r"the index published beside http.*train-000\.tar is of another"):
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


def test_a_shard_that_is_no_tar(local: Path, server: ShardServer, cache: Cache) -> None:
    (local / "bad.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"http.*bad\.tar cannot be read as an uncompressed tar file"):
        find_images(f"{server.url}/bad.tar", cache)


def test_a_broken_image_in_a_good_shard_is_a_bad_image(tmp_path: Path, cache: Cache) -> None:
    root = shards(tmp_path / "some", (6,))
    with tarfile.open(root / "train-000.tar", "a") as archive:
        member = tarfile.TarInfo("broken.png")
        member.size = 30
        archive.addfile(member, io.BytesIO(b"abc" * 10))
    with serving(root) as server:
        images = find_images(f"{server.url}/train-000.tar", cache)
        batch = next(iter(loader.load_in_order(centred(images, (8, 8)))))
        assert batch.skipped == [(f"{server.url}/train-000.tar/broken.png", "not an image, or broken at its start")]
        assert read_image(images.content(0)).size == (30, 20)
