import math
import random

import pytest
import torch
from scipy.ndimage import label

from helpers.parts import draw
from mimkit.masks import BlockMask, RandomMask
from mimkit.randomness import sample_keys


@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.4, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("size", [(14, 14), (7, 7), (4, 6), (2, 30), (28, 28)])
def test_blocks_hide_exactly_their_share(ratio, size):
    count = int(size[0] * size[1] * ratio + 1e-9)
    if count == 0:
        with pytest.raises(ValueError, match=f"mask ratio {ratio} hides none of {size[0] * size[1]} cells"):
            draw(BlockMask(ratio=ratio), torch.arange(2), size, 1)
        return
    mask = draw(BlockMask(ratio=ratio), sample_keys(0, 0, torch.arange(50)), size, 1)
    assert mask.count == count
    assert mask.hidden.sum(dim=(1, 2)).tolist() == [count] * 50


def published_blocks(grid: tuple[int, int], count: int, generator: random.Random) -> torch.Tensor:
    """BEiT's generator as the paper tells it, one rectangle at a time; it may stop short of the count."""
    hidden = torch.zeros(grid, dtype=torch.bool)
    dropped = 0
    while dropped < 10 and (left_over := count - int(hidden.sum())) > 0:
        area = generator.uniform(16, left_over)
        aspect = math.exp(generator.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        dropped += 1
        if height <= grid[0] and width <= grid[1]:
            top, left = generator.randint(0, grid[0] - height), generator.randint(0, grid[1] - width)
            place = slice(top, top + height), slice(left, left + width)
            if 0 < int((~hidden[place]).sum()) <= left_over:
                hidden[place] = True
                dropped = 0
    return hidden


def compactness(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden pairs of neighbours for each hidden cell, [B]: below 2, the nearer the fewer and rounder the blocks."""
    pairs = (hidden[:, 1:] & hidden[:, :-1]).sum(dim=(1, 2)) + (hidden[:, :, 1:] & hidden[:, :, :-1]).sum(dim=(1, 2))
    return pairs / hidden.sum(dim=(1, 2))


def connected(hidden: torch.Tensor) -> float:
    """How many connected blocks a sample has in the mean."""
    return sum(label(sample)[1] for sample in hidden.numpy()) / len(hidden)


def test_blocks_are_as_compact_as_the_published_ones():
    """Means over 1500 masks, each with a standard error near 0.001 for compactness and 0.02 for connected blocks."""
    generator = random.Random(0)
    published = torch.stack([published_blocks((14, 14), 78, generator) for _ in range(1500)])
    keys = sample_keys(0, 0, torch.arange(1500))
    ours = draw(BlockMask(), keys, (224, 224), 16).hidden
    assert compactness(ours).mean().item() == pytest.approx(compactness(published).mean().item(), abs=0.005)
    assert connected(ours) == pytest.approx(connected(published), abs=0.1)
    scattered = draw(RandomMask(ratio=0.6), keys, (224, 224), 16)
    assert compactness(scattered.hidden).mean() < 1.2 < 1.6 < compactness(ours).mean()
    # Everywhere, but the middle more often than corners, as wherever rectangles lie inside a grid.
    assert (ours.float().mean(dim=0) - published.float().mean(dim=0)).abs().max() < 0.08


def test_smallest_block_decides_how_many_there_are():
    """One of at least all that is to hide, save for a cell or two that rounding leaves over; or many small ones."""
    keys = sample_keys(0, 0, torch.arange(300))
    assert connected(draw(BlockMask(smallest=78), keys, (224, 224), 16).hidden) < 1.05
    assert connected(draw(BlockMask(ratio=0.1, smallest=1), keys, (224, 224), 16).hidden) > 2


def test_aspect_bounds_the_blocks():
    """With squares only, the first block of 36 of 196 cells is 6 x 6 wherever it is one."""
    hidden = draw(BlockMask(ratio=36.5 / 196, smallest=36, aspect=1.0), torch.arange(64), (224, 224), 16).hidden
    assert hidden.any(dim=1).sum(dim=1).tolist() == [6] * 64
    assert hidden.any(dim=2).sum(dim=1).tolist() == [6] * 64
    narrow = draw(BlockMask(ratio=36.5 / 196, smallest=36, aspect=0.3), torch.arange(64), (224, 224), 16).hidden
    sides = torch.stack([narrow.any(dim=2).sum(dim=1), narrow.any(dim=1).sum(dim=1)])
    assert 3 <= sides.min() < 5
    assert 8 < sides.max() <= 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest": 0}, "blocks need an area and tries of at least 1, got 0 and 16"),
        ({"tries": 0}, "blocks need an area and tries of at least 1, got 16 and 0"),
        ({"aspect": 0.0}, r"aspect of blocks must be above 0 and at most 1, got 0\.0"),
        ({"aspect": 1.5}, r"aspect of blocks must be above 0 and at most 1, got 1\.5"),
    ],
)
def test_impossible_blocks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BlockMask(**options)
