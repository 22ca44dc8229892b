"""Batches are functions of the seed and their number: any workers, any resume, bad images or none."""

import gc
import io
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data import Batch, ImageList, Samples, TrainBatches, find_images, load_in_order, read_image
from mimkit.data.loader import TooManyBadImages
from mimkit.data.string_array import StringArray
from mimkit.randomness import sample_keys
from mimkit.views import CenterCrop, RandomResizedCrop, Size

pytestmark = [
    # Raised by Python 3.12 and later for torch's own way to start workers, and by torch on small machines.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

COUNT, BAD = 23, (4, 11)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    """23 small pictures, each of one colour of its own and some noise, in two classes."""
    root = tmp_path_factory.mktemp("good")
    for i in range(COUNT):
        path = root / f"class{i // 12}" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(i).integers(8, size=(20 + i, 40 - i, 3))
        Image.fromarray((noise + 10 * i).astype(np.uint8)).save(path)
    return find_images(root)


@pytest.fixture(scope="module")
def spoiled(images: ImageList, tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    """The same, with two that are no images."""
    root = tmp_path_factory.mktemp("spoiled")
    for i, name in enumerate(images.paths):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"spoiled" if i in BAD else images.path(i).read_bytes())
    return find_images(root)


def batches(images: ImageList, workers: int = 0, **options) -> TrainBatches:
    view = {"view": RandomResizedCrop(), "size": (12, 16), "channels": 3}
    view |= {name: options.pop(name) for name in list(options) if name in ("view", "size", "channels", "decode")}
    return TrainBatches(Samples(images, **view), workers=workers, **({"batch_size": 5, "seed": 7} | options))


def load_images(images: ImageList, size: Size, channels: int = 3, **options) -> Iterator[Batch]:
    """The middle of each image, in order."""
    return load_in_order(Samples(images, view=CenterCrop(), size=size, channels=channels), **options)


def first(count: int, of: Iterator[Batch]) -> list[Batch]:
    """The first few batches; their workers are ended."""
    taken = list(islice(of, count))
    of.close()  # type: ignore[attr-defined]
    return taken


def assert_alike(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others) > 0
    for a, b in zip(some, others, strict=True):
        for name in ("images", "keys", "batch_key", "indices"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.skipped == b.skipped


@pytest.mark.parametrize("kind", ["good", "spoiled"])
def test_workers_and_resume_change_nothing(images: ImageList, spoiled: ImageList, kind: str) -> None:
    which = images if kind == "good" else spoiled
    reference = first(10, batches(which).from_step(0))  # two and a half epochs
    for workers in (1, 2):
        assert_alike(reference, first(10, batches(which, workers).from_step(0)))
        assert_alike(reference[6:], first(4, batches(which, workers).from_step(6)))
    for step in range(10):
        assert_alike(reference[step:], first(10 - step, batches(which).from_step(step)))
    assert multiprocessing.active_children() == []


def test_batches_are_what_they_say(images: ImageList) -> None:
    train = batches(images)
    assert train.steps_per_epoch == 4
    for step, batch in enumerate(first(9, train.from_step(0))):
        assert len(batch) == 5
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (5, 3, 12, 16))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.keys.dtype == batch.indices.dtype == torch.int64
        assert torch.equal(batch.keys, sample_keys(7, step // 4, batch.indices))
        assert batch.skipped == []
        for pixels, key, index in zip(batch.images, batch.keys, batch.indices, strict=True):
            rng = np.random.default_rng(int(key) % 2**64)
            view = RandomResizedCrop()(read_image(images.path(int(index))), (12, 16), rng)
            np.testing.assert_array_equal(pixels.permute(1, 2, 0), view)
        inputs = batch.inputs("cpu")
        assert set(inputs) == {"images", "keys", "batch_key"}
        assert torch.equal(inputs["images"], batch.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_together_are_the_batch(images: ImageList, spoiled: ImageList, workers: int) -> None:
    for which in (images, spoiled):
        whole = first(6, batches(which, batch_size=6).from_step(1))
        parts = first(18, batches(which, workers, batch_size=6, accumulation=3).from_step(1))
        for i, batch in enumerate(whole):
            pieces = parts[3 * i : 3 * i + 3]
            assert [len(piece) for piece in pieces] == [2, 2, 2]
            for name in ("images", "keys", "indices"):
                assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))
            assert all(torch.equal(piece.batch_key, batch.batch_key) for piece in pieces)
            assert set(batch.skipped) == {skip for piece in pieces for skip in piece.skipped}
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"a batch of 6 does not divide into {count} micro-batches"):
            batches(images, batch_size=6, accumulation=count)


@pytest.mark.parametrize(
    ("accumulation", "world", "repeats"),
    [(1, 2, 1), (1, 4, 1), (2, 1, 1), (2, 3, 1), (3, 2, 1), (4, 3, 1), (1, 12, 1), (1, 2, 2), (2, 3, 2), (1, 4, 3)],
)
def test_all_processes_together_have_the_batch(
    images: ImageList, spoiled: ImageList, accumulation: int, world: int, repeats: int
) -> None:
    """Each part is cut into contiguous shares; which image replaces a bad one does not depend on who meets it."""
    for which in (images, spoiled):
        whole = first(4, batches(which, batch_size=12, repeats=repeats).from_step(1))
        shares = [
            first(
                4 * accumulation,
                batches(
                    which, batch_size=12, accumulation=accumulation, rank=r, world=world, repeats=repeats
                ).from_step(1),
            )
            for r in range(world)
        ]
        for step, batch in enumerate(whole):
            pieces = [shares[r][step * accumulation + part] for part in range(accumulation) for r in range(world)]
            assert {len(piece) for piece in pieces} == {12 // (accumulation * world)}
            for name in ("images", "keys", "indices"):
                assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))
            assert all(torch.equal(piece.batch_key, batch.batch_key) for piece in pieces)
            assert set(batch.skipped) == {skip for piece in pieces for skip in piece.skipped}


