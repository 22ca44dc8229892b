"""Memory and cores that a process may use."""

import math
from pathlib import Path

import pytest

from mimkit.training.hardware import available_memory, choose_workers, cores


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
