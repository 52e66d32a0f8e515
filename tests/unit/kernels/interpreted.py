"""The sweep of the Triton kernels through Triton's interpreter, on CPU tensors.

Run by `test_triton.py` in a process of its own, since `TRITON_INTERPRET=1` must be set before Triton is imported.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from convolt import kernels
from convolt.kernels import reference
from tests.unit.kernels import sweep
from tests.unit.kernels.cases import CASES, Case

assert os.environ.get("TRITON_INTERPRET") == "1"
TRITON = [c for c in CASES if "triton" in kernels.KERNELS[c.kernel].versions]


@pytest.fixture(autouse=True)
def device_like_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways in which the interpreter differs from devices are put right.

    It cuts a float32 off where devices round it to bfloat16, and it sums a tile's rows one after the other where devices
    sum them as a tree: small tiles keep these sums short, and let small tensors take many programs.
    """
    from triton.runtime import interpreter

    from convolt.kernels import norm_triton, pool_triton

    plain = interpreter._convert_float

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if str(source) == "fp32" and str(target) == "bf16":
            return torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
        return plain(values, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(norm_triton, "TILE", 128)
    monkeypatch.setattr(norm_triton, "PROGRAMS", 2)
    monkeypatch.setattr(pool_triton, "TILE", 256)


def affordable(case: Case, dtype: torch.dtype) -> bool:
    """The interpreter takes milliseconds for each program: some shapes run in one kernel of a family, or in float32, only."""
    common = ("even", "volume", "odd_channels", "places_1", "one_window", "flat", "no_windows", "unbiased", "large_mean")
    if case.kernel.startswith(("bn", "relu_max_pool", "bias_relu")) and case.name in common:
        return case.kernel in ("bias_relu_max_pool", "bn_relu") and dtype == torch.float32
    return case.name != "threads"


def quick(case: Case, dtype: torch.dtype) -> bool:
    """Whether it runs every time: all cases in float32, and in bfloat16, which differs by what is read and written, those that are odd."""
    return dtype == torch.float32 or case.name in ("odd", "odd_samples", "small", "ten", "features", "pad")


@pytest.mark.parametrize(("case", "dtype"), [pytest.param(*p, marks=[] if quick(*p) else [pytest.mark.slow])
                                             for p in sweep.pairs("triton") if affordable(*p)], ids=sweep.label)
def test_errors_against_float64(case: Case, dtype: torch.dtype) -> None:
    sweep.check_errors(case, dtype, "triton", "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=sweep.label)
@pytest.mark.parametrize("case", [c for c in TRITON if c.name in ("odd", "features", "inference", "ten")], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, which interprets, meets the NaN
def test_nan_comes_out(case: Case, dtype: torch.dtype) -> None:
    sweep.check_nan(case, dtype, "triton", "cpu")


@pytest.mark.parametrize("case", [c for c in TRITON if c.name in ("odd", "features", "ten", "pad")], ids=str)
def test_repeats_are_bit_equal(case: Case) -> None:
    sweep.check_repeats(case, torch.float32, "triton", "cpu", times=2)


def test_half_precision() -> None:
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(kernels.relu_max_pool(x.half(), backend="triton"), reference.relu_max_pool(x.half()))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_logits_of_minus_infinity() -> None:
    logits = torch.randn(3, 5)
    logits[:, 2] = float("-inf")
    labels = torch.tensor([0, 1, 4])
    got = kernels.softmax_crossentropy(logits, labels, backend="triton")
    torch.testing.assert_close(got, reference.softmax_crossentropy(logits, labels))


def test_bias_and_relu_write_over_their_input() -> None:
    x, bias = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(3)
    expected = reference.bias_relu(x, bias)
    assert kernels.bias_relu(x, bias, backend="triton").data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, expected)


def test_the_loss_on_logits_is_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from convolt import losses

    monkeypatch.setattr(kernels, "softmax_crossentropy", lambda logits, labels, op=kernels.softmax_crossentropy: op(
        logits, labels, backend="triton"))
    labels, values = torch.tensor([2, 0, 1]), torch.randn(3, 4)
    found = []
    for loss in (losses.SparseCategoricalCrossentropy(from_logits=True), lambda t, x: torch.nn.functional.cross_entropy(x, t)):
        x = values.clone().requires_grad_()
        result = loss(labels, x)
        found.append((result.detach(), torch.autograd.grad(result, x)[0]))
    torch.testing.assert_close(found[0], found[1])
