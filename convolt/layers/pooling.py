"""Pooling: the largest or the mean value of each window, or of the whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.layers.arguments import check_rank, one_of, tuple_of
from convolt.layers.base import Layer, registry
from convolt.layers.windows import channels_last_only, check_tensor, documented_like, same_padding, window_sizes
from convolt.layout import Shape

MAXIMUM: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Pooling(Layer):
    """Reduces each window of `rank` axes to one value for each channel.

    Args:
        pool_size: of the window, a number or one per axis.
        strides: of the window, a number or one per axis; None is `pool_size`.
        padding: "valid" (windows that do not fit are dropped) or "same" (output size = input size / stride, rounded up).
        data_format: None or "channels_last".

    Raises:
        ArgumentError: a value is out of range.
        ShapeError: an input has the wrong rank or is smaller than the window.
    """

    rank: ClassVar[int]

    def __init__(self, pool_size: int | Sequence[int], strides: int | Sequence[int] | None = None, padding: str = "valid",
                 data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kind = type(self).__name__
        self.pool_size = tuple_of(kind, "pool_size", pool_size, self.rank)
        self.strides = self.pool_size if strides is None else tuple_of(kind, "strides", strides, self.rank)
        self.padding = one_of(kind, "padding", padding, ("valid", "same"))
        self.data_format = channels_last_only(kind, data_format)

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, self.rank + 2)
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], *window_sizes(self, input_shape, self.pool_size, self.strides, self.padding), input_shape[-1])

    def _pool(self, x: Tensor, padding: Sequence[int], ceil_mode: bool) -> Tensor:
        """Pools with PyTorch's symmetric padding; `ceil_mode` keeps windows that reach over the end."""
        raise TypeError(f"{type(self).__name__} defines no _pool")

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, self.rank)
        if self.padding == "valid":
            window_sizes(self, (x.shape[0], *x.shape[2:], x.shape[1]), self.pool_size, self.strides, self.padding)
            return self._pool(x, (0,) * self.rank, False)
        return self._pool_same(x)

    def _pool_same(self, x: Tensor) -> Tensor:
        """Pools under "same" without padding a copy of the input.

        Where one element more belongs after than before, a stride above 1 lets the last window reach over the end
        (`ceil_mode`); with stride 1 both sides get the larger padding and the surplus first output is dropped.
        Padding counts neither as a value nor in the divisor of a mean.
        """
        padding, surplus = [], []
        for axis, (window, stride) in enumerate(zip(self.pool_size, self.strides, strict=True), start=2):
            before, after = same_padding(x.shape[axis], window, stride)
            drop = after > before and stride == 1
            padding.append(after if drop else before)
            if drop:
                surplus.append(axis)
        y = self._pool(x, padding, True)
        for axis in surplus:
            y = y.narrow(axis, 1, y.shape[axis] - 1)
        return y


class _MaxPooling(_Pooling):
    """The largest value of each window."""

    def __init__(self, pool_size: int | Sequence[int] = 2, strides: int | Sequence[int] | None = None, padding: str = "valid",
                 data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(pool_size, strides, padding, data_format, **kwargs)

    def _pool(self, x: Tensor, padding: Sequence[int], ceil_mode: bool) -> Tensor:
        if self.rank == 1 and self.training:  # the kernel for gradients also where none is wanted: one that a recorder of operations sees
            values: Tensor = F.max_pool1d_with_indices(x, self.pool_size, self.strides, padding, 1, ceil_mode)[0]  # type: ignore[arg-type]
            return values
        return MAXIMUM[self.rank](x, self.pool_size, self.strides, padding, 1, ceil_mode)


class _AveragePooling(_Pooling):
    """The mean of each window."""

    def _pool(self, x: Tensor, padding: Sequence[int], ceil_mode: bool) -> Tensor:
        return MEAN[self.rank](x, self.pool_size, self.strides, padding, ceil_mode, False)


class _GlobalPooling(Layer):
    """Reduces all positions to one value for each channel.

    Args:
        data_format: None or "channels_last".
        keepdims: whether the reduced axes stay, with size 1.

    Raises:
        ShapeError: an input has the wrong rank.
    """

    rank: ClassVar[int]

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_format = channels_last_only(type(self).__name__, data_format)
        self.keepdims = keepdims

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, self.rank + 2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], *((1,) * self.rank if self.keepdims else ()), input_shape[-1])

    def _reduce(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no _reduce")

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, self.rank)
        return self._reduce(x, tuple(range(2, x.ndim)))


