from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import parts
from helpers.tiny import TINY
from mimkit.backbones import Latent
from mimkit.backbones.lean_block import use_lean_blocks
from mimkit.compose import compose
from mimkit.decoders import CrossDecoder, LinearDecoder, TransformerDecoder
from mimkit.grids import resize_positions, sincos_positions, unpatchify
from mimkit.masks import Mask, RandomMask
from mimkit.recipes import build as build_method
from mimkit.settings import Settings


def decoder(grid=(2, 3), **options) -> TransformerDecoder:
    options = {"width": 32, "depth": 2, "heads": 4} | options
    return parts.perturb(TransformerDecoder(24, 10, grid, **options))


def latent(ids: torch.Tensor | None, grid=(2, 3), prefix: int = 1) -> Latent:
    count = grid[0] * grid[1] if ids is None else ids.shape[1]
    values = parts.images(2, (prefix + count, 24), 1)[:, 0]
    return Latent(tokens=values[:, prefix:], grid=grid, ids=ids, prefix=values[:, :prefix])


def test_fill_puts_tokens_in_their_places():
    part, ids = decoder(), torch.tensor([[1, 4], [0, 5]])
    tokens = parts.images(2, (2, 32), 1)[:, 0]
    filled = part.fill(tokens, latent(ids))
    assert filled.shape == (2, 6, 32)
    for sample in range(2):
        for cell in range(6):
            at = ids[sample].tolist()
            expected = tokens[sample, at.index(cell)] if cell in at else part.mask_token[0, 0]
            assert torch.equal(filled[sample, cell], expected)


def test_all_tokens_are_left_alone():
    part, tokens = decoder(), parts.images(2, (6, 32), 1)[:, 0]
    assert part.fill(tokens, latent(None)) is tokens


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("ids", [None, torch.tensor([[1, 4], [0, 5]])])
@torch.no_grad()
def test_equals_the_steps_written_out(prefix, ids):
    """Embed, fill, add positions to the cells (none to the prefix), blocks, norm, head, prefix dropped."""
    part, given = decoder(), latent(ids, prefix=prefix)
    cells = part.mask_token[0, 0].repeat(2, 6, 1)
    for sample in range(2):
        for index, token in enumerate(given.tokens[sample]):
            cells[sample, index if ids is None else ids[sample, index]] = part.embed(token)
    x = torch.cat([part.embed(given.prefix), cells + sincos_positions((2, 3), 32)], dim=1)
    for block in part.blocks:
        x = block(x)
    expected = part.head(part.norm(x))[:, prefix:].reshape(2, 2, 3, 10)
    torch.testing.assert_close(part(given), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["transformer", "cross"])
@pytest.mark.parametrize("sincos", [True, False], ids=["sine-cosine", "others"])
def test_another_grid_equals_a_decoder_built_for_it(kind, sincos):
    """Sine-cosine positions are made afresh, any others resized."""
    make = {"transformer": decoder, "cross": cross}[kind]
    here, there = make(), make(grid=(4, 2))
    positions = there.positions.clone()
    if not sincos:
        here.positions += parts.images(1, (6, 32), 1)[:, 0] / 10
        positions = resize_positions(here.positions, (2, 3), (4, 2))
    there.load_state_dict(here.state_dict() | {"positions": positions})
    given = latent(torch.tensor([[0, 7, 3], [1, 2, 6]]), grid=(4, 2))
    assert torch.equal(here(given), there(given))
    assert here(given).shape == (2, 4, 2, 10)


def test_positions_are_state_that_does_not_learn():
    for part in (decoder(), cross()):
        assert torch.equal(part.state_dict()["positions"], sincos_positions((2, 3), 32)[None])
        assert "positions" not in dict(part.named_parameters())


@pytest.mark.parametrize("options", [{}, {"out_grid": (8, 12)}])
def test_epsilon_of_all_norms(options):
    for part in (decoder(**options, eps=1e-3), *([] if options else [cross(eps=1e-3)])):
        norms = [module.eps for module in part.modules() if isinstance(module, nn.LayerNorm)]
        assert len(norms) >= 5
        assert set(norms) == {1e-3}
    assert decoder().norm.eps == cross().norm.eps == 1e-6


def test_initial_weights():
    part = TransformerDecoder(24, 10, (2, 3), width=32, depth=1, heads=4)
    assert not part.head.bias.any()
    assert part.mask_token.std().item() == pytest.approx(0.02, rel=0.5)


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="decoder width 30 is no multiple of its 4 heads"):
        decoder(width=30)


