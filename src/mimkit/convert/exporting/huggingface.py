"""Encoders and methods as folders for Hugging Face's transformers, which need not be installed for that."""

import json
from pathlib import Path
from typing import Any

from mimkit.convert.exporting.model_card import model_card, origin_of, write_card
from mimkit.convert.exporting.safetensors import write
from mimkit.convert.exporting.transformers_model import (
    NotRepresentable,
    TransformersModel,
    convert_encoder,
    convert_method,
)
from mimkit.files import write_text
from mimkit.image_encoder import ImageEncoder
from mimkit.method import Method
from mimkit.recipes import Recipe
from mimkit.sources import load_encoder, load_method, read_source

FRONT = "---\nlibrary_name: transformers\ntags:\n- masked-image-modeling\n- mimkit\n---\n\n"

# By architecture: class, arguments and output that give tokens without decoder.
TOKENS = {
    "ViTMAEForPreTraining": ("ViTMAEModel", ", mask_ratio=0.0", "last_hidden_state[:, 1:]"),
    "ViTModel": ("ViTModel", ", add_pooling_layer=False", "last_hidden_state[:, 1:]"),
    "SwinModel": ("SwinModel", "", "last_hidden_state"),
}


def export_huggingface(
    source: str | Path,
    out: Path,
    *,
    encoder_only: bool = False,
    image_size: tuple[int, int] | None = None,
    recipe: str | Recipe | None = None,
) -> tuple[str, str]:
    """A folder that transformers loads: ViTMAEForPreTraining where that is the method, else ViTModel or SwinModel.

    It holds config.json, model.safetensors, a model card, and for square colour images preprocessor_config.json.

    Args:
        source: a run folder, a file of ours, timm:NAME or random:NAME.
        out: a new or empty folder.
        encoder_only: leave out the decoder.
        image_size: (H, W) of an encoder alone; None takes the source's own. Tables of positions are resized.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of the user's own.

    Returns:
        the name of the class, and why there is no decoder (empty where there is one, or none was wanted).

    Raises:
        ValueError: the source holds no weights, transformers has no class for its backbone, or the folder is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is not empty; --format hf makes a folder of its own: choose another name")
    method = None if encoder_only else load_whole_method(source, recipe)
    if method is None:
        encoder = load_encoder(source, image_size=image_size, recipe=recipe)
    else:
        encoder = ImageEncoder.of(method).eval().requires_grad_(False)  # as `load_encoder` gives it
    if image_size not in (None, encoder.image_size):
        own = " x ".join(map(str, encoder.image_size))
        raise ValueError(
            f"--image-size {image_size}: the decoder of {source} is for {own} pixels; leave it out with --encoder-only"
        )
    converted, obstacle = convert(method, encoder)
    write(converted.weights, {"format": "pt"}, out / "model.safetensors")
    if encoder.encoder.channels == 3 and encoder.image_size[0] == encoder.image_size[1]:
        write_text(out / "preprocessor_config.json", json.dumps(preprocessor(encoder), indent=2))
    write_card(out / "README.md", card(source, encoder, converted, out.absolute().name))
    write_text(out / "config.json", json.dumps(converted.config, indent=2))  # last: without it, nothing loads
    return converted.architecture, obstacle


def load_whole_method(source: str | Path, recipe: str | Recipe | None) -> Method | None:
    """The method of a source, or None where it has an encoder only."""
    if str(source).startswith(("timm:", "random:")) or read_source(Path(source))[0].get("encoder_only"):
        return None
    return load_method(source, recipe=recipe)


def convert(method: Method | None, encoder: ImageEncoder) -> tuple[TransformersModel, str]:
    """The model of the whole method, or of the encoder with the reason that there is no more.

    Raises:
        ValueError: transformers has no class for the encoder either.
    """
    obstacle = ""
    if method is not None:
        try:
            return convert_method(method), ""
        except NotRepresentable as error:
            obstacle = str(error)
    try:
        return convert_encoder(encoder.encoder), obstacle
    except NotRepresentable as error:
        raise ValueError(f"transformers has no class for {encoder.encoder.name}: {error}") from error


def card(source: str | Path, encoder: ImageEncoder, converted: TransformersModel, folder: str) -> str:
    """The folder's model card."""
    kind, arguments, tokens = TOKENS[converted.architecture]
    channels, (height, width) = encoder.encoder.channels, encoder.image_size
    usage = (
        f"import torch\nfrom transformers import {kind}\n\n"
        f'model = {kind}.from_pretrained("{folder}"{arguments}).eval()\n'
        f"images = torch.zeros(2, {channels}, {height}, {width})\n"
        f"features = model(images).{tokens}.mean(dim=1)"
    )
    what, readout = f"An image encoder for Hugging Face's transformers: `{converted.architecture}`.", ""
    if kind != converted.architecture:
        what = f"An image encoder and its decoder for Hugging Face's transformers: `{converted.architecture}`."
        readout = "At a mask ratio of 0 the class shuffles the patches, which their mean does not see."
    return model_card(origin_of(source), encoder, what=what, usage=usage, readout=readout, front=FRONT)


def preprocessor(encoder: ImageEncoder) -> dict[str, Any]:
    """The content of preprocessor_config.json: resize, crop and normalise as `ImageEncoder.read` and the encoder do."""
    (height, width), normalization = encoder.image_size, encoder.normalization
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
    }