def test_shares_that_do_not_come_out_even_are_named(images: ImageList) -> None:
    with pytest.raises(ValueError, match="a batch of 12 does not divide into 2 micro-batches for each of 4 processes"):
        batches(images, batch_size=12, accumulation=2, world=4)
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"no process {rank} among {world}"):
            batches(images, batch_size=12, rank=rank, world=world)
    for repeats in (0, 4):
        with pytest.raises(ValueError, match=f"a micro-batch of 6 views does not divide into {repeats} repeats"):
            batches(images, batch_size=12, accumulation=2, repeats=repeats)
    with pytest.raises(ValueError, match=r"a batch of 48 cannot be drawn from 23 images of 2 views each"):
        batches(images, batch_size=48, repeats=2)


class Reads:
    """A view that remembers the images it was handed."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        self.images.append(id(image))
        return RandomResizedCrop()(image, size, rng)


def test_repeats_are_views_of_one_image_decoded_once(images: ImageList) -> None:
    view = Reads()
    plain, repeated = batches(images, batch_size=4), batches(images, batch_size=12, repeats=3, view=view)
    assert (plain.steps_per_epoch, repeated.steps_per_epoch) == (5, 1)
    ones, threes = plain.from_step(0), repeated.from_step(0)
    view.images.clear()  # of the look at the view itself
    for step, (one, three) in enumerate(zip(first(15, ones), first(15, threes), strict=True)):
        assert len(three) == 12
        assert torch.equal(three.indices, one.indices.repeat_interleave(3))  # every image comes before any comes again
        assert torch.equal(three.images[::3], one.images)
        assert torch.equal(three.keys[::3], one.keys)
        assert len(set(three.keys.tolist())) == 12
        assert len({pixels.numpy().tobytes() for pixels in three.images}) == 12
        assert torch.equal(one.keys, sample_keys(7, step // 5, one.indices))
    handed = [view.images[i : i + 3] for i in range(0, len(view.images), 3)]
    assert all(len(set(group)) == 1 for group in handed)
    assert len(handed) == 15 * 4


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    """Twelve photographs' worth of JPEG; the fifth breaks off in its middle, which shows when it is decoded."""
    root = tmp_path_factory.mktemp("jpegs")
    for i in range(12):
        coarse = np.random.default_rng(i).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 50)).save(root / f"{i:02d}.jpg")
    whole = (root / "04.jpg").read_bytes()
    (root / "04.jpg").write_bytes(whole[: len(whole) // 2])
    return find_images(root)


@pytest.mark.parametrize("repeats", [1, 2])
def test_decoders_agree_on_all_but_rounding(jpegs: ImageList, repeats: int) -> None:
    pytest.importorskip("simplejpeg")
    both = [batches(jpegs, batch_size=4, repeats=repeats, decode=decode) for decode in ("pillow", "simplejpeg")]
    for slow, fast in zip(*(first(12, each.from_step(0)) for each in both), strict=True):
        assert torch.equal(slow.indices, fast.indices)
        assert torch.equal(slow.keys, fast.keys)
        assert [path for path, _ in slow.skipped] == [path for path, _ in fast.skipped]
        assert (slow.images.float() - fast.images.float()).abs().mean() < 0.5
        assert 4 not in fast.indices


@pytest.mark.parametrize("kind", ["good", "spoiled"])
def test_repeats_resume_exactly(images: ImageList, spoiled: ImageList, kind: str) -> None:
    which = images if kind == "good" else spoiled
    reference = first(8, batches(which, batch_size=6, repeats=2).from_step(0))
    for workers, step in ((0, 3), (2, 0), (2, 5)):
        resumed = batches(which, workers, batch_size=6, repeats=2).from_step(step)
        assert_alike(reference[step:], first(8 - step, resumed))


def test_each_batch_has_a_key_of_its_own(images: ImageList) -> None:
    of_steps = [batch.batch_key for batch in first(40, batches(images, batch_size=2).from_step(0))]
    assert {(key.dtype, key.shape) for key in of_steps} == {(torch.int64, (1,))}
    of_views = [key for batch in first(40, batches(images, batch_size=2).from_step(0)) for key in batch.keys.tolist()]
    assert len({*of_views, *(int(key) for key in of_steps)}) == len(of_views) + 40


def test_no_two_views_share_a_key(images: ImageList) -> None:
    keys = [batches(images, batch_size=20, repeats=5).micro_batch_at(number).keys for number in range(40)]
    assert len(set(torch.cat(keys).tolist())) == 800


def test_an_epoch_has_each_image_once_and_no_order_twice(images: ImageList) -> None:
    orders = []
    for epoch in range(6):
        order = torch.cat([b.indices for b in first(4, batches(images).from_step(4 * epoch))]).tolist()
        assert len(set(order)) == 20
        orders.append(tuple(order))
    assert len(set(orders)) == 6
    assert {index for order in orders for index in order} == set(range(COUNT))
    assert torch.cat([b.indices for b in first(4, batches(images, seed=8).from_step(0))]).tolist() != list(orders[0])


def test_views_differ_between_epochs_and_seeds(images: ImageList) -> None:
    one = images.take([0])
    seen = [first(1, batches(one, batch_size=1, seed=seed).from_step(epoch))[0] for seed in (0, 1) for epoch in (0, 1)]
    assert len({batch.images.numpy().tobytes() for batch in seen}) == 4


def test_negative_seeds_work(images: ImageList) -> None:
    a, b = (first(1, batches(images, seed=-3).from_step(2))[0] for _ in range(2))
    assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_alone(images: ImageList, workers: int) -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first(3, batches(images, workers).from_step(0))
    list(load_images(images, (8, 8), workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == before_numpy


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_batches_have_one_channel(images: ImageList, channels: int) -> None:
    (batch,) = first(1, batches(images, channels=channels).from_step(0))
    assert batch.images.shape == (5, channels, 12, 16)
    centre = next(load_images(images, (12, 16), channels, batch_size=5))
    expected = CenterCrop()(read_image(images.path(0), channels), (12, 16))
    np.testing.assert_array_equal(centre.images[0].permute(1, 2, 0), expected.reshape(12, 16, channels))


# Many images


class Endless:
    """A store of as many pictures as wanted, all alike."""

    path, labels, classes, splits = Path("endless"), None, None, None

    def __init__(self, count: int, shards: int | None) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 12)).save(buffer, "PNG")
        self.picture = buffer.getvalue()
        self.names = StringArray.of(f"{i}" for i in range(count))
        self.shards = None if shards is None else np.arange(count) * shards // count

    def read(self, position: int) -> bytes:
        return self.picture

    def identity(self, positions: np.ndarray) -> bytes:
        return b""

    def prefetch(self, current: list[int], upcoming: list[int]) -> None:
        pass


@pytest.mark.parametrize("shards", [None, 100])
def test_a_batch_costs_the_same_of_any_number_of_images(shards: int | None) -> None:
    """Nothing is kept or computed for images that are not in it, at the start of an epoch either."""
    peaks = []
    for count in (1_000, 100_000):
        train = batches(ImageList.of(Endless(count, shards), np.arange(count)), batch_size=8)
        if shards is not None:
            train.micro_batch_at(0)  # looks through all images once for where shards begin
        tracemalloc.start()
        for number in (count // 8 - 1, count // 8, 5 * (count // 8)):
            train.micro_batch_at(number)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000


def test_an_order_needs_only_where_shards_begin() -> None:
    """Also of a list whose shards do not rise: each stretch of one shard counts as one."""
    images = ImageList.of(Endless(1000, 40), np.random.default_rng(0).permutation(1000)[:600])
    for some in (images, images.take(np.argsort(images.positions))):
        order = torch.cat([batches(some, batch_size=30).micro_batch_at(number).indices for number in range(20)])
        assert sorted(order.tolist()) == list(range(600))


# Bad images


def test_bad_images_are_replaced_and_reported_each_time(images: ImageList, spoiled: ImageList) -> None:
    """All else stays as without them, and a batch has no image twice."""
    met: Counter[str] = Counter()
    for good, bad in zip(
        first(40, batches(images).from_step(0)), first(40, batches(spoiled).from_step(0)), strict=True
    ):
        places = [int(index) in BAD for index in good.indices]
        kept = ~torch.tensor(places)
        assert torch.equal(good.images[kept], bad.images[kept])
        assert torch.equal(good.indices[kept], bad.indices[kept])
        assert not set(bad.indices.tolist()) & set(BAD)
        assert len(set(bad.indices.tolist())) == 5
        assert torch.equal(bad.keys, sample_keys_of(bad, good, images))
        assert len(bad.skipped) >= sum(places)
        met.update(path for path, _ in bad.skipped)
        assert all(reason == "not an image, or broken at its start" for _, reason in bad.skipped)
    assert set(met) == {str(spoiled.path(index)) for index in BAD}
    assert min(met.values()) >= 7


def sample_keys_of(bad: Batch, good: Batch, images: ImageList) -> torch.Tensor:
    """Keys of the replaced images, of the epoch that the others show."""
    (epoch,) = (e for e in range(10) if torch.equal(sample_keys(7, e, good.indices), good.keys))
    return sample_keys(7, epoch, bad.indices)


def test_batches_as_large_as_the_list_find_replacements(spoiled: ImageList) -> None:
    (batch,) = first(1, batches(spoiled, batch_size=COUNT).from_step(0))
    assert len(batch) == COUNT
    assert len(set(batch.indices.tolist())) >= COUNT - 4
    assert not set(batch.indices.tolist()) & set(BAD)
    (batch,) = first(1, batches(spoiled.take([4, 11, 0]), batch_size=3).from_step(0))
    assert batch.indices.tolist() == [2, 2, 2]
    assert len(batch.skipped) == 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("count", [3, 120])
def test_nothing_but_bad_images_ends_with_one_line(tmp_path: Path, workers: int, count: int) -> None:
    listed = tmp_path / "missing.txt"
    listed.write_text("\n".join(f"{i}.png" for i in range(count)))
    with pytest.raises(TooManyBadImages) as caught:
        next(batches(find_images(listed), workers, batch_size=3).from_step(0))
    message = str(caught.value)
    assert message.startswith(f"{min(count, 100)} images in a row cannot be read; the last: {tmp_path}")
    assert message.endswith(".png: no such file or directory")
    assert multiprocessing.active_children() == []


# Workers


def test_closing_ends_the_workers(images: ImageList) -> None:
    running = batches(images, 2).from_step(0)
    next(running)
    assert len(multiprocessing.active_children()) == 2
    running.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []

    running = batches(images, 2).from_step(0)
    next(running)
    del running
    gc.collect()
    assert multiprocessing.active_children() == []


class Failing:
    """A view with a mistake in it, in the calling process or in its workers."""

    def __init__(self, in_workers: bool) -> None:
        self.in_workers = in_workers

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        if self.in_workers == (multiprocessing.parent_process() is not None):
            raise LookupError("a mistake")
        return np.zeros((*size, 3), dtype=np.uint8)


class Dying:
    """A view that takes a whole worker with it, as a crashing decoder does."""

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        if multiprocessing.parent_process() is not None:
            os._exit(3)
        return np.zeros((*size, 3), dtype=np.uint8)


class Enlarging:
    """A view that gives another size than asked for."""

    def __call__(self, image: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
        return np.zeros((size[0] + 1, size[1], 3), dtype=np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_view_is_one_exception_that_names_the_image(images: ImageList, workers: int) -> None:
    with pytest.raises(LookupError) as caught:
        next(batches(images, workers, view=Failing(in_workers=workers > 0)).from_step(0))
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "a mistake" in text
    assert f"while making a view of {images.root}" in text
    assert multiprocessing.active_children() == []


def test_a_dying_worker_is_one_exception(images: ImageList) -> None:
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(batches(images, 2, view=Dying()).from_step(0))
    assert multiprocessing.active_children() == []


def test_a_view_of_the_wrong_size_is_named(images: ImageList) -> None:
    with pytest.raises(ValueError, match=r"Enlarging made uint8 \(13, 16, 3\), expected uint8 \(12, 16, 3\)") as caught:
        next(batches(images, view=Enlarging()).from_step(0))
    assert str(images.root) in "".join(caught.value.__notes__)


def test_workers_outlive_a_signal_to_all_processes(images: ImageList) -> None:
    """The main process then writes its checkpoint; a dead worker would interrupt it."""
    reference = first(8, batches(images).from_step(0))
    running = batches(images, 2).from_step(0)
    taken = [next(running), next(running)]  # one of each worker: both have started
    for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid or 0, number)
    taken += islice(running, 6)
    assert_alike(reference, taken)
    running.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def run_until_killed(images: ImageList, method: str, tell: Connection) -> None:
    multiprocessing.set_start_method(method, force=True)
    running = batches(images, 2).from_step(0)
    next(running)
    tell.send([worker.pid for worker in multiprocessing.active_children()])
    time.sleep(600)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_do_not_outlive_a_killed_main_process(images: ImageList, method: str) -> None:
    """Ended by the kernel for its memory, say, it must not leave workers behind, with all that they hold."""
    told, tell = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork" if method == "fork" else "spawn")  # a fork would have our forkserver
    main = context.Process(target=run_until_killed, args=(images, method, tell))
    main.start()
    assert told.poll(timeout=120)
    workers = told.recv()
    assert len(workers) == 2
    assert all(is_running(pid) for pid in workers)
    main.kill()
    main.join()
    until = time.monotonic() + 30
    while any(is_running(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)


# In order


@pytest.mark.parametrize("workers", [0, 2])
def test_all_good_images_come_once_in_order(images: ImageList, spoiled: ImageList, workers: int) -> None:
    loaded = list(load_images(spoiled, (12, 16), workers=workers, batch_size=10))
    assert [len(batch) for batch in loaded] == [9, 9, 3]
    indices = torch.cat([batch.indices for batch in loaded])
    assert indices.tolist() == [i for i in range(COUNT) if i not in BAD]
    assert torch.equal(torch.cat([batch.keys for batch in loaded]), sample_keys(0, 0, indices))
    for pixels, index in zip(torch.cat([batch.images for batch in loaded]), indices, strict=True):
        expected = CenterCrop()(read_image(images.path(int(index))), (12, 16))
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), expected)
    assert [[path for path, _ in batch.skipped] for batch in loaded] == [
        [str(spoiled.path(4))],
        [str(spoiled.path(11))],
        [],
    ]
    assert multiprocessing.active_children() == []


def test_no_images_and_bad_ones_only(spoiled: ImageList) -> None:
    assert list(load_images(spoiled.take([]), (8, 8))) == []
    (batch,) = load_images(spoiled.take(list(BAD)), (8, 8))
    assert batch.images.shape == (0, 3, 8, 8)
    assert (len(batch), len(batch.indices), len(batch.skipped)) == (0, 0, 2)


def test_odd_and_broken_files_do_not_stop_it(data_root: Path) -> None:
    images = find_images(data_root / "corrupt")
    (batch,) = load_images(images, (32, 32))
    assert sorted(images.paths[i][:2] for i in batch.indices) == ["05", "06", "07", "08", "09", "10", "13"]
    assert sorted(Path(path).name[:2] for path, _ in batch.skipped) == ["01", "02", "03", "04", "11"]
    for view in (RandomResizedCrop(), CenterCrop()):
        (batch,) = first(1, batches(images, view=view, batch_size=12).from_step(0))
        assert len(batch) == 12


# Requests that cannot be met


def test_values_out_of_range_are_named(images: ImageList) -> None:
    for size in (0, 24):
        with pytest.raises(ValueError, match=f"a batch of {size} cannot be drawn from 23 images"):
            batches(images, batch_size=size)
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        batches(images, -1)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        batches(images, channels=4)
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        load_images(images, (8, 8), batch_size=0)
    with pytest.raises(ValueError, match="workers must be 0 or more, got -2"):
        load_images(images, (8, 8), workers=-2)


# Tuning


@pytest.mark.parametrize("prefetch", [1, 5])
def test_reading_ahead_changes_nothing(spoiled: ImageList, prefetch: int) -> None:
    reference = first(9, batches(spoiled, batch_size=6, accumulation=3).from_step(1))
    for workers in (0, 2):
        train = batches(spoiled, workers, batch_size=6, accumulation=3, prefetch=prefetch)
        assert_alike(reference, first(9, train.from_step(1)))


def test_batches_are_pinned_as_wholes(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be seen without a GPU: what torch pins, and that copies of nothing else are not waited for."""
    batch = batches(images).micro_batch_at(0)
    pinned: list[int] = []
    copied: list[tuple[bool, bool]] = []
    to = torch.Tensor.to

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        pinned.append(id(copy))
        return copy

    def send(tensor: torch.Tensor, device: str, non_blocking: bool) -> torch.Tensor:
        copied.append((id(tensor) in pinned, non_blocking))
        return to(tensor, device)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: id(tensor) in pinned)
    same = batch.pin_memory()
    assert_alike([batch], [same])
    monkeypatch.setattr(torch.Tensor, "to", send)
    assert {value.device.type for value in batch.inputs("meta").values()} == {"meta"}
    assert {value.device.type for value in same.inputs("meta").values()} == {"meta"}
    assert copied == [(False, False)] * 3 + [(True, True)] * 3


def test_workers_are_asked_for_pinned_batches(images: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, int]] = []

    class Asked(torch.utils.data.DataLoader):
        def __init__(self, *given: object, pin_memory: bool, prefetch_factor: int, **options: object) -> None:
            asked.append((pin_memory, prefetch_factor))
            super().__init__(*given, prefetch_factor=prefetch_factor, **options)

    monkeypatch.setattr("mimkit.data.workers.DataLoader", Asked)
    first(1, batches(images, 1, pin_memory=True, prefetch=3).from_step(0))
    first(1, batches(images, 1).from_step(0))
    assert asked == [(True, 3), (False, 2)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_are_the_same_on_a_gpu(images: ImageList) -> None:
    reference = first(8, batches(images).from_step(0))
    pinned = first(8, batches(images, 2, pin_memory=True).from_step(0))
    assert all(batch.images.is_pinned() and batch.keys.is_pinned() for batch in pinned)
    assert_alike(reference, pinned)
    sent = [batch.inputs("cuda") for batch in pinned]  # all on the way before any is looked at
    for batch, inputs in zip(reference, sent, strict=True):
        assert torch.equal(inputs["images"].cpu(), batch.images)
        assert torch.equal(inputs["keys"].cpu(), batch.keys)
