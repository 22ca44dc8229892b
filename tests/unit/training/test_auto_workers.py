"""What a run finds out before it starts, and that what it trains does not depend on it."""

import dataclasses
import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from helpers.plans import planned, settings
from mimkit.cli.main import main
from mimkit.method import Method
from mimkit.plan import plan
from mimkit.pretraining import pretrain
from mimkit.settings import Machine, Settings
from mimkit.training import auto_batch as trials
from mimkit.training import auto_workers as tuning
from mimkit.training.auto_batch import (
    Trial,
    a_copy,
    cheapest,
    divisors,
    doubling,
    find_micro_batch,
    on_a_line,
    search,
    speed_of,
)
from mimkit.training.auto_workers import Tuning, readers, reading_times, tuned
from mimkit.training.distributed import ALONE, World
from mimkit.training.hardware import available_memory, choose_workers, cores
from mimkit.training.run_folder import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos) -> Path:
    folder = make_photos(tmp_path_factory.mktemp("tuning") / "photos", count=40, classes=2)
    sorted(folder.rglob("*.png"))[3].write_bytes(b"no picture")
    return folder


# Sizes


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
    assert on_a_line({2: 120, 4: 140}, 16) == 260
    assert on_a_line({2: 120, 4: 119}, 16) == 119


def test_the_search_goes_back_when_memory_was_not_enough():
    attempt, _ = attempts({n: float(n) for n in (1, 2, 4, 8)}, fail_from=4)
    assert [trial.images for trial in search(attempt, [1, 2, 4, 8], room=1000, fixed=0)] == [1, 2]
    attempt, _ = attempts({1: 1, 2: 2}, {1: 50, 2: 500})  # more than foreseen
    assert [trial.images for trial in search(attempt, [1, 2], room=100, fixed=0)] == [1]


def test_the_search_has_little_patience(monkeypatch):
    now = iter([0.0, 10, 10, 30, 30, 70])
    monkeypatch.setattr(trials.time, "monotonic", lambda: next(now))
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

    monkeypatch.setattr(trials, "quickest", lambda work: 1.0 if work().isfinite() else math.nan)
    monkeypatch.setattr(Method, "forward", short)
    given = (a_copy(request.method, False), request.recipe, [1, 2, 4, 12], CPU)
    if error not in SHORTAGES:
        with pytest.raises(RuntimeError, match="shapes"):
            trials.tried(*given, room=1e6, used=0)
        return
    tried = trials.tried(*given, room=1e6, used=0)
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
    monkeypatch.setattr(trials, "tried_elsewhere", lambda *_: [Trial(1, 1.0, 1.0), Trial(4, 4.0, 2.0)])
    given = ("mae", request.settings, request.recipe, request.method, [1, 2, 4], CPU)
    assert find_micro_batch(*given, ALONE)[0] == 4
    chosen, tried = find_micro_batch(*given, Told(size=3, others=(2, 4)))
    assert (chosen, len(tried)) == (2, 2)
    with pytest.raises(ValueError, match=r"--micro-batch auto: weights, moments and 1 image at once need more than"):
        find_micro_batch(*given, Told(size=2, others=(0,)))  # another has no room for one: all refuse
    monkeypatch.setattr(trials, "available_memory", lambda: math.inf)
    with pytest.raises(ValueError, match="nothing tells how much memory cpu has; give a number"):
        find_micro_batch(*given, ALONE)


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


