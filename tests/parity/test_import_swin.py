"""Checkpoints of Swin and of ViTs with relative positions through the importer: the original's loss comes out.

Hugging Face's SwinForMaskedImageModeling is SimMIM and can be run; SimMIM on ViT is written out with timm's blocks.
Where no original can be run, one of our own methods is written in the published layout by the renaming below, which
shares nothing with the importer's.
"""

import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from helpers import parts
from mimkit.compose import compose
from mimkit.convert.importing.importer import import_checkpoint
from mimkit.grids import resize_positions
from mimkit.masks import Mask
from mimkit.method import Method
from mimkit.recipes import build as build_method
from mimkit.settings import ImportOptions, Settings
from mimkit.sources import load_encoder, load_method

LOSS, GRADIENT = 1e-5, 1e-4
SIZE = (64, 64)
DIM, DEPTHS, HEADS = 12, (1, 2, 1, 1), (1, 2, 3, 4)
TINY = {"embed_dim": DIM, "depths": DEPTHS, "num_heads": HEADS, "window_size": 2}
transformers = pytest.importorskip("transformers")


def test_huggingface_masked_image_modelling(tmp_path):
    """A folder as transformers writes it."""
    theirs = simmim_of_huggingface()
    theirs.save_pretrained(tmp_path / "hf")
    report = import_checkpoint(tmp_path / "hf", tmp_path / "ours.safetensors")
    assert (report.format, report.recipe) == ("Hugging Face Swin", "simmim")
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


