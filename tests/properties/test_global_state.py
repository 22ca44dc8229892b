"""Images, keys, masks and learning rate of a step are the same however its batch is cut into parts and shares."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.plans import plan
from helpers.tiny import TINY
from mimkit.settings import Settings
from mimkit.training.distributed import World
from mimkit.training.optim import Train

BATCH, STEPS = 16, 2
WAYS = [(1, 16), (1, 2), (1, 4), (1, 8), (2, 2), (2, 8), (4, 4)]  # processes, images computed at once
MASKS = {
    "random": ("mae", {}),
    "random, some scored": ("crossmae", {}),
    "one for a batch": ("greenmim", {}),
    "blocks": ("maskfeat", {}),
    "uniform": ("um-mae", {}),
    "complementary": ("mae", {"mask": "complementary"}),
    "several of an image": ("mae", {"repeats": 2}),
}
PHOTOS = {"count": 40, "size": 80, "broken": range(3, 6)}  # what is taken in place of the broken is the same, too


@dataclass(frozen=True, eq=False)
class Seen:
    """What the method saw of some steps: each sample's image, key, hidden and scored cells, in the batch's order."""

    train: Train
    steps_per_epoch: int
    samples: list[list[Tensor]]


def seen(name: str, more: dict, photos: Path, processes: int, micro_batch: int) -> Seen:
    recipe, settings = MASKS[name]
    given = {"data": photos, "batch_size": BATCH, "micro_batch": micro_batch, "epochs": 3, "precision": "fp32"}
    wanted = Settings(**given | TINY[recipe] | settings | more)
    request = plan(recipe, wanted, device=torch.device("cpu"), processes=processes)
    batches = [request.batches(0, World(rank, processes)) for rank in range(processes)]
    assert {one.accumulation * micro_batch * processes for one in batches} == {BATCH}
    coming = [one.from_step(0) for one in batches]
    samples: list[list[Tensor]] = []
    for _ in range(STEPS):
        cut = [next(one) for _ in range(batches[0].accumulation) for one in coming]
        found: list[list[Tensor]] = []
        for batch in cut:
            with torch.no_grad():
                mask = request.model(**batch.inputs("cpu")).mask
            scored = mask.hidden if mask.scored is None else mask.scored
            cells = [part.unflatten(0, (len(batch), mask.copies)) for part in (mask.hidden, scored)]
            found.append([batch.images, batch.keys, batch.indices, *cells])
        samples.append([torch.cat(parts) for parts in zip(*found, strict=True)])
    return Seen(request.recipe.train, batches[0].steps_per_epoch, samples)


@pytest.mark.parametrize("name", MASKS)
def test_steps_depend_on_the_batch_alone(name, photos):
    expected = seen(name, {}, photos, *WAYS[0])
    hidden = [step[3] for step in expected.samples]
    assert not torch.equal(hidden[0], hidden[1])
    if name == "one for a batch":
        assert all((step == step[:1]).all() for step in hidden)
    for way in WAYS[1:]:
        found = seen(name, {}, photos, *way)
        assert (found.train, found.steps_per_epoch) == (expected.train, expected.steps_per_epoch)
        for step, same in zip(found.samples, expected.samples, strict=True):
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(step, same, strict=True)), way


def test_other_seeds_see_other_things(photos):
    one, other = (seen("one for a batch", {"seed": seed}, photos, 2, 4) for seed in (0, 1))
    assert not any(torch.equal(ours, theirs) for ours, theirs in zip(one.samples[0], other.samples[0], strict=True))
