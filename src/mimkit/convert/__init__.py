"""Import and export of weights in other libraries' formats."""

from mimkit.convert.exporting.formats import ExportReport, export
from mimkit.convert.exporting.huggingface import export_huggingface
from mimkit.convert.exporting.onnx import export_onnx
from mimkit.convert.exporting.safetensors import export_safetensors, export_timm

__all__ = ["ExportReport", "export", "export_huggingface", "export_onnx", "export_safetensors", "export_timm"]
