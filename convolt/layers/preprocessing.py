"""Layers that bring raw data into the range in which networks learn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, StateError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label
from convolt.layout import Shape, inside_axis, to_inside, to_outside

SMALLEST_STDDEV = 1e-7
"""Axes that vary less than this are not scaled up further (Keras's `epsilon`)."""

ADAPT_CHUNK = 1024
"""Samples of an array that `adapt` reads at once, which bounds its memory."""


def as_float(x: Tensor) -> Tensor:
    """Returns whole numbers as the default floating type, and floats as they are."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


@registry.register()
class Rescaling(Layer):
    """`x · scale + offset`: `Rescaling(1 / 255)` brings pixels to 0 … 1, `Rescaling(1 / 127.5, offset=-1)` to -1 … 1.

    Args:
        scale, offset: numbers, or one per channel.

    Shapes: any; the output's is the input's. Whole numbers become floats.
    Keras counterpart: `keras.layers.Rescaling`.
    """

    _scale: Tensor
    _offset: Tensor

    supports_masking = True

    def __init__(self, scale: Any, offset: Any = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = _number_or_array("scale", scale)
        self.offset = _number_or_array("offset", offset)

    def build(self, input_shape: Shape) -> None:
        for argument, value in (("scale", self.scale), ("offset", self.offset)):
            if isinstance(value, list):
                values = torch.tensor(value, dtype=torch.get_default_dtype())
                axes_missing = len(input_shape) - values.ndim
                fits = all(v in (1, s) for v, s in zip(values.shape, input_shape[axes_missing:], strict=False))
                if axes_missing < 0 or not fits:
                    raise ShapeError(explain(f"{label(self)} ({argument})", f"{tuple(values.shape)} numbers",
                                             f"a number, or as many as the input of shape {tuple(input_shape)} has channels"))
                values = to_inside(values.reshape(*[1] * axes_missing, *values.shape))
                self.register_buffer(f"_{argument}", values, persistent=False)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        scale = self._scale if isinstance(self.scale, list) else self.scale
        offset = self._offset if isinstance(self.offset, list) else self.offset
        scaled: Tensor = as_float(x) * scale
        return scaled if isinstance(offset, float) and offset == 0 else scaled + offset


def _number_or_array(argument: str, value: Any) -> float | list[Any]:
    """Returns a float, or nested lists of them."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ArgumentError(explain(f"Rescaling({argument})", repr(value), "a finite number, or one per channel"))
    return float(array) if array.ndim == 0 else array.astype(float).tolist()


@registry.register()
class Normalization(Layer):
    """`(x - mean) / sqrt(variance)`, with statistics that are given or learned from data by `adapt`.

    Args:
        axis: the axis or axes along which each index has its own statistics, channels by default; None for one mean
            and one variance over everything.
        mean, variance: numbers, or arrays that can be broadcast to the sizes of the axes; both or none.
        invert: undo the normalization: `x · sqrt(variance) + mean`.

    Shapes: any; the output's is the input's.
    Keras counterpart: `keras.layers.Normalization`.
    """

    adapt_mean: Tensor
    adapt_variance: Tensor

    supports_masking = True

    def __init__(self, axis: int | Sequence[int] | None = -1, mean: Any = None, variance: Any = None, invert: bool = False,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        self.input_mean = mean
        self.input_variance = variance
        self.invert = invert
        if (mean is None) != (variance is None):
            raise ArgumentError(explain("Normalization(mean, variance)", f"mean={mean}, variance={variance}", "both or none"))
        if np.shape(mean) != np.shape(variance) or len(np.shape(mean)) > len(self.axis):
            raise ArgumentError(explain("Normalization(mean, variance)", f"shapes {np.shape(mean)} and {np.shape(variance)}",
                                        f"the same shape, with up to {len(self.axis)} axes (as many as `axis` names)"))

    def _arguments(self) -> dict[str, Any]:
        """Returns `mean` and `variance` as they were given; the attributes of these names hold what is in use."""
        return {**super()._arguments(), "mean": self.input_mean, "variance": self.input_variance}

    def build(self, input_shape: Shape) -> None:
        ndim = len(input_shape)
        for axis in self.axis:
            inside_axis(axis, ndim)
        self._kept_axes = sorted(axis % ndim for axis in self.axis)
        self._broadcast_shape: list[int] = []
        for axis, size in enumerate(input_shape):
            if axis in self._kept_axes and size is None:
                raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", f"a known size of axis {axis}"))
            self._broadcast_shape.append(size if axis in self._kept_axes and size is not None else 1)
        sizes = [self._broadcast_shape[axis] for axis in self._kept_axes]
        if self.input_mean is None:
            self.add_weight(sizes, "zeros", trainable=False, name="adapt_mean")
            self.add_weight(sizes, "ones", trainable=False, name="adapt_variance")
            self.add_weight((), "zeros", dtype=torch.int32, trainable=False, name="count")  # Keras's files have it
        else:
            for name, value in (("adapt_mean", self.input_mean), ("adapt_variance", self.input_variance)):
                self.register_buffer(name, self._given(value, sizes), persistent=False)

    def _given(self, value: Any, sizes: list[int]) -> Tensor:
        values = torch.tensor(np.asarray(value), dtype=torch.get_default_dtype(), device=torch.get_default_device())
        if any(v not in (1, s) for v, s in zip(reversed(values.shape), reversed(sizes), strict=False)):
            raise ShapeError(explain(f"{label(self)} (mean, variance)", f"shape {tuple(values.shape)}",
                                     f"one that fits {tuple(sizes)}"))
        return values.expand(sizes).contiguous()

    @property
    def mean(self) -> Tensor | None:
        """The mean in use, broadcastable to channels-last data; None before the layer is built."""
        return self.adapt_mean.reshape(self._broadcast_shape) if self.built else None

    @property
    def variance(self) -> Tensor | None:
        """The variance in use, broadcastable to channels-last data; None before the layer is built."""
        return self.adapt_variance.reshape(self._broadcast_shape) if self.built else None

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        mean = to_inside(self.adapt_mean.reshape(self._broadcast_shape))
        stddev = to_inside(self.adapt_variance.reshape(self._broadcast_shape)).sqrt().clamp(min=SMALLEST_STDDEV)
        return as_float(x) * stddev + mean if self.invert else (as_float(x) - mean) / stddev

    def adapt(self, data: Any) -> None:
        """Learns mean and variance from data, in place of what was learned before.

        Args:
            data: NumPy array (channels last), tensor (channels at index 1), or an iterable of batches of either, or of
                tuples that begin with one. Sums are made in float64.

        Raises:
            ArgumentTypeError: the data is something else.
            DataError: there is no data, or it has NaN or infinity.
            ShapeError: a batch has other sizes along the kept axes.
            StateError: mean and variance were given to the constructor.
        """
        if self.input_mean is not None:
            raise StateError(explain(f"{label(self)}.adapt", "a layer with mean and variance", "one without",
                                     "Leave them out of the constructor."))
        count, mean, variance = 0, np.zeros(()), np.zeros(())
        for batch in self._batches(data):
            self.ensure_built((None, *batch.shape[1:]) if 0 not in [a % batch.ndim for a in self.axis] else batch.shape)
            self._check_batch(batch)
            reduced = tuple(axis for axis in range(batch.ndim) if axis not in self._kept_axes)
            weight = math.prod(batch.shape[axis] for axis in reduced)
            batch_mean, batch_variance = batch.mean(axis=reduced), batch.var(axis=reduced)
            count += weight  # Chan, Golub & LeVeque 1979: means and variances of parts make those of the whole
            share = weight / count
            variance = variance * (1 - share) + batch_variance * share + (batch_mean - mean) ** 2 * share * (1 - share)
            mean = mean + (batch_mean - mean) * share
        if count == 0:
            raise DataError(explain(f"{label(self)}.adapt", "no data", "at least one sample"))
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise DataError(explain(f"{label(self)}.adapt", "data with NaN or infinity", "finite values"))
        self.adapt_mean.copy_(torch.as_tensor(mean))
        self.adapt_variance.copy_(torch.as_tensor(variance))

    def _check_batch(self, batch: np.ndarray[Any, Any]) -> None:
        if batch.ndim != len(self._broadcast_shape) or any(batch.shape[a] != self._broadcast_shape[a] for a in self._kept_axes):
            wanted = tuple(size if axis in self._kept_axes else None for axis, size in enumerate(self._broadcast_shape))
            raise ShapeError(explain(f"{label(self)}.adapt", f"data of shape {batch.shape}",
                                     f"shape {wanted}, None being any size"))

    def _batches(self, data: Any) -> Iterator[np.ndarray[Any, Any]]:
        """Yields channels-last float64 arrays, of bounded size where the data is one array."""
        if isinstance(data, tuple):
            data = data[0]
        if isinstance(data, Tensor):
            data = to_outside(data.detach()).cpu().numpy()
        if isinstance(data, np.ndarray):
            keeps_batch = any(axis % max(1, data.ndim) == 0 for axis in self.axis)
            step = max(1, len(data)) if keeps_batch else ADAPT_CHUNK
            for start in range(0, len(data), step):
                yield data[start:start + step].astype(np.float64)
        elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
            for batch in data:
                if not isinstance(batch, (np.ndarray, Tensor, tuple)):
                    raise ArgumentTypeError(explain(f"{label(self)}.adapt", f"batches of {type(batch).__name__}",
                                                    "arrays or tensors"))
                yield from self._batches(batch)
        else:
            raise ArgumentTypeError(explain(f"{label(self)}.adapt", type(data).__name__,
                                            "an array, a tensor or an iterable of batches"))
