"""A run whose processes are killed at random, more than fifty times, ends as one that is left alone."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import runs
from helpers.runs import fingerprint, start

KILLS = 60
EPOCHS = 80  # so that the run does not end before them


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Its reading processes: children that run the same command, by what /proc tells."""

    def command(pid: int) -> bytes:
        return Path(f"/proc/{pid}/cmdline").read_bytes()

    with contextlib.suppress(OSError):
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in found if command(int(pid)) == command(process.pid)]
    return []


def newest(run: Path) -> str:
    """The name of the last checkpoint."""
    return max((path.name for path in (run / "checkpoints").glob("step-*")), default="")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find reading processes")
def test_killed_all_the_time_ends_bit_identical(tmp_path, make_photos, monkeypatch):
    monkeypatch.setattr(runs, "EPOCHS", EPOCHS)
    photos = make_photos(tmp_path / "photos", count=40, classes=2)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed, photos).wait(timeout=300) == 0

    rng = random.Random(1)
    victims = {"main": 0, "worker": 0}
    for kill in range(KILLS):
        process = start(killed, photos)
        wanted = "worker" if kill % 3 == 0 else "main"
        began, early = newest(killed), kill % 4 == 1  # before anything is saved, such as in the first probe
        while process.poll() is None and not (workers_of(process) and (early or newest(killed) != began)):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.08))
        while process.poll() is None:
            workers = workers_of(process)
            if workers or wanted == "main":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers) if wanted == "worker" else process.pid, signal.SIGKILL)
                    victims[wanted] += 1
                break
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # a worker whose loss came too late to matter
            process.kill()
            code = process.wait()
        assert code in (-signal.SIGKILL, 1), (tmp_path / "output.txt").read_text()
    assert sum(victims.values()) >= 50, victims
    assert min(victims.values()) >= 10, victims
    assert start(killed, photos).wait(timeout=300) == 0
    assert fingerprint(killed) == fingerprint(undisturbed)
