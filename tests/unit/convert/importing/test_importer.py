"""What the importer makes of a file, and what it says when it does not fit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import parts
from mimkit.convert import export_timm
from mimkit.convert.importing.importer import import_checkpoint
from mimkit.grids import resize_positions, sincos_positions
from mimkit.settings import ImportOptions
from mimkit.sources import load_encoder, load_method

SIZE = (64, 64)


@pytest.fixture
def mae(tmp_path):
    """Writes a small MAE in its published layout, changed as told, and gives the path."""

    def make(*, without: str = "nothing", more=(), sincos: bool = True):
        method = parts.method(parts.encoder(size=SIZE, sincos=sincos), width=32, depth=1, heads=4)
        state = {name.removeprefix("encoder.vit."): value for name, value in method.state_dict().items()}
        state = {name.replace("decoders.0.head", "decoder_pred"): value for name, value in state.items()}
        state = {name.replace("decoders.0.mask", "mask"): value for name, value in state.items()}
        state = {name.replace("decoders.0.", "decoder_"): value for name, value in state.items()}
        state["decoder_pos_embed"] = torch.cat([torch.zeros(1, 1, 32), state.pop("decoder_positions")], dim=1)
        state = {name: value for name, value in state.items() if not name.startswith(without)}
        torch.save({"model": state | dict(more)}, tmp_path / "mae.pth")
        return tmp_path / "mae.pth"

    return make


HEADS = {"heads": 3, "decoder_heads": 4}


def test_strict_names_what_does_not_fit(mae, tmp_path):
    more = {f"extra.{i}": torch.zeros(1) for i in range(7)}
    path = mae(without="blocks.1.mlp", more=more)
    with pytest.raises(ValueError, match="taken for MAE with its decoder") as refused:
        import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(**HEADS))
    assert "4 weights are missing (encoder.vit.blocks.1.mlp.fc1.bias, " in str(refused.value)
    assert "7 weights are left over (extra.0, extra.1, extra.2, extra.3, extra.4 ...)" in str(refused.value)
    assert not (tmp_path / "out.safetensors").exists()

    report = import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(strict=False, **HEADS))
    assert len(report.missing) == 4
    assert report.left_over == tuple(more)
    assert not report.encoder_only
    load_method(tmp_path / "out.safetensors")
    assert any("4 missing" in line for line in report.lines())


def test_an_incomplete_decoder_is_left_out(mae, tmp_path):
    path = mae(without="decoder_norm")
    report = import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(strict=False, **HEADS))
    assert report.encoder_only
    load_encoder(tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="encoder only"):
        load_method(tmp_path / "out.safetensors")


def test_a_file_that_lacks_what_shows_its_shape(mae, tmp_path):
    with pytest.raises(ValueError, match=r"taken for MAE with its decoder, lacks blocks\.0\.mlp\.fc1\.weight"):
        import_checkpoint(mae(without="blocks.0.mlp"), tmp_path / "out.safetensors", ImportOptions(**HEADS))


def test_other_shapes(mae, tmp_path):
    path = mae(more={"norm.weight": torch.ones(47)})
    with pytest.raises(ValueError, match=r"encoder\.vit\.norm\.weight \(47,\), not \(48,\)"):
        import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(**HEADS))
    report = import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(strict=False, **HEADS))
    assert report.missing == report.left_over == ("encoder.vit.norm.weight",)


def test_positions_that_no_decoder_of_ours_can_have(mae, tmp_path):
    """Class tokens with different positions, or a table for no grid. Without it, the encoder can be had."""
    table = torch.randn(1, 18, 32, generator=torch.Generator().manual_seed(0))
    registers = {"reg_token": torch.zeros(1, 1, 48), "pos_embed": torch.zeros(1, 18, 48)}
    for more, reason in (
        (registers | {"decoder_pos_embed": table}, "2 class tokens have different positions"),
        ({"decoder_pos_embed": table}, "18 positions: neither for 4 x 4 cells nor for a square"),
    ):
        path = mae(more=more)
        with pytest.raises(ValueError, match=f"MAE with its decoder: the decoder.*{reason}"):
            import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(**HEADS))
        report = import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(strict=False, **HEADS))
        assert report.encoder_only
        assert report.missing == report.left_over == ("decoders.0.positions",)
    table[:, 1] = table[:, 0]
    import_checkpoint(
        mae(more=registers | {"decoder_pos_embed": table}), tmp_path / "out.safetensors", ImportOptions(**HEADS)
    )


def test_a_decoder_without_positions_has_the_usual_ones(mae, tmp_path):
    import_checkpoint(mae(without="decoder_pos_embed"), tmp_path / "out.safetensors", ImportOptions(**HEADS))
    (decoder,) = load_method(tmp_path / "out.safetensors").decoders
    assert torch.equal(decoder.positions, sincos_positions((4, 4), 32)[None])


def test_settings_and_origin_are_written(mae, tmp_path):
    report = import_checkpoint(
        mae(), tmp_path / "out.safetensors", ImportOptions(recipe="pixmim", target="raw-pixels", **HEADS)
    )
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        metadata = file.metadata()
    request = json.loads(metadata["mimkit.request"])
    assert request["recipe"] == report.recipe == "pixmim"
    assert request["settings"]["data"] == ""
    assert request["settings"]["decoder_heads"] == 4
    assert json.loads(metadata["mimkit.imported"]) == {"from": "MAE with its decoder", "licence": report.licence}
    assert not load_method(tmp_path / "out.safetensors").target.normalized
    assert json.dumps(report.to_json())


@pytest.mark.parametrize("sincos", [True, False])
def test_another_image_size(mae, tmp_path, sincos):
    """Fixed positions are made afresh, learned ones resized."""
    path = mae(sincos=sincos)
    before = torch.load(path, weights_only=True)["model"]["pos_embed"]
    import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(image_size=(96, 64), **HEADS))
    method = load_method(tmp_path / "out.safetensors")
    torch.testing.assert_close(method.decoders[0].positions, sincos_positions((6, 4), 32)[None], rtol=0, atol=1e-6)
    after = method.encoder.vit.pos_embed
    expected = sincos_positions((6, 4), 48)[None] if sincos else resize_positions(before[:, 1:], (4, 4), (6, 4))
    torch.testing.assert_close(after[:, 1:], expected, rtol=0, atol=1e-6)
    assert torch.equal(after[:, :1], before[:, :1])
    assert method(parts.images(2, (96, 64))).loss.isfinite()


def test_long_sequences(tmp_path):
    """448 pixels with a decoder are LSMAE: 784 patches of which 2 x 2 are hidden together."""
    method = parts.method(parts.encoder(size=(448, 448), depth=1, sincos=True), width=96, depth=1, heads=3)
    state = {name.removeprefix("encoder.vit."): value for name, value in method.state_dict().items()}
    state = {name.replace("decoders.0.mask", "mask").replace("0.head", "0.pred"): v for name, v in state.items()}
    state = {name.replace("0.positions", "0.pos_embed"): v for name, v in state.items()}
    torch.save({"model": {name.replace("decoders.0.", "decoder_"): v for name, v in state.items()}}, tmp_path / "l.pth")
    report = import_checkpoint(tmp_path / "l.pth", tmp_path / "out.safetensors", ImportOptions(heads=3))
    assert (report.recipe, report.image_size) == ("lsmae", (448, 448))
    assert load_method(tmp_path / "out.safetensors").mask.cell == 32


def test_learned_positions_are_resized_when_images_are_larger(tmp_path):
    """The name says that they are no sine-cosine ones; what is exported for timm does without that."""
    vit = parts.timm_vit("vit_tiny_patch16_224", size=SIZE)
    torch.save(vit.state_dict(), tmp_path / "timm.pth")
    report = import_checkpoint(tmp_path / "timm.pth", tmp_path / "out.safetensors", ImportOptions(heads=3))
    assert report.backbone.endswith(",num_heads=3,sincos=False)")
    encoder = load_encoder(tmp_path / "out.safetensors").encoder
    assert not encoder.sincos
    _, cells = encoder.positions((6, 4))
    assert torch.equal(cells, resize_positions(vit.pos_embed[:, 1:], (4, 4), (6, 4)))
    arguments = export_timm(tmp_path / "out.safetensors", tmp_path / "timm.safetensors")
    assert "sincos" not in arguments


@pytest.fixture
def with_part_of_another_time(mae, tmp_path):
    """Writes an encoder's file in which one part is of a name that is not known, and gives the path."""
    import_checkpoint(mae(without="decoder"), tmp_path / "out.safetensors", ImportOptions(**HEADS))

    def make(name: str, **more):
        with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
            request = json.loads(file.metadata()["mimkit.request"]) | more
        request["parts"][name] = {"name": "OfAnotherTime", "values": {}}
        changed = tmp_path / "changed.safetensors"
        save_file(load_file(tmp_path / "out.safetensors"), changed, {"mimkit.request": json.dumps(request)})
        return changed

    return make


