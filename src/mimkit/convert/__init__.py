"""Weights in and out of other libraries' layouts."""

from mimkit.convert.export import export_safetensors, export_timm

__all__ = ["export_safetensors", "export_timm"]
