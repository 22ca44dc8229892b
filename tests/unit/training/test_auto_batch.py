"""The micro-batch that a run finds before it starts, and that what it trains does not depend on it."""

import dataclasses
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from helpers.plans import plan, planned, settings
from helpers.runs import fingerprint
from mimkit.cli.main import main
from mimkit.method import Method
from mimkit.plan import divisors
from mimkit.pretraining import pretrain
from mimkit.settings import Settings
from mimkit.training import auto_batch
from mimkit.training.auto_batch import (
    Trial,
    TrialModel,
    cheapest,
    doubling,
    extrapolate,
    find_micro_batch,
    search,
    speed_of,
    trial_copy,
)
from mimkit.training.auto_workers import tuned
from mimkit.training.distributed import SINGLE, World
from mimkit.training.hardware import available_memory
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

CPU = torch.device("cpu")
PHOTOS = {"count": 40, "classes": 2, "broken": [3]}


def test_sizes_divide_the_share_and_hold_whole_images():
    assert divisors(12, 1) == [1, 2, 3, 4, 6, 12]
    assert divisors(12, 2) == [2, 4, 6, 12]
    assert divisors(9, 2) == []
    assert doubling([1, 2, 3, 4, 6, 12]) == [1, 2, 4, 12]
    assert doubling([3, 5, 15]) == [3, 15]


def attempts(speeds: dict[int, float], mib: dict[int, float] | None = None, fail_from: int = 10**9):
    """What `search` is given, and the sizes that it has asked for."""
    asked = []

    def attempt(images: int) -> Trial | None:
        asked.append(images)
        return Trial(images, speeds[images], (mib or {}).get(images, 1.0)) if images < fail_from else None

    return attempt, asked


def test_the_search_ends_where_two_sizes_are_no_faster():
    speeds = {1: 10.0, 2: 20, 4: 19, 8: 30, 16: 30.5, 32: 30.8, 64: 99}
    attempt, asked = attempts(speeds)
    found = search(attempt, list(speeds), room=1000, fixed=0)
    assert asked == [1, 2, 4, 8, 16, 32]
    assert cheapest(found).images == 8  # what 32 add is not worth their memory
    assert cheapest(found[:3]).images == 2


def test_the_search_does_not_try_what_will_not_fit():
    mib = {1: 110.0, 2: 120, 4: 140, 8: 180, 16: 260}
    attempt, asked = attempts({n: float(n) for n in mib}, mib)
    assert [trial.images for trial in search(attempt, list(mib), room=200, fixed=100)] == [1, 2, 4, 8]
    assert asked == [1, 2, 4, 8]
    attempt, asked = attempts({n: float(n) for n in mib}, mib)
    assert search(attempt, list(mib), room=90, fixed=100) == []
    assert asked == []
    assert extrapolate({2: 120, 4: 140}, 16) == 260
    assert extrapolate({2: 120, 4: 119}, 16) == 119


def test_the_search_goes_back_when_memory_was_not_enough():
    attempt, _ = attempts({n: float(n) for n in (1, 2, 4, 8)}, fail_from=4)
    assert [trial.images for trial in search(attempt, [1, 2, 4, 8], room=1000, fixed=0)] == [1, 2]
    attempt, _ = attempts({1: 1, 2: 2}, {1: 50, 2: 500})  # more than foreseen
    assert [trial.images for trial in search(attempt, [1, 2], room=100, fixed=0)] == [1]


def test_the_search_has_little_patience(monkeypatch):
    now = iter([0.0, 10, 10, 30, 30, 70])
    monkeypatch.setattr(auto_batch.time, "monotonic", lambda: next(now))
    attempt, asked = attempts({n: float(n) for n in (1, 2, 4, 8)})
    search(attempt, [1, 2, 4, 8], room=1000, fixed=0)
    assert asked == [1, 2, 4]


SHORTAGES = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory: you tried")]


@pytest.mark.parametrize("error", [*SHORTAGES, RuntimeError("shapes cannot be multiplied")], ids=str)
def test_trials_end_where_memory_does(photos, monkeypatch, error):
    """In this process; other errors are not hidden."""
    request, forward = planned(photos), Method.forward

    def short(self: Method, images, **options):
        if len(images) >= 4:
            raise error
        return forward(self, images, **options)

    monkeypatch.setattr(auto_batch, "quickest", lambda work: 1.0 if work().isfinite() else math.nan)
    monkeypatch.setattr(Method, "forward", short)
    copied = TrialModel(trial_copy(request.model, False), request.train, request.random_inputs)
    given = (copied, [1, 2, 4, 12], CPU)
    if error not in SHORTAGES:
        with pytest.raises(RuntimeError, match="shapes"):
            auto_batch.try_sizes(*given, room=1e6, used=0)
        return
    tried = auto_batch.try_sizes(*given, room=1e6, used=0)
    assert [(trial.images, trial.images_per_second) for trial in tried] == [(1, 1), (2, 2)]
    assert 0 < tried[0].mib <= tried[1].mib


@dataclasses.dataclass(frozen=True, eq=False)
class Told(World):
    """Processes of which the others have found the given sizes."""

    others: tuple[int, ...] = ()

    def gather(self, value):
        return [value, *self.others]


