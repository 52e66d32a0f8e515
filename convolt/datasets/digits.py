"""scikit-learn's handwritten digits; see `convolt.data.datasets`."""

from convolt.data.datasets import load_digits as load_data

__all__ = ["load_data"]
