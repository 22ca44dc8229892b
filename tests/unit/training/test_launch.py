"""Jobs begun and continued: by their kind, values and facts, in run folders of their own."""

import json
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import nn

from helpers.plans import planned, settings
from helpers.regression import VALUES, Batches, Regression, same, weights
from mimkit.pretraining import pretrain
from mimkit.training import launch
from mimkit.training.distributed import SINGLE
from mimkit.training.job import Job
from mimkit.training.machine import Machine
from mimkit.training.optim import Train
from mimkit.training.run_folder import Run

HERE = Machine(device="cpu", workers=0)
PHOTOS = {"count": 24, "classes": 2}


def test_a_job_continues_runs_of_its_kind_and_values_only(photos, tmp_path):
    pretrain("mae", settings(photos, epochs=1), tmp_path / "run", machine=HERE)
    run = Run(tmp_path / "run")
    job = planned(photos, epochs=1, base_lr=0.5)
    device = next(job.model.parameters()).device
    with pytest.raises(ValueError, match=r"began with base_lr 0\.00015, which is 0\.5 now"):
        launch.resume(job, run, HERE, device, SINGLE)
    (run.folder / "run.json").write_text(json.dumps(run.facts | {"kind": "cells"}))
    with pytest.raises(ValueError, match="is a run of kind cells, and this job is of kind pretrain"):
        launch.resume(planned(photos, epochs=1), Run(run.folder), HERE, device, SINGLE)


@dataclass(frozen=True, kw_only=True)
class Smallest(Job):
    """All that a job must have."""

    kind = "smallest"
    model: nn.Module
    train: Train
    samples: int = 8
    micro_batch: int | Literal["auto"] = 8

    def batches(self, workers=0, world=SINGLE, *, prefetch=2, pin_memory=False) -> Batches:
        return Batches()

    def facts(self) -> dict[str, object]:
        return {"seen": "regression"}


def test_a_job_of_ones_own_shares_loop_run_folder_and_report(tmp_path, capsys):
    job, out, device = Smallest(model=Regression(), train=VALUES), tmp_path / "run", torch.device("cpu")
    assert launch.start(job, out, HERE, device, SINGLE)
    run = Run(out)
    assert (run.kind, run.facts["seen"], run.facts["steps"], run.train) == ("smallest", "regression", 12, VALUES)
    assert "smallest" in (out / "report.html").read_text()
    again = Smallest(model=Regression(seed=1), train=VALUES)
    assert launch.resume(again, run, HERE, device, SINGLE)  # it was done: nothing but its weights
    assert same(weights(again.model), weights(job.model))
    asking = Smallest(model=Regression(), train=VALUES, micro_batch="auto")
    with pytest.raises(ValueError, match="--micro-batch auto: a job of kind smallest cannot be tried out on cpu"):
        launch.start(asking, tmp_path / "other", HERE, device, SINGLE)
    assert not (tmp_path / "other").exists()


class Wordy(Smallest):
    """A job whose facts have a name of every run's."""

    def facts(self) -> dict[str, object]:
        return {"format": 99}


class Empty(Smallest):
    """A job without a step."""

    def batches(self, workers=0, world=SINGLE, *, prefetch=2, pin_memory=False) -> Batches:
        return Batches(steps_per_epoch=0)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Wordy, "facts of a job cannot be called format"), (Empty, "--batch-size 8 is more than there is")],
)
def test_jobs_that_cannot_be_leave_no_folder(kind, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        launch.start_or_resume(lambda *_: kind(model=Regression(), train=VALUES), tmp_path / "run", HERE)
    assert not (tmp_path / "run").exists()


def test_the_same_call_begins_a_job_and_goes_on_with_it(tmp_path):
    """Of the same facts only."""
    out = tmp_path / "run"
    assert launch.start_or_resume(lambda *_: Smallest(model=Regression(), train=VALUES), out, HERE)
    assert launch.start_or_resume(lambda *_: Smallest(model=Regression(), train=VALUES), out, HERE)
    (out / "run.json").write_text(json.dumps(Run(out).facts | {"seen": "something else"}))
    with pytest.raises(ValueError, match="began with seen something else, which is regression now"):
        launch.start_or_resume(lambda *_: Smallest(model=Regression(), train=VALUES), out, HERE)
