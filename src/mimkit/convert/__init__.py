"""Weights in and out of other libraries' layouts."""

from mimkit.convert.export import export_safetensors, export_timm
from mimkit.convert.huggingface import export_huggingface
from mimkit.convert.onnx import export_onnx

__all__ = ["export_huggingface", "export_onnx", "export_safetensors", "export_timm"]
