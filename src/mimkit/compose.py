"""Names of recipes and parts, one dict literal for each kind; and recipes restored from the facts of a file."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from PIL import Image

from mimkit import recipes as r
from mimkit.backbones import create_encoder
from mimkit.decoders import CrossDecoder, LinearDecoder, TransformerDecoder
from mimkit.errors import naming
from mimkit.losses import Distance, absolute, squared
from mimkit.masks import BlockMask, ComplementaryMasks, MaskSampler, RandomMask, UniformMask
from mimkit.readouts import Fused, FusedHierarchical, Last, Levels, Readout
from mimkit.recipes import PARTS, DecoderMaker, Recipe, record_of_parts
from mimkit.records import as_text, is_record, make, parse_text, record_of, unknown_parts, up_to_date
from mimkit.settings import Settings
from mimkit.targets import Features, Hog, LowFreqPixels, Pixels, Target
from mimkit.training.optim import Train
from mimkit.training.run_folder import FORMAT
from mimkit.user_code import made_in_python
from mimkit.views import CenterCrop, Normalization, RandomResizedCrop, SimpleResizedCrop, View

# Names of recipes and parts, as on the command line, and nowhere else: README's lists, the settings' help and the
# golden grid are checked against these. A part that is added here is also found in run folders, by its own name.

RECIPES: dict[str, Callable[[], Recipe]] = {
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
VIEWS: dict[str, Callable[..., View]] = {
    "random-resized-crop": RandomResizedCrop,
    "simple-resized-crop": SimpleResizedCrop,
}
MASKS: dict[str, Callable[..., MaskSampler]] = {
    "random": partial(RandomMask, shared=False),
    "shared": partial(RandomMask, shared=True),
    "block": BlockMask,
    "uniform": UniformMask,
    "complementary": ComplementaryMasks,
}
READOUTS: dict[str, Callable[..., Readout]] = {
    "last": Last,
    "fused": Fused,
    "fused-mlp": partial(Fused, projection="mlp"),
    "fused-attention": partial(Fused, fusion="attention"),
    "fused-all": partial(Fused, taps="all", projection=None),
    "fused-hierarchical": FusedHierarchical,
    "levels": Levels,
}
DECODERS: dict[str, DecoderMaker] = {
    "transformer": TransformerDecoder,
    "cross": CrossDecoder,
    "linear": LinearDecoder,
}
TARGETS: dict[str, Callable[..., Target]] = {
    "pixels": Pixels,
    "raw-pixels": partial(Pixels, normalized=False),
    "lowfreq-pixels": LowFreqPixels,
    "lowfreq-pixels-mmselfsup": partial(LowFreqPixels, filter="mmselfsup"),
    "hog": Hog,
    "hog-18": partial(Hog, bins=18),
    "features": Features,
}
UNDOING_NORMALIZATION = {"lowfreq-pixels-mmselfsup", "features"}  # targets that must know the images'
DISTANCES: dict[str, Distance] = {"squared": squared, "absolute": absolute}


def by_own_name(table: Mapping[str, Any]) -> dict[str, Any]:
    """The classes and functions of a table, by their own names instead of the command line's."""
    parts = [getattr(make, "func", make) for make in table.values()]
    return {part.__name__: part for part in parts}


PARTS_BY_KIND: dict[str, dict[str, Any]] = {
    "view": by_own_name(VIEWS) | {"CenterCrop": CenterCrop},
    "mask": by_own_name(MASKS),
    "encoder": {"create_encoder": create_encoder},
    "readout": by_own_name(READOUTS),
    "decoder": by_own_name(DECODERS),
    "target": by_own_name(TARGETS),
    "distance": by_own_name(DISTANCES),
}
KNOWN: dict[str, Any] = {name: part for parts in PARTS_BY_KIND.values() for name, part in parts.items()}
KNOWN |= {"Normalization": Normalization, "Train": Train} | {member.name: member for member in Image.Resampling}
"""Parts by their own names, as `records` has them."""

TRAIN_SETTINGS = {field.name: field.name for field in fields(Train) if field.name in Settings.__dataclass_fields__}
TRAIN_SETTINGS |= {"ema_decay": "ema"}
"""Which setting gives a value of `Train`."""


PYTHON = "python"
"""What files call a recipe that was handed over as an object."""


def list_recipes() -> list[str]:
    """The names of all recipes, as `pretrain` takes them."""
    return list(RECIPES)


