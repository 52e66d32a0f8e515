"""Keras's import paths of preprocessing; holds nothing of its own."""

from convolt.preprocessing import image

__all__ = ["image"]
