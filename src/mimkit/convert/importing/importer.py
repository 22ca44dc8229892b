"""Import of published checkpoints: recognise, translate, resize, check, and write as a file of mimkit's."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimkit.backbones import Encoder
from mimkit.backbones.resize import resize_tables
from mimkit.compose import compose, description_of
from mimkit.convert.exporting.safetensors import write
from mimkit.convert.importing import beit, convmae, localmim, swin, vit
from mimkit.convert.importing.hints import Hints, hints_of
from mimkit.convert.importing.positions import place_positions
from mimkit.convert.importing.read_file import read_checkpoint
from mimkit.convert.importing.recognize import LICENCES, Format, first_names, recognize
from mimkit.convert.rename import UNUSED, Translation, Weights, drop
from mimkit.errors import naming, refuse_unknown
from mimkit.files import home, refuse_unwritable
from mimkit.grids import Grid, grid_for
from mimkit.recipes import Recipe, build
from mimkit.settings import ImportOptions, Settings
from mimkit.views import Normalization

TRANSLATIONS: dict[Format, Callable[[Weights, Hints, ImportOptions], Translation]] = {
    Format.MAE: vit.mae,
    Format.VIT: vit.mae,
    Format.MM_VIT: vit.mmpretrain,
    Format.HF_VITMAE: vit.huggingface,
    Format.HF_VIT: vit.huggingface,
    Format.LOCALMIM_VIT: localmim.localmim_vit,
    Format.LOCALMIM_SWIN: localmim.localmim_swin,
    Format.GREENMIM: swin.greenmim,
    Format.SIMMIM_SWIN: swin.simmim,
    Format.SWIN: swin.simmim,
    Format.MM_SWIN: swin.mmpretrain,
    Format.HF_SWIN: swin.huggingface,
    Format.SIMMIM_VIT: beit.beit,
    Format.BEIT: beit.beit,
    Format.CONVMAE: convmae.convmae,
    Format.CONVMAE_ENCODER: convmae.convmae,
}


ENCODER = "encoder."
PREFIX_TOKENS = ("encoder.vit.cls_token", "encoder.vit.reg_token")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """The outcome of an import.

    Args:
        format: of the checkpoint, in words.
        recipe: the method, by name.
        backbone, image_size: of its encoder.
        encoder_only: whether it has no decoder, so that only its encoder can be used.
        matched: number of our weights that it provides.
        missing: ours that it lacks (only if not strict): they keep their initial values, or are left out with the
            decoder.
        left_over: its weights without a counterpart of ours (only if not strict).
        dropped: its weights left out on purpose, and why.
        notes: what else the user should know.
        licence: of the weights.
    """

    format: str
    recipe: str
    backbone: str
    image_size: tuple[int, int]
    encoder_only: bool
    matched: int
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    dropped: dict[str, str]
    notes: tuple[str, ...]
    licence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        height, width = self.image_size
        what = "encoder only" if self.encoder_only else f"recipe {self.recipe}"
        lines = [
            f"{self.format}: {what}, {self.backbone} at {height} x {width} pixels",
            f"{self.matched} weights matched",
        ]
        for count, names in (("missing", self.missing), ("left over", self.left_over)):
            lines += [f"{len(names)} {count}: {first_names(names)}"] if names else []
        for reason in dict.fromkeys(self.dropped.values()):
            names = tuple(name for name, why in self.dropped.items() if why == reason)
            lines.append(f"{len(names)} dropped ({reason}): {first_names(names)}")
        return [*lines, *self.notes, self.licence]


def import_checkpoint(
    file: str | Path, out: str | Path, options: ImportOptions | None = None, **values: Any
) -> ImportReport:
    """A published checkpoint as a file that `load_method` (if it has its decoder) and `load_encoder` take.

    Args:
        file: .pth, .pt, .bin or .safetensors, or a Hugging Face folder. Nothing in it is run. `~` is expanded, as it
            is in `out`.
        out: where to write.
        options: what the checkpoint does not say; with `window` the image grows unless `image_size` is given too.
        values: fields of `ImportOptions` by name, instead of those of `options`.

    Raises:
        TypeError: there is no such argument.
        ValueError: it cannot be read safely, is of no known format, does not fit, or, if strict, not wholly.
    """
    refuse_unknown("import_checkpoint", values, [*ImportOptions.__dataclass_fields__])
    options = replace(options or ImportOptions(), **values)
    file, out = home(file), home(out)
    if file.is_file() and not file.stat().st_size:
        raise ValueError(f"FILE {file} is empty")
    refuse_unwritable(out)
    checkpoint = read_checkpoint(file)
    with naming(str(file)):
        hints = hints_of(checkpoint)
        found = recognize(checkpoint.weights)
    hints = replace(hints, mean=options.mean or hints.mean, std=options.std or hints.std)
    what = f"{file}, taken for {found.value}"
    useful, dropped = drop(checkpoint.weights, UNUSED)
    with naming_format(what):
        translation = TRANSLATIONS[found](useful, hints, options)
    if options.window and not translation.backbone.startswith("swin"):
        raise ValueError(f"--window is for Swin, not for {translation.backbone}")

    settings = settings_of(translation, hints, options)
    recipe = compose(translation.recipe, settings)
    encoder, cells, expected = build_fresh(recipe, translation.encoder_only)
    grids = [(grid_for(translation.image_size, cell), grid_for(recipe.image_size, cell)) for cell in cells]
    weights, strict = translation.weights, options.strict
    with naming_format(what):
        if options.image_size or options.window:
            own = {name.removeprefix(ENCODER): w for name, w in weights.items() if name.startswith(ENCODER)}
            own, _ = resize_tables(own, encoder, translation.image_size)
            weights = weights | {f"{ENCODER}{name}": value for name, value in own.items()}
        weights = place_decoder_positions(weights, expected, grids, strict=strict)
    weights, missing, left_over = match_weights(weights, expected, what, strict=strict)

    notes, encoder_only = list(translation.notes), translation.encoder_only
    if missing and not encoder_only and not any(name.startswith("encoder.") for name in missing):
        encoder_only = True
        notes.append("its decoder is not complete: only the encoder is written")
    elif missing:
        notes.append("missing weights keep their fresh initialisation")
    kept = {
        name: weights.get(name, value).to(value.dtype)
        for name, value in expected.items()
        if name.startswith("encoder.") or not encoder_only
    }
    write(kept, metadata_of(found, translation, settings, recipe, encoder_only), out)
    return ImportReport(
        format=found.value,
        recipe=translation.recipe,
        backbone=translation.backbone,
        image_size=recipe.image_size,
        encoder_only=encoder_only,
        matched=len(kept.keys() & weights.keys()),
        missing=missing,
        left_over=left_over,
        dropped=dropped | translation.dropped,
        notes=tuple(notes),
        licence=LICENCES[found],
    )


def settings_of(translation: Translation, hints: Hints, options: ImportOptions) -> Settings:
    """The settings with which the recipe has the checkpoint's encoder, decoder, target and normalisation."""
    return Settings(
        backbone=translation.backbone,
        image_size=options.image_size or translation.image_size,
        norm_eps=hints.norm_eps,
        **translation.settings,
        **normalization_settings(hints.mean, hints.std, translation.settings.get("channels", 3)),
    )