def test_huggingface_names_of_published_files(tmp_path):
    theirs = simmim_of_huggingface()
    state = {}
    for name, value in theirs.state_dict().items():
        for new, old in (
            ("attention.q_proj", "attention.self.query"),
            ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("attention.relative_position_bias.", "attention.self."),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            name = name.replace(new, old)
        state[name] = value
    indices = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    save_file(state | {indices: torch.zeros(4, 4, dtype=torch.int64)}, tmp_path / "hf.safetensors")
    report = import_checkpoint(tmp_path / "hf.safetensors", tmp_path / "ours.safetensors")
    assert set(report.dropped) == {indices}
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


def test_simmim(tmp_path):
    """SimMIM's own layout, with its buffers."""
    theirs = simmim_of_huggingface()
    state = simmim_names(theirs.state_dict())
    state["encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    state["encoder.layers.1.blocks.1.attn_mask"] = torch.zeros(4, 4, 4)
    torch.save({"model": state, "epoch": 1}, tmp_path / "simmim.pth")
    report = import_checkpoint(tmp_path / "simmim.pth", tmp_path / "ours.safetensors")
    assert (report.recipe, len(report.dropped)) == ("simmim", 2)
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


def test_mmpretrain_simmim(tmp_path):
    theirs = simmim_of_huggingface()
    torch.save({"state_dict": mmpretrain_names(simmim_names(theirs.state_dict()))}, tmp_path / "mm.pth")
    report = import_checkpoint(tmp_path / "mm.pth", tmp_path / "ours.safetensors")
    assert report.format == "MMPretrain's SimMIM on Swin"
    same_as_huggingface(theirs, load_method(tmp_path / "ours.safetensors"))


@pytest.mark.parametrize("layout", ["timm", "microsoft"])
def test_encoder_of_swin(tmp_path, layout):
    """A supervised Swin: encoder only, and what it gives is what timm's gives."""
    swin = tiny_swin()
    state = swin.state_dict() | {"head.fc.weight": torch.zeros(10, 96), "head.fc.bias": torch.zeros(10)}
    if layout == "microsoft":
        state = {microsoft(name): value for name, value in state.items()}
    torch.save({"model": state}, tmp_path / "swin.pth")
    report = import_checkpoint(tmp_path / "swin.pth", tmp_path / "ours.safetensors")
    assert report.encoder_only
    images = parts.images(2, SIZE)
    features = load_encoder(tmp_path / "ours.safetensors").latent(images).tokens
    torch.testing.assert_close(features, swin.forward_features(images).flatten(1, 2), rtol=0, atol=LOSS)


def test_encoder_of_huggingface_swin(tmp_path):
    """With an epsilon that only some of its norms have."""
    config = simmim_of_huggingface().config
    config.layer_norm_eps = 1e-3
    theirs = parts.perturb(transformers.SwinModel(config, add_pooling_layer=False).eval())
    theirs.save_pretrained(tmp_path / "hf")
    assert import_checkpoint(tmp_path / "hf", tmp_path / "ours.safetensors").encoder_only
    images = parts.images(2, SIZE)
    features = load_encoder(tmp_path / "ours.safetensors").latent(images).tokens
    torch.testing.assert_close(features, theirs(images).last_hidden_state, rtol=0, atol=LOSS)


def test_greenmim(tmp_path):
    original = ours("greenmim", decoder_width=64, decoder_depth=1, decoder_heads=2)
    torch.save({"model": greenmim_names(original)}, tmp_path / "greenmim.pth")
    report = import_checkpoint(tmp_path / "greenmim.pth", tmp_path / "ours.safetensors")
    assert (report.format, report.recipe) == ("GreenMIM", "greenmim")
    same(original, load_method(tmp_path / "ours.safetensors"), shared=True)


@pytest.mark.parametrize("recipe", ["localmim-swin", "localmim-swin-pixel"])
def test_localmim(tmp_path, recipe):
    original = ours(recipe)
    state = {}
    for name, value in original.state_dict().items():
        name = microsoft(name.replace("encoder.swin.", "encoder."))
        name = name.replace("encoder.norm.", "encoder.norm.3.").replace("readout.norms.", "encoder.norm.")
        name = name.replace("decoders.", "decoder.").replace(".head.", ".pred.")
        state[name.replace(".positions", ".pos_embed")] = value
    torch.save({"model": state}, tmp_path / "localmim.pth")
    report = import_checkpoint(tmp_path / "localmim.pth", tmp_path / "ours.safetensors")
    assert (report.format, report.recipe) == ("LocalMIM on Swin", recipe)
    same(original, load_method(tmp_path / "ours.safetensors"), shared=True)


def test_row_first_merging(tmp_path):
    """Merging trained on row-first neighbours, put in timm's order, gives timm what it was trained to give."""
    original = ours("greenmim")
    state = original.encoder.state_dict(prefix="encoder.")
    state = {microsoft(name.replace("encoder.swin.", "encoder.")): value for name, value in state.items()}
    torch.save({"model": state}, tmp_path / "greenmim.pth")
    import_checkpoint(tmp_path / "greenmim.pth", tmp_path / "kept.safetensors")
    import_checkpoint(
        tmp_path / "greenmim.pth", tmp_path / "column.safetensors", ImportOptions(patch_merge_order="column")
    )
    x = torch.randn(2, 4, 4, DIM, generator=torch.Generator().manual_seed(0))
    neighbours = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]  # row-first
    merging = original.encoder.swin.layers[1].downsample
    expected = merging.reduction(merging.norm(torch.cat(neighbours, dim=3)))
    for name, equal in (("kept", False), ("column", True)):
        found = load_encoder(tmp_path / f"{name}.safetensors").encoder.swin.layers[1].downsample(x)
        assert torch.allclose(found, expected, atol=1e-6) is equal


def test_mmpretrain_merging_is_an_unfold():
    """What the test's own renaming takes for MMPretrain's order is what unfolding an image gives."""
    merging = parts.perturb(PatchMerging(DIM))
    x = torch.randn(2, 4, 4, DIM, generator=torch.Generator().manual_seed(0))
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    theirs = {name: unfolding(value) for name, value in merging.state_dict().items()}
    normed = F.layer_norm(unfolded, (4 * DIM,), theirs["norm.weight"], theirs["norm.bias"], eps=merging.norm.eps)
    found = F.linear(normed, theirs["reduction.weight"]).unflatten(1, (2, 2))
    torch.testing.assert_close(found, merging(x), rtol=0, atol=1e-6)


def test_simmim_on_vit(tmp_path):
    """SimMIM's ViT, written out over timm's blocks: shared relative positions, a mask token, a pixel shuffle."""
    theirs = SimmimViT().eval()
    torch.save({"model": theirs.published_names()}, tmp_path / "simmim.pth")
    report = import_checkpoint(tmp_path / "simmim.pth", tmp_path / "ours.safetensors")
    assert (report.format, report.recipe) == ("SimMIM on ViT", "simmim-vit")
    imported = load_method(tmp_path / "ours.safetensors")
    images, mask = parts.images(2, SIZE), parts.hide(2, (2, 2), 2, seed=7)
    expected, found = theirs(images, mask), imported(images, mask=mask)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=LOSS)
    torch.testing.assert_close(gradient(imported, found.loss), gradient(theirs, expected), rtol=GRADIENT, atol=0)


