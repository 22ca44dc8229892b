"""Commands that turn files into others: import, export."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from mimkit.files import refuse_unwritable


def import_(
    file: Positional[Path],
    *,
    out: Path,
    recipe: str | None = None,
    image_size: tuple[int, ...] | None = None,
    window: int | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    target: str | None = None,
    patch_merge_order: Literal["published", "column"] = "published",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    strict: bool = True,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """A published checkpoint as a file that every command takes: MAE, SimMIM, LocalMIM, GreenMIM, ConvMAE, BEiT,
    MMPretrain, Hugging Face, timm. Its format is recognised; nothing in it is run.

    Args:
        file: .pth, .pt, .bin or .safetensors, or a Hugging Face folder.
        out: safetensors file to write.
        recipe: the method, where the weights do not show it.
        image_size: side, or height and width, to resize tables of positions to.
        window: of Swin, to resize tables of relative positions to.
        heads: of attention, where neither the checkpoint nor the published models tell.
        decoder_heads: the same for the decoder.
        target: what was reconstructed, where the checkpoint does not say it.
        patch_merge_order: column reorders the patch merging of LocalMIM's Swin to timm's.
        mean: of each channel, that images are normalised with; default: the checkpoint's, or ImageNet's.
        std: the same for the deviation.
        strict: refuse a checkpoint with weights missing or left over; --no-strict reports them.
        as_json: print JSON.
    """
    if file.is_file() and not file.stat().st_size:
        raise ValueError(f"FILE {file} is empty")
    refuse_unwritable(out)
    from mimkit.convert.importer import import_checkpoint

    done = import_checkpoint(
        file,
        out,
        recipe=recipe,
        image_size=image_size,
        window=window,
        heads=heads,
        decoder_heads=decoder_heads,
        target=target,
        patch_merge_order=patch_merge_order,
        mean=mean,
        std=std,
        strict=strict,
    )
    print(json.dumps(done.to_json(), indent=1) if as_json else "\n".join([*done.lines(), f"written: {out}"]))
    return 0


def export(
    source: Positional[Path],
    *,
    format: Literal["timm", "safetensors"],
    out: Path,
) -> int:
    """Weights as a file for others: the encoder in timm's names, or the whole method.

    Args:
        source: run folder or exported file.
        format: timm: the encoder, loads strictly into timm.create_model; safetensors: the whole method.
        out: file to write.
    """
    refuse_unwritable(out)
    from mimkit import convert

    if format == "safetensors":
        convert.export_safetensors(source, out)
        print(f"{out}: load with mimkit.load_method({str(out)!r})")
        return 0
    arguments = convert.export_timm(source, out)
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    print(f"{out}: load into timm.create_model({call})")
    return 0
