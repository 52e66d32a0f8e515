"""Every fused op in plain PyTorch: what it means, what its kernels are compared with, what runs where none can.

Two forms of each. The *composition* has the op's own name: what a PyTorch user would write, differentiated by autograd.
The *passes* (`pool_forward`, `pool_backward`, …) have the signatures of the Numba and Triton versions, keep what those
keep between forward and backward, and take over when one of those fails in the middle of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from convolt.kernels.norm_reference import (  # noqa: F401 (found here by name)
    bn,
    bn_activation,
    bn_add,
    bn_add_relu,
    bn_relu,
    norm_backward,
    norm_forward,
    norm_inference,
)
from convolt.kernels.pool_reference import (  # noqa: F401 (found here by name)
    DEAD,
    bias_relu_max_pool,
    bn_relu_max_pool,
    max_pool,
    maxpool_forward,
    normpool_backward,
    normpool_forward,
    normpool_inference,
    pool_backward,
    pool_forward,
    relu_max_pool,
)
from convolt.kernels.resize_reference import resize, resize_picture  # noqa: F401 (found here by name)
from convolt.kernels.warp_reference import picture_means, warp, warp_fill, warp_means  # noqa: F401 (found here by name)


def conv_relu_max_pool(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """`max_pool(relu(conv(x)))` with windows of 2 × 2; weight and bias are cast to x's type first."""
    return F.max_pool2d(F.relu(F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)), 2)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Returns 2 × 2 pooled ReLU of the convolution without padding and, if `keep`, the places, as `pool_forward` does."""
    return pool_forward(F.conv2d(x, weight.to(x.dtype)), bias, (2, 2), keep)


def conv_backward(grad: Tensor, code: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of weight (F, C, 3, 3) and bias, both float32, or grad's type if wider."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    dense, dbias = pool_backward(grad, code, (2, 2), (x.shape[2] - 2, x.shape[3] - 2), True)
    assert dbias is not None
    shape = (grad.shape[1], x.shape[1], 3, 3)
    return conv2d_weight(x.to(wide), shape, dense.to(wide)), dbias  # type: ignore[no-untyped-call]


def pooled_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, pool_size: tuple[int, int] = (2, 2), *,
                padding: tuple[int, int] = (0, 0)) -> Tensor:
    """`max_pool(relu(conv(x)))` with stride 1; weight and bias are cast to x's type first."""
    y = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)
    return F.max_pool2d(F.relu(y), pool_size)


def pooled_forward(x: Tensor, weight: Tensor, bias: Tensor | None, pool: tuple[int, int], keep: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the pooled ReLU of the convolution without padding and, if `keep`, the places, as `pool_forward` does."""
    return pool_forward(F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)), None, pool, keep)


def pooled_backward(grad: Tensor, code: Tensor, x: Tensor, weight: Tensor, pool: tuple[int, int], want_x: bool,
                    want_weight: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of x (of its type), of weight and bias (both float32, or grad's type if wider); None if not wanted."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    size = (x.shape[2] - weight.shape[2] + 1, x.shape[3] - weight.shape[3] + 1)
    dense, dbias = pool_backward(grad.to(wide), code, pool, size, True)
    dx = conv2d_input(x.shape, weight.to(wide), dense).to(x.dtype) if want_x else None  # type: ignore[no-untyped-call]
    dweight = conv2d_weight(x.to(wide), weight.shape, dense) if want_weight else None  # type: ignore[no-untyped-call]
    return dx, dweight, dbias if want_weight else None


def tiled_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (1, 1)) -> Tensor:
    """Convolution with windows of 3 × 3 and stride 1."""
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)


def tiles_forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Returns the convolution."""
    return tiled_conv(x, weight, bias, padding=padding)


def tiles_backward(grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], want_x: bool,
                   want_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of the input and the weights, None where they are not wanted."""
    wanted = (want_x, want_weight, False)
    window = ((1, 1), padding, (1, 1), False, (0, 0), 1)
    dx, dweight, _ = torch.ops.aten.convolution_backward(grad, x, weight.to(x.dtype), None, *window, wanted)
    return dx, dweight


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """`conv(x)` with stride 1; weight and bias are cast to x's type first."""
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)


