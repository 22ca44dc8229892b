"""Transformer blocks that keep less for the backward pass.

Of a block, only the residual stream and the results of matrix products are kept; norms, GELU and the casts of weights
under autocast are recomputed, which costs little. No matrix product is computed twice, and results are bit-identical.

Shapes: B batch, N tokens, Q queried tokens, D width, d width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimkit.grids import take


class LeanBlock(nn.Module):
    """timm's block with its modules under their names, so that weights are called the same.

    Args:
        block: plain, see `is_plain`.
    """

    norm1: nn.Module
    norm2: nn.Module
    ls1: nn.Module
    ls2: nn.Module
    drop_path1: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: Block) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, query_ids: Tensor | None = None) -> Tensor:
        """Tokens [B, N, D] to [B, N, D], or to those [B, Q, D] at the positions `query_ids`, int64 [B, Q]."""
        attention: Any = self.attn
        mlp: Any = self.mlp
        if query_ids is None:
            query, key, value = recompute_linear(lambda x: attention.qkv(self.norm1(x)), x).chunk(3, dim=2)
        else:
            weights, biases = split_qkv(attention.qkv)
            key, value = recompute_linear(lambda x: F.linear(self.norm1(x), weights[1], biases[1]), x).chunk(2, dim=2)
            x = take(x, query_ids)
            query = recompute_linear(lambda x: F.linear(self.norm1(x), weights[0], biases[0]), x)
        attended = attention.proj(attend(query, key, value, attention))
        x = x + self.drop_path1(self.ls1(attended))
        hidden = recompute_linear(lambda x: mlp.fc1(self.norm2(x)), x)
        return x + self.drop_path2(self.ls2(recompute_linear(lambda hidden: mlp.fc2(mlp.act(hidden)), hidden)))


def split_qkv(layer: nn.Linear) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Weights and biases of the queries, and of keys and values together."""
    width = layer.out_features // 3
    bias = layer.bias
    biases = (None, None) if bias is None else (bias[:width], bias[width:])
    return (layer.weight[:width], layer.weight[width:]), biases


def attend(query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
    """Queries [B, Q, heads·d], keys and values [B, N, heads·d] to [B, Q, heads·d]."""
    query, key, value = (
        part.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2) for part in (query, key, value)
    )
    if attention.fused_attn:
        found = F.scaled_dot_product_attention(query, key, value)
    else:
        found = (query * attention.scale @ key.transpose(-2, -1)).softmax(dim=-1) @ value
    return found.transpose(1, 2).flatten(2)


def recompute_linear(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function's value; its backward pass recomputes from x what comes before the last matrix product."""
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def use_lean_blocks(model: nn.Module) -> None:
    """Replace all plain blocks by lean ones."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if is_plain(child):
                setattr(module, name, LeanBlock(child))


def is_plain(module: Any) -> bool:
    """Whether it is timm's block with nothing unusual inside: no dropout, no gate, no norm of queries or keys."""
    if type(module) is not Block or type(module.attn) is not Attention or type(module.mlp) is not Mlp:
        return False
    attention, mlp = module.attn, module.mlp
    unused = (attention.q_norm, attention.k_norm, attention.norm, mlp.norm)
    dropouts = (attention.attn_drop, attention.proj_drop, mlp.drop1, mlp.drop2)
    plain = all(type(part) is nn.Identity for part in unused) and all(dropout.p == 0 for dropout in dropouts)
    return plain and getattr(attention, "gate", None) is None  # timm 1.0.26 has no gates yet
