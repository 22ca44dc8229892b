"""Commands that convert weights: import, export."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from mimkit.settings import ImportOptions


def import_(
    file: Positional[Path],
    options: Annotated[ImportOptions, tyro.conf.arg(name="")],
    *,
    out: Path,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """A published checkpoint as a file that every command takes: MAE, SimMIM, LocalMIM, GreenMIM, ConvMAE, BEiT,
    MMPretrain, Hugging Face, timm. Its format is recognised; nothing in it is run.

    Args:
        file: .pth, .pt, .bin or .safetensors, or a Hugging Face folder.
        options: what to take it for.
        out: safetensors file to write.
        as_json: print JSON.
    """
    from mimkit.convert.importing.importer import import_checkpoint

    done = import_checkpoint(file, out, options)
    print(json.dumps(done.to_json(), indent=1) if as_json else "\n".join([*done.lines(), f"written: {out}"]))
    return 0


def export(
    source: Positional[str],
    *,
    format: Literal["timm", "hf", "onnx", "safetensors"],
    out: Path,
    encoder_only: bool = False,
    image_size: tuple[int, ...] | None = None,
    recipe: str | None = None,
) -> int:
    """Weights as files for others, each with a model card.

    Args:
        source: run folder, exported or imported file, timm:NAME or random:NAME.
        format: timm: the encoder, loads strictly into timm.create_model; hf: a folder for transformers
            (ViTMAEForPreTraining where that is the method, else ViTModel or SwinModel); onnx: the encoder, checked with
            onnxruntime; safetensors: the whole method.
        out: file, or for hf a new folder, to write.
        encoder_only: for hf: leave the decoder out.
        image_size: one number or height and width; default: the source's own. Positions are resized.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.
    """
    from mimkit.convert import export as work

    done = work(source, format=format, out=out, encoder_only=encoder_only, image_size=image_size, recipe=recipe)
    print("\n".join(done.lines()))
    return 0
