"""Runs of a few seconds on the command line: their settings, their processes, and checksums of what they leave."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
from dataclasses import fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mimkit.cli.main import main
from mimkit.errors import flag
from mimkit.settings import Settings

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


def as_flags(settings: Settings | dict[str, Any]) -> list[str]:
    """Settings as the command line takes them: all that are given in a dict, or those that differ from the defaults."""
    if isinstance(settings, Settings):
        values = {f.name: getattr(settings, f.name) for f in fields(Settings)}
        settings = {f.name: values[f.name] for f in fields(Settings) if values[f.name] != f.default}
    words = []
    for name, value in settings.items():
        words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def rows_logged(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.exists() else 0


def fingerprint(out: Path) -> dict[str, str]:
    """Checksums of all that must not depend on interruptions."""
    newest = max((out / "checkpoints").glob("step-*"))
    files = [newest / "weights.safetensors", newest / "training.safetensors", out / "log.jsonl"]
    files += sorted((out / "reconstructions").iterdir())
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
