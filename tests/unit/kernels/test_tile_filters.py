"""Filters and their gradients on the way into tiles of 4 × 4 and back, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convolt.kernels import winograd4_numba as tiles
from convolt.kernels.winograd4_filters_numba import gradient, points_of, transform

G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
LAST, PLAIN = torch.channels_last, torch.contiguous_format


def expected_points(weight: Tensor, by_channel: bool, turned: bool) -> Tensor:
    """Returns G w Gᵀ as (36, rows, columns), as it is defined."""
    windows = weight.double().flip(2, 3) if turned else weight.double()
    points = (G @ windows @ G.T).flatten(2).permute(2, 0, 1)  # (36, F, C)
    return points.transpose(1, 2) if by_channel else points


@pytest.mark.parametrize("order", [PLAIN, LAST], ids=["plain", "last"])
@pytest.mark.parametrize("shape", [(16, 16), (48, 32), (64, 80), (144, 160)], ids=str)
@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("width", [32, None])
def test_filters_are_transformed_as_defined(order: torch.memory_format, shape: tuple[int, int], by_channel: bool, turned: bool,
                                            width: int | None) -> None:
    weight = torch.randn(*shape, 3, 3, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=order)
    expected = expected_points(weight, by_channel, turned)
    found = transform(weight, by_channel, turned, width)[0]
    rows, columns = found.shape[1:]
    assert rows == expected.shape[1] and columns == (-(-expected.shape[2] // 32) * 32 if width else expected.shape[2])
    panels = found.reshape(36, -1, rows, width or columns).transpose(1, 2).reshape(36, rows, columns)
    torch.testing.assert_close(panels[..., : expected.shape[2]].double(), expected, rtol=1e-6, atol=1e-6)
    assert not panels[..., expected.shape[2] :].any(), "what no filter fills adds nothing"


@pytest.mark.parametrize("order", [PLAIN, LAST], ids=["plain", "last"])
@pytest.mark.parametrize("shape", [(16, 16), (48, 32), (64, 80), (144, 160)], ids=str)
@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_sums_become_the_gradient_of_filters(order: torch.memory_format, shape: tuple[int, int], by_channel: bool, parts: int) -> None:
    weight = torch.empty(*shape, 3, 3).contiguous(memory_format=order)
    rows, count = shape[::-1] if by_channel else shape
    sums = points_of(rows, -(-count // 32) * 32, parts)
    sums.copy_(torch.randn(sums.shape, generator=torch.Generator().manual_seed(0)))
    points = sums.double().sum(0)[..., :count].unflatten(0, (6, 6)).permute(3, 2, 0, 1)  # (columns, rows, 6, 6)
    expected = G.T @ points @ G
    for given in (sums, sums.contiguous()):
        found = gradient(given, weight, by_channel)
        assert found.stride() == weight.stride()
        torch.testing.assert_close(found.double(), expected if by_channel else expected.transpose(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("least", [8, 1 << 10], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("padding", [(1, 1), (0, 2)], ids=str)
def test_gradients_of_tiles_by_blocks_and_by_chunks(least: int, blocks: bool, padding: tuple[int, int],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    if not blocks:
        monkeypatch.setattr(tiles, "MOST_BY_BLOCKS", 0)
        monkeypatch.setattr(tiles, "LARGEST_SUMS", 0)
    monkeypatch.setattr(tiles, "CACHE", 0)
    monkeypatch.setattr(tiles, "LEAST_TILES", least)
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(5, 48, 9, 10, generator=chance).contiguous(memory_format=LAST)
    weight = torch.randn(80, 48, 3, 3, generator=chance)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    y = torch.conv2d(*exact, padding=padding)
    grad = torch.randn(y.shape, generator=chance).contiguous(memory_format=LAST)
    expected = torch.autograd.grad(y, exact, grad.double())
    torch.testing.assert_close(tiles.forward(x, weight, None, padding).double(), y.detach(), rtol=1e-4, atol=1e-3)
    for found, right in zip(tiles.backward(grad, x, weight, padding, True, True), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=2e-3)
