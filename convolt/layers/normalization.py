"""Normalization by the statistics of a batch, of a sample, or of groups of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import constraints, initializers, regularizers
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label
from convolt.layout import Shape, inside_axis, outside_shape, to_inside, to_outside


def check_number(layer: str, argument: str, value: Any, low: float, high: float = math.inf) -> float:
    """Returns `value` if it is a number from `low` to `high`, and raises `ArgumentError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        expected = f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else "")
        raise ArgumentError(explain(f"{layer}({argument})", repr(value), expected))
    return float(value)


MANY_BATCHES = 2**31 - 1
"""Count of the batches behind statistics that came from elsewhere: so many that what was before them counts for nothing."""


class _Affine(Layer):
    """What the normalizations share: the learned scale (`weight`, Keras's gamma) and shift (`bias`, Keras's beta)."""

    supports_masking = True

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def _keep_affine(self, epsilon: float, center: bool, scale: bool, beta_initializer: Any, gamma_initializer: Any,
                     beta_regularizer: Any, gamma_regularizer: Any, beta_constraint: Any, gamma_constraint: Any) -> None:
        self.epsilon = check_number(type(self).__name__, "epsilon", epsilon, 0.0)
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)

    def _build_affine(self, shape: Sequence[int]) -> None:
        if self.scale:
            self.add_weight(shape, self.gamma_initializer, regularizer=self.gamma_regularizer, constraint=self.gamma_constraint,
                            name="weight")
        else:
            self.register_parameter("weight", None)
        if self.center:
            self.add_weight(shape, self.beta_initializer, regularizer=self.beta_regularizer, constraint=self.beta_constraint,
                            name="bias")
        else:
            self.register_parameter("bias", None)

    def _known_size(self, input_shape: Shape, axis: int) -> int:
        """Returns the size of the axis, checks that it exists and is known."""
        inside_axis(axis, len(input_shape))
        size = input_shape[axis]
        if size is None:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", f"a known size of axis {axis}"))
        return size

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


@registry.register()
class BatchNormalization(_Affine):
    """Normalizes each channel by its mean and variance, of the batch in training and of the past in inference.

    In training, the running statistics follow those of the batch: `new = old + share · (batch - old)`, with the biased
    variance (divided by n, where PyTorch divides by n - 1). The share is `1 - momentum`, as in Keras, or with
    `bias_correction` that over `1 - momentum^t` in the t-th batch, as Adam corrects its moments: 1 for the first batch, so
    that the initial zeros and ones leave no trace. A frozen layer (`trainable=False`) runs in inference mode and keeps
    its statistics.

    Args:
        axis: the one that keeps its own statistics, channels by default.
        momentum: share of the past in the running statistics, 0 to 1 (PyTorch's `momentum` is the share of the batch).
        epsilon: added to the variance.
        center, scale: whether a learned shift and a learned scale follow.
        beta_initializer, gamma_initializer: of shift and scale; names or objects.
        moving_mean_initializer, moving_variance_initializer: of the running statistics.
        beta_regularizer, gamma_regularizer: names or objects.
        beta_constraint, gamma_constraint: applied after each update; names or objects.
        synchronized: must be False.
        bias_correction: whether the running statistics are those of the batches alone from the first one on. What is
            stored is the corrected value, which Keras and PyTorch use as it is; statistics that were set, to anything but
            0 and 1, count as those of many batches.

    Shapes: any with two axes or more; the output's is the input's.

    Raises:
        ShapeError: in training, when there is only one value per channel, which has no variance.
    Keras counterpart: `keras.layers.BatchNormalization`; PyTorch's: `torch.nn.BatchNorm2d`, whose names of parameters
    and buffers are used. Source: Ioffe & Szegedy 2015.
    """

    own_counts = frozenset({"num_batches_tracked"})
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, axis: int = -1, momentum: float = 0.99, epsilon: float = 1e-3, center: bool = True, scale: bool = True,
                 beta_initializer: Any = "zeros", gamma_initializer: Any = "ones", moving_mean_initializer: Any = "zeros",
                 moving_variance_initializer: Any = "ones", beta_regularizer: Any = None, gamma_regularizer: Any = None,
                 beta_constraint: Any = None, gamma_constraint: Any = None, synchronized: bool = False, bias_correction: bool = True,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keep_affine(epsilon, center, scale, beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer,
                          beta_constraint, gamma_constraint)
        self.axis = int(axis)
        self.momentum = check_number("BatchNormalization", "momentum", momentum, 0.0, 1.0)
        if synchronized:
            raise ArgumentError(explain("BatchNormalization(synchronized)", synchronized,
                                        "False, as with every backend of Keras but TensorFlow"))
        self.synchronized = synchronized
        self.bias_correction = bool(bias_correction)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) < 2:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", "two axes or more, the batch included"))
        if inside_axis(self.axis, len(input_shape)) == 0:
            raise ShapeError(explain(f"{label(self)} (axis)", self.axis, "an axis other than the batch"))
        size = self._known_size(input_shape, self.axis)
        self._build_affine((size,))
        self.add_weight((size,), self.moving_mean_initializer, trainable=False, name="running_mean")
        self.add_weight((size,), self.moving_variance_initializer, trainable=False, name="running_var")
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64) if self.bias_correction else None)
        self.weights_were_set()

    def weights_were_set(self) -> None:
        """Counts statistics from elsewhere as those of many batches; zeros and ones are no statistics."""
        if self.num_batches_tracked is not None:
            fresh = (self.running_mean == 0).all() & (self.running_var == 1).all()
            self.num_batches_tracked.copy_(torch.where(fresh, 0, MANY_BATCHES))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        axis = inside_axis(self.axis, x.ndim)
        if axis == 1:
            masked = mask is not None and self.training and self.trainable
            return self._normalize_counted(x, mask.bool()) if masked and mask is not None else self._normalize(x)
        return self._normalize(x.movedim(axis, 1)).movedim(1, axis)

    def _normalize_counted(self, x: Tensor, mask: Tensor) -> Tensor:
        """Training's normalization by the mean and variance of the steps that a mask, `(batch, steps)`, counts."""
        axes, shape, counted = [0, *range(2, x.ndim)], (1, -1, *(1,) * (x.ndim - 2)), mask.unsqueeze(1)
        count = counted.sum().to(x.dtype) + 1e-7  # as in Keras, where there may be none
        mean = torch.where(counted, x, 0.0).sum(axes) / count
        centred = x - mean.reshape(shape)
        variance = torch.where(counted, centred, 0.0).square().sum(axes) / count
        with torch.no_grad():
            share = self.next_share()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)
        y = centred * torch.rsqrt(variance + self.epsilon).reshape(shape)
        y = y if self.weight is None else y * self.weight.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)

    def next_share(self) -> float | Tensor:
        """Counts a batch and returns its share in the running statistics: a tensor if the count, on the device, decides."""
        if self.num_batches_tracked is None or self.momentum in (0.0, 1.0):
            return 1.0 - self.momentum
        self.num_batches_tracked.add_(1)
        seen = torch.expm1(self.num_batches_tracked * math.log(self.momentum))  # momentum^t - 1, exact also for small t
        return (self.momentum - 1.0) / seen.to(self.running_mean.dtype)

    def _normalize(self, x: Tensor) -> Tensor:
        if not (self.training and self.trainable):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.epsilon)
        count = x.numel() // max(1, x.shape[1])
        if count < 2:
            raise ShapeError(explain(
                f"{label(self)} in training", f"{count} value per channel (input of shape {outside_shape(x)})",
                "two or more, since one has no variance",
                "Use a larger batch, drop a last batch of one sample, or freeze the layer with trainable=False."))
        mean, unbiased_var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(x, mean, unbiased_var, self.weight, self.bias, training=True, momentum=1.0, eps=self.epsilon)
        with torch.no_grad():
            share = self.next_share()
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(unbiased_var * ((count - 1) / count), share)
        return y


@registry.register()
class LayerNormalization(_Affine):
    """Normalizes each sample over one axis or several.

    Args:
        axis: normalized together; channels alone by default, `(1, 2, 3)` for a whole image.
        epsilon: added to the variance.
        center, scale: whether a learned shift and a learned scale follow, each of the shape of the axes.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer: names or objects.

    Shapes: any; the output's is the input's.
    Keras counterpart: `keras.layers.LayerNormalization`; PyTorch's: `torch.nn.LayerNorm`. Source: Ba et al. 2016.
    """

    def __init__(self, axis: int | Sequence[int] = -1, epsilon: float = 1e-3, center: bool = True, scale: bool = True,
                 beta_initializer: Any = "zeros", gamma_initializer: Any = "ones", beta_regularizer: Any = None,
                 gamma_regularizer: Any = None, beta_constraint: Any = None, gamma_constraint: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keep_affine(epsilon, center, scale, beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer,
                          beta_constraint, gamma_constraint)
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        if not axes or any(isinstance(a, bool) or not isinstance(a, int) for a in axes):
            raise ArgumentError(explain("LayerNormalization(axis)", repr(axis), "a whole number or several"))
        self.axis = axis if isinstance(axis, int) else axes
        self._axes = axes

    def build(self, input_shape: Shape) -> None:
        sizes = {axis % len(input_shape): self._known_size(input_shape, axis) for axis in self._axes}
        self._build_affine([sizes[axis] for axis in sorted(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        axes = sorted({axis % x.ndim for axis in self._axes})
        last = list(range(x.ndim - len(axes), x.ndim))
        y = to_outside(x)  # in channels-last memory, this view makes channels, or the whole image, one run of memory
        y = y if axes == last else y.movedim(axes, last)
        y = F.layer_norm(y, y.shape[-len(axes):], self.weight, self.bias, self.epsilon)
        return to_inside(y if axes == last else y.movedim(last, axes))


@registry.register()
class GroupNormalization(_Affine):
    """Normalizes each sample over groups of channels and all of space.

    Args:
        groups: number of groups, a divisor of the number of channels; -1 for one per channel (instance normalization).
        axis: the one that is grouped, channels by default.
        epsilon: added to the variance.
        center, scale: whether a learned shift and a learned scale follow, one value per channel.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: names or
            objects.

    Shapes: any with two axes or more; the output's is the input's.

    Raises:
        ShapeError: the groups do not divide the channels.
    Keras counterpart: `keras.layers.GroupNormalization`; PyTorch's: `torch.nn.GroupNorm`. Source: Wu & He 2018.
    """

    def __init__(self, groups: int = 32, axis: int = -1, epsilon: float = 1e-3, center: bool = True, scale: bool = True,
                 beta_initializer: Any = "zeros", gamma_initializer: Any = "ones", beta_regularizer: Any = None,
                 gamma_regularizer: Any = None, beta_constraint: Any = None, gamma_constraint: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keep_affine(epsilon, center, scale, beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer,
                          beta_constraint, gamma_constraint)
        self.groups = -1 if groups == -1 else check_positive("GroupNormalization", "groups", groups)
        self.axis = int(axis)

    def build(self, input_shape: Shape) -> None:
        size = self._known_size(input_shape, self.axis)
        if inside_axis(self.axis, len(input_shape)) == 0:
            raise ShapeError(explain(f"{label(self)} (axis)", self.axis, "an axis other than the batch"))
        if self.groups != -1 and size % self.groups:
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            raise ShapeError(explain(f"{label(self)} (groups)", f"{self.groups} for {size} channels",
                                     f"a divisor of {size}, or -1", f"Divisors: {divisors}."))
        self._build_affine((size,))

    def forward(self, x: Tensor) -> Tensor:
        # Not torch.group_norm: on channels-last memory its CPU kernel loses digits where the mean is large (it subtracts
        # squares), and its CUDA kernel copies to channels-first.
        y = to_outside(x).movedim(self.axis, -1)
        channels = y.shape[-1]
        groups = channels if self.groups == -1 else self.groups
        split = y.reshape(y.shape[0], -1, groups, channels // groups).to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(split, dim=(1, 3), keepdim=True, correction=0)
        factor = torch.rsqrt(variance + self.epsilon)
        factor = factor if self.weight is None else factor * self.weight.view(groups, -1)
        normal = (split - mean) * factor if self.bias is None else torch.addcmul(self.bias.view(groups, -1), split - mean, factor)
        return to_inside(normal.to(x.dtype).reshape(y.shape).movedim(-1, self.axis))
