"""Products of float32 matrices by oneDNN on CPUs on which PyTorch's own are slower.

PyTorch multiplies float32 matrices with Intel's MKL, which on other makers' processors uses no AVX-512. oneDNN does: on two cores of
an AMD EPYC (Zen 5) 2304 × 384 by 384 × 1536 takes 6 ms with it and 13 without. Where there is only AVX2 (Zen 3) few rows are slow with
MKL: 16 × 4096 by 4096 × 4096 takes 14 ms, and 8 with oneDNN.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.devices import multiplies_at_half_rate

FEWEST_ROWS = 8
"""Of a matrix; fewer are a pass over the other one, which is as fast with MKL."""
FEWEST_PRODUCTS = 1 << 20
"""Of numbers; fewer take less time than oneDNN needs to begin."""


class _Here(threading.local):
    by_onednn = False


_here = _Here()


@contextmanager
def by_onednn() -> Iterator[None]:
    """Has the layers' products of float32 matrices done by oneDNN in this thread, and those of their gradients."""
    before, _here.by_onednn = _here.by_onednn, True
    try:
        yield
    finally:
        _here.by_onednn = before


def asked_for() -> bool:
    """Whether this is inside of `by_onednn`."""
    return _here.by_onednn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN inside of `by_onednn`.

    Args:
        x: (…, C).
        weight: (F, C).
        bias: (F,), or None.

    Returns:
        (…, F).
    """
    if not _is_for_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    return _product(x, weight.t(), bias)


def matrix_product(x: Tensor, matrix: Tensor) -> Tensor | None:
    """Returns `x @ matrix` for x (…, C) and a matrix (C, F) by oneDNN; None where that is not to be done."""
    return _product(x, matrix, None) if _is_for_onednn(x, matrix, None) else None


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `a @ b + bias` of two matrices on the CPU, without autograd, by whatever is fastest."""
    if _is_large(a, b) and a.dtype == torch.float32 and multiplies_at_half_rate():
        return _onednn(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `a @ b + bias` of two float32 matrices on the CPU by oneDNN, in any memory order; autograd does not see it."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], ""))


def _is_for_onednn(x: Tensor, matrix: Tensor, bias: Tensor | None) -> bool:
    if not _here.by_onednn or torch.is_autocast_enabled("cpu") or any(t is not None and t.device.type != "cpu" for t in (x, matrix, bias)):
        return False
    plain = all(t is None or t.dtype == torch.float32 for t in (x, matrix, bias))
    return plain and _is_large(x, matrix)


def _is_large(x: Tensor, matrix: Tensor) -> bool:
    rows = x.numel() // max(1, x.shape[-1])
    return rows >= FEWEST_ROWS and rows * matrix.numel() >= FEWEST_PRODUCTS


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    return cast(Tensor, _Product.apply(flat, matrix, bias)).view(*x.shape[:-1], matrix.shape[1])  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return _onednn(x, matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        want_x, want_matrix, want_bias = ctx.needs_input_grad
        dx = _onednn(grad, matrix.t()) if want_x else None
        dmatrix = None
        if want_matrix:  # oneDNN copies the first one in another order, which takes longer than one more copy of the gradient
            dmatrix = _onednn(x.t(), grad) if x.shape[1] < grad.shape[1] else _onednn(grad.t(), x).t()
        return dx, dmatrix, grad.sum(0) if want_bias else None
