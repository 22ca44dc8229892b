import math
import random
from dataclasses import replace

import pytest
import torch
from scipy.ndimage import label

from helpers import parts
from mimkit.masks import BlockMask, ComplementaryMasks, Mask, RandomMask, UniformMask
from mimkit.randomness import sample_keys

SAMPLERS = {
    "random": RandomMask(),
    "few scored": RandomMask(scored=1 / 3),
    "shared": RandomMask(shared=True, cell=32),
    "block": BlockMask(),
    "uniform": UniformMask(),
    "uniform without secondary": UniformMask(secondary=0, cell=8),
    "complementary": ComplementaryMasks(),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def cells(rows: list[str], mark: str) -> torch.Tensor:
    """One sample drawn as text, bool [1, h, w]: True where the mark stands."""
    return torch.tensor([[character == mark for character in row] for row in rows])[None]


def partial_mask() -> Mask:
    """3 x 2 cells: visible ".", hidden "x", replaced "r", scored "s"."""
    rows = [".r", "xs", "sx"]
    return Mask(~cells(rows, "."), replaced=cells(rows, "r"), scored=cells(rows, "s"))


def test_mask_counts_and_has_a_grid():
    mask = Mask(torch.tensor([[[True, False, True]], [[False, True, True]]]))
    assert mask.count == 2
    assert mask.grid == (1, 3)


def test_mask_refuses_unequal_counts():
    hidden = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match=r"same number of cells, got \[1, 2\]"):
        Mask(hidden)


def test_counts_are_read_where_not_given():
    mask = partial_mask()
    assert (mask.count, mask.replaced_count, mask.scored_count) == (5, 1, 2)
    plain = Mask(mask.hidden)
    assert (plain.count, plain.replaced_count, plain.scored_count) == (5, 0, 5)
    assert not plain.shared
    assert plain.copies == 1


def test_given_counts_are_believed():
    mask = Mask(torch.ones(1, 2, 2, dtype=torch.bool), 3)
    assert (mask.count, mask.replaced_count, mask.scored_count) == (3, 0, 3)


@pytest.mark.parametrize("name", ["replaced", "scored"])
def test_mask_refuses_cells_that_do_not_suit(name):
    hidden = torch.tensor([[[True, False]], [[False, True]]])
    with pytest.raises(ValueError, match=f"{name} cells must be hidden ones"):
        Mask(hidden, **{name: ~hidden})
    with pytest.raises(ValueError, match=rf"every sample must {name[:-1]} the same number of cells, got \[0, 1\]"):
        Mask(hidden, **{name: hidden & torch.tensor([True, False])})
    with pytest.raises(ValueError, match=rf"{name} cells of shape \[2, 2\] for hidden ones of \[2, 1, 2\]"):
        Mask(hidden, **{name: hidden[:, 0]})


def test_rows_must_be_a_multiple_of_the_copies():
    with pytest.raises(ValueError, match="3 rows of a mask are no multiple of its 2 copies"):
        Mask(torch.ones(3, 1, 1, dtype=torch.bool), copies=2)


def test_present_are_the_visible_and_the_replaced():
    mask = partial_mask()
    assert mask.visible_ids((3, 2)).tolist() == [[0, 1]]
    assert mask.visible_ids((3, 4)).tolist() == [[0, 1, 2, 3]]
    assert mask.visible_ids((6, 2)).tolist() == [[0, 1, 2, 3]]
    assert mask.replaced_on((3, 4)).tolist() == [[[False, False, True, True], [False] * 4, [False] * 4]]
    assert mask.replaced_on((3, 4)).dtype == torch.bool
    assert torch.equal(mask.replaced_on((3, 2)), mask.replaced)
    assert Mask(mask.hidden).replaced_on((6, 4)) is None


def test_weights_are_the_scored_share():
    mask = partial_mask()
    assert mask.weights((3, 2)).tolist() == [[[0, 0], [0, 1], [1, 0]]]
    assert mask.weights((3, 1)).tolist() == [[[0], [0.5], [0.5]]]
    assert mask.on((3, 1)).tolist() == [[[0.5], [1], [1]]]
    assert mask.scored_ids((3, 2)).tolist() == [[3, 4]]
    assert mask.scored_ids((3, 4)).tolist() == [[6, 7, 8, 9]]
    everything = mask.scoring_all()
    assert torch.equal(everything.weights((3, 2)), mask.on((3, 2)))
    assert everything.scored_ids((3, 2)).tolist() == [[1, 2, 3, 4, 5]]
    assert torch.equal(everything.replaced, mask.replaced)
    assert everything.scored_count == everything.count == 5


