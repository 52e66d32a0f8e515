"""Cases of convolutions: strides, odd and even sizes, paddings, dilations, groups, axes of size one."""

from itertools import product

from tests.parity.cases import LayerCase

L2 = {"kernel_regularizer": "l2", "bias_regularizer": "l2", "activity_regularizer": "l2"}


def grid(layer: str, sizes: list[tuple[int, ...]], kernels: list, strides: list, **kwargs) -> list[LayerCase]:
    """Each kernel with each stride under "same" on each size, where one padding is symmetric and another is not."""
    return [LayerCase(layer, {"filters": 2, "kernel_size": k, "strides": s, "padding": "same", **kwargs}, [(2, *size, 2)])
            for size, k, s in product(sizes, kernels, strides)]


CONV1D = [
    *grid("Conv1D", [(6,), (7,)], [2, 3, 4], [1, 2, 3]),
    LayerCase("Conv1D", {"filters": 3, "kernel_size": 3}, [(2, 7, 2)]),
    LayerCase("Conv1D", {"filters": 3, "kernel_size": 2, "strides": 3, "padding": "valid"}, [(1, 9, 1)]),
    LayerCase("Conv1D", {"filters": 2, "kernel_size": 3, "padding": "causal"}, [(2, 5, 2)]),
    LayerCase("Conv1D", {"filters": 2, "kernel_size": 3, "padding": "causal", "strides": 2}, [(2, 6, 2)]),
    LayerCase("Conv1D", {"filters": 2, "kernel_size": 2, "padding": "causal", "dilation_rate": 3}, [(2, 6, 2)]),
    LayerCase("Conv1D", {"filters": 4, "kernel_size": 3, "padding": "same", "groups": 2, "dilation_rate": 2}, [(2, 6, 4)]),
    LayerCase("Conv1D", {"filters": 1, "kernel_size": 1, "use_bias": False}, [(1, 1, 1)]),
]

CONV2D = [
    *grid("Conv2D", [(5, 6)], [1, 2, 3, 4], [1, 2, 3]),
    *grid("Conv2D", [(1, 5)], [(3, 2)], [(1, 2), (2, 1)]),
    LayerCase("Conv2D", {"filters": 2, "kernel_size": 7, "strides": 2, "padding": "same"}, [(1, 4, 4, 1)]),
    LayerCase("Conv2D", {"filters": 3, "kernel_size": 3, "activation": "relu"}, [(2, 5, 6, 2)]),
    LayerCase("Conv2D", {"filters": 2, "kernel_size": (3, 2), "strides": (2, 3), "padding": "VALID"}, [(2, 7, 6, 3)]),
    LayerCase("Conv2D", {"filters": 2, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}, [(2, 6, 5, 1)]),
    LayerCase("Conv2D", {"filters": 2, "kernel_size": 2, "dilation_rate": (1, 3), "padding": "same"}, [(2, 4, 5, 2)]),
    LayerCase("Conv2D", {"filters": 2, "kernel_size": 2, "dilation_rate": (3, 2)}, [(2, 5, 5, 2)]),
    LayerCase("Conv2D", {"filters": 6, "kernel_size": 3, "groups": 3, "padding": "same", "strides": 2}, [(2, 4, 4, 3)]),
    LayerCase("Conv2D", {"filters": 4, "kernel_size": 1, "groups": 4, "use_bias": False}, [(2, 3, 3, 4)]),
    LayerCase("Conv2D", {"filters": 1, "kernel_size": 1}, [(1, 1, 1, 1)]),
    LayerCase("Conv2D", {"filters": 2, "kernel_size": 3, "padding": "same", "data_format": "channels_last", **L2},
              [(2, 4, 4, 2)]),
    LayerCase("Conv2D", {"filters": 3, "kernel_size": 2, "activation": "softmax"}, [(2, 3, 3, 2)]),
]

