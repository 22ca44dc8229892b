"""A request to pre-train, resolved: recipe, data and method, before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from mimkit.compose import compose
from mimkit.data import Cache, ImageList, TrainBatches, choose_decoder, split
from mimkit.efficiency import tune
from mimkit.errors import naming
from mimkit.files import absolute
from mimkit.method import Method
from mimkit.recipes import Recipe, build
from mimkit.settings import Settings
from mimkit.training.auto_batch import divisors
from mimkit.training.blocks import require_compiler
from mimkit.training.distributed import ALONE, World
from mimkit.training.precision import choose_precision, refuse_batch_norms

PICTURES = 8


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

    def batches(
        self, workers: int, world: World = ALONE, *, prefetch: int = 2, pin_memory: bool = False
    ) -> TrainBatches:
        return TrainBatches(
            self.train,
            view=self.recipe.view,
            size=self.recipe.image_size,
            channels=self.recipe.channels,
            batch_size=self.recipe.train.batch_size,
            accumulation=self.parts,
            repeats=self.settings.repeats,
            decode=self.settings.decode,
            seed=self.settings.seed,
            workers=workers,
            prefetch=prefetch,
            pin_memory=pin_memory,
            rank=world.rank,
            world=world.size,
        )


def plan(
    name: str, settings: Settings, *, device: torch.device, processes: int = 1, cache: Cache | None = None
) -> Plan:
    """Resolve and build a request: read the folder, fix every value, make the method with the seed's weights.

    With --micro-batch auto, the default's parts stand until `tuned` has found others.

    Args:
        name: of the recipe.
        settings: the request.
        device: where it is to run.
        processes: that share each batch.
        cache: of shards that come from elsewhere.

    Raises:
        ValueError: a value that is wrong or does not fit another; the message names both.
        FileNotFoundError: no such data.
        DataUnreachable: it lies elsewhere, and cannot be fetched.
    """
    recipe = compose(name, settings)
    if settings.compile:
        require_compiler(device)
    with naming("--data"):
        train, held_out = split(settings.data, settings.held_out, cache)
    notes = []
    batch_size, repeats = recipe.train.batch_size, settings.repeats
    if batch_size > len(train) * repeats:
        given = f"{len(train)} training images in {settings.data}" + f" give with --repeats {repeats}" * (repeats > 1)
        if settings.batch_size is not None:
            raise ValueError(f"--batch-size {batch_size} is more than the {given}")
        batch_size = repeats << (len(train).bit_length() - 1)
        notes.append(f"the recipe's batch of {recipe.train.batch_size} is more than the {given}: {batch_size}")
    if batch_size % processes:
        raise ValueError(f"{processes} processes cannot share --batch-size {batch_size} equally")
    share = batch_size // processes
    of = f"the {share} images of each of {processes} processes" if processes > 1 else f"the batch size of {share}"
    if share % repeats:
        raise ValueError(f"--repeats {repeats} does not divide the {share} images that a process computes in a step")
    sizes = divisors(share, repeats)
    micro = settings.micro_batch if isinstance(settings.micro_batch, int) else default_micro_batch(sizes, device)
    if share % micro:
        raise ValueError(f"--micro-batch {micro} does not divide {of}")
    if micro % repeats:
        raise ValueError(f"--repeats {repeats} does not divide the {micro} images computed at once")
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
        data=absolute(settings.data),
        decode=choose_decoder(settings.decode),
        image_size=recipe.image_size,
        micro_batch="auto" if settings.micro_batch == "auto" else micro,
        probe_every=probe_every,
    )
    torch.manual_seed(settings.seed)
    method = build(recipe)
    tune(method, device, precision)
    if precision == "bf16-pure" and processes > 1:
        refuse_batch_norms(method, processes)
    return Plan(name, recipe, settings, method, train, held_out, share // micro, probe_every, notes)


def default_micro_batch(sizes: Sequence[int], device: torch.device) -> int:
    """The largest of rising sizes up to 256 on an accelerator, 128 on a CPU."""
    most = 128 if device.type == "cpu" else 256
    return max((size for size in sizes if size <= most), default=sizes[0])
