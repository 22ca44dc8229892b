"""A run whose processes are killed at random, more than fifty times, ends as one that is left alone."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_resume import fingerprint, rows_logged, start

KILLS = 60


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
def test_killed_all_the_time_ends_bit_identical(tmp_path, make_photos):
    photos = make_photos(tmp_path / "photos", count=40, classes=2)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed, photos).wait(timeout=300) == 0

    rng = random.Random(1)
    victims = {"main": 0, "worker": 0}
    for _ in range(KILLS):
        process = start(killed, photos)
        lines = rows_logged(killed)
        while process.poll() is None and rows_logged(killed) <= lines and not children(process):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        workers = children(process)
        if process.poll() is None and workers and rng.random() < 0.4:
            victims["worker"] += 1
            os.kill(rng.choice(workers), signal.SIGKILL)
            code = process.wait(timeout=300)
            assert code in (0, 1), (tmp_path / "output.txt").read_text()
        elif process.poll() is None:
            victims["main"] += 1
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert sum(victims.values()) >= 50, victims
    assert min(victims.values()) >= 10, victims
    assert start(killed, photos).wait(timeout=300) == 0
    assert fingerprint(killed) == fingerprint(undisturbed)
