"""What one example is, and how a view makes tensors of all of it alike.

An example is a mapping of names to values, which become the model's inputs of the same names. "images" is its picture;
what follows the picture where a view cuts it is an `Annotation`: `PixelMap`, `Boxes`, `Points`. Anything else, a number
or an array, is taken as it is.

Shapes: B batch, C channels, H W pixels of a view, h w pixels of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mimkit.data.decode import read_values
from mimkit.data.jpeg import Decoder, open_image
from mimkit.errors import BadImage, naming
from mimkit.files import Location
from mimkit.views import Crop, Cut, Picture, Size, View

Example = Mapping[str, Any]
Inputs = dict[str, Tensor | list[Tensor]]


class Annotation(ABC):
    """What follows an image where a view cuts it. Subclasses are final.

    Attributes:
        values: the annotation of one image, or of a view of it.
        stacked: whether all views have the same shape and come as one tensor, rather than as a list.
    """

    stacked: ClassVar[bool] = False
    values: np.ndarray

    @abstractmethod
    def cut(self, cut: Cut, image_size: tuple[int, int]) -> Self:
        """The annotation of a view, for an image of (width, height)."""


@dataclass(frozen=True, eq=False)
class PixelMap(Annotation):
    """A value for each pixel of an image, such as class ids, instance ids or depths; cut to the nearest pixel.

    Args:
        values: [h, w] or [h, w, K], of the image's size. In a batch [B, H, W] or [B, H, W, K], of the same type.
    """

    stacked: ClassVar[bool] = True
    values: np.ndarray

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


@dataclass(frozen=True, eq=False)
class Boxes(Annotation):
    """Boxes in an image, clipped to the view; those outside of it are kept, with a width or height of 0.

    Args:
        values: [N, 4], left, top, right, bottom in pixels, see `mimkit.views`. In a batch a list of float32 [N, 4].
    """

    values: np.ndarray

    def cut(self, cut: Cut, image_size: tuple[int, int]) -> "Boxes":
        return Boxes(cut.boxes(self.values))


@dataclass(frozen=True, eq=False)
class Points(Annotation):
    """Points in an image, such as joints; some may lie outside of the view.

    Args:
        values: [..., 2], x and y in pixels, see `mimkit.views`. In a batch a list of float32 [..., 2].
    """

    values: np.ndarray

    def cut(self, cut: Cut, image_size: tuple[int, int]) -> "Points":
        return Points(cut.points(self.values))


class Examples(ABC):
    """Examples by number. Pickled to a data worker, it opens its files again there."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, index: int) -> Location:
        """The name of an example, for messages."""

    @abstractmethod
    def example(self, index: int) -> Example:
        """One example. Its "images" is whatever `open_image` takes: a path, a file's content, an image in memory.

        Raises:
            BadImage: it cannot be read; another one takes its place, and it is counted as skipped.
            ValueError: something in it is wrong, which ends the run.
        """

    @property
    def shards(self) -> np.ndarray | None:
        """int64 [N], non-decreasing: the file that holds each example, where files hold many, else None."""
        return None

    def shards_of(self, indices: np.ndarray) -> np.ndarray | None:
        """int64: the shards of some examples, or None."""
        shards = self.shards
        return None if shards is None else shards[indices]

    def prefetch(self, current: np.ndarray, upcoming: np.ndarray) -> None:  # noqa: B027 - without shards, nothing
        """Take note of the shards that are read now and of those that come next."""

    @property
    def channels(self) -> int | None:
        """How many channels the pictures have; None for files, which are read as colour, 3, or grey, 1."""
        return None


