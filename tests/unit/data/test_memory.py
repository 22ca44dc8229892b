"""Images in memory: which axes are what, what is rounded, what is refused, and where labels come from."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from helpers.samples import centred
from mimkit.data import (
    ImageList,
    Samples,
    TrainBatches,
    find_all,
    find_images,
    in_words,
    load_in_order,
    split,
    write_pack,
)
from mimkit.data.jpeg import open_image
from mimkit.data.memory import ArrayPicture
from mimkit.views import CenterCrop, RandomResizedCrop

RNG = np.random.default_rng(0)


def loaded(data: Any, channels: int, size: tuple[int, int] = (12, 16)) -> torch.Tensor:
    """All images of some data: uint8 [N, C, H, W]."""
    (batch,) = load_in_order(centred(find_images(data), size, channels))
    return batch.images


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_tensors_and_arrays_are_the_same_pixels(channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    first = torch.from_numpy(RNG.integers(256, size=(6, channels, 12, 16), dtype=np.uint8))
    last = first.permute(0, 2, 3, 1)
    forms = [first, first.numpy(), last.numpy(), first.int(), first.numpy().astype(np.int64), first.float() / 255]
    forms = [last, *forms] if channels in (1, 3) else forms  # a tensor's channels are its first but for these
    for form in forms:
        assert torch.equal(loaded(form, channels), first)
        assert find_images(form).channels == channels
        assert f"6 images, the first of 12 x 16 pixels with {channels} channels" in capsys.readouterr().err
    assert "0..1 rounded to 8 bits" in capture(capsys, forms[-1])
    assert "rounded" not in capture(capsys, forms[0])


def capture(capsys: pytest.CaptureFixture[str], data: Any) -> str:
    capsys.readouterr()
    find_images(data)
    return capsys.readouterr().err


def test_equal_axes() -> None:
    """Then a tensor's channels are the first, and an array's the last."""
    pixels = RNG.integers(256, size=(2, 3, 12, 3), dtype=np.uint8)
    assert torch.equal(loaded(torch.from_numpy(pixels), 3, (12, 3)), torch.from_numpy(pixels))
    assert torch.equal(loaded(pixels, 3, (3, 12)), torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_grey_arrays_of_three_axes() -> None:
    pixels = RNG.integers(256, size=(4, 12, 16), dtype=np.uint8)
    for data in (pixels, torch.from_numpy(pixels)):
        assert find_images(data).channels == 1
        assert torch.equal(loaded(data, 1)[:, 0], torch.from_numpy(pixels))
        assert torch.equal(loaded(data, 3), torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1))


def test_colour_becomes_grey_as_files_do(tmp_path: Path) -> None:
    pixels = RNG.integers(256, size=(1, 12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    assert torch.equal(loaded(pixels, 1), loaded(tmp_path, 1))
    assert torch.equal(loaded(pixels, 3, (8, 10)), loaded(tmp_path, 3, (8, 10)))


def test_many_channels_are_cut_as_each_alone() -> None:
    pixels = RNG.integers(256, size=(40, 60, 5), dtype=np.uint8)
    for seed in range(5):
        whole = RandomResizedCrop()(ArrayPicture(pixels), (16, 24), np.random.default_rng(seed))
        for channel in range(5):
            alone = Image.fromarray(pixels[..., channel])
            expected = RandomResizedCrop()(alone, (16, 24), np.random.default_rng(seed))
            np.testing.assert_array_equal(whole[..., channel], expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.randn(4, 3, 8, 8), r"float32 tensor \[4, 3, 8, 8\] in memory: float32 pixels of -.* give uint8"),
        (np.full((2, 8, 8), np.nan), "pixels of nan .. nan"),
        (np.full((2, 8, 8), 4095, dtype=np.uint16), r"uint16 pixels of 4095 .. 4095; give uint8"),
        (np.full((2, 8, 8), -1), "int64 pixels of -1 .. -1"),
        (np.zeros((2, 8, 8), dtype=bool), "pixels are of type bool"),
        (np.zeros((8, 8), dtype=np.uint8), r"need 3 or 4 axes.* got uint8 array \[8, 8\]"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), "no images in"),
        ([], "no images in list of length 0"),
        (42, "must be a path, a list of paths, an array.* not int in memory"),
        ({"a": 1}, "must be a path, a list of paths.* not dict"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(3, dtype=torch.int64)), "3 labels for 4 images"),
    ],
)
def test_what_cannot_be_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_images(data)


class Pictures(Dataset):
    """Items of any kind."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Streamed(IterableDataset):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_items_of_data_sets() -> None:
    """Alone, first of a tuple, under "image"; Pillow, tensor or array; unlike in size."""
    pixels = RNG.integers(256, size=(12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for items in (
        [picture, tensor, pixels, tensor.float() / 255],
        [(picture, 1), (tensor, 0), [pixels, "name"], (tensor,)],
        [{"image": picture}, {"image": tensor, "label": 3}, {"image": pixels}, {"image": tensor}],
    ):
        for data in (Pictures(items), items):
            assert torch.equal(loaded(data, 3), tensor.expand(4, -1, -1, -1))
    assert find_images(Pictures([picture])).channels is None  # read as files are
    assert find_images(Pictures([tensor])).channels == 3
    sizes = Pictures([Image.new(mode, size) for mode, size in [("RGB", (30, 20)), ("L", (9, 50)), ("RGBA", (4, 4))]])
    assert loaded(sizes, 3).shape == (3, 3, 12, 16)
    assert loaded(sizes, 1).shape == (3, 1, 12, 16)


def test_items_that_are_none() -> None:
    for item in ("words", None, {"pixels": 1}, torch.zeros(2, 3, 8, 8)):
        with pytest.raises(ValueError, match="image 0 is no image but"):
            find_images(Pictures([item]))
    images = find_images(Pictures([Image.new("RGB", (8, 8)), torch.randn(3, 8, 8)]))
    with pytest.raises(ValueError, match=r"image 1: float32 pixels of"):
        list(load_in_order(centred(images, (8, 8))))
    with pytest.raises(ValueError, match="must be a path"):
        find_images(Streamed())
    mixed = find_images(Pictures([torch.zeros(5, 8, 8), torch.zeros(4, 8, 8)]))
    with pytest.raises(ValueError, match="an image of 4 channels cannot be read with 5"):
        list(load_in_order(centred(mixed, (8, 8), 5)))


def test_an_item_that_cannot_be_read_is_skipped() -> None:
    items = [OSError("gone"), Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))]
    (batch,) = load_in_order(centred(find_images(Pictures(items)), (8, 8)))
    assert batch.indices.tolist() == [1, 2]
    assert batch.skipped == [(os.path.join("memory", "0"), "gone")]
    with pytest.raises(ValueError, match=r"none of the images in .* can be read"):
        find_images(Pictures([OSError("gone")]))