@pytest.mark.parametrize("shared", [True, False], ids=["pre-trained", "fine-tuned"])
def test_beit(tmp_path, shared):
    model = tiny_beit(shared)
    state = model.state_dict() | {"mask_token": torch.ones(1, 1, 48), "lm_head.weight": torch.zeros(10, 48)}
    torch.save({"model": state}, tmp_path / "beit.pth")
    report = import_checkpoint(
        tmp_path / "beit.pth", tmp_path / "ours.safetensors", ImportOptions(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    )
    assert report.encoder_only
    assert set(report.dropped) == {"lm_head.weight"}
    images = parts.images(2, SIZE)
    loaded = load_encoder(tmp_path / "ours.safetensors")
    assert loaded.normalization.mean == (0.5, 0.5, 0.5)
    torch.testing.assert_close(loaded.latent(images).tokens, model.forward_features(images)[:, 1:], rtol=0, atol=LOSS)
    assert torch.equal(loaded.encoder.model.patch_embed.mask_token, torch.ones(48))


def test_a_larger_window(tmp_path):
    """Windows of 3 in place of 2: images grow to 96 pixels, only tables of relative positions change."""
    state = simmim_names(simmim_of_huggingface().state_dict())
    torch.save({"model": state}, tmp_path / "simmim.pth")
    report = import_checkpoint(tmp_path / "simmim.pth", tmp_path / "ours.safetensors", ImportOptions(window=3))
    assert report.image_size == (96, 96)
    imported = load_method(tmp_path / "ours.safetensors").encoder.model
    attention = imported.layers[1].blocks[0].attn
    assert attention.relative_position_bias_table.shape == (25, 2)
    before = state["encoder.layers.1.blocks.0.attn.qkv.weight"]
    assert torch.equal(attention.qkv.weight, before)


def test_a_larger_window_with_positions_of_a_decoder(tmp_path):
    """Where the image grows with the window, they are resized from the square grid that they are for."""
    original = ours("greenmim", decoder_width=64, decoder_depth=1, decoder_heads=2)
    torch.save({"model": greenmim_names(original)}, tmp_path / "greenmim.pth")
    report = import_checkpoint(tmp_path / "greenmim.pth", tmp_path / "ours.safetensors", ImportOptions(window=3))
    assert report.image_size == (96, 96)
    (decoder,) = load_method(tmp_path / "ours.safetensors").decoders
    assert torch.equal(decoder.positions, resize_positions(original.decoders[0].positions, (2, 2), (3, 3)))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_larger_images_for_beit(tmp_path, shared):
    """The table grows from 4 x 4 patches to 6 x 6 and keeps the class token's three rows."""
    torch.save({"model": tiny_beit(shared).state_dict()}, tmp_path / "beit.pth")
    import_checkpoint(tmp_path / "beit.pth", tmp_path / "ours.safetensors", ImportOptions(image_size=(96,)))
    encoder = load_encoder(tmp_path / "ours.safetensors").encoder
    tables = [value for name, value in encoder.state_dict().items() if name.endswith("_bias_table")]
    assert [table.shape for table in tables] == [(124, 3)] * (1 if shared else 2)
    before = [value for name, value in tiny_beit(shared).state_dict().items() if name.endswith("_bias_table")]
    assert all(torch.equal(new[-3:], old[-3:]) for new, old in zip(tables, before, strict=True))
    (latent,) = encoder(parts.images(2, (96, 96)))
    assert latent.tokens.isfinite().all()


def simmim_of_huggingface() -> nn.Module:
    """Hugging Face's model, tiny, its weights random."""
    config = transformers.SwinConfig(
        image_size=64, embed_dim=DIM, depths=DEPTHS, num_heads=HEADS, window_size=2, encoder_stride=32, drop_path_rate=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return parts.perturb(transformers.SwinForMaskedImageModeling(config).eval(), seed=3)


def tiny_swin() -> nn.Module:
    options = {"img_size": SIZE, "num_classes": 0, "global_pool": ""}
    return parts.perturb(timm.create_model("swin_base_patch4_window7_224", **TINY, **options).eval())


def tiny_beit(shared: bool) -> nn.Module:
    options = {"img_size": SIZE, "num_classes": 0, "global_pool": "", "embed_dim": 48, "depth": 2, "num_heads": 3}
    options |= {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": not shared, "use_abs_pos_emb": False}
    return parts.perturb(timm.create_model("beit_base_patch16_224", init_values=0.1, **options).eval())


class SimmimViT(nn.Module):
    """SimMIM on a ViT, as its paper and code have it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny_beit(shared=True)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(1)))
        self.decoder = parts.perturb(nn.Sequential(nn.Conv2d(48, 16 * 16 * 3, 1), nn.PixelShuffle(16)))

    def forward(self, images: Tensor, mask: Mask) -> Tensor:
        model, hidden = self.encoder, mask.hidden
        tokens = model.patch_embed(images)
        here = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)[:, :, None].float()
        tokens = tokens * (1 - here) + self.mask_token * here
        x = torch.cat([model.cls_token.expand(len(images), -1, -1), tokens], dim=1)
        bias = model.rel_pos_bias()
        for block in model.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        x = model.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        pixels = parts.hidden_pixels(mask, SIZE).float()
        return ((self.decoder(x) - images).abs() * pixels).sum() / (pixels.sum() + 1e-5) / 3

    def published_names(self) -> dict[str, Tensor]:
        state = {name: value for name, value in self.state_dict().items() if name.startswith(("encoder.", "decoder."))}
        return state | {"encoder.mask_token": self.mask_token.detach()}


def ours(recipe: str, **settings) -> Method:
    """One of our methods on a tiny Swin, its weights random, its decoders' fixed positions too."""
    words = ",".join(f"{key}={value!r}" for key, value in TINY.items())
    backbone = f"swin_base_patch4_window7_224({words})"
    chosen = Settings(data=Path(), backbone=backbone, image_size=SIZE, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = parts.perturb(build_method(compose(recipe, chosen)).eval(), seed=5)
        for decoder in method.decoders:
            decoder.positions += torch.randn_like(decoder.positions)
    return method


def simmim_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's weights in SimMIM's layout."""
    renamed = {}
    for name, value in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            value = torch.cat([state[name.replace(".q_", f".{part}_")] for part in "qkv"])
        name = name.removeprefix("swin.").removeprefix("embeddings.").removeprefix("encoder.")
        for new, old in (
            ("patch_embeddings.projection", "patch_embed.proj"),
            ("attention.q_proj", "attn.qkv"),
            ("attention.o_proj", "attn.proj"),
            ("attention.relative_position_bias.", "attn."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm", "norm"),
        ):
            name = name.replace(new, old)
        if name.startswith("norm.") and len(value) == DIM:
            name = f"patch_embed.{name}"
        renamed[name if name.startswith("decoder") else f"encoder.{name}"] = value
    assert {"encoder.mask_token", "encoder.norm.bias", "encoder.patch_embed.norm.bias", "decoder.0.bias"} <= set(
        renamed
    )
    return renamed


def greenmim_names(method: Method) -> dict[str, Tensor]:
    """The weights of our GreenMIM in the published layout."""
    state = {}
    for name, value in method.state_dict().items():
        name = microsoft(name.replace("encoder.swin.", "encoder."))
        name = name.replace("decoders.0.mask_token", "mask_token").replace("decoders.0.head", "decoder_pred")
        state[name.replace("decoders.0.positions", "decoder_pos_embed").replace("decoders.0.", "decoder_")] = value
    return state


def mmpretrain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SimMIM's weights in MMPretrain's layout."""
    renamed = {}
    for name, value in state.items():
        value = unfolding(value) if ".downsample." in name else value
        name = name.replace("encoder.layers", "backbone.stages").replace(".attn.", ".attn.w_msa.")
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        name = name.replace("encoder.norm", "backbone.norm3").replace("patch_embed.proj", "patch_embed.projection")
        name = name.replace("encoder.", "backbone.") if name.startswith("encoder.") else name
        renamed[f"neck.{name}" if name.startswith("decoder") else name] = value
    return renamed


def unfolding(value: Tensor) -> Tensor:
    """Inputs [..., 4·C] of a patch merging from timm's order to that of an unfolded image."""
    dim = value.shape[-1] // 4
    old = torch.empty(4 * dim, dtype=torch.int64)
    for channel in range(dim):
        for row in range(2):
            for column in range(2):
                old[4 * channel + 2 * row + column] = (2 * column + row) * dim + channel
    return value[..., old] if value.shape[-1] == 4 * dim else value


def microsoft(name: str) -> str:
    """A name with merging at the end of a stage, not at the start of the next."""
    return re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)


def same_as_huggingface(theirs: nn.Module, imported: Method) -> None:
    """The same loss, pictures and gradients as Hugging Face's model."""
    images, mask = parts.images(2, SIZE), parts.hide(2, (2, 2), 2, seed=7)
    at = mask.hidden.repeat_interleave(8, 1).repeat_interleave(8, 2).flatten(1)
    expected = theirs(images, bool_masked_pos=at)
    output = imported(images, mask=mask)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=LOSS)
    picture = imported.target.picture(output.predictions[0], images)
    torch.testing.assert_close(picture, expected.reconstruction, rtol=0, atol=LOSS)
    torch.testing.assert_close(gradient(imported, output.loss), gradient(theirs, expected.loss), rtol=GRADIENT, atol=0)


def same(original: Method, imported: Method, shared: bool) -> None:
    """The same loss and gradients as our own method that the file was written from."""
    images, mask = parts.images(2, SIZE), Mask(torch.tensor([[[True, False], [True, False]]] * 2), shared=shared)
    found, expected = imported(images, mask=mask), original(images, mask=mask)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=LOSS)
    assert expected.loss > 0.01
    torch.testing.assert_close(gradient(imported, found.loss), gradient(original, expected.loss), rtol=GRADIENT, atol=0)


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """Norm of the loss's gradient by all parameters."""
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return torch.stack([value.square().sum() for value in gradients if value is not None]).sum().sqrt()
