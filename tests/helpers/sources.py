"""Sources for the tests: files as `mimkit export --format safetensors` writes them, of small methods."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from helpers import parts
from mimkit.compose import compose, description_of
from mimkit.method import Method
from mimkit.recipes import build as build_recipe
from mimkit.settings import Settings

VIT = "vit_tiny_patch16_224(embed_dim=48,depth=2,num_heads=3)"
SWIN = "swin_tiny_patch4_window7_224(embed_dim=16,depths=(2,2),num_heads=(1,2),window_size=4)"
CONVMAE = "convmae_base(dims=(16,32,48),depths=(1,1,2),heads=4)"


def write_source(
    path: Path,
    recipe: str,
    *,
    more: dict[str, object] | None = None,
    metadata: dict[str, str] | None = None,
    **settings,
) -> Method:
    """A method with every trainable weight moved off its initial value, and the file of it.

    Args:
        path: of the file.
        recipe, settings: of the method.
        more: in its request.
        metadata: beside its request.
    """
    asked = Settings(data=Path(), **settings)
    composed = compose(recipe, asked)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = build_recipe(composed).eval()
    parts.perturb(method)
    request = description_of(recipe, composed, asked) | (more or {})
    request["settings"]["data"] = "/home/somebody/photos"
    weights = {name: value.contiguous() for name, value in method.state_dict().items()}
    save_file(weights, path, {"mimkit.request": json.dumps(request)} | (metadata or {}))
    return method
