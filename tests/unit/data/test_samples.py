"""Examples with annotations: what follows an image where a view cuts it, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.samples import centred
from mimkit.data import Annotated, Boxes, PixelMap, Points, Samples, find_images, load_in_order
from mimkit.errors import BadImage
from mimkit.views import CenterCrop, Picture, RandomResizedCrop, Size

PHOTOS = {"count": 4, "size": 40}


@pytest.fixture
def annotated(photos: Path) -> Annotated:
    """Each photograph with all kinds of annotations; its map has its first channel."""
    images = find_images(photos)
    maps = [PixelMap(np.asarray(Image.open(images.path(i)))[..., 0]) for i in range(len(images))]
    return Annotated(
        images,
        maps=maps,
        boxes=[Boxes(np.full((i, 4), (0, 10, 20, 40))) for i in range(len(images))],
        points=[Points(np.full((2, 3, 2), 20.0)) for _ in range(len(images))],
        classes=[np.arange(i) for i in range(len(images))],
        labels=np.arange(len(images)),
        weights=[0.5] * len(images),
    )


def test_each_kind_comes_as_it_says(annotated: Annotated) -> None:
    (batch,) = load_in_order(centred(annotated, (20, 20)))
    inputs = batch.inputs("cpu")
    assert list(inputs) == ["images", "maps", "boxes", "points", "classes", "labels", "weights", "keys", "batch_key"]
    images, maps, boxes, points, classes, labels, weights, *_ = inputs.values()
    assert isinstance(images, torch.Tensor)
    assert isinstance(maps, torch.Tensor)
    assert (maps.dtype, maps.shape) == (torch.uint8, (4, 20, 20))
    assert [(box.dtype, *box.shape) for box in boxes] == [(torch.float32, i, 4) for i in range(4)]
    assert boxes[3].tolist() == [[0, 5, 10, 20]] * 3
    assert [(point.dtype, *point.shape) for point in points] == [(torch.float32, 2, 3, 2)] * 4
    assert (points[0] == 10).all()
    assert [one.tolist() for one in classes] == [[], [0], [0, 1], [0, 1, 2]]
    assert isinstance(labels, torch.Tensor)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1, 2, 3])
    assert isinstance(weights, torch.Tensor)
    assert weights.dtype == torch.float32
    assert torch.equal(batch.images, images)


def test_a_map_follows_its_picture(annotated: Annotated) -> None:
    """Cut by the nearest pixel, the picture's first channel is the map, whatever was drawn."""
    view = RandomResizedCrop(interpolation=Image.Resampling.NEAREST)
    samples = Samples(annotated, view=view, size=(64, 64))  # where no nearest pixel is a tie
    keys, batch = np.arange(100, 108), samples.empty(8)
    assert samples.put(batch, range(8), 2, keys) is None
    tensors = samples.tensors(batch, 8)
    assert torch.equal(tensors["images"][:, 0], tensors["maps"])
    assert len({bytes(one.numpy().tobytes()) for one in tensors["maps"]}) == 8


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float32", "float64", "bool"])
def test_maps_of_any_type(photos: Path, dtype: str) -> None:
    images = find_images(photos)
    values = np.arange(1600).reshape(40, 40).astype(dtype)
    (batch,) = load_in_order(centred(Annotated(images, maps=[PixelMap(values)] * 4), (40, 40)))
    maps = batch.tensors["maps"]
    assert isinstance(maps, torch.Tensor)
    expected = {"uint16": torch.int32, "float64": torch.float32}.get(dtype, getattr(torch, dtype, None))
    assert maps.dtype == expected
    np.testing.assert_array_equal(maps[0].numpy(), values)


def test_what_cannot_be_is_refused(photos: Path, annotated: Annotated) -> None:
    images = find_images(photos)
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        Annotated(images, labels=[1, 2, 3])
    with pytest.raises(ValueError, match="no column can be called images"):
        Annotated(images, images=[1, 2, 3, 4])
    small = Annotated(images, maps=[PixelMap(np.zeros((30, 40)))] * 4)
    with pytest.raises(ValueError, match="maps: a map of 40 x 30 pixels for an image of 40 x 40") as caught:
        list(load_in_order(centred(small, (8, 8))))
    assert str(images.path(0)) in str(caught.value.__notes__)

    def darkened(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
        return CenterCrop()(image, size) // 2

    (batch,) = load_in_order(Samples(Annotated(images, labels=range(4)), view=darkened, size=(8, 8)))
    assert batch.tensors["labels"].tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"view darkened does not say where it cuts, so that maps cannot"):
        list(load_in_order(Samples(annotated, view=darkened, size=(8, 8))))
    with pytest.raises(ValueError, match="1 or 3 channels, got 5"):
        centred(images, (8, 8), 5)
    some = Annotated(images, labels=[1, None, 2, 3])
    with pytest.raises(ValueError, match="some examples have labels and others do not"):
        list(load_in_order(centred(some, (8, 8))))


class BrokenMaps(list):
    """The third cannot be read."""

    def __getitem__(self, index):
        if index == 2:
            raise BadImage("third.png", "broken")
        return super().__getitem__(index)


def test_an_unreadable_annotation_counts_as_an_unreadable_image(photos: Path) -> None:
    images = find_images(photos)
    broken = Annotated(images, maps=BrokenMaps([PixelMap(np.zeros((40, 40)))] * 4))
    (batch,) = load_in_order(centred(broken, (8, 8)))
    assert batch.indices.tolist() == [0, 1, 3]
    assert batch.skipped == [(str(images.path(2)), "maps: third.png: broken")]


def test_a_batch_of_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    (batch,) = load_in_order(centred(Annotated(find_images(tmp_path), labels=[1]), (8, 8)))
    assert len(batch) == 0
    assert batch.images.shape == (0, 3, 8, 8)
