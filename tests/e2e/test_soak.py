"""A run whose processes are killed at random, more than fifty times, ends as one that is left alone."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import test_resume
from test_resume import fingerprint, start

KILLS = 60
EPOCHS = 80  # so that the run does not end before them


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a process started, by what /proc tells."""
    try:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except OSError:
        return []
    return [int(number) for number in found.split()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find reading processes")
def test_killed_all_the_time_ends_bit_identical(tmp_path, make_photos, monkeypatch):
    monkeypatch.setattr(test_resume, "EPOCHS", EPOCHS)
    photos = make_photos(tmp_path / "photos", count=40, classes=2)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed, photos).wait(timeout=300) == 0

    rng = random.Random(1)
    victims = {"main": 0, "worker": 0}
    for kill in range(KILLS):
        process = start(killed, photos)
        wanted = "worker" if kill % 3 == 0 else "main"
        while process.poll() is None and not children(process):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.08))
        while process.poll() is None:
            workers = children(process)
            if workers or wanted == "main":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers) if wanted == "worker" else process.pid, signal.SIGKILL)
                    victims[wanted] += 1
                break
        code = process.wait(timeout=300)  # the loss of a worker may come too late to matter
        assert code in ((0, 1) if wanted == "worker" else (-signal.SIGKILL,)), (tmp_path / "output.txt").read_text()
    assert sum(victims.values()) >= 50, victims
    assert min(victims.values()) >= 10, victims
    assert start(killed, photos).wait(timeout=300) == 0
    assert fingerprint(killed) == fingerprint(undisturbed)