def winograd_max_pool(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0),
                      relu: bool = True) -> Tensor:
    """`max_pool(relu(conv(x)))` with windows of 2 × 2."""
    y = winograd_conv(x, weight, bias, padding=padding)
    return F.max_pool2d(F.relu(y) if relu else y, 2)


def winograd_forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], pool: bool, relu: bool,
                     keep: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the convolution or (`pool`) its pooled (`relu`) maxima and, if `keep`, their places, as `pool_forward` does."""
    y = winograd_conv(x, weight, bias, padding=padding)
    if not pool:
        return y, None
    if relu:
        return pool_forward(y, None, (2, 2), keep)
    out, place = F.max_pool2d(y, 2, return_indices=True)
    width = y.shape[3]
    return out, (place // width % 2 * 2 + place % width % 2).to(torch.uint8) if keep else None


def winograd_backward(grad: Tensor, code: Tensor | None, x: Tensor, weight: Tensor, padding: tuple[int, int],
                      want_x: bool, want_bias: bool = True) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Returns the gradients of x (of its type), of weight and of bias (float32, or grad's type if wider), None for those not wanted."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    size = (x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2)
    dense = grad.to(wide) if code is None else pool_backward(grad.to(wide), code, (2, 2), size, False)[0]
    dx = conv2d_input(x.shape, weight.to(wide), dense, padding=padding).to(x.dtype) if want_x else None  # type: ignore[no-untyped-call]
    dweight = conv2d_weight(x.to(wide), weight.shape, dense, padding=padding)  # type: ignore[no-untyped-call]
    return dx, dweight, dense.sum((0, 2, 3)) if want_bias else None


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """`relu(x + bias)`; the bias (C,) is cast to x's type first."""
    return F.relu(x + bias.to(x.dtype)[:, None, None])


def biasrelu_forward(x: Tensor, bias: Tensor) -> None:
    """Writes `relu(x + bias)` over x, rounded once."""
    x.copy_(F.relu(x.to(torch.promote_types(x.dtype, torch.float32)) + bias[:, None, None]))


def biasrelu_backward(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and of the bias (float32, or grad's type if wider)."""
    dx = torch.where(out <= 0, 0, grad)
    return dx, dx.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: tuple[int, int] = (1, 1),
                   padding: tuple[int, int] = (0, 0)) -> Tensor:
    """`conv(x)` with one window for each channel; weight and bias are cast to x's type first."""
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), strides, padding, groups=x.shape[1])


def depthwise_weight_gradient(grad: Tensor, x: Tensor, window: tuple[int, int], strides: tuple[int, int],
                              padding: tuple[int, int]) -> Tensor:
    """Returns the gradient of the weights, (C, 1, rows, columns), float32, or grad's type if wider."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    zeros = torch.zeros(x.shape[1], 1, *window, dtype=wide, device=x.device)
    found = torch.ops.aten.convolution_backward(grad.to(wide), x.to(wide), zeros, None, strides, padding, (1, 1), False, (0, 0), x.shape[1],
                                                (False, True, False))
    return found[1]  # type: ignore[no-any-return]


def softmax_crossentropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns each sample's `-Σ target · log softmax(logits)`, float32 or wider; (N, K), labels (N,) or (N, K) → (N,)."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.long() if labels.ndim == 1 else labels.to(wide.dtype)
    return F.cross_entropy(wide, labels, reduction="none", label_smoothing=label_smoothing)


def _targets(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    targets = F.one_hot(labels.long(), logits.shape[1]) if labels.ndim == 1 else labels
    return targets.to(torch.promote_types(logits.dtype, torch.float32)) * (1.0 - smoothing) + smoothing / logits.shape[1]


def crossentropy_forward(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Returns losses and log Σ exp(logits), each (N,) and float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = torch.logsumexp(wide, 1)
    targets = _targets(logits, labels, smoothing)
    return (torch.where(targets == 0, 0, targets * (lse[:, None] - wide))).sum(1), lse


def crossentropy_backward(grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, smoothing: float) -> Tensor:
    """Returns the gradient of the logits, in their type."""
    targets = _targets(logits, labels, smoothing)
    softmax = torch.exp(logits.to(lse.dtype) - lse[:, None])
    return (grad[:, None] * (softmax * targets.sum(1, keepdim=True) - targets)).to(logits.dtype)
