"""SimMIM against Hugging Face's Swin and ViT models for it, and against its definition written out slowly.

Hugging Face agrees with the paper in what it computes: mask tokens in place of the (normed) patch embeddings, a 1 x 1
convolution and a pixel shuffle, and the sum of the absolute errors at hidden pixels over their number + 1e-5 and over
the channels. It differs in what it is given: its mask lies on the patch grid (4 pixels in Swin, 16 in ViT), to which
ours is repeated; and its ViT is the plain one, with absolute positions and biases of the keys. SimMIM's own ViT is
checked against a slow version below.
"""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import parts
from mimkit.backbones import create_encoder
from mimkit.grids import unpatchify
from mimkit.masks import Mask, RandomMask
from mimkit.method import Method
from mimkit.recipes import build as build_recipe
from mimkit.recipes import simmim, simmim_vit
from mimkit.recipes._simmim import VIT

transformers = pytest.importorskip("transformers")

SWIN = "swin_tiny_patch4_window7_224(embed_dim=12, depths=(2, 2, 2, 1), num_heads=(1, 2, 2, 4), window_size=4)"
PLAIN = "vit_tiny_patch16_224(embed_dim=24, depth=3, num_heads=2)"


def tiny(recipe, name: str, size: parts.Size, cell: int = 32) -> Method:
    """The recipe around a small backbone, every weight moved off its initial value."""
    torch.manual_seed(0)
    encoder = partial(create_encoder, name=name, kind="dense")
    recipe = replace(recipe, encoder=encoder, image_size=size, mask=RandomMask(ratio=0.6, cell=cell))
    return parts.perturb(build_recipe(recipe)).eval()


