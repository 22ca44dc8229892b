"""A run that is killed again and again ends with the same weights, log and pictures as one that is left alone."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import fields
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mimkit.cli.main import main
from mimkit.errors import flag
from mimkit.settings import Settings
from mimkit.training.checkpoint import recover
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run

KILLS = 8  # test_soak.py has many more
EPOCHS = 12


def settings(photos: Path) -> Settings:
    """A few seconds of training that use every part with randomness: crops, masks, dropped paths' generator, probes."""
    return Settings(
        data=photos, backbone="test_vit", image_size=(32,), mask_ratio=0.75, batch_size=8, micro_batch=4, epochs=EPOCHS,
        log_every=3, probe_every=4, decoder_width=32, decoder_heads=2, warmup_epochs=1.0,
    )  # fmt: skip


def command(out: Path, photos: Path) -> list[str]:
    """What begins the run, or goes on with it."""
    common = ["--workers", "1", "--checkpoint-minutes", "0.002"]
    if (out / "run.json").exists():
        return ["resume", str(out), *common]
    return ["pretrain", "small", *as_flags(settings(photos)), "--out", str(out), *common]


def start(out: Path, photos: Path) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it, in a process of its own."""
    with (out.parent / "output.txt").open("ab") as output:
        arguments = [sys.executable, "-m", "mimkit", *command(out, photos)]
        return subprocess.Popen(arguments, stdout=output, stderr=output)


def start_soon(out: Path, photos: Path) -> BaseProcess:
    """The same in a fork of a process that has loaded all modules, which is faster."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mimkit.cli.main", "mimkit.pretraining", "mimkit.report", "sklearn.linear_model"])
    process = context.Process(target=work, args=(command(out, photos), out.parent / "output.txt"))
    process.start()
    return process


def work(arguments: list[str], output: Path) -> None:
    """One command, in a process that is started for it."""
    multiprocessing.set_start_method(None, force=True)  # reading processes start as they do elsewhere
    with output.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.exit(main(arguments))


def as_flags(settings: Settings) -> list[str]:
    """The settings that differ from the defaults, as the command line takes them."""
    given = {f.name: getattr(settings, f.name) for f in fields(Settings) if getattr(settings, f.name) != f.default}
    words = {name: value if isinstance(value, tuple) else (value,) for name, value in given.items()}
    return [str(word) for name, values in words.items() for word in (flag(name), *values)]


def rows_logged(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.exists() else 0


def fingerprint(out: Path) -> dict[str, str]:
    """Checksums of all that must not depend on interruptions."""
    newest = max((out / "checkpoints").glob("step-*"))
    files = [newest / "weights.safetensors", newest / "training.safetensors", out / "log.jsonl"]
    files += sorted((out / "reconstructions").iterdir())
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


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
    assert f"resume with: mimkit resume {tmp_path / 'run'}" in capfd.readouterr().out
    saved = recover(tmp_path / "run" / "checkpoints").state["step"]
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
