"""Pre-training, composed: settings to parts, data, evaluators and a run folder, and the loop over them."""

import contextlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mimkit.backbones import DenseEncoder
from mimkit.compose import compose
from mimkit.data import ImageList, TrainBatches, split
from mimkit.evaluators import Probe, Reconstructions, subset
from mimkit.flags import naming
from mimkit.method import Method
from mimkit.precision import choose_precision, tune_attention
from mimkit.recipes import Recipe, build, parts_in_words
from mimkit.runs import Run, refuse_nonempty
from mimkit.settings import Machine, Settings
from mimkit.sources import recompose
from mimkit.train import Evaluator, TrainingStopped, fit

PICTURES = 8
HERE = Machine()


@dataclass(frozen=True)
class Plan:
    """A request with everything resolved and built, before anything is written."""

    name: str
    recipe: Recipe
    settings: Settings
    method: Method
    train: ImageList
    held_out: ImageList
    parts: int
    probe_every: int
    notes: list[str]

    def batches(self, workers: int) -> TrainBatches:
        return TrainBatches(
            self.train,
            view=self.recipe.view,
            size=self.recipe.image_size,
            channels=self.recipe.channels,
            batch_size=self.recipe.train.batch_size,
            parts=self.parts,
            seed=self.settings.seed,
            workers=workers,
        )


