"""Where encoders and methods come from: run folders, exported files, timm names.

runs/mine                       a run folder: its newest whole checkpoint
mine.safetensors                a file of `mimkit export --format safetensors`
timm:vit_base_patch16_224       timm's pre-trained weights (downloaded on first use)
random:vit_base_patch16_224     untrained, as a run would start
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mimkit.backbones import create_encoder
from mimkit.backbones.load import parse_name
from mimkit.compose import compose
from mimkit.image_encoder import ImageEncoder
from mimkit.method import Method
from mimkit.recipes import Recipe, build, parts_in_words
from mimkit.settings import Settings
from mimkit.training.checkpoint import load_newest
from mimkit.training.run_folder import Run
from mimkit.views import Normalization


def load_encoder(
    source: str | Path, *, image_size: tuple[int, int] | None = None, recipe: str | None = None
) -> ImageEncoder:
    """The encoder of a source, ready for images.

    Args:
        source: see the module's first lines.
        image_size: (H, W) for timm's and random ones; runs and files keep theirs.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.

    Raises:
        ValueError: the source is of no known kind, or holds nothing to load.
    """
    kind, _, name = str(source).partition(":")
    if kind in ("timm", "random") and name:
        config = pretrained_config(name)
        size = image_size or (tuple(config.input_size[1:]) if config else (224, 224))
        encoder = create_encoder(name, image_size=size, pretrained=kind == "timm").requires_grad_(False)
        if config is None or kind == "random":
            return ImageEncoder(encoder, Normalization.for_channels(encoder.channels)).eval()
        return ImageEncoder(encoder, Normalization(tuple(config.mean), tuple(config.std))).eval()
    request, weights = read_source(Path(source))
    parts = recompose(request, source, recipe)
    with torch.random.fork_rng(devices=[]):
        encoder = parts.encoder(image_size=parts.image_size, channels=parts.channels)
    if image_size not in (None, encoder.image_size):
        raise ValueError(f"--image-size {image_size} is for timm:NAME and random:NAME; {source} has its own")
    own = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
    fill(encoder, own, source)
    return ImageEncoder(encoder, parts.normalization).eval().requires_grad_(False)


def pretrained_config(name: str) -> Any:
    """What timm knows of a model's weights, or None."""
    name, _ = parse_name(name)
    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError as error:  # an unknown tag
        raise ValueError(f"timm has no weights {name!r}: {error}") from error


def load_method(source: str | Path, *, recipe: str | None = None) -> Method:
    """The whole method of a run folder or an exported file, decoder included, in evaluation mode.

    `method(images, mask=Mask(hidden))` gives `.loss`, `.per_level`, `.predictions`, `.mask`.

    Args:
        source: see the module's first lines.
        recipe: FILE.py:NAME, for sources made with a recipe from a file of your own.

    Raises:
        ValueError: the source is neither, or holds no weights or those of an encoder only.
    """
    request, weights = read_source(Path(source))
    if request.get("encoder_only"):
        raise ValueError(f"{source} holds an encoder only, without the decoder that reconstruction needs")
    parts = recompose(request, source, recipe)
    with torch.random.fork_rng(devices=[]):
        method = build(parts)
    fill(method, weights, source)
    return method.eval()


def fill(module: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load weights that must fit to the last one.

    Raises:
        ValueError: they do not, as those of another version of mimkit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit this version of mimkit: {error}") from error


def recompose(request: dict[str, Any], source: str | Path, recipe: str | None = None) -> Recipe:
    """The recipe that a source was made with. A recipe from a user's file is run only where the caller names it.

    Raises:
        ValueError: it is from a file that was not named, or has other parts today.
    """
    made_with = request["recipe"]
    if ":" in made_with and recipe is None:
        raise ValueError(f"{source} was made with a recipe from a file: name it with --recipe {made_with}")
    if recipe is not None and recipe.rpartition(":")[2] != made_with.rpartition(":")[2]:
        raise ValueError(f"{source} was made with recipe {made_with}, not with --recipe {recipe}")
    composed = compose(recipe or made_with, Settings.from_json(request["settings"]))
    require_same_parts(request, composed, source)
    return composed


def require_same_parts(request: dict[str, Any], recipe: Recipe, source: str | Path) -> None:
    """Refuse weights of a recipe that has other parts today than when they were trained.

    Of a file that holds an encoder only, no other part matters.

    Raises:
        ValueError: it has; the message names the part and both its forms.
    """
    for name, now in parts_in_words(recipe).items():
        then = request["parts"][name]
        if then != now and (name == "encoder" or not request.get("encoder_only")):
            raise ValueError(f"{source} was trained with {name} {then}, but recipe {request['recipe']} now has {now}")


def read_source(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The request (recipe and settings) and the weights in a run folder or an exported file.

    Raises:
        ValueError: it is neither, or holds no weights.
    """
    if path.is_dir():
        try:
            run = Run(path)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        checkpoint = load_newest(path / "checkpoints")
        if checkpoint is None:
            raise ValueError(f"{path} has no checkpoint yet")
        return {name: run.facts[name] for name in ("recipe", "settings", "parts")}, checkpoint.weights
    if not path.is_file():
        raise ValueError(f"{path}: no such run folder or file (timm's models are written timm:NAME)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if "timm.create_model" in metadata:
        raise ValueError(f"{path} is an encoder for timm; mimkit takes what `export --format safetensors` writes")
    if "mimkit.request" not in metadata:
        raise ValueError(f"{path} was not exported by mimkit: it does not say which recipe its weights belong to")
    return json.loads(metadata["mimkit.request"]), weights
