"""A request to pre-train, as plain values: the source of the command line's flags, and kept in run.json."""

import ast
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from mimkit.errors import flag
from mimkit.files import located
from mimkit.typed import check_types, given_as


@functools.cache
def part_names() -> dict[str, list[str]]:
    """The names in the tables of compose.py, which is read as text: to import it would load torch."""
    tree = ast.parse((Path(__file__).parent / "compose.py").read_text(encoding="utf-8"))
    tables = {ast.unparse(node.target): node.value for node in tree.body if isinstance(node, ast.AnnAssign)}
    return {
        name: [ast.literal_eval(key) for key in table.keys if key is not None]
        for name, table in tables.items()
        if isinstance(table, ast.Dict)
    }


def names_of(table: str) -> str:
    """One of these tables, for a flag's help."""
    return ", ".join(part_names()[table])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that may change a run's results. None means the recipe's value, or one chosen when the run starts.

    In Python, a whole float is taken for an int and an int for a float, NumPy's numbers for Python's, and lists, arrays
    and a single number for a tuple; bools, strings, NaN and infinities are no numbers, and None only is what the
    defaults say.

    Raises:
        ValueError: a value of another type, or out of bounds; the message names its flag.
    """

    data: Annotated[str | Path | None, arg(metavar="PATH|URL", help_behavior_hint="(required)")] = None
    """Folder of images, nested any way; a text file that lists them; a file of mimkit pack; .tar or
    .parquet shards: "shards/train-{000..012}.tar", or a folder of them, here or at a URL (https, s3, gs, hf); a folder
    that Hugging Face's `datasets` has saved. Needed by `mimkit pretrain`; in Python data can be handed to
    `pretrain(data=...)` instead."""
    held_out: float = 0.1
    """Share of the images kept for evaluation, unless the folder has `train` and `val` folders."""
    backbone: str | None = None
    """A name of timm's, such as swin_tiny_patch4_window7_224, or convmae_base; the model's own arguments may follow in
    brackets: "vit_tiny_patch16_224(depth=6)"."""
    encoder: Literal["visible", "dense"] | None = None
    """visible: compute on visible tokens only (ViT, Swin, ConvMAE); dense: mask tokens in place of hidden cells."""
    class_tokens: int | None = None
    """How many class tokens a plain ViT has."""
    norm_eps: float | None = None
    """Epsilon of the LayerNorms of a transformer encoder and its decoder; default: as published."""
    image_size: tuple[int, ...] | None = None
    """Side of the training crop in pixels, or its height and width."""
    channels: int | None = None
    """3 for colour, 1 for grey; other numbers for data in memory."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel's pixels in 0..1; default: ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel's pixels; default: ImageNet's."""
    view: Annotated[str | None, arg(help=f"Training crop: {names_of('VIEWS')}.")] = None
    mask: Annotated[str | None, arg(help=f"How cells are hidden: {names_of('MASKS')}; shared: one a batch.")] = None
    mask_ratio: float | None = None
    """Hidden share, between 0 and 1."""
    mask_cell: int | None = None
    """Side of a hidden cell in pixels; a multiple of what the encoder can hide."""
    predict_share: float | None = None
    """Share of the hidden cells that is predicted, for random masks."""
    readout: Annotated[str | None, arg(help=f"Which latents are decoded: {names_of('READOUTS')}.")] = None
    taps: tuple[int, ...] | None = None
    """Blocks or stages that a readout of several takes, the last one at the end."""
    decoder: Annotated[str | None, arg(help=f"What predicts hidden cells: {names_of('DECODERS')}.")] = None
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    target: Annotated[str | None, arg(help=f"What is reconstructed: {names_of('TARGETS')}.")] = None
    hog_offsets: tuple[float, ...] | None = None
    """For hog targets: two numbers for each level, added to gradients across and down (LocalMIM's published bias)."""
    teacher: str | None = None
    """For --target features: the frozen timm model they come from."""
    epochs: int | None = None
    batch_size: int | Literal["auto"] | None = None
    """Images per step; the learning rate follows it. auto: the recipe's, with --micro-batch auto."""
    micro_batch: int | Literal["auto"] | None = None
    """Images that a process computes at once; gradients accumulate up to the batch size. auto: what trial steps find to
    fit into memory and to be fast; default: at most 128 on a CPU, 256 elsewhere."""
    repeats: int = 1
    """Views, each with its own mask, of an image that is decoded once (repeated augmentation). The number of views per
    step and epoch stays; it takes so many epochs to see all images."""
    decode: Literal["auto", "simplejpeg", "pillow"] = "auto"
    """Decoder of training images: auto takes simplejpeg where it is installed (pip install mimkit[fast]); pillow is the
    reference, from which it differs by a mean of 0.04 grey levels."""
    base_lr: float | None = None
    """Peak learning rate for 256 images per step (SimMIM's recipes: 512); it is scaled with the batch size."""
    warmup_epochs: float | None = None
    """Default: the recipe's, at most 15 % of the epochs."""
    warmup_lr: float | None = None
    """Learning rate at the start of the warm-up; scaled like base_lr."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine; scaled like base_lr."""
    weight_decay: float | None = None
    clip_grad: float | None = None
    """Largest gradient norm."""
    precision: Literal["bf16", "bf16-pure", "fp32"] | None = None
    """bf16 casts what matrix products take, over float32 weights; bf16-pure keeps weights, gradients and optimizer
    state in bfloat16 too, in 10 instead of 16 bytes a weight. Default: bf16 where the device computes fast in it, else
    fp32."""
    compile: bool = False
    """Compile each block of the model (torch.compile), which takes minutes before the first step. Needs a C++ compiler
    on a CPU, Triton elsewhere."""
    ema: float | None = None
    """Decay per step of a moving average of the weights, such as 0.999, which is then what is probed and exported."""
    seed: int = 0
    probe_every: int | None = None
    """Epochs between evaluations (probe and reconstructions); default: before, and five times during the run."""
    probe_images: int = 1000
    """Images that the probe shown while training is fitted on, at most; as many held-out ones score it."""
    log_every: int = 10
    """Steps that one row of the log averages over."""
    skipped_share: float = 0.1
    """Share of unreadable training images at which the run stops."""

    def __post_init__(self) -> None:
        if not isinstance(self.data, str | os.PathLike | None) or (isinstance(self.data, str) and not self.data):
            in_memory = "" if isinstance(self.data, str) else ": hand data in memory to pretrain(data=...)"
            raise ValueError(f"--data takes a path or a URL, got {given_as(self.data)}{in_memory}")
        check_types(self)
        if self.data is not None:
            object.__setattr__(self, "data", located(self.data))
        object.__setattr__(self, "image_size", as_size(self.image_size))
        if self.batch_size == "auto":
            if self.micro_batch not in (None, "auto"):
                raise ValueError(
                    f"--batch-size auto looks for what --micro-batch {self.micro_batch} says: give one of them"
                )
            object.__setattr__(self, "batch_size", None)
            object.__setattr__(self, "micro_batch", "auto")
        counts = ("mask_cell", "class_tokens", "decoder_width", "decoder_depth", "decoder_heads", "micro_batch")
        require_at_least_one(self, *counts, "channels", "repeats", "probe_every", "probe_images", "log_every")
        if self.taps == ():
            raise ValueError("--taps names no block")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(f"--mean and --std go together, one number each per channel; got {self.mean}, {self.std}")
        if self.std is not None and not all(value > 0 for value in self.std or (0,)):
            raise ValueError(f"--std must be above 0, got {self.std}")
        if self.norm_eps is not None and not 0 < self.norm_eps < 1:
            raise ValueError(f"--norm-eps must lie between 0 and 1, got {self.norm_eps}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must lie in 0 .. 2**63 - 1, got {self.seed}")
        for name in ("held_out", "skipped_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} must be at least 0 and below 1, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"data": None if self.data is None else str(self.data)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Settings":
        """The inverse of `to_json`.

        Raises:
            ValueError: there is a value of an unknown name.
        """
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"this version of mimkit knows no setting {', '.join(sorted(unknown))}")
        return cls(**values | {"data": values.get("data") or None})  # of files with weights it is empty


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the user says of a published checkpoint; None leaves it to the checkpoint, or to what was published.

    Types are those of `Settings`.
    """

    recipe: str | None = None
    """the method, where the weights do not show it."""
    image_size: tuple[int, ...] | None = None
    """side, or height and width, to resize tables of positions to."""
    window: int | None = None
    """of Swin, to resize tables of relative positions to."""
    heads: int | None = None
    """of attention, where neither the checkpoint nor the published models tell."""
    decoder_heads: int | None = None
    """the same for the decoder."""
    target: str | None = None
    """what was reconstructed, where the checkpoint does not say it."""
    patch_merge_order: Literal["published", "column"] = "published"
    """column reorders the patch merging of LocalMIM's Swin to timm's."""
    mean: tuple[float, ...] | None = None
    """of each channel, that images are normalised with; default: the checkpoint's, or ImageNet's."""
    std: tuple[float, ...] | None = None
    """the same for the standard deviation."""
    strict: bool = True
    """refuse a checkpoint with weights missing or left over; --no-strict reports them."""

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "image_size", as_size(self.image_size))
        require_at_least_one(self, "window", "heads", "decoder_heads")


def require_at_least_one(values: Settings | ImportOptions, *names: str) -> None:
    """Refuse whole numbers below 1 under these names."""
    for name in names:
        value = getattr(values, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{flag(name)} must be at least 1, got {value}")


def as_size(sides: int | Sequence[int] | None) -> tuple[int, int] | None:
    """side, (side,) or (height, width) as (height, width).

    Raises:
        ValueError: neither one nor two numbers, or one below 1.
    """
    if sides is None:
        return None
    if isinstance(sides, bool):
        raise ValueError(f"--image-size takes one side or a height and a width, got {sides}")
    given: list[Any] = list(sides) if isinstance(sides, Iterable) and not isinstance(sides, str) else [sides]
    if len(given) not in (1, 2) or not all(isinstance(side, Integral) and int(side) >= 1 for side in given):
        raise ValueError(f"--image-size takes one side or a height and a width, all above 0, got {given}")
    return int(given[0]), int(given[-1])
