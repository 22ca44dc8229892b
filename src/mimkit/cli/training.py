"""Commands that train: demo, recipes, pretrain, resume."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from mimkit.settings import Settings
from mimkit.training.machine import Machine


def demo(*, out: Path = Path("runs/demo"), overwrite: bool = False) -> int:
    """All steps on built-in photographs: pre-train, probe, reconstruct, report. Minutes on a CPU.

    Args:
        out: folder for the photographs' tiles and the run.
        overwrite: replace an earlier demo there.
    """
    from mimkit.cli.demo import run_demo

    return finish(out / "run", run_demo(out, overwrite=overwrite))


def recipes(*, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Table of recipes: paper, parts, published numbers."""
    from mimkit.cli.recipe_table import as_rows, as_table

    print(json.dumps(as_rows(), indent=1) if as_json else as_table())
    return 0


def pretrain(
    recipe: Positional[str],
    settings: OmitArgPrefixes[Settings],
    machine: OmitArgPrefixes[Machine],
    *,
    out: Path,
    overwrite: bool = False,
) -> int:
    """Pre-train a backbone on a folder of images.

    Args:
        recipe: a name from `mimkit recipes`, or FILE.py:NAME for a function of your own that returns a Recipe.
        settings: what to train.
        machine: where to train it.
        out: run folder, new or empty.
        overwrite: replace a run that is there.
    """
    from mimkit.pretraining import pretrain as work

    return finish(out, work(recipe, settings, out, machine=machine, overwrite=overwrite))


def resume(
    run: Positional[Path],
    machine: OmitArgPrefixes[Machine],
    *,
    micro_batch: int | Literal["auto"] | None = None,
    recipe: str | None = None,
) -> int:
    """Continue a run exactly where its last checkpoint left it.

    Args:
        run: run folder.
        machine: where to train it.
        micro_batch: images computed at once from now on, or auto; the default is what the run began with.
        recipe: FILE.py:NAME, for a run made with a recipe from a file of your own.
    """
    from mimkit.jobs import resume as work

    return finish(run, work(run, machine=machine, recipe=recipe, micro_batch=micro_batch))


def finish(run: Path, finished: bool) -> int:
    """Print where a run is, on the main process only; of one that stopped, stderr says how to go on."""
    from mimkit.progress import speaking

    if not speaking():
        return 0
    if finished:
        print(f"done: {run}\nreport: {run / 'report.html'}")
    else:
        print(f"stopped: {run}")
    return 0
