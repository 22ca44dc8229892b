"""Batches of views: shuffled without end for training, in order for evaluation.

Every batch is a function of the seed and its number, whatever the number of workers and wherever a run resumed.

Shapes: B batch, C channels, H W pixels.
"""

import functools
import itertools
from collections.abc import Generator, Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from mimkit.data.decode import BadImage
from mimkit.data.fast import Decoder, open_image
from mimkit.data.images import ImageList
from mimkit.data.workers import TooManyBadImages, in_order
from mimkit.randomness import random_orders, sample_keys, scramble
from mimkit.views import CenterCrop, Size, View

EVALUATION_VIEW = CenterCrop()
MOST_BAD_IN_A_ROW = 100
SHARDS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """Views of some images.

    Args:
        images: uint8 [B, C, H, W], contiguous.
        keys: int64 [B], one for each (seed, epoch, image, repeat), from which further draws such as masks are made.
        batch_key: int64 [1], the same for all parts and shares of one training batch.
        indices: int64 [B], positions in the image list.
        skipped: (path, reason) of each bad image that was met on the way.
    """

    images: Tensor
    keys: Tensor
    batch_key: Tensor
    indices: Tensor
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.indices)

    def inputs(self, device: torch.device | str) -> dict[str, Tensor]:
        """What `Method` is called with, on a device."""
        return {
            "images": self.images.to(device),
            "keys": self.keys.to(device),
            "batch_key": self.batch_key.to(device),
        }