def compose(recipe: str | Recipe, settings: Settings) -> Recipe:
    """The recipe, named or as an object, with the parts and values that the settings replace.

    Raises:
        ValueError: an unknown name, or a value that does not fit; the message names the flag.
    """
    if not isinstance(recipe, str | Recipe):
        hint = f": call it, as in {recipe.__name__}()" if inspect.isfunction(recipe) else ""
        raise ValueError(f"a recipe is a name, FILE.py:NAME or a mimkit.Recipe, got {recipe!r}{hint}")
    base = find_recipe(recipe) if isinstance(recipe, str) else recipe
    channels = settings.channels or base.channels
    statistics = given_statistics(settings, channels) or (base.statistics if channels == base.channels else None)
    if (settings.target == "features") != (settings.teacher is not None):
        raise ValueError("--target features and --teacher NAME go together")
    parts: dict[str, Any] = {"statistics": statistics, "channels": channels}
    if settings.image_size is not None:
        parts["image_size"] = settings.image_size
    if settings.view is not None:
        parts["view"] = choose("--view", settings.view, VIEWS)()
    if settings.mask is not None:
        make = choose("--mask", settings.mask, MASKS)
        kind, values = getattr(make, "func", make), getattr(make, "keywords", {})
        parts["mask"] = with_fields(base.mask, values) if values and isinstance(base.mask, kind) else make()
    if settings.readout is not None:
        parts["readout"] = choose("--readout", settings.readout, READOUTS)
    if settings.decoder is not None:
        kind = choose("--decoder", settings.decoder, DECODERS)
        parts["decoder"] = base.decoder if getattr(base.decoder, "func", base.decoder) is kind else kind
    if settings.target is not None:
        make = choose("--target", settings.target, TARGETS)
        own: dict[str, Any] = {} if settings.teacher is None else {"model": settings.teacher}
        if settings.target in UNDOING_NORMALIZATION:
            own["normalization"] = statistics or Normalization.for_channels(channels)
        parts["target"] = make(**own)
    changed = replace(base, **parts)

    encoder = given(settings, backbone="name", encoder="kind", norm_eps="norm_eps")
    if changed.mask.mask_token:
        encoder["mask_token"] = True
    if settings.class_tokens is not None:
        encoder["reg_tokens"] = settings.class_tokens - 1
    mask = given(settings, mask_ratio="ratio", mask_cell="cell", predict_share="scored")
    taps = given(settings, taps="taps")
    offsets = {} if settings.hog_offsets is None else {"offsets": in_pairs(settings.hog_offsets)}
    with naming("--mask-ratio", "--mask-cell", "--predict-share"):
        changed_mask = with_fields(changed.mask, mask)
    with naming("--hog-offsets"):
        changed_target = with_fields(changed.target, offsets)
    return replace(
        changed,
        encoder=partial(changed.encoder, **encoder),
        mask=changed_mask,
        readout=with_values("--taps", changed.readout, taps),
        decoder=with_decoder_values(changed.decoder, settings),
        target=changed_target,
        train=with_train_values(changed.train, settings),
    )


def given_statistics(settings: Settings, channels: int) -> Normalization | None:
    """The mean and std that the settings give.

    Raises:
        ValueError: they are for another number of channels.
    """
    if settings.mean is None or settings.std is None:
        return None
    if len(settings.mean) != channels:
        raise ValueError(f"--mean, --std: {len(settings.mean)} numbers for images of {channels} channels")
    return Normalization(settings.mean, settings.std)


def with_decoder_values(decoder: DecoderMaker | tuple[DecoderMaker, ...], settings: Settings) -> Any:
    """The maker of a decoder, or one for each level, with the settings' width, depth and heads bound."""
    if isinstance(decoder, tuple):
        return tuple(with_decoder_values(one, settings) for one in decoder)
    values = given(settings, decoder_width="width", decoder_depth="depth", decoder_heads="heads")
    if "eps" in inspect.signature(decoder).parameters:
        values |= given(settings, norm_eps="eps")
    return with_values("--decoder-width, -depth, -heads", decoder, values)


def with_train_values(base: Train, settings: Settings) -> Train:
    """Training values with those that the settings give; warm-up and milestones follow the epochs."""
    values = {name: getattr(settings, setting) for name, setting in TRAIN_SETTINGS.items()}
    values = {name: value for name, value in values.items() if value is not None}
    if "epochs" in values:
        values.setdefault("warmup_epochs", min(base.warmup_epochs, 0.15 * values["epochs"]))
        values["milestones"] = tuple(epoch * values["epochs"] / base.epochs for epoch in base.milestones)
    return replace(base, **values)


