"""MAE against Hugging Face's ViTMAEForPreTraining: same weights, same mask, same loss, predictions and gradients."""

import re

import pytest
import torch
from torch import Tensor

from helpers import parts
from mimkit.backbones import create_encoder
from mimkit.masks import Mask
from mimkit.method import Method
from mimkit.targets import Pixels

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
SMALL = {"width": 32, "depth": 2, "heads": 4}


def twin(ours: Method):
    """Hugging Face's model of the same geometry, its weights random, copied into ours."""
    encoder, (decoder,) = ours.encoder, ours.decoders
    config = transformers.ViTMAEConfig(
        hidden_size=encoder.dim,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.vit.blocks[0].attn.num_heads,
        intermediate_size=4 * encoder.dim,
        layer_norm_eps=1e-6,
        image_size=encoder.image_size[0],
        patch_size=encoder.cell,
        num_channels=encoder.channels,
        decoder_hidden_size=decoder.embed.out_features,
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_num_attention_heads=decoder.blocks[0].attn.num_heads,
        decoder_intermediate_size=4 * decoder.embed.out_features,
        mask_ratio=0.75,
        norm_pix_loss=ours.target.normalized,
    )
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    # Made from scratch, transformers 5 leaves both position tables at zero; these calls fill them.
    theirs.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    theirs.vit.embeddings.initialize_weights()
    theirs.decoder.initialize_weights(theirs.vit.embeddings.patch_embeddings.num_patches)
    parts.perturb(theirs, seed=3)
    state = translate(theirs.state_dict())
    table = state["decoders.0.positions"]
    assert torch.equal(table[:, :1], torch.zeros_like(table[:, :1]))  # no position for the class token
    torch.testing.assert_close(decoder.positions, table[:, 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.vit.pos_embed.data, state["encoder.vit.pos_embed"], rtol=0, atol=1e-6)
    ours.load_state_dict(state | {"decoders.0.positions": table[:, 1:]}, strict=True)
    return theirs


def translate(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under Hugging Face's names (parameters or their gradients) to ours."""
    renamed = {}
    for name, value in values.items():
        if name.endswith(("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias")):
            continue
        if re.search(r"q_proj\.(weight|bias)$", name):
            value = torch.cat([values[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        for old, new in (
            ("vit.embeddings.cls_token", "encoder.vit.cls_token"),
            ("vit.embeddings.position_embeddings", "encoder.vit.pos_embed"),
            ("vit.embeddings.patch_embeddings.projection", "encoder.vit.patch_embed.proj"),
            ("vit.layers", "encoder.vit.blocks"),
            ("vit.layernorm", "encoder.vit.norm"),
            ("decoder.decoder_embed", "decoders.0.embed"),
            ("decoder.decoder_pos_embed", "decoders.0.positions"),
            ("decoder.decoder_layers", "decoders.0.blocks"),
            ("decoder.decoder_norm", "decoders.0.norm"),
            ("decoder.decoder_pred", "decoders.0.head"),
            ("decoder.mask_token", "decoders.0.mask_token"),
        ):
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        for old, new in (
            ("attention.q_proj", "attn.qkv"),
            ("attention.o_proj", "attn.proj"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
        ):
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def mask_from_noise(noise: Tensor, side: int) -> Mask:
    """Hugging Face keeps the cells with the smallest noise."""
    kept = int(noise.shape[1] * (1 - 0.75))
    ranks = noise.argsort(dim=1).argsort(dim=1)
    return Mask((ranks >= kept).unflatten(1, (side, side)))


def compare(ours: Method, *, batch: int, gradients: bool = True) -> None:
    theirs = twin(ours)
    side = ours.encoder.image_size[0] // ours.encoder.cell
    images = parts.images(batch, ours.encoder.image_size, ours.encoder.channels)
    noise = torch.rand(batch, side * side, generator=torch.Generator().manual_seed(4))
    mask = mask_from_noise(noise, side)

    with torch.set_grad_enabled(gradients):
        expected = theirs(images, noise=noise)
        output = ours(images, mask)

    assert torch.equal(mask.hidden.flatten(1).float(), expected.mask)
    assert output.predictions[0].shape == (batch, side, side, ours.encoder.cell**2 * ours.encoder.channels)
    torch.testing.assert_close(output.predictions[0].flatten(1, 2), expected.logits, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=TOLERANCE)
    assert expected.loss > 0.1

    if gradients:
        output.loss.backward()
        expected.loss.backward()
        theirs_by_name = translate({name: p.grad for name, p in theirs.named_parameters() if p.requires_grad})
        ours_by_name = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
        assert set(ours_by_name) == set(theirs_by_name)
        for name, gradient in theirs_by_name.items():
            error, size = (ours_by_name[name] - gradient).abs().max().item(), gradient.abs().max().item()
            assert size > 1e-6, f"{name} has no gradient to compare"
            assert error <= TOLERANCE, f"{name}: absolute {error:.1e}"
            assert error <= TOLERANCE * size, f"{name}: relative {error / size:.1e}"


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("side", "cell", "channels"),
    [(64, 16, 3), (48, 8, 4), (112, 14, 1)],
    ids=["16px-rgb", "8px-4channels", "14px-grey"],
)
def test_small(side, cell, channels, normalized):
    encoder = parts.encoder(size=(side, side), patch_size=cell, channels=channels, depth=3, sincos=True)
    compare(parts.method(encoder, target=Pixels(normalized=normalized), **SMALL), batch=3)


@pytest.mark.parametrize("normalized", [True, False])
def test_vit_base_geometry(normalized):
    """ViT-B/16 with MAE's decoder on 224 pixels, 49 of 196 tokens, two blocks each."""
    encoder = parts.encoder("vit_base_patch16_224", size=(224, 224), dim=768, heads=12, depth=2, sincos=True)
    ours = parts.method(encoder, target=Pixels(normalized=normalized), width=512, depth=2, heads=16)
    compare(ours, batch=2, gradients=False)


def test_vit_tiny_in_full():
    """A real model as a user creates it: ViT-Ti/16, 12 blocks, MAE's published decoder of 8 blocks."""
    encoder = create_encoder("vit_tiny_patch16_224", image_size=(224, 224))
    compare(parts.method(encoder, width=512, depth=8, heads=16), batch=1)