@pytest.mark.parametrize("grid", [(1, 2), (3, 1), (1, 4)])
def test_no_ids_and_no_replaced_cells_on_coarser_cells(grid):
    mask = partial_mask()
    for read in (mask.visible_ids, mask.scored_ids, mask.replaced_on):
        with pytest.raises(ValueError, match=f"cells of a {grid[0]} x {grid[1]} grid may be half hidden"):
            read(grid)


def test_share_of_finer_and_coarser_cells():
    mask = Mask(torch.tensor([[[True, False], [False, True]]]))
    assert mask.on((2, 2)).tolist() == [[[1, 0], [0, 1]]]
    assert mask.on((2, 4)).tolist() == [[[1, 1, 0, 0], [0, 0, 1, 1]]]
    assert mask.on((1, 2)).tolist() == [[[0.5, 0.5]]]
    assert mask.on((1, 1)).tolist() == [[[0.5]]]
    assert mask.on((2, 2)).dtype == torch.float32


@pytest.mark.parametrize("grid", [(4, 6), (8, 12), (4, 18)])
def test_visible_ids_are_the_visible_cells_in_raster_order(grid):
    mask = parts.hide(5, (4, 6), count=17)
    ids = mask.visible_ids(grid)
    rows, columns = grid[0] // 4, grid[1] // 6
    assert ids.dtype == torch.int64
    for sample in range(5):
        expected = [
            y * grid[1] + x
            for y in range(grid[0])
            for x in range(grid[1])
            if not mask.hidden[sample, y // rows, x // columns]
        ]
        assert ids[sample].tolist() == expected
    assert ids.shape == (5, 7 * rows * columns)


@pytest.mark.parametrize("grid", [(2, 3), (4, 3), (2, 6), (1, 1)])
def test_no_visible_ids_on_coarser_cells(grid):
    with pytest.raises(ValueError, match=f"cells of a {grid[0]} x {grid[1]} grid may be half hidden by .* 4 x 6 cells"):
        parts.hide(2, (4, 6), count=17).visible_ids(grid)


def test_no_visible_ids_on_cells_that_do_not_nest():
    with pytest.raises(ValueError, match="a grid of 4 cells and one of 6 cells do not nest"):
        parts.hide(2, (4, 6), count=17).visible_ids((6, 6))


@pytest.mark.parametrize(
    ("ratio", "cell", "size", "hidden"),
    [
        (0.75, 16, (224, 224), 147),  # MAE: 49 of 196 kept
        (0.75, 14, (224, 224), 192),  # ViT-H/14
        (0.6, 32, (192, 192), 22),  # SimMIM: ceil(36 · 0.6)
        (0.6, 32, (224, 224), 30),  # SimMIM: ceil(49 · 0.6)
        (0.75, 32, (448, 448), 147),  # LSMAE: 196 units of 2 x 2 patches
        (0.75, 32, (224, 224), 37),  # GreenMIM: int(49 · 0.25) = 12 kept
        (0.9, 16, (32, 80), 9),  # binary 0.1 · 10 is just below 1
        (0.5, 16, (64, 96), 12),
    ],
)
def test_published_counts(ratio, cell, size, hidden):
    mask = RandomMask(ratio=ratio, cell=cell).sample(torch.arange(40), size, encoder_cell=4)
    grid = size[0] // cell, size[1] // cell
    assert mask.hidden.shape == (40, *grid)
    assert mask.hidden.dtype == torch.bool
    assert mask.hidden.sum(dim=(1, 2)).tolist() == [hidden] * 40
    assert mask.count == hidden == Mask(mask.hidden).count
    assert mask.visible_ids(grid).shape == (40, grid[0] * grid[1] - hidden)


def test_cell_defaults_to_the_encoders():
    keys = torch.arange(3)
    assert RandomMask().sample(keys, (64, 96), encoder_cell=8).grid == (8, 12)
    assert RandomMask(cell=32).sample(keys, (64, 96), encoder_cell=8).grid == (2, 3)


def fields_of(mask: Mask, start: int, stop: int) -> list:
    """All a mask says of images start to stop."""
    rows = slice(start * mask.copies, stop * mask.copies)
    drawn = [value if value is None else value[rows].tolist() for value in (mask.hidden, mask.replaced, mask.scored)]
    return [*drawn, mask.count, mask.replaced_count, mask.scored_count, mask.shared, mask.copies]


@every_sampler
def test_same_key_same_mask_whatever_the_batch(sampler):
    keys = sample_keys(0, 0, torch.arange(32))
    whole = sampler.sample(keys, (224, 224), 16)
    assert fields_of(sampler.sample(keys, (224, 224), 16), 0, 32) == fields_of(whole, 0, 32)
    if whole.shared:
        assert len(whole.hidden.flatten(1).unique(dim=0)) == 1
        assert fields_of(sampler.sample(keys[:1], (224, 224), 16), 0, 1) == fields_of(whole, 0, 1)
        assert not torch.equal(sampler.sample(keys.flip(0), (224, 224), 16).hidden, whole.hidden)
        parts = [sampler.sample(some, (224, 224), 16, batch_key=keys[5:6]) for some in (keys[:20], keys[20:])]
        assert [len(part.hidden) for part in parts] == [20, 12]
        assert len(torch.cat([part.hidden for part in parts]).flatten(1).unique(dim=0)) == 1
        assert fields_of(parts[1], 0, 1) == fields_of(sampler.sample(keys[5:6], (224, 224), 16), 0, 1)
        return
    assert fields_of(sampler.sample(keys, (224, 224), 16, batch_key=keys[5:6]), 0, 32) == fields_of(whole, 0, 32)
    for index in (0, 13, 31):
        alone = sampler.sample(keys[index : index + 1], (224, 224), 16)
        assert fields_of(alone, 0, 1) == fields_of(whole, index, index + 1)
        flipped = sampler.sample(keys.flip(0), (224, 224), 16)
        assert fields_of(flipped, 31 - index, 32 - index) == fields_of(whole, index, index + 1)


@pytest.mark.parametrize("sampler", [RandomMask(), BlockMask(), UniformMask(secondary=0)])
def test_different_keys_different_masks(sampler):
    keys = torch.cat([sample_keys(seed, epoch, torch.arange(100)) for seed in (0, 1) for epoch in (0, 1)])
    hidden = sampler.sample(keys, (224, 224), 16).hidden
    assert len(hidden.flatten(1).unique(dim=0)) == 400


@every_sampler
@pytest.mark.parametrize("size", [(224, 224), (64, 96), (128, 128)])
def test_what_samplers_say_of_their_masks_is_so(sampler, size):
    """Counts, subsets and shapes, read again from the cells; ids ascend."""
    mask = sampler.sample(torch.arange(9), size, encoder_cell=16)
    again = Mask(mask.hidden, replaced=mask.replaced, scored=mask.scored, copies=mask.copies)
    assert (again.count, again.replaced_count, again.scored_count) == (
        mask.count,
        mask.replaced_count,
        mask.scored_count,
    )
    assert len(mask.hidden) == 9 * mask.copies
    assert 0 < mask.count < math.prod(mask.grid)
    ids = mask.visible_ids(mask.grid)
    assert ids.shape[1] == math.prod(mask.grid) - mask.count + mask.replaced_count
    assert (ids.diff(dim=1) > 0).all()
    assert mask.scored_ids(mask.grid).shape[1] == mask.scored_count


@every_sampler
def test_nothing_waits_for_the_device(sampler):
    """Meta tensors have no values that the host could ask for."""
    mask = sampler.sample(torch.zeros(4, dtype=torch.int64, device="meta"), (224, 224), 16)
    grid = mask.grid[0] * 2, mask.grid[1] * 2
    assert mask.visible_ids(grid).is_meta
    assert mask.scored_ids(grid).is_meta
    assert mask.weights(grid).is_meta
    mask.replaced_on(grid)
    assert mask.scoring_all().scored_count == mask.count
    assert replace(mask, shared=False).count == mask.count


@every_sampler
def test_torchs_generator_is_left_alone(sampler):
    before = torch.get_rng_state()
    sampler.sample(torch.arange(4), (224, 224), 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_cell_is_hidden_equally_often():
    """Over 20 000 images; the spread of a share of 0.75 is 0.003, and the largest of 36 stays within four of it."""
    keys = sample_keys(0, 0, torch.arange(20_000))
    share = RandomMask().sample(keys, (96, 96), 16).hidden.float().mean(dim=0)
    assert (share - 0.75).abs().max() < 4 * (0.75 * 0.25 / 20_000) ** 0.5


@pytest.mark.parametrize("sampler", [RandomMask, BlockMask])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 75])
def test_ratio_outside_is_refused(sampler, ratio):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {ratio}"):
        sampler(ratio=ratio)
    with pytest.raises(ValueError, match=f"between 0 and 1, got {ratio}"):
        sampler().hiding(ratio)


