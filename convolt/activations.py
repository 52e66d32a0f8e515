"""Activation functions by name, with Keras's names, arguments and definitions.

Tensors have their channel axis at index 1 (see `convolt.layout`); an `axis` argument is the user's, channels last.
Keras counterpart: `keras.activations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.configurable import Registry
from convolt.errors import ArgumentTypeError, ShapeError, explain
from convolt.layout import channel_axis, inside_axis, outside_shape
from convolt.missing import explain_missing_names

Activation = Callable[..., Tensor]
registry: Registry[Activation] = Registry("activation")


@registry.register()
def linear(x: Tensor) -> Tensor:
    """Returns `x`."""
    return x


# -- rectifiers --------------------------------------------------------------------------------------------------------


@registry.register()
def relu(x: Tensor, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Tensor:
    """Returns `max(x, 0)` with the default arguments.

    Args:
        x: any tensor.
        negative_slope: below the threshold the result is `negative_slope · (x - threshold)`.
        max_value: largest result; None for no limit.
        threshold: values up to it do not pass.
    """
    if threshold == 0 and negative_slope == 0:
        return F.relu(x) if max_value is None else F.hardtanh(x, 0.0, max_value)
    if threshold == 0 and max_value is None:
        return F.leaky_relu(x, negative_slope)
    passed = F.threshold(x, threshold, 0.0)
    if max_value is not None:
        passed = passed.clamp(0.0, max_value)
    return passed if negative_slope == 0 else passed - negative_slope * F.relu(threshold - x)


@registry.register()
def relu6(x: Tensor) -> Tensor:
    """Returns `min(max(x, 0), 6)`."""
    return F.relu6(x)


@registry.register()
def leaky_relu(x: Tensor, negative_slope: float = 0.2) -> Tensor:
    """Returns `x` above zero and `negative_slope · x` below."""
    return F.leaky_relu(x, negative_slope)


@registry.register()
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Returns `x` above zero and `alpha · (exp(x) - 1)` below (Clevert et al. 2015)."""
    return F.elu(x, alpha)


@registry.register()
def selu(x: Tensor) -> Tensor:
    """Returns `1.0507 · elu(x, 1.6733)`, which keeps mean and variance (Klambauer et al. 2017)."""
    return F.selu(x)


@registry.register()
def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Returns `x` above zero and `alpha · (exp(x / alpha) - 1)` below (Barron 2017)."""
    return F.celu(x, alpha)


# -- smooth ones -------------------------------------------------------------------------------------------------------


@registry.register()
def gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """Returns `x · Φ(x)` (Hendrycks & Gimpel 2016); `approximate` replaces Φ by a formula with tanh."""
    return F.gelu(x, approximate="tanh" if approximate else "none")


@registry.register("swish")
def silu(x: Tensor) -> Tensor:
    """Returns `x · sigmoid(x)` (Ramachandran et al. 2017)."""
    return F.silu(x)


@registry.register()
def mish(x: Tensor) -> Tensor:
    """Returns `x · tanh(softplus(x))` (Misra 2019)."""
    return F.mish(x)


@registry.register()
def softplus(x: Tensor) -> Tensor:
    """Returns `log(1 + exp(x))`."""
    return F.softplus(x)


@registry.register()
def squareplus(x: Tensor, b: float = 4) -> Tensor:
    """Returns `(x + sqrt(x² + b)) / 2` (Barron 2021)."""
    larger = torch.sqrt(x.square() + b) + torch.where(x >= 0, x, -x)
    return torch.where(x >= 0, larger, b / larger) / 2  # below 0 the sum would cancel; this is the same number


@registry.register()
def softsign(x: Tensor) -> Tensor:
    """Returns `x / (1 + |x|)`."""
    return F.softsign(x)


@registry.register()
def tanh(x: Tensor) -> Tensor:
    """Returns the hyperbolic tangent."""
    return torch.tanh(x)


@registry.register()
def sigmoid(x: Tensor) -> Tensor:
    """Returns `1 / (1 + exp(-x))`.

    The result remembers `x` in its attribute `logits`, so that crossentropy can be computed on it with full precision.
    """
    return remember_logits(torch.sigmoid(x), x, "sigmoid")


@registry.register()
def log_sigmoid(x: Tensor) -> Tensor:
    """Returns `log(sigmoid(x))`."""
    return F.logsigmoid(x)


@registry.register()
def exponential(x: Tensor) -> Tensor:
    """Returns `exp(x)`."""
    return torch.exp(x)


# -- made of straight pieces -------------------------------------------------------------------------------------------


@registry.register()
def hard_sigmoid(x: Tensor) -> Tensor:
    """Returns `x / 6 + 1/2`, limited to 0 … 1."""
    return F.hardsigmoid(x)


@registry.register("hard_swish")
def hard_silu(x: Tensor) -> Tensor:
    """Returns `x · hard_sigmoid(x)` (Howard et al. 2019)."""
    return F.hardswish(x)


@registry.register()
def hard_tanh(x: Tensor) -> Tensor:
    """Returns `x`, limited to -1 … 1."""
    return F.hardtanh(x)


@registry.register()
def hard_shrink(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Returns `x` where `|x| > threshold` and 0 elsewhere."""
    return F.hardshrink(x, threshold)


