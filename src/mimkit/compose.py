"""Names to recipes and parts: one dict literal for each kind, and nowhere else."""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from mimkit import recipes as r
from mimkit.decoders import CrossDecoder, LinearDecoder, TransformerDecoder
from mimkit.errors import naming
from mimkit.masks import BlockMask, ComplementaryMasks, RandomMask, UniformMask
from mimkit.readouts import Fused, FusedHierarchical, Last, Levels
from mimkit.recipes import Recipe
from mimkit.settings import Settings
from mimkit.targets import Features, Hog, LowFreqPixels, Pixels
from mimkit.views import Normalization, RandomResizedCrop, SimpleResizedCrop


def recipes() -> dict[str, Callable[[], Recipe]]:
    """Recipes by the name the command line gives them."""
    return {
        "mae": r.mae,
        "pixmim": lambda: r.pixmim(r.mae()),
        "mff": lambda: r.mff(r.mae()),
        "pixmim-mff": r.pixmim_mff,
        "localmim": r.localmim,
        "localmim-isolated": lambda: r.localmim(isolated=True),
        "localmim-large": r.localmim_large,
        "localmim-swin": r.localmim_swin,
        "localmim-swin-pixel": lambda: r.localmim_swin(target=Pixels()),
        "localmim-swin-large": r.localmim_swin_large,
        "simmim": r.simmim,
        "simmim-vit": r.simmim_vit,
        "pixmim-simmim": lambda: r.pixmim(r.simmim()),
        "mff-simmim": lambda: r.mff_hierarchical(r.simmim()),
        "mff-simmim-vit": lambda: r.mff(r.simmim_vit()),
        "greenmim": r.greenmim,
        "convmae": r.convmae,
        "convmae-fast": r.fast_convmae,
        "pixmim-convmae": lambda: r.pixmim(r.convmae()),
        "lsmae": r.lsmae,
        "pixmim-lsmae": lambda: r.pixmim(r.lsmae()),
        "maskfeat": r.maskfeat,
        "um-mae": r.um_mae,
        "crossmae": r.crossmae,
        "pixio": r.pixio,
        "small": r.small,
    }


