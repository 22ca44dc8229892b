"""Batches of views: shuffled and endless for training, in order for evaluation.

Every batch is a function of the seed and its number: neither the number of workers nor a resume changes it.

Shapes: B batch, C channels, H W pixels.
"""

import functools
import itertools
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimkit.data.order import Order
from mimkit.data.repeatable import require_repeatable
from mimkit.data.samples import Examples, Inputs, Samples, Viewed
from mimkit.data.workers import in_order, refuse_unsendable, workers_are_forks
from mimkit.errors import BadImage, TooManyBadImages
from mimkit.randomness import sample_keys, scramble
from mimkit.views import Cut

MOST_BAD_IN_A_ROW = 100


@dataclass(frozen=True, eq=False)
class Batch:
    """Views of some examples.

    Args:
        tensors: by name, what `Samples.tensors` gives: "images", uint8 [B, C, H, W], and the annotations.
        keys: int64 [B], one per (seed, epoch, example, repeat), that further random draws, such as masks, start from.
        batch_key: int64 [1], the same for all micro-batches of one training batch.
        indices: int64 [B], positions among the examples.
        cuts: of each view, where it was cut; None for a view that is no `Crop`.
        skipped: (path, reason) of each unreadable example met.
    """

    tensors: Inputs
    keys: Tensor
    batch_key: Tensor
    indices: Tensor
    cuts: list[Cut | None]
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def images(self) -> Tensor:
        """uint8 [B, C, H, W]."""
        images = self.tensors["images"]
        assert isinstance(images, Tensor)
        return images

    def inputs(self, device: torch.device | str) -> Inputs:
        """What a model is called with, on a device: the tensors by name, "keys" and "batch_key". From pinned memory the
        copy is asynchronous."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls this method by its name."""
        tensors: dict[str, Any] = self._mapped(Tensor.pin_memory)
        return replace(self, keys=tensors.pop("keys"), batch_key=tensors.pop("batch_key"), tensors=tensors)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        every = self.tensors | {"keys": self.keys, "batch_key": self.batch_key}
        return {
            name: change(one) if isinstance(one, Tensor) else [change(each) for each in one]
            for name, one in every.items()
        }


