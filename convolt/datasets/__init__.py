"""Data sets by name, as in Keras: `from convolt.datasets import mnist; mnist.load_data()`."""

from convolt.datasets import cifar10, digits, mnist
from convolt.missing import explain_missing_names

__all__ = ["cifar10", "digits", "mnist"]

explain_missing_names(__name__)