def fingerprint(run: Path) -> dict[str, str]:
    newest = max((run / "checkpoints").glob("step-*"))
    files = [newest / "weights.safetensors", newest / "training.safetensors", run / "log.jsonl"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_trials_on_a_gpu_leave_nothing_behind(photos):
    gpu = torch.device("cuda")
    request = plan("mae", settings(photos, micro_batch="auto"), device=gpu)
    weights = {name: value.clone() for name, value in request.method.state_dict().items()}
    generators = torch.get_rng_state(), torch.cuda.get_rng_state(gpu)
    allocated = torch.cuda.memory_allocated(gpu)
    found, chosen = tuned(request, Machine(), gpu, ALONE)
    assert found.settings.micro_batch in [trial.images for trial in chosen.trials]
    assert all(torch.equal(value, weights[name]) for name, value in request.method.state_dict().items())
    assert all(map(torch.equal, generators, (torch.get_rng_state(), torch.cuda.get_rng_state(gpu))))
    assert torch.cuda.memory_allocated(gpu) == allocated


# Readers


def test_measuring_leaves_no_trace(photos, monkeypatch):
    """Not in weights, gradients and generators, nor in torch's threads; and a request without `auto` stays as it is."""
    request = planned(photos, image_size=(64,))
    weights = {name: value.clone() for name, value in request.method.state_dict().items()}
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    same, chosen = tuned(request, Machine(), CPU, ALONE)
    assert same is request
    assert chosen.read > 0
    assert chosen.computed > 0
    assert 1 <= chosen.workers <= cores()
    assert chosen.prefetch >= 2
    assert chosen.trials == []
    assert all(torch.equal(value, weights[name]) for name, value in request.method.state_dict().items())
    assert all(parameter.grad is None for parameter in request.method.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    (line,) = chosen.in_words()
    assert line.startswith(f"reading: {chosen.workers} process")
    json.dumps(chosen.to_json(), allow_nan=False)


def test_workers_given_by_hand_are_not_measured(photos, monkeypatch):
    monkeypatch.setattr(tuning, "reading_times", None)
    monkeypatch.setattr(tuning, "speed_of", None)
    request = planned(photos)
    assert tuned(request, Machine(workers=3), CPU, ALONE) == (request, Tuning(workers=3, trials=[]))
    assert Tuning(workers=3).in_words() == []


def test_a_trial_has_told_how_fast_steps_are(photos, monkeypatch):
    request = planned(photos, micro_batch="auto")
    found = [Trial(1, 2.0, 1.0), Trial(4, 8.0, 1.0), Trial(12, 8.1, 1.0)]
    monkeypatch.setattr(tuning, "find_micro_batch", lambda *_, **__: (4, found))
    monkeypatch.setattr(tuning, "speed_of", None)
    request, chosen = tuned(request, Machine(), CPU, ALONE)
    assert (request.settings.micro_batch, request.parts) == (4, 3)
    assert request.batches(0).share == 4
    assert chosen.computed == 8
    assert chosen.to_json()["micro_batch_trials"] == [asdict(trial) for trial in found]


def test_enough_readers_to_be_faster_than_the_device():
    steady = [0.01] * 20  # 100 images per second
    assert readers(steady, 50, 8, most=8, fitting=100) == (1, 2)
    assert readers(steady, 200, 8, most=8, fitting=100) == (3, 2)
    assert readers(steady, 5000, 8, most=8, fitting=100)[0] == 8  # more would not help
    assert readers(steady, 200, 8, most=8, fitting=4) == (3, 1)  # where memory is short
    assert readers(steady, 200, 8, most=8, fitting=0) == (1, 1)


def test_readers_are_further_ahead_where_images_differ():
    uneven = [0.001] * 19 + [0.5]
    workers, ahead = readers(uneven, 100, 2, most=16, fitting=1000)
    slow = 2 * sum(uneven) / 20 + 3 * math.sqrt(2) * torch.tensor(uneven).std(correction=0).item()
    assert ahead > 2
    assert ahead * workers >= slow * 100 / 2 > (ahead - 1) * workers  # computed while a slow batch is read
    assert readers(uneven, 100, 256, most=16, fitting=1000)[1] == 2  # in large batches it evens out


def test_bad_images_do_not_stop_the_measurement(photos, tmp_path, make_photos):
    request = planned(photos)
    assert len(reading_times(request.batches(0))) == 64
    assert len(reading_times(planned(photos, repeats=2).batches(0))) == 64
    bad = make_photos(tmp_path / "bad", count=20)
    request = planned(bad, batch_size=4, image_size=(64,))
    for path in bad.rglob("*.png"):
        path.write_bytes(b"")
    assert reading_times(request.batches(0)) == []
    _, chosen = tuned(request, Machine(), CPU, ALONE)
    assert chosen == Tuning(workers=choose_workers(None), trials=[])


def test_a_method_that_fails_is_left_to_the_training(photos, monkeypatch):
    request = planned(photos)
    assert speed_of(a_copy(request.method, False), request.recipe, 12, CPU) > 0
    assert speed_of(a_copy(request.method, True), request.recipe, 1, CPU) > 0
    monkeypatch.setattr(Method, "forward", None)
    assert speed_of(request.method, request.recipe, 12, CPU) is None


# Raised by Python 3.12 and later for torch's own way to start workers.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_measured_readers_change_no_result(photos, tmp_path):
    for name, workers in (("measured", None), ("none", 0)):
        pretrain("mae", settings(photos), tmp_path / name, machine=Machine(workers=workers))
    assert Run(tmp_path / "measured").facts["tuning"]["workers"] >= 1
    assert Run(tmp_path / "none").facts["tuning"]["workers"] == 0
    assert fingerprint(tmp_path / "measured") == fingerprint(tmp_path / "none")


# Requests


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
    assert len(request.train) == 35
    assert len(request.batches(0).part(0)) == 70
    with pytest.raises(ValueError, match=r"--batch-size 72 is more than the 35 training images .* --repeats 2"):
        planned(photos, batch_size=72, repeats=2)
    with pytest.raises(ValueError, match="--repeats 5 does not divide the 12 images"):
        planned(photos, repeats=5)
    with pytest.raises(ValueError, match="--repeats 2 does not divide the 3 images computed at once"):
        planned(photos, repeats=2, micro_batch=3)
    shrunk = planned(photos, batch_size=None, repeats=3)
    assert shrunk.recipe.train.batch_size == 96  # of the recipe's 4096; 32 images, three views each
    assert shrunk.batches(0).share == 96


# The machine


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 16384000 kB\nMemFree: 1024 kB\nMemAvailable: 8192000 kB\n"}
GIB = 2**30


def test_memory_is_what_machine_and_groups_allow(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_memory(write(tmp_path / "no groups", MEMINFO)) == 8000
    assert available_memory(tmp_path / "elsewhere") == math.inf
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(tmp_path / "no groups") == 2000


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used", "stat"),
    [
        ("0::/jobs/17", "", "memory.max", "memory.current", "inactive_file"),
        (
            "4:memory:/jobs/17",
            "memory/",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
@pytest.mark.parametrize("place", ["jobs/17/", "jobs/", ""])
def test_memory_of_a_group_or_those_around_it(tmp_path, monkeypatch, line, folder, limit, used, stat, place):
    """Also where the group's own folder is not to be seen, as in a container. What caches files can be given back."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    group = f"sys/fs/cgroup/{folder}{place}"
    files = {f"{group}{limit}": f"{4 * GIB}\n", f"{group}{used}": f"{3 * GIB}\n"}
    files |= {f"{group}memory.stat": f"file 5\n{stat} {GIB // 2}\n{stat}_other 7\n"}
    root = write(tmp_path, MEMINFO | {"proc/self/cgroup": f"9:name=systemd:/\n{line}\n"} | files)
    assert available_memory(root) == 1536
    (root / f"{group}{limit}").write_text("max\n" if limit == "memory.max" else "9223372036854771712\n")
    assert available_memory(root) == 8000
    (root / f"{group}{limit}").write_text(f"{GIB}\n")
    assert available_memory(root) == 0


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = cores()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(12), raising=False)
    assert cores() == 12
    assert choose_workers(None) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert cores() == 1 <= alone
    assert (choose_workers(None), choose_workers(0), choose_workers(7)) == (1, 0, 7)
