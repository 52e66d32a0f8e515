"""Cases of the layers in `convolt/layers/core.py`."""

from tests.parity.cases import LayerCase

CASES = [
    LayerCase("Dense", {"units": 3}, [(2, 4)]),
    LayerCase("Dense", {"units": 1, "use_bias": False, "activation": "relu"}, [(1, 1)]),
    LayerCase("Dense", {"units": 2, "kernel_regularizer": "l2",
                        "bias_regularizer": "l2", "activity_regularizer": "l2"}, [(3, 5)]),
    LayerCase("Dense", {"units": 4, "activation": "softmax"}, [(2, 3, 5)]),
    LayerCase("Dense", {"units": 2}, [(2, 3, 2, 3)]),
]
