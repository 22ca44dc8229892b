"""Images in memory or from a data set of one's own: arrays, tensors, torch data sets, lists of images.

Pixels are kept in 8 bits. Integers must lie within 0..255, floats within 0..1, which are rounded to 256 levels. A
tensor's channels are its first axis, but for a last one of 1, 3 or 4 with a first that is none of these; an array's are
the smaller one of the first and the last, the last where they are equal.

Shapes: N images, C channels, H W pixels.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from mimkit.data.decode import in_mode
from mimkit.data.string_array import StringArray
from mimkit.errors import BadImage
from mimkit.files import Location
from mimkit.progress import speaking
from mimkit.views import Box, Picture, PillowPicture, Size

Data = Location | Sequence[Any] | np.ndarray | Tensor | Dataset
"""What images come from: a path or URL, a list of paths, or images in memory: a tensor or array [N, C, H, W],
[N, H, W, C] or [N, H, W]; a torch data set; a list of images. Paths, tensors and arrays may come as a pair with labels
[N], whole numbers or names."""

ROOT = Path("memory")
IMAGE_NAMES = ("image", "img", "pixel_values")


@dataclass(frozen=True, eq=False)
class ArrayPicture:
    """An image of any number of channels; each is cut as a grey Pillow image.

    Args:
        pixels: uint8 [H, W, C].
    """

    pixels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels, dtype=dtype)

    def cut(self, box: Box, size: Size, interpolation: Image.Resampling) -> np.ndarray:
        """As `Picture.cut`: uint8 [H, W, C]."""
        channels = (Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(self.pixels, 2, 0))
        return np.stack([PillowPicture(channel).cut(box, size, interpolation) for channel in channels], axis=2)


class ImagesInMemory:
    """A `Store` of images that a program handed over. Their labels come from a pair, or a data set's `targets`.

    Args:
        data: see `Data`, without paths.

    Raises:
        ValueError: it is none of these, is empty, or its pixels are out of range.
    """

    path: Location = ROOT
    splits: np.ndarray | None = None
    shards: np.ndarray | None = None

    def __init__(self, data: Any) -> None:
        images, labels, classes = taken_apart(data)
        if isinstance(images, np.ndarray | Tensor):
            if images.ndim not in (3, 4):
                raise ValueError(
                    f"images need 3 or 4 axes, [N, C, H, W], [N, H, W, C] or [N, H, W]; got {in_words(images)}"
                )
            pixels, note = eight_bits(images, in_words(images))
            self.images: Any = torch.from_numpy(channels_last(pixels, isinstance(images, Tensor)))
        else:
            self.images, note = images, ""
        if not len(self.images):
            raise ValueError(f"no images in {in_words(data)}")
        self.names = StringArray.of(map(str, range(len(self.images))))
        self.labels, self.classes = labels, classes
        if labels is not None and len(labels) != len(self.images):
            raise ValueError(f"{len(labels)} labels for {len(self.images)} images in {in_words(data)}")
        first, (height, width, channels) = self._first()
        self.channels = None if isinstance(first, Image.Image) else channels
        if speaking():
            such = f"{len(self.images)} images, the first of {height} x {width} pixels with {channels} channels"
            print(f"{in_words(data)}: {such}{note}", file=sys.stderr)

    def read(self, position: int) -> Picture:
        """One image.

        Raises:
            BadImage: the data set raised an OSError for it.
            ValueError: it is no image, or its pixels are out of range.
        """
        return picture_of(self._pixels(position))

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Nothing to fetch."""

    def identity(self, positions: np.ndarray) -> bytes:
        """A hash of all pixels of an array; of a data set, of at most 16 images evenly apart."""
        some = positions if isinstance(self.images, Tensor) else positions[:: max(1, len(positions) // 16)][:16]
        digest = hashlib.sha256()
        for position in some.tolist():
            with contextlib.suppress(BadImage):
                pixels = self._pixels(position)
                digest.update(str(pixels.shape).encode() + pixels.tobytes())
        return digest.digest()

    def _first(self) -> tuple[Any, tuple[int, ...]]:
        """The first image that can be read, as it is, and its (H, W, C)."""
        for position in range(len(self.images)):
            with contextlib.suppress(BadImage):
                return image_in(self._item(position)), self._pixels(position).shape
        raise ValueError(f"none of the images in {in_words(self.images)} can be read")

    def _item(self, position: int) -> Any:
        """An image of a data set, with what it hands out beside it."""
        try:
            return self.images[position]
        except OSError as error:
            raise BadImage(ROOT / str(position), str(error).partition("\n")[0]) from error
        except Exception as error:
            error.add_note(f"while reading image {position} of {in_words(self.images)}")
            raise

    def _pixels(self, position: int) -> np.ndarray:
        """uint8 [H, W, C]."""
        if isinstance(self.images, Tensor):
            pixels: np.ndarray = self.images[position].numpy()
            return pixels
        return image_of(self._item(position), f"image {position}")


def taken_apart(data: Any) -> tuple[Any, np.ndarray | None, list[str] | None]:
    """Images, an array or anything with a length and items; labels int64 [N] and class names, where there are some.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(data, TensorDataset):
        images, *others = data.tensors
        labelled = len(others) == 1 or (others and others[0].ndim == 1)
        data = (images, others[0]) if labelled else images
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, np.ndarray | Tensor) for part in data):
        return data[0], *numbered(np.asarray(data[1]), None)
    if isinstance(data, np.ndarray | Tensor):
        return data, None, None
    table = isinstance(data, IterableDataset | Mapping) or hasattr(data, "iloc")
    if table or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        hint = ": give its .dataset" if hasattr(data, "dataset") else ""
        hint = ": give one of its splits" if isinstance(data, Mapping) else hint
        raise ValueError(
            "data must be a path, a list of paths, an array, a tensor, or a data set with a length and numbered items, "
            f"not {in_words(data)}{hint}"
        )
    targets, names = targets_of(data)
    return data, *((None, None) if targets is None else numbered(targets, names))


def targets_of(data: Any) -> tuple[np.ndarray | None, Sequence[str] | None]:
    """A data set's labels and class names: torchvision's `targets`, one whole number each, and `classes`; the column
    "label" of Hugging Face's `datasets`."""
    if isinstance(data, Subset):
        targets, names = targets_of(data.dataset)
        return None if targets is None else targets[np.asarray(data.indices)], names
    label = getattr(data, "features", {}).get("label") if isinstance(getattr(data, "features", {}), dict) else None
    if label is not None:
        return np.asarray(data.with_format(None)["label"]), getattr(label, "names", None)
    try:
        targets = np.asarray(getattr(data, "targets", ()))
    except ValueError:  # as many as each image has
        return None, None
    if targets.ndim != 1 or targets.dtype.kind not in "biuU" or not len(targets):
        return None, None
    return targets, getattr(data, "classes", None)


def numbered(labels: np.ndarray, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Labels as positions in a list of classes, int64 [N], and the classes: their names, or the labels in order.

    Raises:
        ValueError: they are not one whole number or name for each image.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "biuU":
        what = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"labels are one whole number or name for each image, [N], got {what}")
    if names is not None and len(labels) and labels.min() >= 0 and labels.max() < len(names):
        return labels.astype(np.int64), [str(name) for name in names]
    classes, positions = np.unique(labels, return_inverse=True)
    return positions.astype(np.int64), [str(name) for name in classes]


def image_in(item: Any) -> Any:
    """What a data set hands out as image: its item, the first of it, or what is under one of `IMAGE_NAMES`."""
    if isinstance(item, tuple | list) and item:
        return item[0]
    return next((item[name] for name in IMAGE_NAMES if name in item), item) if isinstance(item, dict) else item


def image_of(item: Any, name: str) -> np.ndarray:
    """The image in a data set's item, alone, first of a tuple or under "image": uint8 [H, W, C].

    Raises:
        ValueError: there is none, or its pixels are out of range.
    """
    item = image_in(item)
    if isinstance(item, Image.Image):
        grey = item.mode in ("1", "L", "F") or item.mode.startswith("I")
        pixels = np.asarray(in_mode(item, "L" if grey else "RGB"))
        return pixels[:, :, None] if grey else pixels
    if not isinstance(item, np.ndarray | Tensor) or item.ndim not in (2, 3):
        has = f" with {', '.join(map(str, item))}" if isinstance(item, dict) else ""
        raise ValueError(
            f"{name} is no image but {in_words(item)}{has}: a Pillow image, a tensor or an array is needed, alone, "
            'first of a tuple or under "image"'
        )
    return channels_last(eight_bits(item, name)[0][None], isinstance(item, Tensor))[0]


def channels_last(images: np.ndarray, is_tensor: bool) -> np.ndarray:
    """uint8 [N, H, W], [N, C, H, W] or [N, H, W, C] to [N, H, W, C], contiguous; see the module's first lines."""
    if images.ndim == 3:
        return np.ascontiguousarray(images)[..., None]
    first, last = images.shape[1], images.shape[3]
    channels_first = (first in (1, 3, 4) or last not in (1, 3, 4)) if is_tensor else first < last
    return np.ascontiguousarray(np.moveaxis(images, 1, 3) if channels_first else images)


def eight_bits(images: np.ndarray | Tensor, name: str) -> tuple[np.ndarray, str]:
    """Pixels as uint8 of the same shape, and a note on what was rounded.

    Raises:
        ValueError: values out of range, or of a type that is no number.
    """
    if isinstance(images, Tensor):
        images = images.detach().cpu().float() if images.dtype == torch.bfloat16 else images.detach().cpu()
    values = images.numpy() if isinstance(images, Tensor) else images
    if values.dtype == np.uint8:
        return values, ""
    if values.dtype.kind not in "iuf" or not values.size:
        raise ValueError(f"{name}: pixels are of type {values.dtype}; uint8, or floats in 0..1, are needed")
    low, high = values.min(), values.max()
    most = 1 if values.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):  # NaN too
        raise ValueError(
            f"{name}: {values.dtype} pixels of {low:g} .. {high:g}; give uint8, integers in 0..255, or floats in 0..1"
        )
    if most == 255:
        return values.astype(np.uint8), ""
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8), ", 0..1 rounded to 8 bits"


