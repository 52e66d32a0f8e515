"""Batch normalization with what follows it, in plain PyTorch; see `reference`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hard_silu": F.hardswish}
"""What the kernels compute behind batch normalization, by the names of `convolt.activations`."""


def passed(grad: Tensor, z: Tensor, activation: str) -> Tensor:
    """Returns the gradient of an activation's input z."""
    if activation == "silu":
        share = torch.sigmoid(z)
        return grad * (share * (1 + z * (1 - share)))
    if activation == "hard_silu":
        return torch.where(z <= -3, 0, torch.where(z < 3, grad * (z / 3 + 0.5), grad))
    dead = {"linear": None, "relu": z <= 0, "relu6": (z <= 0) | (z >= 6)}[activation]
    return grad if dead is None else torch.where(dead, 0, grad)


def bn(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *, training: bool,
       momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False) -> Tensor:
    """Batch normalization; see `kernels.bn_relu` for the arguments."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    count = x.numel() // x.shape[1]
    mean, var = torch.zeros_like(running_mean), torch.zeros_like(running_var)
    y = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=eps)  # PyTorch's variance is the unbiased one
    with torch.no_grad():
        follow(running_mean, running_var, mean, var, momentum, 1.0 if unbiased else (count - 1) / count)
    return y


def bn_relu(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *, training: bool,
            momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False) -> Tensor:
    """`relu(bn(x))`."""
    return F.relu(bn(x, weight, bias, running_mean, running_var, training=training, momentum=momentum, eps=eps, unbiased=unbiased))


def bn_activation(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, activation: str, *,
                  training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False) -> Tensor:
    """`activation(bn(x))`."""
    y = bn(x, weight, bias, running_mean, running_var, training=training, momentum=momentum, eps=eps, unbiased=unbiased)
    return ACTIVATIONS[activation](y)


def bn_add(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *,
           training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False) -> Tensor:
    """`bn(x) + residual`."""
    return bn(x, weight, bias, running_mean, running_var, training=training, momentum=momentum, eps=eps, unbiased=unbiased) + residual


def bn_add_relu(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *,
                training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False) -> Tensor:
    """`relu(bn(x) + residual)`."""
    y = bn(x, weight, bias, running_mean, running_var, training=training, momentum=momentum, eps=eps, unbiased=unbiased)
    return F.relu(y + residual)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


def follow(running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, momentum: float | Tensor,
           factor: float) -> None:
    """Moves the running statistics towards the batch's; the variance counts `factor` times."""
    if running_mean is not None and running_var is not None:
        momentum = momentum.to(running_mean.dtype) if isinstance(momentum, Tensor) else momentum
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * factor).to(running_var.dtype), momentum)


def norm_forward(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
                 running_var: Tensor | None, momentum: float | Tensor, factor: float, eps: float,
                 activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `activation(bn(x) + residual)` with the batch's statistics, the mean and 1 / √(variance + eps), both float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = [a for a in range(x.ndim) if a != 1]
    var, mean = torch.var_mean(wide, axes, correction=0)
    rstd = torch.rsqrt(var + eps)
    z = (wide - _per_channel(mean, x)) * _per_channel(rstd if weight is None else rstd * weight, x)
    z = z if bias is None else z + _per_channel(bias, x)
    z = z if residual is None else z + residual
    follow(running_mean, running_var, mean, var, momentum, factor)
    return ACTIVATIONS[activation](z).to(x.dtype), mean, rstd


def norm_backward(grad: Tensor, x: Tensor, out: Tensor | None, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None,
                  activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, of the residual, of weight and of bias.

    What the activation (ReLU or none, if there is a residual) lets pass is taken from `out`, or, if that is None, from x again.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    count = x.numel() // x.shape[1]
    axes = [a for a in range(x.ndim) if a != 1]
    centred = (x.to(wide) - _per_channel(mean, x)) * _per_channel(rstd, x)
    scale = torch.ones_like(rstd) if weight is None else weight.to(wide)
    z = out if out is not None else centred * _per_channel(scale, x) + (0 if bias is None else _per_channel(bias, x))
    grad = passed(grad, z, activation)
    dz = grad.to(wide)
    dbias, dweight = dz.sum(axes), (dz * centred).sum(axes)
    dx = _per_channel(scale * rstd, x) * (dz - _per_channel(dbias / count, x) - centred * _per_channel(dweight / count, x))
    return dx.to(x.dtype), grad, dweight, dbias


def norm_inference(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    """`activation(x · scale + shift + residual)`, computed in float32 or wider."""
    z = x.to(torch.promote_types(x.dtype, torch.float32)) * _per_channel(scale, x) + _per_channel(shift, x)
    z = z if residual is None else z + residual
    return ACTIVATIONS[activation](z).to(x.dtype)
