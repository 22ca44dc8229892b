import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

from mimkit.backbones.lean_block import LeanBlock
from mimkit.recipes.efficiency import tune


@pytest.mark.parametrize(("device", "precision", "fused"), [("cpu", "bf16", False), ("cpu", "fp32", True)])
def test_models_are_tuned_to_device_and_precision(device, precision, fused):
    model = nn.Sequential(Block(32, 4), nn.Sequential(Block(32, 4)))
    tune(model, torch.device(device), precision)
    assert all(isinstance(block, LeanBlock) for block in (model[0], model[1][0]))
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(attentions) == 2
    assert all(attention.fused_attn is fused for attention in attentions)


def test_graphics_cards_use_the_fused_kernel():
    model = nn.Sequential(Block(32, 4))
    tune(model, torch.device("cuda"), "bf16")  # nothing is computed there
    assert model[0].attn.fused_attn is True
