"""Convolt: deep learning for computer vision, with Keras's ease and PyTorch's ecosystem."""

__version__ = "0.1.0.dev0"