@registry.register()
def soft_shrink(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Returns `x` moved towards 0 by `threshold`, and 0 where that would cross it."""
    return F.softshrink(x, threshold)


@registry.register()
def tanh_shrink(x: Tensor) -> Tensor:
    """Returns `x - tanh(x)`."""
    return F.tanhshrink(x)


@registry.register()
def sparse_plus(x: Tensor) -> Tensor:
    """Returns 0 up to -1, `(x + 1)² / 4` up to 1, and `x` above (Blondel et al. 2019)."""
    return torch.where(x < 1, ((x + 1).clamp(min=0)).square() / 4, x)


@registry.register()
def sparse_sigmoid(x: Tensor) -> Tensor:
    """Returns `(x + 1) / 2`, limited to 0 … 1 (Blondel et al. 2019)."""
    return F.hardtanh((x + 1) / 2, 0.0, 1.0)


def threshold(x: Tensor, threshold: float, default_value: float) -> Tensor:
    """Returns `x` above `threshold` and `default_value` elsewhere; it has no name in layers, which give no arguments."""
    return F.threshold(x, threshold, default_value)


# -- over the channel axis ---------------------------------------------------------------------------------------------


@registry.register()
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Returns `exp(x) / Σ exp(x)` over the axis.

    Over the channel axis, the result remembers `x` in its attribute `logits`, so that crossentropy can be computed on
    it with full precision.
    """
    dim = inside_axis(axis, x.ndim)
    probabilities = torch.softmax(x, dim)
    return remember_logits(probabilities, x, "softmax") if dim == channel_axis(x.ndim) else probabilities


@registry.register()
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Returns `log(softmax(x))` over the axis."""
    return torch.log_softmax(x, inside_axis(axis, x.ndim))


@registry.register()
def sparsemax(x: Tensor, axis: int = -1) -> Tensor:
    """Returns the probabilities that are nearest to `x` over the axis; many are 0 (Martins & Astudillo 2016).

    Keras 3's results sum to less than one where several are not 0; these are the paper's.
    """
    dim = inside_axis(axis, x.ndim)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    descending = wide.sort(dim, descending=True).values
    ranks = torch.arange(1, x.shape[dim] + 1, device=x.device, dtype=wide.dtype).view(-1, *[1] * (x.ndim - 1 - dim))
    in_support = descending - (descending.cumsum(dim) - 1) / ranks > 0
    size = in_support.sum(dim, keepdim=True)
    excess = (torch.where(in_support, descending, 0.0).sum(dim, keepdim=True) - 1) / size
    return (wide - excess).clamp(min=0).to(x.dtype)


@registry.register()
def glu(x: Tensor, axis: int = -1) -> Tensor:
    """Returns the axis's first half times the sigmoid of its second half (Dauphin et al. 2016); the axis is halved.

    Raises:
        ShapeError: the axis has an odd size.
    """
    dim = inside_axis(axis, x.ndim)
    if x.shape[dim] % 2:
        raise ShapeError(explain("glu", f"shape {outside_shape(x)}", f"an even size of axis {axis}"))
    return F.glu(x, dim)


def remember_logits(probabilities: Tensor, logits: Tensor, activation: str) -> Tensor:
    """Keeps `logits`, and the name of the activation, as attributes of the tensor that was computed from them."""
    probabilities.logits = logits  # type: ignore[attr-defined]
    probabilities.logits_of = activation  # type: ignore[attr-defined]
    return probabilities


# -- finding -----------------------------------------------------------------------------------------------------------


def get(identifier: Any) -> Activation:
    """Returns an activation from a name, None (linear) or a callable."""
    if identifier is None:
        return linear
    if isinstance(identifier, str):
        return registry.find(identifier)
    if callable(identifier):
        return identifier  # type: ignore[no-any-return]
    raise ArgumentTypeError(explain("activation", type(identifier).__name__, "a name, a function or None"))


deserialize = get


def serialize(activation: Activation) -> str:
    """Returns the name by which `get` finds the function."""
    return str(activation.__name__)


# Keras's second names.
swish = silu
hard_swish = hard_silu


explain_missing_names(__name__)
