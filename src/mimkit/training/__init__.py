"""Training: the loop, checkpoints, several ranks, precision. It knows a model by its `.loss`, and no method.

What a job of one's own needs can be had from here; it is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimkit.training.distributed import SINGLE as SINGLE
    from mimkit.training.distributed import World as World
    from mimkit.training.job import Job as Job
    from mimkit.training.launch import start_or_resume as start_or_resume
    from mimkit.training.loop import Batches as Batches
    from mimkit.training.loop import Evaluator as Evaluator
    from mimkit.training.loop import OnAllRanks as OnAllRanks
    from mimkit.training.loop import fit as fit
    from mimkit.training.machine import Machine as Machine
    from mimkit.training.optim import Train as Train
    from mimkit.training.precision import choose_precision as choose_precision
    from mimkit.training.run_folder import Run as Run

_HOME = {
    "Batches": "loop",
    "Evaluator": "loop",
    "Job": "job",
    "Machine": "machine",
    "OnAllRanks": "loop",
    "Run": "run_folder",
    "SINGLE": "distributed",
    "Train": "optim",
    "World": "distributed",
    "choose_precision": "precision",
    "fit": "loop",
    "start_or_resume": "launch",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mimkit.training' has no attribute {name!r}")
    return getattr(import_module(f"mimkit.training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
