"""Runs of any kind: who continues them, and what a job of another kind is told."""

import json
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import nn

from helpers.plans import planned, settings
from helpers.regression import VALUES, Batches, Regression, same, weights
from mimkit.cli.main import main
from mimkit.jobs import KINDS, resume
from mimkit.pretraining import make_for_trials, pretrain
from mimkit.training import launch
from mimkit.training.distributed import SINGLE
from mimkit.training.job import Job, differences
from mimkit.training.machine import Machine
from mimkit.training.optim import Train
from mimkit.training.run_folder import Run

HERE = Machine(device="cpu", workers=0)
PHOTOS = {"count": 24, "classes": 2}


@pytest.fixture
def run(photos, tmp_path) -> Run:
    pretrain("mae", settings(photos, epochs=1), tmp_path / "run", machine=HERE)
    return Run(tmp_path / "run")


def test_a_run_says_its_kind_and_format(run):
    assert (run.facts["kind"], run.facts["format"]) == ("pretrain", 2)
    assert run.kind in KINDS
    assert run.train == planned(run.facts["settings"]["data"], epochs=1).train


def test_a_kind_of_ones_own_is_continued_by_its_own_program(run, capsys):
    (run.folder / "run.json").write_text(json.dumps(run.facts | {"kind": "cells"}))
    with pytest.raises(ValueError, match="is a run of kind 'cells', which is none of mimkit's own"):
        resume(Run(run.folder), machine=HERE)
    for command in (
        ["resume"],
        ["probe", "--data", "photos"],
        ["export", "--format", "timm", "--out", "w.safetensors"],
    ):
        assert main([command[0], str(run.folder), *command[1:]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mimkit: {run.folder} is a run of kind 'cells'")


def test_a_job_continues_runs_of_its_kind_and_values_only(run, photos):
    job = planned(photos, epochs=1, base_lr=0.5)
    device = next(job.model.parameters()).device
    with pytest.raises(ValueError, match=r"began with base_lr 0\.00015, which is 0\.5 now"):
        launch.proceed(job, run, HERE, device, SINGLE)
    (run.folder / "run.json").write_text(json.dumps(run.facts | {"kind": "cells"}))
    with pytest.raises(ValueError, match="is a run of kind cells, and this job is of kind pretrain"):
        launch.proceed(planned(photos, epochs=1), Run(run.folder), HERE, device, SINGLE)


def test_a_job_asks_for_what_another_process_can_make(photos):
    """Through JSON: the same model, but for the numbers of its weights, and inputs that it takes."""
    job = planned(photos)
    trialled = make_for_trials(json.loads(json.dumps(job.request())))
    assert trialled.train == job.train
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()} for model in (trialled.model, job.model)
    ]
    assert shapes[0] == shapes[1]
    assert trialled.model(**trialled.random_inputs(3)).loss.isfinite()
    assert {name: value.shape for name, value in job.random_inputs(3).items()} == {
        name: value.shape for name, value in trialled.random_inputs(3).items()
    }


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
    assert launch.proceed(again, run, HERE, device, SINGLE)  # it was done: nothing but its weights
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
        launch.start_or_proceed(lambda *_: kind(model=Regression(), train=VALUES), tmp_path / "run", HERE)
    assert not (tmp_path / "run").exists()


def test_the_same_call_begins_a_job_and_goes_on_with_it(tmp_path):
    """Of the same facts only."""
    out = tmp_path / "run"
    assert launch.start_or_proceed(lambda *_: Smallest(model=Regression(), train=VALUES), out, HERE)
    assert launch.start_or_proceed(lambda *_: Smallest(model=Regression(), train=VALUES), out, HERE)
    (out / "run.json").write_text(json.dumps(Run(out).facts | {"seen": "something else"}))
    with pytest.raises(ValueError, match="began with seen something else, which is regression now"):
        launch.start_or_proceed(lambda *_: Smallest(model=Regression(), train=VALUES), out, HERE)


def test_differences_are_named_by_their_keys():
    then, now = {"a": {"b": 1, "c": [2]}, "gone": 3}, {"a": {"b": 1, "c": [4]}, "new": 5}
    assert list(differences(then, now)) == [("a.c", [2], [4]), ("new", None, 5)]
