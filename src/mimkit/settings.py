"""A request to pre-train, as plain values: what the command line's flags are made from and what run.json keeps.

Names become parts here, in one dict literal per kind, and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mimkit.flags import naming

if TYPE_CHECKING:
    from mimkit.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that may change a run's results. None means the recipe's value, or one chosen when the run starts."""

    data: Path
    """Folder of images, nested any way, or a text file that lists them."""
    held_out: float = 0.1
    """Share of the images kept for evaluation, unless the folder has `train` and `val` folders."""
    backbone: str | None = None
    """Any plain ViT that timm knows, such as vit_tiny_patch16_224."""
    image_size: tuple[int, ...] | None = None
    """Side of the training crop in pixels, or its height and width."""
    channels: Literal[1, 3] | None = None
    """3 for colour, 1 for grey."""
    view: str | None = None
    """Training crop: random-resized-crop, simple-resized-crop."""
    mask: str | None = None
    """How cells are hidden: random."""
    mask_ratio: float | None = None
    """Hidden share, between 0 and 1."""
    mask_cell: int | None = None
    """Side of a hidden cell in pixels; a multiple of the backbone's patch."""
    readout: str | None = None
    """Which latents are decoded: last, fused, levels."""
    decoder: str | None = None
    """transformer."""
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    target: str | None = None
    """What is reconstructed: pixels, raw-pixels, lowfreq-pixels, lowfreq-pixels-mmselfsup, hog."""
    epochs: int | None = None
    batch_size: int | None = None
    """Images per step; the learning rate follows it."""
    micro_batch: int | None = None
    """Images computed at once; gradients accumulate up to the batch size."""
    base_lr: float | None = None
    """Peak learning rate for 256 images per step; the rate used is base_lr * batch_size / 256."""
    warmup_epochs: float | None = None
    """Default: the recipe's, at most 15 % of the epochs."""
    min_lr: float | None = None
    weight_decay: float | None = None
    clip_grad: float | None = None
    """Largest gradient norm."""
    precision: Literal["bf16", "fp32"] | None = None
    """Default: bf16 where the device computes fast in it, else fp32."""
    seed: int = 0
    probe_every: int | None = None
    """Epochs between looks at the encoder (probe and pictures); default: before, and five times during the run."""
    probe_images: int = 1000
    """Images that the probe shown while training is fitted on, at most; as many held-out ones score it."""
    log_every: int = 10
    """Steps that one row of the log averages over."""
    skipped_share: float = 0.1
    """Share of unreadable training images at which the run stops."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", Path(self.data))
        object.__setattr__(self, "image_size", as_size(self.image_size))
        counts = ("mask_cell", "decoder_width", "decoder_depth", "decoder_heads", "micro_batch")
        for name in (*counts, "probe_every", "probe_images", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{flag(name)} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie in 0 .. 2**63 - 1, got {self.seed}")
        for name in ("held_out", "skipped_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} must be at least 0 and below 1, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"data": str(self.data)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Settings":
        """The inverse of `to_json`.

        Raises:
            ValueError: there is a value of an unknown name.
        """
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"this version of mimkit knows no setting {', '.join(sorted(unknown))}")
        return cls(**{**values, "data": Path(values["data"])})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What may differ from machine to machine without changing results."""

    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""
    workers: int | None = None
    """Processes that read images; default: one for each two cores, at least one, at most eight."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; 0 writes one after each step."""
    tensorboard: bool = False
    """Also write TensorBoard events (pip install mimkit[tensorboard])."""

    def __post_init__(self) -> None:
        for name in ("workers", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{flag(name)} must be at least 0, got {value}")


def as_size(sides: Sequence[int] | None) -> tuple[int, int] | None:
    """(side,) or (height, width) as (height, width).

    Raises:
        ValueError: neither one nor two numbers, or one below 1.
    """
    if sides is None:
        return None
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"--image-size takes one side or a height and a width, all above 0, got {list(sides)}")
    return sides[0], sides[-1]


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


def recipes() -> dict[str, Callable[[], "Recipe"]]:
    """Recipes by the name the command line gives them."""
    from mimkit.recipes import localmim, mae, mff, pixmim, pixmim_mff, small

    return {
        "mae": mae,
        "pixmim": lambda: pixmim(mae()),
        "mff": lambda: mff(mae()),
        "pixmim-mff": pixmim_mff,
        "localmim": localmim,
        "small": small,
    }


def compose(recipe: str, settings: Settings) -> "Recipe":
    """The named recipe with the parts and values that the settings replace.

    Raises:
        ValueError: an unknown name, or a value that does not fit; the message names the flag.
    """
    from mimkit.decoders import TransformerDecoder
    from mimkit.masks import RandomMask
    from mimkit.readouts import Fused, Last, Levels
    from mimkit.targets import Hog, LowFreqPixels, Pixels
    from mimkit.views import Normalization, RandomResizedCrop, SimpleResizedCrop

    base = choose("recipe", recipe, recipes())()
    normalization = Normalization.for_channels(settings.channels or base.channels)
    views = {"random-resized-crop": RandomResizedCrop, "simple-resized-crop": SimpleResizedCrop}
    masks = {"random": RandomMask}
    readouts = {"last": Last, "fused": Fused, "levels": Levels}
    decoders = {"transformer": TransformerDecoder}
    targets = {
        "hog": Hog,
        "pixels": Pixels,
        "raw-pixels": partial(Pixels, normalized=False),
        "lowfreq-pixels": LowFreqPixels,
        "lowfreq-pixels-mmselfsup": partial(LowFreqPixels, filter="mmselfsup", normalization=normalization),
    }

    parts: dict[str, Any] = {}
    if settings.view is not None:
        parts["view"] = choose("--view", settings.view, views)()
    if settings.mask is not None:
        kind = choose("--mask", settings.mask, masks)
        parts["mask"] = base.mask if isinstance(base.mask, kind) else kind()
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
    if settings.backbone is not None:
        parts["encoder"] = partial(base.encoder, name=settings.backbone)
    changed = replace(base, **parts)

    mask = given(settings, mask_ratio="ratio", mask_cell="cell")
    decoder = given(settings, decoder_width="width", decoder_depth="depth", decoder_heads="heads")
    train = {
        f.name: getattr(settings, f.name) for f in fields(base.train) if getattr(settings, f.name, None) is not None
    }
    if "epochs" in train and "warmup_epochs" not in train:
        train["warmup_epochs"] = min(base.train.warmup_epochs, 0.15 * train["epochs"])
    with naming("--mask-ratio"):
        changed = replace(changed, mask=replace(changed.mask, **mask))
    return replace(
        changed,
        decoder=partial(changed.decoder, **decoder),
        train=replace(changed.train, **train),
    )


def choose(what: str, name: str, options: dict[str, Any]) -> Any:
    """The option of that name, or a ValueError that lists them."""
    if name not in options:
        raise ValueError(f"{what} {name!r} is unknown; choose from {', '.join(options)}")
    return options[name]


def given(settings: Settings, **names: str) -> dict[str, Any]:
    """The settings that were given, under the parts' own names for them."""
    return {new: getattr(settings, old) for old, new in names.items() if getattr(settings, old) is not None}