@pytest.mark.parametrize("sampler", [RandomMask(cell=8, scored=0.5), BlockMask(cell=8, smallest=4)])
def test_hiding_changes_the_ratio_only(sampler):
    assert sampler.hiding(0.5) == replace(sampler, ratio=0.5)
    assert sampler.hiding(0.5).sample(torch.arange(2), (64, 64), 16).count == 32


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (UniformMask(), "a uniform mask hides three of four .* share of 0.25 of the others: .* cannot be 0.6"),
        (ComplementaryMasks(), "each of 4 complementary masks sees 1/4 of the cells, so that .* cannot be 0.6"),
    ],
)
def test_hiding_is_refused_where_the_share_is_fixed(sampler, message):
    with pytest.raises(ValueError, match=message):
        sampler.hiding(0.6)


def test_ratio_that_hides_all_or_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask ratio 0.9 leaves 0 of 4 cells visible"):
        RandomMask(ratio=0.9).sample(torch.arange(2), (32, 32), 16)


@every_sampler
def test_cell_that_does_not_divide_the_image_is_refused(sampler):
    with pytest.raises(ValueError, match="a cell of 32 pixels does not divide an image of 48 x 48 pixels"):
        replace(sampler, cell=32).sample(torch.arange(2), (48, 48), 16)


