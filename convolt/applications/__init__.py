"""Ready-made architectures: functions of (input_shape, classes) that return a model without trained weights."""

from convolt.applications.cnn import cnn

__all__ = ["cnn"]
