"""A source's weights as safetensors: the encoder for timm, or the whole method for mimkit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from mimkit.backbones.load import parse_name
from mimkit.compose import description_of
from mimkit.convert.exporting.model_card import card_beside, model_card, origin_of, own_name, write_card
from mimkit.files import write_bytes
from mimkit.image_encoder import ImageEncoder
from mimkit.recipes import Recipe
from mimkit.settings import Settings
from mimkit.sources import load_encoder, read_source, recipe_of

# How timm's families give the features that mimkit reads out, simple ways first: they name final norms differently,
# put them behind the pooling, lay tokens out differently, or go on behind the last block.
READOUTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "model.forward_features(images)[:, model.num_prefix_tokens:].mean(dim=1)": lambda model, images: (
        model.forward_features(images)[:, model.num_prefix_tokens :].mean(dim=1)
    ),
    "model.forward_features(images).mean(dim=1)": lambda model, images: model.forward_features(images).mean(dim=1),
    "model.forward_features(images).mean(dim=(1, 2))": lambda model, images: model.forward_features(images).mean(
        dim=(1, 2)
    ),
    "model.forward_features(images).mean(dim=(2, 3))": lambda model, images: model.forward_features(images).mean(
        dim=(2, 3)
    ),
    "model.head.norm(model.forward_features(images)).mean(dim=1)": lambda model, images: model.head.norm(
        model.forward_features(images)
    ).mean(dim=1),
    "model.head.norm(model.forward_features(images)).mean(dim=(2, 3))": lambda model, images: model.head.norm(
        model.forward_features(images)
    ).mean(dim=(2, 3)),
    "model.fc_norm(model.forward_features(images)[:, model.num_prefix_tokens:]).mean(dim=1)": lambda model, images: (
        model.fc_norm(model.forward_features(images)[:, model.num_prefix_tokens :]).mean(dim=1)
    ),
    "model.forward_intermediates(images, intermediates_only=True)[-1].mean(dim=(2, 3))": lambda model, images: (
        model.forward_intermediates(images, intermediates_only=True)[-1].mean(dim=(2, 3))
    ),
    "model.forward_intermediates(images, norm=True, intermediates_only=True)[-1].mean(dim=(2, 3))": (
        lambda model, images: model.forward_intermediates(images, norm=True, intermediates_only=True)[-1].mean(
            dim=(2, 3)
        )
    ),
}
TOLERANCE = 1e-4


def export_timm(
    source: str | Path, out: Path, *, image_size: tuple[int, int] | None = None, recipe: str | Recipe | None = None
) -> dict[str, Any]:
    """The encoder alone, with timm's names, as safetensors, and its model card.

    Args:
        source: a run folder, a file of ours, timm:NAME or random:NAME.
        out: file to write; the card stands beside it.
        image_size: (H, W); None takes the source's own. Tables of positions are resized.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of the user's own.

    Returns:
        the keyword arguments with which `timm.create_model(**arguments)` takes the file strictly:
        `load_state_dict(safetensors.torch.load_file(out))`. The file's metadata holds them too, as `timm.create_model`,
        and as `readout` the expression that gives mimkit's features.

    Raises:
        ValueError: the source holds no weights, or timm has no such model.
    """
    beside = card_beside(out)
    encoder = load_encoder(source, image_size=image_size, recipe=recipe)
    weights = encoder.encoder.timm_weights()
    name, own = parse_name(encoder.encoder.name)
    own.pop("sincos", None)  # not an argument of timm's
    arguments = {"model_name": name, **own, "in_chans": encoder.encoder.channels, "num_classes": 0}
    arguments = json.loads(json.dumps(arguments))  # as the file will say it, where tuples are lists
    arguments, model = find_arguments(arguments, list(encoder.image_size), weights)
    readout = find_readout(model, encoder)
    metadata = {
        "timm.create_model": json.dumps(arguments),
        "normalization": json.dumps({"mean": encoder.normalization.mean, "std": encoder.normalization.std}),
        "readout": readout,
    }
    usage = (
        "import timm\nimport torch\nfrom safetensors.torch import load_file\n\n"
        f"model = timm.create_model({as_call_arguments(arguments)}).eval()\n"
        f'model.load_state_dict(load_file("{out.name}"))\n'
        f"images = torch.zeros(2, {encoder.encoder.channels}, {encoder.image_size[0]}, {encoder.image_size[1]})\n"
        f"features = {readout}"
    )
    write(weights, metadata, out)
    write_card(beside, model_card(origin_of(source), encoder, what="An image encoder with timm's names.", usage=usage))
    return arguments


def find_arguments(
    arguments: dict[str, Any], image_size: list[int], weights: dict[str, Tensor]
) -> tuple[dict[str, Any], Any]:
    """The arguments with which `timm.create_model` makes a model that takes these weights strictly, and that model.

    Raises:
        ValueError: none do.
    """
    shapes = {name: value.shape for name, value in weights.items()}
    # Convolutional families take no size; where pooling brings weights or norms of its own, it is switched off.
    for more in ({"img_size": image_size}, {"img_size": image_size, "global_pool": ""}, {}, {"global_pool": ""}):
        try:
            with torch.random.fork_rng(devices=[]):
                model = timm.create_model(**arguments, **more)
        except (TypeError, AssertionError):  # it has no such argument, or no such pooling
            continue
        if {name: value.shape for name, value in model.state_dict().items()} == shapes:
            model.load_state_dict(weights)
            return {**arguments, **more}, model.eval()
    raise ValueError(f"timm makes no {arguments['model_name']} that takes these weights")


def find_readout(model: Any, encoder: ImageEncoder) -> str:
    """The expression in `model` and `images` that gives the encoder's features.

    Raises:
        ValueError: none of those known does.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, encoder.encoder.channels, *encoder.image_size, generator=generator)
    with torch.inference_mode():
        expected = encoder(images)
        for expression, readout in READOUTS.items():
            try:
                features = readout(model, images)
            except (AttributeError, TypeError, IndexError, RuntimeError):  # another family's
                continue
            if features.shape == expected.shape and torch.allclose(features, expected, rtol=TOLERANCE, atol=TOLERANCE):
                return expression
    raise ValueError(f"timm's {encoder.encoder.name} gives other features with these weights: export safetensors")


