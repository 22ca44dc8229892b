"""The command line on made photographs, from pre-training to export, and what Python gets of the same run."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import mimkit
from helpers.runs import as_flags
from helpers.tiny import TINY
from mimkit.cli.main import main
from mimkit.compose import RECIPES
from mimkit.evaluation.reconstruction import GAP

SMALL = (
    "--image-size 32 --mask-ratio 0.75 --backbone test_vit --decoder-width 32 --decoder-heads 2 "
    "--batch-size 8 --epochs 2 --workers 0 --precision fp32"
)


def pretrain(data, out, *more: str, recipe: str = "small", code: int = 0):
    """Two epochs of a tiny ViT."""
    words = dict(zip(*[iter(SMALL.split())] * 2, strict=True)) | {"--data": str(data), "--out": str(out)}
    assert main(["pretrain", recipe, *(word for pair in words.items() for word in pair), *more]) == code
    return out


def rows(run, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    """A run that is read by many tests and changed by none."""
    return pretrain(photos, tmp_path_factory.mktemp("runs") / "run", "--log-every", "2")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """uint8 [5, 3, 32, 32], smooth enough to be pictures."""
    coarse = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def test_pretraining_leaves_what_it_says(run, photos):
    facts = json.loads((run / "run.json").read_text())
    assert facts["recipe"] == "small"
    assert facts["settings"] | {"backbone": "test_vit", "image_size": [32, 32], "batch_size": 8} == facts["settings"]
    assert facts["data"]["classes"] == ["class_0", "class_1"]
    assert facts["data"]["train_images"] + facts["data"]["held_out_images"] == 40
    per_epoch = facts["data"]["train_images"] // 8
    assert (facts["steps_per_epoch"], facts["steps"]) == (per_epoch, 2 * per_epoch)

    train = rows(run, "train")
    assert [row["step"] for row in train] == list(range(2, facts["steps"] + 1, 2))
    assert all(np.isfinite([row["loss"], row["grad_norm"], row["lr"]]).all() for row in train)
    assert sum(row[name] for row in train[-1:] for name in row if name.startswith("fusion/")) == pytest.approx(1)
    assert [row["step"] for row in rows(run, "probe")] == [0, per_epoch, 2 * per_epoch]
    for row in rows(run, "probe"):
        assert row["classes"] == 2
        assert {"linear", "knn", "effective_rank", "feature_std", "masked_loss"} <= row.keys()
    assert rows(run, "end") == [{"kind": "end", "step": facts["steps"]}]
    assert not rows(run, "skipped") + rows(run, "nonfinite")

    legend = json.loads((run / "reconstructions" / "legend.json").read_text())
    pictures = sorted((run / "reconstructions").glob("*.png"))
    assert [int(path.stem[5:]) for path in pictures] == [0, per_epoch, 2 * per_epoch]
    shown = min(8, facts["data"]["held_out_images"])
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (len(legend["columns"]) * (32 + GAP) - GAP, shown * (32 + GAP) - GAP)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{facts['steps']:08d}"]
    assert "<html" in (run / "report.html").read_text()


def test_probe_as_text_and_as_json(run, photos, capsys):
    request = ["probe", str(run), "--data", str(photos), "--workers", "0"]
    assert main(request) == 0
    text = capsys.readouterr().out
    assert main([*request, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert re.search(rf"linear +{scores['linear']:.2f} %\nknn +{scores['knn']:.2f} %\n", text)
    assert (
        f"{scores['train_images']} training and {scores['test_images']} test images, 2 classes (chance 50.0 %)" in text
    )
    assert scores["train_images"] + scores["test_images"] == 40
    assert scores["skipped_images"] == 0

    logged = rows(run, "probe")[-1]  # the probe shown while training is the same measurement
    assert (scores["linear"], scores["knn"]) == (logged["linear"], logged["knn"])

    assert main([*request, "--kind", "knn"]) == 0
    assert "linear" not in capsys.readouterr().out


def test_probe_of_an_untrained_backbone(photos, capsys):
    request = ["probe", "random:test_vit", "--image-size", "32", "--data", str(photos), "--workers", "0", "--json"]
    assert main(request) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 2


def test_embeddings_in_order_with_labels(run, photos, tmp_path, capsys):
    out = tmp_path / "new" / "features.npz"
    (photos / "class_1" / "broken.png").write_bytes(b"no image")
    try:
        assert main(["embed", str(run), "--data", str(photos), "--out", str(out), "--workers", "0"]) == 0
    finally:
        (photos / "class_1" / "broken.png").unlink()
    said = capsys.readouterr().out
    assert "40 images x 64 features" in said
    assert "1 unreadable" in said
    assert "broken.png" in said
    with np.load(out) as saved:
        assert saved["paths"].tolist() == [f"class_{c}/{i:04d}.png" for c in (0, 1) for i in range(c, 40, 2)]
        assert saved["classes"][saved["labels"]].tolist() == [path.split("/")[0] for path in saved["paths"]]
        encoder = mimkit.load_encoder(run)
        with torch.inference_mode():
            expected = encoder(encoder.read([photos / path for path in saved["paths"]]))
        np.testing.assert_allclose(saved["features"], expected, rtol=0, atol=1e-5)
    assert list(out.parent.iterdir()) == [out]


def test_reconstructions(run, photos, tmp_path, capsys):
    chosen = [photos / "class_0" / "0000.png", photos / "class_1" / "0001.png"]
    columns = len(json.loads((run / "reconstructions" / "legend.json").read_text())["columns"])

    def reconstruct(out: str, *more: str) -> list[bytes]:
        assert main(["reconstruct", str(run), *map(str, chosen), "--out", str(tmp_path / out), *more]) == 0
        paths = [tmp_path / out / f"{i:04d}-{path.stem}.png" for i, path in enumerate(chosen)]
        assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
        for path in paths:
            with Image.open(path) as picture:
                assert picture.size == (columns * (32 + GAP) - GAP, 32)
        return [path.read_bytes() for path in paths]

    first = reconstruct("first")
    assert reconstruct("again") == first
    assert reconstruct("other seed", "--seed", "5") != first
    reconstruct("half", "--mask-ratio", "0.5")
    with Image.open(tmp_path / "half" / "0000-0000.png") as picture:
        visible = np.asarray(picture)[:, 32 + GAP : 2 * 32 + GAP]
    assert (visible == 128).all(axis=2).mean() == pytest.approx(0.5, abs=0.02)


def printed_call(text: str) -> str:
    return re.search(r"load into (timm\.create_model\(.*\))\n", text)[1]


@pytest.mark.parametrize(
    ("backbone", "recipe"),
    [
        ("test_vit", "small"),  # class token
        ("test_vit2", "mae"),  # a register, no class token; pooled before its norm
        ("test_vit3", "mff"),  # pooled by attention
        ("vit_pwee_patch16_reg1_gap_256", "mae"),  # parallel blocks
    ],
)
def test_export_loads_strictly_into_timm(photos, tmp_path, capsys, images, backbone, recipe):
    fast = ["--epochs", "1", "--decoder-depth", "1", "--warmup-epochs", "0", "--probe-images", "8"]
    run = pretrain(photos, tmp_path / "run", "--backbone", backbone, *fast, recipe=recipe)
    out = tmp_path / "encoder.safetensors"
    assert main(["export", str(run), "--format", "timm", "--out", str(out)]) == 0
    call = printed_call(capsys.readouterr().out)
    model = eval(call, {"timm": timm}).eval()
    model.load_state_dict(load_file(out), strict=True)
    encoder = mimkit.load_encoder(run)
    with torch.inference_mode():
        ours = encoder(images)
        tokens = model.forward_features(encoder.normalization.from_bytes(images))
    assert ours.std() > 0.01
    torch.testing.assert_close(tokens[:, model.num_prefix_tokens :].mean(dim=1), ours, rtol=0, atol=1e-5)
    assert main(["probe", str(out), "--data", str(photos)]) == 2  # it says no more what mimkit made of it
    assert "is an encoder for timm" in capsys.readouterr().err


def test_exported_method_is_the_run(run, tmp_path, images):
    out = tmp_path / "method.safetensors"
    assert main(["export", str(run), "--format", "safetensors", "--out", str(out)]) == 0
    keys = torch.arange(len(images))
    with torch.inference_mode():
        from_run, from_file = (mimkit.load_method(source)(images, keys=keys) for source in (run, out))
    assert torch.equal(from_run.loss, from_file.loss)
    assert torch.equal(from_run.predictions[0], from_file.predictions[0])
    assert main(["export", str(out), "--format", "timm", "--out", str(tmp_path / "encoder.safetensors")]) == 0


def test_python_reads_a_run(run, photos, images):
    encoder = mimkit.load_encoder(str(run))
    read = encoder.read([photos / "class_0" / "0000.png", str(photos / "class_1" / "0001.png")])
    features = encoder(read)
    assert (read.dtype, tuple(read.shape)) == (torch.uint8, (2, 3, 32, 32))
    assert (features.dtype, tuple(features.shape)) == (torch.float32, (2, 64))

    hidden = torch.zeros(5, 2, 2, dtype=torch.bool)
    hidden[:, 0, 1] = hidden[:, 1, 0] = True
    output = mimkit.load_method(run)(images, mask=mimkit.Mask(hidden))
    assert output.loss.ndim == 0
    assert torch.equal(output.loss, sum(output.per_level))
    assert [tuple(p.shape) for p in output.predictions] == [(5, 2, 2, 16 * 16 * 3)]
    assert torch.equal(output.mask.hidden, hidden)


def test_python_reads_an_untrained_backbone(images):
    encoder = mimkit.load_encoder("random:test_vit", image_size=(32, 48))
    wide = torch.nn.functional.pad(images, (0, 16))
    assert tuple(encoder(wide).shape) == (5, 64)
    assert not encoder.training


def test_report_on_two_runs(run, photos, tmp_path, capsys):
    other = pretrain(photos, tmp_path / "other", recipe="mae")
    out = tmp_path / "report.html"
    assert main(["report", str(run), str(other), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    page = out.read_text()
    assert "mae" in page
    assert "small" in page


def test_recipes_as_table_and_as_json(capsys):
    assert main(["recipes"]) == 0
    table = capsys.readouterr().out
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["recipe"] for row in listed] == list(RECIPES)
    for row in listed:
        assert row["paper"] in table
        assert row["published"] in table
        assert all(row["parts"][part] in table for part in ("view", "mask", "encoder", "readout", "decoder", "target"))
    by_name = {row["recipe"]: row["parts"] for row in listed}
    assert by_name["pixmim"]["target"].startswith("LowFreqPixels(")
    assert by_name["mff"]["readout"].startswith("Fused")
    assert by_name["mae"]["readout"].startswith("Last")


def test_overwriting_a_run_leaves_nothing_of_it(photos, tmp_path):
    out = tmp_path / "run"
    pretrain(photos, out, "--probe-every", "1", "--tensorboard")
    assert any((out / "tensorboard").iterdir())
    (out / "notes.txt").write_text("mine")
    pretrain(photos, out, "--epochs", "1", "--overwrite", recipe="mae")
    assert not (out / "tensorboard").exists()
    assert json.loads((out / "run.json").read_text())["recipe"] == "mae"
    assert max(row["step"] for row in rows(out, "train")) == len(list((out / "checkpoints").iterdir())) * 4
    assert (out / "notes.txt").read_text() == "mine"


def test_photos_without_classes(photos, tmp_path, make_photos):
    flat = make_photos(tmp_path / "flat", count=20)
    run = pretrain(flat, tmp_path / "run")
    probes = rows(run, "probe")
    assert probes[0]["classes"] is None
    assert all({"linear", "knn"}.isdisjoint(row) for row in probes)
    assert all(np.isfinite([row["effective_rank"], row["feature_std"], row["masked_loss"]]).all() for row in probes)


def test_nothing_held_out(photos, tmp_path):
    run = pretrain(photos, tmp_path / "run", "--held-out", "0")
    assert json.loads((run / "run.json").read_text())["data"]["train_images"] == 40
    assert not rows(run, "probe")
    assert rows(run, "end")


def test_grey_images(photos, tmp_path, images):
    run = pretrain(photos, tmp_path / "run", "--channels", "1")
    encoder = mimkit.load_encoder(run)
    assert tuple(encoder.read([photos / "class_0" / "0000.png"]).shape) == (1, 1, 32, 32)
    assert tuple(mimkit.load_method(run)(images[:, :1]).predictions[0].shape) == (5, 2, 2, 256)
    assert main(["reconstruct", str(run), str(photos / "class_0" / "0000.png"), "--out", str(tmp_path / "out")]) == 0


def test_images_that_are_not_square(photos, tmp_path):
    run = pretrain(photos, tmp_path / "run", "--image-size", "32", "48")
    method = mimkit.load_method(run)
    assert method.encoder.image_size == (32, 48)
    assert tuple(mimkit.load_encoder(run).read([photos / "class_0" / "0000.png"]).shape) == (1, 3, 32, 48)
    with Image.open(max((run / "reconstructions").glob("*.png"))) as picture:
        assert (picture.width + GAP) % (48 + GAP) == (picture.height + GAP) % (32 + GAP) == 0


def test_a_list_of_images(photos, tmp_path):
    listed = [photos / f"class_{i % 2}" / f"{i:04d}.png" for i in range(20)]
    (tmp_path / "images.txt").write_text("".join(f"{path}\t{path.parent.name}\n" for path in listed))
    run = pretrain(tmp_path / "images.txt", tmp_path / "run")
    data = json.loads((run / "run.json").read_text())["data"]
    assert data["train_images"] + data["held_out_images"] == 20
    assert data["classes"] == ["class_0", "class_1"]


def test_unreadable_images_are_named_and_counted(data_root, tmp_path, capsys):
    run = pretrain(
        data_root / "corrupt", tmp_path / "run", "--skipped-share", "0.6", "--held-out", "0", "--batch-size", "4"
    )
    bad = {"01_truncated.jpg", "02_zero_byte.jpg", "03_text_renamed.jpg", "04_bad_crc.png", "11_decompression_bomb.png"}
    skipped = rows(run, "skipped")
    assert {row["path"].rsplit("/", 1)[-1] for row in skipped} == bad
    assert len(skipped) == len(bad)  # each once, however often it is met
    assert all(row["reason"] for row in skipped)
    said = capsys.readouterr().err
    assert all(said.count(f"/{name}: ") == 1 for name in bad)
    assert rows(run, "end")
    page = (run / "report.html").read_text()
    assert all(name in page for name in bad)


def test_tensorboard_events(photos, tmp_path):
    run = pretrain(photos, tmp_path / "run", "--tensorboard", "--log-every", "1")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in written] == [row["step"] for row in rows(run, "train")]
    np.testing.assert_allclose([loss for _, loss in written], [row["loss"] for row in rows(run, "train")], rtol=1e-6)
    assert "probe/linear" in events.Tags()["scalars"]


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "small"])
def test_every_recipe_trains(photos, tmp_path, recipe):
    run = {"data": photos, "out": tmp_path / "run", "batch_size": 8, "epochs": 1, "warmup_epochs": 0}
    run |= {"probe_images": 8, "workers": 0, "precision": "fp32"}
    assert main(["pretrain", recipe, *as_flags(TINY[recipe] | run)]) == 0
    (row,) = rows(tmp_path / "run", "train")
    assert np.isfinite(row["loss"])
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("what", ["step", "data"])
def test_benchmarks_run(photos, capsys, what):
    flags = {
        "step": ["--recipe", "mae", "--backbone", "test_vit", "--batch-size", "2"],
        "data": ["--data", str(photos)],
    }
    assert main(["bench", what, *flags[what], "--image-size", "32", "--rounds", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    if what == "step":
        assert [case["images_per_second"] > 0 for case in result["cases"]] == [True]
    else:
        assert result["mimkit_images_per_second"] > 0
        assert result["speed_against_torchvision"] > 0
