from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from helpers import parts
from mimkit.backbones.lean_block import LeanBlock, is_plain, use_lean_blocks
from mimkit.training.precision import autocast


def block(**options) -> Block:
    options = {"qkv_bias": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6)} | options
    return parts.perturb(Block(32, 4, **options)).train()


def gradients(part: nn.Module, tokens: torch.Tensor, **options: torch.Tensor) -> list[torch.Tensor]:
    """The sum of squares of the outputs, and its gradients in the tokens and all weights."""
    tokens = tokens.clone().requires_grad_()
    part.zero_grad()
    loss = part(tokens, **options).float().square().sum()
    loss.backward()
    return [loss.detach(), tokens.grad, *(p.grad for p in part.parameters())]


def saved_bytes(part: nn.Module, tokens: torch.Tensor) -> int:
    """What a forward pass keeps for the backward pass, beside the weights."""
    known = {p.untyped_storage().data_ptr() for p in part.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = part(tokens.requires_grad_())
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"init_values": 0.1}], ids=str)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_lean_block_is_the_block_bit_for_bit(options, fused, precision):
    plain, tokens = block(**options), parts.images(3, (7, 32), 1)[:, 0]
    plain.attn.fused_attn = fused
    lean = LeanBlock(plain)
    assert list(lean.state_dict()) == list(plain.state_dict())
    with autocast(torch.device("cpu"), precision):
        expected, found = gradients(plain, tokens), gradients(lean, tokens)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_it_keeps_less():
    plain, tokens = block(), parts.images(3, (64, 32), 1)[:, 0]
    one = 3 * 64 * 32 * 4  # bytes of the residual stream
    # Of a block: two residuals and normed ones, three for queries, keys and values, what attention gives, MLP 4 + 4.
    assert saved_bytes(plain, tokens) > 15 * one
    assert saved_bytes(LeanBlock(plain), tokens) < 11 * one


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_asked_tokens_are_those_of_the_whole(bias, fused):
    plain, tokens = block(qkv_bias=bias), parts.images(3, (7, 32), 1)[:, 0]
    plain.attn.fused_attn = fused
    asked = torch.tensor([[0, 2, 6], [1, 2, 3], [4, 5, 6]])

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = plain

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x).gather(1, asked[:, :, None].expand(-1, -1, 32))

    expected, found = gradients(Whole(), tokens), gradients(LeanBlock(plain), tokens, query_ids=asked)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_it_compiles_to_one_graph():
    plain, tokens = block(), parts.images(3, (7, 32), 1)[:, 0]
    lean = LeanBlock(plain)
    expected = gradients(lean, tokens)
    lean.compile(fullgraph=True, backend="aot_eager")
    for one, other in zip(expected, gradients(lean, tokens), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_only_plain_blocks_are_replaced():
    model = nn.Sequential(block(), nn.Sequential(block(qk_norm=True), block(proj_drop=0.1), block(drop_path=0.1)))
    assert [is_plain(part) for part in (model[0], *model[1])] == [True, False, False, True]
    names = list(model.state_dict())
    use_lean_blocks(model)
    assert [type(part) for part in (model[0], *model[1])] == [LeanBlock, Block, Block, LeanBlock]
    assert list(model.state_dict()) == names
