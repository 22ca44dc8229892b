"""Checkpoints of plain ViTs and of ConvMAE through the importer: the original's loss and gradients come out.

Hugging Face's ViTMAE is an original that can be run. Where none can, one of our own methods is written in the
published layout by the renaming below, which shares nothing with the importer's.
"""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers import parts
from mimkit.compose import compose
from mimkit.convert.importing.importer import import_checkpoint
from mimkit.masks import Mask
from mimkit.method import Method
from mimkit.recipes import build as build_method
from mimkit.settings import ImportOptions, Settings
from mimkit.sources import load_encoder, load_method

LOSS, GRADIENT = 1e-5, 1e-4
SIZE = (64, 64)
TINY = "vit_tiny_patch16_224(embed_dim=48,depth={depth},num_heads=3)"
SMALL = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 4}
transformers = pytest.importorskip("transformers")


def test_huggingface_vitmae(tmp_path):
    """A folder as transformers writes it: names, configuration and all."""
    theirs = vitmae(normalized=True)
    theirs.save_pretrained(tmp_path / "hf")
    report = import_checkpoint(tmp_path / "hf", tmp_path / "ours.safetensors")
    assert report.format == "Hugging Face ViTMAE with its decoder"
    assert not report.encoder_only
    assert not report.dropped
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


