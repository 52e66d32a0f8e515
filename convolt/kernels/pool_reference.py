"""ReLU and max-pooling, with what precedes them, in plain PyTorch; see `reference`."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.kernels.norm_reference import bn_relu, norm_backward, norm_forward, norm_inference

Window = tuple[int, int, int, int, int, int]
"""Height and width of a pooling window, vertical and horizontal stride, rows and columns of padding on either side."""

DEAD = 255
"""Code of a pooling window in which no value was above zero."""


def max_pool(x: Tensor, pool_size: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None, padding: tuple[int, int] = (0, 0), *,
             ceil_mode: bool = False) -> Tensor:
    """The largest value of each window; (N, C, H, W) → (N, C, …)."""
    return F.max_pool2d(x, pool_size, strides, padding, 1, ceil_mode)


def maxpool_forward(x: Tensor, window: Window, places: tuple[int, int], ceil_mode: bool) -> Tensor:
    """Returns the largest value of each of `places` windows."""
    return F.max_pool2d(x, window[:2], window[2:4], window[4:], 1, ceil_mode)


def relu_max_pool(x: Tensor, pool_size: tuple[int, int] = (2, 2)) -> Tensor:
    """`max_pool(relu(x))`; (N, C, H, W) → (N, C, H // ph, W // pw)."""
    return F.max_pool2d(F.relu(x), pool_size)


def bias_relu_max_pool(x: Tensor, bias: Tensor, pool_size: tuple[int, int] = (2, 2)) -> Tensor:
    """`max_pool(relu(x + bias))`; the bias (C,) is cast to x's type first."""
    return F.max_pool2d(F.relu(x + bias.to(x.dtype)[:, None, None]), pool_size)


def pool_forward(x: Tensor, bias: Tensor | None, pool: tuple[int, int], keep: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the pooled output and, if `keep`, the place of each maximum in its window as one byte (`DEAD` after ReLU)."""
    ph, pw = pool
    height, width = x.shape[2] // ph, x.shape[3] // pw
    covered = torch.unflatten(x[:, :, : height * ph, : width * pw], 2, (height, ph))
    windows = torch.unflatten(covered, 4, (width, pw)).movedim(3, 4).flatten(4)
    best, place = windows.max(-1)
    value = best if bias is None else (best.to(torch.promote_types(best.dtype, torch.float32)) + bias[:, None, None]).to(x.dtype)
    return F.relu(value), torch.where(value <= 0, DEAD, place).to(torch.uint8) if keep else None


def pool_backward(grad: Tensor, code: Tensor, pool: tuple[int, int], size: tuple[int, int],
                  want_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients of x (spatial `size`) and, if `want_bias`, of the bias (float32, or grad's type if wider)."""
    out = grad.new_zeros((grad.shape[0], size[0], size[1], grad.shape[1])).permute(0, 3, 1, 2)
    ph, pw = pool
    for place in range(ph * pw):
        rows, columns = slice(place // pw, grad.shape[2] * ph, ph), slice(place % pw, grad.shape[3] * pw, pw)
        out[:, :, rows, columns] = torch.where(code == place, grad, 0)
    wide = torch.promote_types(grad.dtype, torch.float32)
    return out, torch.where(code == DEAD, 0, grad).sum((0, 2, 3), dtype=wide) if want_bias else None


def bn_relu_max_pool(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *,
                     pool_size: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None, padding: tuple[int, int] = (0, 0),
                     training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False) -> Tensor:
    """`max_pool(relu(bn(x)))`."""
    y = bn_relu(x, weight, bias, running_mean, running_var, training=training, momentum=momentum, eps=eps, unbiased=unbiased)
    return F.max_pool2d(y, pool_size, strides or pool_size, padding)


def _corners(size: tuple[int, int], window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns row (out_height, 1) and column (out_width,) where each window begins."""
    rows, columns = (torch.arange(n, device=device) * step - border for n, step, border in zip(size, window[2:4], window[4:], strict=True))
    return rows[:, None], columns


def normpool_forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
                     momentum: float | Tensor, factor: float, eps: float, window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the pooled ReLU of `norm_forward`'s result, the places of its maxima, as `pool_forward`, mean and 1 / deviation."""
    z, mean, rstd = norm_forward(x, None, weight, bias, running_mean, running_var, momentum, factor, eps, "linear")
    best, place = F.max_pool2d(z, window[:2], window[2:4], window[4:], return_indices=True)
    row, column = _corners((best.shape[2], best.shape[3]), window, x.device)
    code = (place // x.shape[3] - row) * window[1] + place % x.shape[3] - column
    return F.relu(best), torch.where(best <= 0, DEAD, code).to(torch.uint8), mean, rstd


def normpool_backward(grad: Tensor, code: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None,
                      window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, of weight and of bias."""
    row, column = _corners((grad.shape[2], grad.shape[3]), window, x.device)
    place, dead = code.long(), code == DEAD
    index = torch.where(dead, 0, (row + place // window[1]) * x.shape[3] + column + place % window[1])
    alive = torch.where(dead, 0, grad).to(rstd.dtype)
    dz = torch.zeros_like(x, dtype=rstd.dtype).flatten(2).scatter_add(2, index.flatten(2), alive.flatten(2))
    dx, _, dweight, dbias = norm_backward(dz.view(x.shape), x, None, mean, rstd, weight, None, "linear")
    return dx, dweight, dbias


def normpool_inference(x: Tensor, scale: Tensor, shift: Tensor, window: Window) -> Tensor:
    """Returns the pooled ReLU of `x · scale + shift`."""
    return F.max_pool2d(norm_inference(x, None, scale, shift, "relu"), window[:2], window[2:4], window[4:])
