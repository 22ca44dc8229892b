"""Encoders: backbones with one small protocol."""

from mimkit.backbones.conv import ConvMAE
from mimkit.backbones.dense import DenseEncoder
from mimkit.backbones.latent import Encoder, Latent, Level, count_parameters
from mimkit.backbones.load import create_encoder
from mimkit.backbones.visible import VisibleViT
from mimkit.backbones.visible_swin import VisibleSwin

__all__ = [
    "ConvMAE",
    "DenseEncoder",
    "Encoder",
    "Latent",
    "Level",
    "VisibleSwin",
    "VisibleViT",
    "count_parameters",
    "create_encoder",
]
