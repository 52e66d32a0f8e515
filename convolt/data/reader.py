"""Threads that read ahead: results in the order of the questions, and never more than a few of them at once.

Decoding runs outside Python's lock, so that threads share the work of large pictures. Of small ones (below `SMALL` pixels) most of the
time is Python's own, under its lock: one thread takes 17 µs for each of CIFAR-10's, two take 18, four 26, so one is used.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from convolt.errors import ArgumentError, explain

Question = TypeVar("Question")
Answer = TypeVar("Answer")

MOST_WORKERS = 8
SMALL = 64 * 64

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()


def default_workers(workers: int | None) -> int:
    """Returns the number of threads: the given one, or one per core, at most 8.

    Raises:
        ArgumentError: it is not a whole number from 1.
    """
    if workers is None:
        return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ArgumentError(explain("workers", workers, "a whole number from 1, or None"))
    return workers


def pool(workers: int) -> ThreadPoolExecutor:
    """Returns the process's pool of so many threads; a forked process gets its own."""
    with _lock:
        key = (os.getpid(), workers)
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(workers, thread_name_prefix="convolt-read")
        return _pools[key]


def ahead(work: Callable[[Question], Answer], questions: Iterable[Question], workers: int, most: int) -> Iterator[Answer]:
    """Yields `work(question)` for each question, in their order, computed by several threads ahead of the consumer.

    Args:
        work: called in other threads.
        questions: asked for one by one, in the consumer's thread.
        workers: threads.
        most: answers that are computed or waiting at any time; this bounds the memory.
    """
    threads = pool(workers)
    waiting: deque[Future[Answer]] = deque()
    asked = iter(questions)
    try:
        for question in asked:
            waiting.append(threads.submit(work, question))
            if len(waiting) >= most:
                break
        while waiting:
            answer = waiting.popleft().result()
            for question in asked:
                waiting.append(threads.submit(work, question))
                break
            yield answer
    finally:
        for future in waiting:
            future.cancel()
        for future in waiting:  # what has begun writes into memory of the consumer: it ends first
            if not future.cancelled():
                future.exception()
