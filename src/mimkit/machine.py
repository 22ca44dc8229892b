"""The machine that a run finds itself on: its devices and cores, what is installed, which code runs."""

import importlib.util
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mimkit.settings import Machine


def choose_device(name: str) -> torch.device:
    """The named device; "auto" takes a GPU where there is one. Processes of torchrun take one each.

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
    """The given number of reading processes, or one for each two cores, at least one, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // 2)) if workers is None else workers


def device_name(device: torch.device) -> str:
    """The GPU's or processor's own name, where it tells."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type


def machine_in_words(device: torch.device) -> str:
    """Device, cores and system."""
    return f"{device_name(device)}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def git_commit() -> str | None:
    """The commit of the checkout that mimkit runs from, or None."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def require_sinks(machine: Machine) -> None:
    """Raise ValueError where a package that the machine's options need is missing."""
    if machine.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs the package: pip install 'mimkit[tensorboard]'")


def tensorboard_sink(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Writes every number of a row to TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("step", "epoch"):
                writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])
        writer.flush()

    return write
