"""Quantization-aware training: quantizers, layers, and the step from float to quantized."""
