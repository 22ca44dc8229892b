"""The hardware that a run finds: devices, cores and memory; and the git commit that runs."""

import math
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch


def choose_device(name: str) -> torch.device:
    """The named device; "auto" takes a GPU where there is one. Ranks of torchrun take one each.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def choose_workers(workers: int | None) -> int:
    """The given number of data workers, or one for each two cores, at least one, at most eight."""
    return min(8, max(1, cores() // 2)) if workers is None else workers


def cores() -> int:
    """Cores for this process: those it may run on, divided among the ranks on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // local_ranks())


def local_ranks() -> int:
    """How many ranks torchrun started on this machine, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def available_memory(root: Path = Path("/")) -> float:
    """MiB that this process may still take: what is left, divided among the ranks on this machine.

    That is what the machine has available, or less where a control group (a container, a job of a cluster) allows less.
    inf where the system does not tell.

    Args:
        root: of the file system.
    """
    free = [int(line.split()[1]) / 1024 for line in lines_of(root / "proc/meminfo", "MemAvailable:")]
    for line in lines_of(root / "proc/self/cgroup"):
        number, controllers, place = line.split(":", 2)
        names = _GROUPS.get("unified" if number == "0" else controllers)
        if names is None:
            continue
        mount, limit, used, reclaimable = names
        top = root / "sys/fs/cgroup" / mount
        group = top / place.strip("/")
        # A container may see its own group at the top, under the name that it has outside.
        for folder in (group, *group.parents):
            most, taken = ("".join(lines_of(folder / name)) for name in (limit, used))
            if most.isdecimal() and taken.isdecimal():
                cached = sum(int(line.split()[1]) for line in lines_of(folder / "memory.stat", reclaimable + " "))
                free.append((int(most) - int(taken) + cached) / 2**20)
            if folder == top:
                break
    return max(0.0, min(free, default=math.inf) / local_ranks())


def shared_memory(folder: Path = Path("/dev/shm")) -> float:
    """MiB for batches from data workers: what is left, divided among the local ranks. Containers often have little."""
    return shutil.disk_usage(folder).free / 2**20 / local_ranks() if folder.exists() else math.inf


# Where a kind of control groups is mounted, and its files: the limit, what is used, and of that what files are cached.
_GROUPS = {
    "unified": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def resident(field: str) -> float:
    """This process's memory in MiB: VmRSS is what it has now, VmHWM the most it had (Linux; nan elsewhere)."""
    return next((int(line.split()[1]) / 1024 for line in lines_of(Path("/proc/self/status"), field)), math.nan)


def lines_of(path: Path, start: str = "") -> list[str]:
    """Lines of a file that begin so; none where there is no such file, or it cannot be read."""
    try:
        return [line for line in path.read_text().splitlines() if line.startswith(start)]
    except OSError:
        return []


def device_name(device: torch.device) -> str:
    """The name of the GPU or processor, where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = (line.partition(":")[2].strip() for line in lines_of(Path("/proc/cpuinfo"), "model name"))
    return next(names, "") or platform.processor() or device.type


def machine_in_words(device: torch.device) -> str:
    """Device, cores and system."""
    return f"{device_name(device)}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def git_commit() -> str | None:
    """The commit of the checkout that mimkit runs from, or None."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
