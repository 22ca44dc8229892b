"""Exports from Python: what others load gives the features that mimkit gives, and model cards are true."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import mimkit
from helpers import parts
from helpers.sources import CONVMAE, SWIN, VIT, write_source
from mimkit import convert
from mimkit.convert import export_huggingface, export_onnx, export_safetensors, export_timm
from mimkit.pretraining import pretrain
from mimkit.records import as_text
from mimkit.settings import Settings

TINY = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
CONVNEXT = "convnext_atto(depths=(1,1,1,1),dims=(8,16,24,32))"


def feature(source, images: Tensor) -> Tensor:
    """What mimkit reads out of a source."""
    encoder = mimkit.load_encoder(source)
    with torch.inference_mode():
        return encoder(images)


def snippet(card: Path) -> str:
    """The Python on a model card."""
    return re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)[1]


def tables(card: Path) -> dict[str, str]:
    """Names and values in a card's tables."""
    return dict(re.findall(r"^\| (\w[\w ]*) \| (.*) \|$", card.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_photos):
    """A finished run of a few steps on 24 photographs."""
    photos = make_photos(tmp_path_factory.mktemp("data") / "secret", count=24)
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = Settings(
        data=photos, backbone=VIT, image_size=(32,), batch_size=8, epochs=1, warmup_epochs=0, held_out=0.25, **TINY
    )
    assert pretrain("mae", settings, out, machine=mimkit.Machine(workers=0))
    return out


TIMM = {
    "visible Swin": ("greenmim", {"backbone": SWIN, "mask_cell": 32}),
    "dense Swin": ("simmim", {"backbone": SWIN, "mask_cell": 32}),
    "ViT": ("mae", {"backbone": VIT, **TINY}),
    "dense ViT": ("simmim", {"backbone": VIT}),
    "BEiT": ("simmim-vit", {"backbone": "beit_base_patch16_224(embed_dim=48,depth=2,num_heads=4,init_values=0.1)"}),
    "ConvNeXt": ("simmim", {"backbone": CONVNEXT}),
    "Hiera": ("simmim", {"backbone": "hiera_tiny_224(embed_dim=16,num_heads=1,stages=(1,1,2,1))"}),
    "ResNet": ("simmim", {"backbone": "test_resnet"}),
    "EfficientNet": ("simmim", {"backbone": "test_efficientnet"}),  # timm's features go on behind the last stage
}


@pytest.mark.parametrize(("recipe", "settings"), TIMM.values(), ids=TIMM)
def test_timm_takes_the_encoder_strictly(tmp_path, recipe, settings):
    kind = {"encoder": "dense"} if recipe.startswith("simmim") else {}
    method = write_source(tmp_path / "method.safetensors", recipe, image_size=(64, 64), **settings, **kind)
    arguments = export_timm(tmp_path / "method.safetensors", tmp_path / "encoder.safetensors")
    with safe_open(tmp_path / "encoder.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["timm.create_model"]) == arguments
    model = timm.create_model(**arguments).eval()
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    images = parts.images(2, (64, 64))
    with torch.inference_mode():
        theirs = eval(metadata["readout"], {"model": model, "images": images})
    ours = feature(tmp_path / "method.safetensors", images)
    assert ours.std() > 0.001
    if type(method.encoder).__name__ == "VisibleViT":  # which embeds patches by a matrix product
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    else:
        assert torch.equal(theirs, ours)


def test_timm_has_no_convmae(tmp_path):
    with pytest.raises(ValueError, match="timm has no model for convmae_base"):
        export_timm(f"random:{CONVMAE}", tmp_path / "encoder.safetensors", image_size=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backbone", "size"),
    [(CONVNEXT, (64, 64)), (CONVMAE, (32, 64)), (SWIN.replace("(2,2)", "(2,1)"), (64, 64))],
    ids=["ConvNeXt", "ConvMAE", "Swin"],
)
def test_onnx_gives_the_same_for_any_batch(tmp_path, capfd, backbone, size):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    recipe, settings = {
        CONVMAE: ("convmae", TINY | {"mask_cell": 16}),
        CONVNEXT: ("simmim", {"encoder": "dense"}),
    }.get(backbone, ("greenmim", TINY | {"mask_cell": 16}))
    source = tmp_path / "method.safetensors"
    write_source(source, recipe, backbone=backbone, image_size=size, **settings)
    export_onnx(source, tmp_path / "encoder.onnx")
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for count in (1, 2, 5):
        images = parts.images(count, size, seed=9)
        features, tokens = session.run(["features", "tokens"], {"images": images.numpy()})
        ours = feature(source, images)
        assert ours.std() > 0.01
        torch.testing.assert_close(torch.from_numpy(features), ours, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(tokens.mean(axis=1)), ours, rtol=0, atol=1e-4)
    (taken,), said = session.get_inputs(), session.get_modelmeta().custom_metadata_map
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(float)", ["batch", 3, *size])
    assert json.loads(said["normalization"])["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_onnx_that_disagrees_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("mimkit.convert.exporting.onnx.TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"onnxruntime's features of .* away from torch's"):
        export_onnx(f"random:{VIT.replace('depth=2', 'depth=1')}", tmp_path / "encoder.onnx", image_size=(32, 32))
    assert not list(tmp_path.iterdir())


def test_onnx_names_the_packages_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("mimkit.convert.exporting.onnx.NEEDED", ("onnxruntime_of_old",))
    with pytest.raises(ValueError, match=r"onnxruntime_of_old: pip install 'mimkit\[onnx\]'"):
        export_onnx(f"random:{VIT}", tmp_path / "encoder.onnx", image_size=(32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["timm", "safetensors", "hf", "hf encoder", "onnx"])
def test_cards_say_what_is_true(run, tmp_path, monkeypatch, format):
    """Their Python runs as it stands and gives our features; their facts are the run's."""
    if format == "timm":
        export_timm(run, tmp_path / "mine.safetensors")
    elif format == "safetensors":
        export_safetensors(run, tmp_path / "mine.safetensors")
    elif format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        export_onnx(run, tmp_path / "mine.onnx")
    else:
        pytest.importorskip("transformers")
        export_huggingface(run, tmp_path / "mine", encoder_only=format == "hf encoder")
    card = tmp_path / "mine" / "README.md" if "hf" in format else tmp_path / "mine.md"
    for name in ("cat", "dog"):
        Image.new("RGB", (40, 50), (124, 116, 104)).save(tmp_path / f"{name}.jpg")  # ImageNet's mean, about zero
    monkeypatch.chdir(tmp_path)
    values: dict = {}
    exec(snippet(card), values)
    features = torch.as_tensor(values["features"]).detach()
    assert features.shape == (2, 48)
    expected = feature(run, values["images"]) if format == "safetensors" else feature(run, torch.zeros(2, 3, 32, 32))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)

    text, facts = card.read_text(), json.loads((run / "run.json").read_text())
    data = facts["data"]
    assert data["train_images"] + data["held_out_images"] == 24
    counts = f"{data['train_images']} images without their labels ({data['held_out_images']} held out)"
    assert f"Recipe `mae` on {counts}, {facts['steps']} steps." in text
    assert as_text(facts["training"]) in text
    assert all(f"{name} {number}" in text for name, number in facts["versions"].items())
    assert "(0.485, 0.456, 0.406)" in text
    assert "Weights you trained are yours" in text
    rows = tables(card)
    assert rows["backbone"] == VIT
    assert rows["target"] == f"`{as_text(facts['parts']['target'])}`"
    assert rows["parameters"] == f"{facts['parameters']['encoder']:,}"
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_a_file_remembers_how_it_was_trained(run, tmp_path):
    export_safetensors(run, tmp_path / "first.safetensors")
    export_safetensors(tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    export_timm(tmp_path / "second.safetensors", tmp_path / "third.safetensors")
    first, second, third = (tmp_path / f"{name}.md" for name in ("first", "second", "third"))
    assert second.read_text() == first.read_text().replace("first", "second")
    training = re.compile(r"## Training\n.*", re.DOTALL)
    assert training.search(third.read_text())[0] == training.search(first.read_text())[0]
    assert b"secret" not in (tmp_path / "second.safetensors").read_bytes()
    images = parts.images(2, (32, 32))
    assert torch.equal(feature(run, images), feature(tmp_path / "second.safetensors", images))


@pytest.mark.parametrize(
    ("imported", "licence"),
    [({"licence": "Weights of theirs: CC BY-NC 4.0"}, "CC BY-NC 4.0"), ({}, "keep the licence they were published")],
)
def test_imported_weights_keep_their_licence(tmp_path, imported, licence):
    metadata = {"mimkit.imported": json.dumps({"from": "MAE with its decoder", **imported})}
    source = tmp_path / "theirs.safetensors"
    write_source(source, "mae", metadata=metadata, backbone=VIT, image_size=(32, 32), **TINY)
    export_safetensors(source, tmp_path / "copy.safetensors")
    export_timm(tmp_path / "copy.safetensors", tmp_path / "encoder.safetensors")
    for name in ("copy", "encoder"):
        text = (tmp_path / f"{name}.md").read_text()
        assert licence in text
        assert "imported from: MAE with its decoder" in text
        assert "Weights you trained" not in text


def test_an_imported_encoder_is_not_said_to_be_of_a_method(tmp_path):
    metadata = {"mimkit.imported": json.dumps({"from": "plain ViT"})}
    source = tmp_path / "theirs.safetensors"
    size = {"backbone": VIT, "image_size": (32, 32)}
    write_source(source, "mae", more={"encoder_only": True}, metadata=metadata, **size, **TINY)
    export_safetensors(source, tmp_path / "copy.safetensors")
    assert export_huggingface(tmp_path / "copy.safetensors", tmp_path / "hf") == ("ViTModel", "")
    for card in (tmp_path / "copy.md", tmp_path / "hf" / "README.md"):
        assert set(tables(card)) == {"backbone", "parameters", "features"}
        assert "imported from: plain ViT" in card.read_text()


def test_a_recipe_from_a_file_keeps_its_folder_to_itself(tmp_path):
    recipes = tmp_path / "mine.py"
    recipes.write_text("from mimkit.recipes import mae\n\n\ndef recipe():\n    return mae()\n")
    source = tmp_path / "method.safetensors"
    write_source(source, f"{recipes}:recipe", backbone=VIT, image_size=(32, 32), **TINY)
    export_safetensors(source, tmp_path / "copy.safetensors", recipe=f"{recipes}:recipe")
    assert str(tmp_path).encode() not in (tmp_path / "copy.safetensors").read_bytes()
    assert 'load_encoder("copy.safetensors", recipe="mine.py:recipe")' in (tmp_path / "copy.md").read_text()
    assert mimkit.load_method(tmp_path / "copy.safetensors", recipe=f"{recipes}:recipe").encoder.dim == 48


def test_notes_of_the_users_are_kept(tmp_path):
    (tmp_path / "mine.md").write_text("my notes")
    for name in ("mine.safetensors", "mine.md"):
        with pytest.raises(ValueError, match=r"mine\.md"):
            export_timm(f"random:{VIT}", tmp_path / name, image_size=(32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.md"]
    assert (tmp_path / "mine.md").read_text() == "my notes"


def test_extras_are_imported_where_they_are_used():
    for path in Path(convert.__file__).parent.glob("*.py"):
        assert not re.search(r"^(?:from|import) (?:transformers|onnx)", path.read_text(), re.MULTILINE), path