def test_labels() -> None:
    x, y = torch.zeros(6, 3, 8, 8), torch.tensor([3, 3, 7, 7, 9, 3])
    expected = [0, 0, 1, 1, 2, 0], ["3", "7", "9"]
    for data in (TensorDataset(x, y), (x, y), (x.numpy(), y.numpy())):
        assert labels(find_images(data)) == expected
    assert labels(find_images(TensorDataset(x))) == (None, None)
    assert labels(find_images(x)) == (None, None)
    named = Pictures([x[0]] * 3, targets=[0, 1, 1], classes=["cat", "dog", "emu"])
    assert labels(find_images(named)) == ([0, 1, 1], ["cat", "dog", "emu"])
    assert labels(find_images(Subset(named, [2, 0]))) == ([1, 0], ["cat", "dog", "emu"])
    assert labels(find_images(ConcatDataset([named, named]))) == (None, None)
    for several in ([[0, 1], [1, 2]], [[0, 1], [1]]):
        assert labels(find_images(Pictures([x[0]] * 2, targets=several))) == (None, None)


def test_labels_that_are_none() -> None:
    x = torch.zeros(4, 3, 8, 8)
    for y in (torch.rand(4), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="labels are one whole number or name for each image"):
            find_images((x, y))
    assert labels(find_images((x, np.array(["b", "a", "b", "b"])))) == ([1, 0, 1, 1], ["a", "b"])


def test_paths_with_labels(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    assert labels(find_images((paths, [1, 0, 1]))) == ([1, 0, 1], ["0", "1"])
    assert list(find_images(np.array([str(path) for path in paths])).paths) == [str(path) for path in paths]
    with pytest.raises(ValueError, match="2 labels for 3 paths"):
        find_images((paths, [1, 0]))
    assert find_images(found := find_images(paths)) is found


class Table:
    """What pandas has."""

    iloc = None

    def __len__(self) -> int:
        return 3

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)


class Loader:
    """What torch's DataLoader has."""

    dataset = None

    def __len__(self) -> int:
        return 3


def test_what_is_no_data_set_has_a_hint() -> None:
    for data, hint in [(Table(), "not Table"), (Loader(), "give its .dataset"), ({"train": []}, "one of its splits")]:
        with pytest.raises(ValueError, match=f"must be a path.*{hint}"):
            find_images(data)
    with pytest.raises(
        ValueError, match=r"image 0 is no image but dict of length 2 in memory with x, label: .*\"image\""
    ):
        find_images(Pictures([{"x": 1, "label": 2}]))
    assert find_images(Pictures([{"img": Image.new("L", (3, 3))}])).channels is None


