"""Convolutions that keep channels apart: depthwise, and depthwise followed by a mixture of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import constraints, initializers, regularizers
from convolt.layers.arguments import check_positive
from convolt.layers.base import registry
from convolt.layers.convolutional import BaseConv
from convolt.layout import Shape


@registry.register()
class DepthwiseConv2D(BaseConv):
    """Convolution of each channel with kernels of its own: channel c gives outputs c·M … c·M + M-1.

    Args:
        kernel_size, strides: a number or (vertical, horizontal).
        padding: "valid" or "same".
        depth_multiplier: M, the number of kernels for each channel.
        data_format: None or "channels_last".
        dilation_rate: distance of the kernel's elements.
        activation: name or function; None is linear.
        use_bias: whether there is a bias.
        depthwise_initializer, bias_initializer: names or objects.
        depthwise_regularizer, bias_regularizer, activity_regularizer: names or objects.
        depthwise_constraint, bias_constraint: applied after each update; names or objects.

    Raises:
        ArgumentError: a value is out of range.
        ShapeError: an input has the wrong rank or number of channels, or is smaller than the window.

    Shapes: (batch, height, width, channels) → (batch, new height, new width, channels · M).
    Keras counterpart: `keras.layers.DepthwiseConv2D`; PyTorch's: `torch.nn.Conv2d(C, C * M, groups=C)`.
    """

    def __init__(self, kernel_size: int | Sequence[int], strides: int | Sequence[int] = 1, padding: str = "valid",
                 depth_multiplier: int = 1, data_format: str | None = None, dilation_rate: int | Sequence[int] = 1,
                 activation: Any = None, use_bias: bool = True, depthwise_initializer: Any = "glorot_uniform",
                 bias_initializer: Any = "zeros", depthwise_regularizer: Any = None, bias_regularizer: Any = None,
                 depthwise_constraint: Any = None, bias_constraint: Any = None, **kwargs: Any) -> None:
        super().__init__(kernel_size=kernel_size, strides=strides, padding=padding, data_format=data_format,
                         dilation_rate=dilation_rate, activation=activation, use_bias=use_bias,
                         bias_initializer=bias_initializer, bias_regularizer=bias_regularizer, bias_constraint=bias_constraint, **kwargs)
        self.depth_multiplier = check_positive(type(self).__name__, "depth_multiplier", depth_multiplier)
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.depthwise_regularizer = regularizers.get(depthwise_regularizer)
        self.depthwise_constraint = constraints.get(depthwise_constraint)

    def _output_channels(self, channels: int | None) -> int | None:
        return None if channels is None else channels * self.depth_multiplier

    def build(self, input_shape: Shape) -> None:
        channels = self._begin_build(input_shape)
        add_depthwise(self, "weight", channels)
        self._add_bias(channels * self.depth_multiplier)

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self._padded(x)
        return self.activation(F.conv2d(x, self.weight, self.bias, self.strides, padding, self.dilation_rate, x.shape[1]))


@registry.register("SeparableConvolution2D")
class SeparableConv2D(BaseConv):
    """A depthwise convolution, then a 1×1 convolution that mixes the channels (Chollet 2017).

    Args:
        filters: number of output channels.
        kernel_size, strides: a number or (vertical, horizontal).
        padding: "valid" or "same".
        data_format: None or "channels_last".
        dilation_rate: distance of the kernel's elements.
        depth_multiplier: number of depthwise kernels for each channel.
        activation: name or function; None is linear.
        use_bias: whether there is a bias.
        depthwise_initializer, pointwise_initializer, bias_initializer: names or objects.
        depthwise_regularizer, pointwise_regularizer, bias_regularizer, activity_regularizer: names or objects.
        depthwise_constraint, pointwise_constraint, bias_constraint: applied after each update; names or objects.

    Raises:
        ArgumentError: a value is out of range.
        ShapeError: an input has the wrong rank or number of channels, or is smaller than the window.

    Shapes: (batch, height, width, channels) → (batch, new height, new width, filters).
    Keras counterpart: `keras.layers.SeparableConv2D`; PyTorch's: two `torch.nn.Conv2d`.
    """

    depthwise_weight: nn.Parameter
    pointwise_weight: nn.Parameter

    def __init__(self, filters: int, kernel_size: int | Sequence[int], strides: int | Sequence[int] = 1, padding: str = "valid",
                 data_format: str | None = None, dilation_rate: int | Sequence[int] = 1, depth_multiplier: int = 1,
                 activation: Any = None, use_bias: bool = True, depthwise_initializer: Any = "glorot_uniform",
                 pointwise_initializer: Any = "glorot_uniform", bias_initializer: Any = "zeros",
                 depthwise_regularizer: Any = None, pointwise_regularizer: Any = None, bias_regularizer: Any = None,
                 depthwise_constraint: Any = None, pointwise_constraint: Any = None, bias_constraint: Any = None,
                 **kwargs: Any) -> None:
        super().__init__(kernel_size=kernel_size, strides=strides, padding=padding, data_format=data_format,
                         dilation_rate=dilation_rate, activation=activation, use_bias=use_bias,
                         bias_initializer=bias_initializer, bias_regularizer=bias_regularizer, bias_constraint=bias_constraint, **kwargs)
        kind = type(self).__name__
        self.filters = check_positive(kind, "filters", filters)
        self.depth_multiplier = check_positive(kind, "depth_multiplier", depth_multiplier)
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.pointwise_initializer = initializers.get(pointwise_initializer)
        self.depthwise_regularizer = regularizers.get(depthwise_regularizer)
        self.depthwise_constraint = constraints.get(depthwise_constraint)
        self.pointwise_regularizer = regularizers.get(pointwise_regularizer)
        self.pointwise_constraint = constraints.get(pointwise_constraint)

    def build(self, input_shape: Shape) -> None:
        channels = self._begin_build(input_shape)
        add_depthwise(self, "depthwise_weight", channels)
        self.add_weight((1, 1, channels * self.depth_multiplier, self.filters), self.pointwise_initializer,
                        name="pointwise_weight", regularizer=self.pointwise_regularizer, constraint=self.pointwise_constraint,
                        axes=(3, 2, 0, 1))
        self._add_bias(self.filters)

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self._padded(x)
        y = F.conv2d(x, self.depthwise_weight, None, self.strides, padding, self.dilation_rate, x.shape[1])
        return self.activation(F.conv2d(y, self.pointwise_weight, self.bias))


def add_depthwise(layer: DepthwiseConv2D | SeparableConv2D, name: str, channels: int) -> None:
    """Makes a depthwise kernel, (height, width, C, M) in Keras, as PyTorch's grouped kernel (C·M, 1, height, width)."""
    depth = layer.depth_multiplier
    layer.add_weight((*layer.kernel_size, channels, depth), layer.depthwise_initializer, name=name,
                     regularizer=layer.depthwise_regularizer, constraint=layer.depthwise_constraint, axes=(2, 3, 0, 1),
                     torch_shape=(channels * depth, 1, *layer.kernel_size))


SeparableConvolution2D = SeparableConv2D
