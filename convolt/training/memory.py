"""How many samples are computed at once: as many as asked for, and half as many whenever memory runs out."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from convolt.data.batches import Batch
from convolt.errors import ConvoltError, ConvoltWarning, DoesNotFitError, ShapeError, explain

T = TypeVar("T")

_SIGNS = ("DefaultCPUAllocator", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What the messages of PyTorch's allocators say where they raise a plain RuntimeError."""


class OutOfMemoryWarning(ConvoltWarning):
    """Memory ran out; the same is computed with fewer samples at once."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host has no memory left."""
    if isinstance(error, ConvoltError):
        return False
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in _SIGNS)


class Room:
    """The largest number of samples at once.

    Args:
        what: what needs the memory, for messages.
        limit: at first; None: whole batches.

    Attributes:
        limit: the present one.
    """

    def __init__(self, what: str, limit: int | None = None) -> None:
        self.what = what
        self.limit = limit

    def pieces(self, batch: Batch) -> list[Batch]:
        """Returns the batch in as few parts as the limit allows, whose sizes differ by one sample at most."""
        count = 1 if self.limit is None else -(-batch.size // self.limit)
        if count <= 1:
            return [batch]
        cuts = [batch.size * i // count for i in range(count + 1)]
        return [part_of(batch, slice(start, end)) for start, end in itertools.pairwise(cuts)]

    def attempt(self, work: Callable[[], T], size: int, undo: Callable[[], None] | None = None) -> T:
        """Returns what `work` does; when it runs out of memory, halves the limit, calls `undo` and lets it try again.

        Args:
            work: reads `limit` through `pieces`.
            size: samples of the batch.
            undo: puts back what an attempt has changed.

        Raises:
            DoesNotFitError: not even one sample fits.
        """
        began = self._at_once(size)
        reason = ""
        while True:
            failure = None
            try:
                result = work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).split("\n")[0]
            except ShapeError as error:  # of a layer that needs more samples at once than there is memory for
                if not reason:
                    raise
                if undo is not None:
                    undo()
                raise DoesNotFitError(explain(self.what, f"memory for {self._at_once(size)} samples at once ({reason})", "more",
                                              f"So few cannot be computed: {error}")) from error
            if failure is None:  # the error, whose frames hold the attempt's tensors, is forgotten by now
                if reason:
                    warnings.warn(self._note(began, size, reason), OutOfMemoryWarning, stacklevel=5)
                return result
            if undo is not None:
                undo()
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()
            reason = reason or failure
            at_once = self._at_once(size)
            if at_once == 1:
                raise DoesNotFitError(explain(self.what, f"too little memory for one sample ({failure})", "memory for one sample",
                                              'Make the pictures or the model smaller, try precision="bfloat16", or use another device.'))
            self.limit = -(-at_once // 2)

    def _at_once(self, size: int) -> int:
        """Returns the size of the largest part of a batch."""
        count = 1 if self.limit is None else -(-size // self.limit)
        return -(-size // count)

    def _note(self, began: int, size: int, reason: str) -> str:
        same = ("in micro-batches whose gradients are added up: the same update, but batch normalization sees micro-batches"
                if self.what == "training" else "with the same result")
        fix = f" compile(micro_batch={self.limit}) begins like this." if self.what == "training" else ""
        return (f"{self.what}: no memory for {began} samples at once ({reason}); batches of {size} are now computed "
                f"{self._at_once(size)} samples at a time, {same}.{fix}")


def part_of(batch: Batch, chosen: slice) -> Batch:
    """Returns some samples of a batch on which nothing is pending."""
    def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor[chosen] for tensor in tensors)

    return replace(batch, x=cut(batch.x), y=cut(batch.y), weights=cut(batch.weights), soft=cut(batch.soft), size=chosen.stop - chosen.start)
