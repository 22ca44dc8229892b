"""What Hugging Face's `datasets` writes, parquet files and saved folders, gives the pixels that were put into it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.hub import dataset, png
from helpers.servers import ShardServer, serving
from mimkit.data import BadImage, Cache, TrainBatches, find_all, find_images, read_image, split, write_pack
from mimkit.views import CenterCrop

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
def server(folder: Path) -> Iterator[ShardServer]:
    with serving(folder) as running:
        yield running


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
        return TrainBatches(images, view=CenterCrop(), size=(8, 8), batch_size=3, workers=workers)

    name = "data/train-{00000..00001}-of-00002.parquet"
    reference = batches(folder / name, Cache(tmp_path / "a", 10**8))
    for start in (0, 2):
        far = batches(f"{server.url}/{name}", Cache(tmp_path / f"b{start}", 10**8), workers)
        running = far.starting_at(start)
        for number in range(start, start + 4):
            batch, expected = next(running), reference.part(number)
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


# Saved folders


def test_a_saved_data_set(tmp_path: Path) -> None:
    dataset(0, 9, ["b", "a"]).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    images = find_images(tmp_path / "saved")
    assert [images.content(i) for i in range(9)] == [png(number) for number in range(9)]
    assert images.classes == ["b", "a"]
    assert images.labels is not None
    assert images.labels.tolist() == [number % 2 for number in range(9)]
    assert (images.paths[4], images.shards) == ("000004", None)
    train, held_out = split(tmp_path / "saved", 0.3)
    assert len(train) + len(held_out) == 9
    again = find_images(tmp_path / "saved")
    assert again.fingerprint() == images.fingerprint()
    dataset(1, 9, ["b", "a"]).save_to_disk(str(tmp_path / "other"))
    assert find_images(tmp_path / "other").fingerprint() != images.fingerprint()


@pytest.mark.parametrize("workers", [0, 2])
def test_saved_splits_and_their_batches(tmp_path: Path, workers: int) -> None:
    splits = {"train": dataset(0, 8), "test": dataset(8, 2), "extra": dataset(20, 4)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    train, held_out = split(tmp_path / "saved")
    assert [train.content(i) for i in range(8)] == [png(number) for number in range(8)]
    assert [held_out.content(i) for i in range(2)] == [png(8), png(9)]
    assert held_out.paths == ["test/000000", "test/000001"]
    assert train.labels is None
    running = TrainBatches(train, view=CenterCrop(), size=(8, 8), batch_size=4, workers=workers).starting_at(1)
    reference = TrainBatches(train, view=CenterCrop(), size=(8, 8), batch_size=4)
    for number in (1, 2, 3):
        assert torch.equal(next(running).images, reference.part(number).images)
    running.close()
    images = find_all(tmp_path / "saved")
    assert write_pack(images, None, tmp_path / "images.pack").images == 10


def test_a_row_that_only_names_a_file_is_no_image(tmp_path: Path) -> None:
    """A data set of strangers must not say which files of this disk are read."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    storage = pa.array([{"bytes": None, "path": str(secret)}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    saved = tmp_path / "saved"
    dataset(0, 1).save_to_disk(str(saved))
    arrow = next(saved.glob("*.arrow"))
    schema = pa.ipc.open_stream(arrow).schema
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.table({"image": storage}).replace_schema_metadata(schema.metadata))
    images = find_images(saved)
    with pytest.raises(BadImage, match="no image in this row, only a path"):
        images.content(0)


def test_wrong_saved_folders_are_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(ValueError, match=r"text has no column of images: \['text'\]"):
        find_images(tmp_path / "text")
    dataset(0, 2).save_to_disk(str(tmp_path / "torn"))
    os.unlink(next((tmp_path / "torn").glob("*.arrow")))
    with pytest.raises(ValueError, match="torn cannot be read as a saved data set"):
        find_images(tmp_path / "torn")
