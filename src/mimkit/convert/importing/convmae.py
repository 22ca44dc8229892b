"""ConvMAE: our encoder has the published names."""

from mimkit.convert.importing.hints import Hints
from mimkit.convert.importing.vit import (
    DECODER,
    channel_settings,
    decoder_settings,
    image_size_for,
    method_settings,
    published_heads,
    target_notes,
)
from mimkit.convert.rename import (
    NO_DECODER,
    Translation,
    Weights,
    backbone_name,
    count,
    drop,
    move_fc_norm,
    rename,
)
from mimkit.settings import ImportOptions

CELL = 16
ENCODER = r"((?:patch_embed\d|blocks\d|norm|stage\d_output_decode)\..+|pos_embed)"
PUBLISHED = {"dims": (256, 384, 768), "depths": (2, 2, 11), "heads": 12}


def convmae(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """ConvMAE's names, with the decoder or without.

    Raises:
        ValueError: its heads are not known, or its positions form no square.
    """
    weights, notes = move_fc_norm(weights)
    dims = tuple(weights[f"patch_embed{stage}.proj.weight"].shape[0] for stage in (1, 2, 3))
    shape = {
        "dims": dims,
        "depths": tuple(count(weights, rf"blocks{stage}\.(\d+)\.") for stage in (1, 2, 3)),
        "heads": options.heads or hints.heads or published_heads(dims[2]),
    }
    different = {key: value for key, value in shape.items() if value != PUBLISHED[key]}
    if "stage1_output_decode.weight" not in weights:
        different["multi_scale"] = False
    rows = weights["pos_embed"].shape[1]
    image_size = image_size_for(rows, CELL, hints)
    if image_size is None:
        raise ValueError(f"pos_embed has {rows} rows, which make no square grid of patches")
    encoder_only = "decoder_pred.weight" not in weights
    settings = channel_settings(weights["patch_embed1.proj.weight"].shape[1])
    dropped: dict[str, str] = {}
    if encoder_only:
        weights, dropped = drop(weights, NO_DECODER)
    else:
        settings |= decoder_settings(weights, hints, options) | method_settings(hints, options)
        notes += target_notes(hints, options)
    return Translation(
        recipe=options.recipe or "convmae",
        backbone=backbone_name("convmae_base", **different),
        image_size=image_size,
        settings=settings,
        weights=rename(weights, [(ENCODER, r"encoder.\1"), *DECODER]),
        dropped=dropped,
        notes=notes,
        encoder_only=encoder_only,
    )
