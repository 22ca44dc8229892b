"""Weights out: safetensors, timm, Hugging Face, ONNX, each with a model card."""
