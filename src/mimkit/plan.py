"""Pre-training as a job: a request resolved to recipe, data and method, before anything is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mimkit.backbones import DenseEncoder, count_parameters
from mimkit.compose import PYTHON, TRAIN_SETTINGS, description_of, given_statistics, own_parts
from mimkit.data import Cache, Data, ImageList, Samples, TrainBatches, choose_decoder, in_words, split
from mimkit.data.repeatable import require_repeatable
from mimkit.errors import naming, refusing_damage
from mimkit.evaluation.online import OnlineProbe, OnlineReconstructions, subset
from mimkit.files import absolute
from mimkit.method import Method
from mimkit.randomness import scramble
from mimkit.recipes import Recipe, build
from mimkit.recipes.efficiency import tune
from mimkit.settings import Settings
from mimkit.training.blocks import require_compiler
from mimkit.training.distributed import SINGLE, World
from mimkit.training.job import Job, Reading
from mimkit.training.loop import Evaluator
from mimkit.training.optim import Train
from mimkit.training.precision import choose_precision, refuse_batch_norms
from mimkit.training.run_folder import Run

PICTURES = 8  # of reconstructions, in each evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretraining(Job):
    """A request to pre-train, resolved and built; further attributes are those of every `Job`.

    Args:
        name: of the recipe: a name, FILE.py:NAME, or `compose.PYTHON`.
        recipe: as it is trained.
        settings: the request, every value resolved.
        where: the data in words: their path or URL, or what they are in memory.
        train_images, held_out: the data.
        notes: choices made for the user, a line each.
    """

    kind: ClassVar[str] = "pretrain"
    resumable: ClassVar[bool] = True
    name: str
    recipe: Recipe
    settings: Settings
    where: str
    model: Method
    train: Train
    train_images: ImageList
    held_out: ImageList
    samples: int
    micro_batch: int | Literal["auto"]
    skipped_share: float
    log_every: int
    compile: bool
    notes: Sequence[str]

    def batches(
        self, workers: int = 0, world: World = SINGLE, *, prefetch: int = 2, pin_memory: bool = False
    ) -> TrainBatches:
        per_rank = self.train.batch_size // world.size
        micro_batch = per_rank if self.micro_batch == "auto" else self.micro_batch
        return TrainBatches(
            viewed(self.train_images, self.recipe, self.settings),
            batch_size=self.train.batch_size,
            accumulation=per_rank // micro_batch,
            repeats=self.settings.repeats,
            seed=self.settings.seed,
            workers=workers,
            prefetch=prefetch,
            pin_memory=pin_memory,
            rank=world.rank,
            world=world.size,
        )

    def evaluators(
        self, run: Run, *, device: torch.device, workers: int, world: World
    ) -> Sequence[tuple[int, Evaluator]]:
        """A probe of the encoder and reconstructions, both on the held-out split."""
        if not len(self.held_out):
            return ()
        assert self.settings.probe_every is not None
        batches, method = self.batches(world=world), self.model
        every = self.settings.probe_every * batches.steps_per_epoch
        bank = subset(self.train_images, self.settings.probe_images)
        test = subset(self.held_out, self.settings.probe_images)
        probe = OnlineProbe(method, bank, test, device=device, workers=workers, batch_size=batches.micro_batch)
        pictures = OnlineReconstructions(method, subset(self.held_out, PICTURES), run.folder, device=device)
        return (every, probe), (every, pictures)

    def scalars(self) -> dict[str, float]:
        return self.model.scalars()

    def describe(self, world: World) -> list[str]:
        values, encoder = self.train, self.model.encoder
        height, width = self.recipe.image_size
        how = "computing on visible tokens only"
        if isinstance(encoder, DenseEncoder):
            how = "mask tokens in place of hidden cells" + (f" ({encoder.why})" if encoder.why else "")
        ranks = f" in each of {world.size} processes, {world.parallel}" if world.size > 1 else ""
        classes = self.train_images.classes
        return [
            f"{self.name}: {encoder.name} at {height} x {width}, {count_parameters(encoder):,} parameters, {how}",
            f"data: {len(self.train_images):,} training and {len(self.held_out):,} held-out images, "
            f"{f'{len(classes)} classes' if classes else 'no class folders'}",
            f"training: {values.epochs} epochs, batch {values.batch_size} ({self.micro_batch} at once{ranks}), "
            f"peak learning rate {values.peak_lr:.3g} = {values.base_lr:g} x {values.batch_size} / {values.lr_batch}, "
            f"{values.precision}{', compiled' if self.compile else ''}",
            *self.notes,
        ]

    def facts(self) -> dict[str, Any]:
        method, described = self.model, self.description()
        downstream = "the encoder with its final norm; readout and decoder serve pre-training only"
        return {
            "recipe": self.name,
            "settings": described["settings"],
            "parts": described["parts"] | {"downstream": downstream},
            **{name: described[name] for name in ("own_parts",) if name in described},
            "data": {
                "path": self.where,
                "train_images": len(self.train_images),
                "held_out_images": len(self.held_out),
                "classes": self.train_images.classes,
                "fingerprint": self.fingerprint,
            },
            "parameters": {
                "encoder": count_parameters(method.encoder),
                "readout": count_parameters(method.readout),
                "decoder": count_parameters(method.decoders),
            },
        }

    def refuse_other(self, run: Run) -> None:
        """Machines, and where data lie, may change; the images may not."""
        with refusing_damage(run.folder):
            fingerprint = run.facts["data"]["fingerprint"]
        if fingerprint != self.fingerprint:
            raise ValueError(f"the images in {self.where} are no longer those that {run.folder} began with")

    @property
    def needs(self) -> list[str]:
        in_python = {"data": self.settings.data is None, "recipe": self.name == PYTHON and own_parts(self.recipe)}
        return [name for name, needed in in_python.items() if needed]

    @property
    def fingerprint(self) -> str:
        """Of the names and labels of all images, of both splits."""
        return f"{self.train_images.fingerprint()}-{self.held_out.fingerprint()}"

    def micro_batches(self, world: World) -> list[int]:
        return divisors(self.train.batch_size // world.size, self.settings.repeats)

    def with_micro_batch(self, samples: int, world: World) -> "Pretraining":
        return replace(self, micro_batch=samples, settings=replace(self.settings, micro_batch=samples))

    def random_inputs(self, samples: int) -> dict[str, Tensor]:
        return random_images(self.recipe, samples)

    def request(self) -> dict[str, Any]:
        return {} if "recipe" in self.needs else self.description()

    def description(self) -> dict[str, Any]:
        """What restores the recipe, see `description_of`."""
        return description_of(self.name, self.recipe, self.settings)

    def reading(self, world: World) -> Reading | None:
        batches = self.batches(0, world)
        seconds = [taken / batches.repeats for taken in batches.reading_times()]
        mib = batches.micro_batch * self.recipe.channels * math.prod(self.recipe.image_size) / 2**20
        return Reading(seconds, mib) if seconds else None


def plan_pretraining(
    name: str,
    recipe: Recipe,
    settings: Settings,
    *,
    device: torch.device,
    data: Data | None = None,
    world: World = SINGLE,
    cache: Cache | None = None,
) -> Pretraining:
    """Resolve and build a request: read the folder, fix every value, make the method with the seed's weights.

    Args:
        name: of the recipe.
        recipe: composed with the settings.
        settings: the request.
        device: where to train.
        data: what `mimkit.data.split` takes; None takes the settings'.
        world: the ranks.
        cache: of remote shards.

    Raises:
        ValueError: a value that is wrong or does not fit another; the message names both.
        FileNotFoundError: no such data.
        DataUnreachable: remote data cannot be fetched.
    """
    if settings.compile:
        require_compiler(device)
    data = settings.data if data is None else data
    if data is None:
        raise ValueError("--data is missing: it says where the images are")
    with naming("--data"):
        train_images, held_out = split(data, settings.held_out, cache)
    where = in_words(data) if settings.data is None else str(absolute(settings.data))
    recipe, notes = with_channels_of(train_images, recipe, settings)
    require_repeatable(viewed(train_images, recipe, settings))
    batch_size, repeats, count = recipe.train.batch_size, settings.repeats, len(train_images)
    if batch_size > count * repeats:
        given = f"{count} training images in {where}" + f" give with --repeats {repeats}" * (repeats > 1)
        if settings.batch_size is not None:
            raise ValueError(f"--batch-size {batch_size} is more than the {given}")
        batch_size = repeats << (count.bit_length() - 1)
        notes.append(f"the recipe's batch of {recipe.train.batch_size} is more than the {given}: {batch_size}")
    micro_batch = resolved_micro_batch(settings, batch_size, world.size, device)
    precision = settings.precision or choose_precision(device)
    recipe = replace(recipe, train=replace(recipe.train, batch_size=batch_size, precision=precision))
    if count // batch_size < 10 and settings.batch_size is None and name != "small":
        notes.append(
            f"only {count // batch_size} steps in an epoch of {count} images: "
            "with few images, try the recipe `small`, or a --batch-size of 128"
        )
    values: dict[str, Any] = {setting: getattr(recipe.train, name) for name, setting in TRAIN_SETTINGS.items()}
    settings = replace(
        settings,
        **values,
        channels=recipe.channels,
        data=None if settings.data is None else absolute(settings.data),
        decode=choose_decoder(settings.decode),
        image_size=recipe.image_size,
        micro_batch=micro_batch,
        probe_every=settings.probe_every or -(-recipe.train.epochs // 5),
    )
    torch.manual_seed(settings.seed)
    method = build(recipe)
    tune(method, device, precision)
    if precision == "bf16-pure" and world.size > 1:
        refuse_batch_norms(method, world.size)
    return Pretraining(
        name=name,
        recipe=recipe,
        settings=settings,
        where=where,
        model=method,
        train=recipe.train,
        train_images=train_images,
        held_out=held_out,
        samples=count + len(held_out),
        micro_batch=micro_batch,
        skipped_share=settings.skipped_share,
        log_every=settings.log_every,
        compile=settings.compile,
        notes=notes,
    )


def with_channels_of(images: ImageList, recipe: Recipe, settings: Settings) -> tuple[Recipe, list[str]]:
    """The recipe for as many channels as images in memory have, and notes on that; files are read as the recipe says.

    Raises:
        ValueError: the settings give another number of channels, or one that files are not read with.
    """
    channels = images.channels
    if channels in (1, 3) and settings.channels in (1, 3):  # either becomes the other
        return recipe, []
    if channels is None and recipe.channels not in (1, 3):
        raise ValueError(f"--channels {recipe.channels} is for data in memory: image files are read with 1 or 3")
    if channels in (None, recipe.channels):
        return recipe, []
    if settings.channels is not None:
        raise ValueError(f"--channels {settings.channels}: the images have {channels}")
    changed = replace(recipe, channels=channels, statistics=given_statistics(settings, channels))
    return changed, [f"{channels} channels, as the data have"]


def viewed(images: ImageList, recipe: Recipe, settings: Settings) -> Samples:
    """Training images, with the recipe's view."""
    size, channels = recipe.image_size, recipe.channels
    return Samples(images, view=recipe.view, size=size, channels=channels, decode=settings.decode)


