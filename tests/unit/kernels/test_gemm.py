"""Convolutions as products of matrices: equal to PyTorch's in float64, near it in bfloat16, and used where the rule says."""

import pytest
import torch
import torch.nn.functional as F

from convolt import kernels
from convolt.errors import ShapeError
from convolt.kernels.gemm import Passes

ALL, NONE = Passes(True, True, True), Passes(False, False, False)
CASES = [  # batch, channels, filters, height, width, window, strides, padding
    (2, 5, 7, 8, 9, (3, 3), (1, 1), (1, 1)),
    (2, 5, 7, 8, 9, (3, 3), (2, 2), (1, 1)),
    (2, 5, 7, 8, 9, (3, 2), (2, 3), (0, 1)),
    (2, 5, 7, 8, 9, (1, 1), (2, 2), (0, 0)),
    (2, 5, 7, 8, 9, (1, 1), (1, 1), (0, 0)),
    (1, 3, 4, 9, 7, (5, 4), (3, 2), (2, 2)),
    (2, 3, 4, 1, 1, (1, 1), (2, 2), (1, 1)),  # most of the results see zeros alone
    (2, 3, 4, 6, 5, (2, 2), (3, 3), (0, 0)),  # pixels that no window sees
    (0, 3, 4, 6, 5, (3, 3), (1, 1), (1, 1)),
]


def both(case: tuple, dtype: torch.dtype, bias: bool, passes: Passes) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Returns results and gradients of the op, and PyTorch's."""
    n, channels, filters, height, width, window, strides, padding = case
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    given = [random(n, channels, height, width), random(filters, channels, *window), *([random(filters)] if bias else [])]
    y = kernels.gemm_conv(*given, strides=strides, padding=padding, passes=passes)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = F.conv2d(*exact, stride=strides, padding=padding)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(dtype)
    assert y.dtype == dtype
    return [y, *torch.autograd.grad(y, given, grad)], [expected, *torch.autograd.grad(expected, exact, grad.double())]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("passes", [ALL, NONE, Passes(True, False, False), Passes(False, True, False), Passes(False, False, True)])
def test_results_and_gradients_are_pytorchs(case: tuple, bias: bool, passes: Passes) -> None:
    for got, expected in zip(*both(case, torch.float64, bias, passes), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c[0]])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_each_number_is_rounded_once(case: tuple, dtype: torch.dtype, bound: float) -> None:
    for got, expected in zip(*both(case, dtype, True, ALL), strict=True):
        assert float((got - expected).detach().norm()) <= bound * float(expected.detach().norm())


def test_the_weights_may_be_wider_than_the_input() -> None:
    x, weight = torch.randn(2, 3, 6, 5).bfloat16(), torch.randn(4, 3, 3, 3, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)
    y = kernels.gemm_conv(x, weight, bias)
    y.backward(torch.ones_like(y))
    assert (y.dtype, weight.grad.dtype, bias.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert float(bias.grad[0]) == 2 * 4 * 3


def test_results_lie_channels_last() -> None:
    y = kernels.gemm_conv(torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("x", "weight", "padding"), [
    ((2, 3, 6, 5), (4, 2, 3, 3), (0, 0)), ((2, 3, 2, 5), (4, 3, 3, 3), (0, 0)), ((2, 3, 6, 5), (4, 3, 3, 3), (-1, 0)),
    ((3, 6, 5), (4, 3, 3, 3), (0, 0)),
])
def test_shapes_that_do_not_fit_are_named(x: tuple, weight: tuple, padding: tuple) -> None:
    with pytest.raises(ShapeError, match="gemm_conv"):
        kernels.gemm_conv(torch.zeros(x), torch.zeros(weight), padding=padding)


@pytest.mark.parametrize(("shape", "weight", "strides", "padding", "dtype", "expected"), [
    ((128, 512, 4, 4), (512, 512, 3, 3), (1, 1), (1, 1), torch.bfloat16, ALL),
    ((128, 256, 8, 8), (512, 256, 3, 3), (2, 2), (1, 1), torch.float32, ALL),
    ((128, 256, 8, 8), (256, 256, 3, 3), (1, 1), (1, 1), torch.bfloat16, Passes(False, False, True)),
    ((128, 256, 8, 8), (256, 256, 3, 3), (1, 1), (1, 1), torch.float32, NONE),
    ((16, 576, 6, 6), (96, 576, 1, 1), (1, 1), (0, 0), torch.float32, Passes(False, True, True)),
    ((16, 576, 12, 12), (96, 576, 1, 1), (2, 2), (0, 0), torch.float32, Passes(False, False, True)),
    ((16, 576, 6, 6), (96, 576, 1, 1), (1, 1), (0, 0), torch.bfloat16, Passes(False, False, True)),
    ((128, 64, 32, 32), (64, 64, 3, 3), (1, 1), (1, 1), torch.bfloat16, NONE),
    ((128, 512, 4, 4), (512, 512, 3, 3), (1, 1), (1, 1), torch.float64, NONE),
    ((128, 512, 2, 2), (512, 512, 3, 3), (1, 1), (0, 0), torch.float32, NONE),
])
def test_the_rule_takes_the_passes_that_were_measured_faster(shape: tuple, weight: tuple, strides: tuple, padding: tuple,
                                                             dtype: torch.dtype, expected: Passes) -> None:
    assert kernels.gemm_passes(shape, dtype, weight, strides, padding) == expected
