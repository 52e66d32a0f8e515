"""Cases of the layers in `convolt/layers/activation.py`; inputs keep away from kinks."""

from convolt import activations
from tests.parity.cases import LayerCase

CASES = [
    *(LayerCase("Activation", {"activation": name}, [(2, 6)], kinks=(-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0))
      for name in activations.registry if name not in ("glu", "sparsemax")),
    LayerCase("Activation", {"activation": "softmax"}, [(2, 3, 2, 4)]),
    LayerCase("Activation", {"activation": "sigmoid"}, [(2, 3, 2, 4)]),
    LayerCase("ReLU", {}, [(2, 3, 2, 4)]),
    LayerCase("ReLU", {"max_value": 1.0}, [(3, 5)], kinks=(0.0, 1.0)),
    LayerCase("ReLU", {"max_value": 6.0}, [(3, 5)]),
    LayerCase("ReLU", {"negative_slope": 0.2}, [(3, 5)]),
    LayerCase("ReLU", {"threshold": 0.7}, [(3, 5)], kinks=(0.7,)),
    LayerCase("ReLU", {"max_value": 1.5, "negative_slope": 0.2}, [(3, 5)], kinks=(0.0, 1.5)),
    LayerCase("ReLU", {"max_value": 1.5, "negative_slope": 0.2, "threshold": 0.4}, [(2, 3, 4)], kinks=(0.4, 1.5)),
    LayerCase("ReLU", {"negative_slope": 0.2, "threshold": 0.4}, [(2, 3, 4)], kinks=(0.4,)),
    LayerCase("LeakyReLU", {}, [(2, 3, 4)]),
    LayerCase("LeakyReLU", {"negative_slope": 0.05}, [(4, 3)]),
    LayerCase("PReLU", {}, [(2, 5)]),
    LayerCase("PReLU", {"alpha_initializer": "ones"}, [(2, 3, 2, 4)]),
    LayerCase("PReLU", {"shared_axes": [1, 2]}, [(2, 3, 2, 4)]),
    LayerCase("PReLU", {"shared_axes": [1]}, [(2, 3, 2, 4)]),
    LayerCase("PReLU", {"shared_axes": 1, "alpha_regularizer": "l2"}, [(2, 3, 4)]),
    LayerCase("PReLU", {"shared_axes": [1, 2, 3]}, [(2, 3, 2, 4)]),
    LayerCase("PReLU", {"shared_axes": [2, 3]}, [(2, 3, 2, 4)]),
    LayerCase("ELU", {}, [(2, 3, 2, 4)]),
    LayerCase("ELU", {"alpha": 0.6}, [(4, 3)]),
    LayerCase("SELU", {}, [(2, 3, 4)], keras_layer="Activation", keras_kwargs={"activation": "selu"}),
    LayerCase("GELU", {}, [(2, 3, 4)], keras_layer="Activation", keras_kwargs={"activation": "gelu"}),
    LayerCase("SiLU", {}, [(2, 3, 4)], keras_layer="Activation", keras_kwargs={"activation": "silu"}),
    LayerCase("Softmax", {}, [(3, 5)]),
    LayerCase("Softmax", {}, [(2, 3, 2, 4)]),
    LayerCase("Softmax", {"axis": 1}, [(2, 3, 2, 4)]),
    LayerCase("Softmax", {"axis": [-1]}, [(2, 3, 4)]),
    LayerCase("Softmax", {"axis": [1, 2]}, [(2, 3, 2, 4)]),
]
