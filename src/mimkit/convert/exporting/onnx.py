"""Encoders as ONNX files.

Shapes: B batch, C image channels, H W pixels, N tokens, D width.
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from mimkit.convert.exporting.model_card import card_beside, model_card, origin_of, write_card
from mimkit.files import write_bytes
from mimkit.image_encoder import ImageEncoder
from mimkit.recipes import Recipe
from mimkit.sources import load_encoder

NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4
MAX_BYTES = 2**31 - 2**20  # of one file; the rest is for the graph


class FeaturesAndTokens(nn.Module):
    """Normalised images [B, C, H, W] to features [B, D], their mean, and tokens [B, N, D]."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder.latent(images).tokens
        return tokens.mean(dim=1), tokens


def export_onnx(
    source: str | Path, out: Path, *, image_size: tuple[int, int] | None = None, recipe: str | Recipe | None = None
) -> None:
    """The encoder as an ONNX file that onnxruntime runs as torch does, and its model card.

    Input `images`, float32 [B, C, H, W], normalised; outputs `features` [B, D] and `tokens` [B, N, D], after the final
    norm; B is free. The file's metadata holds the normalisation.

    Args:
        source: a run folder, a file of ours, timm:NAME or random:NAME.
        out: file to write; the card is written beside it. Nothing is written where onnxruntime gives other features.
        image_size: (H, W); None takes the source's own. Tables of positions are resized.
        recipe: FILE.py:NAME or the recipe itself, for sources made with a recipe of the user's own.

    Raises:
        ValueError: a package is missing, the source holds no weights, too many, or such as torch cannot export, or
            onnxruntime disagrees.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install 'mimkit[onnx]'")
    beside = card_beside(out)
    encoder = load_encoder(source, image_size=image_size, recipe=recipe)
    size = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(f"{source} has {size / 2**30:.1f} GiB of weights, and an ONNX file holds at most 2")
    content = to_onnx(encoder)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)
    height, width = encoder.image_size
    usage = (
        "import numpy as np\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{out.name}")\n'
        f"images = np.zeros((2, {encoder.encoder.channels}, {height}, {width}), dtype=np.float32)\n"
        'features, tokens = session.run(["features", "tokens"], {"images": images})'
    )
    readout = "`features` is that mean, `tokens` what it is taken of."
    what = "An image encoder as an ONNX file."
    write_card(beside, model_card(origin_of(source), encoder, what=what, usage=usage, readout=readout))


def to_onnx(encoder: ImageEncoder) -> bytes:
    """The encoder as the bytes of an ONNX file, checked with onnxruntime.

    Raises:
        ValueError: torch cannot export it, or onnxruntime gives other values.
    """
    import onnx

    module = FeaturesAndTokens(encoder).eval()
    images = random_images(encoder, 2)
    batch = torch.export.Dim("batch", min=1)
    with quiet():
        try:
            # strict: else len(images), and with it the batch, would become a constant
            program = torch.export.export(module, (images,), dynamic_shapes=({0: batch},), strict=True)
            exported = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["features", "tokens"]
            )
        except Exception as error:  # torch raises many types for what it cannot export
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"torch cannot export {encoder.encoder.name} to ONNX: {reason}") from error
    assert exported is not None
    model = exported.model_proto
    onnx.helper.set_model_props(
        model,
        {
            "backbone": encoder.encoder.name,
            "normalization": json.dumps({"mean": encoder.normalization.mean, "std": encoder.normalization.std}),
            "readout": "features: mean over tokens, which are those of the last block through the final norm",
        },
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # strict export loses its name
    del model.graph.value_info[:]  # intermediate shapes, which use another name for it
    content = model.SerializeToString()
    require_same(content, encoder)
    return content


def require_same(content: bytes, encoder: ImageEncoder) -> None:
    """Check that onnxruntime computes the same values from the file as torch.

    Raises:
        ValueError: they differ.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    module = FeaturesAndTokens(encoder).eval()
    for count in (1, 3):
        images = random_images(encoder, count)
        with torch.inference_mode():
            expected = module(images)
        outputs = session.run(["features", "tokens"], {"images": images.numpy()})
        for name, output, value in zip(("features", "tokens"), outputs, expected, strict=True):
            error = (torch.from_numpy(output) - value).abs().max().item()
            if not error <= TOLERANCE * max(1.0, value.abs().max().item()):
                raise ValueError(f"onnxruntime's {name} of {encoder.encoder.name} are {error:.1e} away from torch's")


def random_images(encoder: ImageEncoder, count: int) -> Tensor:
    """Standard normal images, the same ones each time."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, encoder.encoder.channels, *encoder.image_size, generator=generator)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress torch's progress output and warnings during the export."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
