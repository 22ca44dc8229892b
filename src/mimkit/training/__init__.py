"""Training: the loop, checkpoints, several ranks, precision. It knows a model by its `.loss`, and no method.

Names below are imported on first use, so that `training.machine` alone loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimkit.training.distributed import SINGLE as SINGLE
    from mimkit.training.distributed import World as World
    from mimkit.training.job import Job as Job
    from mimkit.training.job import Reading as Reading
    from mimkit.training.launch import start_or_resume as start_or_resume
    from mimkit.training.loop import Batches as Batches
    from mimkit.training.loop import Evaluator as Evaluator
    from mimkit.training.loop import OnAllRanks as OnAllRanks
    from mimkit.training.loop import fit as fit
    from mimkit.training.machine import Machine as Machine
    from mimkit.training.optim import Train as Train
    from mimkit.training.run_folder import Run as Run

_HOME = {
    "Batches": "mimkit.training.loop",
    "Evaluator": "mimkit.training.loop",
    "Job": "mimkit.training.job",
    "Machine": "mimkit.training.machine",
    "OnAllRanks": "mimkit.training.loop",
    "Reading": "mimkit.training.job",
    "Run": "mimkit.training.run_folder",
    "SINGLE": "mimkit.training.distributed",
    "Train": "mimkit.training.optim",
    "World": "mimkit.training.distributed",
    "fit": "mimkit.training.loop",
    "start_or_resume": "mimkit.training.launch",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mimkit.training' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
