"""Products of matrices by oneDNN: equal to float64's but for rounding, in each memory order, and done so only where they are asked for."""

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from convolt import products

SHAPES = {  # of x, features of the result
    "wide": ((64, 96), 300), "narrow": ((64, 300), 96), "tokens": ((4, 37, 80), 120), "rows": ((8, 512), 512), "columns": ((1100, 40), 33)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what oneDNN multiplied."""
    seen: list[tuple[int, ...]] = []
    real = products._onednn

    def watched(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append((*a.shape, b.shape[1]))
        return real(a, b, bias)

    monkeypatch.setattr(products, "_onednn", watched)
    yield seen


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_results_and_gradients_are_float64s(name: str, bias: bool, turned: bool, calls: list[tuple[int, ...]]) -> None:
    shape, features = SHAPES[name]
    x = torch.randn(*reversed(shape)).permute(*reversed(range(len(shape)))) if turned else torch.randn(shape)
    weight = torch.randn(shape[-1], features).t() if turned else torch.randn(features, shape[-1])
    given = [x, weight, *([torch.randn(features)] if bias else [])]
    mine, exact = ([t.detach().to(dtype).requires_grad_() for t in given] for dtype in (torch.float32, torch.float64))
    with products.by_onednn():
        y = products.linear(*mine)
    expected = F.linear(*exact)
    grad = torch.randn(y.shape)
    assert len(calls) == 1
    got = [y, *torch.autograd.grad(y, mine, grad)]
    assert len(calls) == 3
    for a, b in zip(got, [expected, *torch.autograd.grad(expected, exact, grad.double())], strict=True):
        assert a.shape == b.shape
        assert float((a - b).detach().norm()) <= 1e-6 * float(b.detach().norm())


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_gradients_that_nobody_wants_are_not_computed(wanted: str, calls: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(64, 300, requires_grad=wanted == "x"), torch.randn(96, 300, requires_grad=wanted == "weight")
    with products.by_onednn():
        y = products.linear(x, weight)
    y.sum().backward()
    assert len(calls) == 2
    assert (x.grad is not None, weight.grad is not None) == (wanted == "x", wanted == "weight")


def test_what_is_not_for_onednn_is_pytorchs(calls: list[tuple[int, ...]]) -> None:
    x, weight, bias = torch.randn(64, 300), torch.randn(96, 300), torch.randn(96)
    products.linear(x, weight, bias)
    assert products.matrix_product(x, weight.t()) is None
    with products.by_onednn():
        few, small = products.linear(x[:7], weight, bias), products.linear(x, weight[:9], bias[:9])
        torch.testing.assert_close(few, F.linear(x[:7], weight, bias), rtol=0, atol=0)
        torch.testing.assert_close(small, F.linear(x, weight[:9], bias[:9]), rtol=0, atol=0)
        assert products.linear(x.double(), weight.double()).dtype == torch.float64
        assert products.linear(x[:0], weight).shape == (0, 96)
        assert products.linear(x[:, :0], weight[:, :0]).shape == (64, 96)
        with torch.autocast("cpu", torch.bfloat16):
            assert products.linear(x, weight, bias).dtype == torch.bfloat16
        other: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: other.append(products.linear(x, weight, bias)))
        thread.start()
        thread.join()
    assert len(other) == 1
    products.linear(x, weight, bias)
    assert calls == []


def test_an_error_inside_ends_it(calls: list[tuple[int, ...]]) -> None:
    with pytest.raises(ZeroDivisionError), products.by_onednn():
        raise ZeroDivisionError
    products.linear(torch.randn(64, 300), torch.randn(96, 300))
    assert calls == []


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("slow", [True, False])
def test_products_without_gradients_are_onednns_where_pytorchs_are_slow(slow: bool, bias: bool, calls: list[tuple[int, ...]],
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_at_half_rate", lambda: slow)
    a, b, shift = torch.randn(64, 300), torch.randn(300, 96), torch.randn(96) if bias else None
    exact = a.double() @ b.double() + (0 if shift is None else shift.double())
    torch.testing.assert_close(products.product(a, b, shift).double(), exact, rtol=1e-5, atol=1e-4)
    assert products.product(a.bfloat16(), b.bfloat16(), None if shift is None else shift.bfloat16()).dtype == torch.bfloat16
    assert len(calls) == slow
