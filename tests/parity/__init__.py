"""Comparison with Keras 3 on its PyTorch backend."""