def picture_of(pixels: np.ndarray) -> Picture:
    """uint8 [H, W, C] as a picture: of Pillow for 1 and 3 channels."""
    if pixels.shape[2] == 1:
        return PillowPicture(Image.fromarray(pixels[:, :, 0]))
    return PillowPicture(Image.fromarray(pixels)) if pixels.shape[2] == 3 else ArrayPicture(pixels)


def with_channels(picture: Picture, channels: int) -> Picture:
    """A picture with so many channels: grey becomes colour, and colour grey, as files are read.

    Raises:
        ValueError: it has another number of channels, and is neither.
    """
    if isinstance(picture, PillowPicture) and channels in (1, 3):
        return PillowPicture(in_mode(picture.image, "RGB" if channels == 3 else "L"))
    has = picture.pixels.shape[2] if isinstance(picture, ArrayPicture) else "1 or 3"
    if has != channels:
        raise ValueError(f"an image of {has} channels cannot be read with {channels}")
    return picture


def are_paths(data: Any) -> bool:
    """Whether it is a list of paths."""
    return isinstance(data, list | tuple) and bool(data) and all(isinstance(path, str | os.PathLike) for path in data)


def in_words(data: Any) -> str:
    """A path or URL as it is; anything else by its type, shape and length."""
    if isinstance(data, str | Path):
        return str(data)
    if are_paths(data):
        return f"{len(data)} paths"
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, np.ndarray | Tensor) for part in data):
        return f"{in_words(data[0])}, with labels"
    if isinstance(data, np.ndarray | Tensor):
        kind = "tensor" if isinstance(data, Tensor) else "array"
        return f"{str(data.dtype).removeprefix('torch.')} {kind} {list(data.shape)} in memory"
    length = f" of length {len(data)}" if hasattr(data, "__len__") else ""
    return f"{type(data).__name__}{length} in memory"
