"""Runs of any kind: who continues them, and what a job of another kind is told."""

import json

import pytest

from helpers.plans import planned, settings
from mimkit.cli.main import main
from mimkit.jobs import KINDS, resume
from mimkit.pretraining import make_for_trials, pretrain
from mimkit.training.machine import Machine
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


def test_a_job_asks_for_what_another_process_can_make(photos):
    """Through JSON: the same model, but for the numbers of its weights, and inputs that it takes."""
    job = planned(photos)
    trial_model = make_for_trials(json.loads(json.dumps(job.request())))
    assert trial_model.train == job.train
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()} for model in (trial_model.model, job.model)
    ]
    assert shapes[0] == shapes[1]
    assert trial_model.model(**trial_model.random_inputs(3)).loss.isfinite()
    assert {name: value.shape for name, value in job.random_inputs(3).items()} == {
        name: value.shape for name, value in trial_model.random_inputs(3).items()
    }


def test_mimkit_resume_knows_the_kinds_that_say_so(photos):
    assert KINDS.keys() == {"pretrain"}
    job = planned(photos)
    assert job.kind in KINDS
    assert job.resumable


def test_resume_takes_fields_of_machine_by_name(run):
    assert resume(str(run.folder), device="cpu", workers=0)
    with pytest.raises(TypeError, match=r"resume\(\) takes no argument 'devise': did you mean device\?"):
        resume(run, devise="cpu")
