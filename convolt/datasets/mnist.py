"""MNIST; see `convolt.data.datasets`."""

from convolt.data.datasets import load_mnist as load_data

__all__ = ["load_data"]
