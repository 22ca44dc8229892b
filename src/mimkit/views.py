"""How an image becomes a training view: which box is cut, how it is resized, how pixels are normalised.

A view turns a Pillow image into a uint8 array [H, W, C] of a fixed size. Its randomness comes from the NumPy generator
that the caller hands it, never from a global one.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # height, width


class View(Protocol):
    """One random (or fixed) crop of an image."""

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray: ...


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and deviation of pixels in 0..1."""

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
        """Float pixels in 0..1, [B, C, H, W], to about zero mean and unit deviation."""
        mean, std = self._columns(pixels)
        return (pixels - mean) / std

    def undo(self, images: Tensor) -> Tensor:
        """The inverse of `apply`."""
        mean, std = self._columns(images)
        return images * std + mean

    def from_bytes(self, images: Tensor) -> Tensor:
        """uint8 images [B, C, H, W] to normalised float32."""
        return self.apply(images.float() / 255)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
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
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Image.Resampling = Image.Resampling.BICUBIC
    flip: float = 0.5

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        box = self.box(image.width, image.height, rng)
        return _flip(np.asarray(image.crop(box).resize(size[::-1], self.interpolation)), self.flip, rng)

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
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

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        pixels = np.asarray(cover(image, size, self.interpolation))
        padding = min(self.padding, pixels.shape[0] - 1, pixels.shape[1] - 1)
        pixels = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0))[: pixels.ndim], mode="reflect")
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(pixels.shape, size, strict=False))
        return _flip(pixels[top : top + size[0], left : left + size[1]], self.flip, rng)


@dataclass(frozen=True)
class CenterCrop:
    """The evaluation view: resized to cover the size, the middle kept, nothing random."""

    interpolation: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
        image = cover(image, size, self.interpolation)
        top, left = (image.height - size[0]) // 2, (image.width - size[1]) // 2
        return np.asarray(image.crop((left, top, left + size[1], top + size[0])))


def cover(image: Image.Image, size: Size, interpolation: Image.Resampling) -> Image.Image:
    """The image resized, its shape kept, to the smallest that covers `size` (height, width)."""
    factor = max(size[0] / image.height, size[1] / image.width)
    height, width = max(size[0], round(image.height * factor)), max(size[1], round(image.width * factor))
    return image if (width, height) == image.size else image.resize((width, height), interpolation)


def _flip(pixels: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    return pixels[:, ::-1] if rng.random() < probability else pixels
