"""Cuts applied to masks, boxes and points, against torchvision's v2 transforms and a coloured test card."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mimkit.views import CenterCrop, Crop, Cut, RandomResizedCrop, SimpleResizedCrop

CROPS = [RandomResizedCrop(), RandomResizedCrop(scale=(0.05, 0.2), flip=1.0), SimpleResizedCrop(), CenterCrop()]
SHAPES = [(37, 53), (53, 37), (40, 40), (16, 200), (300, 16), (7, 9)]  # height, width
SIZES = [(32, 32), (24, 40), (48, 16)]


def draws() -> list[tuple[Cut, tuple[int, int]]]:
    """Cuts of each crop for images of many shapes, with the image's (width, height)."""
    return [
        (crop.draw((width, height), size, np.random.default_rng(seed)), (width, height))
        for crop in CROPS
        for height, width in SHAPES
        for size in SIZES
        for seed in range(3)
    ]


def some_boxes(width: int, height: int, count: int = 20) -> np.ndarray:
    """float32 [count, 4] within an image, some of them tiny."""
    corners = np.random.default_rng(width * height).random((count, 2, 2)) * (width, height)
    return np.sort(corners, axis=1).reshape(count, 4).astype(np.float32)


def torchvisions(cut: Cut, item: torch.Tensor) -> torch.Tensor:
    """The same draw by torchvision: crop, resize, pad, crop, flip. It pads boxes by no reflection, so with zeros."""
    left, top, right, bottom = cut.box
    item = F.crop(item, top, left, bottom - top, right - left)
    item = F.resize(item, list(cut.resized), InterpolationMode.NEAREST_EXACT)
    (top, left), (height, width) = cut.offset, cut.size
    margin = [max(0, -left), max(0, -top), max(0, left + width - cut.resized[1]), max(0, top + height - cut.resized[0])]
    mode = "constant" if isinstance(item, tv_tensors.BoundingBoxes) else "reflect"
    item = F.crop(F.pad(item, margin, padding_mode=mode), top + margin[1], left + margin[0], height, width)
    return F.horizontal_flip(item) if cut.flip else item


def test_boxes_are_torchvisions() -> None:
    for cut, (width, height) in draws():
        boxes = some_boxes(width, height)
        theirs = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(height, width))
        expected = F.clamp_bounding_boxes(torchvisions(cut, theirs))
        np.testing.assert_allclose(cut.boxes(boxes), expected.numpy(), atol=2e-4)


def test_boxes_are_torchvisions_resized_crop() -> None:
    """In torchvision's own one call."""
    for seed, (height, width) in enumerate(SHAPES):
        cut = RandomResizedCrop(flip=0.0).draw((width, height), (24, 32), np.random.default_rng(seed))
        left, top, right, bottom = cut.box
        theirs = tv_tensors.BoundingBoxes(
            torch.from_numpy(some_boxes(width, height)), format="XYXY", canvas_size=(height, width)
        )
        expected = F.resized_crop(theirs, top, left, bottom - top, right - left, [24, 32])
        np.testing.assert_allclose(cut.boxes(theirs.numpy()), F.clamp_bounding_boxes(expected).numpy(), atol=2e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_masks_are_torchvisions(dtype: type) -> None:
    for cut, (width, height) in draws():
        values = np.random.default_rng(0).integers(200, size=(height, width)).astype(dtype)
        found = cut.mask(values)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, torchvisions(cut, torch.from_numpy(values)[None])[0].numpy())
        np.testing.assert_array_equal(cut.mask(values[..., None].repeat(2, axis=2))[..., 1], found)


def test_a_mask_shows_the_pixels_of_its_picture() -> None:
    """A card of coloured squares, and a mask of their numbers: each pixel of the view has the colour of its number."""
    colours = np.random.default_rng(0).permutation(np.stack(np.meshgrid(*[[0, 80, 160, 240]] * 3), -1).reshape(-1, 3))
    numbers = np.arange(30).reshape(5, 6).repeat(40, axis=0).repeat(40, axis=1)  # 200 x 240 pixels
    card = Image.fromarray(colours[numbers].astype(np.uint8))
    for crop in CROPS:
        for seed in range(20):
            cut = crop.draw(card.size, (64, 80), np.random.default_rng(seed))
            difference = np.abs(cut.image(card).astype(int) - colours[cut.mask(numbers)]).max(axis=2)
            # Antialiasing mixes colours at most two pixels from an edge; everywhere else they are the square's own.
            inner = away_from_edges(cut.mask(numbers), 3)
            assert inner.mean() > 0.2
            assert difference[inner].max() <= 2
            nearest = cut._replace(interpolation=Image.Resampling.NEAREST)
            np.testing.assert_array_equal(nearest.image(card), colours[cut.mask(numbers)])


