"""Encoders: timm backbones behind one small protocol."""

from mimkit.backbones.latent import Encoder, Latent
from mimkit.backbones.visible import VisibleViT, create_visible_vit

__all__ = ["Encoder", "Latent", "VisibleViT", "create_visible_vit"]