@dataclass(frozen=True, eq=False)
class TrainBatches:
    """Random views of all examples, shuffled anew in each epoch; those that do not fill a last batch are left out.

    A batch can come in several equal micro-batches, for steps that accumulate gradients and for several processes;
    together they are the same examples with the same keys. A bad example is replaced by one that comes soon after its
    batch in the epoch's order.

    With repeats R, an example is read once and gives R views, each with a key of its own, side by side in the batch:
    B views come from B / R examples. A step and `steps_per_epoch` count as many views as without repeats, for an R-th
    of the reading; all examples are used once in R times `steps_per_epoch` steps.

    Examples in shards are shuffled within a few shards at a time; see `Order`.

    Args:
        samples: what to draw from, and the view that is taken.
        batch_size: views per step, over all processes.
        accumulation: steps that gradients accumulate over: the micro-batches of each process in a batch.
        repeats: views of each example.
        seed: for order, views and keys.
        workers: data workers; 0 reads in this process.
        prefetch: micro-batches that each worker reads ahead.
        pin_memory: return batches in page-locked memory, for asynchronous copies to a GPU.
        rank: which of the processes this is.
        world: how many processes train together.

    Raises:
        ValueError: the batch size is below 1 or needs more examples than there are, does not divide into the
            micro-batches, processes and repeats, or another value is out of range.
    """

    samples: Samples
    _: KW_ONLY
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
        if not 1 <= self._examples_per_step <= len(self.samples):
            needed = f" of {self.repeats} views each" if self.repeats > 1 else ""
            raise ValueError(f"a batch of {self.batch_size} cannot be drawn from {len(self.samples)} images{needed}")
        _check(self.workers)
        if self.workers and not workers_are_forks():
            refuse_unsendable(self.samples)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which there are as many views as examples."""
        return max(1, len(self.samples) // self.batch_size)

    @property
    def micro_batch(self) -> int:
        """Views that a process computes at once."""
        return self.batch_size // (self.accumulation * self.world)

    @property
    def _examples_per_step(self) -> int:
        return self.batch_size // self.repeats

    @functools.cached_property
    def _order(self) -> Order:
        return Order.of(self.samples.examples)

    @functools.cached_property
    def _shards(self) -> np.ndarray | None:
        """int64 [S]: the store's numbers of the shards that `_order` numbers 0 .. S - 1; None without shards."""
        return self.samples.examples.shards_of(self._order.limits[:-1])

    def from_step(self, step: int) -> Generator[Batch]:
        """This process's micro-batches from global step `step` on, without end. Closing the iterator ends its workers.

        Raises:
            TooManyBadImages: see `micro_batch_at`.
            ValueError: a view or an example is no function of its key, see `require_repeatable`.
        """
        require_repeatable(self.samples)
        _ = self._order, self._shards  # computed here once, not by each worker
        numbers = itertools.count(step * self.accumulation)
        return in_order(self.micro_batch_at, numbers, self.workers, prefetch=self.prefetch, pin_memory=self.pin_memory)

    def micro_batch_at(self, number: int) -> Batch:
        """This process's micro-batch of a number, which counts over all steps; read in the calling process.

        Raises:
            TooManyBadImages: 100 candidates in a row, or all images, were bad.
        """
        samples, count, order = self.samples, len(self.samples), self._order
        per_step, own = self._examples_per_step, self.micro_batch // self.repeats
        epoch, place = divmod(number, count // per_step * self.accumulation)
        first = (place * self.world + self.rank) * own
        indices = order.at(self.seed, epoch, np.arange(first, first + own))
        if self._shards is not None:
            current, upcoming = order.windows(self.seed, epoch, first, first + own)
            samples.examples.prefetch(self._shards[current], self._shards[upcoming])
        keys = self._view_keys(epoch, indices)
        pixels, viewed = samples.empty(own * self.repeats), list[Viewed]()
        skipped: dict[str, str] = {}
        for slot in range(own):
            spares = itertools.count(first + slot + per_step)
            tries = min(MOST_BAD_IN_A_ROW, count + 1)
            slots = slice(slot * self.repeats, (slot + 1) * self.repeats)
            while isinstance(read := samples.read(indices[slot], keys[slots], pixels[slots]), BadImage):
                skipped[read.path] = read.reason
                tries -= 1
                if tries == 0:
                    raise TooManyBadImages(
                        f"{min(MOST_BAD_IN_A_ROW, count)} images in a row cannot be read; the last: {read}"
                    )
                indices[slot : slot + 1] = order.at(self.seed, epoch, np.array([next(spares) % count]))
                keys[slots] = self._view_keys(epoch, indices[slot : slot + 1])
            viewed += read
        # No example has these indices, and -1 is the order's.
        batch_key = _example_keys(self.seed, epoch, np.array([-2 - place // self.accumulation]))
        return _batch(samples, pixels, viewed, keys, batch_key, indices.repeat(self.repeats), skipped)

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
        """int64 [E] to int64 [E * repeats]; an example's first repeat has its key without repeats."""
        first = _example_keys(self.seed, epoch, indices)[:, None]
        more = scramble(scramble(~torch.from_numpy(first)) + torch.arange(1, self.repeats)).numpy()
        return np.concatenate([first, more], axis=1).ravel()


def load_in_order(samples: Samples, *, workers: int = 0, batch_size: int = 256) -> Iterator[Batch]:
    """All readable examples once, in order, the last batch smaller; the others are left out and reported as skipped.

    A batch of bad examples only has B = 0, and "images" only. Keys are those of seed 0 and epoch 0.

    Raises:
        ValueError: a value out of range.
    """
    if batch_size < 1:
        raise ValueError(f"a batch needs at least 1 image, got {batch_size}")
    _check(workers)
    read = functools.partial(_read_in_order, samples, batch_size)
    return in_order(read, range(-(-len(samples) // batch_size)), workers)


def _read_in_order(samples: Samples, batch_size: int, step: int) -> Batch:
    indices = np.arange(step * batch_size, min((step + 1) * batch_size, len(samples)))
    keys = _example_keys(0, 0, indices)
    _prefetch(samples.examples, indices, indices[-1] + 1 + np.arange(4 * batch_size))
    pixels, viewed = samples.empty(len(indices)), list[Viewed]()
    good: list[int] = []
    skipped: dict[str, str] = {}
    for i in range(len(indices)):
        read = samples.read(indices[i], keys[i : i + 1], pixels[len(good) : len(good) + 1])
        if isinstance(read, BadImage):
            skipped[read.path] = read.reason
        else:
            good.append(i)
            viewed += read
    return _batch(samples, pixels[: len(good)], viewed, keys[good], keys[:1], indices[good], skipped)


def _prefetch(examples: Examples, current: np.ndarray, upcoming: np.ndarray) -> None:
    """Tell a store with shards which examples are read now and which come next; those past the end are ignored."""
    read_now, read_next = examples.shards_of(current), examples.shards_of(upcoming[upcoming < len(examples)])
    if read_now is not None and read_next is not None:
        examples.prefetch(np.unique(read_now), np.unique(read_next))


def _batch(
    samples: Samples,
    pixels: np.ndarray,
    viewed: list[Viewed],
    keys: np.ndarray,
    batch_key: np.ndarray,
    indices: np.ndarray,
    skipped: dict[str, str],
) -> Batch:
    own, shared, positions = (torch.from_numpy(array) for array in (keys, batch_key, indices))
    tensors, cuts = samples.tensors(pixels, viewed), [one.cut for one in viewed]
    return Batch(tensors, own, shared, positions, cuts, list(skipped.items()))


def _example_keys(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    return sample_keys(seed, epoch, torch.from_numpy(indices)).numpy()


def _check(workers: int) -> None:
    if workers < 0:
        raise ValueError(f"the number of workers must be 0 or more, got {workers}")
