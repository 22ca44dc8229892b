"""How an image becomes a training view: which box is cut, how it is resized, how pixels are normalised.

A view turns an image into a uint8 array [H, W, C] of a fixed size. A `Crop` does it in two steps: it *draws* a `Cut`,
which is then *applied* to the image, and alike to masks, boxes and points that belong to it.

Coordinates are in pixels from an image's upper left corner, x to the right and y down; pixel i reaches from i to i + 1.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # left, top, right, bottom

MOST_ELONGATED = 16


class Picture(Protocol):
    """An image that can be cut. It may not be decoded yet: the box decides how much of it must be.

    Args:
        size: (width, height), upright.
    """

    @property
    def size(self) -> tuple[int, int]: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...

    def cut(self, box: Box, size: Size, interpolation: Image.Resampling) -> np.ndarray:
        """A box of whole pixels within the image, resized with an antialiased filter: uint8 [H, W] or [H, W, C]."""
        ...


@dataclass(frozen=True, eq=False)
class PillowPicture:
    """A Pillow image of mode L or RGB; its cuts are Pillow's own, bit for bit."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.image, dtype=dtype)

    def cut(self, box: Box, size: Size, interpolation: Image.Resampling) -> np.ndarray:
        return np.array(_crop(self.image, box).resize(size[::-1], interpolation))


