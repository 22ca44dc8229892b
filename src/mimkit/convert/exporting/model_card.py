"""Model cards in Markdown, beside exported weights: origin, usage and licence."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mimkit.backbones import count_parameters
from mimkit.files import write_text
from mimkit.image_encoder import ImageEncoder
from mimkit.records import as_text
from mimkit.sources import pretrained_config
from mimkit.training.run_folder import Run

MARK = "<!-- written by mimkit export -->"
YOURS = (
    "Weights you trained are yours, under the terms of the images they were trained on. "
    "mimkit itself, which they need not be used with, is Apache-2.0."
)


def origin_of(source: str | Path) -> dict[str, Any]:
    """Where a source's weights come from, without paths of the user's folders: plain values for `model_card`.

    Known are `recipe`, `parts`, `training`, `step`, `steps`, `train_images`, `held_out_images`, `versions`, `imported`
    and `licence`; each may be missing.
    """
    kind, _, name = str(source).partition(":")
    if kind == "random" and name:
        return {"licence": "Untrained weights, as random numbers made them."}
    if kind == "timm" and name:
        licence = getattr(pretrained_config(name), "license", None) or "see the model's card"
        return {"imported": "timm", "licence": f"timm's weights: {licence}"}
    if Path(source).is_dir():
        return origin_of_run(Path(source))
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    request = json.loads(metadata["mimkit.request"])
    imported = json.loads(metadata.get("mimkit.imported", "{}"))
    if request.get("encoder_only"):  # its recipe only says how to build such an encoder
        origin: dict[str, Any] = {}
    else:
        origin = {"recipe": own_name(request["recipe"]), "parts": as_texts(request["parts"])}
    if imported:
        origin |= {"imported": imported["from"], "licence": request.get("licence", imported.get("licence"))}
    return origin | json.loads(metadata.get("mimkit.origin", "{}"))


def origin_of_run(folder: Path) -> dict[str, Any]:
    """`origin_of` for a run folder."""
    run = Run(folder)
    facts = run.facts
    return {
        "recipe": own_name(facts["recipe"]),
        "parts": as_texts(facts["parts"]),
        **as_texts({"training": facts["training"]}),
        "step": run.saved_step or 0,
        "steps": facts["steps"],
        "train_images": facts["data"]["train_images"],
        "held_out_images": facts["data"]["held_out_images"],
        "versions": {"mimkit": facts["mimkit"], **facts["versions"]},
    }


def as_texts(parts: dict[str, Any]) -> dict[str, str]:
    """Parts as they would be written in Python, whichever format the file has."""
    return {name: part if isinstance(part, str) else as_text(part) for name, part in parts.items()}


def own_name(recipe: str) -> str:
    """A recipe's name, without the folder of a recipe file."""
    file, colon, function = recipe.rpartition(":")
    return f"{Path(file).name}:{function}" if colon else recipe


def model_card(
    origin: Mapping[str, Any], encoder: ImageEncoder, *, what: str, usage: str, readout: str = "", front: str = ""
) -> str:
    """The card.

    Args:
        origin: from `origin_of`.
        encoder: whose size and pixels it describes.
        what: the file or folder is, in one sentence.
        usage: Python that uses it.
        readout: how features are read out, where that needs more words.
        front: YAML front matter.
    """
    backbone, (height, width) = encoder.encoder, encoder.image_size
    parameters = count_parameters(backbone)
    mean, std = encoder.normalization.mean, encoder.normalization.std
    lines = [
        f"{front}{MARK}\n",
        f"# {title(origin, backbone.name)}\n",
        f"{what} Written by mimkit {version('mimkit')}.\n",
        f"## Use\n\n```python\n{usage}\n```\n",
        f"Images are float32 [batch, {backbone.channels}, {height}, {width}]: pixels in 0 .. 1, from which the mean "
        f"{in_brackets(mean)} is subtracted before they are divided by the standard deviation {in_brackets(std)}.\n",
        "For downstream tasks, read out features as above: the mean over all patch tokens of the last block, through "
        "the final norm, of the whole image with nothing hidden. The pre-training's own readout and decoder are not "
        f"needed. {readout}".rstrip()
        + "\n",
        "## Model\n",
        table({"backbone": backbone.name, "parameters": f"{parameters:,}", "features": backbone.dim}),
    ]
    if "recipe" in origin or "imported" in origin:
        lines += ["## Training\n", *training(origin)]
    lines += ["## Licence\n", f"{licence(origin)}\n"]
    return "\n".join(lines)


def title(origin: Mapping[str, Any], backbone: str) -> str:
    """The card's heading."""
    if "imported" in origin:
        return f"{backbone}, imported"
    return f"{backbone}, pre-trained by `{origin['recipe']}`" if "recipe" in origin else f"{backbone}, untrained"


def training(origin: Mapping[str, Any]) -> list[str]:
    """Paragraphs on how the weights were trained."""
    lines = []
    if "imported" in origin:
        lines.append(f"Published weights, imported from: {origin['imported']}.\n")
        lines += [f"mimkit takes them for those of its recipe `{origin['recipe']}`:\n"] if "recipe" in origin else []
    if "train_images" in origin:
        done = "" if origin["step"] == origin["steps"] else f"{origin['step']:,} of "
        lines.append(
            f"Recipe `{origin['recipe']}` on {origin['train_images']:,} images without their labels "
            f"({origin['held_out_images']:,} held out), {done}{origin['steps']:,} steps.\n"
        )
    if "parts" in origin:
        lines.append(table({name: f"`{words}`" for name, words in origin["parts"].items() if name != "downstream"}))
    if "training" in origin:
        lines.append(f"Training values: `{origin['training']}`\n")
    if "versions" in origin:
        lines.append(f"Versions: {', '.join(f'{name} {number}' for name, number in origin['versions'].items())}.\n")
    return lines


def licence(origin: Mapping[str, Any]) -> str:
    """The weights' licence."""
    if origin.get("licence"):
        return str(origin["licence"])
    if "imported" in origin:
        return "Imported weights keep the licence they were published under: see where they come from."
    if "Features(" in origin.get("parts", {}).get("target", ""):
        return f"{YOURS} They learned from another model's features, whose terms may count too."
    return YOURS


def table(rows: Mapping[str, Any]) -> str:
    """Names and values in Markdown."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def in_brackets(values: tuple[float, ...]) -> str:
    """Numbers in brackets."""
    return f"({', '.join(f'{value:g}' for value in values)})"


def card_beside(out: Path) -> Path:
    """The path of a single file's card: weights.safetensors has weights.md.

    Raises:
        ValueError: the path is that of another file, or of the weights themselves.
    """
    path = out.with_suffix(".md")
    if path == out:
        raise ValueError(f"--out {out}: .md is for the model card; give the file another suffix")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"--out {out}: its model card would replace {path}, which mimkit did not write")
    return path


def write_card(path: Path, card: str) -> None:
    """Write a card atomically."""
    write_text(path, card)
