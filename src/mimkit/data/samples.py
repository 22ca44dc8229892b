"""What one example is, and how a view makes tensors of all of it alike.

An example is a mapping of names to values, which become the model's inputs of the same names. "images" is its picture;
what follows the picture where a view cuts it is an `Annotation`, see `mimkit.data.annotated`. A number, or an array of
one axis, is taken as it is.

Shapes: B batch, C channels, H W pixels of a view.
"""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mimkit.data.decode import is_turned
from mimkit.data.jpeg import Decoder, open_image
from mimkit.errors import BadImage, naming
from mimkit.files import Location
from mimkit.records import name_of
from mimkit.views import Crop, Cut, Picture, Size, View

Example = Mapping[str, Any]
Inputs = dict[str, Tensor | list[Tensor]]
UINT8 = np.dtype(np.uint8)


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

    def take(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """Some of the examples, in the order given."""
        return Chosen(self, np.asarray(indices, dtype=np.int64))

    def fingerprint(self) -> str:
        """What changes when the examples do, as far as that is known without reading them: SHA-256 of their paths."""
        return hashlib.sha256("\0".join(str(self.path(index)) for index in range(len(self))).encode()).hexdigest()

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


class Chosen(Examples):
    """Some of other examples.

    Args:
        examples: the others.
        indices: int64 [N], positions among them.
    """

    def __init__(self, examples: Examples, indices: np.ndarray) -> None:
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def path(self, index: int) -> Location:
        return self.examples.path(int(self.indices[index]))

    def example(self, index: int) -> Example:
        return self.examples.example(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.examples.fingerprint().encode() + self.indices.tobytes()).hexdigest()

    @property
    def shards(self) -> np.ndarray | None:
        return self.examples.shards_of(self.indices)

    def shards_of(self, indices: np.ndarray) -> np.ndarray | None:
        return self.examples.shards_of(self.indices[indices])

    def prefetch(self, current: np.ndarray, upcoming: np.ndarray) -> None:
        self.examples.prefetch(current, upcoming)

    @property
    def channels(self) -> int | None:
        return self.examples.channels


class Viewed(NamedTuple):
    """What a view has beside its pixels.

    Args:
        others: the example's annotations, cut, and its numbers and arrays, by name.
        cut: where it was cut; None for a view that is no `Crop`.
    """

    others: Example
    cut: Cut | None


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
        if not callable(self.view) or isinstance(self.view, type):
            raise ValueError(f"the view must be a function of (image, size, rng) or a Crop, got {self.view!r}")
        have = self.examples.channels
        if have in (None, 1, 3) and self.channels not in (1, 3):
            raise ValueError(f"image files are read with 1 or 3 channels, got {self.channels}")
        if have not in (None, 1, 3, self.channels):
            raise ValueError(f"images of {have} channels cannot be read with {self.channels}")

    def __len__(self) -> int:
        return len(self.examples)

    def empty(self, count: int) -> np.ndarray:
        """Room for the pixels of so many views: uint8 [count, H, W, C]."""
        return np.empty((count, *self.size, self.channels), dtype=np.uint8)

    def read(self, index: int | np.int64, keys: np.ndarray, pixels: np.ndarray) -> list[Viewed] | BadImage:
        """Read one example, and take its view for each key.

        Args:
            index: of the example.
            keys: int64 [K], what each view is drawn from.
            pixels: uint8 [K, H, W, C], where they are written to.

        Returns:
            What else each of the K views has; or why the example cannot be read.

        Raises:
            ValueError: the view made something else than was asked for, or cannot cut an annotation.
        """
        index = int(index)
        try:
            example = self.examples.example(index)
            picture = open_image(example["images"], self.channels, decode=self.decode)
            others = {name: value for name, value in example.items() if name != "images"} if len(example) > 1 else {}
            if (
                others
                and any(isinstance(value, Annotation) for value in others.values())
                and is_turned(example["images"])
            ):
                raise BadImage("", "turned by its EXIF data, and its annotations may be of the pixels as stored")
            return [self._view(picture, others, key, out) for key, out in zip(keys.tolist(), pixels, strict=True)]
        except BadImage as error:  # some formats decode only when a view is cut
            return BadImage(self.examples.path(index), error.reason)
        except Exception as error:
            error.add_note(f"while making a view of {self.examples.path(index)}")
            raise

    def tensors(self, pixels: np.ndarray, viewed: Sequence[Viewed]) -> Inputs:
        """What was read, as a batch has it.

        Returns:
            "images", uint8 [B, C, H, W], channels last in memory as decoders write them; the others by name, stacked
            where they are numbers or say so, else a list of a tensor for each.
        """
        names = dict.fromkeys(name for one in viewed for name in one.others)
        others = {name: collated(name, [one.others.get(name) for one in viewed]) for name in names}
        return {"images": torch.from_numpy(pixels).permute(0, 3, 1, 2), **others}

    @functools.cached_property
    def _crop(self) -> Crop | None:
        """The view, where it is a crop that only draws; looked up once, as it is asked for with each image."""
        return self.view if isinstance(self.view, Crop) and type(self.view).__call__ is Crop.__call__ else None

    def _view(self, picture: Picture, others: Example, key: int, out: np.ndarray) -> Viewed:
        rng = np.random.default_rng(key % 2**64)
        if self._crop is not None:
            cut = self._crop.draw(picture.size, self.size, rng)
            out[:] = self._checked(cut.image(picture))
            if others:
                others = {name: cut_alike(name, value, cut, picture.size) for name, value in others.items()}
            return Viewed(others, cut)
        for name, value in others.items():
            if isinstance(value, Annotation):
                raise ValueError(
                    f"the view {name_of(self.view)} does not say where it cuts, so that {name} cannot follow the "
                    "image: it must be a mimkit.views.Crop that only draws"
                )
        out[:] = self._checked(self.view(picture, self.size, rng))
        return Viewed(others, None)

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        """What a view has made, as [H, W, C]."""
        expected = (*self.size, self.channels)
        if isinstance(pixels, np.ndarray) and pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if not isinstance(pixels, np.ndarray) or pixels.shape != expected or pixels.dtype != UINT8:
            made = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise ValueError(f"the view {name_of(self.view)} made {made}, expected uint8 {expected}")
        return pixels


def cut_alike(name: str, value: Any, cut: Cut, image_size: tuple[int, int]) -> Any:
    """An annotation where an image of (width, height) was cut; a number or an array of one axis as it is.

    Raises:
        ValueError: an array has more axes, as boxes, points and maps have that would not follow the image.
    """
    if np.ndim(value) > 1:
        raise ValueError(
            f"{name} of shape {list(np.shape(value))} would not follow the image where a view cuts it: make it Boxes, "
            "Points, a PixelMap or an Annotation of your own"
        )
    if not isinstance(value, Annotation):
        return value
    with naming(name):
        return value.cut(cut, image_size)


def collated(name: str, values: Sequence[Any]) -> Tensor | list[Tensor]:
    """An annotation of several views: one tensor where it is a number or stacked, else a list of tensors.

    Raises:
        ValueError: some of the examples lack it, are unlike in shape, or it is nothing that a tensor holds.
    """
    if any(value is None for value in values):
        raise ValueError(f"some examples have {name} and others do not")
    arrays = [np.asarray(value.values if isinstance(value, Annotation) else value) for value in values]
    for array in arrays:
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} holds {array.dtype}, which no tensor does: numbers, arrays or annotations are needed"
            )
    if all(value.stacked if isinstance(value, Annotation) else np.ndim(value) == 0 for value in values):
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise ValueError(f"{name} of shapes {shapes[0]} and {shapes[-1]} cannot be stacked to one tensor")
        return _tensor(np.stack(arrays))
    return [_tensor(array) for array in arrays]


def _tensor(array: np.ndarray) -> Tensor:
    """Longer floats as float32; uint16, uint32 and uint64, for which torch has few operations, as signed integers."""
    other: dict[str, Any] = {"float64": np.float32, "longdouble": np.float32, "float128": np.float32}
    other |= {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
    return torch.from_numpy(
        np.ascontiguousarray(array, dtype=other.get(array.dtype.name, array.dtype.newbyteorder("=")))
    )
