"""Data workers that are no forks, as on macOS, on Windows and in Python 3.14: the same runs, own recipes included."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mimkit
from helpers.runs import as_flags, fingerprint
from helpers.tiny import TINY
from mimkit.training.run_folder import Run

PHOTOS = {"count": 24, "classes": 2}
RECIPE = """
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from parts import Shifted
from mimkit.recipes import Recipe, mae
from mimkit.targets import Pixels
from mimkit.views import RandomResizedCrop


@dataclass(frozen=True)
class Darker(RandomResizedCrop):
    by: float = 0.5

    def __call__(self, image, size, rng):
        return (super().__call__(image, size, rng) * self.by).astype(np.uint8)


def recipe() -> Recipe:
    return replace(mae(), view=Darker(), target=Shifted())
"""
PARTS = """
from dataclasses import dataclass

from mimkit.targets import Pixels


@dataclass(frozen=True)
class Shifted(Pixels):
    def __call__(self, images, grids):
        return super().__call__(images + 1, grids)
"""
SHORT = TINY["mae"] | {"batch_size": 8, "epochs": 4, "log_every": 1, "probe_every": 4, "precision": "fp32"}
METHODS = [name for name in ("spawn", "forkserver") if name in multiprocessing.get_all_start_methods()]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "parts.py").write_text(PARTS)
    (folder / "mine.py").write_text(RECIPE)
    return folder / "mine.py"


def pretrain(recipe: Path, photos: Path, out: Path, workers: int) -> list[str]:
    flags = [*as_flags(SHORT), "--workers", str(workers), "--device", "cpu"]
    return ["pretrain", f"{recipe}:recipe", "--data", str(photos), "--out", str(out), *flags]


@pytest.fixture(scope="module")
def alone(recipe, photos, tmp_path_factory) -> dict[str, str]:
    """What a run leaves that reads in its own process, on as many threads as the others compute."""
    out = tmp_path_factory.mktemp("alone") / "run"
    python(f"from mimkit.cli.main import main\nassert main({pretrain(recipe, photos, out, workers=0)}) == 0\n")
    return fingerprint(out)


def environment() -> dict[str, str]:
    """Where another interpreter finds mimkit and the tests' helpers."""
    places = [str(Path(__file__).parents[1]), str(Path(mimkit.__file__).parents[1])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}


def python(code: str) -> str:
    """What an interpreter without a main file says."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("method", METHODS)
def test_runs_are_the_same(recipe, photos, alone, tmp_path, method):
    """One is stopped on the way, resumed and probed, by processes that start sooner."""
    out, stop = tmp_path / "run", None
    commands = [pretrain(recipe, photos, out, workers=1)]
    if method == "forkserver":
        stop, own = 5, ["--recipe", f"{recipe}:recipe", "--workers", "1", "--device", "cpu"]
        commands += [["resume", str(out), *own], ["probe", str(out), "--data", str(photos), *own]]
    said = python(
        "from helpers.start_method import begin\n"
        "from mimkit.cli.main import main\n"
        f"begin({method!r}, {stop})\n"
        f"for command in {commands}:\n"
        "    assert main(command) == 0, command\n"
    )
    assert (f"stopped: {out}" in said) == (stop is not None)
    assert fingerprint(out) == alone


UNSENDABLE = """
import sys
from functools import partial

from helpers.start_method import begin
from mimkit.data.workers import in_order
from mimkit.errors import CannotBeSent

class Known:
    def __call__(self, number): return number

def named(number): return number

def local():
    def inner(number): return number
    return inner

begin("spawn")
for make in (Known(), named, lambda number: number, local(), partial(print, file=sys.stdout)):
    try:
        print([*in_order(make, range(2), workers=1)])
    except CannotBeSent as error:
        print(error)
"""


def test_what_cannot_be_sent_is_one_line():
    lines = python(UNSENDABLE).splitlines()
    for line, what in zip(lines, ("Known", "named", "<lambda>", "inner", "TextIOWrapper"), strict=True):
        assert line.startswith("data workers cannot be sent what they need: ")
        assert what in line
        assert line.endswith("or read without workers: --workers 0, Machine(workers=0)")


UNNAMED = """
import sys

import mimkit
from dataclasses import replace
from helpers.start_method import begin

begin("spawn")
recipe = replace(mimkit.recipes.small(), view=lambda image, size, rng: mimkit.views.CenterCrop()(image, size))
settings = dict(backbone="test_vit", image_size=32, mask_ratio=0.75, epochs=1, batch_size=8, held_out=0, device="cpu")
mimkit.pretrain(recipe, data=sys.argv[1], out=sys.argv[2], **settings)
"""


def test_what_cannot_be_sent_is_read_in_the_process_itself(photos, tmp_path):
    """Where nobody has asked for workers."""
    command = [sys.executable, "-c", UNNAMED, str(photos), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=True)
    assert "reading in this process: data workers cannot be sent what they need: <lambda>" in done.stderr
    assert Run(tmp_path / "run").rows("end")


UNGUARDED = """
import multiprocessing
import sys

import mimkit

if multiprocessing.current_process().name == "MainProcess":
    multiprocessing.set_start_method("spawn")
photos, out = sys.argv[1:]
settings = mimkit.Settings(data=photos, backbone="test_vit", image_size=32, mask_ratio=0.75, epochs=1, held_out=0)
mimkit.pretrain("small", settings, out, machine=mimkit.Machine(workers=1, device="cpu"), overwrite=True)
"""


def test_a_program_that_its_workers_import_is_told_what_to_do(photos, tmp_path):
    """They would begin its run once more, over the one that started them."""
    (tmp_path / "program.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "program.py"), str(photos), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 1
    assert 'ValueError: data workers import this program: put what it does below `if __name__ == "__main__":`' in (
        done.stderr
    )
    assert "a data worker died in step 1" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run" / "run.json").is_file()