def test_huggingface_vitmae_as_it_is_made(tmp_path):
    """With transformers' own initialisation and values: all positions are zero, norms add 1e-12."""
    config = transformers.ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=64,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = transformers.ViTMAEForPreTraining(config).eval()
    assert config.layer_norm_eps == 1e-12
    assert not theirs.decoder.decoder_pos_embed.any()
    theirs.save_pretrained(tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours.safetensors")
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


def test_huggingface_names_of_published_files(tmp_path):
    theirs = vitmae(normalized=False)
    folder = tmp_path / "hf"
    folder.mkdir()
    old = {older(name): value for name, value in theirs.state_dict().items()}
    assert "vit.encoder.layer.2.attention.attention.query.weight" in old
    assert "decoder.decoder_layers.0.attention.output.dense.bias" in old
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    import_checkpoint(folder, tmp_path / "ours.safetensors")
    ours = load_method(tmp_path / "ours.safetensors")
    assert not ours.target.normalized
    same_as_huggingface(theirs, ours)


def test_mae(tmp_path):
    """MAE's own layout, as its script saves it: the model among other things, the arguments as a Namespace."""
    theirs = vitmae(normalized=True)
    args = argparse.Namespace(model="mae_vit_tiny", norm_pix_loss=True, mask_ratio=0.75, input_size=64)
    content = {"model": mae_names(theirs.state_dict()), "epoch": 3, "optimizer": {"state": {}}, "args": args}
    torch.save(content, tmp_path / "checkpoint-3.pth")
    report = import_checkpoint(
        tmp_path / "checkpoint-3.pth", tmp_path / "ours.safetensors", ImportOptions(heads=3, decoder_heads=4)
    )
    assert report.format == "MAE with its decoder"
    assert "CC BY-NC" in report.licence
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


def test_mae_heads_by_the_published_rule(tmp_path):
    """A width of 192 has three heads of 64 channels, a decoder of 64 two of 32; nothing needs saying."""
    theirs = vitmae(normalized=True, dim=192, decoder=64, decoder_heads=2)
    state = {f"module.{name}": value for name, value in mae_names(theirs.state_dict()).items()}
    torch.save({"model": state}, tmp_path / "mae.pth")
    report = import_checkpoint(tmp_path / "mae.pth", tmp_path / "ours.safetensors")
    assert any("visualize" in note for note in report.notes)
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_mmpretrain_mae(tmp_path, prefix):
    theirs = vitmae(normalized=True)
    state = mmpretrain_names(mae_names(theirs.state_dict()), prefix)
    torch.save({"state_dict": state, "meta": {"epoch": 3}}, tmp_path / "mm.pth")
    report = import_checkpoint(
        tmp_path / "mm.pth", tmp_path / "ours.safetensors", ImportOptions(heads=3, decoder_heads=4)
    )
    assert report.recipe == "mae"
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


def test_mmpretrain_pixmim(tmp_path):
    original = ours("pixmim", target="lowfreq-pixels-mmselfsup")
    state = mmpretrain_names(mae_layout(original.state_dict()), "backbone.")
    state["target_generator.low_pass_filter"] = torch.ones(64, 64)
    torch.save({"state_dict": state}, tmp_path / "mm.pth")
    report = import_checkpoint(
        tmp_path / "mm.pth", tmp_path / "ours.safetensors", ImportOptions(heads=3, decoder_heads=4)
    )
    assert report.recipe == "pixmim"
    assert "target_generator.low_pass_filter" in report.dropped
    same(original, load_method(tmp_path / "ours.safetensors"))


def test_mmpretrain_mff(tmp_path):
    original = ours("mff", depth=12)
    state = original.state_dict()
    fusion = {name: state.pop(name) for name in list(state) if name.startswith("readout.")}
    state = mmpretrain_names(mae_layout(state), "backbone.")
    state["backbone.proj_weights"] = fusion.pop("readout.weights")[:, None, None, None]
    state |= {name.replace("readout.projections", "backbone.proj_layers"): value for name, value in fusion.items()}
    assert state["backbone.proj_weights"].shape == (6, 1, 1, 1)
    torch.save({"state_dict": state}, tmp_path / "mm.pth")
    report = import_checkpoint(
        tmp_path / "mm.pth", tmp_path / "ours.safetensors", ImportOptions(heads=3, decoder_heads=4)
    )
    assert report.recipe == "mff"
    same(original, load_method(tmp_path / "ours.safetensors"))


def test_convmae(tmp_path):
    original = ours("convmae", backbone="convmae_base(dims=(8,12,48),depths=(1,2,2),heads=3)")
    state = convmae_names(original)
    torch.save({"model": state}, tmp_path / "convmae.pth")
    report = import_checkpoint(
        tmp_path / "convmae.pth", tmp_path / "ours.safetensors", ImportOptions(heads=3, decoder_heads=4)
    )
    assert report.recipe == "convmae"
    assert not report.dropped
    same(original, load_method(tmp_path / "ours.safetensors"))


def test_convmae_fine_tuned(tmp_path):
    """No projections for the decoder, the norm behind the pooling, a classifier: the encoder is left."""
    original = ours("convmae", backbone="convmae_base(dims=(8,12,48),depths=(1,2,2),heads=3)")
    state = {n: v for n, v in convmae_names(original).items() if not re.match(r"stage|decoder|mask_token", n)}
    state = {re.sub(r"^norm\.", "fc_norm.", name): value for name, value in state.items()}
    state |= {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}
    torch.save({"model": state}, tmp_path / "convmae.pth")
    report = import_checkpoint(tmp_path / "convmae.pth", tmp_path / "ours.safetensors", ImportOptions(heads=3))
    assert report.encoder_only
    assert {"head.weight", "head.bias"} == set(report.dropped)
    same_encoder(original.encoder, tmp_path / "ours.safetensors")


def test_vit_of_huggingface(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        layer_norm_eps=1e-3,
    )
    theirs = parts.perturb(transformers.ViTForImageClassification(config).eval())
    theirs.save_pretrained(tmp_path / "hf")
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    report = import_checkpoint(tmp_path / "hf", tmp_path / "ours.safetensors")
    assert report.encoder_only
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}
    loaded = load_encoder(tmp_path / "ours.safetensors")
    encoder = loaded.encoder
    assert loaded.normalization.mean == loaded.normalization.std == (0.5, 0.5, 0.5)
    images = parts.images(2, SIZE)
    (latent,) = encoder(images)
    expected = theirs.vit(images).last_hidden_state
    torch.testing.assert_close(encoder.norm(latent.tokens), expected[:, 1:], rtol=0, atol=LOSS)
    torch.testing.assert_close(encoder.norm(latent.prefix), expected[:, :1], rtol=0, atol=LOSS)


