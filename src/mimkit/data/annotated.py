"""What belongs to an image beside its pixels, and how it follows where a view cuts.

Shapes: B batch, H W pixels of a view, h w pixels of an image.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from mimkit.data.decode import read_values
from mimkit.data.memory import in_words
from mimkit.data.samples import Annotation, Example, Examples
from mimkit.errors import BadImage
from mimkit.files import Location
from mimkit.views import Cut

RESERVED = ("images", "keys", "batch_key")  # what else a batch has by name


@dataclass(frozen=True, eq=False)
class PixelMap(Annotation):
    """A value for each pixel of an image, such as class ids, instance ids or depths; cut to the nearest pixel.

    Args:
        values: [h, w] or [h, w, K], of the image's size. In a batch [B, H, W] or [B, H, W, K], of the same type.

    Raises:
        ValueError: another number of axes.
    """

    stacked: ClassVar[bool] = True
    values: np.ndarray

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim not in (2, 3):
            raise ValueError(f"a map of pixels is [h, w] or [h, w, K], got {list(values.shape)}")
        object.__setattr__(self, "values", values)

    def cut(self, cut: Cut, image_size: tuple[int, int]) -> "PixelMap":
        if self.values.shape[1::-1] != image_size:
            width, height = self.values.shape[1::-1]
            raise ValueError(f"a map of {width} x {height} pixels for an image of {image_size[0]} x {image_size[1]}")
        return PixelMap(cut.mask(self.values))


class PixelMapFiles:
    """Maps in image files such as PNG, read when they are asked for: a column of `Annotated`.

    Args:
        paths: one for each image.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> PixelMap:
        return PixelMap(read_values(self.paths[index]))

    def fingerprint(self) -> str:
        """SHA-256 over the names of the files, in hexadecimal; they are not read."""
        return hashlib.sha256("\0".join(Path(path).name for path in self.paths).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Boxes(Annotation):
    """Boxes in an image, clipped to the view; those outside of it are kept, with a width or height of 0.

    Args:
        values: [N, 4], left, top, right, bottom in pixels, see `mimkit.views`. In a batch a list of float32 [N, 4].

    Raises:
        ValueError: another shape, or a right edge left of the left one, as x, y, width, height may have.
    """

    values: np.ndarray

    def __post_init__(self) -> None:
        boxes = np.asarray(self.values)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes are [N, 4], got {list(boxes.shape)}")
        if not (boxes[:, :2] <= boxes[:, 2:]).all():
            wrong = boxes[~(boxes[:, :2] <= boxes[:, 2:]).all(axis=1)][0].tolist()
            raise ValueError(f"boxes are left, top, right, bottom, got {wrong}: are they x, y, width, height?")
        object.__setattr__(self, "values", boxes)

    def cut(self, cut: Cut, image_size: tuple[int, int]) -> "Boxes":
        return Boxes(cut.boxes(self.values))


@dataclass(frozen=True, eq=False)
class Points(Annotation):
    """Points in an image, such as joints; some may lie outside of the view.

    Args:
        values: [..., 2 or more], x and y in pixels, see `mimkit.views`; what follows them, such as COCO's visibility,
            stays as it is. In a batch a list of float32 of the same shape.

    Raises:
        ValueError: the last axis is shorter.
    """

    values: np.ndarray

    def __post_init__(self) -> None:
        points = np.asarray(self.values)
        points = points.reshape(0, 2) if points.shape == (0,) else points
        if points.ndim < 1 or points.shape[-1] < 2:
            raise ValueError(f"points are [..., 2 or more], got {list(points.shape)}")
        object.__setattr__(self, "values", points)

    def cut(self, cut: Cut, image_size: tuple[int, int]) -> "Points":
        return Points(np.concatenate([cut.points(self.values[..., :2]), self.values[..., 2:]], axis=-1))


class Column(Protocol):
    """One value for each image: a list, an array, or what reads a value from a file when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Annotated(Examples):
    """Images with annotations, one column for each.

    Args:
        images: the images. One that its EXIF data turn counts as unreadable where it has an `Annotation`: some annotate
            the pixels as stored and others as shown.
        columns: by name: numbers, arrays, or annotations.

    Raises:
        ValueError: a column is not as long as the images are many, or has a name that a batch has already.
    """

    def __init__(self, images: Examples, /, **columns: Column) -> None:
        if not isinstance(images, Examples):
            raise ValueError(f"images are what find_images gives, or other Examples, got {in_words(images)}")
        for name, column in columns.items():
            if name in RESERVED:
                raise ValueError(f"no column can be called {name}: a batch has that already")
            if len(column) != len(images):
                raise ValueError(f"{len(column)} {name} for {len(images)} images")
            if isinstance(column, list | tuple) and all(isinstance(value, Number) for value in column):
                columns[name] = np.asarray(column)  # one type for all batches
        self.images, self.columns = images, columns

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> Location:
        return self.images.path(index)

    def example(self, index: int) -> Example:
        example = {**self.images.example(index)}
        for name, column in self.columns.items():
            try:
                example[name] = column[index]
            except BadImage as error:
                raise BadImage(error.path, f"{name}: {error}") from error
        return example

    def fingerprint(self) -> str:
        """SHA-256 over the images' fingerprint, names of columns and their values, in hexadecimal.

        Of a column that is no list or array, its own `fingerprint`, or nothing where it has none.
        """
        digest = hashlib.sha256(self.images.fingerprint().encode())
        for name, column in self.columns.items():
            digest.update(b"\0" + name.encode() + b"\0")
            if hasattr(column, "fingerprint"):
                digest.update(column.fingerprint().encode())
            elif isinstance(column, list | tuple | range | np.ndarray):
                for value in column:
                    array = np.asarray(value.values if isinstance(value, Annotation) else value)
                    digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def shards(self) -> np.ndarray | None:
        return self.images.shards

    def shards_of(self, indices: np.ndarray) -> np.ndarray | None:
        return self.images.shards_of(indices)

    def prefetch(self, current: np.ndarray, upcoming: np.ndarray) -> None:
        self.images.prefetch(current, upcoming)

    @property
    def channels(self) -> int | None:
        return self.images.channels
