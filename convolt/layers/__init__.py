"""Layers with Keras's names, arguments and defaults on PyTorch's functions; one file per family."""

from convolt.layers.base import Layer, registry
from convolt.layers.core import Dense
from convolt.layers.symbolic import Input

__all__ = ["Dense", "Input", "Layer", "registry"]
