"""Recorded runs of several forms in turn, a few milliseconds of each, so that what makes the machine slower meets all of them.

On a busy machine other work slows a processor down for tenths of a second. Of NASNet-Mobile's step of 0.65 s, one run of it and one more
differed by 9% (the standard deviation of 120 runs, as did the least of two or three of each); in slices of 5 ms by 1.2%.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

SLICE_SECONDS = 0.01
"""Of each form before the next one's turn: caches are filled anew in a small part of it."""

Slices = Callable[[], Iterator[None]]
"""Begins a run, which stops between operations, with gradients switched off, until it is asked to go on."""


class SlicedRun:
    """A run that can be done at once or in slices.

    Args:
        slices: of one run.
    """

    def __init__(self, slices: Slices) -> None:
        self._slices = slices

    def __call__(self) -> None:
        """Does all of it."""
        with torch.inference_mode():
            for _ in self._slices():
                pass

    def begin(self) -> Iterator[None]:
        """Returns what does a part of the run each time that it is asked to go on."""
        return self._slices()


def seconds_in_slices(runs: Sequence[SlicedRun], times: int, clock: Callable[[], float]) -> list[float]:
    """Returns how long each run takes, done so many times in slices in turn.

    Args:
        runs: of different forms.
        times: how often each is done.
        clock: returns seconds.
    """
    seconds = [0.0] * len(runs)
    left = {number: _repeated(run, times) for number, run in enumerate(runs)}
    with torch.inference_mode():
        while left:
            number = min(left, key=seconds.__getitem__)  # an operation may take longer than a slice
            before, ended = clock(), False
            while not ended and clock() < before + SLICE_SECONDS:
                ended = next(left[number], True) or False
            seconds[number] += clock() - before
            if ended:
                del left[number]
    return [each / times for each in seconds]


def _repeated(run: SlicedRun, times: int) -> Iterator[None]:
    for _ in range(times):
        yield from run.begin()
