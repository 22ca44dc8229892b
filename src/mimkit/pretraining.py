"""Pre-training: a request started in a new run folder, or continued from one."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mimkit.compose import PYTHON, TRAIN_SETTINGS, compose
from mimkit.data import Cache, Data
from mimkit.errors import flag, refuse_unknown, refusing_damage
from mimkit.files import absolute, home, located
from mimkit.plan import Pretraining, plan_pretraining, random_images
from mimkit.recipes import Recipe, build
from mimkit.recipes.efficiency import tune
from mimkit.settings import Settings
from mimkit.sources import recipe_of
from mimkit.training import launch
from mimkit.training.auto_batch import TrialModel
from mimkit.training.distributed import World, torchrun_job
from mimkit.training.machine import Machine
from mimkit.training.recorder import Callback
from mimkit.training.run_folder import Run, refuse_nonempty
from mimkit.typed import given_as


def pretrain(
    recipe: str | Recipe,
    settings: Settings | None = None,
    out: str | Path | None = None,
    *,
    data: Data | None = None,
    machine: Machine = launch.DEFAULT_MACHINE,
    callbacks: Sequence[Callback] = (),
    overwrite: bool = False,
    **values: Any,
) -> bool:
    """Pre-train into a new run folder. True at the end, False where a signal stopped it early.

        mimkit.pretrain("small", data="~/photos", out="runs/x", epochs=5, device="cpu")

    Args:
        recipe: a name of `mimkit recipes`, FILE.py:NAME, or a recipe itself.
        settings: what to train on which data.
        out: the run folder; refused when it is not empty. `~` is expanded.
        data: what `mimkit.data.split` takes, instead of the settings' `data`. What is in memory is not kept: to resume
            the run, hand it over again.
        machine: device, data workers and the like.
        callbacks: called with each row of the log, a dict with "kind" and "step", on the main process. After a resume
            the rows since the checkpoint come again. Where one raises an error, the step is finished and saved, and
            then training stops.
        overwrite: replace a run that is there. One that the same torchrun job began is continued instead.
        values: fields of `Settings` and `Machine` by name, instead of theirs.

    Raises:
        TypeError: there is no such argument.
        ValueError, FileNotFoundError, FileExistsError: a request that cannot be met; nothing has been written.
        TrainingStopped: the run cannot continue.
    """
    if not isinstance(settings, Settings | None):
        raise TypeError(f"settings must be a mimkit.Settings, got {given_as(settings)}: images are given as data=")
    if not isinstance(machine, Machine):
        raise TypeError(f"machine must be a mimkit.Machine, got {given_as(machine)}")
    if not isinstance(out, str | os.PathLike | None):
        raise TypeError(f"out must be a path, got {given_as(out)}")
    refuse_unknown("pretrain", values, [*Settings.__dataclass_fields__, *Machine.__dataclass_fields__])
    own = {name: value for name, value in values.items() if name in Settings.__dataclass_fields__}
    machine = replace(machine, **{name: value for name, value in values.items() if name not in own})
    settings = replace(settings or Settings(), **own)
    if out is None:
        raise ValueError("--out is missing: name the run folder to make, such as out='runs/mine'")
    settings, data = with_data(settings, data)
    out = home(out)
    with launch.on_machine(machine) as (device, world):
        if world.on_main(lambda: is_of_this_job(out)):
            given = recipe if isinstance(recipe, Recipe) or ":" in recipe else None
            run = Run(out)
            job = replan(run, machine, device, world, data=data, recipe=given)
            return launch.resume(job, run, machine, device, world, callbacks=callbacks)
        world.on_main(lambda: refuse_nonempty(out, overwrite=overwrite))
        here = settings.data if isinstance(settings.data, Path) and settings.data.is_dir() else None
        if here is not None and out.resolve().is_relative_to(absolute(here)):
            raise ValueError(f"--out {out} lies inside --data {here}: the run's pictures would become data")
        cache, composed = Cache.at(machine.cache, machine.cache_gb), compose(recipe, settings)
        job = plan_pretraining(name_of(recipe), composed, settings, device=device, data=data, world=world, cache=cache)
        return launch.start(job, out, machine, device, world, overwrite=overwrite, callbacks=callbacks)


def resume(
    run: Run,
    *,
    data: Data | None = None,
    recipe: str | Recipe | None = None,
    callbacks: Sequence[Callback] = (),
    machine: Machine = launch.DEFAULT_MACHINE,
    micro_batch: int | Literal["auto"] | None = None,
) -> bool:
    """Continue a run exactly where its last checkpoint left it, with any number of ranks.

    Args:
        run: what to continue.
        data: the images that it began with, where they are in memory or have moved.
        recipe: FILE.py:NAME or the recipe itself, for a run made with a recipe of your own.
        callbacks: see `pretrain`.
        machine: device, data workers and the like.
        micro_batch: images computed at once from now on; auto finds it by trial steps. Another number than before
            changes results by rounding, and by batch normalisation's statistics.

    Raises:
        ValueError: the images are not those the run began with.
    """
    with launch.on_machine(machine) as (device, world):
        job = replan(run, machine, device, world, data=data, recipe=recipe, micro_batch=micro_batch)
        return launch.resume(job, run, machine, device, world, callbacks=callbacks)


def with_data(settings: Settings, data: Data | None) -> tuple[Settings, Data | None]:
    """Settings with the path or URL handed over as `data`, or the data themselves, which settings cannot hold.

    Raises:
        ValueError: the settings name other data.
    """
    path = located(data) if isinstance(data, str | Path) else None
    if data is not None and settings.data not in (None, path):
        raise ValueError(f"--data: the settings name {settings.data}, and data= is something else: give one of them")
    return (settings, data) if path is None else (replace(settings, data=path), None)


def name_of(recipe: str | Recipe) -> str:
    """What run.json calls a recipe."""
    return recipe if isinstance(recipe, str) else PYTHON


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
    data: Data | None = None,
    recipe: str | Recipe | None = None,
    micro_batch: int | Literal["auto"] | None = None,
) -> Pretraining:
    """The job that a run folder was made for; see `resume`."""
    composed = recipe_of(run.facts, run.folder, recipe)
    with refusing_damage(run.folder):
        settings, where = Settings.from_json(run.facts["settings"]), run.facts["data"]["path"]
    for name, setting in TRAIN_SETTINGS.items():
        if getattr(settings, setting) != getattr(composed.train, name):
            raise ValueError(
                f"{run.folder} began with {flag(setting)} {getattr(settings, setting)}, and with "
                f"{getattr(composed.train, name)} by its recipe: one of them was changed"
            )
    if data is None and settings.data is None:
        raise ValueError(f"{run.folder} began with data in memory ({where}): continue it with {run.resume_call}")
    settings, data = with_data(settings if data is None else replace(settings, data=None), data)
    if micro_batch is None and isinstance(settings.batch_size, int) and isinstance(settings.micro_batch, int):
        per_rank = settings.batch_size // world.size
        micro_batch = (
            settings.micro_batch if per_rank % settings.micro_batch == 0 else math.gcd(per_rank, settings.micro_batch)
        )
    settings = replace(settings, micro_batch=micro_batch)
    name, cache = recipe if isinstance(recipe, str) else run.facts["recipe"], Cache.at(machine.cache, machine.cache_gb)
    return plan_pretraining(name, composed, settings, device=device, data=data, world=world, cache=cache)


def make_for_trials(request: dict[str, Any]) -> TrialModel:
    """The method of a job's `request`, as it is trained, for trials in another process."""
    recipe = recipe_of(request, "this request", request["recipe"] if ":" in request["recipe"] else None)
    method = build(recipe)
    tune(method, torch.device("cpu"), recipe.train.precision)
    return TrialModel(method, recipe.train, partial(random_images, recipe))