def test_an_encoder_outlives_its_recipe(with_part_of_another_time):
    """Of an encoder's file only the encoder must be what it was."""
    with pytest.raises(ValueError, match="this version of mimkit has no encoder OfAnotherTime"):
        load_encoder(with_part_of_another_time("encoder"))
    load_encoder(with_part_of_another_time("decoder"))


def test_an_encoder_outlives_its_recipe_of_a_file(with_part_of_another_time, tmp_path):
    (tmp_path / "mine.py").write_text("from mimkit.recipes import mae\n")
    source = with_part_of_another_time("encoder", recipe="mine.py:mae")
    with pytest.raises(ValueError, match=r"encoder OfAnotherTime, but recipe mine\.py:mae now has create_encoder"):
        load_encoder(source, recipe=f"{tmp_path}/mine.py:mae")
    load_encoder(with_part_of_another_time("decoder", recipe="mine.py:mae"), recipe=f"{tmp_path}/mine.py:mae")


def test_half_precision_is_widened(mae, tmp_path):
    path = mae()
    content = torch.load(path, weights_only=True)
    torch.save({"model": {name: value.half() for name, value in content["model"].items()}}, path)
    import_checkpoint(path, tmp_path / "out.safetensors", ImportOptions(**HEADS))
    assert {value.dtype for value in load_method(tmp_path / "out.safetensors").state_dict().values()} == {torch.float32}


def test_wrong_requests(mae, tmp_path):
    path, out = mae(), tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="--window is for Swin"):
        import_checkpoint(path, out, ImportOptions(window=7, **HEADS))
    with pytest.raises(ValueError, match="--mean and --std go together"):
        import_checkpoint(path, out, ImportOptions(mean=(0.5, 0.5, 0.5), **HEADS))
    with pytest.raises(ValueError, match="recipe 'mea' is unknown"):
        import_checkpoint(path, out, ImportOptions(recipe="mea", **HEADS))
    with pytest.raises(ValueError, match="--decoder-heads"):
        import_checkpoint(mae(more={"decoder_embed.weight": torch.zeros(20, 48)}), out, ImportOptions(heads=3))


def test_options_by_name_and_paths_as_text(mae, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = import_checkpoint(mae(), tmp_path / "whole.safetensors", ImportOptions(**HEADS))
    assert import_checkpoint("~/mae.pth", "~/by-name.safetensors", **HEADS) == whole
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "by-name"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(TypeError, match=r"import_checkpoint\(\) takes no argument 'head': did you mean heads\?"):
        import_checkpoint(mae(), tmp_path / "other.safetensors", head=3)
    assert not (tmp_path / "other.safetensors").exists()