def compose(recipe: str, settings: Settings) -> Recipe:
    """The named recipe with the parts and values that the settings replace.

    Raises:
        ValueError: an unknown name, or a value that does not fit; the message names the flag.
    """
    base = find_recipe(recipe)
    channels = settings.channels or base.channels
    statistics = base.statistics
    if settings.mean is not None and settings.std is not None:
        if len(settings.mean) != channels:
            raise ValueError(f"--mean, --std: {len(settings.mean)} numbers for images of {channels} channels")
        statistics = Normalization(settings.mean, settings.std)
    normalization = statistics or Normalization.for_channels(channels)
    views = {"random-resized-crop": RandomResizedCrop, "simple-resized-crop": SimpleResizedCrop}
    masks = {
        "random": RandomMask,
        "shared": partial(RandomMask, shared=True),
        "block": BlockMask,
        "uniform": UniformMask,
        "complementary": ComplementaryMasks,
    }
    readouts = {
        "last": Last,
        "fused": Fused,
        "fused-mlp": partial(Fused, projection="mlp"),
        "fused-attention": partial(Fused, fusion="attention"),
        "fused-all": partial(Fused, taps="all", projection=None),
        "fused-hierarchical": FusedHierarchical,
        "levels": Levels,
    }
    decoders = {"transformer": TransformerDecoder, "cross": CrossDecoder, "linear": LinearDecoder}
    targets = {
        "hog": Hog,
        "hog-18": partial(Hog, bins=18),
        "pixels": Pixels,
        "raw-pixels": partial(Pixels, normalized=False),
        "lowfreq-pixels": LowFreqPixels,
        "lowfreq-pixels-mmselfsup": partial(LowFreqPixels, filter="mmselfsup", normalization=normalization),
        "features": partial(Features, str(settings.teacher), normalization=normalization),
    }

    if (settings.target == "features") != (settings.teacher is not None):
        raise ValueError("--target features and --teacher NAME go together")
    parts: dict[str, Any] = {}
    if settings.view is not None:
        parts["view"] = choose("--view", settings.view, views)()
    if settings.mask is not None:
        make = choose("--mask", settings.mask, masks)
        keep = isinstance(base.mask, RandomMask) and settings.mask in ("random", "shared")
        parts["mask"] = with_fields("--mask", base.mask, {"shared": settings.mask == "shared"}) if keep else make()
    if settings.readout is not None:
        parts["readout"] = choose("--readout", settings.readout, readouts)
    if settings.decoder is not None:
        kind = choose("--decoder", settings.decoder, decoders)
        parts["decoder"] = base.decoder if getattr(base.decoder, "func", base.decoder) is kind else kind
    if settings.target is not None:
        parts["target"] = choose("--target", settings.target, targets)()
    for name in ("image_size", "channels"):
        if getattr(settings, name) is not None:
            parts[name] = getattr(settings, name)
    changed = replace(base, **parts, statistics=statistics)

    encoder = given(settings, backbone="name", encoder="kind", norm_eps="norm_eps")
    if settings.mask == "uniform":
        encoder["mask_token"] = True
    if settings.class_tokens is not None:
        encoder["reg_tokens"] = settings.class_tokens - 1
    mask = given(settings, mask_ratio="ratio", mask_cell="cell", predict_share="scored")
    taps = given(settings, taps="taps")
    decoder = given(settings, decoder_width="width", decoder_depth="depth", decoder_heads="heads")
    norms = given(settings, norm_eps="eps")
    offsets = {} if settings.hog_offsets is None else {"offsets": in_pairs(settings.hog_offsets)}
    train = {
        f.name: getattr(settings, f.name) for f in fields(base.train) if getattr(settings, f.name, None) is not None
    }
    if "epochs" in train:
        train.setdefault("warmup_epochs", min(base.train.warmup_epochs, 0.15 * train["epochs"]))
        train["drops"] = tuple(drop * train["epochs"] / base.train.epochs for drop in base.train.drops)
    each = changed.decoder if isinstance(changed.decoder, tuple) else (changed.decoder,)
    changed_decoders = tuple(
        with_values("--decoder-width, -depth, -heads", make, decoder | (norms if has_norms(make) else {}))
        for make in each
    )
    return replace(
        changed,
        encoder=partial(changed.encoder, **encoder),
        mask=with_fields("--mask-ratio, --mask-cell, --predict-share", changed.mask, mask),
        readout=with_values("--taps", changed.readout, taps),
        decoder=changed_decoders if isinstance(changed.decoder, tuple) else changed_decoders[0],
        target=with_fields("--hog-offsets", changed.target, offsets),
        train=replace(changed.train, **train),
    )


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or by FILE.py:NAME from a file of the user's own, which is run.

    Raises:
        ValueError: there is none, or what the file has under that name makes no recipe.
    """
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        return choose("recipe", name, recipes())()
    if not Path(file).is_file():
        raise ValueError(f"recipe {name}: no such file")
    specification = importlib.util.spec_from_file_location(f"recipes_of_{Path(file).stem}", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not hasattr(module, function):
        raise ValueError(f"recipe {name}: the file has no {function}")
    made = getattr(module, function)()
    if not isinstance(made, Recipe):
        raise ValueError(f"recipe {name}: {function}() gives a {type(made).__name__}, not a mimkit.recipes.Recipe")
    return made


def with_fields(flags: str, part: Any, values: dict[str, Any]) -> Any:
    """A frozen part with some fields replaced.

    Raises:
        ValueError: it has no such field, or refuses a value.
    """
    known = {f.name for f in fields(part)}
    strange = values.keys() - known
    if strange:
        raise ValueError(f"{flags}: {type(part).__name__} has no {', '.join(sorted(strange))}")
    if not values:
        return part
    with naming(*flags.split(", ")):
        return replace(part, **values)


def with_values(flags: str, make: Callable[..., Any], values: dict[str, Any]) -> Callable[..., Any]:
    """What makes a part, with some of its arguments bound.

    Raises:
        ValueError: it takes no such argument.
    """
    strange = values.keys() - inspect.signature(make).parameters.keys()
    if strange:
        name = getattr(getattr(make, "func", make), "__name__", "this part")
        raise ValueError(f"{flags}: {name} takes no {', '.join(sorted(strange))}")
    return partial(make, **values) if values else make


def has_norms(make: Callable[..., Any]) -> bool:
    """Whether what makes a decoder can be told the epsilon of its norms."""
    return "eps" in inspect.signature(make).parameters


def in_pairs(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Numbers two by two.

    Raises:
        ValueError: an odd number of them.
    """
    if len(values) % 2:
        raise ValueError(f"--hog-offsets takes two numbers for each level, got {len(values)}")
    return tuple(zip(values[::2], values[1::2], strict=True))


def choose(what: str, name: str, options: dict[str, Any]) -> Any:
    """The option of that name, or a ValueError that lists them."""
    if name not in options:
        raise ValueError(f"{what} {name!r} is unknown; choose from {', '.join(options)}")
    return options[name]


def given(settings: Settings, **names: str) -> dict[str, Any]:
    """The settings that were given, under the parts' own names for them."""
    return {new: getattr(settings, old) for old, new in names.items() if getattr(settings, old) is not None}