def description_of(name: str, recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """The facts of a recipe that run.json and exported files keep, for `restore_recipe`."""
    own = own_parts(recipe) if name == PYTHON else {}
    return {
        "format": FORMAT,
        "recipe": name,
        "settings": settings.to_json(),
        "parts": record_of_parts(recipe),
        "training": record_of(recipe.train),
    } | ({"own_parts": own} if own else {})


def own_parts(recipe: Recipe) -> dict[str, list[str]]:
    """What of a recipe is not mimkit's, so that no record brings it back: names, for each part that has some."""
    found = {name: unknown_parts(getattr(recipe, name), KNOWN) for name in (*PARTS, "statistics", "train")}
    return {name: names for name, names in found.items() if names}


def restore_recipe(facts: dict[str, Any], *, encoder_only: bool = False) -> Recipe:
    """The recipe that run.json or an exported file describes, from its parts, whatever its name stands for today.

    Args:
        facts: "recipe", "settings" and "parts" of either, in any format.
        encoder_only: restore only the encoder, its image size and normalisation; the other parts are MAE's.

    Raises:
        ValueError: this version does not know a part, or one of its values.
    """
    parts, training = facts["parts"], facts.get("training")
    records: dict[str, Any] = {name: parts.get(name) for name in PARTS if name == "encoder" or not encoder_only}
    if facts.get("format", 1) == 1:
        base, settings = find_recipe(facts["recipe"]), Settings.from_json(facts["settings"])
        records = {name: parse_text(str(text)) for name, text in records.items()}
        training = None if training is None else parse_text(str(training))
        values: dict[str, Any] = {
            "image_size": settings.image_size or base.image_size,
            "channels": settings.channels or base.channels,
        }
        values["statistics"] = given_statistics(settings, values["channels"]) or base.statistics
    else:
        values = {name: make(parts.get(name), KNOWN) for name in ("image_size", "channels", "statistics")}
    size, channels = values["image_size"], values["channels"]
    if not isinstance(size, tuple) or [*map(type, (*size, channels))] != [int] * 3:
        raise ValueError(f"images of {size} pixels with {channels} channels are none")
    for name, record in records.items():
        for one in record if name == "decoder" and isinstance(record, list) else [record]:
            if not is_record(one) or up_to_date(one)["name"] not in PARTS_BY_KIND[name]:
                raise ValueError(f"this version of mimkit has no {name} {as_text(one)}")
    made = {name: make(record, KNOWN) for name, record in records.items()}
    made["encoder"] = partial(made["encoder"], pretrained=False)  # the weights come from the file
    if encoder_only:
        return replace(r.mae(), **made, **values)
    train = make(training, KNOWN) if training else find_recipe(facts["recipe"]).train
    return Recipe(**made, **values, train=train)


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or by FILE.py:NAME from a file of the user's own, which is run.

    Raises:
        ValueError: there is none, or the file fails, or what has that name there is no recipe and returns none.
    """
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        return choose("recipe", name, RECIPES)()
    with naming(f"recipe {name}"):
        made = made_in_python(file, function)
        if not isinstance(made, Recipe):
            raise ValueError(f"{function} gives a {type(made).__name__}, not a mimkit.recipes.Recipe")
    return made


def with_fields(part: Any, values: dict[str, Any]) -> Any:
    """A frozen part with some fields replaced.

    Raises:
        ValueError: it has no such field, or refuses a value.
    """
    unknown = values.keys() - {f.name for f in fields(part)} if values else ()
    if unknown:
        raise ValueError(f"{type(part).__name__} has no {', '.join(sorted(unknown))}")
    return replace(part, **values) if values else part


def with_values(flags: str, make: Callable[..., Any], values: dict[str, Any]) -> Callable[..., Any]:
    """The maker of a part, with some of its arguments bound.

    Raises:
        ValueError: it takes no such argument.
    """
    strange = values.keys() - inspect.signature(make).parameters.keys()
    if strange:
        name = getattr(getattr(make, "func", make), "__name__", "this part")
        raise ValueError(f"{flags}: {name} takes no {', '.join(sorted(strange))}")
    return partial(make, **values) if values else make


def in_pairs(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Numbers grouped into pairs.

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
    """The settings that were given, under the names of the parts' arguments."""
    return {new: getattr(settings, old) for old, new in names.items() if getattr(settings, old) is not None}
