"""Pre-training: a request started in a new run folder, or continued from one."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mimkit.compose import TRAIN_SETTINGS, compose
from mimkit.data import Cache
from mimkit.efficiency import tune
from mimkit.errors import flag, refusing_damage
from mimkit.files import absolute
from mimkit.plan import Pretraining, plan_pretraining, random_images
from mimkit.recipes import build
from mimkit.settings import Settings
from mimkit.sources import recipe_of
from mimkit.training import launch
from mimkit.training.auto_batch import TrialModel
from mimkit.training.distributed import World, torchrun_job
from mimkit.training.machine import Machine
from mimkit.training.run_folder import Run, refuse_nonempty


def pretrain(
    recipe: str, settings: Settings, out: Path, *, machine: Machine = launch.DEFAULT_MACHINE, overwrite: bool = False
) -> bool:
    """Pre-train into a new run folder. True at the end, False where a signal stopped it early.

    Args:
        recipe: a name of `mimkit recipes`, or FILE.py:NAME.
        settings: what to train on which data.
        out: the run folder; refused when it is not empty.
        machine: device, data workers and the like.
        overwrite: replace a run that is there. One that the same torchrun job began is continued instead.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a request that cannot be met; nothing has been written.
        TrainingStopped: the run cannot continue.
    """
    out = Path(out)
    with launch.on_machine(machine) as (device, world):
        if world.on_main(lambda: is_of_this_job(out)):
            run, file = Run(out), recipe if ":" in recipe else None
            return launch.resume(replan(run, machine, device, world, recipe=file), run, machine, device, world)
        world.on_main(lambda: refuse_nonempty(out, overwrite=overwrite))
        data = settings.data
        if isinstance(data, Path) and data.is_dir() and out.resolve().is_relative_to(absolute(data)):
            raise ValueError(f"--out {out} lies inside --data {data}: the run's pictures would become data")
        cache = Cache.at(machine.cache, machine.cache_gb)
        job = plan_pretraining(recipe, compose(recipe, settings), settings, device=device, world=world, cache=cache)
        return launch.start(job, out, machine, device, world, overwrite=overwrite)


def resume(
    run: Run,
    *,
    machine: Machine = launch.DEFAULT_MACHINE,
    recipe: str | None = None,
    micro_batch: int | Literal["auto"] | None = None,
) -> bool:
    """Continue a run exactly where its last checkpoint left it, with any number of ranks.

    Args:
        run: what to continue.
        machine: device, data workers and the like.
        recipe: FILE.py:NAME, for a run made with a recipe from a file of your own.
        micro_batch: images computed at once from now on; auto finds it by trial steps. Another number than before
            changes results by rounding, and by batch normalisation's statistics.

    Raises:
        ValueError: the images are not those the run began with.
    """
    with launch.on_machine(machine) as (device, world):
        job = replan(run, machine, device, world, recipe=recipe, micro_batch=micro_batch)
        return launch.resume(job, run, machine, device, world)


def is_of_this_job(out: Path) -> bool:
    """Whether the same torchrun job began the run in this folder, and restarted after a process died."""
    job = torchrun_job()
    return job is not None and (out / "run.json").is_file() and Run(out).facts.get("job") == job


def replan(
    run: Run,
    machine: Machine,
    device: torch.device,
    world: World,
    *,
    recipe: str | None = None,
    micro_batch: int | Literal["auto"] | None = None,
) -> Pretraining:
    """The job that a run folder was made for; see `resume`."""
    composed = recipe_of(run.facts, run.folder, recipe)
    with refusing_damage(run.folder):
        settings = Settings.from_json(run.facts["settings"])
    for name, setting in TRAIN_SETTINGS.items():
        if getattr(settings, setting) != getattr(composed.train, name):
            raise ValueError(
                f"{run.folder} began with {flag(setting)} {getattr(settings, setting)}, and with "
                f"{getattr(composed.train, name)} by its recipe: one of them was changed"
            )
    if micro_batch is None and isinstance(settings.batch_size, int) and isinstance(settings.micro_batch, int):
        per_rank = settings.batch_size // world.size
        micro_batch = (
            settings.micro_batch if per_rank % settings.micro_batch == 0 else math.gcd(per_rank, settings.micro_batch)
        )
    settings = replace(settings, micro_batch=micro_batch)
    name, cache = recipe or run.facts["recipe"], Cache.at(machine.cache, machine.cache_gb)
    return plan_pretraining(name, composed, settings, device=device, world=world, cache=cache)


def make_for_trials(request: dict[str, Any]) -> TrialModel:
    """The method of a job's `request`, as it is trained, for trials in another process."""
    recipe = recipe_of(request, "this request", request["recipe"] if ":" in request["recipe"] else None)
    method = build(recipe)
    tune(method, torch.device("cpu"), recipe.train.precision)
    return TrialModel(method, recipe.train, partial(random_images, recipe))
