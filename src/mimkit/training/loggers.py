"""Further loggers for the rows of a run: TensorBoard."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mimkit.training.machine import Machine


def require_loggers(machine: Machine) -> None:
    """Raise ValueError where a package that the machine's options need is missing."""
    if machine.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs the package: pip install 'mimkit[tensorboard]'")


def tensorboard_sink(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes the numbers of a row to TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("step", "epoch"):
                writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])
        writer.flush()

    return write