def translate(values: dict[str, Tensor], names: tuple[tuple[str, str], ...], cell: int) -> dict[str, Tensor]:
    """Tensors under Hugging Face's names (parameters or their gradients) to ours, which predict cells of `cell`."""
    renamed = {}
    for name, value in values.items():
        if re.search(r"[kv]_proj\.(weight|bias)$", name):
            continue
        if re.search(r"q_proj\.(weight|bias)$", name):
            value = torch.cat([values[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if name.startswith("decoder.0"):  # channels of a pixel shuffle: colour, row, column; ours: cells, then colour
            side = int((len(value) / 3) ** 0.5)
            value = value.reshape(3, side // cell, cell, side // cell, cell, -1)
            value = value.permute(1, 3, 2, 4, 0, 5).flatten(0, 4)
            value = value if name.endswith("weight") else value[:, 0]
        if name.endswith("mask_token"):
            value = value.flatten()
        # Hugging Face merges patches at the end of a stage, timm at the start of the next.
        name = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)
        for old, new in names:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


SHARED_NAMES = (
    ("attention.q_proj", "attn.qkv"),
    ("attention.o_proj", "attn.proj"),
    ("attention.relative_position_bias.", "attn."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("decoder.0", "decoders.0.head"),
)
SWIN_NAMES = (
    ("swin.embeddings.patch_embeddings.projection", "encoder.model.patch_embed.stem.proj"),
    ("swin.embeddings.norm", "encoder.model.patch_embed.stem.norm"),
    ("swin.embeddings.mask_token", "encoder.model.patch_embed.mask_token"),
    ("swin.encoder.layers", "encoder.model.layers"),
    ("swin.layernorm", "encoder.model.norm"),
    *SHARED_NAMES,
)
VIT_NAMES = (
    ("vit.embeddings.patch_embeddings.projection", "encoder.model.patch_embed.stem.proj"),
    ("vit.embeddings.mask_token", "encoder.model.patch_embed.mask_token"),
    ("vit.embeddings.cls_token", "encoder.model.cls_token"),
    ("vit.embeddings.position_embeddings", "encoder.model.pos_embed"),
    ("vit.layers", "encoder.model.blocks"),
    ("vit.layernorm", "encoder.model.norm"),
    *SHARED_NAMES,
)


def pixel_loss(reconstruction: Tensor, images: Tensor, mask: Mask) -> Tensor:
    """SimMIM's own formula, on pixels (B, 1, H, W)."""
    hidden = parts.hidden_pixels(mask, images.shape[-2:]).float()
    distance = (images - reconstruction).abs()
    return (distance * hidden).sum() / (hidden.sum() + 1e-5) / 3


def compare(ours: Method, theirs, names, mask: Mask, *, patch: int) -> None:
    """Latents, reconstruction, loss and gradients."""
    parts.perturb(theirs.eval(), seed=3)
    h, w = ours.encoder.image_size
    cell = h // mask.grid[0]
    ours.load_state_dict(translate(theirs.state_dict(), names, min(cell, ours.encoder.cell)), strict=True)
    images = parts.images(len(mask.hidden), (h, w))
    on_patches = mask.hidden.repeat_interleave(cell // patch, 1).repeat_interleave(cell // patch, 2).flatten(1)

    expected = theirs(images, bool_masked_pos=on_patches, output_hidden_states=True)
    output = ours(images, mask)
    (latent,) = ours.encoder(images, mask)
    backbone = getattr(theirs, theirs.base_model_prefix)
    normed = backbone(images, bool_masked_pos=on_patches).last_hidden_state[:, -latent.tokens.shape[1] :]
    torch.testing.assert_close(ours.encoder.norm(latent.tokens), normed, rtol=0, atol=1e-5)
    reconstruction = unpatchify(output.predictions[0], channels=3)
    torch.testing.assert_close(reconstruction, expected.reconstruction, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, pixel_loss(expected.reconstruction, images, mask), rtol=0, atol=1e-5)
    assert expected.loss > 0.1

    output.loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients = translate(gradients, names, min(cell, ours.encoder.cell))
    own = dict(ours.named_parameters())
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        size = gradient.abs().max().item()
        assert size > 0, name
        assert (own[name].grad - gradient).abs().max().item() <= 1e-4 * size + 1e-9, name
        assert own[name].grad.norm().item() == pytest.approx(gradient.norm().item(), rel=1e-4), name


@pytest.mark.parametrize("cell", [32, 16, 64])
def test_swin(cell):
    size = 128
    config = transformers.SwinConfig(
        image_size=size,
        patch_size=4,
        embed_dim=12,
        depths=(2, 2, 2, 1),
        num_heads=(1, 2, 2, 4),
        window_size=4,
        encoder_stride=32,
    )
    mask = parts.hide(2, (size // cell, size // cell), (size // cell) ** 2 * 5 // 8)
    ours = tiny(simmim(), SWIN, (size, size), cell)
    compare(ours, transformers.SwinForMaskedImageModeling(config), SWIN_NAMES, mask, patch=4)


@pytest.mark.parametrize("cell", [32, 16])
def test_plain_vit(cell):
    config = transformers.ViTConfig(
        image_size=64,
        patch_size=16,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=96,
        encoder_stride=16,
        layer_norm_eps=1e-6,
    )
    mask = parts.hide(2, (64 // cell, 64 // cell), (64 // cell) ** 2 * 5 // 8)
    ours = tiny(simmim(), PLAIN, (64, 64), cell)
    compare(ours, transformers.ViTForMaskedImageModeling(config), VIT_NAMES, mask, patch=16)


@pytest.mark.parametrize("cell", [8, 16, 32, 64])
@torch.no_grad()
def test_loss_is_the_pixel_formula_whatever_the_mask_unit(cell):
    """Over Swin's last grid of 32 pixels: no predicted cell is part hidden, part visible."""
    size = (128, 192)
    ours = tiny(simmim(), SWIN, size, cell)
    images = parts.images(2, size)
    mask = ours.mask.sample(torch.arange(2), ours.mask.grid(size, ours.encoder.cell))
    assert mask.grid == (size[0] // cell, size[1] // cell)
    output = ours(images, mask)
    predicted = min(cell, 32)
    assert output.predictions[0].shape == (2, size[0] // predicted, size[1] // predicted, 3 * predicted**2)

    (latent,) = ours.encoder(images, mask)
    maps = ours.encoder.norm(latent.tokens).mT.unflatten(2, latent.grid)
    factor, (head,) = 32 // predicted, ours.decoders
    channels = torch.arange(3 * 32**2).reshape(factor, factor, predicted, predicted, 3)
    order = channels.permute(4, 0, 2, 1, 3).flatten()  # colour, row, column: those of a pixel shuffle
    convolved = F.conv2d(maps, head.head.weight[order, :, None, None], head.head.bias[order])
    reconstruction = F.pixel_shuffle(convolved, 32)
    torch.testing.assert_close(unpatchify(output.predictions[0], 3), reconstruction, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, pixel_loss(reconstruction, images, mask), rtol=0, atol=1e-5)


def slow_vit(model, token: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """One image [C, H, W] with hidden patches bool [h, w] to [h·w, D], as SimMIM's ViT is defined.

    No absolute positions; one table of relative position biases for all blocks, whose last three rows are class token
    to patch, patch to class token, and class token to itself; biases of queries and values only; LayerScale on both
    branches; the final norm; the class token is dropped at the end.
    """
    h, w = hidden.shape
    stem = model.patch_embed.stem.proj
    tokens = [model.cls_token[0, 0]]
    for row in range(h):
        for column in range(w):
            pixels = image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            embedded = (stem.weight * pixels).sum(dim=(1, 2, 3)) + stem.bias
            tokens.append(token if hidden[row, column] else embedded)
    x = torch.stack(tokens)

    table = model.rel_pos_bias.relative_position_bias_table
    count = (2 * h - 1) * (2 * w - 1) + 3
    assert len(table) == count
    bias = torch.empty(len(x), len(x), table.shape[1])
    for query in range(len(x)):
        for key in range(len(x)):
            if query and key:
                down = (query - 1) // w - (key - 1) // w
                across = (query - 1) % w - (key - 1) % w
                bias[query, key] = table[(down + h - 1) * (2 * w - 1) + across + w - 1]
            else:
                bias[query, key] = table[count - 1 if query == key else count - 2 if query else count - 3]

    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        deviation = (x.var(dim=1, correction=0, keepdim=True) + 1e-6).sqrt()
        return (x - x.mean(dim=1, keepdim=True)) / deviation * layer.weight + layer.bias

    dim = x.shape[1]
    for block in model.blocks:
        attention = block.attn
        heads = attention.num_heads
        y = norm(x, block.norm1)
        to_query, to_key, to_value = attention.qkv.weight.split(dim)
        query = y @ to_query.T + attention.q_bias
        key = y @ to_key.T
        value = y @ to_value.T + attention.v_bias
        mixed = []
        for i, part in enumerate(torch.arange(dim).chunk(heads)):
            logits = query[:, part] @ key[:, part].T / (dim / heads) ** 0.5 + bias[:, :, i]
            mixed.append(logits.softmax(dim=1) @ value[:, part])
        x = x + block.gamma_1 * (torch.cat(mixed, dim=1) @ attention.proj.weight.T + attention.proj.bias)
        y = F.gelu(norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        x = x + block.gamma_2 * (y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)
    return norm(x, model.norm)[1:]


@torch.no_grad()
def test_simmims_vit_equals_the_slow_version():
    size = (64, 96)
    ours = tiny(simmim_vit(), VIT.replace("(", "(embed_dim=24, depth=3, num_heads=2, ", 1), size)
    images, mask = parts.images(2, size), parts.hide(2, (2, 3), 4)
    model, head = ours.encoder.model, ours.decoders[0].head
    (latent,) = ours.encoder(images, mask)
    output = ours(images, mask)
    reconstruction = torch.empty_like(images)
    for index in range(2):
        on_patches = mask.hidden[index].repeat_interleave(2, 0).repeat_interleave(2, 1)
        tokens = slow_vit(model, model.patch_embed.mask_token, images[index], on_patches)
        torch.testing.assert_close(ours.encoder.norm(latent.tokens)[index], tokens, rtol=0, atol=1e-5)
        for cell, token in enumerate(tokens):
            row, column = 16 * (cell // 6), 16 * (cell % 6)
            pixels = (head.weight @ token + head.bias).reshape(16, 16, 3).permute(2, 0, 1)
            reconstruction[index, :, row : row + 16, column : column + 16] = pixels
    torch.testing.assert_close(unpatchify(output.predictions[0], 3), reconstruction, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, pixel_loss(reconstruction, images, mask), rtol=0, atol=1e-5)


def test_simmims_vit_has_the_published_parts():
    """At 224 pixels: 732 rows of biases, one table, no absolute positions, LayerScale from 0.1, no biases of keys."""
    encoder = create_encoder(
        VIT.replace("(", "(embed_dim=24, depth=12, num_heads=12, ", 1), image_size=(224, 224), kind="dense"
    )
    model = encoder.model
    assert model.pos_embed is None
    assert [name for name, _ in model.named_parameters() if "position_bias_table" in name] == [
        "rel_pos_bias.relative_position_bias_table"
    ]
    assert model.rel_pos_bias.relative_position_bias_table.shape == (732, 12)
    torch.testing.assert_close(model.blocks[0].gamma_1.data, torch.full((24,), 0.1))
    torch.testing.assert_close(model.blocks[0].gamma_2.data, torch.full((24,), 0.1))
    assert model.blocks[0].attn.qkv.bias is None
    assert isinstance(model.norm, torch.nn.LayerNorm)
    assert [round(block.drop_path1.drop_prob, 4) for block in model.blocks[1:]] == [
        round(0.1 * i / 11, 4) for i in range(1, 12)
    ]
