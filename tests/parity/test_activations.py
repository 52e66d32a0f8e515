"""Every activation against Keras, forward and gradients, in every layout; gradcheck; float32 and bfloat16 against float64."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from convolt import activations
from convolt.activations import registry
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError
from convolt.layout import to_inside, to_outside

ARGUMENTS: dict[str, list[dict]] = {  # for each registered activation, the arguments to try
    "linear": [{}],
    "relu": [{}, {"negative_slope": 0.2}, {"max_value": 1.5}, {"max_value": 6}, {"threshold": 0.7}, {"threshold": -0.4},
             {"negative_slope": 0.2, "max_value": 1.5, "threshold": 0.7}, {"negative_slope": 0.1, "max_value": 6.0}],
    "relu6": [{}],
    "leaky_relu": [{}, {"negative_slope": 0.01}],
    "elu": [{}, {"alpha": 0.5}],
    "selu": [{}],
    "celu": [{}, {"alpha": 0.5}],
    "gelu": [{}, {"approximate": True}],
    "silu": [{}],
    "mish": [{}],
    "softplus": [{}],
    "squareplus": [{}, {"b": 1}],
    "softsign": [{}],
    "tanh": [{}],
    "sigmoid": [{}],
    "log_sigmoid": [{}],
    "exponential": [{}],
    "hard_sigmoid": [{}],
    "hard_silu": [{}],
    "hard_tanh": [{}],
    "hard_shrink": [{}, {"threshold": 0.2}],
    "soft_shrink": [{}, {"threshold": 0.2}],
    "tanh_shrink": [{}],
    "sparse_plus": [{}],
    "sparse_sigmoid": [{}],
    "softmax": [{}, {"axis": 1}, {"axis": -2}],
    "log_softmax": [{}, {"axis": 1}],
    "sparsemax": [{}, {"axis": 1}],
    "glu": [{}, {"axis": 1}],
}
CASES = [(name, arguments) for name, each in ARGUMENTS.items() for arguments in each]
EVERY_CASE = pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{n}{a}" for n, a in CASES])
SHAPES = [(3, 4), (2, 4, 6), (2, 4, 3, 8), (1, 2, 1, 3, 2)]
KINKS = (-3.0, -1.0, -0.5, -0.4, -0.2, 0.0, 0.2, 0.5, 0.7, 1.0, 1.5, 3.0, 6.0)


def sample(shape: tuple[int, ...], limit: float = 7.0) -> torch.Tensor:
    """Returns float64 values in ±limit, at least 0.01 away from kinks, without ties."""
    values = np.linspace(-limit, limit, int(np.prod(shape)))
    for kink in KINKS:
        near = np.abs(values - kink) < 0.01
        values[near] = kink + np.linspace(0.01, 0.02, near.sum())
    return torch.from_numpy(np.random.default_rng(1).permutation(values).reshape(shape))


def ours(name: str, x: torch.Tensor, arguments: dict) -> torch.Tensor:
    return to_outside(registry.find(name)(to_inside(x), **arguments))


def test_every_registered_activation_has_a_case():
    assert set(ARGUMENTS) == set(registry)


def test_every_activation_of_keras_is_known(keras):
    theirs = {n for n in dir(keras.activations) if inspect.isfunction(getattr(keras.activations, n))}
    theirs -= {"deserialize", "get", "serialize"}
    missing = {name for name in theirs if name not in registry or not callable(getattr(activations, name, None))}
    assert missing == {"threshold"}  # its two numbers have no default, so that it cannot be had by name
    x = sample((3, 4))
    torch.testing.assert_close(activations.threshold(x, 0.5, -2.0), torch.where(x > 0.5, x, -2.0))


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_signature_equals_keras(keras, name):
    mine, theirs = (inspect.signature(f).parameters for f in (registry.find(name), getattr(keras.activations, name)))
    assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize(("name", "arguments"), [c for c in CASES if c[0] != "sparsemax"],  # Keras's sparsemax is wrong
                         ids=[f"{n}{a}" for n, a in CASES if n != "sparsemax"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradient_equal_keras(keras, name, arguments, shape):
    mine, theirs = sample(shape).float().requires_grad_(), sample(shape).float().requires_grad_()
    got, expected = ours(name, mine, arguments), getattr(keras.activations, name)(theirs, **arguments)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.rand_like(got)
    got.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@EVERY_CASE
def test_gradcheck(name, arguments):
    x = sample((2, 4, 2, 4), limit=4.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(name, x, arguments), x, atol=1e-7, rtol=1e-5)


@EVERY_CASE
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1.3e-6, 1e-5), (torch.bfloat16, 1.6e-2, 1e-3)],
                         ids=["float32", "bfloat16"])
def test_precision(name, arguments, dtype, rtol, atol):
    x = sample((2, 4, 2, 4)).to(dtype)
    got, exact = ours(name, x, arguments), ours(name, x.double(), arguments)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"sparsemax"}))
def test_nan_is_not_hidden(name):
    x = torch.tensor([[1.0, float("nan"), 1.0, 1.0]])
    assert registry.find(name)(x).isnan().any()


@pytest.mark.parametrize(("name", "value", "limit"), [
    ("sigmoid", 200.0, 1.0), ("softplus", 200.0, 200.0), ("mish", 200.0, 200.0), ("squareplus", -1e9, 1e-9),
    ("log_sigmoid", -200.0, -200.0), ("gelu", -200.0, 0.0), ("silu", -200.0, 0.0)])
def test_large_values_are_finite(name, value, limit):
    assert registry.find(name)(torch.tensor([value])).item() == pytest.approx(limit)


def simplex_projection(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Returns `max(x - t, 0)` with the t, found by bisection, that makes the sum one: the definition of sparsemax."""
    low, high = x.amin(axis, keepdim=True) - 1, x.amax(axis, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        too_low = (x - middle).clamp(min=0).sum(axis, keepdim=True) > 1
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (x - high).clamp(min=0)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparsemax_is_the_nearest_point_of_the_simplex(shape, axis):
    x = sample(shape) / 4
    torch.testing.assert_close(ours("sparsemax", x, {"axis": axis}), simplex_projection(x, axis), rtol=1e-7, atol=1e-9)


def test_squareplus_has_a_gradient_everywhere():
    x = torch.tensor([-1e5, -1.0, 0.0, 1.0, 1e5], requires_grad=True)
    activations.squareplus(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0.27639320, 0.5, 0.72360680, 1.0]), rtol=1e-5, atol=1e-8)


def test_softmax_of_large_logits_is_finite():
    torch.testing.assert_close(activations.softmax(torch.tensor([[1e4, 0.0]])), torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 4, 3, 3)])
def test_logits_are_remembered(name, shape):
    x = torch.randn(shape)
    assert registry.find(name)(x).logits is x


def test_logits_of_another_axis_are_not_remembered():
    assert not hasattr(activations.softmax(torch.randn(2, 4, 3, 3), axis=1), "logits")


def test_names_and_aliases():
    assert activations.get(None) is activations.linear
    assert activations.get("swish") is activations.get("silu") is activations.swish is activations.silu
    assert activations.get("hard_swish") is activations.hard_silu
    assert activations.get(torch.sin) is torch.sin
    assert all(activations.get(activations.serialize(f)) is f for _, f in registry.items())


def test_errors():
    with pytest.raises(ArgumentError, match="Did you mean 'relu'"):
        activations.get("relo")
    with pytest.raises(ArgumentTypeError, match="a name, a function or None"):
        activations.get(3)
    with pytest.raises(ShapeError, match="even size of axis -1"):
        activations.glu(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="-2 to 1 for an input with 2 axes"):
        activations.softmax(torch.zeros(2, 3), axis=2)
