import build
import pytest
import torch

from mimkit.backbones import Latent
from mimkit.decoders import LinearDecoder, TransformerDecoder
from mimkit.grids import sincos_positions


def decoder(grid=(2, 3), **options) -> TransformerDecoder:
    options = {"width": 32, "depth": 2, "heads": 4} | options
    return build.perturb(TransformerDecoder(24, 10, grid, **options))


def latent(ids: torch.Tensor | None, grid=(2, 3), prefix: int = 1) -> Latent:
    count = grid[0] * grid[1] if ids is None else ids.shape[1]
    values = build.images(2, (prefix + count, 24), 1)[:, 0]
    return Latent(tokens=values[:, prefix:], grid=grid, ids=ids, prefix=values[:, :prefix])


def test_fill_puts_tokens_in_their_places():
    part, ids = decoder(), torch.tensor([[1, 4], [0, 5]])
    tokens = build.images(2, (2, 32), 1)[:, 0]
    filled = part.fill(tokens, latent(ids))
    assert filled.shape == (2, 6, 32)
    for sample in range(2):
        for cell in range(6):
            at = ids[sample].tolist()
            expected = tokens[sample, at.index(cell)] if cell in at else part.mask_token[0, 0]
            assert torch.equal(filled[sample, cell], expected)


def test_all_tokens_are_left_alone():
    part, tokens = decoder(), build.images(2, (6, 32), 1)[:, 0]
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
def test_another_grid_equals_a_decoder_built_for_it():
    here, there = decoder(), decoder(grid=(4, 2))
    there.load_state_dict(here.state_dict())  # positions are no state
    given = latent(torch.tensor([[0, 7, 3], [1, 2, 6]]), grid=(4, 2))
    assert torch.equal(here(given), there(given))
    assert here(given).shape == (2, 4, 2, 10)


def test_state_holds_weights_only():
    assert "positions" not in decoder().state_dict()
    part = TransformerDecoder(24, 10, (2, 3), width=32, depth=1, heads=4)
    assert not part.head.bias.any()
    assert part.mask_token.std().item() == pytest.approx(0.02, rel=0.5)


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="decoder width 30 is no multiple of its 4 heads"):
        decoder(width=30)


def test_linear_decoder_is_one_layer_for_each_token():
    part, given = LinearDecoder(24, 10, (2, 3)), latent(None)
    predictions = part(given)
    assert predictions.shape == (2, 2, 3, 10)
    for cell in range(6):
        torch.testing.assert_close(predictions[:, cell // 3, cell % 3], part.head(given.tokens[:, cell]))


def test_linear_decoder_refuses_missing_tokens():
    with pytest.raises(ValueError, match="use a transformer one"):
        LinearDecoder(24, 10, (2, 3))(latent(torch.tensor([[1, 4], [0, 5]])))
