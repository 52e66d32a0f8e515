"""The two ways in which batches reach the device.

`Resident`: the arrays are on the device as they are (uint8 stays uint8) and a batch is gathered there.
`Streamed`: batches come from the host one after the other: generators, PyTorch loaders, arrays too large for the device.

Both give `Batch`es whose tensors are on the device and channels-last in memory; nothing in here waits for the device.
Both can start in the middle of an epoch, which is how a stopped training goes on with the very next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convolt.errors import ArgumentError, explain


@dataclass(frozen=True)
class Batch:
    """One step's data, on the device, axes as the user gave them (channels last).

    Attributes:
        x: inputs, in the order of the model's inputs.
        y: labels, in the order of the model's outputs; empty for `predict`.
        weights: sample weights for each output; empty without weights.
        size: number of samples.
    """

    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    size: int


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Returns a generator of random numbers keyed by (seed, epoch), on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def epoch_order(count: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """Returns the order of samples in an epoch: a permutation keyed by (seed, epoch), the same on every device.

    Args:
        count: number of samples.
        seed: of the order.
        epoch: number of the epoch, from 0.
        rank: which of several readers asks; each gets every `ranks`-th sample of the one permutation.
        ranks: how many readers there are. Together they see each sample once; where `count` is no multiple of `ranks`
            the first readers see one sample more than the last.

    Raises:
        ArgumentError: there is no such rank.
    """
    if not 0 <= rank < ranks:
        raise ArgumentError(explain("epoch_order(rank)", f"{rank} of {ranks}", f"a number from 0 to {max(ranks, 1) - 1}"))
    return torch.randperm(count, generator=epoch_generator(seed, epoch))[rank::ranks]


class Resident:
    """Arrays that lie on the device; a shuffled batch is one gather for each array.

    Args:
        x, y, weights: tensors with the samples along axis 0.
        batch_size: samples per batch; the last one may be smaller.
        device: where the batches are needed.
        seed: of the order of samples; None keeps the arrays' order.
    """

    def __init__(self, x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[Tensor], batch_size: int,
                 device: torch.device, seed: int | None = None) -> None:
        self.samples = len(x[0])
        self.steps = -(-self.samples // batch_size)
        self._parts = tuple(tuple(t.to(device) for t in part) for part in (x, y, weights))
        self._batch_size = batch_size
        self._device = device
        self._seed = seed

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch, from batch number `first` on."""
        starts = range(first * self._batch_size, self.samples, self._batch_size)
        if self._seed is None:
            for start in starts:
                yield self._batch(lambda t, start=start: t[start : start + self._batch_size])  # type: ignore[misc]
            return
        order = epoch_order(self.samples, self._seed, epoch).to(self._device)
        for start in starts:
            chosen = order[start : start + self._batch_size]
            yield self._batch(lambda t, chosen=chosen: t.index_select(0, chosen))  # type: ignore[misc]

    def _batch(self, take: Callable[[Tensor], Tensor]) -> Batch:
        x, y, weights = (tuple(take(t) for t in part) for part in self._parts)
        return Batch(x, y, weights, len(x[0]))


HostBatch = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


class Streamed:
    """Batches that come from the host, sent to the device without waiting.

    Args:
        source: called with the epoch's number and a batch's number, returns the batches (x, y, weights) of that epoch
            from that batch on.
        device: where the batches are needed.
        steps: batches per epoch, None where only the end of the source tells.
        samples: samples per epoch, None where unknown.
        repeatable: whether the source can be read again from the start of an epoch; a running generator cannot.
        generators: random generators of the source's own, which decide its order.
    """

    def __init__(self, source: Callable[[int, int], Iterator[HostBatch]], device: torch.device, steps: int | None = None,
                 samples: int | None = None, repeatable: bool = True, generators: Sequence[torch.Generator] = ()) -> None:
        self._source = source
        self._device = device
        self.steps = steps
        self.samples = samples
        self.repeatable = repeatable
        self.generators = tuple(generators)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Returns the batches of one epoch, from batch number `first` on; those before it are behind when this returns."""
        return (Batch(self._sent(x), self._sent(y), self._sent(weights), len(x[0])) for x, y, weights in self._source(epoch, first))

    def _sent(self, part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self._send(t) for t in part)

    def _send(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def stream_arrays(x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[Tensor], batch_size: int, device: torch.device,
                  seed: int | None) -> Streamed:
    """Returns arrays that do not fit on the device as a stream of batches, gathered on the host."""
    host = Resident(x, y, weights, batch_size, torch.device("cpu"), seed)

    def source(epoch: int, first: int) -> Iterator[HostBatch]:
        for batch in host.epoch(epoch, first):
            yield batch.x, batch.y, batch.weights

    return Streamed(source, device, host.steps, host.samples)


def fits_on(device: torch.device, tensors: Sequence[Tensor]) -> bool:
    """Returns whether tensors may be uploaded whole: always on the CPU, up to half of the free memory on a GPU."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(t.nbytes for t in tensors) <= free // 2