@pytest.mark.parametrize(("scored", "count"), [(1 / 3, 49), (0.5, 73), (0.99, 145), (0.03, 4)])
def test_scored_cells_are_some_of_the_hidden(scored, count):
    keys = sample_keys(0, 0, torch.arange(200))
    mask = RandomMask(scored=scored).sample(keys, (224, 224), 16)
    assert mask.scored_count == count
    assert mask.scored.sum(dim=(1, 2)).tolist() == [count] * 200
    assert not (mask.scored & ~mask.hidden).any()
    assert torch.equal(mask.hidden, RandomMask().sample(keys, (224, 224), 16).hidden)
    assert len(mask.scored.flatten(1).unique(dim=0)) == 200


def test_all_scored_says_so_with_none():
    mask = RandomMask().sample(torch.arange(2), (64, 64), 16)
    assert mask.scored is None
    assert mask.scored_count == mask.count


@pytest.mark.parametrize("scored", [0.0, 1.5, -1.0])
def test_scored_share_outside_is_refused(scored):
    with pytest.raises(ValueError, match=f"scored share must be above 0 and at most 1, got {scored}"):
        RandomMask(scored=scored)


def test_scored_share_that_scores_nothing_is_refused():
    with pytest.raises(ValueError, match=r"scored share 0.1 leaves none of 3 hidden cells to score"):
        RandomMask(scored=0.1).sample(torch.arange(2), (32, 32), 16)


@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.4, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("size", [(14, 14), (7, 7), (4, 6), (2, 30), (28, 28)])
def test_blocks_hide_exactly_their_share(ratio, size):
    count = int(size[0] * size[1] * ratio + 1e-9)
    if count == 0:
        with pytest.raises(ValueError, match=f"mask ratio {ratio} hides none of {size[0] * size[1]} cells"):
            BlockMask(ratio=ratio).sample(torch.arange(2), size, 1)
        return
    mask = BlockMask(ratio=ratio).sample(sample_keys(0, 0, torch.arange(50)), size, 1)
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
    ours = BlockMask().sample(keys, (224, 224), 16).hidden
    assert compactness(ours).mean().item() == pytest.approx(compactness(published).mean().item(), abs=0.005)
    assert connected(ours) == pytest.approx(connected(published), abs=0.1)
    scattered = RandomMask(ratio=0.6).sample(keys, (224, 224), 16)
    assert compactness(scattered.hidden).mean() < 1.2 < 1.6 < compactness(ours).mean()
    # Everywhere, but the middle more often than corners, as wherever rectangles lie inside a grid.
    assert (ours.float().mean(dim=0) - published.float().mean(dim=0)).abs().max() < 0.08


