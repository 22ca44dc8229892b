"""How an image becomes a training view: which box is cut, how it is resized, how pixels are normalised.

A view turns an image into a uint8 array [H, W, C] of a fixed size. Its randomness comes from the NumPy generator that
the caller hands it, never from a global one.
"""

import math
from dataclasses import dataclass
from typing import Protocol

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

    def cut(self, box: Box, size: Size, interpolation: Image.Resampling) -> np.ndarray:
        return np.array(_crop(self.image, box).resize(size[::-1], interpolation))


class View(Protocol):
    """One random (or fixed) crop of an image; a Pillow image is cut by Pillow."""

    def __call__(self, image: Picture | Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray: ...


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
class RandomResizedCrop:
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

    def __call__(self, image: Picture | Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        picture = as_picture(image)
        pixels = picture.cut(self.box(*picture.size, rng), size, self.interpolation)
        return mirrored(pixels) if rng.random() < self.flip else pixels

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Where to cut an image of that size, in pixels."""
        for _ in range(10):
            area = width * height * _between(*self.scale, rng)
            ratio = math.exp(_between(math.log(self.ratio[0]), math.log(self.ratio[1]), rng))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = _below(width - w + 1, rng), _below(height - h + 1, rng)
                return left, top, left + w, top + h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            w = max(1, round(height * self.ratio[1]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclass(frozen=True)
class SimpleResizedCrop:
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

    def __call__(self, image: Picture | Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        picture = as_picture(image)
        pixels = picture.cut(*cover(*picture.size, size), self.interpolation)
        padding = min(self.padding, pixels.shape[0] - 1, pixels.shape[1] - 1)
        pixels = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0))[: pixels.ndim], mode="reflect")
        top, left = (_below(have - want + 1, rng) for have, want in zip(pixels.shape[:2], size, strict=True))
        pixels = pixels[top : top + size[0], left : left + size[1]]
        return mirrored(pixels) if rng.random() < self.flip else pixels


@dataclass(frozen=True)
class CenterCrop:
    """The evaluation view: resized to cover the size, the middle kept, nothing random."""

    interpolation: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Picture | Image.Image, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
        picture = as_picture(image)
        box, (height, width) = cover(*picture.size, size)
        left, top, right, bottom = _middle(width, height, size[1], size[0])
        return picture.cut(box, (height, width), self.interpolation)[top:bottom, left:right]


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W] or [H, W, C], left and right exchanged."""
    if pixels.ndim == 2:
        return pixels[:, ::-1]
    if not pixels.flags.c_contiguous or min(pixels.strides) < 0:
        pixels = pixels.copy()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return image.flip(3)[0].permute(1, 2, 0).numpy()  # NumPy takes ten times as long to copy reversed pixels


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


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()  # takes a third of the time of rng.uniform


def _below(count: int, rng: np.random.Generator) -> int:
    return int(count * rng.random())
