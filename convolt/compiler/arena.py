"""The memory of programs (see `program.py`): one piece, in which each block has a place for as long as it is needed.

What is known in advance can be packed: of ResNet-18's step at batch 128, 1,470 MiB of blocks lie in 546. glibc, which has to decide block
by block, leaves holes between them that nothing fits, a third of the process.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import sys
from typing import NamedTuple

import torch

LINE = 64
"""Bytes of a cache line, at which each block begins."""


_OWN: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
"""By default memory is shared with forked processes, and is not given back."""


class Life(NamedTuple):
    """When a block is needed.

    Attributes:
        first, last: numbers of the calls.
        size: bytes.
    """

    first: int
    last: int
    size: int


class Arena:
    """Memory that the programs of one training share: one is done before the next one begins."""

    def __init__(self) -> None:
        self._mapped: mmap.mmap | None = None
        self.memory = torch.empty(0, dtype=torch.uint8).untyped_storage()

    def fit(self, size: int) -> bool:
        """Makes it so many bytes large if it is smaller; returns whether it has moved, after which programs made before are not to be run.

        Raises:
            MemoryError: there is no such memory.
        """
        if size <= self.memory.nbytes():
            return False
        try:
            self._mapped = mmap.mmap(-1, size, **_OWN)
        except OSError as error:
            raise MemoryError(f"no memory of {size / 2**20:,.0f} MiB for a program ({error.strerror})") from error
        self._advise("MADV_HUGEPAGE")
        self.memory = torch.frombuffer(self._mapped, dtype=torch.uint8).untyped_storage()
        return True

    def release(self) -> None:
        """Gives the memory back to the system until a program runs again."""
        self._advise("MADV_DONTNEED")

    def _advise(self, name: str) -> None:
        if self._mapped is not None and sys.platform == "linux" and hasattr(mmap, name):
            with contextlib.suppress(OSError):  # a kernel without large pages, or memory that is locked: nothing depends on it
                self._mapped.madvise(getattr(mmap, name))


def placed(blocks: dict[int, Life]) -> tuple[dict[int, int], int]:
    """Returns where blocks lie in one piece of memory, in bytes from its beginning, and how large that is.

    Blocks that are needed at the same time lie apart. The largest are placed first, each as far in front as it fits.
    """
    offsets: dict[int, int] = {}
    before: list[tuple[int, int, int, int]] = []  # (begin, end, first, last) of what is placed, sorted
    for block in sorted(blocks, key=lambda each: (-blocks[each].size, blocks[each].first, each)):
        first, last, size = blocks[block]
        offset = 0
        for begin, end, earliest, latest in before:
            if earliest <= last and first <= latest:
                if offset + size <= begin:
                    break
                offset = max(offset, -(-end // LINE) * LINE)
        offsets[block] = offset
        bisect.insort(before, (offset, offset + size, first, last))
    return offsets, max((end for _, end, _, _ in before), default=0)
