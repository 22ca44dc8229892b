"""A run with compiled blocks: compiled once, saved under the same names, resumed to the same bits."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mimkit.training.loop
from helpers.graphs import Graphs
from helpers.tiny import TINY
from mimkit.compose import compose
from mimkit.pretraining import pretrain, resume
from mimkit.progress import Progress
from mimkit.recipes import build
from mimkit.settings import Settings
from mimkit.sources import load_method
from mimkit.training import blocks
from mimkit.training.checkpoint import load_newest
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(scope="module")
def settings(tmp_path_factory, make_photos) -> Settings:
    """Four steps of two parts each, with averages, and looks at the encoder in between."""
    data = make_photos(tmp_path_factory.mktemp("data") / "photos", count=15, classes=2, size=80)
    few = {"batch_size": 4, "micro_batch": 2, "epochs": 2, "probe_every": 1, "log_every": 1, "held_out": 0.2}
    return Settings(data=data, compile=True, ema=0.9, precision="fp32", **few, **TINY["mae"])


@pytest.fixture
def backend(monkeypatch) -> Graphs:
    backend = Graphs()
    monkeypatch.setattr(blocks, "BACKEND", backend)
    return backend


class Asked(Progress):
    """Asks its own process to stop after the second step."""

    def step(self, step: int) -> None:
        super().step(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def weights(out: Path) -> dict[str, Tensor]:
    found = load_newest(out / "checkpoints")
    assert found is not None
    return found.weights | found.training


def test_a_compiled_run_is_resumed_to_the_same_bits(settings, backend, tmp_path, monkeypatch):
    machine = Machine(workers=0)
    assert pretrain("mae", settings, tmp_path / "whole", machine=machine)
    plain = build(compose("mae", settings))
    parts = len(blocks.blocks_of(plain))
    assert 1 < backend.compiled <= 1 + parts  # one was to see whether there is a compiler
    assert backend.run == 1 + 4 * 2 * parts
    assert load_method(tmp_path / "whole").state_dict().keys() == plain.state_dict().keys()

    monkeypatch.setattr(mimkit.training.loop, "Progress", Asked)
    assert not pretrain("mae", settings, tmp_path / "parts", machine=machine)
    monkeypatch.setattr(mimkit.training.loop, "Progress", Progress)
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["settings"]["compile"] is True
    backend.run = 0
    assert resume(Run(tmp_path / "parts"), machine=Machine(workers=0, recompute=True))
    assert backend.run == 1 + 2 * 2 * 2 * parts
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_without_a_compiler_is_refused_before_anything_is_written(settings, tmp_path, monkeypatch):
    def none(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(blocks, "BACKEND", none)
    with pytest.raises(ValueError, match=r"^--compile needs .* for --device cpu: .*no compiler here"):
        pretrain("mae", settings, tmp_path / "run", machine=Machine(device="cpu", workers=0))
    assert not (tmp_path / "run").exists()
