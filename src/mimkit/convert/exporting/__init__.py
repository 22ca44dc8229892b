"""Export of weights: safetensors, timm, Hugging Face, ONNX, each with a model card."""
