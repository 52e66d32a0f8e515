"""Cases of the layers in `convolt/layers/normalization.py`: momentum, epsilon and the biased variance are traps."""

import torch

from tests.parity.cases import LayerCase

KERAS_FAILS = "Keras 3.15 fails on its PyTorch backend for neighbouring axes that are not the last"


def layer_normalization(x, weight, bias, axis):
    """The definition; `weight` and `bias` have the sizes of the axes."""
    axes = [axis] if isinstance(axis, int) else axis
    variance, mean = torch.var_mean(x, axes, keepdim=True, correction=0)
    shape = [x.shape[i] if i in axes else 1 for i in range(x.ndim)]
    return (x - mean) / torch.sqrt(variance + 1e-3) * weight.reshape(shape) + bias.reshape(shape)


AS_KERAS = {"bias_correction": False}
"""Statistics that begin at zero and one and forget them slowly, as Keras's do."""

REGULARIZED = {"beta_regularizer": "l2", "gamma_regularizer": "l1"}

CASES = [
    # Running statistics are compared after the call: momentum 0.99 of the past, biased variance (few values show it).
    LayerCase("BatchNormalization", AS_KERAS, [(2, 3)], training=True, keras_kwargs={}),
    LayerCase("BatchNormalization", {}, [(2, 3)]),
    LayerCase("BatchNormalization", {"momentum": 0.6, **AS_KERAS}, [(3, 2, 1, 4)], training=True, keras_kwargs={"momentum": 0.6}),
    LayerCase("BatchNormalization", {"epsilon": 0.5, **AS_KERAS}, [(2, 3, 3, 2)], training=True, keras_kwargs={"epsilon": 0.5}),
    LayerCase("BatchNormalization", {"epsilon": 0.5}, [(2, 3, 3, 2)]),
    LayerCase("BatchNormalization", {"center": False, **AS_KERAS}, [(4, 5, 2)], training=True, keras_kwargs={"center": False}),
    LayerCase("BatchNormalization", {"scale": False, **AS_KERAS}, [(2, 2, 3, 2, 3)], training=True, keras_kwargs={"scale": False}),
    LayerCase("BatchNormalization", {"center": False, "scale": False}, [(2, 4, 3)]),
    LayerCase("BatchNormalization", {"trainable": False, "momentum": 0.5}, [(4, 3)], training=True),
    LayerCase("BatchNormalization", {"axis": 1, "momentum": 0.5, **AS_KERAS}, [(2, 3, 2, 4)], training=True,
              keras_kwargs={"axis": 1, "momentum": 0.5}),
    LayerCase("BatchNormalization", {"axis": 3, **AS_KERAS}, [(2, 3, 2, 1)], training=True, keras_kwargs={"axis": 3}),
    LayerCase("BatchNormalization", {**REGULARIZED, **AS_KERAS}, [(3, 4)], training=True, keras_kwargs=REGULARIZED),
    LayerCase("LayerNormalization", {}, [(2, 4)]),
    LayerCase("LayerNormalization", {"epsilon": 0.3}, [(2, 3, 4)]),
    LayerCase("LayerNormalization", {}, [(2, 3, 2, 4)], training=True),
    LayerCase("LayerNormalization", {"axis": [1, 2, 3]}, [(2, 3, 2, 4)]),
    LayerCase("LayerNormalization", {"axis": [-1, -2]}, [(2, 3, 2, 4)]),
    LayerCase("LayerNormalization", {"axis": 1}, [(2, 5, 3)], reference=layer_normalization, reference_reason=KERAS_FAILS),
    LayerCase("LayerNormalization", {"axis": [1, 2]}, [(2, 3, 2, 4)], reference=layer_normalization,
              reference_reason=KERAS_FAILS),
    LayerCase("LayerNormalization", {"axis": [3, 1]}, [(2, 3, 2, 4)]),
    LayerCase("LayerNormalization", {"center": False}, [(3, 4)]),
    LayerCase("LayerNormalization", {"scale": False}, [(3, 4)]),
    LayerCase("LayerNormalization", REGULARIZED, [(3, 4)]),
    LayerCase("GroupNormalization", {"groups": 2}, [(2, 4)]),
    LayerCase("GroupNormalization", {"groups": 3}, [(2, 5, 6)]),
    LayerCase("GroupNormalization", {"groups": 2, "epsilon": 0.2}, [(2, 3, 2, 4)]),
    LayerCase("GroupNormalization", {"groups": 1}, [(2, 2, 3, 2, 3)]),
    LayerCase("GroupNormalization", {"groups": -1}, [(2, 3, 3, 2)]),
    LayerCase("GroupNormalization", {}, [(2, 3, 3, 32)]),
    LayerCase("GroupNormalization", {"groups": 2, "axis": 1}, [(2, 4, 3)]),
    LayerCase("GroupNormalization", {"groups": 2, "center": False, "scale": False}, [(1, 3, 4)]),
    LayerCase("GroupNormalization", {"groups": 2, **REGULARIZED}, [(2, 3, 4)]),
]