class View(Protocol):
    """What makes a training view of an image, uint8 [H, W, C] or [H, W]: a `Crop`, or any function of these arguments.

    `size` is the view's (H, W); `np.asarray(image)` has all pixels of the image.

    All its randomness comes from `rng`, which is seeded anew for each view from (seed, epoch, image, repeat), so that a
    view is the same in any worker, on any rank and after a resume. A view that draws from a global generator, of torch,
    NumPy or Python, or from one that it keeps, is refused before training. Transforms that draw from a global one can
    be called within `mimkit.randomness.seeded(rng)`.
    """

    def __call__(self, image: Picture | Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray: ...


class Cut(NamedTuple):
    """What a view takes of an image, applied alike to all that belongs to the image. Nothing here is random.

    A box of the image is resized; the view is a window of that, which may begin before it or end behind it, where it is
    continued by reflection; at last left and right may be exchanged.

    Args:
        box: whole pixels of the image.
        resized: (H, W) that the box is resized to.
        offset: (top, left) of the view within the resized box; negative before it.
        size: (H, W) of the view.
        interpolation: Pillow's filter for images, antialiased.
        flip: whether left and right are exchanged.
    """

    box: Box
    resized: Size
    offset: tuple[int, int]
    size: Size
    interpolation: Image.Resampling
    flip: bool = False

    def image(self, image: Picture | Image.Image) -> np.ndarray:
        """The view of the image: uint8 [H, W] or [H, W, C]."""
        pixels = as_picture(image).cut(self.box, self.resized, self.interpolation)
        pixels = pixels if (self.resized, self.offset) == (self.size, (0, 0)) else self._window(pixels)
        return mirrored(pixels) if self.flip else pixels

    def mask(self, values: np.ndarray) -> np.ndarray:
        """The view of values by pixel [h, w] or [h, w, K], such as class ids or depths, h x w being the image's size.

        Each pixel of the view has the value of the nearest pixel of the image: [H, W] or [H, W, K], of the same type.
        """
        left, top, right, bottom = self.box
        rows = top + _nearest(self.offset[0], self.size[0], self.resized[0], bottom - top)
        columns = left + _nearest(self.offset[1], self.size[1], self.resized[1], right - left)
        return values[rows[:, None], columns[::-1] if self.flip else columns]

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Points of the image in the view's coordinates, [..., 2] to float64 [..., 2]; some may lie outside of it."""
        scale, shift = self._affine()
        return np.asarray(xy, dtype=np.float64) * scale + shift

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (left, top, right, bottom) in the view's coordinates, clipped to it: [N, 4] to float64 [N, 4].

        A box outside of the view is kept, with a width or height of 0.
        """
        corners = np.sort(self.points(np.reshape(xyxy, (-1, 2, 2))), axis=1)  # flipped, the right one is left
        return corners.clip(0, self.size[::-1]).reshape(-1, 4)

    def to_source(self, xy: np.ndarray) -> np.ndarray:
        """The inverse of `points`: where points of the view lie in the image, [..., 2] to float64 [..., 2]."""
        scale, shift = self._affine()
        return (np.asarray(xy, dtype=np.float64) - shift) / scale

    @property
    def source(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what the view shows of the image; beyond the image where it is continued."""
        height, width = self.size
        left, top, right, bottom = np.sort(self.to_source(np.array([[0, 0], [width, height]])), axis=0).ravel().tolist()
        return left, top, right, bottom

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of (x, y) from the image to the view, float64 [2] each."""
        left, top, right, bottom = self.box
        scale = np.array([self.resized[1] / (right - left), self.resized[0] / (bottom - top)])
        shift = -scale * (left, top) - self.offset[::-1]
        if self.flip:
            scale[0], shift[0] = -scale[0], self.size[1] - shift[0]
        return scale, shift

    def _window(self, pixels: np.ndarray) -> np.ndarray:
        (top, left), (height, width) = self.offset, self.size
        rows = max(0, -top), max(0, top + height - pixels.shape[0])
        columns = max(0, -left), max(0, left + width - pixels.shape[1])
        if any((*rows, *columns)):
            pixels = np.pad(pixels, (rows, columns, (0, 0))[: pixels.ndim], mode="reflect")
        top, left = top + rows[0], left + columns[0]
        return pixels[top : top + height, left : left + width]


class Crop(ABC):
    """A view that says where it cuts, so that masks, boxes and points can follow the image. Subclasses are final."""

    @abstractmethod
    def draw(self, image_size: tuple[int, int], size: Size, rng: np.random.Generator) -> Cut:
        """Where to cut an image.

        Args:
            image_size: (width, height) of the image, as `Picture.size`.
            size: (H, W) of the view.
            rng: the only source of randomness.
        """

    def __call__(self, image: Picture | Image.Image, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
        """The view of an image: uint8 [H, W] or [H, W, C]. Without `rng`, the one that a generator of seed 0 draws."""
        picture = as_picture(image)
        return self.draw(picture.size, size, np.random.default_rng(0) if rng is None else rng).image(picture)


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and std of pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def for_channels(cls, channels: int) -> "Normalization":
        """ImageNet's statistics for 3 channels, their average for 1, and 0.5 and 0.25 for any other number."""
        if channels == 3:
            return IMAGENET
        mean, std = (0.449, 0.226) if channels == 1 else (0.5, 0.25)
        return cls((mean,) * channels, (std,) * channels)

    def apply(self, pixels: Tensor) -> Tensor:
        """Float pixels in 0..1, [B, C, H, W], to about zero mean and unit std."""
        mean, std = self._columns(pixels)
        return (pixels - mean) / std

    def undo(self, images: Tensor) -> Tensor:
        """The inverse of `apply`."""
        mean, std = self._columns(images)
        return images * std + mean

    def from_bytes(self, images: Tensor) -> Tensor:
        """uint8 images [B, C, H, W] to normalised float32, contiguous."""
        return self.apply(images.to(torch.float32, memory_format=torch.contiguous_format) / 255)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-3] != len(self.mean):  # one channel would silently be broadcast to three
            raise ValueError(f"images of {like.shape[-3]} channels, but a normalisation for {len(self.mean)}")
        values = torch.tensor([self.mean, self.std], dtype=torch.float32, device=like.device)
        return values[0, :, None, None], values[1, :, None, None]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class RandomResizedCrop(Crop):
    """A random box of random area and shape, resized: MAE's view with the default scale, SimMIM's with (0.67, 1).

    Same distribution as torchvision's: ten tries, then the largest central box within the ratio bounds.

    Args:
        scale: bounds of the box's share of the image's area.
        ratio: bounds of its width over its height, drawn log-uniformly.
        interpolation: Pillow's filter, antialiased.
        flip: probability of a left-right flip.

    Raises:
        ValueError: bounds out of order, or not above 0, or a share above 1.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Image.Resampling = Image.Resampling.BICUBIC
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"a crop's scale must rise within 0 and 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"a crop's ratio must rise from above 0, got {self.ratio}")

    def draw(self, image_size: tuple[int, int], size: Size, rng: np.random.Generator) -> Cut:
        box = self.box(*image_size, rng)
        return Cut(box, size, (0, 0), size, self.interpolation, rng.random() < self.flip)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Where to cut an image of that size, in pixels."""
        for _ in range(10):
            area = width * height * _between(*self.scale, rng)
            ratio = math.exp(_between(math.log(self.ratio[0]), math.log(self.ratio[1]), rng))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = _below(width - w + 1, rng), _below(height - h + 1, rng)
                return left, top, left + w, top + h
        w = max(1, round(height * self.ratio[1])) if width / height > self.ratio[1] else width
        h = max(1, round(width / self.ratio[0])) if width / height < self.ratio[0] else height
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclass(frozen=True)
class SimpleResizedCrop(Crop):
    """PixMIM's conservative crop (§3.3): the image resized to cover the size, padded by reflection, cropped.

    Nearly the whole image stays in view, where MAE's crop keeps about two thirds of an object.

    Args:
        padding: pixels added on each side before the random crop.
        interpolation: bilinear, as published.
        flip: probability of a left-right flip.
    """

    padding: int = 4
    interpolation: Image.Resampling = Image.Resampling.BILINEAR
    flip: float = 0.5

    def draw(self, image_size: tuple[int, int], size: Size, rng: np.random.Generator) -> Cut:
        box, resized = cover(*image_size, size)
        padding = min(self.padding, resized[0] - 1, resized[1] - 1)
        top, left = (_below(have + 2 * padding - want + 1, rng) for have, want in zip(resized, size, strict=True))
        return Cut(box, resized, (top - padding, left - padding), size, self.interpolation, rng.random() < self.flip)


