"""LocalMIM on ViT and Swin: one norm and one decoder for each tap.

Its gradient histograms are taken to be flattened channel by channel, bins fastest, as ours are.
"""

import re
from typing import Any

from mimkit.convert.importing.hints import Hints
from mimkit.convert.importing.swin import (
    VISIBLE,
    change,
    describe_swin,
    last_cell,
    merge_notes,
    merge_order,
    move_merging,
)
from mimkit.convert.importing.vit import ENCODER, channel_settings, describe_vit, method_settings
from mimkit.convert.rename import Rules, Translation, Weights, count, drop, rename
from mimkit.settings import ImportOptions

TARGETS = {9: "hog", 18: "hog-18"}
OF_TARGET: Rules = ((r"hog_enc\..+", "the target's gradient filters, computed anew"),)


def localmim_vit(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """LocalMIM's names on ViT: MAE's for the encoder.

    Raises:
        ValueError: heads are not known, or the histograms have neither 9 nor 18 bins.
    """
    backbone, image_size = describe_vit(weights, hints, options)
    levels = count(weights, r"norm\.(\d+)\.")
    heads = decoder_heads(weights, hints, options, channels_of_head=32)
    settings = channel_settings(weights["patch_embed.proj.weight"].shape[1])
    settings |= method_settings(hints, options) | histogram_settings(weights, options) | heads
    weights, dropped = drop(with_levels(weights, levels, "encoder.vit.norm"), OF_TARGET)
    return Translation(
        recipe=options.recipe or "localmim",
        backbone=backbone,
        image_size=image_size,
        settings=settings,
        weights=rename(weights, ENCODER),
        dropped=dropped,
        encoder_only=False,
    )


def localmim_swin(weights: Weights, hints: Hints, options: ImportOptions) -> Translation:
    """LocalMIM's names on Swin: SimMIM's for the encoder.

    Raises:
        ValueError: the histograms have neither 9 nor 18 bins.
    """
    weights = rename(weights, ((r"encoder\.(.+)", r"\1"),))
    weights = change(move_merging(weights), r"layers\.\d+\.downsample\.", merge_order(options))
    backbone, image_size = describe_swin(weights, hints, options)
    levels = count(weights, r"norm\.(\d+)\.")
    channels = weights["patch_embed.proj.weight"].shape[1]
    settings = channel_settings(channels)
    finest = last_cell(weights) // 2 ** (levels - 2)
    whole = any(name.startswith("decoder.") for name in weights)
    pixels = whole and head_rows(weights) == channels * finest**2
    recipe = "localmim-swin-pixel" if pixels else "localmim-swin"
    if whole:
        settings |= method_settings(hints, options)
        settings |= {} if pixels else histogram_settings(weights, options)
    weights, dropped = drop(with_levels(weights, levels, "encoder.swin.norm"), OF_TARGET)
    return Translation(
        recipe=options.recipe or recipe,
        backbone=backbone,
        image_size=image_size,
        settings=settings,
        weights=rename(weights, VISIBLE),
        dropped=dropped,
        notes=merge_notes(options),
        encoder_only=not whole,
    )


def with_levels(weights: Weights, levels: int, last_norm: str) -> Weights:
    """Norms and decoders under our names: the last norm is the encoder's, the last layer of `pred` the head."""
    renamed = {}
    for name, value in weights.items():
        norm = re.fullmatch(r"norm\.(\d+)\.(\w+)", name)
        decoder = re.fullmatch(r"decoder\.(\d+)\.(.+)", name)
        if norm:
            name = f"{last_norm}.{norm[2]}" if int(norm[1]) == levels - 1 else f"readout.norms.{norm[1]}.{norm[2]}"
        elif decoder:
            inner = prediction(decoder[2], layers_of_pred(weights, decoder[1]))
            name = f"decoders.{decoder[1]}.{inner}"
            value = value.flatten(1) if inner == "head.weight" else value  # a 1 x 1 convolution is a linear layer
        renamed[name] = value
    return renamed


def layers_of_pred(weights: Weights, level: str) -> list[int]:
    """Numbers of the layers with weights in one decoder's `pred`, ascending."""
    found = (re.match(rf"decoder\.{level}\.pred\.(\d+)\.", name) for name in weights)
    return sorted({int(match[1]) for match in found if match})


def prediction(name: str, layers: list[int]) -> str:
    """A name inside a decoder: `pred`'s last layer is the head, those before it rescale."""
    match = re.fullmatch(r"pred\.(?:(\d+)\.)?(weight|bias)", name)
    if not match:
        return "positions" if name == "pos_embed" else name
    if match[1] is None or int(match[1]) == layers[-1]:
        return f"head.{match[2]}"
    return f"rescale.{match[2]}" if len(layers) == 2 else f"rescale.{match[1]}.{match[2]}"


def head_rows(weights: Weights) -> int:
    """Values that the first decoder predicts for a cell."""
    return next(
        len(value) for name, value in reversed(weights.items()) if re.fullmatch(r"decoder\.0\.pred\.(\d+\.)?bias", name)
    )


def histogram_settings(weights: Weights, options: ImportOptions) -> dict[str, Any]:
    """The target, by its number of bins, with the constants that were added to its gradients.

    Raises:
        ValueError: there are neither 9 nor 18 bins.
    """
    channels = weights["patch_embed.proj.weight"].shape[1]
    bins = head_rows(weights) / channels
    if bins not in TARGETS and not options.target:
        raise ValueError(f"each cell has {head_rows(weights)} values for {channels} channels: neither 9 nor 18 bins")
    biases = [weights[name] for name in sorted(weights) if re.fullmatch(r"hog_enc\.\d+\.conv\.bias", name)]
    settings: dict[str, Any] = {"target": options.target or TARGETS[int(bins)]}
    if biases:
        settings["hog_offsets"] = tuple(number for bias in biases for number in bias.float().tolist())
    return settings


def decoder_heads(weights: Weights, hints: Hints, options: ImportOptions, channels_of_head: int) -> dict[str, Any]:
    """Width, depth and heads of all decoders, which are alike."""
    width = weights["decoder.0.embed.weight"].shape[0]
    depth = count(weights, r"decoder\.0\.blocks\.(\d+)\.")
    heads = options.decoder_heads or hints.decoder_heads or max(width // channels_of_head, 1)
    return {"decoder_width": width, "decoder_depth": depth, "decoder_heads": heads}