CONV3D = [
    *grid("Conv3D", [(3, 4, 5)], [2, 3], [1, 2]),
    LayerCase("Conv3D", {"filters": 2, "kernel_size": (1, 2, 3)}, [(1, 2, 3, 4, 2)]),
    LayerCase("Conv3D", {"filters": 2, "kernel_size": 2, "strides": (1, 2, 3), "padding": "same"}, [(1, 2, 3, 4, 1)]),
    LayerCase("Conv3D", {"filters": 2, "kernel_size": 2, "dilation_rate": (2, 1, 1), "groups": 2}, [(1, 3, 3, 2, 2)]),
    LayerCase("Conv3D", {"filters": 1, "kernel_size": 1, "use_bias": False}, [(1, 1, 1, 1, 1)]),
]

TRANSPOSE = [
    *[LayerCase("Conv2DTranspose", {"filters": 2, "kernel_size": k, "strides": s, "padding": p}, [(2, 3, 2, 2)])
      for k, s, p in product([1, 2, 3, 4], [1, 2, 3], ["valid", "same"])],
    *[LayerCase("Conv2DTranspose", {"filters": 2, "kernel_size": k, "strides": s, "padding": p, "output_padding": o},
                [(1, 3, 2, 2)])
      for k, p, (s, o) in product([1, 2, 3, 4], ["valid", "same"], [(2, 0), (2, 1), (3, 2), ((2, 3), (1, 0))])],
    LayerCase("Conv2DTranspose", {"filters": 2, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}, [(2, 3, 4, 2)]),
    LayerCase("Conv2DTranspose", {"filters": 2, "kernel_size": (2, 3), "dilation_rate": (3, 2)}, [(2, 3, 2, 2)]),
    LayerCase("Conv2DTranspose", {"filters": 1, "kernel_size": 2, "strides": 2, "use_bias": False, "activation": "relu"},
              [(1, 1, 1, 1)]),
    LayerCase("Conv2DTranspose", {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same", **L2}, [(2, 2, 2, 2)]),
]

DEPTHWISE = [
    *[LayerCase("DepthwiseConv2D", {"kernel_size": k, "strides": s, "padding": p, "depth_multiplier": m}, [(2, 5, 6, 2)])
      for k, (s, m), p in product([2, 3], [(1, 1), (2, 2), (3, 3)], ["valid", "same"])],
    LayerCase("DepthwiseConv2D", {"kernel_size": 3, "dilation_rate": 2, "padding": "same"}, [(2, 5, 4, 3)]),
    LayerCase("DepthwiseConv2D", {"kernel_size": (1, 2), "use_bias": False, "activation": "relu"}, [(1, 1, 3, 1)]),
    LayerCase("DepthwiseConv2D", {"kernel_size": 2, "depth_multiplier": 2, "depthwise_regularizer": "l2",
                                  "bias_regularizer": "l2"}, [(2, 3, 3, 2)]),
]

SEPARABLE = [
    *[LayerCase("SeparableConv2D", {"filters": 3, "kernel_size": k, "strides": s, "padding": p, "depth_multiplier": m},
                [(2, 5, 6, 2)])
      for k, (s, m), p in product([2, 3], [(1, 1), (2, 2), (3, 1)], ["valid", "same"])],
    LayerCase("SeparableConv2D", {"filters": 2, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}, [(2, 5, 4, 2)]),
    LayerCase("SeparableConv2D", {"filters": 1, "kernel_size": 1, "use_bias": False, "activation": "relu"}, [(1, 1, 1, 1)]),
    LayerCase("SeparableConv2D", {"filters": 2, "kernel_size": 2, "depthwise_regularizer": "l2", "pointwise_regularizer": "l2",
                                  "activity_regularizer": "l2"}, [(2, 3, 3, 2)]),
]

CASES = [*CONV1D, *CONV2D, *CONV3D, *TRANSPOSE, *DEPTHWISE, *SEPARABLE]
