"""Commands that convert weights: import, export."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from mimkit.files import refuse_unwritable
from mimkit.settings import ImportOptions, as_size


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
    if file.is_file() and not file.stat().st_size:
        raise ValueError(f"FILE {file} is empty")
    refuse_unwritable(out)
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
    if encoder_only and format != "hf":
        raise ValueError(f"--encoder-only is for --format hf, not {format}")
    if image_size is not None and format == "safetensors":
        raise ValueError(
            f"--image-size {image_size[0]} is for encoders; --format safetensors keeps the method as it is"
        )
    refuse_unwritable(out / "config.json" if format == "hf" else out)
    from mimkit import convert

    size = as_size(image_size)
    if format == "safetensors":
        convert.export_safetensors(source, out, recipe=recipe)
        print(f"{out}: load with mimkit.load_method({str(out)!r})")
    elif format == "timm":
        arguments = convert.export_timm(source, out, image_size=size, recipe=recipe)
        call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        print(f"{out}: load into timm.create_model({call})")
    elif format == "onnx":
        convert.export_onnx(source, out, image_size=size, recipe=recipe)
        print(f"{out}: input images, outputs features and tokens; agrees with onnxruntime")
    else:
        kind, why = convert.export_huggingface(source, out, encoder_only=encoder_only, image_size=size, recipe=recipe)
        print(f"{out}: load with transformers.{kind}.from_pretrained({str(out)!r})")
        if why:
            print(f"without the decoder: {why}")
    return 0