def test_complete_decoder_learns_no_mask_token():
    """It would get no gradient. With the other weights the same, it decodes a complete latent alike."""
    part, plain = decoder(complete=True), decoder()
    assert part.mask_token is None
    assert set(plain.state_dict()) - set(part.state_dict()) == {"mask_token"}
    part.load_state_dict(plain.state_dict(), strict=False)
    given = latent(None, prefix=0)
    assert torch.equal(part(given, parts.hide(2, (2, 3), count=4)), plain(given))
    part(given).sum().backward()
    assert all(parameter.grad is not None for parameter in part.parameters())
    with pytest.raises(ValueError, match="built for complete latents was given one that lacks tokens"):
        part(latent(torch.tensor([[1, 4], [0, 5]])))


@torch.no_grad()
def test_order_of_tokens_does_not_matter():
    for part in (decoder(), cross()):
        given = latent(torch.tensor([[1, 4, 3], [0, 5, 2]]))
        shuffled = replace(given, tokens=given.tokens[:, [2, 0, 1]], ids=given.ids[:, [2, 0, 1]])
        torch.testing.assert_close(part(shuffled), part(given), rtol=1e-5, atol=1e-5)


def test_linear_decoder_is_one_layer_for_each_token():
    part, given = LinearDecoder(24, 10, (2, 3), complete=True), latent(None)
    predictions = part(given, parts.hide(2, (2, 3), count=4))
    assert predictions.shape == (2, 2, 3, 10)
    for cell in range(6):
        torch.testing.assert_close(predictions[:, cell // 3, cell % 3], part.head(given.tokens[:, cell]))


@torch.no_grad()
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_linear_decoder_is_a_convolution_and_a_pixel_shuffle(factor):
    """SimMIM's head: a 1 x 1 convolution to s²·3 channels and PixelShuffle(s), for 4-pixel cells cut ever finer.

    The two order a token's outputs differently: PixelShuffle channel, row, column; here finer cell (row, column), then
    row, column and channel in it.
    """
    side = 4 // factor
    part = LinearDecoder(24, side * side * 3, (2, 3), (2 * factor, 3 * factor), complete=True)
    given = latent(None)
    head = nn.Conv2d(24, 4 * 4 * 3, 1)
    for ours, theirs in ((part.head.weight, head.weight), (part.head.bias, head.bias)):
        by_pixel = ours.unflatten(0, (factor, factor, side, side, 3))
        theirs.copy_(torch.einsum("YXyxc...->cYyXx...", by_pixel).reshape(theirs.shape))
    maps = given.tokens.transpose(1, 2).unflatten(2, (2, 3))
    expected = nn.PixelShuffle(4)(head(maps))
    predictions = part(given)
    assert predictions.shape == (2, 2 * factor, 3 * factor, side * side * 3)
    torch.testing.assert_close(unpatchify(predictions, 3), expected, rtol=1e-5, atol=1e-5)


def test_linear_decoder_on_another_grid():
    part = LinearDecoder(24, 5, (2, 3), (4, 6), complete=True)
    assert part(latent(None, grid=(4, 2))).shape == (2, 8, 4, 5)


def test_linear_decoder_refuses_missing_tokens():
    with pytest.raises(ValueError, match=r"leaves out: use .* \(--decoder transformer\) or .* \(--encoder dense\)"):
        LinearDecoder(24, 10, (2, 3))
    with pytest.raises(ValueError, match="cannot predict cells that the encoder left out"):
        LinearDecoder(24, 10, (2, 3), complete=True)(latent(torch.tensor([[1, 4], [0, 5]])))


@pytest.mark.parametrize("out_grid", [(1, 3), (4, 3), (2, 6), (3, 4), (1, 1)])
def test_linear_decoder_refuses_grids_that_are_not_finer_alike(out_grid):
    with pytest.raises(ValueError, match=rf"a grid of \(2, 3\) to one of \({out_grid[0]}, {out_grid[1]}\)"):
        LinearDecoder(24, 10, (2, 3), out_grid, complete=True)


def cross(grid=(2, 3), **options) -> CrossDecoder:
    options = {"width": 32, "depth": 2, "heads": 4} | options
    return parts.perturb(CrossDecoder(24, 10, grid, **options))


def score(mask: Mask, count: int) -> Mask:
    """The same mask, of whose hidden cells the first few in raster order are scored."""
    first = mask.hidden.flatten(1).cumsum(dim=1).view_as(mask.hidden) <= count
    return Mask(mask.hidden, scored=mask.hidden & first)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 4), (6, 4)])