def random_images(recipe: Recipe, count: int) -> dict[str, Tensor]:
    """Inputs of a method: images of random bytes, uint8 [B, C, H, W], and keys."""
    drawn = torch.Generator().manual_seed(0)
    shape = (count, recipe.channels, *recipe.image_size)
    return {
        "images": torch.randint(256, shape, dtype=torch.uint8, generator=drawn),
        "keys": scramble(torch.arange(count)),
    }


def resolved_micro_batch(
    settings: Settings, batch_size: int, processes: int, device: torch.device
) -> int | Literal["auto"]:
    """The images that a rank computes at once, as given; by default at most 128 on a CPU, 256 elsewhere.

    Raises:
        ValueError: batch size, processes, micro-batch and repeats do not divide each other.
    """
    if batch_size % processes:
        raise ValueError(f"{processes} processes cannot share --batch-size {batch_size} equally")
    per_rank, repeats = batch_size // processes, settings.repeats
    of = f"the {per_rank} images of each of {processes} processes" if processes > 1 else f"the batch size of {per_rank}"
    if per_rank % repeats:
        raise ValueError(f"--repeats {repeats} does not divide the {per_rank} images that a process computes in a step")
    if settings.micro_batch == "auto":
        return "auto"
    most, sizes = 128 if device.type == "cpu" else 256, divisors(per_rank, repeats)
    micro_batch = settings.micro_batch or max((size for size in sizes if size <= most), default=sizes[0])
    if per_rank % micro_batch:
        raise ValueError(f"--micro-batch {micro_batch} does not divide {of}")
    if micro_batch % repeats:
        raise ValueError(f"--repeats {repeats} does not divide the {micro_batch} images computed at once")
    return micro_batch


def divisors(per_rank: int, repeats: int) -> list[int]:
    """The sizes of micro-batches that divide a rank's slice of a batch, each with all views of its images."""
    return [size for size in range(repeats, per_rank + 1, repeats) if per_rank % size == 0]
