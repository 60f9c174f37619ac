"""Quantization-aware training: quantizers, layers, and the conversion from float to quantized."""
