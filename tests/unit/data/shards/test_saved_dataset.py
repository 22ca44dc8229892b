"""What Hugging Face's `datasets` saves in a folder gives the pixels that were put into it."""

import os
from pathlib import Path

import pytest
import torch

from helpers.hub import dataset, png
from helpers.samples import centred
from mimkit.data import TrainBatches, find_all, find_images, split, write_pack
from mimkit.errors import BadImage

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


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
    running = TrainBatches(centred(train, (8, 8)), batch_size=4, workers=workers).from_step(1)
    reference = TrainBatches(centred(train, (8, 8)), batch_size=4)
    for number in (1, 2, 3):
        assert torch.equal(next(running).images, reference.micro_batch_at(number).images)
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