def test_masked_image_modelling_of_huggingface(tmp_path):
    """ViTForMaskedImageModeling is SimMIM with absolute positions, which no recipe has: the encoder is left."""
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        layer_norm_eps=1e-6,
    )
    theirs = parts.perturb(transformers.ViTForMaskedImageModeling(config).eval())
    theirs.save_pretrained(tmp_path / "hf")
    report = import_checkpoint(tmp_path / "hf", tmp_path / "ours.safetensors")
    assert report.encoder_only
    assert len(report.dropped) == 3
    images = parts.images(2, SIZE)
    features = load_encoder(tmp_path / "ours.safetensors").latent(images).tokens
    torch.testing.assert_close(features, theirs.vit(images).last_hidden_state[:, 1:], rtol=0, atol=LOSS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}),
        ("vit_tiny_patch16_224", {"qkv_bias": False, "mlp_ratio": 2, "class_token": False, "in_chans": 1}),
    ],
)
def test_vit_of_timm(tmp_path, name, options):
    """Learned positions, register tokens without positions, layer scale, and what else plain ViTs may have."""
    vit = parts.timm_vit(name, size=SIZE, **{"depth": 2} | options)
    save_file(vit.state_dict(), tmp_path / "timm.safetensors")
    report = import_checkpoint(tmp_path / "timm.safetensors", tmp_path / "ours.safetensors", ImportOptions(heads=3))
    assert report.encoder_only
    encoder = load_encoder(tmp_path / "ours.safetensors").encoder
    images = parts.images(2, SIZE, channels=options.get("in_chans", 3))
    (latent,) = encoder(images)
    found = encoder.norm(torch.cat([latent.prefix, latent.tokens], dim=1))
    torch.testing.assert_close(found, vit.forward_features(images), rtol=0, atol=LOSS)


def test_fine_tuned_mae(tmp_path):
    """MAE's fine-tuned files: what they have for an encoder, without their classifier."""
    original = ours("mae")
    state = {n: v for n, v in mae_layout(original.state_dict()).items() if not re.match(r"decoder|mask_token", n)}
    state = {re.sub(r"^norm\.", "fc_norm.", name): value for name, value in state.items()}
    state |= {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}
    torch.save({"model": state}, tmp_path / "mae.pth")
    report = import_checkpoint(tmp_path / "mae.pth", tmp_path / "ours.safetensors", ImportOptions(heads=3))
    assert report.encoder_only
    assert any("fc_norm" in note for note in report.notes)
    same_encoder(original.encoder, tmp_path / "ours.safetensors")


