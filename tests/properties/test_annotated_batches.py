"""Masks, boxes and points are functions of the batch's number, as images are: any workers, ranks, resume."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mimkit.data import Annotated, Batch, Boxes, PixelMap, Points, Samples, TrainBatches, find_images
from mimkit.errors import BadImage
from mimkit.views import CenterCrop, RandomResizedCrop, SimpleResizedCrop, View

pytestmark = [
    # Raised by Python 3.12 and later for torch's own way to start workers, and by torch on small machines.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

COUNT, BAD_IMAGE, BAD_MAP = 23, 4, 11


class Maps:
    """Each image's first channel; one of them cannot be read."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> PixelMap:
        if index in (BAD_IMAGE, BAD_MAP):
            raise BadImage(f"{index}.map", "broken")
        return PixelMap(np.asarray(Image.open(self.root / f"{index:02d}.png"))[..., 0])


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Annotated:
    """Images of several shapes with a map, boxes, points and a number each."""
    root = tmp_path_factory.mktemp("annotated")
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(256, size=(20 + i, 40 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    (root / f"{BAD_IMAGE:02d}.png").write_bytes(b"broken")
    rng = np.random.default_rng(0)
    return Annotated(
        find_images(root),
        maps=Maps(root),  # type: ignore[arg-type]
        boxes=[Boxes(np.sort(rng.random((i % 4, 2, 2)) * 30, axis=1).reshape(-1, 4)) for i in range(COUNT)],
        points=[Points(rng.random((5, 2)) * 30) for _ in range(COUNT)],
        labels=np.arange(COUNT),
    )


def batches(annotated: Annotated, workers: int = 0, view: View | None = None, **options: int) -> TrainBatches:
    samples = Samples(annotated, view=view or RandomResizedCrop(), size=(12, 16))
    return TrainBatches(samples, workers=workers, **({"batch_size": 12, "seed": 7} | options))


def first(count: int, of: Iterator[Batch]) -> list[Batch]:
    """The first few batches; their workers are ended."""
    taken = list(islice(of, count))
    of.close()  # type: ignore[attr-defined]
    return taken


def examples(some: list[Batch]) -> list[list[bytes]]:
    """All that each example has, in order."""
    found = []
    for batch in some:
        columns = {name: column for name, column in batch.inputs("cpu").items() if name != "batch_key"}
        assert {len(column) for column in columns.values()} == {len(batch)}
        for i in range(len(batch)):
            values: list[Tensor] = [columns[name][i] for name in sorted(columns)]
            found.append([bytes(str(one.shape), "ascii") + one.numpy().tobytes() for one in values])
    return found


@pytest.mark.parametrize("view", [RandomResizedCrop(), SimpleResizedCrop(), CenterCrop()])
def test_workers_and_resume_change_nothing(annotated: Annotated, view: View) -> None:
    reference = examples(first(4, batches(annotated, view=view).from_step(0)))  # several epochs
    assert len(reference) == 48
    assert examples(first(4, batches(annotated, 2, view).from_step(0))) == reference
    for step in (1, 3):
        assert examples(first(4 - step, batches(annotated, 1, view).from_step(step))) == reference[12 * step :]


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(("accumulation", "world"), [(3, 1), (1, 3), (2, 3), (1, 6)])
def test_micro_batches_of_all_ranks_are_the_batch(
    annotated: Annotated, accumulation: int, world: int, repeats: int
) -> None:
    if 12 // accumulation // world % repeats:
        pytest.skip("the repeats do not divide the micro-batch")
    whole = examples(first(3, batches(annotated, repeats=repeats).from_step(1)))
    ranks = [
        examples(
            first(
                3 * accumulation,
                batches(annotated, 1, accumulation=accumulation, repeats=repeats, rank=rank, world=world).from_step(1),
            )
        )
        for rank in range(world)
    ]
    per_rank = 12 // accumulation // world
    together = [
        example
        for micro_batch in range(3 * accumulation)
        for rank in ranks
        for example in rank[micro_batch * per_rank : (micro_batch + 1) * per_rank]
    ]
    assert together == whole


def test_maps_show_what_their_images_show(annotated: Annotated) -> None:
    """And the spares that stand in for unreadable examples bring their own annotations."""
    # At 64 pixels no nearest pixel is a tie, which Pillow rounds as its sums fall.
    samples = Samples(annotated, view=RandomResizedCrop(interpolation=Image.Resampling.NEAREST), size=(64, 64))
    skipped: set[str] = set()
    for batch in first(6, TrainBatches(samples, batch_size=12).from_step(0)):
        maps, labels = batch.tensors["maps"], batch.tensors["labels"]
        assert isinstance(maps, Tensor)
        assert torch.equal(batch.images[:, 0], maps)
        assert isinstance(labels, Tensor)
        assert torch.equal(labels, batch.indices)
        skipped |= {Path(path).name for path, _ in batch.skipped}
    assert skipped == {f"{BAD_IMAGE:02d}.png", f"{BAD_MAP:02d}.png"}
