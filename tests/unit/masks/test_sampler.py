import math
from dataclasses import replace

import pytest
import torch

from helpers.parts import draw
from mimkit.compose import with_fields
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


def fields_of(mask: Mask, start: int, stop: int) -> list:
    """All a mask says of images start to stop."""
    rows = slice(start * mask.copies, stop * mask.copies)
    drawn = [value if value is None else value[rows].tolist() for value in (mask.hidden, mask.replaced, mask.scored)]
    return [*drawn, mask.count, mask.replaced_count, mask.scored_count, mask.shared, mask.copies]


@every_sampler
def test_same_key_same_mask_whatever_the_batch(sampler):
    keys = sample_keys(0, 0, torch.arange(32))
    whole = draw(sampler, keys, (224, 224), 16)
    assert fields_of(draw(sampler, keys, (224, 224), 16), 0, 32) == fields_of(whole, 0, 32)
    if whole.shared:
        assert len(whole.hidden.flatten(1).unique(dim=0)) == 1
        assert fields_of(draw(sampler, keys[:1], (224, 224), 16), 0, 1) == fields_of(whole, 0, 1)
        assert not torch.equal(draw(sampler, keys.flip(0), (224, 224), 16).hidden, whole.hidden)
        parts = [draw(sampler, some, (224, 224), 16, batch_key=keys[5:6]) for some in (keys[:20], keys[20:])]
        assert [len(part.hidden) for part in parts] == [20, 12]
        assert len(torch.cat([part.hidden for part in parts]).flatten(1).unique(dim=0)) == 1
        assert fields_of(parts[1], 0, 1) == fields_of(draw(sampler, keys[5:6], (224, 224), 16), 0, 1)
        return
    assert fields_of(draw(sampler, keys, (224, 224), 16, batch_key=keys[5:6]), 0, 32) == fields_of(whole, 0, 32)
    for index in (0, 13, 31):
        alone = draw(sampler, keys[index : index + 1], (224, 224), 16)
        assert fields_of(alone, 0, 1) == fields_of(whole, index, index + 1)
        flipped = draw(sampler, keys.flip(0), (224, 224), 16)
        assert fields_of(flipped, 31 - index, 32 - index) == fields_of(whole, index, index + 1)


@pytest.mark.parametrize("sampler", [RandomMask(), BlockMask(), UniformMask(secondary=0)])
def test_different_keys_different_masks(sampler):
    keys = torch.cat([sample_keys(seed, epoch, torch.arange(100)) for seed in (0, 1) for epoch in (0, 1)])
    hidden = draw(sampler, keys, (224, 224), 16).hidden
    assert len(hidden.flatten(1).unique(dim=0)) == 400


@every_sampler
@pytest.mark.parametrize("size", [(224, 224), (64, 96), (128, 128)])
def test_what_samplers_say_of_their_masks_is_so(sampler, size):
    """Counts, subsets and shapes, read again from the cells; ids ascend."""
    mask = draw(sampler, torch.arange(9), size, encoder_cell=16)
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
    mask = draw(sampler, torch.zeros(4, dtype=torch.int64, device="meta"), (224, 224), 16)
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
    draw(sampler, torch.arange(4), (224, 224), 16)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampler", [RandomMask, BlockMask])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 75])
def test_ratio_outside_is_refused(sampler, ratio):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {ratio}"):
        sampler(ratio=ratio)
    with pytest.raises(ValueError, match=f"between 0 and 1, got {ratio}"):
        with_fields(sampler(), {"ratio": ratio})


@pytest.mark.parametrize("sampler", [RandomMask(cell=8, scored=0.5), BlockMask(cell=8, smallest=4)])
def test_hiding_changes_the_ratio_only(sampler):
    hiding_half = with_fields(sampler, {"ratio": 0.5})
    assert hiding_half == replace(sampler, ratio=0.5)
    assert draw(hiding_half, torch.arange(2), (64, 64), 16).count == 32


@pytest.mark.parametrize(
    ("sampler", "message"),
    [(UniformMask(), "UniformMask has no ratio"), (ComplementaryMasks(), "ComplementaryMasks has no ratio")],
)
def test_hiding_is_refused_where_the_share_is_fixed(sampler, message):
    with pytest.raises(ValueError, match=message):
        with_fields(sampler, {"ratio": 0.6})


@every_sampler
def test_cell_that_does_not_divide_the_image_is_refused(sampler):
    with pytest.raises(ValueError, match="a cell of 32 pixels does not divide an image of 48 x 48 pixels"):
        draw(replace(sampler, cell=32), torch.arange(2), (48, 48), 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_sampler
def test_masks_are_the_same_on_a_gpu(sampler):
    keys = sample_keys(0, 0, torch.arange(2000))
    here, there = (draw(sampler, k, (224, 224), 16) for k in (keys, keys.cuda()))
    assert fields_of(here, 0, 2000) == fields_of(there, 0, 2000)
    assert torch.equal(here.visible_ids((28, 28)), there.visible_ids((28, 28)).cpu())
    assert torch.equal(here.scored_ids((28, 28)), there.scored_ids((28, 28)).cpu())