def vitmae(*, normalized: bool, dim: int = 48, decoder: int = 32, decoder_heads: int = 4) -> nn.Module:
    """Hugging Face's model, tiny, its weights random, its fixed positions too, the class token's among them."""
    config = transformers.ViTMAEConfig(
        hidden_size=dim,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=4 * dim,
        layer_norm_eps=1e-6,
        image_size=64,
        decoder_hidden_size=decoder,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder,
        norm_pix_loss=normalized,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = parts.perturb(transformers.ViTMAEForPreTraining(config).eval(), seed=3)
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            nn.init.normal_(table)
    return model


def ours(recipe: str, *, depth: int = 3, backbone: str | None = None, **settings) -> Method:
    """One of our methods, tiny, its weights random, its fixed positions too."""
    chosen = Settings(data=Path(), backbone=backbone or TINY.format(depth=depth), image_size=SIZE, **(SMALL | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = parts.perturb(build_method(compose(recipe, chosen)).eval(), seed=5)
        for name, value in method.state_dict().items():
            if name.endswith(("pos_embed", "positions")):
                value += torch.randn_like(value)
    return method


def older(name: str) -> str:
    """Hugging Face's name of today to that of files on its hub."""
    name = re.sub(r"^vit\.layers\.", "vit.encoder.layer.", name)
    for new, old in (
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return name


def mae_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's weights in MAE's layout."""
    renamed = {}
    for name, value in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            value = torch.cat([state[name.replace(".q_", f".{part}_")] for part in "qkv"])
        name = name.removeprefix("vit.embeddings.").removeprefix("vit.").replace("decoder.", "", 1)
        for new, old in (
            ("position_embeddings", "pos_embed"),
            ("patch_embeddings.projection", "patch_embed.proj"),
            ("decoder_layers", "decoder_blocks"),
            ("layers", "blocks"),
            ("attention.q_proj", "attn.qkv"),
            ("attention.o_proj", "attn.proj"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm", "norm"),
        ):
            name = name.replace(new, old)
        renamed[name] = value
    assert {"cls_token", "blocks.0.attn.qkv.weight", "decoder_blocks.1.norm2.bias", "decoder_pred.bias"} <= set(renamed)
    return renamed


def mae_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of our MAE in MAE's layout."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("encoder.vit.").replace("decoders.0.mask_token", "mask_token")
        name = name.replace("decoders.0.positions", "decoder_pos_embed")
        renamed[name.replace("decoders.0.head", "decoder_pred").replace("decoders.0.", "decoder_")] = value
    return renamed


def mmpretrain_names(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """MAE's weights in MMPretrain's layout."""
    renamed = {}
    for name, value in state.items():
        neck = name.startswith("decoder_") or name == "mask_token"
        if name.startswith("decoder_norm"):
            name = name.replace("decoder_norm", "ln1")
        name = re.sub(r"^norm\.", "ln1.", name)
        name = re.sub(r"(blocks\.\d+)\.norm", r"\1.ln", name)
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        name = re.sub(r"^blocks\.", "layers.", name).replace("patch_embed.proj", "patch_embed.projection")
        renamed[("neck." if neck else prefix) + name] = value
    assert {f"{prefix}layers.0.ln1.weight", f"{prefix}ln1.weight", "neck.ln1.weight"} <= renamed.keys()
    return renamed


def convmae_names(method: Method) -> dict[str, Tensor]:
    """The weights of our ConvMAE in the published layout."""
    return mae_layout({name.removeprefix("encoder."): value for name, value in method.state_dict().items()})


def mask_for(batch: int) -> Mask:
    return parts.hide(batch, (4, 4), 12, seed=7)


def same_as_huggingface(theirs: nn.Module, imported: Method) -> None:
    """The same loss, predictions and gradients as Hugging Face's model."""
    images, mask = parts.images(2, SIZE), mask_for(2)
    # Those with the least noise are kept.
    expected = theirs(images, noise=mask.hidden.flatten(1).float() + torch.arange(16) / 100)
    output = imported(images, mask=mask)
    assert torch.equal(expected.mask, mask.hidden.flatten(1).float())
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=LOSS)
    torch.testing.assert_close(output.predictions[0].flatten(1, 2), expected.logits, rtol=0, atol=LOSS)
    torch.testing.assert_close(gradient(imported, output.loss), gradient(theirs, expected.loss), rtol=GRADIENT, atol=0)


def same(original: Method, imported: Method) -> None:
    """The same loss and gradients as our own method that the file was written from."""
    images, mask = parts.images(2, SIZE), mask_for(2)
    found, expected = imported(images, mask=mask), original(images, mask=mask)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=LOSS)
    assert expected.loss > 0.01
    torch.testing.assert_close(gradient(imported, found.loss), gradient(original, expected.loss), rtol=GRADIENT, atol=0)


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """Norm of the loss's gradient by all parameters."""
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return torch.stack([value.square().sum() for value in gradients if value is not None]).sum().sqrt()


def same_encoder(original: nn.Module, path: Path) -> None:
    """The same features of unmasked images."""
    encoder = load_encoder(path).encoder
    images = parts.images(2, SIZE)
    (found,), (expected,) = encoder(images), original(images)
    torch.testing.assert_close(encoder.norm(found.tokens), original.norm(expected.tokens), rtol=0, atol=LOSS)