@dataclass(frozen=True)
class CenterCrop(Crop):
    """The evaluation view: resized to cover the size, the middle kept, nothing random."""

    interpolation: Image.Resampling = Image.Resampling.BICUBIC

    def draw(self, image_size: tuple[int, int], size: Size, rng: np.random.Generator | None = None) -> Cut:
        box, (height, width) = cover(*image_size, size)
        left, top, _, _ = _middle(width, height, size[1], size[0])
        return Cut(box, (height, width), (top, left), size, self.interpolation)


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W] or [H, W, C], left and right exchanged."""
    if pixels.ndim == 2:
        return pixels[:, ::-1]
    if not pixels.flags.c_contiguous or min(pixels.strides) < 0:
        pixels = pixels.copy()
    # NumPy takes ten times as long to copy reversed pixels.
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].flip(3)[0].permute(1, 2, 0).numpy()


def as_picture(image: Picture | Image.Image) -> Picture:
    """The image as a `Picture`."""
    return PillowPicture(image) if isinstance(image, Image.Image) else image


def cover(width: int, height: int, size: Size) -> tuple[Box, Size]:
    """What to cut of an image, and the smallest (height, width) of its shape that covers `size`.

    Of an image of more than 16:1 only the middle 16:1 is taken: a strip of 65000 x 1 pixels would grow to gigapixels.
    """
    w, h = min(width, MOST_ELONGATED * height), min(height, MOST_ELONGATED * width)
    box = _middle(width, height, w, h)
    if size[0] * w >= size[1] * h:
        return box, (size[0], size[0] * w // h)  # the longer side rounded down, as torchvision does
    return box, (size[1] * h // w, size[1])


def _middle(width: int, height: int, w: int, h: int) -> Box:
    """The central box of w x h pixels, the odd pixel placed as torchvision does."""
    left, top = round((width - w) / 2), round((height - h) / 2)
    return left, top, left + w, top + h


def _crop(image: Image.Image, box: Box) -> Image.Image:
    if box == (0, 0, image.width, image.height):
        return image
    width, height = box[2] - box[0], box[3] - box[1]
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):  # Image.crop takes it for a decompression bomb
        return image.transform((width, height), Image.Transform.EXTENT, box)
    return image.crop(box)


def _nearest(start: int, count: int, resized: int, length: int) -> np.ndarray:
    """int64 [count]: of `length` pixels, resized, those nearest to the resized ones from `start` on, reflected."""
    places = np.abs(np.arange(start, start + count))
    period = max(1, 2 * (resized - 1))
    places = np.minimum(places % period, period - places % period)
    return ((2 * places + 1) * length) // (2 * resized)


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()  # takes a third of the time of rng.uniform


def _below(count: int, rng: np.random.Generator) -> int:
    return int(count * rng.random())
