"""Blocks of sums are cut to the registers of the processor that is compiled for, and come out the same."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from convolt.kernels import vectors_numba  # noqa: E402 - it loads Numba

PROCESSORS = {"AVX-512": (32, 16), "AVX2": (16, 8), "NEON": (32, 4), "SSE": (16, 4)}
"""Registers, and float32 in each."""


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(("rows", "vectors"), list(itertools.product((1, 2, 3, 6, 8), (1, 2, 4))))
def test_parts_of_a_block_fit_the_registers_and_leave_nothing_out(processor: str, rows: int, vectors: int,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    count, numbers = PROCESSORS[processor]
    monkeypatch.setattr(vectors_numba, "registers", lambda: (count, numbers))
    tiles = vectors_numba.tiles_of(rows, vectors)
    assert sorted(part for tile in tiles for part in tile) == list(itertools.product(range(rows), range(vectors)))
    for tile in tiles:
        assert 16 // numbers * (len(tile) + len({v for _, v in tile})) < count


@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_product_is_the_same_whatever_the_registers(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_numba, "registers", lambda: PROCESSORS[processor])
    multiply, gather = vectors_numba.product(8, 2), vectors_numba.gathered_sums(3, 4)

    @numba.njit
    def product(a: Any, b: Any, c: Any, add: Any) -> None:
        multiply(a, 0, 10, 5, 1, b, 0, 32, c, 0, 32, 2, 5, add)

    @numba.njit
    def gathered(total: Any, source: Any, place: Any, factor: Any) -> None:
        gather(total, 0, 64, source, 0, 64, place, factor, 0, 4)

    rng = np.random.default_rng(0)
    a, b, start = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 10), (10, 32), (8, 32)))
    for add in (0, 1):
        c = start.copy().reshape(-1)
        product(a.reshape(-1), b.reshape(-1), c, add)
        np.testing.assert_allclose(c.reshape(8, 32), a @ b + add * start, rtol=1e-5, atol=1e-5)
    total, source, factor = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 64), (6, 64), (4,)))
    expected = total + sum(factor[k] * source[k : k + 3] for k in range(4))
    flat = total.copy().reshape(-1)
    gathered(flat, source.reshape(-1), np.arange(4) * 64, factor)
    np.testing.assert_allclose(flat.reshape(3, 64), expected, rtol=1e-5, atol=1e-5)
