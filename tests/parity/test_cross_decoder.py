"""`CrossDecoder` against its description, one cell, one head and one token at a time (arXiv 2401.14391)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import parts
from mimkit.backbones import Latent
from mimkit.decoders import CrossBlock, CrossDecoder
from mimkit.grids import sincos_positions
from mimkit.masks import Mask

GRID, DIM, WIDTH, HEADS, VALUES = (3, 4), 12, 24, 3, 5


def normed(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt() * norm.weight + norm.bias


def matrix(x: Tensor, linear: torch.nn.Linear) -> Tensor:
    return linear.weight @ x + linear.bias


def attend(query: Tensor, context: list[Tensor], block: CrossBlock) -> Tensor:
    """One query [E] over the context's tokens [E], head by head."""
    side = WIDTH // HEADS
    asking = matrix(query, block.query)
    found = []
    for head in range(HEADS):
        part = slice(head * side, (head + 1) * side)
        both = [matrix(token, block.key_value) for token in context]
        keys, values = [token[:WIDTH][part] for token in both], [token[WIDTH:][part] for token in both]
        likeness = torch.stack([asking[part].dot(key) / math.sqrt(side) for key in keys])
        shares = likeness.exp() / likeness.exp().sum()
        found.append(sum(share * value for share, value in zip(shares, values, strict=True)))
    return matrix(torch.cat(found), block.project)


def predict(cell: int, tokens: Tensor, places: list[int], prefix: Tensor, decoder: CrossDecoder) -> Tensor:
    """One cell's values [V] from one sample's tokens [K, D] at their places and its prefix [P, D]."""
    positions = sincos_positions(GRID, WIDTH).double()
    context = [matrix(token, decoder.embed) for token in prefix]
    context += [matrix(token, decoder.embed) + positions[at] for token, at in zip(tokens, places, strict=True)]
    context = [normed(token, decoder.context_norm) for token in context]
    x = decoder.mask_token[0, 0] + positions[cell]
    for block in decoder.blocks:
        x = x + attend(normed(x, block.attention_norm), context, block)
        inner = F.gelu(matrix(normed(x, block.mlp_norm), block.mlp[0]))
        x = x + matrix(inner, block.mlp[2])
    return matrix(normed(x, decoder.norm), decoder.head)


@pytest.mark.parametrize("prefix", [0, 2])
@torch.no_grad()
def test_equals_the_description(prefix):
    decoder = parts.perturb(CrossDecoder(DIM, VALUES, GRID, width=WIDTH, depth=2, heads=HEADS)).double()
    decoder.positions = sincos_positions(GRID, WIDTH).double()[None]
    hidden = parts.hide(2, GRID, count=8).hidden
    scored = hidden & (hidden.flatten(1).cumsum(dim=1).view_as(hidden) <= 5)
    mask = Mask(hidden, scored=scored)
    ids = mask.visible_ids(GRID).flip(1)
    values = parts.images(2, (prefix + 4, DIM), 1)[:, 0].double()
    latent = Latent(tokens=values[:, prefix:], grid=GRID, ids=ids, prefix=values[:, :prefix])
    everything, some = decoder(latent), decoder(latent, mask)
    for sample in range(2):
        for cell in range(12):
            expected = predict(cell, latent.tokens[sample], ids[sample].tolist(), latent.prefix[sample], decoder)
            row, column = divmod(cell, GRID[1])
            torch.testing.assert_close(everything[sample, row, column], expected, rtol=1e-10, atol=1e-10)
            asked = expected if scored[sample, row, column] else torch.zeros_like(expected)
            torch.testing.assert_close(some[sample, row, column], asked, rtol=1e-10, atol=1e-10)
