"""A run that is killed again and again ends with the same weights, log and pictures as one that is left alone."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest

from helpers.runs import fingerprint, rows_logged, settings, start_soon
from mimkit.cli.main import main
from mimkit.training.checkpoint import recover
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

KILLS = 8  # test_soak.py has many more


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs to fork")
def test_killed_at_random_moments_ends_bit_identical(tmp_path, make_photos):
    photos = make_photos(tmp_path / "photos", count=40, classes=2)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    expected = start_soon(undisturbed, photos)

    rng = random.Random(0)
    for kill in range(KILLS):
        process = start_soon(killed, photos)
        more = rows_logged(killed) + rng.randrange(2)  # so that the kills spread over the run
        while process.is_alive() and rows_logged(killed) < more:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        assert process.is_alive(), f"the run ended before kill {kill}: {(tmp_path / 'output.txt').read_text()}"
        process.kill()
        process.join()
    process = start_soon(killed, photos)
    for one in (expected, process):
        one.join(300)
        assert one.exitcode == 0, (tmp_path / "output.txt").read_text()
    assert fingerprint(killed) == fingerprint(undisturbed)


def test_a_torn_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path, make_photos):
    from mimkit.pretraining import pretrain, resume

    photos = make_photos(tmp_path / "photos", count=20, classes=2)
    run = tmp_path / "run"
    pretrain("small", settings(photos), run, machine=Machine(workers=0, checkpoint_minutes=0))
    whole = fingerprint(run)
    before, newest = sorted((run / "checkpoints").glob("step-*"))
    with (newest / "weights.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.warns(UserWarning, match=r"is damaged .*weights\.safetensors.*trying the one before"):
        assert recover(run / "checkpoints").state["step"] == int(before.name.removeprefix("step-"))
    assert (run / "checkpoints" / f"torn-{newest.name}").is_dir()
    resume(Run(run), machine=Machine(workers=0, checkpoint_minutes=0))
    assert fingerprint(run) == whole


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, make_photos, capfd):
    photos = make_photos(tmp_path / "photos", count=20, classes=2)
    arguments = ["small", "--data", str(photos), "--image-size", "32", "--batch-size", "4", "--epochs", "20000"]
    arguments += ["--mask-ratio", "0.75"]
    somebody = threading.Thread(target=terminate_when_logged, args=(tmp_path / "run", os.getpid()))
    somebody.start()
    code = main(["pretrain", *arguments, "--out", str(tmp_path / "run"), "--workers", "0", "--probe-every", "20000"])
    somebody.join()
    assert code == 0
    said, saved = capfd.readouterr(), recover(tmp_path / "run" / "checkpoints").state["step"]
    assert said.out == f"stopped: {tmp_path / 'run'}\n"
    steps = Run(tmp_path / "run").facts["steps"]
    assert said.err.splitlines()[-1].startswith(
        f"stopped, step {saved} of {steps} saved; go on with: mimkit resume {tmp_path / 'run'}, or mimkit.resume("
    )
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert saved >= max(row["step"] for row in logged) >= 10


def terminate_when_logged(run: Path, pid: int) -> None:
    """Send SIGTERM to a process once its run has logged training rows."""
    for _ in range(6000):
        if rows_logged(run):
            os.kill(pid, signal.SIGTERM)
            return
        time.sleep(0.01)


def test_resuming_with_other_images_is_refused(tmp_path, make_photos):
    from mimkit.pretraining import pretrain, resume

    photos = make_photos(tmp_path / "photos", count=20, classes=2)
    with warnings.catch_warnings():
        pretrain("small", settings(photos), tmp_path / "run", machine=Machine(workers=0))
    next(photos.rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="no longer those"):
        resume(Run(tmp_path / "run"), machine=Machine(workers=0))
