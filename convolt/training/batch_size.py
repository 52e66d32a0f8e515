"""`batch_size="auto"`: the largest batch that fits and is still getting faster, found by measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convolt.compiler.host import keep_freed_memory
from convolt.compiler.measure import Probe
from convolt.data.batches import Resident
from convolt.devices import free_bytes
from convolt.training.memory import is_out_of_memory
from convolt.training.sampling import Drawing
from convolt.training.step import Step

AUTO = "auto"
SMALLEST, LARGEST = 16, 4096
STEPS = 16
"""Steps that an epoch has at least: fewer updates than that teach little, however fast they are."""
WORTH = 1.05
"""A batch of twice the size must be this much faster per sample."""
SHARE = 0.5
"""Of the free memory that what the forward pass keeps may take."""
SECONDS = 0.3
"""Spent on the steps of one size, at the most, and at least two steps."""


@dataclass(frozen=True)
class Found:
    """A batch size, why it is this one, and the samples per second of each size that was tried."""

    size: int
    why: str
    rates: dict[int, float]


def find_batch_size(arrays: Sequence[Sequence[Tensor]], drawing: Drawing, step: Step, model: Any, device: torch.device,
                    samples: int | None, most: int = LARGEST) -> Found:
    """Measures forward and backward passes of growing batches, augmentation included; the model is left as it was.

    Args:
        arrays: inputs, labels, weights; where there are fewer than in a batch they are repeated.
        drawing: what becomes of the pictures.
        step: of the training; computes the loss.
        model: built, on its device.
        device: where it runs.
        samples: of an epoch; None where nobody knows.
        most: samples that a batch may have for the memory of the host.
    """
    keep_freed_memory()

    def measure(size: int) -> tuple[float, int]:
        rows = torch.arange(size) % len(arrays[0][0])
        x, y, weights = ([t[rows] if size > len(t) else t[:size] for t in part] for part in arrays)
        data = Resident(x, y, weights, size, device, augment=drawing.augment)
        batch = next(data.epoch())
        probe = Probe(model, lambda module, precision: step.loss_alone(batch.ready(), module, precision), device)
        kept = probe.kept_bytes(model, step.precision)
        return probe.seconds(model, step.precision, budget=SECONDS), kept

    return choose(measure, samples, free_bytes(device), most)


def choose(measure: Callable[[int], tuple[float, int]], samples: int | None, free: int, most: int = LARGEST) -> Found:
    """Returns the size at which doubling stops to pay.

    Args:
        measure: returns (seconds, bytes kept for the backward pass) of a step with so many samples.
        samples: of the training set, None where nobody knows.
        free: bytes of memory.
        most: samples that a batch may have.
    """
    rates: dict[int, float] = {}
    reason = ""
    bound = min(LARGEST, most)
    for size in _sizes(samples, bound):
        try:
            seconds, kept = measure(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not rates:
                raise
            reason = f"{size} at once do not fit into memory"
            break
        faster = size / seconds
        best = max(rates.values(), default=0.0)
        if rates and faster < WORTH * best:
            rates[size] = faster
            reason = f"{size} at once are {faster / best:.2f}× as fast per sample, which is not worth fewer updates"
            break
        rates[size] = faster
        if 2 * kept > SHARE * free:
            reason = f"{2 * size} at once would take more than half of the free memory"
            break
    good = _chosen(rates)
    if not reason and samples is not None and 2 * good > samples // STEPS:
        reason = f"an epoch of {samples:,} samples keeps at least {STEPS} steps"
    reason = reason or (f"no more than {LARGEST} are tried" if most >= LARGEST else "larger ones leave no room to read ahead")
    tried = ", ".join(f"{size}: {rate:,.0f}/s" for size, rate in rates.items())
    note = "" if good == 32 else " The learning rate stays as it is: it may want to grow with the batch."
    return Found(good, f"Batch size {good}: {reason} (measured {tried}).{note}", rates)


def _chosen(rates: dict[int, float]) -> int:
    """Returns the last size that was worth its doubling."""
    chosen, best = 0, 0.0
    for size, rate in rates.items():
        if chosen and rate < WORTH * best:
            break
        chosen, best = size, max(best, rate)
    return chosen


def _sizes(samples: int | None, most: int) -> Iterator[int]:
    """Yields the sizes to try; where samples are few, the only one."""
    size = SMALLEST
    yield size if samples is None else min(size, samples)
    while (size := 2 * size) <= min(most, most if samples is None else samples // STEPS):
        yield size