def as_call_arguments(arguments: dict[str, Any]) -> str:
    """Keyword arguments as they are written in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def export_safetensors(source: str | Path, out: Path, *, recipe: str | Recipe | None = None) -> None:
    """The whole method, decoder included, as one file that `load_method` and every SOURCE takes, and its model card.

    Args:
        source: a run folder or a file of ours; of an imported encoder there is no more than that.
        out: file to write; the card stands beside it.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of the user's own.

    Raises:
        ValueError: the source holds no weights.
    """
    beside = card_beside(out)
    facts, weights = read_source(Path(source))
    encoder = load_encoder(source, recipe=recipe)
    origin = origin_of(source)
    settings = Settings.from_json(facts["settings"])
    request = description_of(own_name(facts["recipe"]), recipe_of(facts, source, recipe), settings)
    request["settings"]["data"] = ""  # whose folder it was is not published
    request |= {"encoder_only": True} if facts.get("encoder_only") else {}
    metadata = {"mimkit.request": json.dumps(request), "mimkit.origin": json.dumps(origin)}
    more = f', recipe="{request["recipe"]}"' if ":" in request["recipe"] else ""
    usage = "import mimkit\n\n"
    if own := request.get("own_parts"):
        more = ", recipe=recipe"
        usage += f"recipe = ...  # the mimkit.Recipe it was trained with; not mimkit's own are its {', '.join(own)}\n"
    usage += (
        f'encoder = mimkit.load_encoder("{out.name}"{more})\n'
        'images = encoder.read(["cat.jpg", "dog.jpg"])  # uint8; floats must be normalised as below\n'
        f"features = encoder(images)  # float32 [2, {encoder.encoder.dim}]"
    )
    what = "An image encoder for mimkit."
    if not request.get("encoder_only"):
        what = f'An image encoder with its pre-training decoder for mimkit: `mimkit.load_method("{out.name}"{more})`.'
    write(weights, metadata, out)
    write_card(beside, model_card(origin, encoder, what=what, usage=usage))


def write(weights: dict[str, Tensor], metadata: dict[str, str], out: Path) -> None:
    """Write safetensors atomically."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, save({name: value.contiguous() for name, value in weights.items()}, metadata))