class Column(Protocol):
    """One value for each image: a list, an array, or what reads a value from a file when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Annotated(Examples):
    """Images with annotations, one column for each.

    Args:
        images: the images.
        columns: by name: numbers, arrays or annotations.

    Raises:
        ValueError: a column is not as long as the images are many, or is called "images".
    """

    def __init__(self, images: Examples, /, **columns: Column) -> None:
        if "images" in columns:
            raise ValueError("no column can be called images: that is what the pictures are called")
        for name, column in columns.items():
            if len(column) != len(images):
                raise ValueError(f"{len(column)} {name} for {len(images)} images")
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


@dataclass(frozen=True, eq=False)
class Samples:
    """Examples, and the view that is taken of each.

    Args:
        examples: where they come from.
        view: makes a picture of the size from an image. A `Crop`, where anything is to follow the image.
        size: (H, W).
        channels: of the pictures.
        decode: the decoder of files; see `open_image`.

    Raises:
        ValueError: the examples cannot be read with so many channels.
    """

    examples: Examples
    _: KW_ONLY
    view: View
    size: Size
    channels: int = 3
    decode: Decoder = "pillow"

    def __post_init__(self) -> None:
        have = self.examples.channels
        if have in (None, 1, 3) and self.channels not in (1, 3):
            raise ValueError(f"images are read with 1 or 3 channels, got {self.channels}")
        if have not in (None, 1, 3, self.channels):
            raise ValueError(f"images of {have} channels cannot be read with {self.channels}")

    def __len__(self) -> int:
        return len(self.examples)

    def empty(self, count: int) -> dict[str, Any]:
        """Room for so many views, which `put` fills and `tensors` hands out."""
        return {"images": np.empty((count, *self.size, self.channels), dtype=np.uint8)}

    def put(self, batch: dict[str, Any], slots: range, index: int | np.int64, keys: np.ndarray) -> BadImage | None:
        """Read one example and put its view for each key into a slot of a batch, or return why it cannot be read.

        Args:
            batch: from `empty`.
            slots: one for each key.
            index: of the example.
            keys: int64 [slots], what each view is drawn from.

        Raises:
            ValueError: the view made something else than was asked for, or cannot cut an annotation.
        """
        index = int(index)
        try:
            example = {**self.examples.example(index)}
            picture = open_image(example.pop("images"), self.channels, decode=self.decode)
        except BadImage as error:
            return BadImage(self.examples.path(index), error.reason)
        for slot, key in zip(slots, keys, strict=True):
            try:
                pixels, others = self._view_of(picture, example, np.random.default_rng(int(key) % 2**64))
            except BadImage as error:  # some formats decode only when a view is cut
                return BadImage(self.examples.path(index), error.reason)
            except Exception as error:
                error.add_note(f"while making a view of {self.examples.path(index)}")
                raise
            if pixels.ndim == 2:
                pixels = pixels[:, :, None]
            if pixels.shape != (*self.size, self.channels):
                made = f"the view made {pixels.shape} of {self.examples.path(index)}"
                raise ValueError(f"{made}, expected {(*self.size, self.channels)}")
            batch["images"][slot] = pixels
            for name, value in others.items():
                batch.setdefault(name, [None] * len(batch["images"]))[slot] = value
        return None

    def tensors(self, batch: dict[str, Any], count: int) -> Inputs:
        """The first `count` views of a batch: "images" uint8 [B, C, H, W], channels last in memory as decoders write
        them; the others by name, stacked where they are numbers or `PixelMap`, else a list of a tensor for each."""
        images = torch.from_numpy(batch["images"][:count]).permute(0, 3, 1, 2)
        others = {name: collated(name, values[:count]) for name, values in batch.items() if name != "images"}
        return {"images": images, **others}

    def _view_of(self, picture: Picture, annotations: Example, rng: np.random.Generator) -> tuple[np.ndarray, Example]:
        if isinstance(self.view, Crop):
            cut, size = self.view.draw(picture.size, self.size, rng), picture.size
            pixels, others = cut.image(picture), {**annotations}
            for name, value in others.items():
                if isinstance(value, Annotation):
                    with naming(name):
                        others[name] = value.cut(cut, size)
            return pixels, others
        for name, value in annotations.items():
            if isinstance(value, Annotation):
                raise ValueError(
                    f"the view {name_of(self.view)} does not say where it cuts, so that {name} cannot follow the "
                    "image: it must be a mimkit.views.Crop"
                )
        return self.view(picture, self.size, rng), annotations


def collated(name: str, values: Sequence[Any]) -> Tensor | list[Tensor]:
    """An annotation of several views: one tensor where it is a number or stacked, else a list of tensors.

    Raises:
        ValueError: some of the examples lack it.
    """
    if any(value is None for value in values):
        raise ValueError(f"some examples have {name} and others do not")
    arrays = [np.asarray(value.values if isinstance(value, Annotation) else value) for value in values]
    if all(value.stacked if isinstance(value, Annotation) else np.ndim(value) == 0 for value in values):
        return _tensor(np.stack(arrays)) if arrays else []
    return [_tensor(array) for array in arrays]


def _tensor(array: np.ndarray) -> Tensor:
    """float64 as float32, and what torch computes little with, uint16 and uint32, as signed integers."""
    smaller: dict[str, Any] = {"float64": np.float32, "uint16": np.int32, "uint32": np.int64}
    return torch.from_numpy(np.ascontiguousarray(array, dtype=smaller.get(array.dtype.name, array.dtype)))


def name_of(view: View) -> str:
    """Of a view's class, or of a function."""
    return getattr(view, "__name__", type(view).__name__)
