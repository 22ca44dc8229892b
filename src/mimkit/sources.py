"""Where encoders and methods come from: run folders, exported files, timm names.

runs/mine                       a run folder: its newest whole checkpoint
mine.safetensors                a file of `mimkit export --format safetensors`
timm:vit_base_patch16_224       timm's pre-trained weights (downloaded on first use)
random:vit_base_patch16_224     untrained, as a run would start
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mimkit.backbones import create_encoder
from mimkit.backbones.load import parse_name
from mimkit.backbones.resize import resize_tables
from mimkit.compose import KNOWN, PYTHON, compose, restore_recipe
from mimkit.errors import naming, refusing_damage
from mimkit.files import home
from mimkit.image_encoder import ImageEncoder
from mimkit.method import Method
from mimkit.recipes import PARTS, Recipe, build, parts_in_words, record_of_parts
from mimkit.records import as_text, parse_text, same
from mimkit.settings import Settings, as_size
from mimkit.training.checkpoint import load_newest
from mimkit.training.run_folder import Run, refuse_unknown_format
from mimkit.views import Normalization


def load_encoder(
    source: str | Path | ImageEncoder,
    *,
    image_size: int | Sequence[int] | None = None,
    recipe: str | Recipe | None = None,
) -> ImageEncoder:
    """The encoder of a source, ready for images.

    Args:
        source: see the module's first lines; an encoder that is loaded is returned as it is.
        image_size: (H, W), or the side of a square; None takes the source's own. For another, tables of positions are
            resized, and a line on stderr says so.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of your own.

    Raises:
        ValueError: the source is of no known kind, holds nothing to load, or its backbone cannot take that size.
    """
    wanted = as_size(image_size)
    if isinstance(source, ImageEncoder):
        if wanted not in (None, source.image_size):
            raise ValueError(
                f"--image-size {wanted}: an encoder that is loaded has {source.image_size}; load it at that"
            )
        return source
    kind, _, name = str(source).partition(":")
    if kind in ("timm", "random") and name:
        config = pretrained_config(name)
        size = wanted or (tuple(config.input_size[1:]) if config else (224, 224))
        encoder = create_encoder(name, image_size=size, pretrained=kind == "timm").requires_grad_(False)
        if config is None or kind == "random":
            return ImageEncoder(encoder, Normalization.for_channels(encoder.channels)).eval()
        return ImageEncoder(encoder, Normalization(tuple(config.mean), tuple(config.std))).eval()
    facts, weights = read_source(Path(source))
    made_with = recipe_of(facts, source, recipe, encoder_only=True)
    size = wanted or made_with.image_size
    own = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
    with torch.random.fork_rng(devices=[]), naming("--image-size") if wanted else nullcontext():
        encoder = made_with.encoder(image_size=size, channels=made_with.channels)
        if size != made_with.image_size:
            built = made_with.encoder(image_size=made_with.image_size, channels=made_with.channels)
            if type(encoder) is not type(built):  # left to itself, a backbone may change its form with the size
                form: dict[str, Any] = {"kind": "dense" if built.complete else "visible"}
                encoder = made_with.encoder(image_size=size, channels=made_with.channels, **form)
            own, resized = resize_tables(own, encoder, made_with.image_size, built)
            print(size_note(source, made_with.image_size, size, resized), file=sys.stderr)
    fill(encoder, own, source)
    return ImageEncoder(encoder, made_with.normalization).eval().requires_grad_(False)


def size_note(source: str | Path, old: tuple[int, int], new: tuple[int, int], resized: list[str]) -> str:
    """How a source was resized to another image size, in one line."""
    count = len(resized)
    what = f"{count} table{'s' * (count > 1)} of positions resized" if resized else "no positions to resize"
    return f"{source} was trained at {old[0]} x {old[1]}, used at {new[0]} x {new[1]} pixels: {what}"


def pretrained_config(name: str) -> Any:
    """Timm's configuration of a model's pre-trained weights, or None."""
    name, _ = parse_name(name)
    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError as error:  # an unknown tag
        raise ValueError(f"timm has no weights {name!r}: {error}") from error


def load_method(source: str | Path, *, recipe: str | Recipe | None = None) -> Method:
    """The whole method of a run folder or an exported file, decoder included, in evaluation mode.

    `method(images, mask=Mask(hidden))` gives `.loss`, `.per_level`, `.predictions`, `.mask`.

    Args:
        source: see the module's first lines.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of your own.

    Raises:
        ValueError: the source is neither, or holds no weights or those of an encoder only.
    """
    facts, weights = read_source(Path(source))
    if facts.get("encoder_only"):
        raise ValueError(f"{source} holds an encoder only, without the decoder that reconstruction needs")
    with torch.random.fork_rng(devices=[]):
        method = build(recipe_of(facts, source, recipe))
    fill(method, weights, source)
    return method.eval()


def fill(module: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load weights strictly.

    Raises:
        ValueError: names or shapes do not match, as for weights of another version of mimkit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit this version of mimkit: {error}") from error


def recipe_of(
    facts: dict[str, Any], source: object, recipe: str | Recipe | None = None, *, encoder_only: bool = False
) -> Recipe:
    """The recipe that a source was made with, from its parts. A user's file is run only if the caller names it.

    Args:
        facts: what run.json or an exported file says.
        source: for messages.
        recipe: FILE.py:NAME, or the recipe itself.
        encoder_only: see `restore_recipe`; parts of one's own but the encoder's do not matter then.

    Raises:
        ValueError: it has parts of the user's own and was not given, or has other parts now, or this version lacks one.
    """
    with refusing_damage(source):
        made_with, parts = str(facts["recipe"]), dict(facts["parts"])
        own = {name: ", ".join(names) for name, names in facts.get("own_parts", {}).items()}
    if ":" in made_with and recipe is None:
        raise ValueError(f"{source} was made with a recipe from a file: name it with --recipe {made_with}")
    if encoder_only:
        own = {name: names for name, names in own.items() if name in ("encoder", "statistics")}
    if own and recipe is None:
        what = "; ".join(f"{name}: {names}" for name, names in own.items())
        raise ValueError(
            f"{source} was made in Python with parts of its own ({what}): give recipe=, the same Recipe again, or "
            "--recipe FILE.py:NAME"
        )
    named = recipe.rpartition(":")[2] if isinstance(recipe, str) and made_with != PYTHON else None
    if named not in (None, made_with.rpartition(":")[2]):
        raise ValueError(f"{source} was made with recipe {made_with}, not with --recipe {recipe}")
    if recipe is not None:
        composed = compose(recipe, Settings.from_json(facts["settings"]))
        require_same_parts(facts, composed, source)
        return composed
    with refusing_damage(source), naming(str(source)):
        return restore_recipe(facts | {"parts": parts}, encoder_only=encoder_only)


def require_same_parts(facts: dict[str, Any], recipe: Recipe, source: object) -> None:
    """Refuse weights of a recipe of the user's own that has other parts now than when they were trained.

    Of a file that holds an encoder only, no other part matters.

    Raises:
        ValueError: a part has changed; the message shows both its forms.
    """
    texts, first_format = parts_in_words(recipe), facts.get("format", 1) == 1
    for name, now in json.loads(json.dumps(record_of_parts(recipe))).items():
        then = facts["parts"].get(name, now)
        if first_format and name in PARTS:
            if then == texts[name]:
                continue
            then = parse_text(then)
        if not same(then, now, KNOWN) and (name == "encoder" or not facts.get("encoder_only")):
            raise ValueError(
                f"{source} was trained with {name} {as_text(then)}, but recipe {facts['recipe']} now has {as_text(now)}"
            )


def read_source(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts of a run folder or an exported file (recipe, settings, parts), and its weights. `~` is expanded.

    Raises:
        ValueError: it is neither, or holds no weights.
    """
    path = home(path)
    if path.is_dir():
        try:
            run = Run(path)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        checkpoint = load_newest(path / "checkpoints")
        if checkpoint is None:
            raise ValueError(f"{path} has no checkpoint yet")
        if run.kind != "pretrain":
            raise ValueError(f"{path} is a run of kind {run.kind!r}: what it trained is no encoder of mimkit's own")
        kept = ("format", "recipe", "settings", "parts", "training", "own_parts")
        return {name: run.facts[name] for name in kept if name in run.facts}, checkpoint.weights
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
    try:
        facts = json.loads(metadata["mimkit.request"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: what it says of itself is no JSON: {error}") from error
    refuse_unknown_format(facts, path)
    return facts, weights
