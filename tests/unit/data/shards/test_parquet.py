"""Parquet files as Hugging Face's `datasets` writes them give the pixels that were put into them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.hub import dataset, png
from helpers.samples import centred
from helpers.servers import ShardServer
from mimkit.data import Cache, TrainBatches, find_images, read_image, split
from mimkit.errors import BadImage

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set as on the Hub: 12 training images in two files, 3 for validation, and a test without classes."""
    root = tmp_path / "set" / "data"
    root.mkdir(parents=True)
    names = ["zebra", "ant", "mole"]
    dataset(0, 7, names).to_parquet(str(root / "train-00000-of-00002.parquet"))
    dataset(7, 5, names).to_parquet(str(root / "train-00001-of-00002.parquet"))
    dataset(12, 3, names).to_parquet(str(root / "validation-00000-of-00001.parquet"))
    test = dataset(15, 2, names)
    test = test.map(lambda row: {"label": -1}, features=test.features)
    test.to_parquet(str(root / "test-00000-of-00001.parquet"))
    return root.parent


@pytest.fixture
def served(folder: Path) -> Path:
    return folder


def test_parquet_here(folder: Path) -> None:
    train, held_out = split(folder)
    assert train.classes == ["zebra", "ant", "mole"]
    assert train.labels is not None
    assert held_out.labels is not None
    assert [train.content(i) for i in range(12)] == [png(number) for number in range(12)]
    assert train.labels.tolist() == [number % 3 for number in range(12)]
    assert [held_out.content(i) for i in range(3)] == [png(number) for number in range(12, 15)]
    assert held_out.labels.tolist() == [0, 1, 2]
    assert train.paths[7] == "data/train-00001-of-00002.parquet/000000"
    assert train.shards is not None
    assert train.shards.tolist() == [0] * 7 + [1] * 5
    files = str(folder / "data" / "train-00000*")
    theirs = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "hf"))
    np.testing.assert_array_equal(np.asarray(read_image(train.content(3))), np.asarray(theirs[3]["image"]))
    one = find_images(folder / "data" / "train-00000-of-00002.parquet")
    assert (len(one), one.content(2)) == (7, png(2))
    assert len(find_images(folder / "data" / "train-{00000..00001}-of-00002.parquet")) == 12


@pytest.mark.parametrize("ranges", [True, False])
def test_parquet_from_a_server(folder: Path, server: ShardServer, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    here = find_images(folder / "data" / "train-{00000..00001}-of-00002.parquet")
    url = f"{server.url}/data/train-{{00000..00001}}-of-00002.parquet"
    cache = Cache(tmp_path / "far", 10**8)
    far = find_images(url, cache)
    assert bool(list(cache.folder.glob("*.parquet"))) != ranges  # with ranges only ends and labels come
    assert [far.content(i) for i in range(12)] == [png(number) for number in range(12)]
    assert (far.fingerprint(), far.classes) == (here.fingerprint(), here.classes)
    server.gets.clear()
    assert find_images(url, cache).fingerprint() == far.fingerprint()
    assert not server.gets
    assert {path.suffix for path in cache.folder.iterdir() if path.is_file()} <= {".rows", ".parquet"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_server_are_those_of_files_here(
    folder: Path, server: ShardServer, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimkit.data.order.SHARDS_AT_ONCE", 1)

    def batches(data: Any, cache: Cache, workers: int = 0) -> TrainBatches:
        images = find_images(data, cache)
        return TrainBatches(centred(images, (8, 8)), batch_size=3, workers=workers)

    name = "data/train-{00000..00001}-of-00002.parquet"
    reference = batches(folder / name, Cache(tmp_path / "a", 10**8))
    for start in (0, 2):
        far = batches(f"{server.url}/{name}", Cache(tmp_path / f"b{start}", 10**8), workers)
        running = far.from_step(start)
        for number in range(start, start + 4):
            batch, expected = next(running), reference.micro_batch_at(number)
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.keys, expected.keys)
        running.close()


def test_a_column_of_plain_bytes_and_labels_without_names(tmp_path: Path) -> None:
    table = pa.table({"jpg": [png(0), None, png(2)], "id": ["a", "b", "c"], "label": [10, 9, 10]})
    parquet.write_table(table, tmp_path / "some.parquet")
    images = find_images(tmp_path / "some.parquet")
    assert images.classes == ["9", "10"]
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]
    assert images.content(2) == png(2)
    with pytest.raises(BadImage, match="no image in this row"):
        images.content(1)
    parquet.write_table(pa.table({"jpg": [png(5)]}), tmp_path / "other.parquet")
    assert find_images(tmp_path / "other.parquet").labels is None


def test_wrong_parquet_files_are_named(tmp_path: Path) -> None:
    for name, columns, words in (
        ("a", {"text": ["x"]}, r"a\.parquet has no column of images: \['text'\]"),
        ("b", {"left": [b"x"], "right": [b"y"]}, r"b\.parquet has several columns of bytes, left, right"),
        ("c", {"image": pa.array([], pa.binary())}, "no rows in the 1 parquet files"),
    ):
        parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=words):
            find_images(tmp_path / f"{name}.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"d\.parquet cannot be read as a parquet file"):
        find_images(tmp_path / "d.parquet")
    with pytest.raises(FileNotFoundError, match=r"e\.parquet does not exist"):
        find_images(tmp_path / "e.parquet")