def metadata_of(
    found: Format, translation: Translation, settings: Settings, recipe: Recipe, encoder_only: bool
) -> dict[str, str]:
    """What the written file says of itself: how to build the method, and where the weights are from."""
    request = description_of(translation.recipe, recipe, settings)
    request["settings"]["data"] = ""
    if encoder_only:
        request["encoder_only"] = True
    origin = {"from": found.value, "licence": LICENCES[found]}
    return {"mimkit.request": json.dumps(request), "mimkit.imported": json.dumps(origin)}


@contextmanager
def naming_format(what: str) -> Iterator[None]:
    """Name the recognised format in errors about missing weights and impossible shapes."""
    try:
        with naming(what):
            yield
    except KeyError as error:
        raise ValueError(f"{what}, lacks {error.args[0]}") from error
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"{what}: its weights have other shapes: {error}") from error


def build_fresh(recipe: Recipe, encoder_only: bool) -> tuple[Encoder, list[int], dict[str, Tensor]]:
    """An encoder of the recipe, the cells that each decoder has tokens for, and fresh weights by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not encoder_only:
            method = build(recipe)
            return method.encoder, [level.cell for level in method.readout.levels], method.state_dict()
        encoder = recipe.encoder(image_size=recipe.image_size, channels=recipe.channels)
        return encoder, [], {f"encoder.{name}": value for name, value in encoder.state_dict().items()}


def place_decoder_positions(
    weights: Weights, expected: dict[str, Tensor], grids: list[tuple[Grid, Grid]], *, strict: bool
) -> Weights:
    """The weights with each decoder's positions in the form of ours, resized from its old grid to its new one.

    A checkpoint without them used fixed sine-cosine positions.

    Raises:
        ValueError: strict, and ours cannot represent a decoder's positions.
    """
    prefix = sum(weights[name].shape[1] for name in PREFIX_TOKENS if name in weights)
    for level, (old, new) in enumerate(grids):
        name = f"decoders.{level}.positions"
        if name not in weights and name in expected:
            weights = weights | {name: expected[name]}
        elif name in weights:
            try:
                weights = place_positions(weights, f"decoders.{level}", old, new, prefix)
            except ValueError:
                if strict:
                    raise
    return weights


def match_weights(
    weights: Weights, expected: dict[str, Tensor], what: str, *, strict: bool
) -> tuple[Weights, tuple[str, ...], tuple[str, ...]]:
    """The weights that are expected and of the expected shape, and the names of missing and left-over ones.

    Raises:
        ValueError: strict, and some are missing, left over or of another shape; the message begins with `what`.
    """
    wrong = [name for name, value in weights.items() if name in expected and value.shape != expected[name].shape]
    if strict and wrong:
        theirs, ours = tuple(weights[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise ValueError(f"{what}: {len(wrong)} weights have other shapes than ours: {wrong[0]} {theirs}, not {ours}")
    fitting = {name: value for name, value in weights.items() if name in expected and name not in wrong}
    missing, left_over = tuple(sorted(expected.keys() - fitting)), tuple(sorted(weights.keys() - fitting))
    sides = {"missing": missing, "left over": left_over}
    problems = [f"{in_number(names)} {side} ({first_names(names)})" for side, names in sides.items() if names]
    if strict and problems:
        raise ValueError(f"{what}: {' and '.join(problems)}; --no-strict imports the rest")
    return fitting, missing, left_over


def in_number(names: tuple[str, ...]) -> str:
    """ "1 weight is" or "N weights are"."""
    return "1 weight is" if len(names) == 1 else f"{len(names)} weights are"


def normalization_settings(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int
) -> dict[str, Any]:
    """Settings for mean and std of the pixels, where they are not the default.

    Raises:
        ValueError: one is given without the other, or not one number for each channel.
    """
    if mean is None and std is None:
        return {}
    if mean is None or std is None or {len(mean), len(std)} != {channels}:
        raise ValueError(f"--mean and --std go together, with {channels} numbers each, got {mean} and {std}")
    usual = Normalization.for_channels(channels)
    return {} if (mean, std) == (usual.mean, usual.std) else {"mean": mean, "std": std}
