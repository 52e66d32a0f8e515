"""The sweep: each version of each kernel against float64, measured by the error of eager PyTorch in the same type."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from convolt import kernels
from convolt.kernels import reference
from tests.unit.kernels.cases import CASES, Case, Op

SLACK = {torch.float32: 1e-6, torch.bfloat16: 1e-3}


def pairs(backend: str) -> list[tuple[Case, torch.dtype]]:
    """Returns every case of every kernel that has a version for `backend`, in both types."""
    rows = {name for name, row in kernels.KERNELS.items() if backend in row.versions}
    return [(case, dtype) for case in CASES if case.kernel in rows for dtype in SLACK]


def label(value: Any) -> str:
    return str(value).removeprefix("torch.")


def kernel_op(case: Case, backend: str) -> Op:
    return functools.partial(getattr(kernels, case.kernel), backend=backend)


def inputs_of(case: Case, dtype: torch.dtype, device: str) -> list[Tensor]:
    torch.manual_seed(7)
    return [t.to(device) for t in case.make(dtype)]


def results(case: Case, op: Op, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Returns what the op computes, then the gradients of its inputs from a fixed random gradient."""
    leaves = [t.detach().clone().requires_grad_(case.gradients and t.is_floating_point()) for t in inputs]
    out = case.call(op, leaves, dtype)
    if not case.gradients:
        return [t.detach() for t in out]
    torch.manual_seed(8)
    grad = torch.randn(out[0].shape).to(out[0])
    found = torch.autograd.grad(out[0], leaves, grad, allow_unused=True)
    return [t.detach() for t in [*out, *(g for g in found if g is not None)]]


def check_errors(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    """Asserts that no error is above twice that of eager PyTorch plus the slack of the type."""
    inputs = inputs_of(case, dtype, device)
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    plain = getattr(reference, case.kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error", kernels.KernelWarning)  # a fall-back would compare the reference with itself
        got = results(case, kernel_op(case, backend), inputs, dtype)
    eager, true = results(case, plain, inputs, dtype), results(case, plain, wide, torch.float64)
    assert len(got) == len(eager) == len(true)
    for i, (a, b, t) in enumerate(zip(got, eager, true, strict=True)):
        assert a.shape == t.shape and a.dtype == b.dtype, f"result {i}: {a.dtype} {a.shape}, expected {b.dtype} {t.shape}"
        mine, theirs = (float((r.double() - t).abs().max()) for r in (a, b))
        size = max(1.0, float(t.abs().max())) if 1 <= i <= case.states else 1.0
        assert mine <= case.times * theirs + SLACK[dtype] * size, f"result {i}: error {mine:.2e}, eager PyTorch has {theirs:.2e}"


def check_repeats(case: Case, dtype: torch.dtype, backend: str, device: str, times: int = 10) -> None:
    """Asserts that repeats are equal to the last bit."""
    inputs = inputs_of(case, dtype, device)
    first = results(case, kernel_op(case, backend), inputs, dtype)
    for _ in range(times - 1):
        again = results(case, kernel_op(case, backend), inputs, dtype)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def check_nan(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    """Asserts that NaN, of either sign, comes out exactly where eager PyTorch has it."""
    inputs = inputs_of(case, dtype, device)
    bits = inputs[0].view(-1).view({torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype])
    signed, unsigned = {torch.float32: (-0x400000, 0x7FC00000), torch.bfloat16: (-0x40, 0x7FC0)}[dtype]
    bits[0], bits[bits.numel() // 2] = signed, unsigned
    assert int(inputs[0].isnan().sum()) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", kernels.KernelWarning)
        got = results(case, kernel_op(case, backend), inputs, dtype)[0]
    eager = results(case, getattr(reference, case.kernel), inputs, dtype)[0]
    assert bool(eager.isnan().any()) and torch.equal(got.isnan() & eager.isnan() if case.spreads else got.isnan(), eager.isnan())
