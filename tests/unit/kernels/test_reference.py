"""The references: gradients by finite differences in float64, of the compositions and of the written-out passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convolt.kernels import reference
from convolt.kernels.bias import _BiasRelu
from convolt.kernels.conv import _Conv
from convolt.kernels.crossentropy import _Crossentropy
from convolt.kernels.norm import _Norm
from convolt.kernels.norm_pool import _NormPool
from convolt.kernels.pool import _Pool


def apart(*shape: int) -> Tensor:
    """Distinct values, none within 1e-2 of another or of zero: away from kinks and ties."""
    count = int(torch.tensor(shape).prod())
    values = (torch.arange(count, dtype=torch.float64) - count / 2 + 0.3) * 0.03
    return values[torch.randperm(count, generator=torch.Generator().manual_seed(3))].view(shape).requires_grad_()


def settled(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()


def _settings(activation: str) -> tuple[object, ...]:
    return (None, None, 0.1, 1.0, 1e-3, activation)


LABELS = torch.tensor([2, 0, 1])
SHIFT = torch.full((3,), 0.004, dtype=torch.float64).requires_grad_()
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "relu_max_pool": (lambda x: reference.relu_max_pool(x, (2, 2)), [apart(2, 3, 5, 4)]),
    "bias_relu_max_pool": (lambda x, b: reference.bias_relu_max_pool(x, b, (2, 3)), [apart(2, 3, 5, 7), SHIFT]),
    "pool passes": (lambda x, b: _Pool.apply(x, b, "bias_relu_max_pool", "reference", (2, 2)),
                    [apart(2, 3, 5, 7), SHIFT]),
    "conv_relu_max_pool": (lambda x, w, b: reference.conv_relu_max_pool(x, w, b, padding=(1, 0)),
                           [settled(2, 2, 5, 6), settled(3, 2, 3, 3), SHIFT]),
    "conv passes": (lambda w, b: _Conv.apply(settled(2, 2, 7, 6).detach(), w, b, "reference"), [settled(3, 2, 3, 3), SHIFT]),
    "bn": (lambda x, w, b: reference.bn(x, w, b, torch.zeros(3).double(), torch.ones(3).double(), training=True),
           [settled(4, 3, 2, 2), settled(3), settled(3)]),
    "bn passes": (lambda x, w, b: _Norm.apply(x, None, w, b, "bn", "reference", _settings("linear")),
                  [settled(4, 3, 2, 2), settled(3), settled(3)]),
    "bn_relu passes": (lambda x, w, b: _Norm.apply(x, None, w, b, "bn_relu", "reference", _settings("relu")),
                       [settled(4, 3, 2, 2), settled(3), settled(3)]),
    "bn_add passes": (lambda x, r, w, b: _Norm.apply(x, r, w, b, "bn_add", "reference", _settings("linear")),
                      [settled(4, 3, 2), apart(4, 3, 2), settled(3), settled(3)]),
    **{f"{name} passes": (lambda x, w, b, name=name: _Norm.apply(x, None, w, b, "bn_activation", "reference", _settings(name)),
                          [settled(4, 3, 2, 2), (5 * settled(3)).detach().requires_grad_(), settled(3)])
       for name in ("relu6", "silu", "hard_silu")},
    "bn_relu passes, no affine": (lambda x: _Norm.apply(x, None, None, None, "bn_relu", "reference", _settings("relu")), [settled(5, 3)]),
    "bn_add_relu passes": (lambda x, r, w, b: _Norm.apply(x, r, w, b, "bn_add_relu", "reference", _settings("relu")),
                           [settled(4, 3, 2), apart(4, 3, 2), settled(3), settled(3)]),
    "bn_relu_max_pool passes": (
        lambda x, w, b: _NormPool.apply(x, w, b, "reference", (None, None, 0.1, 1.0, 1e-3, (2, 2, 2, 2, 0, 0))),
        [settled(2, 3, 5, 4), settled(3), settled(3)]),
    "bn_relu_max_pool passes, overlapping": (
        lambda x, b: _NormPool.apply(x, None, b, "reference", (None, None, 0.1, 1.0, 1e-3, (3, 3, 2, 2, 1, 1))),
        [settled(2, 3, 5, 6), settled(3)]),
    "bias_relu passes": (lambda x, b: _BiasRelu.apply(x * 1.0, b, "reference"), [apart(2, 3, 5, 4), SHIFT]),
    "crossentropy": (lambda x: reference.softmax_crossentropy(x, LABELS, 0.1), [settled(3, 4)]),
    "crossentropy passes": (lambda x: _Crossentropy.apply(x, LABELS, "reference", 0.1), [settled(3, 4)]),
    "crossentropy passes, dense": (lambda x: _Crossentropy.apply(x, torch.rand(3, 4, generator=torch.Generator().manual_seed(1)).double(),
                                                                 "reference", 0.0), [settled(3, 4)]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_by_finite_differences(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    assert torch.autograd.gradcheck(function, inputs, atol=1e-7, rtol=1e-5)


def test_the_crossentropy_can_be_differentiated_twice() -> None:
    given = [settled(3, 4)]
    assert torch.autograd.gradgradcheck(lambda x: _Crossentropy.apply(x, LABELS, "reference", 0.1), given)


def test_passes_equal_compositions() -> None:
    x, b = apart(2, 3, 7, 9), settled(3)
    torch.testing.assert_close(reference.pool_forward(x, b, (3, 2), True)[0], reference.bias_relu_max_pool(x, b, (3, 2)))
    x, w = settled(2, 2, 7, 9), settled(3, 2, 3, 3)
    torch.testing.assert_close(reference.conv_forward(x, w, b, True)[0], reference.conv_relu_max_pool(x, w, b))
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    other_mean, other_var = mean.clone(), var.clone()
    x, r, w = settled(4, 3, 2, 2), apart(4, 3, 2, 2), settled(3)
    plain = reference.bn_add_relu(x, r, w, b, mean, var, training=True, momentum=0.2)
    torch.testing.assert_close(reference.norm_forward(x, r, w, b, other_mean, other_var, 0.2, 1.0, 1e-3, "relu")[0], plain)
    torch.testing.assert_close((other_mean, other_var), (mean, var))
    window = {"pool_size": (3, 3), "strides": (2, 2), "padding": (1, 1)}
    x, w = settled(2, 3, 5, 6), settled(3)
    plain = reference.bn_relu_max_pool(x, w, b, mean, var, training=True, momentum=0.2, **window)
    passes = reference.normpool_forward(x, w, b, other_mean, other_var, 0.2, 1.0, 1e-3, (3, 3, 2, 2, 1, 1))
    torch.testing.assert_close(passes[0], plain)
    torch.testing.assert_close((other_mean, other_var), (mean, var))
    logits = settled(3, 4)
    torch.testing.assert_close(reference.crossentropy_forward(logits, LABELS, 0.2)[0], reference.softmax_crossentropy(logits, LABELS, 0.2))


def test_the_place_of_the_maximum() -> None:
    x = torch.tensor([[1.0, 3.0, -1.0, -2.0], [2.0, 0.0, -3.0, 0.0]]).view(1, 1, 2, 4)
    _, code = reference.pool_forward(x, None, (2, 2), True)
    assert code is not None and code.flatten().tolist() == [1, reference.DEAD]
