"""A run's weights as files that others read."""

import json
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from torch import Tensor

from mimkit.backbones.load import parse_name
from mimkit.files import write_bytes
from mimkit.sources import load_method, read_source


def export_timm(source: Path, out: Path) -> dict[str, Any]:
    """The encoder alone, with timm's names, as safetensors.

    Returns:
        the keyword arguments with which `timm.create_model(**arguments)` takes the file strictly:
        `load_state_dict(safetensors.torch.load_file(out))`. The file's metadata holds them too, as `timm.create_model`.

    Raises:
        ValueError: the source holds no weights.
    """
    method = load_method(source)
    encoder = method.encoder
    weights = encoder.timm_weights()
    name, own = parse_name(encoder.name)
    arguments = {"model_name": name, **own, "in_chans": encoder.channels, "num_classes": 0}
    arguments = fitting(arguments, list(encoder.image_size), weights)
    readout = "mean over patch tokens of forward_features(images), which includes the final norm"
    metadata = {
        "timm.create_model": json.dumps(arguments),
        "normalization": json.dumps({"mean": method.normalization.mean, "std": method.normalization.std}),
        "readout": readout,
    }
    write(weights, metadata, out)
    return arguments


def fitting(arguments: dict[str, Any], image_size: list[int], weights: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments with which `timm.create_model` makes a model that takes these weights strictly.

    Raises:
        ValueError: none do.
    """
    # Convolutional families take no size; where pooling brings weights or norms of its own, it is switched off.
    for more in ({"img_size": image_size}, {"img_size": image_size, "global_pool": ""}, {}, {"global_pool": ""}):
        try:
            model = timm.create_model(**arguments, **more)
        except TypeError:
            continue
        if model.state_dict().keys() == weights.keys():
            model.load_state_dict(weights)  # strict: what is written loads
            return {**arguments, **more}
    raise ValueError(f"timm makes no {arguments['model_name']} that takes these weights")


def export_safetensors(source: Path, out: Path) -> None:
    """The whole method, decoder included, as one file that `load_method` and every SOURCE takes.

    Raises:
        ValueError: the source holds no weights.
    """
    request, weights = read_source(source)
    request["settings"]["data"] = ""  # whose folder it was is nobody's business
    write(weights, {"mimkit.request": json.dumps(request)}, out)


def write(weights: dict[str, Tensor], metadata: dict[str, str], out: Path) -> None:
    """Write safetensors atomically."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, save({name: value.contiguous() for name, value in weights.items()}, metadata))
