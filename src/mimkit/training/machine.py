"""Options of the machine that a job runs on. Imports no torch, so that `--help` is fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimkit.errors import flag
from mimkit.files import home
from mimkit.typed import check_types

MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Options that may differ from machine to machine without changing results.

    In Python, a whole float is taken for an int and an int for a float, NumPy's numbers for Python's, and a string for
    a path; bools, strings, NaN and infinities are no numbers, and None only is what the defaults say.

    Raises:
        ValueError: a value of another type, or out of bounds; the message names its flag.
    """

    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""
    workers: int | None = None
    """Data workers, processes that read images; default: as many as read faster than the device computes, by a short
    measurement. On a CPU computing is slower than reading, and workers take cores from it: one is often enough."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; 0 writes one after each step."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: each process holds the whole model (ddp), or a shard of every parameter (fsdp)."""
    recompute: bool = False
    """Keep only the inputs of each block for the backward pass, and compute the block again: less memory, more time."""
    sharded_checkpoints: bool = False
    """Under torchrun: each process writes the shards it holds, for models too large to be gathered in one."""
    cache: Path | None = None
    """Where shards from URLs are kept while they are in use; default: MIMKIT_CACHE, or this system's cache folder."""
    cache_gb: float | None = None
    """Gigabytes kept there at most; default: MIMKIT_CACHE_GB, or 50."""
    tensorboard: bool = False
    """Also write TensorBoard events (pip install mimkit[tensorboard])."""

    def __post_init__(self) -> None:
        if type(self.device).__module__ == "torch":  # torch.device
            object.__setattr__(self, "device", str(self.device))
        check_types(self)
        if self.cache is not None:
            object.__setattr__(self, "cache", home(self.cache))
        for name in ("workers", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{flag(name)} must be at least 0, got {value}")
        if self.workers is not None and self.workers > MOST_WORKERS:
            raise ValueError(f"--workers must be at most {MOST_WORKERS}, got {self.workers}")
        if self.cache_gb is not None and self.cache_gb <= 0:
            raise ValueError(f"--cache-gb must be above 0, got {self.cache_gb}")
