"""Damaged files of every kind end in a file that was read or in Convolt's own error, in a process with bounded memory, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.hostile.worker import Result, run

FULL = {"safetensors": 100_000, "h5": 10_000, "keras": 10_000, "images": 10_000, "archives": 10_000, "pickles": 10_000}
SAMPLE = {"safetensors": 600, "h5": 100, "keras": 100, "images": 400, "archives": 400, "pickles": 400}
SECONDS = 5.0
"""By the clock, as the promise says, and so of computing too."""


def read_all(kind: str, count: int, folder: Path) -> Result:
    """Reads mutants and prints the row of docs/safety.md."""
    result = run(kind, count, folder)
    print(f"{kind}: {count:,} mutants, {result.read:,} read, {result.refused:,} refused; the slowest computed for {result.work:.2f} s, "
          f"a process that reads HDF5 for {result.opening:.2f} s; by the clock {result.slowest:.2f} s (number {result.slowest_number})")
    assert result.read > 0.01 * count, "mutants should be near to whole files"
    assert result.refused > 0.2 * count or kind == "pickles", "mutants should be damaged"
    return result


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_sample_of_mutants(kind: str, tmp_path: Path) -> None:
    result = read_all(kind, SAMPLE[kind], tmp_path)
    assert not result.failures, result.failures[:5]
    assert result.count == SAMPLE[kind] and result.slowest < SECONDS and result.work < SECONDS


@pytest.mark.faults_full
@pytest.mark.parametrize("kind", FULL)
def test_all_mutants(kind: str, tmp_path: Path) -> None:
    result = read_all(kind, FULL[kind], tmp_path)
    assert not result.failures, result.failures[:5]
    assert result.count == FULL[kind] and result.slowest < SECONDS and result.work < SECONDS
