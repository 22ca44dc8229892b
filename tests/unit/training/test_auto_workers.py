"""How many processes read, as a run finds out before it starts, and that what it trains does not depend on it."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from helpers.plans import planned, settings
from helpers.runs import fingerprint
from mimkit.data import TrainBatches
from mimkit.pretraining import pretrain
from mimkit.training import auto_workers
from mimkit.training.auto_batch import (
    Trial,
)
from mimkit.training.auto_workers import Tuning, tuned, workers_and_prefetch
from mimkit.training.distributed import SINGLE
from mimkit.training.hardware import choose_workers, cores
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

CPU = torch.device("cpu")
PHOTOS = {"count": 40, "classes": 2, "broken": [3]}


def test_measuring_leaves_no_trace(photos, monkeypatch):
    """Not in weights, gradients and generators, nor in torch's threads; and a request without `auto` stays as it is."""
    request = planned(photos, image_size=(64,))
    weights = {name: value.clone() for name, value in request.model.state_dict().items()}
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    same, chosen = tuned(request, Machine(), CPU, SINGLE)
    assert same is request
    assert chosen.read > 0
    assert chosen.computed > 0
    assert 1 <= chosen.workers <= cores()
    assert chosen.prefetch >= 2
    assert chosen.trials == []
    assert all(torch.equal(value, weights[name]) for name, value in request.model.state_dict().items())
    assert all(parameter.grad is None for parameter in request.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    (line,) = chosen.describe()
    assert line.startswith(f"reading: {chosen.workers} worker")
    json.dumps(chosen.to_json(), allow_nan=False)


def test_workers_given_by_hand_are_not_measured(photos, monkeypatch):
    monkeypatch.setattr(TrainBatches, "reading_times", None)
    monkeypatch.setattr(auto_workers, "speed_of", None)
    request = planned(photos)
    assert tuned(request, Machine(workers=3), CPU, SINGLE) == (request, Tuning(workers=3, trials=[]))
    assert Tuning(workers=3).describe() == []


def test_a_trial_has_told_how_fast_steps_are(photos, monkeypatch):
    request = planned(photos, micro_batch="auto")
    found = [Trial(1, 2.0, 1.0), Trial(4, 8.0, 1.0), Trial(12, 8.1, 1.0)]
    monkeypatch.setattr(auto_workers, "find_micro_batch", lambda *_, **__: (4, found))
    monkeypatch.setattr(auto_workers, "speed_of", None)
    request, chosen = tuned(request, Machine(), CPU, SINGLE)
    assert (request.settings.micro_batch, request.batches().accumulation) == (4, 3)
    assert request.batches(0).micro_batch == 4
    assert chosen.computed == 8
    assert chosen.to_json()["micro_batch_trials"] == [asdict(trial) for trial in found]


def test_enough_readers_to_be_faster_than_the_device():
    steady = [0.01] * 20  # 100 images per second
    assert workers_and_prefetch(steady, 50, 8, most=8, fitting=100) == (1, 2)
    assert workers_and_prefetch(steady, 200, 8, most=8, fitting=100) == (3, 2)
    assert workers_and_prefetch(steady, 5000, 8, most=8, fitting=100)[0] == 8  # more would not help
    assert workers_and_prefetch(steady, 200, 8, most=8, fitting=4) == (3, 1)  # where memory is short
    assert workers_and_prefetch(steady, 200, 8, most=8, fitting=0) == (1, 1)


def test_readers_are_further_ahead_where_images_differ():
    uneven = [0.001] * 19 + [0.5]
    workers, ahead = workers_and_prefetch(uneven, 100, 2, most=16, fitting=1000)
    slow = 2 * sum(uneven) / 20 + 3 * math.sqrt(2) * torch.tensor(uneven).std(correction=0).item()
    assert ahead > 2
    assert ahead * workers >= slow * 100 / 2 > (ahead - 1) * workers  # computed while a slow batch is read
    assert workers_and_prefetch(uneven, 100, 256, most=16, fitting=1000)[1] == 2  # in large batches it evens out


def test_bad_images_do_not_stop_the_measurement(photos, tmp_path, make_photos):
    request = planned(photos)
    for readable in (request, planned(photos, repeats=2)):
        seconds = readable.batches(0).reading_times()
        assert len(seconds) == 64 or sum(seconds) >= 1  # on a busy machine
    bad = make_photos(tmp_path / "bad", count=20)
    request = planned(bad, batch_size=4, image_size=(64,))
    for path in bad.rglob("*.png"):
        path.write_bytes(b"")
    assert request.batches(0).reading_times() == []
    _, chosen = tuned(request, Machine(), CPU, SINGLE)
    assert chosen == Tuning(workers=choose_workers(None), trials=[])


# Raised by Python 3.12 and later for torch's own way to start workers.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_measured_readers_change_no_result(photos, tmp_path):
    for name, workers in (("measured", None), ("none", 0)):
        pretrain("mae", settings(photos), tmp_path / name, machine=Machine(workers=workers))
    assert Run(tmp_path / "measured").facts["tuning"]["workers"] >= 1
    assert Run(tmp_path / "none").facts["tuning"]["workers"] == 0
    assert fingerprint(tmp_path / "measured") == fingerprint(tmp_path / "none")