def test_processes_agree_on_the_smallest(photos, monkeypatch):
    request = planned(photos)
    monkeypatch.setattr(auto_batch, "try_in_subprocess", lambda *_: [Trial(1, 1.0, 1.0), Trial(4, 4.0, 2.0)])
    given = (request, [1, 2, 4], CPU)
    assert find_micro_batch(*given, SINGLE)[0] == 4
    chosen, tried = find_micro_batch(*given, Told(size=3, others=(2, 4)))
    assert (chosen, len(tried)) == (2, 2)
    with pytest.raises(ValueError, match=r"auto: weights, optimizer state and 1 image at once need more than"):
        find_micro_batch(*given, Told(size=2, others=(0,)))  # another has no room for one: all refuse
    monkeypatch.setattr(auto_batch, "available_memory", lambda: math.inf)
    with pytest.raises(ValueError, match="nothing tells how much memory cpu has; give a number"):
        find_micro_batch(*given, SINGLE)


@pytest.mark.skipif(available_memory() == math.inf, reason="needs /proc")
def test_a_run_is_what_its_micro_batch_given_by_hand_makes_of_it(photos, tmp_path, capfd):
    """Bit for bit: trials in another process and measured readers leave weights, generators and batches alone."""
    wanted = settings(photos, batch_size="auto", epochs=1)
    pretrain("mae", wanted, tmp_path / "auto", machine=Machine(workers=0))
    run = Run(tmp_path / "auto")
    assert run.facts["settings"]["batch_size"] == 32  # of the recipe's, as many as there are images for
    tried = run.facts["tuning"]["micro_batch_trials"]
    assert [trial["images"] for trial in tried][:3] == [1, 2, 4]
    assert tried[0]["mib"] <= tried[-1]["mib"] < available_memory()
    micro_batch = run.facts["settings"]["micro_batch"]
    assert micro_batch in [trial["images"] for trial in tried]
    assert f"batch 32 ({micro_batch} at once)" in (said := capfd.readouterr().err)
    assert f"trials, images/s by images at once: 1: {tried[0]['images_per_second']:.3g} in " in said
    by_hand = replace(wanted, micro_batch=micro_batch)
    pretrain("mae", by_hand, tmp_path / "hand", machine=Machine(workers=0))
    assert fingerprint(tmp_path / "hand") == fingerprint(tmp_path / "auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trials_on_a_gpu_leave_nothing_behind(photos):
    gpu = torch.device("cuda")
    request = plan("mae", settings(photos, micro_batch="auto"), device=gpu)
    weights = {name: value.clone() for name, value in request.model.state_dict().items()}
    generators = torch.get_rng_state(), torch.cuda.get_rng_state(gpu)
    allocated = torch.cuda.memory_allocated(gpu)
    found, chosen = tuned(request, Machine(), gpu, SINGLE)
    assert found.settings.micro_batch in [trial.images for trial in chosen.trials]
    assert all(torch.equal(value, weights[name]) for name, value in request.model.state_dict().items())
    assert all(map(torch.equal, generators, (torch.get_rng_state(), torch.cuda.get_rng_state(gpu))))
    assert torch.cuda.memory_allocated(gpu) == allocated


def test_a_method_that_fails_is_left_to_the_training(photos, monkeypatch):
    request = planned(photos)
    assert speed_of(request, 12, CPU) > 0
    assert speed_of(request, 1, CPU, recompute=True) > 0
    monkeypatch.setattr(Method, "forward", None)
    assert speed_of(request, 12, CPU) is None


def test_an_automatic_batch_is_the_recipes_with_an_automatic_micro_batch(photos):
    wanted = Settings(data=photos, batch_size="auto")
    assert wanted == Settings(data=photos, micro_batch="auto") == Settings(**{**asdict(wanted), "batch_size": "auto"})
    assert Settings.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted
    request = planned(photos, batch_size="auto")
    assert request.recipe.train.batch_size == 32
    with pytest.raises(ValueError, match="--batch-size auto looks for what --micro-batch 8 says: give one of them"):
        Settings(data=photos, batch_size="auto", micro_batch=8)


@pytest.mark.parametrize("flag", ["--batch-size", "--micro-batch"])
def test_other_words_are_refused(flag, tmp_path, capsys):
    assert main(["pretrain", "mae", "--data", "photos", "--out", str(tmp_path / "run"), flag, "automatic"]) == 2
    assert capsys.readouterr().err == f"mimkit: {flag} cannot be 'automatic'\n"


def test_repeats_make_a_batch_of_fewer_images(photos):
    """35 images train: with two views each they make a batch of 70, which the loader agrees with, and none larger."""
    request = planned(photos, batch_size=70, repeats=2)
    assert len(request.train_images) == 35
    assert len(request.batches(0).micro_batch_at(0)) == 70
    with pytest.raises(ValueError, match=r"--batch-size 72 is more than the 35 training images .* --repeats 2"):
        planned(photos, batch_size=72, repeats=2)
    with pytest.raises(ValueError, match="--repeats 5 does not divide the 12 images"):
        planned(photos, repeats=5)
    with pytest.raises(ValueError, match="--repeats 2 does not divide the 3 images computed at once"):
        planned(photos, repeats=2, micro_batch=3)
    shrunk = planned(photos, batch_size=None, repeats=3)
    assert shrunk.recipe.train.batch_size == 96  # of the recipe's 4096; 32 images, three views each
    assert shrunk.batches(0).micro_batch == 96