def away_from_edges(numbers: np.ndarray, distance: int) -> np.ndarray:
    """Where all pixels within a distance are there, and have the same number: bool [H, W]."""
    padded = np.pad(numbers, distance, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * distance + 1,) * 2)
    return (windows == numbers[..., None, None]).all(axis=(2, 3))


def test_the_source_rectangle_maps_to_the_corners_and_back() -> None:
    for cut, _ in draws():
        height, width = cut.size
        left, top, right, bottom = cut.source
        corners = cut.points(np.array([[left, top], [right, bottom]]))
        corners = np.stack([corners[::-1, 0], corners[:, 1]], axis=1) if cut.flip else corners
        np.testing.assert_allclose(corners, [[0, 0], [width, height]], atol=1e-9)
        points = np.random.default_rng(0).random((2, 10, 2)) * 300 - 50
        np.testing.assert_allclose(cut.to_source(cut.points(points)), points, atol=1e-9)
        assert cut.points(points).shape == points.shape


def test_the_source_rectangle_is_the_box() -> None:
    for seed in range(10):
        cut = RandomResizedCrop().draw((97, 61), (32, 48), np.random.default_rng(seed))
        np.testing.assert_allclose(cut.source, cut.box, atol=1e-9)
    centre = CenterCrop().draw((100, 50), (20, 20), np.random.default_rng(0))
    assert centre.source == (25, 0, 75, 50)
    beyond = SimpleResizedCrop(padding=4)
    sources = [beyond.draw((32, 32), (32, 32), np.random.default_rng(seed)).source for seed in range(50)]
    assert min(min(source[:2]) for source in sources) == -4
    assert max(max(source[2:]) for source in sources) == 36


def test_points_follow_the_pixels() -> None:
    """A bright pixel is found where its centre is said to be."""
    for crop in (RandomResizedCrop(scale=(0.9, 1.0)), CenterCrop(), SimpleResizedCrop()):
        for seed in range(10):
            picture = np.zeros((64, 64), dtype=np.uint8)
            picture[30:34, 24:28] = 255
            cut = crop.draw((64, 64), (128, 128), np.random.default_rng(seed))
            pixels = cut.image(Image.fromarray(picture)).astype(float)
            rows, columns = (np.arange(128) + 0.5,) * 2
            found = (pixels.sum(0) @ columns / pixels.sum(), pixels.sum(1) @ rows / pixels.sum())
            np.testing.assert_allclose(cut.points(np.array([26.0, 32.0])), found, atol=0.1)


def test_flipping_exchanges_left_and_right() -> None:
    cut = CenterCrop().draw((64, 32), (32, 32), np.random.default_rng(0))
    flipped = cut._replace(flip=True)
    boxes = some_boxes(64, 32)
    np.testing.assert_allclose(
        flipped.boxes(boxes)[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (32, 0, 32, 0), cut.boxes(boxes)
    )
    np.testing.assert_allclose(flipped.points(boxes[:, :2])[:, 0], 32 - cut.points(boxes[:, :2])[:, 0])
    values = np.arange(64 * 32).reshape(32, 64)
    np.testing.assert_array_equal(flipped.mask(values), cut.mask(values)[:, ::-1])


def test_no_box_and_a_box_outside() -> None:
    cut = RandomResizedCrop(scale=(0.1, 0.1)).draw((100, 100), (32, 32), np.random.default_rng(1))
    assert cut.boxes(np.zeros((0, 4))).shape == (0, 4)
    left, top, *_ = cut.box
    assert left > 2
    (outside,) = cut.boxes(np.array([[0, top, left - 1, top + 5]]))
    assert outside[2] - outside[0] == 0
    assert cut.points(np.zeros((0, 17, 2))).shape == (0, 17, 2)


@pytest.mark.parametrize("crop", CROPS)
def test_a_call_is_a_draw_and_its_cut(crop: Crop) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8))
    for seed in range(5):
        cut = crop.draw(image.size, (24, 32), np.random.default_rng(seed))
        np.testing.assert_array_equal(cut.image(image), crop(image, (24, 32), np.random.default_rng(seed)))
    np.testing.assert_array_equal(crop(image, (24, 32)), crop(image, (24, 32), np.random.default_rng(0)))
