"""Rows are divided among threads without gaps, errors come back, and a forked child can go on."""

import multiprocessing
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

from convolt.kernels import threads
from convolt.kernels.compiled import Compiled


@pytest.fixture(autouse=True)
def four_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@Compiled
def count(seen: Any, factor: Any, first: Any, last: Any) -> None:
    """Adds one for each row, and says in how large a part it was."""
    for row in range(first, last):
        seen[0, row] += factor
        seen[1, row] = last - first


@Compiled
def greedy(sizes: Any, first: Any, last: Any) -> None:
    """Wants more memory for row 0 than there is."""
    work = np.empty(sizes[0] if first == 0 else 1, np.uint8)
    work[0] = 1
    sizes[1] += work[0]


def counted(rows: int, size: int) -> np.ndarray:
    seen = np.zeros((2, rows), np.int64)
    count.over_rows((seen, 1), rows, size)
    return seen


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 97])
@pytest.mark.parametrize("size", [1, 1 << 18, 1 << 30])
def test_each_row_once(rows: int, size: int) -> None:
    assert counted(rows, size)[0].tolist() == [1] * rows


def test_small_work_stays_in_one_part() -> None:
    assert counted(100, threads.SMALLEST_PART)[1].tolist() == [100] * 100
    assert counted(100, 1 << 30)[1].tolist() == [25] * 100


def test_no_memory_is_an_error_of_the_caller() -> None:
    with pytest.raises(MemoryError, match="greedy"):
        greedy.over_rows((np.array([1 << 60, 0]),), 100, 1 << 30)


@pytest.mark.parametrize("bad", [0, 99])
def test_errors_of_a_pool_come_back_after_all_are_done(bad: int) -> None:
    done: list[int] = []

    def run(first: int, last: int) -> None:
        if first <= bad < last:
            raise ValueError("row")
        done.append(first)

    with pytest.raises(ValueError, match="row"):
        threads.in_pool(run, 100, 4)
    assert len(done) == 3


@pytest.mark.skipif(sys.platform != "linux" or not torch.backends.openmp.is_available(), reason="PyTorch has no OpenMP of GNU's kind")
def test_the_main_threads_work_is_done_by_pytorchs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads would share the cores with those of PyTorch, which spin for a while after each op."""
    monkeypatch.setattr(threads, "in_pool", None)
    assert counted(97, 1 << 30)[0].tolist() == [1] * 97


@pytest.mark.parametrize("rows", [2, 4, 97])
def test_other_threads_have_a_pool(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []
    real = threads.in_pool
    monkeypatch.setattr(threads, "in_pool", lambda run, rows, parts: (pools.append(parts), real(run, rows, parts)))
    seen: list[Any] = []
    caller = threading.Thread(target=lambda: seen.append(counted(rows, 1 << 30)))
    caller.start()
    caller.join(timeout=60)
    assert seen[0][0].tolist() == [1] * rows
    assert pools == [min(4, rows)]


def _child(queue: "multiprocessing.Queue[int]") -> None:
    queue.put(int(counted(50, 1 << 30)[0].sum()))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads() -> None:
    counted(50, 1 << 30)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == 50
    child.join(timeout=30)
    assert child.exitcode == 0
