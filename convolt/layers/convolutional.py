"""Convolutions.

One base holds what all share (window, padding, bias, activation); each class adds its kernel. Weights are kept as
PyTorch keeps them (`weight`, `bias`) and travel in Keras's order and axes through `get_weights` and `set_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import activations, constraints, initializers, regularizers
from convolt.devices import lacks_bfloat16
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.arguments import check_positive, one_of, tuple_of
from convolt.layers.base import Layer, registry
from convolt.layers.windows import (
    channels_last_only,
    check_tensor,
    documented_like,
    extent,
    known_channels,
    label,
    same_padding,
    window_sizes,
)
from convolt.layout import Shape

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""PyTorch's convolution by number of space axes."""


class BaseConv(Layer):
    """What all convolutions share: the window's arguments, their checks, padding, bias and activation."""

    rank: ClassVar[int] = 2
    paddings: ClassVar[Sequence[str]] = ("valid", "same")
    strides_exclude_dilation: ClassVar[bool] = False

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, *, kernel_size: int | Sequence[int], strides: int | Sequence[int], padding: str, data_format: str | None,
                 dilation_rate: int | Sequence[int], activation: Any, use_bias: bool, bias_initializer: Any,
                 bias_regularizer: Any, bias_constraint: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kind = type(self).__name__
        self.kernel_size = tuple_of(kind, "kernel_size", kernel_size, self.rank)
        self.strides = tuple_of(kind, "strides", strides, self.rank)
        self.padding = one_of(kind, "padding", padding, self.paddings)
        self.data_format = channels_last_only(kind, data_format)
        self.dilation_rate = tuple_of(kind, "dilation_rate", dilation_rate, self.rank)
        if self.strides_exclude_dilation and max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ArgumentError(explain(f"{kind}(strides, dilation_rate)", f"{self.strides} and {self.dilation_rate}",
                                        "at most one of them above 1, as in Keras"))
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.bias_initializer = initializers.get(bias_initializer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.bias_constraint = constraints.get(bias_constraint)
        self._extent = extent(self.kernel_size, self.dilation_rate)
        self._channels: int | None = None

    def _begin_build(self, input_shape: Shape) -> int:
        """Checks the input's shape and returns its number of channels."""
        channels = known_channels(self, input_shape, self.rank)
        self.compute_output_shape(input_shape)
        self._channels = channels
        return channels

    def _add_bias(self, count: int) -> None:
        if self.use_bias:
            self.add_weight((count,), self.bias_initializer, regularizer=self.bias_regularizer, constraint=self.bias_constraint,
                            name="bias")
        else:
            self.bias = None

    def _output_channels(self, channels: int | None) -> int | None:
        """Returns the number of output channels for an input with `channels`."""
        filters: int = self.filters  # type: ignore[assignment]  # every class but DepthwiseConv2D has it
        return filters

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        sizes = window_sizes(self, input_shape, self._extent, self.strides, self.padding)
        return (input_shape[0], *sizes, self._output_channels(input_shape[-1]))

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Returns the input and the padding that PyTorch's convolution adds by itself.

        A symmetric padding is left to the convolution, which needs no copy for it; else the input is padded here.
        """
        check_tensor(self, x, self.rank, self._channels)
        sizes = x.shape[2:]
        if self.padding == "same":
            sides = [same_padding(*axis) for axis in zip(sizes, self._extent, self.strides, strict=True)]
        elif self.padding == "causal":
            sides = [(self._extent[0] - 1, 0)]
        else:
            window_sizes(self, (x.shape[0], *sizes, x.shape[1]), self._extent, self.strides, self.padding)
            sides = [(0, 0)] * self.rank
        if all(before == after for before, after in sides):
            return x, tuple(before for before, _ in sides)
        return F.pad(x, [side for axis in reversed(sides) for side in axis]), (0,) * self.rank


class _Conv(BaseConv):
    """A convolution with `filters` kernels; `rank` says over how many axes.

    Args:
        filters: number of output channels.
        kernel_size: of the window, a number or one per axis.
        strides: of the window, a number or one per axis.
        padding: "valid" (none) or "same" (output size = input size / stride, rounded up; an odd zero goes to the end).
        data_format: None or "channels_last".
        dilation_rate: distance of the kernel's elements; above 1 excludes strides above 1.
        groups: input and output channels are split into so many groups that do not see each other.
        activation: name or function; None is linear.
        use_bias: whether there is a bias.
        kernel_initializer, bias_initializer: names or objects.
        kernel_regularizer, bias_regularizer, activity_regularizer: names or objects.
        kernel_constraint, bias_constraint: applied after each update; names or objects.

    Raises:
        ArgumentError: a value is out of range, or `filters` is no multiple of `groups`.
        ShapeError: an input has the wrong rank or number of channels, or is smaller than the window.
    """

    strides_exclude_dilation = True

    def __init__(self, filters: int, kernel_size: int | Sequence[int], strides: int | Sequence[int] = 1, padding: str = "valid",
                 data_format: str | None = None, dilation_rate: int | Sequence[int] = 1, groups: int = 1, activation: Any = None,
                 use_bias: bool = True, kernel_initializer: Any = "glorot_uniform", bias_initializer: Any = "zeros",
                 kernel_regularizer: Any = None, bias_regularizer: Any = None, kernel_constraint: Any = None,
                 bias_constraint: Any = None, **kwargs: Any) -> None:
        super().__init__(kernel_size=kernel_size, strides=strides, padding=padding, data_format=data_format,
                         dilation_rate=dilation_rate, activation=activation, use_bias=use_bias,
                         bias_initializer=bias_initializer, bias_regularizer=bias_regularizer, bias_constraint=bias_constraint, **kwargs)
        kind = type(self).__name__
        self.filters = check_positive(kind, "filters", filters)
        self.groups = check_positive(kind, "groups", groups)
        if self.filters % self.groups:
            raise ArgumentError(explain(f"{kind}(filters, groups)", f"{filters} filters in {groups} groups",
                                        "a number of filters that the number of groups divides"))
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)

    def build(self, input_shape: Shape) -> None:
        channels = self._begin_build(input_shape)
        if channels % self.groups:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)} with {channels} channels",
                                     f"a number of channels that groups={self.groups} divides"))
        space = range(self.rank)
        self.add_weight((*self.kernel_size, channels // self.groups, self.filters), self.kernel_initializer, name="weight",
                        regularizer=self.kernel_regularizer, constraint=self.kernel_constraint,
                        axes=(self.rank + 1, self.rank, *space))
        self._add_bias(self.filters)

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the convolution alone, without the activation."""
        x, padding = self._padded(x)
        return CONVOLVE[self.rank](x, self.weight, bias, self.strides, padding, self.dilation_rate, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.convolve(x, self.bias))


@registry.register("Convolution1D")
@documented_like(_Conv)
class Conv1D(_Conv):
    """Convolution over sequences; also takes `padding="causal"`: output t sees inputs up to t alone.

    Shapes: (batch, length, channels) → (batch, new length, filters).
    Keras counterpart: `keras.layers.Conv1D`; PyTorch's: `torch.nn.Conv1d`.
    """

    rank = 1
    paddings = ("valid", "same", "causal")


@registry.register("Convolution2D")
@documented_like(_Conv)
class Conv2D(_Conv):
    """Convolution over images.

    Shapes: (batch, height, width, channels) → (batch, new height, new width, filters).
    Keras counterpart: `keras.layers.Conv2D`; PyTorch's: `torch.nn.Conv2d`.
    """

    rank = 2


@registry.register("Convolution3D")
@documented_like(_Conv)
class Conv3D(_Conv):
    """Convolution over volumes or clips.

    Shapes: (batch, depth, height, width, channels) → (batch, new depth, new height, new width, filters).
    Keras counterpart: `keras.layers.Conv3D`; PyTorch's: `torch.nn.Conv3d`.
    """

    rank = 3


@registry.register("Convolution2DTranspose")
class Conv2DTranspose(BaseConv):
    """Transposed convolution: the gradient of a `Conv2D` with respect to its input, used to enlarge images.

    Args:
        filters: number of output channels.
        kernel_size, strides: a number or (vertical, horizontal).
        padding: "valid" (size (n-1)·stride + max(kernel, stride)) or "same" (size n·stride).
        output_padding: rows and columns added at the end, below `strides`; None is the size given above.
        data_format: None or "channels_last".
        dilation_rate: distance of the kernel's elements; above 1 excludes strides above 1.
        activation: name or function; None is linear.
        use_bias: whether there is a bias.
        kernel_initializer, bias_initializer: names or objects.
        kernel_regularizer, bias_regularizer, activity_regularizer: names or objects.
        kernel_constraint, bias_constraint: applied after each update; names or objects.

    Raises:
        ArgumentError: a value is out of range.
        ShapeError: an input has the wrong rank or number of channels.

    Shapes: (batch, height, width, channels) → (batch, new height, new width, filters).
    Keras counterpart: `keras.layers.Conv2DTranspose`; PyTorch's: `torch.nn.ConvTranspose2d`, whose symmetric padding
    with `output_padding` covers some of Keras's paddings alone; in the others a surplus row or column is cut off.
    """

    strides_exclude_dilation = True

    def __init__(self, filters: int, kernel_size: int | Sequence[int], strides: int | Sequence[int] = 1, padding: str = "valid",
                 output_padding: int | Sequence[int] | None = None, data_format: str | None = None,
                 dilation_rate: int | Sequence[int] = 1, activation: Any = None, use_bias: bool = True,
                 kernel_initializer: Any = "glorot_uniform", bias_initializer: Any = "zeros", kernel_regularizer: Any = None,
                 bias_regularizer: Any = None, kernel_constraint: Any = None, bias_constraint: Any = None, **kwargs: Any) -> None:
        super().__init__(kernel_size=kernel_size, strides=strides, padding=padding, data_format=data_format,
                         dilation_rate=dilation_rate, activation=activation, use_bias=use_bias,
                         bias_initializer=bias_initializer, bias_regularizer=bias_regularizer, bias_constraint=bias_constraint, **kwargs)
        kind = type(self).__name__
        self.filters = check_positive(kind, "filters", filters)
        self.output_padding = None if output_padding is None else tuple_of(kind, "output_padding", output_padding, 2, minimum=0)
        if any(extra >= stride for extra, stride in zip(self.output_padding or (0, 0), self.strides, strict=True)):
            raise ArgumentError(explain(f"{kind}(output_padding)", self.output_padding, f"less than strides={self.strides}"))
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self._crops = [self._crop(axis) for axis in range(2)]

    def build(self, input_shape: Shape) -> None:
        channels = self._begin_build(input_shape)
        self.add_weight((*self.kernel_size, self.filters, channels), self.kernel_initializer, name="weight",
                        regularizer=self.kernel_regularizer, constraint=self.kernel_constraint, axes=(3, 2, 0, 1))
        self._add_bias(self.filters)

    def _crop(self, axis: int) -> tuple[int, int]:
        """Returns how much of the full result, of size (n-1)·stride + extent, Keras drops before and after.

        A negative number is added, with the bias alone in it.
        """
        reach, stride = self._extent[axis], self.strides[axis]
        extra = None if self.output_padding is None else self.output_padding[axis]
        if self.padding == "valid":
            return 0, -(max(reach, stride) - reach if extra is None else extra)
        size_at_one = stride if extra is None else reach % 2 + extra  # output size for an input of one row
        kept = size_at_one + reach - 2
        before = min(kept - kept // 2, reach - 1)
        return reach - 1 - before, reach - 1 - (kept - before)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        sizes = [None if size is None else (size - 1) * stride + reach - sum(crop) for size, stride, reach, crop
                 in zip(input_shape[1:-1], self.strides, self._extent, self._crops, strict=True)]
        return (input_shape[0], *sizes, self.filters)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, 2, self._channels)
        padding = [before for before, _ in self._crops]
        added = [max(before - after, 0) for before, after in self._crops]
        arguments = (self.strides, padding, added, 1, self.dilation_rate)
        if lacks_bfloat16(x):  # PyTorch's own loop would round each of the sums that meet in a pixel
            with torch.autocast("cpu", enabled=False):
                bias = None if self.bias is None else self.bias.float()
                y = F.conv_transpose2d(x.float(), self.weight.float(), bias, *arguments).bfloat16()
        else:
            y = F.conv_transpose2d(x, self.weight, self.bias, *arguments)
        for axis, (before, after) in enumerate(self._crops, start=2):
            if after > before:
                y = y.narrow(axis, 0, y.shape[axis] - (after - before))
        return self.activation(y)


Convolution1D = Conv1D
Convolution2D = Conv2D
Convolution3D = Conv3D
Convolution2DTranspose = Conv2DTranspose
