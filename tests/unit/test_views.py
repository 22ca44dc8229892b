"""Views against torchvision's transforms, and on images of any shape."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from scipy import stats
from torchvision.transforms import CenterCrop as TorchvisionCenterCrop
from torchvision.transforms import InterpolationMode, Resize
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from mimkit.views import (
    IMAGENET,
    CenterCrop,
    Normalization,
    PillowPicture,
    RandomResizedCrop,
    SimpleResizedCrop,
    View,
    cover,
    mirrored,
)

VIEWS = [RandomResizedCrop(), SimpleResizedCrop(), CenterCrop()]
SHAPES = [(37, 53), (53, 37), (40, 40), (16, 200), (7, 9), (17, 16)]  # height, width


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(height * width).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def boxes(view: RandomResizedCrop, width: int, height: int, count: int) -> np.ndarray:
    """[count, 4]: top, left, height, width, as torchvision says it."""
    rng = np.random.default_rng(1)
    drawn = np.array([view.box(width, height, rng) for _ in range(count)])
    return np.stack([drawn[:, 1], drawn[:, 0], drawn[:, 3] - drawn[:, 1], drawn[:, 2] - drawn[:, 0]], axis=1)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (224, 224), (120, 500)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.67, 1.0), (0.05, 0.1)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    count = 3000
    ours = boxes(RandomResizedCrop(scale=scale), width, height, count)
    image = Image.new("L", (width, height))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([TorchvisionCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)])
    areas, ratios = (
        (values[:, 2] * values[:, 3] for values in (ours, theirs)),
        (v[:, 2] / v[:, 3] for v in (ours, theirs)),
    )
    for pair in [*zip(ours.T, theirs.T, strict=True), tuple(areas), tuple(ratios)]:
        assert stats.ks_2samp(*pair).pvalue > 0.01
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 65000), (11, 1000)])
def test_hopeless_shapes_take_torchvisions_central_box(height: int, width: int) -> None:
    scale, ratio = (0.9, 1.0), (3 / 4, 4 / 3)
    expected = TorchvisionCrop.get_params(Image.new("L", (width, height)), scale, ratio)
    assert (boxes(RandomResizedCrop(scale=scale, ratio=ratio), width, height, 5) == expected).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("filter_name", ["BICUBIC", "BILINEAR"])
def test_crop_and_resize_is_torchvisions_bit_for_bit(filter_name: str, mode: str) -> None:
    for seed, (height, width) in enumerate(SHAPES):
        image = noise(height, width, mode)
        for flip in (0.0, 1.0):
            view = RandomResizedCrop(interpolation=Image.Resampling[filter_name], flip=flip)
            left, top, right, bottom = view.box(width, height, np.random.default_rng(seed))
            interpolation = InterpolationMode[filter_name]
            expected = F.resized_crop(image, top, left, bottom - top, right - left, [24, 32], interpolation)
            expected = F.hflip(expected) if flip else expected
            np.testing.assert_array_equal(view(image, (24, 32), np.random.default_rng(seed)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("height", "width"), [(20, 16), (33, 40), (16, 16), (100, 35)])
def test_simple_crop_is_torchvisions_at_some_offset(height: int, width: int, mode: str) -> None:
    """Resize(16), RandomCrop(16, padding=4, padding_mode="reflect"): its result for every offset, ours among them."""
    image = noise(height, width, mode)
    padded = F.pad(F.resize(image, [16]), [4], padding_mode="reflect")
    rows, columns = padded.height - 16 + 1, padded.width - 16 + 1
    crops = {F.crop(padded, y, x, 16, 16).tobytes(): (y, x) for y in range(rows) for x in range(columns)}
    met = []
    for seed in range(400):
        cut = SimpleResizedCrop(flip=0.0)(image, (16, 16), np.random.default_rng(seed))
        met.append(crops[np.ascontiguousarray(cut).tobytes()])
    for axis, count in enumerate((rows, columns)):
        times = np.bincount([offset[axis] for offset in met], minlength=count)
        assert stats.chisquare(times).pvalue > 0.001


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_centre_crop_is_torchvisions(height: int, width: int) -> None:
    image = noise(height, width)
    for side in range(9, 20):  # odd and even numbers of pixels to cut
        expected = TorchvisionCenterCrop(side)(Resize(side, InterpolationMode.BICUBIC)(image))
        np.testing.assert_array_equal(CenterCrop()(image, (side, side)), np.asarray(expected))


@pytest.mark.parametrize("view", [RandomResizedCrop(), SimpleResizedCrop()])
def test_half_of_the_views_are_flipped(view: View) -> None:
    """Seen from a ramp that darkens to the right."""
    image = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1)))
    views = [view(image, (16, 16), np.random.default_rng(seed)).astype(int) for seed in range(400)]
    flipped = sum(bool(pixels[:, 0].mean() > pixels[:, -1].mean()) for pixels in views)
    assert abs(flipped - 200) < 3 * 10


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8), (1, 1)])
def test_every_view_gives_its_size_for_every_shape(view: View, mode: str, size: tuple[int, int]) -> None:
    for height, width in [*SHAPES, (1, 1), (1, 2), (2, 1), (1, 300), (300, 1)]:
        image = noise(height, width, mode)
        pixels = view(image, size, np.random.default_rng(0))
        assert pixels.dtype == np.uint8
        assert pixels.shape == (size if mode == "L" else (*size, 3))
        np.testing.assert_array_equal(pixels, view(image, size, np.random.default_rng(0)))


@pytest.mark.parametrize("view", VIEWS)
def test_one_pixel_fills_the_view(view: View) -> None:
    pixels = view(Image.new("RGB", (1, 1), (120, 90, 60)), (32, 32), np.random.default_rng(0))
    assert (pixels == (120, 90, 60)).all()


def test_endless_strips_are_not_blown_up() -> None:
    for size in [(65000, 1), (1, 65000)]:
        _, covering = cover(*size, (224, 224))
        assert sorted(covering) == [224, 16 * 224]
        for view in VIEWS:
            assert view(Image.new("RGB", size), (224, 224), np.random.default_rng(0)).shape == (224, 224, 3)


def test_strips_keep_their_middle() -> None:
    strip = Image.fromarray(np.repeat(np.arange(201, dtype=np.uint8)[None], 10, axis=0))
    kept = PillowPicture(strip).cut(*cover(*strip.size, (10, 10)), Image.Resampling.BICUBIC)
    assert kept.shape == (10, 160)
    assert kept[0].tolist() == list(range(20, 180))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_large_crops_are_no_bombs(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Pillow's own crop warns above this size; the pixels must be the same."""
    image = noise(60, 50, mode)
    box_view, centre = RandomResizedCrop(scale=(0.7, 0.9)), CenterCrop()
    expected = [box_view(image, (16, 16), np.random.default_rng(seed)) for seed in range(10)]
    expected.append(centre(image, (40, 48)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.warns(Image.DecompressionBombWarning):
        image.crop((0, 0, 40, 40))
    found = [box_view(image, (16, 16), np.random.default_rng(seed)) for seed in range(10)]
    found.append(centre(image, (40, 48)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_random_crops_lie_in_memory_as_batches_do(flip: float) -> None:
    pixels = RandomResizedCrop(flip=flip)(noise(40, 50), (24, 32), np.random.default_rng(0))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (4, 1, 3)])
def test_mirrored_exchanges_left_and_right(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.testing.assert_array_equal(mirrored(pixels), pixels[:, ::-1])
    turned = pixels.swapaxes(0, 1)[::-1]  # as EXIF may say
    np.testing.assert_array_equal(mirrored(turned), turned[:, ::-1])


def test_impossible_bounds_are_named() -> None:
    for scale in [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5)]:
        with pytest.raises(ValueError, match=f"scale .* got \\({scale[0]}, {scale[1]}\\)"):
            RandomResizedCrop(scale=scale)
    with pytest.raises(ValueError, match=r"ratio .* got"):
        RandomResizedCrop(ratio=(2.0, 1.0))


# Normalisation


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_normalization_and_its_inverse(channels: int) -> None:
    normalization = Normalization.for_channels(channels)
    images = torch.randint(256, (2, channels, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = normalization.from_bytes(images)
    assert normal.dtype == torch.float32
    expected = (images.double() / 255).permute(0, 2, 3, 1) - torch.tensor(normalization.mean, dtype=torch.float64)
    expected = (expected / torch.tensor(normalization.std, dtype=torch.float64)).permute(0, 3, 1, 2)
    torch.testing.assert_close(normal.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(normalization.undo(normal), images / 255, atol=1e-6, rtol=1e-6)
    again = normalization.from_bytes(images.contiguous(memory_format=torch.channels_last))
    assert again.is_contiguous()
    assert torch.equal(again, normal)


def test_three_channels_have_imagenets_statistics() -> None:
    assert Normalization.for_channels(3) is IMAGENET
    expected = F.normalize(torch.full((1, 3, 1, 1), 0.5), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(IMAGENET.apply(torch.full((1, 3, 1, 1), 0.5)), expected)