@dataclass(frozen=True, eq=False)
class TrainBatches:
    """Random views of all images, shuffled in each pass; the images that do not fill a last batch wait for the next.

    A batch can come in several equal parts, for steps that accumulate gradients, and each of these in equal shares, one
    for each of several processes; together they are the same images with the same keys. A bad image is replaced by one
    that comes soon after its batch in the pass's order.

    With repeats R, an image is decoded once and gives R views, each with a key of its own, side by side in the batch:
    B views come from B / R images. A step and an epoch have as many views as without repeats, and an R-th of the
    decoding; a pass over all images takes R epochs.

    Images in shards are shuffled within `SHARDS_AT_ONCE` shards, dealt anew for each pass, so that a pass reads a few
    files at a time.

    Args:
        images: what to draw from.
        view: makes an array of the size from an image.
        size: (H, W).
        channels: 3 or 1.
        decode: with what; see `open_image`.
        batch_size: views per batch, which is to say per step, over all processes.
        parts: pieces that a batch comes in.
        repeats: views of each image.
        seed: of order, views and keys.
        workers: processes that read; 0 reads in this one.
        rank: which share of each part this process has.
        world: how many processes share a part.

    Raises:
        ValueError: the batch size is below 1 or needs more images than there are, does not divide into the parts,
            processes and repeats, or another value is out of range.
    """

    images: ImageList
    _: KW_ONLY
    view: View
    size: Size
    channels: int = 3
    decode: Decoder = "pillow"
    batch_size: int
    parts: int = 1
    repeats: int = 1
    seed: int = 0
    workers: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.parts < 1 or self.batch_size % self.parts:
            raise ValueError(f"a batch of {self.batch_size} does not divide into {self.parts} parts")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"there is no process {self.rank} among {self.world}")
        if self.batch_size % (self.parts * self.world):
            raise ValueError(
                f"a batch of {self.batch_size} in {self.parts} parts does not divide among {self.world} processes"
            )
        share = self.batch_size // (self.parts * self.world)
        if self.repeats < 1 or share % self.repeats:
            raise ValueError(f"{share} views, what a process computes at once, are not made of {self.repeats} repeats")
        if not 1 <= self._images_per_step <= len(self.images):
            needed = f" of {self.repeats} views each" if self.repeats > 1 else ""
            raise ValueError(f"a batch of {self.batch_size} cannot be drawn from {len(self.images)} images{needed}")
        _check(self.channels, self.workers)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which there are as many views as images."""
        return max(1, len(self.images) // self.batch_size)

    @property
    def _images_per_step(self) -> int:
        return self.batch_size // self.repeats

    def starting_at(self, step: int) -> Generator[Batch]:
        """All parts of all batches from global step `step` on, without end. Closing the iterator ends its workers.

        Raises:
            TooManyBadImages: see `part`.
        """
        return in_order(self.part, itertools.count(step * self.parts), self.workers)

    def part(self, number: int) -> Batch:
        """This process's share of one part of a batch, counted over all steps, read in this process.

        Raises:
            TooManyBadImages: 100 candidates in a row, or all images there are, were bad.
        """
        count, views = len(self.images), _Views(self.images, self.view, self.size, self.channels, self.decode)
        whole, share = self._images_per_step, self._images_per_step // (self.parts * self.world)
        epoch, place = divmod(number, count // whole * self.parts)
        order = _order(self.seed, epoch, self.images)
        first = (place * self.world + self.rank) * share
        indices = order[first : first + share].copy()
        keys = self._keys(epoch, indices)
        pixels = views.empty(share * self.repeats)
        skipped: dict[str, str] = {}
        for slot in range(share):
            spares = itertools.count(first + slot + whole)
            tries = min(MOST_BAD_IN_A_ROW, count + 1)
            cuts = slice(slot * self.repeats, (slot + 1) * self.repeats)
            while (bad := views.put(pixels[cuts], indices[slot], keys[cuts])) is not None:
                skipped[bad.path] = bad.reason
                tries -= 1
                if tries == 0:
                    raise TooManyBadImages(
                        f"{min(MOST_BAD_IN_A_ROW, count)} images in a row cannot be read; the last: {bad}"
                    )
                indices[slot] = order[next(spares) % count]
                keys[cuts] = self._keys(epoch, indices[slot : slot + 1])
        batch_key = _keys(self.seed, epoch, np.array([-2 - place // self.parts]))  # of no image, and not the order's
        return _batch(pixels, keys, batch_key, indices.repeat(self.repeats), skipped)

    def _keys(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """int64 [images] to int64 [images * repeats]; the first repeat of an image has the key it has without."""
        first = _keys(self.seed, epoch, indices)[:, None]
        more = scramble(scramble(~torch.from_numpy(first)) + torch.arange(1, self.repeats)).numpy()
        return np.concatenate([first, more], axis=1).ravel()


def load_images(
    images: ImageList,
    size: Size,
    channels: int = 3,
    *,
    view: View = EVALUATION_VIEW,
    decode: Decoder = "pillow",
    workers: int = 0,
    batch_size: int = 256,
) -> Iterator[Batch]:
    """All good images once, in order, the last batch smaller; bad ones are left out and reported.

    A batch of bad images only has B = 0. Keys are those of seed 0 and epoch 0.

    Raises:
        ValueError: a value out of range.
    """
    if batch_size < 1:
        raise ValueError(f"a batch needs at least 1 image, got {batch_size}")
    _check(channels, workers)
    read = functools.partial(_read_in_order, _Views(images, view, size, channels, decode), batch_size)
    return in_order(read, range(-(-len(images) // batch_size)), workers)


@dataclass(frozen=True, eq=False)
class _Views:
    images: ImageList
    view: View
    size: Size
    channels: int
    decode: Decoder

    def empty(self, count: int) -> np.ndarray:
        return np.empty((count, self.channels, *self.size), dtype=np.uint8)

    def put(self, pixels: np.ndarray, index: int | np.int64, keys: np.ndarray) -> BadImage | None:
        """Read one image and write its view for each key into [keys, C, H, W], or tell why there is none."""
        path = self.images.path(int(index))
        try:
            image = open_image(self.images.content(int(index)), self.channels, decode=self.decode)
        except BadImage as error:
            return BadImage(path, error.reason)
        for key, cut in zip(keys, pixels, strict=True):
            try:
                view = self.view(image, self.size, np.random.default_rng(int(key) % 2**64))
            except BadImage as error:  # some are decoded only now
                return BadImage(path, error.reason)
            except Exception as error:
                error.add_note(f"while making a view of {path}")
                raise
            if view.ndim == 2:
                view = view[:, :, None]
            if view.shape != (*self.size, self.channels):
                raise ValueError(f"the view made {view.shape} of {path}, expected {(*self.size, self.channels)}")
            cut[:] = view.transpose(2, 0, 1)
        return None


def _read_in_order(views: _Views, batch_size: int, step: int) -> Batch:
    indices = np.arange(step * batch_size, min((step + 1) * batch_size, len(views.images)))
    keys = _keys(0, 0, indices)
    pixels = views.empty(len(indices))
    good: list[int] = []
    skipped: dict[str, str] = {}
    for i in range(len(indices)):
        bad = views.put(pixels[len(good) : len(good) + 1], indices[i], keys[i : i + 1])
        if bad is None:
            good.append(i)
        else:
            skipped[bad.path] = bad.reason
    return _batch(pixels[: len(good)], keys[good], keys[:1], indices[good], skipped)


def _batch(
    pixels: np.ndarray, keys: np.ndarray, batch_key: np.ndarray, indices: np.ndarray, skipped: dict[str, str]
) -> Batch:
    images, own, shared, positions = (torch.from_numpy(array) for array in (pixels, keys, batch_key, indices))
    return Batch(images, own, shared, positions, list(skipped.items()))


def _keys(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    return sample_keys(seed, epoch, torch.from_numpy(indices)).numpy()


def _order(seed: int, epoch: int, images: ImageList) -> np.ndarray:
    """The pass's permutation of all images; its key is that of image -1, which no view uses."""
    # Kept with the images' own identity: two lists of one length may lie in other shards.
    return _kept_order(seed, epoch, len(images), images if images.shards is not None else None)


@functools.lru_cache(maxsize=1)
def _kept_order(seed: int, epoch: int, count: int, images: ImageList | None) -> np.ndarray:
    key = sample_keys(seed, epoch, torch.tensor([-1]))
    order = random_orders(key, count)[0].numpy()
    if images is None or images.shards is None:
        return order
    shards = images.shards
    deal = random_orders(~key, int(shards.max()) + 1)[0].numpy()
    windows = np.argsort(deal)[shards] // SHARDS_AT_ONCE
    return order[np.argsort(windows[order], kind="stable")]


def _check(channels: int, workers: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, got {channels}")
    if workers < 0:
        raise ValueError(f"the number of workers must be 0 or more, got {workers}")
