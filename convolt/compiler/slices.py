"""Recorded runs of several forms in turn, a few milliseconds of each, so that what makes the machine slower meets all of them.

On a busy machine other work slows a processor down for tenths of a second. Of NASNet-Mobile's step of 0.65 s, one run of it and one more
differed by 9% (the standard deviation of 120 runs, as did the least of two or three of each); in slices of 5 ms by 1.2%.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

SLICE_SECONDS = 0.01
"""Of each form before the next one's turn: caches are filled anew in a small part of it."""

Slices = Callable[[], Iterator[None]]
"""Begins a run, which stops between operations, with gradients switched off, until it is asked to go on."""


class SlicedRun:
    """A run that can be done at once or in slices.

    Args:
        slices: of one run.
        bytes_at_once: that it makes, beside what is there before.
    """

    def __init__(self, slices: Slices, bytes_at_once: int = 0) -> None:
        self._slices = slices
        self.bytes_at_once = bytes_at_once

    def __call__(self) -> None:
        """Does all of it."""
        with torch.inference_mode():
            for _ in self._slices():
                pass

    def begin(self) -> Iterator[None]:
        """Returns what does a part of the run each time that it is asked to go on, inside of `torch.inference_mode`."""
        return self._slices()


def seconds_in_slices(run: SlicedRun, other: SlicedRun, times: int, clock: Callable[[], float], hopeless: float) -> tuple[float, float]:
    """Returns how long two runs take, done so many times in slices in turn.

    Args:
        run, other: of different forms.
        times: how often each is done.
        clock: returns seconds.
        hopeless: times the other's time, after which the first one is not waited for; its time is then at least that.
    """
    seconds = [0.0, 0.0]
    left = {0: _repeated(run, times), 1: _repeated(other, times)}
    with torch.inference_mode():
        while left and (1 in left or seconds[0] < hopeless * seconds[1]):
            number = min(left, key=seconds.__getitem__)  # not simply the next: an operation may take longer than a slice
            began = clock()
            ended = next(left[number], True)
            while not ended and clock() < began + SLICE_SECONDS:
                ended = next(left[number], True)
            seconds[number] += clock() - began
            if ended:
                del left[number]
    return seconds[0] / times, seconds[1] / times


def _repeated(run: SlicedRun, times: int) -> Iterator[None]:
    for _ in range(times):
        yield from run.begin()
