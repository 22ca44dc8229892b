"""The kinds of jobs by their name in run.json: what continues a run, and what builds its model for trial steps.

Run as a program, this serves `mimkit.training.auto_batch`: a request on stdin, trials on stdout.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mimkit import pretraining
from mimkit.errors import refuse_unknown
from mimkit.recipes import Recipe
from mimkit.training.auto_batch import TrialModel, serve_trials
from mimkit.training.launch import DEFAULT_MACHINE
from mimkit.training.machine import Machine
from mimkit.training.recorder import Callback
from mimkit.training.run_folder import Run


@dataclass(frozen=True)
class Kind:
    """A kind of job.

    Args:
        resume: continues a run of it; see `resume`.
        make_for_trials: builds its model from a `Job.request`.
    """

    resume: Callable[..., bool]
    make_for_trials: Callable[[dict[str, Any]], TrialModel]


KINDS: dict[str, Kind] = {"pretrain": Kind(pretraining.resume, pretraining.make_for_trials)}


def resume(
    run: Run | Path | str,
    *,
    data: Any = None,
    recipe: str | Recipe | None = None,
    callbacks: Sequence[Callback] = (),
    machine: Machine = DEFAULT_MACHINE,
    micro_batch: int | Literal["auto"] | None = None,
    **values: Any,
) -> bool:
    """Continue a run of any kind exactly where its last checkpoint left it. True at the end.

        mimkit.resume("runs/x", device="cpu")

    Args:
        run: what to continue, or its folder.
        data: the data that it began with, where they were in memory or have moved.
        recipe: FILE.py:NAME or the recipe itself, for a run made with a recipe of your own.
        callbacks: called with each row of the log, as by `pretrain`; the rows since the checkpoint come again.
        machine: device, data workers and the like.
        micro_batch: samples computed at once from now on, or auto.
        values: fields of `Machine` by name, instead of its own.

    Raises:
        TypeError: there is no such argument.
        ValueError: its kind is none of mimkit's own, or the run cannot be continued.
    """
    refuse_unknown("resume", values, [*Machine.__dataclass_fields__])
    run = run if isinstance(run, Run) else Run(run)
    if run.kind not in KINDS:
        raise ValueError(
            f"{run.folder} is a run of kind {run.kind!r}, which is none of mimkit's own ({', '.join(KINDS)}): "
            "continue it with the program that began it"
        )
    return KINDS[run.kind].resume(
        run,
        data=data,
        recipe=recipe,
        callbacks=callbacks,
        machine=replace(machine, **values),
        micro_batch=micro_batch,
    )


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps([asdict(trial) for trial in serve_trials(request, KINDS[request["kind"]].make_for_trials)]))
