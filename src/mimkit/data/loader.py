"""Batches of views: shuffled and endless for training, in order for evaluation.

Every batch is a function of the seed and its number: neither the number of workers nor a resume changes it.

Shapes: B batch, C channels, H W pixels.
"""

import functools
import itertools
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mimkit.data.images import ImageList
from mimkit.data.jpeg import Decoder, open_image
from mimkit.data.order import Order
from mimkit.data.workers import in_order
from mimkit.errors import BadImage, TooManyBadImages
from mimkit.randomness import sample_keys, scramble
from mimkit.views import CenterCrop, Size, View

EVALUATION_VIEW = CenterCrop()
MOST_BAD_IN_A_ROW = 100


@dataclass(frozen=True, eq=False)
class Batch:
    """Views of some images.

    Args:
        images: uint8 [B, C, H, W], channels last in memory, as decoders write them.
        keys: int64 [B], one per (seed, epoch, image, repeat), that further random draws, such as masks, start from.
        batch_key: int64 [1], the same for all micro-batches of one training batch.
        indices: int64 [B], positions in the image list.
        skipped: (path, reason) of each unreadable image met.
    """

    images: Tensor
    keys: Tensor
    batch_key: Tensor
    indices: Tensor
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.indices)

    def inputs(self, device: torch.device | str) -> dict[str, Tensor]:
        """The arguments for `Method`, on a device. From pinned memory the copy is asynchronous."""
        tensors = {"images": self.images, "keys": self.keys, "batch_key": self.batch_key}
        return {name: tensor.to(device, non_blocking=tensor.is_pinned()) for name, tensor in tensors.items()}

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls this method by its name."""
        images, keys, batch_key = (tensor.pin_memory() for tensor in (self.images, self.keys, self.batch_key))
        return replace(self, images=images, keys=keys, batch_key=batch_key)


@dataclass(frozen=True, eq=False)
class TrainBatches:
    """Random views of all images, shuffled anew in each epoch; images that do not fill a last batch are left out of it.

    A batch can come in several equal micro-batches, for steps that accumulate gradients and for several processes;
    together they are the same images with the same keys. A bad image is replaced by one that comes soon after its
    batch in the epoch's order.

    With repeats R, an image is decoded once and gives R views, each with a key of its own, side by side in the batch:
    B views come from B / R images. A step and `steps_per_epoch` count as many views as without repeats, for an R-th of
    the decoding; all images are used once in R times `steps_per_epoch` steps.

    Images in shards are shuffled within a few shards at a time; see `Order`.

    Args:
        images: what to draw from.
        view: makes an array of the size from an image.
        size: (H, W).
        channels: 3 or 1.
        decode: the decoder; see `open_image`.
        batch_size: views per step, over all processes.
        accumulation: steps that gradients accumulate over: the micro-batches of each process in a batch.
        repeats: views of each image.
        seed: for order, views and keys.
        workers: data workers; 0 reads in this process.
        prefetch: micro-batches that each worker reads ahead.
        pin_memory: return batches in page-locked memory, for asynchronous copies to a GPU.
        rank: which of the processes this is.
        world: how many processes train together.

    Raises:
        ValueError: the batch size is below 1 or needs more images than there are, does not divide into the
            micro-batches, processes and repeats, or another value is out of range.
    """

    images: ImageList
    _: KW_ONLY
    view: View
    size: Size
    channels: int = 3
    decode: Decoder = "pillow"
    batch_size: int
    accumulation: int = 1
    repeats: int = 1
    seed: int = 0
    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(f"a batch of {self.batch_size} does not divide into {self.accumulation} micro-batches")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"there is no process {self.rank} among {self.world}")
        if self.batch_size % (self.accumulation * self.world):
            raise ValueError(
                f"a batch of {self.batch_size} does not divide into {self.accumulation} micro-batches for each of "
                f"{self.world} processes"
            )
        if self.repeats < 1 or self.micro_batch % self.repeats:
            raise ValueError(
                f"a micro-batch of {self.micro_batch} views does not divide into {self.repeats} repeats of its images"
            )
        if not 1 <= self._images_per_step <= len(self.images):
            needed = f" of {self.repeats} views each" if self.repeats > 1 else ""
            raise ValueError(f"a batch of {self.batch_size} cannot be drawn from {len(self.images)} images{needed}")
        _check(self.channels, self.workers)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which there are as many views as images."""
        return max(1, len(self.images) // self.batch_size)

    @property
    def micro_batch(self) -> int:
        """Views that a process computes at once."""
        return self.batch_size // (self.accumulation * self.world)

    @property
    def _images_per_step(self) -> int:
        return self.batch_size // self.repeats

    @functools.cached_property
    def _order(self) -> Order:
        return Order.of(self.images)

    @functools.cached_property
    def _shards(self) -> np.ndarray | None:
        """int64 [S]: the store's numbers of the shards that `_order` numbers 0 .. S - 1; None without shards."""
        return self.images.shards_of(self._order.limits[:-1])

    def from_step(self, step: int) -> Generator[Batch]:
        """This process's micro-batches from global step `step` on, without end. Closing the iterator ends its workers.

        Raises:
            TooManyBadImages: see `micro_batch_at`.
        """
        _ = self._order, self._shards  # computed here once, not by each worker
        numbers = itertools.count(step * self.accumulation)
        return in_order(self.micro_batch_at, numbers, self.workers, prefetch=self.prefetch, pin_memory=self.pin_memory)

    def micro_batch_at(self, number: int) -> Batch:
        """This process's micro-batch of a number, which counts over all steps; read in the calling process.

        Raises:
            TooManyBadImages: 100 candidates in a row, or all images, were bad.
        """
        count, order = len(self.images), self._order
        views = Views(self.images, self.view, self.size, self.channels, self.decode)
        per_step, own = self._images_per_step, self.micro_batch // self.repeats
        epoch, place = divmod(number, count // per_step * self.accumulation)
        first = (place * self.world + self.rank) * own
        indices = order.at(self.seed, epoch, np.arange(first, first + own))
        if self._shards is not None:
            current, upcoming = order.windows(self.seed, epoch, first, first + own)
            self.images.prefetch(self._shards[current], self._shards[upcoming])
        keys = self._view_keys(epoch, indices)
        pixels = views.empty(own * self.repeats)
        skipped: dict[str, str] = {}
        for slot in range(own):
            spares = itertools.count(first + slot + per_step)
            tries = min(MOST_BAD_IN_A_ROW, count + 1)
            cuts = slice(slot * self.repeats, (slot + 1) * self.repeats)
            while (bad := views.put(pixels[cuts], indices[slot], keys[cuts])) is not None:
                skipped[bad.path] = bad.reason
                tries -= 1
                if tries == 0:
                    raise TooManyBadImages(
                        f"{min(MOST_BAD_IN_A_ROW, count)} images in a row cannot be read; the last: {bad}"
                    )
                indices[slot : slot + 1] = order.at(self.seed, epoch, np.array([next(spares) % count]))
                keys[cuts] = self._view_keys(epoch, indices[slot : slot + 1])
        # No image has these indices, and -1 is the order's.
        batch_key = _image_keys(self.seed, epoch, np.array([-2 - place // self.accumulation]))
        return _batch(pixels, keys, batch_key, indices.repeat(self.repeats), skipped)

    def reading_times(self) -> list[float]:
        """Seconds that this process needs for each of up to 64 images, decoded and cut into all views, for about 1 s.

        The images are those that training reads first. Empty where one cannot be read: training will say why.
        """
        one = replace(self, batch_size=self.repeats, accumulation=1, rank=0, world=1)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in data workers
        seconds: list[float] = []
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="PIL")
                one.micro_batch_at(self.rank)  # imports what decoding needs
                while len(seconds) < 64 and sum(seconds) < 1:
                    number = self.rank + (1 + len(seconds)) * self.world
                    started = time.perf_counter()
                    one.micro_batch_at(number)
                    seconds.append(time.perf_counter() - started)
        except Exception:
            return []
        finally:
            torch.set_num_threads(threads)
        return seconds

    def _view_keys(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """int64 [images] to int64 [images * repeats]; an image's first repeat has its key without repeats."""
        first = _image_keys(self.seed, epoch, indices)[:, None]
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
    """All readable images once, in order, the last batch smaller; the others are left out and reported as skipped.

    A batch of bad images only has B = 0. Keys are those of seed 0 and epoch 0.

    Raises:
        ValueError: a value out of range.
    """
    if batch_size < 1:
        raise ValueError(f"a batch needs at least 1 image, got {batch_size}")
    _check(channels, workers)
    read = functools.partial(_read_in_order, Views(images, view, size, channels, decode), batch_size)
    return in_order(read, range(-(-len(images) // batch_size)), workers)


@dataclass(frozen=True, eq=False)
class Views:
    """Reads images and makes views of them."""

    images: ImageList
    view: View
    size: Size
    channels: int
    decode: Decoder

    def empty(self, count: int) -> np.ndarray:
        return np.empty((count, *self.size, self.channels), dtype=np.uint8)

    def put(self, pixels: np.ndarray, index: int | np.int64, keys: np.ndarray) -> BadImage | None:
        """Read one image and write its view for each key into [keys, H, W, C], or return why it cannot be read."""
        index = int(index)
        try:
            image = open_image(self.images.content(index), self.channels, decode=self.decode)
        except BadImage as error:
            return BadImage(self.images.path(index), error.reason)
        for key, cut in zip(keys, pixels, strict=True):
            try:
                view = self.view(image, self.size, np.random.default_rng(int(key) % 2**64))
            except BadImage as error:  # some formats decode only when a view is cut
                return BadImage(self.images.path(index), error.reason)
            except Exception as error:
                error.add_note(f"while making a view of {self.images.path(index)}")
                raise
            if view.ndim == 2:
                view = view[:, :, None]
            if view.shape != (*self.size, self.channels):
                made = f"the view made {view.shape} of {self.images.path(index)}"
                raise ValueError(f"{made}, expected {(*self.size, self.channels)}")
            cut[:] = view
        return None


def _read_in_order(views: Views, batch_size: int, step: int) -> Batch:
    indices = np.arange(step * batch_size, min((step + 1) * batch_size, len(views.images)))
    keys = _image_keys(0, 0, indices)
    _prefetch(views.images, indices, indices[-1] + 1 + np.arange(4 * batch_size))
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


def _prefetch(images: ImageList, current: np.ndarray, upcoming: np.ndarray) -> None:
    """Tell a store with shards which images are read now and which come next; indices past the end are ignored."""
    read_now, read_next = images.shards_of(current), images.shards_of(upcoming[upcoming < len(images)])
    if read_now is not None and read_next is not None:
        images.prefetch(np.unique(read_now), np.unique(read_next))


def _batch(
    pixels: np.ndarray, keys: np.ndarray, batch_key: np.ndarray, indices: np.ndarray, skipped: dict[str, str]
) -> Batch:
    images, own, shared, positions = (torch.from_numpy(array) for array in (pixels, keys, batch_key, indices))
    return Batch(images.permute(0, 3, 1, 2), own, shared, positions, list(skipped.items()))


def _image_keys(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    return sample_keys(seed, epoch, torch.from_numpy(indices)).numpy()


def _check(channels: int, workers: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"images are read with 1 or 3 channels, got {channels}")
    if workers < 0:
        raise ValueError(f"the number of workers must be 0 or more, got {workers}")
