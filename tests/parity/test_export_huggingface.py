"""What `mimkit export --format hf` writes, loaded by transformers: same loss, predictions and features."""

import json

import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers import parts
from helpers.sources import CONVMAE, SWIN, VIT, write_source
from mimkit.convert import export_huggingface
from mimkit.convert.exporting.transformers_model import ratio_that_hides
from mimkit.convert.importing.importer import import_checkpoint
from mimkit.image_encoder import ImageEncoder
from mimkit.masks import Mask
from mimkit.sources import load_encoder

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
SMALL = {"backbone": VIT, "image_size": (64, 64), "decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2}


def load(kind, folder, **options):
    """transformers' model, all of whose weights are in the folder, and none over."""
    model, said = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    assert not {name: value for name, value in said.items() if value}
    return model.eval()


def features(method, images: Tensor) -> tuple[Tensor, Tensor]:
    """Ours: tokens behind the final norm, and their mean."""
    encoder = ImageEncoder.of(method).eval()
    with torch.inference_mode():
        return encoder.latent(images).tokens, encoder(images)


def near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def mask_from_noise(noise: Tensor, hidden: int, side: int) -> Mask:
    """Hugging Face hides the cells with the largest noise."""
    ranks = noise.argsort(dim=1).argsort(dim=1)
    return Mask((ranks >= noise.shape[1] - hidden).unflatten(1, (side, side)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": "raw-pixels", "channels": 1},
        {"mask_ratio": 0.9, "image_size": (160, 160)},  # 100 · (1 - 0.9) is below 10 in binary
        {"backbone": VIT.replace(")", ",no_embed_class=True,mlp_ratio=2.0,patch_size=8)"), "image_size": (48, 48)},
    ],
    ids=["mae", "raw-grey", "rounding", "other-vit"],
)
def test_whole_mae(tmp_path, settings):
    method = write_source(tmp_path / "mae.safetensors", "mae", **(SMALL | settings))
    assert export_huggingface(tmp_path / "mae.safetensors", tmp_path / "hf") == ("ViTMAEForPreTraining", "")
    theirs = load("ViTMAEForPreTraining", tmp_path / "hf")

    side = method.encoder.image_size[0] // method.encoder.cell
    images = parts.images(3, method.encoder.image_size, method.encoder.channels)
    noise = torch.rand(3, side * side, generator=torch.Generator().manual_seed(1))
    drawn = method.mask.sample(torch.arange(3), method.mask.grid(method.encoder.image_size, method.encoder.cell))
    mask = mask_from_noise(noise, drawn.count, side)
    with torch.inference_mode():
        ours, expected = method(images, mask), theirs(images, noise=noise)
    assert torch.equal(mask.hidden.flatten(1).float(), expected.mask)
    near(ours.predictions[0].flatten(1, 2), expected.logits)
    near(torch.stack([ours.loss, ours.loss * 2]), torch.stack([expected.loss, expected.loss * 2]))

    _, mean = features(method, images)
    whole, _ = transformers.ViTMAEModel.from_pretrained(tmp_path / "hf", mask_ratio=0.0, output_loading_info=True)
    with torch.inference_mode():
        near(mean, whole.eval()(images).last_hidden_state[:, 1:].mean(dim=1))


def test_every_ratio_hides_as_many():
    for cells in (49, 100, 196, 784):
        for hidden in range(1, cells):
            ratio = ratio_that_hides(hidden, cells, near=hidden / cells)
            assert cells - int(cells * (1 - ratio)) == hidden
            assert ratio == pytest.approx(hidden / cells, abs=1 / cells)


@pytest.mark.parametrize(
    ("recipe", "settings", "reason"),
    [
        ("mff", {}, "readout is Fused"),
        ("pixmim", {}, "target is LowFreqPixels"),
        ("mae", {"image_size": (32, 64)}, "not square"),
        ("mae", {"mask_cell": 32}, "masks"),
        ("mae", {"mask": "block"}, "masks"),
        ("crossmae", {"decoder_heads": 2}, "CrossDecoder"),
        ("mae", {"backbone": VIT.replace(")", ",qkv_bias=False)")}, "bias"),
        ("mae", {"backbone": VIT.replace(")", ",pos_embed='none')")}, None),
        ("simmim", {"decoder_width": None, "decoder_depth": None, "decoder_heads": None}, "visible tokens"),
    ],
)
def test_encoder_of_a_vit(tmp_path, recipe, settings, reason):
    settings = SMALL | settings
    if recipe == "simmim":
        settings |= {"encoder": "dense"}
    method = write_source(tmp_path / "method.safetensors", recipe, **settings)
    kind, why = export_huggingface(tmp_path / "method.safetensors", tmp_path / "hf", encoder_only=reason is None)
    assert kind == "ViTModel"
    assert why == "" if reason is None else reason in why
    theirs = load("ViTModel", tmp_path / "hf", add_pooling_layer=False)
    images = parts.images(2, method.encoder.image_size)
    with torch.inference_mode():
        near(features(method, images)[0], theirs(images).last_hidden_state[:, 1:])
    assert not theirs.training
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False)
    assert type(loaded) is transformers.ViTModel