def test_pictures_are_arrays() -> None:
    """For views that want all pixels."""
    pixels = RNG.integers(256, size=(2, 9, 11, 5), dtype=np.uint8)
    for channels in (5, 3, 1):
        images = find_images(pixels[..., :channels])
        for picture in (images.store.read(1), open_image(images.store.read(1), channels)):  # type: ignore[union-attr]
            np.testing.assert_array_equal(np.asarray(picture).reshape(9, 11, channels), pixels[1, ..., :channels])


def labels(images: ImageList) -> tuple[list[int] | None, list[str] | None]:
    return None if images.labels is None else images.labels.tolist(), images.classes


def test_labels_of_huggingface_datasets() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(3)], "label": [1, 0, 1]}
    images = find_images(datasets.Dataset.from_dict(rows, features=features))
    assert labels(images) == ([1, 0, 1], ["cat", "dog"])
    assert loaded(datasets.Dataset.from_dict(rows, features=features), 3)[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_split_and_fingerprint() -> None:
    pixels = RNG.integers(256, size=(50, 3, 8, 8), dtype=np.uint8)
    train, held_out = split(pixels, 0.2)
    assert len(train) + len(held_out) == 50
    assert 2 < len(held_out) < 20
    more, _ = split(np.concatenate([pixels, pixels]), 0.2)  # more images move none
    assert list(train.paths) == list(more.paths)[: len(train)]
    assert len(find_all(pixels)) == 50
    assert find_images(torch.from_numpy(pixels).repeat(1, 22, 4, 4)).channels == 66  # features, not pixels
    changed = pixels.copy()
    changed[int(train.paths[3])] += 1
    assert split(pixels.copy(), 0.2)[0].fingerprint() == train.fingerprint()
    assert split(changed, 0.2)[0].fingerprint() != train.fingerprint()
    assert split(changed, 0.2)[1].fingerprint() == held_out.fingerprint()
    changed[0] += 1  # of a data set the first is among those that are looked at
    dataset, other = (Pictures(list(torch.from_numpy(one))) for one in (pixels, changed))
    assert find_images(dataset).fingerprint() == find_images(Pictures(dataset.items)).fingerprint()
    assert find_images(dataset).fingerprint() != find_images(other).fingerprint()


def test_a_list_of_paths(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / "2.png", str(tmp_path / "0.png"), tmp_path / "missing.png"]
    images = find_images(paths)
    assert list(images.paths) == [str(path) for path in paths]
    (batch,) = load_in_order(centred(images, (8, 8)))
    assert batch.images[:, 0, 0, 0].tolist() == [2, 0]
    assert [path for path, _ in batch.skipped] == [str(paths[2])]


def test_workers_get_the_images() -> None:
    images = find_images(RNG.integers(256, size=(9, 5, 12, 12), dtype=np.uint8))
    samples = Samples(images, view=RandomResizedCrop(), size=(8, 8), channels=5)
    reference = TrainBatches(samples, batch_size=4).from_step(0)
    running = TrainBatches(samples, batch_size=4, workers=1).from_step(0)
    for _ in range(4):
        assert torch.equal(next(reference).images, next(running).images)
    running.close()
    again = pickle.loads(pickle.dumps(images))
    assert again.fingerprint() == images.fingerprint()


def test_channels_that_do_not_fit() -> None:
    images = find_images(np.zeros((2, 5, 8, 8), dtype=np.uint8))
    for channels in (1, 3, 4):
        with pytest.raises(ValueError, match=f"images of 5 channels cannot be read with {channels}"):
            Samples(images, view=CenterCrop(), size=(8, 8), channels=channels)


def test_packs_are_made_from_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made from files"):
        write_pack(find_images(np.zeros((2, 8, 8), dtype=np.uint8)), None, tmp_path / "a.pack")


def test_words(tmp_path: Path) -> None:
    assert in_words(tmp_path) == str(tmp_path)
    assert in_words([tmp_path, "b.png"]) == "2 paths"
    assert in_words("s3://bucket/x.tar") == "s3://bucket/x.tar"
    assert in_words(torch.zeros(2, 3, 4, 5)) == "float32 tensor [2, 3, 4, 5] in memory"
    assert in_words(np.zeros((2, 3))) == "float64 array [2, 3] in memory"
    assert in_words((np.zeros((2, 3)), np.zeros(2))) == "float64 array [2, 3] in memory, with labels"
    assert in_words(Pictures([1, 2])) == "Pictures of length 2 in memory"