class _GlobalMaxPooling(_GlobalPooling):
    """The largest value of each channel."""

    def _reduce(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return x.amax(axes, keepdim=self.keepdims)


class _GlobalAveragePooling(_GlobalPooling):
    """The mean of each channel."""

    def _reduce(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return x.mean(axes, keepdim=self.keepdims)


@registry.register("MaxPool1D")
@documented_like(_Pooling)
class MaxPooling1D(_MaxPooling):
    """Largest value of each window over sequences.

    Shapes: (batch, length, channels) → (batch, new length, channels).
    Keras counterpart: `keras.layers.MaxPooling1D`; PyTorch's: `torch.nn.MaxPool1d`.
    """

    rank = 1


@registry.register("MaxPool2D")
@documented_like(_Pooling)
class MaxPooling2D(_MaxPooling):
    """Largest value of each window over images.

    Shapes: (batch, height, width, channels) → (batch, new height, new width, channels).
    Keras counterpart: `keras.layers.MaxPooling2D`; PyTorch's: `torch.nn.MaxPool2d`.
    """

    rank = 2


@registry.register("MaxPool3D")
@documented_like(_Pooling)
class MaxPooling3D(_MaxPooling):
    """Largest value of each window over volumes or clips.

    Shapes: (batch, depth, height, width, channels) → (batch, new depth, new height, new width, channels).
    Keras counterpart: `keras.layers.MaxPooling3D`; PyTorch's: `torch.nn.MaxPool3d`.
    """

    rank = 3


@registry.register("AvgPool1D")
@documented_like(_Pooling)
class AveragePooling1D(_AveragePooling):
    """Mean of each window over sequences.

    Shapes: (batch, length, channels) → (batch, new length, channels).
    Keras counterpart: `keras.layers.AveragePooling1D`; PyTorch's: `torch.nn.AvgPool1d`.
    """

    rank = 1


@registry.register("AvgPool2D")
@documented_like(_Pooling)
class AveragePooling2D(_AveragePooling):
    """Mean of each window over images.

    Shapes: (batch, height, width, channels) → (batch, new height, new width, channels).
    Keras counterpart: `keras.layers.AveragePooling2D`; PyTorch's: `torch.nn.AvgPool2d`.
    """

    rank = 2


@registry.register("AvgPool3D")
@documented_like(_Pooling)
class AveragePooling3D(_AveragePooling):
    """Mean of each window over volumes or clips.

    Shapes: (batch, depth, height, width, channels) → (batch, new depth, new height, new width, channels).
    Keras counterpart: `keras.layers.AveragePooling3D`; PyTorch's: `torch.nn.AvgPool3d`.
    """

    rank = 3


@registry.register("GlobalMaxPool1D")
@documented_like(_GlobalPooling)
class GlobalMaxPooling1D(_GlobalMaxPooling):
    """Largest value of each channel over sequences.

    Shapes: (batch, length, channels) → (batch, channels), or (batch, 1, channels) with `keepdims`.
    Keras counterpart: `keras.layers.GlobalMaxPooling1D`.
    """

    rank = 1


@registry.register("GlobalMaxPool2D")
@documented_like(_GlobalPooling)
class GlobalMaxPooling2D(_GlobalMaxPooling):
    """Largest value of each channel over images.

    Shapes: (batch, height, width, channels) → (batch, channels), or (batch, 1, 1, channels) with `keepdims`.
    Keras counterpart: `keras.layers.GlobalMaxPooling2D`.
    """

    rank = 2


@registry.register("GlobalMaxPool3D")
@documented_like(_GlobalPooling)
class GlobalMaxPooling3D(_GlobalMaxPooling):
    """Largest value of each channel over volumes or clips.

    Shapes: (batch, depth, height, width, channels) → (batch, channels), or (batch, 1, 1, 1, channels) with `keepdims`.
    Keras counterpart: `keras.layers.GlobalMaxPooling3D`.
    """

    rank = 3


@registry.register("GlobalAvgPool1D")
@documented_like(_GlobalPooling)
class GlobalAveragePooling1D(_GlobalAveragePooling):
    """Mean of each channel over sequences; steps that a mask leaves out do not count.

    Shapes: (batch, length, channels) → (batch, channels), or (batch, 1, channels) with `keepdims`.
    Keras counterpart: `keras.layers.GlobalAveragePooling1D`.
    """

    rank = 1

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(x)
        counted = mask.bool().unsqueeze(1)  # (N, 1, steps)
        total = torch.where(counted, x, 0.0).sum(2, keepdim=self.keepdims)
        return total / counted.to(x.dtype).sum(2, keepdim=self.keepdims)

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Returns None: no steps are left."""


@registry.register("GlobalAvgPool2D")
@documented_like(_GlobalPooling)
class GlobalAveragePooling2D(_GlobalAveragePooling):
    """Mean of each channel over images.

    Shapes: (batch, height, width, channels) → (batch, channels), or (batch, 1, 1, channels) with `keepdims`.
    Keras counterpart: `keras.layers.GlobalAveragePooling2D`.
    """

    rank = 2


@registry.register("GlobalAvgPool3D")
@documented_like(_GlobalPooling)
class GlobalAveragePooling3D(_GlobalAveragePooling):
    """Mean of each channel over volumes or clips.

    Shapes: (batch, depth, height, width, channels) → (batch, channels), or (batch, 1, 1, 1, channels) with `keepdims`.
    Keras counterpart: `keras.layers.GlobalAveragePooling3D`.
    """

    rank = 3


MaxPool1D = MaxPooling1D
MaxPool2D = MaxPooling2D
MaxPool3D = MaxPooling3D
AvgPool1D = AveragePooling1D
AvgPool2D = AveragePooling2D
AvgPool3D = AveragePooling3D
GlobalMaxPool1D = GlobalMaxPooling1D
GlobalMaxPool2D = GlobalMaxPooling2D
GlobalMaxPool3D = GlobalMaxPooling3D
GlobalAvgPool1D = GlobalAveragePooling1D
GlobalAvgPool2D = GlobalAveragePooling2D
GlobalAvgPool3D = GlobalAveragePooling3D
