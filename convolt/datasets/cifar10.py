"""CIFAR-10; see `convolt.data.datasets`."""

from convolt.data.datasets import load_cifar10 as load_data

__all__ = ["load_data"]