def test_smallest_block_decides_how_many_there_are():
    """One of at least all that is to hide, save for a cell or two that rounding leaves over; or many small ones."""
    keys = sample_keys(0, 0, torch.arange(300))
    assert connected(BlockMask(smallest=78).sample(keys, (224, 224), 16).hidden) < 1.05
    assert connected(BlockMask(ratio=0.1, smallest=1).sample(keys, (224, 224), 16).hidden) > 2


def test_aspect_bounds_the_blocks():
    """With squares only, the first block of 36 of 196 cells is 6 x 6 wherever it is one."""
    hidden = BlockMask(ratio=36.5 / 196, smallest=36, aspect=1.0).sample(torch.arange(64), (224, 224), 16).hidden
    assert hidden.any(dim=1).sum(dim=1).tolist() == [6] * 64
    assert hidden.any(dim=2).sum(dim=1).tolist() == [6] * 64
    narrow = BlockMask(ratio=36.5 / 196, smallest=36, aspect=0.3).sample(torch.arange(64), (224, 224), 16).hidden
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


@pytest.mark.parametrize(("secondary", "replaced"), [(0.25, 12), (0.0, 0), (0.5, 24)])
def test_uniform_masks_keep_one_of_each_square(secondary, replaced):
    """UM-MAE at 224 pixels: 49 of 196 cells, of which a share is replaced."""
    mask = UniformMask(secondary=secondary).sample(sample_keys(0, 0, torch.arange(64)), (224, 224), 16)
    present = ~mask.hidden if mask.replaced is None else ~mask.hidden | mask.replaced
    squares = present.unflatten(2, (7, 2)).unflatten(1, (7, 2)).sum(dim=(2, 4))
    assert (squares == 1).all()
    assert (mask.replaced is None) == (replaced == 0)
    assert mask.replaced_count == replaced
    assert mask.count == 147 + replaced
    assert mask.visible_ids((14, 14)).shape == (64, 49)


def test_uniform_masks_keep_each_corner_equally_often():
    """Over 8 000 squares; the spread of a share of 0.25 is 0.0048, and the largest of four stays within four of it."""
    mask = UniformMask(secondary=0).sample(sample_keys(0, 0, torch.arange(500)), (8, 8), 1)
    kept = (~mask.hidden).float().unflatten(2, (4, 2)).unflatten(1, (4, 2)).mean(dim=(0, 1, 3))
    assert (kept - 0.25).abs().max() < 4 * (0.25 * 0.75 / 8000) ** 0.5


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"secondary": 1.0}, (64, 64), r"at least 0 and below 1, got 1\.0"),
        ({"secondary": -0.1}, (64, 64), r"at least 0 and below 1, got -0\.1"),
        ({"secondary": 0.25}, (32, 48), "a grid of 2 x 3 cannot be cut into"),
        ({"secondary": 0.25}, (32, 32), "secondary share 0.25 replaces none of 1 kept cells"),
    ],
)
def test_impossible_uniform_masks_are_refused(options, size, message):
    with pytest.raises(ValueError, match=message):
        UniformMask(**options).sample(torch.arange(2), size, 16)


@pytest.mark.parametrize("copies", [2, 4, 7])
def test_complementary_masks_show_every_cell_once(copies):
    mask = ComplementaryMasks(copies=copies).sample(sample_keys(0, 0, torch.arange(20)), (224, 224), 16)
    assert mask.hidden.shape == (20 * copies, 14, 14)
    assert mask.copies == copies
    assert mask.count == 196 - 196 // copies
    seen = (~mask.hidden).unflatten(0, (20, copies)).sum(dim=1)
    assert (seen == 1).all()
    assert len(mask.hidden.flatten(1).unique(dim=0)) == 20 * copies


def test_cells_that_cannot_be_dealt_are_refused():
    with pytest.raises(ValueError, match="6 cells cannot be dealt to 4 complementary masks"):
        ComplementaryMasks().sample(torch.arange(2), (32, 48), 16)
    with pytest.raises(ValueError, match="at least 2 copies, got 1"):
        ComplementaryMasks(copies=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_sampler
def test_masks_are_the_same_on_a_gpu(sampler):
    keys = sample_keys(0, 0, torch.arange(2000))
    here, there = (sampler.sample(k, (224, 224), 16) for k in (keys, keys.cuda()))
    assert fields_of(here, 0, 2000) == fields_of(there, 0, 2000)
    assert torch.equal(here.visible_ids((28, 28)), there.visible_ids((28, 28)).cpu())
    assert torch.equal(here.scored_ids((28, 28)), there.scored_ids((28, 28)).cpu())