def test_cross_decoder_answers_alike_whatever_else_is_asked(grid):
    """And zero where it is not asked; without a scored share it is asked everything."""
    part = cross(grid=(4, 4))
    mask = parts.hide(3, grid, count=11)
    ids = mask.visible_ids(grid)
    values = parts.images(3, (ids.shape[1] + 1, 24), 1)[:, 0]
    given = Latent(tokens=values[:, 1:], grid=grid, ids=ids, prefix=values[:, :1])
    everything = part(given)
    assert everything.shape == (3, *grid, 10)
    assert everything.abs().amax(dim=3).min() > 0
    assert torch.equal(part(given, mask), everything)
    for count in (1, 5):
        asked = score(mask, count)
        some = part(given, asked)
        torch.testing.assert_close(some[asked.scored], everything[asked.scored], rtol=1e-5, atol=1e-6)
        assert not some[~asked.scored].any()
        assert torch.equal(part(given, asked.scoring_all()), everything)


@torch.no_grad()
def test_cross_decoder_takes_scored_cells_of_a_coarser_mask():
    part = cross(grid=(4, 4))
    coarse = score(parts.hide(2, (2, 2), count=2), 1)
    ids = coarse.visible_ids((4, 4))
    values = parts.images(2, (8, 24), 1)[:, 0]
    given = Latent(tokens=values, grid=(4, 4), ids=ids, prefix=values[:, :0])
    predictions, everything = part(given, coarse), part(given)
    scored = coarse.weights((4, 4)).bool()
    torch.testing.assert_close(predictions[scored], everything[scored], rtol=1e-5, atol=1e-6)
    assert not predictions[~scored].any()


def test_cross_decoder_costs_less_the_less_is_asked():
    part, mask = cross(grid=(8, 8)), parts.hide(2, (8, 8), count=48)
    ids = mask.visible_ids((8, 8))
    given = Latent(tokens=parts.images(2, (16, 24), 1)[:, 0], grid=(8, 8), ids=ids, prefix=torch.zeros(2, 0, 24))
    spent = []
    for asked in (score(mask, 4), score(mask, 24), mask):
        with FlopCounterMode(display=False) as counter:
            part(given, asked).sum().backward()
        spent.append(counter.get_total_flops())
    fixed = spent[0] - (spent[1] - spent[0]) / 20 * 4  # what the context costs
    assert 0 < fixed < spent[0] < spent[1] < spent[2]
    assert spent[2] == pytest.approx(fixed + (spent[1] - spent[0]) / 20 * 64)


def test_every_weight_of_a_cross_decoder_learns():
    part, mask = cross(), score(parts.hide(2, (2, 3), count=4), 2)
    given = latent(mask.visible_ids((2, 3)))
    part(given, mask).square().sum().backward()
    assert all(parameter.grad.any() for parameter in part.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"complete": True}, r"a dense encoder leaves out none: use .*--decoder.*--encoder visible"),
        ({"out_grid": (4, 6)}, r"a cross decoder cannot rescale a grid of \(2, 3\) to one of \(4, 6\)"),
        ({"width": 30}, "decoder width 30 is no multiple of its 4 heads"),
    ],
)
def test_cross_decoder_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        cross(**options)


@pytest.mark.parametrize("recipe", ["mae", "mff", "convmae", "greenmim", "localmim"])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("scored", [1.0, 0.5])
def test_predicting_the_scored_cells_only_changes_nothing_else(tmp_path, recipe, lean, scored):
    settings = Settings(data=tmp_path, **TINY[recipe] | ({"decoder_depth": 2} if recipe != "localmim" else {}))
    composed = compose(recipe, settings)
    method = parts.perturb(build_method(composed)).train()
    if lean:
        use_lean_blocks(method)
    images = parts.images(3, composed.image_size, 3)
    mask = parts.draw(RandomMask(ratio=0.75, scored=scored), torch.arange(3), composed.image_size, method.encoder.cell)
    outputs, gradients = [], []
    for only in (False, True):
        for decoder in method.decoders:
            decoder.scored_only = only
        method.zero_grad()
        outputs.append(method(images, mask=mask))
        outputs[-1].loss.backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    full, fewer = outputs
    assert fewer.loss.item() == pytest.approx(full.loss.item(), rel=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    for expected, found in zip(full.predictions, fewer.predictions, strict=True):
        weights = mask.weights(found.shape[1:3])
        at = weights > 0
        assert torch.allclose(found[at], expected[at], rtol=1e-4, atol=1e-5)
        if recipe != "localmim":  # whose predictions have other grids
            assert (found[~at] == 0).all()
    method.eval()
    assert all((prediction != 0).any(dim=-1).all() for prediction in method(images, mask=mask).predictions)
