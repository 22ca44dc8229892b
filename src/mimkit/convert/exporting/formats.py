"""Export of a source to one of several formats."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mimkit.convert.exporting.huggingface import export_huggingface
from mimkit.convert.exporting.onnx import export_onnx
from mimkit.convert.exporting.safetensors import as_call_arguments, export_safetensors, export_timm
from mimkit.files import home, refuse_unwritable
from mimkit.recipes import Recipe
from mimkit.settings import as_size

ExportFormat = Literal["timm", "hf", "onnx", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The outcome of an export.

    Args:
        out: the file or folder that was written.
        use: how others load it, in a few words.
        without_decoder: why the decoder was left out, though it was wanted; empty where it was not.
    """

    out: Path
    use: str
    without_decoder: str = ""

    def lines(self) -> list[str]:
        """The report as lines of text."""
        why = [f"without the decoder: {self.without_decoder}"] if self.without_decoder else []
        return [f"{self.out}: {self.use}", *why]


def export(
    source: str | Path,
    *,
    format: ExportFormat,
    out: str | Path,
    encoder_only: bool = False,
    image_size: int | Sequence[int] | None = None,
    recipe: str | Recipe | None = None,
) -> ExportReport:
    """Weights as files for others, each with a model card.

    Args:
        source: run folder, exported or imported file, timm:NAME or random:NAME; `~` is expanded, as it is in `out`.
        format: timm: the encoder, loads strictly into timm.create_model; hf: a folder for transformers; onnx: the
            encoder, checked with onnxruntime; safetensors: the whole method.
        out: file, or for hf a new folder, to write.
        encoder_only: for hf: leave the decoder out.
        image_size: side, or height and width; None takes the source's own. Positions are resized.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of your own.

    Raises:
        ValueError: what was asked for does not go with the format, or the source cannot be written in it.
    """
    if format not in get_args(ExportFormat):
        raise ValueError(f"--format {format!r} is unknown; choose from {', '.join(get_args(ExportFormat))}")
    if encoder_only and format != "hf":
        raise ValueError(f"--encoder-only is for --format hf, not {format}")
    size, out = as_size(image_size), home(out)
    if size is not None and format == "safetensors":
        raise ValueError(f"--image-size {size[0]} is for encoders; --format safetensors keeps the method as it is")
    refuse_unwritable(out / "config.json" if format == "hf" else out)
    source = os.path.expanduser(source)
    if format == "safetensors":
        export_safetensors(source, out, recipe=recipe)
        return ExportReport(out=out, use=f"load with mimkit.load_method({str(out)!r})")
    if format == "timm":
        arguments = export_timm(source, out, image_size=size, recipe=recipe)
        return ExportReport(out=out, use=f"load into timm.create_model({as_call_arguments(arguments)})")
    if format == "onnx":
        export_onnx(source, out, image_size=size, recipe=recipe)
        return ExportReport(out=out, use="input images, outputs features and tokens; agrees with onnxruntime")
    kind, why = export_huggingface(source, out, encoder_only=encoder_only, image_size=size, recipe=recipe)
    use = f"load with transformers.{kind}.from_pretrained({str(out)!r})"
    return ExportReport(out=out, use=use, without_decoder=why)