def plan(name: str, settings: Settings, *, device: torch.device) -> Plan:
    """Resolve and build a request: read the folder, fix every value, make the method with the seed's weights.

    Raises:
        ValueError: a value that is wrong or does not fit another; the message names both.
        FileNotFoundError: no such data.
    """
    recipe = compose(name, settings)
    with naming("--data"):
        train, held_out = split(settings.data, settings.held_out)
    notes = []
    batch_size = recipe.train.batch_size
    if batch_size > len(train):
        if settings.batch_size is not None:
            raise ValueError(
                f"--batch-size {batch_size} is more than the {len(train)} training images in {settings.data}"
            )
        batch_size = 1 << (len(train).bit_length() - 1)
        notes.append(
            f"the recipe's batch of {recipe.train.batch_size} is more than the {len(train)} images: {batch_size}"
        )
    micro = settings.micro_batch or default_micro_batch(batch_size, device)
    if batch_size % micro:
        raise ValueError(f"--micro-batch {micro} does not divide the batch size of {batch_size}")
    precision = settings.precision or choose_precision(device)
    recipe = replace(recipe, train=replace(recipe.train, batch_size=batch_size, precision=precision))
    if len(train) // batch_size < 10 and settings.batch_size is None and name != "small":
        notes.append(
            f"only {len(train) // batch_size} steps in an epoch of {len(train)} images: "
            "with few images, try the recipe `small`, or a --batch-size of 128"
        )
    probe_every = settings.probe_every or -(-recipe.train.epochs // 5)
    values: dict[str, Any] = {
        f.name: getattr(recipe.train, f.name) for f in fields(Settings) if hasattr(recipe.train, f.name)
    }
    values["channels"] = recipe.channels
    settings = replace(
        settings,
        **values,
        data=settings.data.resolve(),
        image_size=recipe.image_size,
        micro_batch=micro,
        probe_every=probe_every,
    )
    torch.manual_seed(settings.seed)
    method = build(recipe)
    tune_attention(method, device, precision)
    return Plan(name, recipe, settings, method, train, held_out, batch_size // micro, probe_every, notes)


def pretrain(recipe: str, settings: Settings, out: Path, *, machine: Machine = HERE, overwrite: bool = False) -> bool:
    """Pre-train into a new run folder. True at the end, False where a signal stopped it early.

    Args:
        recipe: a name of `mimkit recipes`.
        settings: what to train, on what.
        out: the run folder; refused when it is not empty.
        machine: device, reading processes and the like.
        overwrite: replace a run that is there.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: a request that cannot be met; nothing has been written.
        TrainingStopped: the run cannot go on.
    """
    out = Path(out)
    refuse_nonempty(out, overwrite=overwrite)
    if settings.data.is_dir() and out.resolve().is_relative_to(settings.data.resolve()):
        raise ValueError(f"--out {out} lies inside --data {settings.data}: the run's pictures would become data")
    device = choose_device(machine.device)
    require_sinks(machine)
    request = plan(recipe, settings, device=device)
    run = Run.create(out, facts(request, device), overwrite=overwrite)
    return execute(request, run, machine, device)


def resume(run: Run, *, machine: Machine = HERE, recipe: str | None = None) -> bool:
    """Continue a run exactly where its last checkpoint left it.

    Args:
        run: what to continue.
        machine: device, reading processes and the like.
        recipe: FILE.py:NAME, for a run made with a recipe from a file of your own.

    Raises:
        ValueError: the images are not those the run began with.
    """
    device = choose_device(machine.device)
    require_sinks(machine)
    recompose(run.facts, run.folder, recipe)
    request = plan(recipe or run.facts["recipe"], Settings.from_json(run.facts["settings"]), device=device)
    if run.facts["training"] != str(request.recipe.train):
        raise ValueError(f"{run.folder} began with {run.facts['training']}, which is {request.recipe.train} now")
    if run.facts["data"]["fingerprint"] != fingerprint(request):
        raise ValueError(f"the images in {request.settings.data} are no longer those that {run.folder} began with")
    return execute(request, run, machine, device)


def execute(request: Plan, run: Run, machine: Machine, device: torch.device) -> bool:
    """Train a plan in its run folder, and write the report."""
    from mimkit.report import write_report

    for line in (*describe(request), *request.notes):
        print(line, file=sys.stderr)
    workers = choose_workers(machine.workers)
    batches = request.batches(workers)
    every = request.probe_every * batches.steps_per_epoch
    method = request.method
    evaluators: list[tuple[int, Evaluator]] = []
    if len(request.held_out):
        bank = subset(request.train, request.settings.probe_images)
        test = subset(request.held_out, request.settings.probe_images)
        at_once = request.recipe.train.batch_size // request.parts
        probe = Probe(method, bank, test, device=device, workers=workers, batch_size=at_once)
        shown = Reconstructions(method, subset(request.held_out, PICTURES), run.folder, device=device)
        evaluators = [(every, probe), (every, shown)]
    try:
        with run.locked():
            return fit(
                method,
                batches,
                request.recipe.train,
                run,
                evaluators=evaluators,
                scalars=method.scalars,
                device=device,
                log_every=request.settings.log_every,
                checkpoint_minutes=machine.checkpoint_minutes,
                skipped_share=request.settings.skipped_share,
                images=len(request.train) + len(request.held_out),
                sinks=[tensorboard_sink(run.folder)] if machine.tensorboard else [],
            )
    except OSError as error:  # a full disk, a folder gone: the request was fine, the work failed
        what = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
        raise TrainingStopped(f"{what}; what was saved is kept, go on with: mimkit resume {run.folder}") from error
    finally:
        with contextlib.suppress(OSError):
            write_report([run.folder], run.folder / "report.html")


def fingerprint(request: Plan) -> str:
    """Of the names and labels of all images, training and held out."""
    return f"{request.train.fingerprint()}-{request.held_out.fingerprint()}"


def describe(request: Plan) -> list[str]:
    """A few lines that say what is about to be trained."""
    values, settings, encoder = request.recipe.train, request.settings, request.method.encoder
    height, width = request.recipe.image_size
    how = "computing on visible tokens only"
    if isinstance(encoder, DenseEncoder):
        how = "mask tokens in place of hidden cells" + (f" ({encoder.why})" if encoder.why else "")
    labels = f"{len(request.train.classes)} classes" if request.train.classes else "no class folders"
    return [
        f"{request.name}: {encoder.name} at {height} x {width}, {parameters(encoder):,} parameters, {how}",
        f"data: {len(request.train):,} training and {len(request.held_out):,} held-out images, {labels}",
        f"training: {values.epochs} epochs, batch {values.batch_size} ({settings.micro_batch} at once), peak learning "
        f"rate {values.peak_lr:.3g} = {values.base_lr:g} x {values.batch_size} / {values.lr_batch}, {values.precision}",
    ]


def facts(request: Plan, device: torch.device) -> dict[str, Any]:
    """What run.json says."""
    method, recipe = request.method, request.recipe
    batches = request.batches(workers=0)
    return {
        "mimkit": version("mimkit"),
        "recipe": request.name,
        "settings": request.settings.to_json(),
        "parts": parts_in_words(recipe)
        | {"downstream": "the encoder with its final norm; readout and decoder serve pre-training only"},
        "training": str(recipe.train),
        "data": {
            "path": str(request.settings.data),
            "train_images": len(request.train),
            "held_out_images": len(request.held_out),
            "classes": request.train.classes,
            "fingerprint": fingerprint(request),
        },
        "steps": recipe.train.epochs * batches.steps_per_epoch,
        "steps_per_epoch": batches.steps_per_epoch,
        "parameters": {
            "encoder": parameters(method.encoder),
            "readout": parameters(method.readout),
            "decoder": parameters(method.decoders),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "timm", "numpy", "pillow")},
        "machine": f"{device_name(device)}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parameters(module: torch.nn.Module) -> int:
    """How many numbers a module consists of."""
    return sum(p.numel() for p in module.parameters())


def default_micro_batch(batch_size: int, device: torch.device) -> int:
    """The largest divisor of the batch size up to 256 on an accelerator, 128 on a CPU."""
    most = 128 if device.type == "cpu" else 256
    return max(n for n in range(1, min(most, batch_size) + 1) if batch_size % n == 0)


def choose_device(name: str) -> torch.device:
    """The named device; "auto" takes a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
