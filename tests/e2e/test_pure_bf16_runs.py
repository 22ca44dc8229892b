"""Runs in bfloat16 alone from the command line's point of view: what they save, how it is taken up, two processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import mimkit
from helpers import parts
from helpers.plans import plan
from helpers.processes import torchrun
from helpers.runs import as_flags
from helpers.tiny import TINY
from mimkit.convert import export_huggingface, export_onnx, export_safetensors, export_timm
from mimkit.evaluation.online import OnlineProbe, subset
from mimkit.pretraining import pretrain, resume
from mimkit.settings import Settings
from mimkit.training.checkpoint import Checkpoint, load_newest
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

HERE = Machine(workers=0)
PHOTOS = {"count": 40, "classes": 2, "size": 80}


def settings(photos: Path, **more) -> Settings:
    values = {"batch_size": 8, "micro_batch": 4, "epochs": 3, "warmup_epochs": 0.5, "base_lr": 0.03, "log_every": 1}
    return Settings(data=photos, held_out=0.2, precision="bf16-pure", clip_grad=1.0, **TINY["mae"] | values | more)


def newest(run: Path) -> Checkpoint:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert pretrain("mae", settings(photos), out, machine=HERE)
    return out


def test_what_is_saved(run):
    saved = newest(run)
    assert {value.dtype for value in saved.weights.values()} == {torch.bfloat16}
    slots = {name.split("/")[1]: value.dtype for name, value in saved.training.items() if name.startswith("optimizer/")}
    pure = dict.fromkeys(("remainder", "exp_avg", "exp_avg_sq"), torch.bfloat16)
    assert slots == pure | {"step": torch.float32}
    assert json.loads((run / "run.json").read_text())["settings"]["precision"] == "bf16-pure"


def test_it_is_taken_up_in_float32(run, photos):
    """With the probe's numbers of the run's end, which looked at the same numbers."""
    saved = newest(run)
    encoder, method = mimkit.load_encoder(run), mimkit.load_method(run)
    for module, prefix in ((encoder.encoder, "encoder."), (method, "")):
        for name, value in module.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, saved.weights[f"{prefix}{name}"].float())
    request = plan("mae", settings(photos), device=torch.device("cpu"))
    held_out = subset(request.held_out, 1000)
    probe = OnlineProbe(method, held_out, held_out, device="cpu")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    probes = [row for row in rows if row["kind"] == "probe"]
    with torch.no_grad():
        assert probe.masked_loss() == pytest.approx(probes[-1]["masked_loss"], rel=1e-5)
    assert probes[-1]["masked_loss"] < probes[0]["masked_loss"]


def test_exports_are_float32(run, tmp_path):
    images = parts.images(2, (64, 64))
    with torch.inference_mode():
        expected = mimkit.load_encoder(run)(images)
        export_safetensors(run, tmp_path / "method.safetensors")
        assert torch.equal(mimkit.load_encoder(tmp_path / "method.safetensors")(images), expected)
        model = timm.create_model(**export_timm(run, tmp_path / "encoder.safetensors")).eval()
        model.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
        assert {p.dtype for p in load_file(tmp_path / "encoder.safetensors").values()} == {torch.float32}
        found = model.forward_features(images)[:, model.num_prefix_tokens :].mean(dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_hugging_face_takes_it(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    export_huggingface(run, tmp_path / "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_onnx_takes_it(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(run, tmp_path / "encoder.onnx")
    images = parts.images(2, (64, 64))
    features, _ = onnxruntime.InferenceSession(tmp_path / "encoder.onnx").run(None, {"images": images.numpy()})
    with torch.inference_mode():
        expected = mimkit.load_encoder(run)(images)
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=0, atol=1e-4)


def test_two_processes_with_shares_train_as_one(run, photos, tmp_path):
    """To bfloat16's rounding; what they save in shares, one process goes on with."""
    words = ["pretrain", "mae", *as_flags(to_flags(settings(photos, epochs=2))), "--out", str(tmp_path / "run")]
    torchrun(tmp_path, *words, "--workers", "0", "--parallel", "fsdp", "--sharded-checkpoints")
    found = newest(tmp_path / "run")
    assert {name for name in found.training if "/1" not in name} == newest(run).training.keys()
    assert {value.dtype for value in found.weights.values()} == {torch.bfloat16}
    alone = tmp_path / "alone"
    assert pretrain("mae", settings(photos, epochs=2), alone, machine=HERE)
    losses = [
        [row["loss"] for row in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if row["kind"] == "train"]
        for out in (alone, tmp_path / "run")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    for name, value in newest(alone).weights.items():
        error = (found.weights[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-12)
        assert error < 0.02 or name.endswith("bias"), f"{name}: {error:g}"
    assert resume(Run(tmp_path / "run"), machine=HERE)


def to_flags(values: Settings) -> dict:
    """The settings that differ from the defaults."""
    return {
        name: value for name, value in vars(values).items() if value != getattr(Settings(data=values.data), name)
    } | {"data": values.data}


def test_batch_norms_of_several_processes_are_refused(photos):
    request = replace(settings(photos), backbone="test_resnet", encoder="dense")
    with pytest.raises(ValueError, match="batch norms in float32, which 2 processes cannot train"):
        plan("mae", request, device=torch.device("cpu"), processes=2)
    plan("mae", request, device=torch.device("cpu"))
