"""Rows are divided among threads without gaps, errors come back, and a forked child can go on."""

import multiprocessing
import sys
import threading

import pytest
import torch

from convolt.kernels import threads


@pytest.fixture(autouse=True)
def four_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 97])
@pytest.mark.parametrize("size", [1, 1 << 18, 1 << 30])
def test_each_row_once(rows: int, size: int) -> None:
    seen: list[int] = []
    threads.over_rows(lambda first, last: seen.extend(range(first, last)), rows, size)
    assert sorted(seen) == list(range(rows))


def test_small_work_stays_in_the_calling_thread() -> None:
    parts: list[tuple[int, int]] = []
    threads.over_rows(lambda first, last: parts.append((first, last)), 100, threads.SMALLEST_PART)
    assert parts == [(0, 100)]


@pytest.mark.parametrize("bad", [0, 99])
def test_errors_come_back_after_all_are_done(bad: int) -> None:
    done: list[int] = []

    def run(first: int, last: int) -> None:
        if first <= bad < last:
            raise ValueError("row")
        done.append(first)

    with pytest.raises(ValueError, match="row"):
        threads.over_rows(run, 100, 1 << 30)
    assert len(done) == 3


@pytest.mark.skipif(sys.platform != "linux" or not torch.backends.openmp.is_available(), reason="PyTorch has no OpenMP of GNU's kind")
def test_the_main_threads_work_is_done_by_pytorchs_threads() -> None:
    """Other threads would share the cores with those of PyTorch, which spin for a while after each op."""
    meeting, names = threading.Barrier(4, timeout=60), []

    def run(first: int, last: int) -> None:
        meeting.wait()  # all four are at work at once
        names.append(threading.current_thread().name)

    threads.over_rows(run, 100, 1 << 30)
    assert len(names) == 4
    assert not [name for name in names if name.startswith("convolt-kernel")]


@pytest.mark.parametrize("rows", [2, 4, 97])
def test_other_threads_have_a_pool(rows: int) -> None:
    seen: list[int] = []
    caller = threading.Thread(target=lambda: threads.over_rows(lambda first, last: seen.extend(range(first, last)), rows, 1 << 30))
    caller.start()
    caller.join(timeout=60)
    assert sorted(seen) == list(range(rows))


def _child(queue: "multiprocessing.Queue[int]") -> None:
    seen: list[int] = []
    threads.over_rows(lambda first, last: seen.extend(range(first, last)), 50, 1 << 30)
    queue.put(len(seen))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads() -> None:
    threads.over_rows(lambda first, last: None, 50, 1 << 30)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == 50
    child.join(timeout=30)
    assert child.exitcode == 0