@pytest.mark.parametrize(
    ("kind", "backbone", "size"),
    [
        ("visible", SWIN, (64, 64)),
        ("dense", SWIN, (64, 64)),
        ("dense", SWIN.replace("window_size=4", "window_size=2"), (64, 128)),
        ("visible", SWIN.replace("(2,2),", "(1,3,2),").replace("(1,2)", "(1,2,4)"), (128, 192)),
        ("dense", SWIN.replace("window_size", "qkv_bias=False,mlp_ratio=2.0,window_size"), (64, 64)),
    ],
    ids=["visible", "dense", "wide", "three stages", "no bias"],
)
def test_swin(tmp_path, kind, backbone, size):
    settings = {"backbone": backbone, "encoder": kind, "image_size": size, "mask_cell": 32}
    recipe = "greenmim" if kind == "visible" else "simmim"
    method = write_source(tmp_path / "swin.safetensors", recipe, **settings)
    assert export_huggingface(tmp_path / "swin.safetensors", tmp_path / "hf")[0] == "SwinModel"
    theirs = load("SwinModel", tmp_path / "hf")
    images = parts.images(2, size)
    tokens, mean = features(method, images)
    with torch.inference_mode():
        output = theirs(images)
    near(tokens, output.last_hidden_state)
    near(mean, output.pooler_output)


UNLIKE = {
    "registers": (VIT.replace(")", ",reg_tokens=4)"), "4"),
    "no class token": (VIT.replace(")", ",class_token=False)"), "class token"),
    "layer scale": (VIT.replace(")", ",init_values=0.1)"), "LayerScale"),
    "normed queries": (VIT.replace(")", ",qk_norm=True)"), "queries"),
    "norm before": (VIT.replace(")", ",pre_norm=True)"), "before"),
    "no final norm": (VIT.replace(")", ",final_norm=False)"), "no final norm"),
    "rms norm": (VIT.replace(")", ",norm_layer='rmsnorm')"), "RmsNorm"),
    "other activation": (VIT.replace(")", ",act_layer='silu')"), "SiLU"),
    "tanh gelu": (VIT.replace(")", ",act_layer='gelu_tanh')"), "GELU"),
    "normed attention": (VIT.replace(")", ",scale_attn_norm=True)"), "attention"),
    "normed mlp": (VIT.replace(")", ",scale_mlp_norm=True)"), "MLPs"),
    "swiglu": ("vit_giant_patch14_reg4_dinov2(embed_dim=48,depth=2,num_heads=3,reg_tokens=0,init_values=0.0)", "Glu"),
    "parallel blocks": ("vit_pwee_patch16_reg1_gap_256(embed_dim=48,depth=2,num_heads=3)", "vit_pwee"),
    "convmae": (CONVMAE, "ConvMAE"),
    "convnext": ("convnext_atto(depths=(1,1,1,1),dims=(8,8,8,8))", "ConvNeXt"),
    "windows that do not fit": (SWIN.replace("window_size=4", "window_size=3"), "3 tokens do not divide"),
    "windows that move one way": (SWIN, "move by (0, 2)"),
    "windows that shrink": (SWIN.replace("window_size=4", "window_size=16"), "(16, 16)"),
}


@pytest.mark.parametrize(("backbone", "words"), UNLIKE.values(), ids=UNLIKE)
def test_what_transformers_lacks_is_named(tmp_path, backbone, words):
    size = (56, 56) if "patch14" in backbone else (32, 64) if words == "move by (0, 2)" else (64, 64)
    with pytest.raises(ValueError, match="transformers has no class") as caught:
        export_huggingface(f"random:{backbone}", tmp_path / "hf", image_size=size)
    assert words in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_images_are_prepared_as_ours(tmp_path):
    method = write_source(tmp_path / "mae.safetensors", "mae", **SMALL)
    export_huggingface(tmp_path / "mae.safetensors", tmp_path / "hf")
    coarse = torch.rand(1, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(100, 140), mode="bicubic").clamp(0, 1)
    picture = (smooth[0] * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / "picture.png")
    encoder = ImageEncoder.of(method)
    ours = method.normalization.from_bytes(encoder.read([tmp_path / "picture.png"]))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    theirs = processor(Image.open(tmp_path / "picture.png"), return_tensors="pt")["pixel_values"]
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() < 0.05  # a few steps of 255 between two ways to resize


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("mae", SMALL), ("simmim", {"backbone": SWIN, "image_size": (64, 64)})],
    ids=["ViTMAE", "Swin"],
)
def test_what_goes_out_comes_back(tmp_path, recipe, settings):
    method = write_source(tmp_path / "method.safetensors", recipe, **settings)
    export_huggingface(tmp_path / "method.safetensors", tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "back.safetensors")
    images = parts.images(2, method.encoder.image_size)
    assert torch.equal(load_encoder(tmp_path / "back.safetensors")(images), features(method, images)[1])


def test_a_folder_in_use_is_left_alone(tmp_path):
    write_source(tmp_path / "mae.safetensors", "mae", **SMALL)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export_huggingface(tmp_path / "mae.safetensors", tmp_path / "hf")
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["notes.txt"]


def test_the_folder_says_nothing_of_whose_it_was(tmp_path):
    write_source(tmp_path / "mae.safetensors", "mae", **SMALL)
    export_huggingface(tmp_path / "mae.safetensors", tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    for path in (tmp_path / "hf").iterdir():
        assert b"somebody" not in path.read_bytes()
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["ViTMAEForPreTraining"]
