"""Ready-made architectures: functions of (input_shape, classes) that return a model without trained weights."""

from convolt.applications.cnn import cnn
from convolt.missing import explain_missing_names

__all__ = ["cnn"]

explain_missing_names(__name__)
