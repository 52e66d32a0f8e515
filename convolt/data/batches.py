"""The two ways in which batches reach the device.

`Resident`: the arrays are on the device as they are (uint8 stays uint8) and a batch is gathered there.
`Streamed`: batches come from the host one after the other: generators, PyTorch loaders, arrays too large for the device.

Both give `Batch`es whose tensors are on the device and channels-last in memory; nothing in here waits for the device.
Both can start in the middle of an epoch, which is how a stopped training goes on with the very next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

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
        pending: what the step does to the pictures before all else; None where there is nothing left to do.
        soft: labels that the loss takes in place of `y`, where pictures were mixed; metrics always take `y`.
        ids: a number for each sample, int64 on the CPU, where its place in the epoch does not tell which it is.
    """

    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    size: int
    pending: Pending | None = None
    soft: tuple[Tensor, ...] = ()
    ids: Tensor | None = None

    def ready(self) -> Batch:
        """Returns the batch as the model gets it: augmented on its device, without waiting for it."""
        return self if self.pending is None else self.pending.augment.finish(self)

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that differ from one batch to the next; arrays that are gathered in the step are none of them."""
        own = [] if self.gathers else [*self.x, *self.y, *self.weights, *self.soft]
        if self.pending is None:
            return own
        return [*own, self.pending.keys, *(() if self.pending.index is None else (self.pending.index,))]

    @property
    def gathers(self) -> bool:
        """Whether the tensors are whole arrays, of which the step takes some rows."""
        return self.pending is not None and self.pending.index is not None

    def copied(self) -> Batch:
        """Returns the batch with copies of `tensors()`."""
        parts = {name: getattr(self, name) for name in ("x", "y", "weights", "soft")}
        if not self.gathers:
            parts = {name: tuple(t.clone() for t in part) for name, part in parts.items()}
        if self.pending is None:
            return replace(self, **parts)
        index = self.pending.index
        pending = replace(self.pending, keys=self.pending.keys.clone(), index=None if index is None else index.clone())
        return replace(self, **parts, pending=pending)


class Augments(Protocol):
    """What changes the pictures of a training on the device, decided by keys; see `convolt.training.augmenting`."""

    def keys(self, epoch: int, ids: Tensor) -> Tensor:
        """Returns an int64 key for each sample of an epoch, from which all of its random numbers follow."""

    def stage(self, epoch: int) -> Hashable:
        """Returns what differs between epochs in which the step does different work, such as pictures of another size."""

    def finish(self, batch: Batch) -> Batch:
        """Does what is pending: on the device alone, fit for capture in a graph."""


@dataclass(frozen=True)
class Pending:
    """Work that the step begins with.

    Attributes:
        augment: does it.
        keys: int64 `(size,)`, of the random numbers of each sample.
        index: rows of the batch's whole arrays that make it up; None where they are the batch.
        stage: see `Augments.stage`.
    """

    augment: Augments
    keys: Tensor
    index: Tensor | None
    stage: Hashable = None


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


Order = Callable[[int], Tensor]
"""The rows of an epoch in their order, on the CPU; some may come several times."""


def draw_ids(rows: Tensor, count: int) -> Tensor:
    """Returns a number for each draw of an epoch: the row, plus `count` for each earlier draw of the same row.

    Args:
        rows: of an epoch, in their order.
        count: number of samples.
    """
    ordered, places = torch.sort(rows, stable=True)
    earlier = torch.arange(len(rows)) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rows).scatter_(0, places, ordered + count * earlier)


class Resident:
    """Arrays that lie on the device; a shuffled batch is one gather for each array.

    Args:
        x, y, weights: tensors with the samples along axis 0.
        batch_size: samples per batch; the last one may be smaller.
        device: where the batches are needed.
        seed: of the order of samples; None keeps the arrays' order.
        order: the rows of each epoch, in place of the order by `seed`.
        steps: most batches of an epoch.
        augment: changes the pictures in the step, which then gathers them, too.
    """

    def __init__(self, x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[Tensor], batch_size: int,
                 device: torch.device, seed: int | None = None, *, order: Order | None = None, steps: int | None = None,
                 augment: Augments | None = None) -> None:
        self._count = len(x[0])
        by_seed = None if seed is None else lambda epoch: epoch_order(self._count, seed, epoch)
        self.order: Order | None = order or by_seed
        drawn = self._count if order is None else len(order(0))
        self.samples = drawn if steps is None else min(drawn, steps * batch_size)
        self.steps = -(-self.samples // batch_size)
        self.batch_size = batch_size
        self._parts = tuple(tuple(t.to(device) for t in part) for part in (x, y, weights))
        self.residency, self.why = "resident", f"{_megabytes(t for part in self._parts for t in part)} on {device}"
        self._device = device
        self._augment = augment

    def ids(self, epoch: int) -> Tensor:
        """Returns a number for each sample of an epoch, in the epoch's order, on the CPU."""
        if self.order is None:
            return torch.arange(self.samples)
        return draw_ids(self.order(epoch)[: self.samples], self._count)

    def epoch(self, epoch: int = 0, first: int = 0, seen: int | None = None) -> Iterator[Batch]:
        """Yields the batches of one epoch, from batch number `first` on."""
        order = None if self.order is None else self.order(epoch).to(self._device)
        keys = None if self._augment is None else self._augment.keys(epoch, self.ids(epoch)).to(self._device)
        for start in range(first * self.batch_size, self.samples, self.batch_size):
            chosen = slice(start, min(start + self.batch_size, self.samples))
            rows = chosen if order is None else order[chosen]
            yield self._batch(rows) if keys is None else self._pending(rows, keys[chosen], epoch)

    def _batch(self, rows: slice | Tensor) -> Batch:
        x, y, weights = (tuple(_take(t, rows) for t in part) for part in self._parts)
        return Batch(x, y, weights, len(x[0]))

    def _pending(self, rows: slice | Tensor, keys: Tensor, epoch: int) -> Batch:
        assert self._augment is not None
        index = torch.arange(rows.start, rows.stop, device=self._device) if isinstance(rows, slice) else rows
        x, y, weights = self._parts
        return Batch(x, y, weights, len(keys), Pending(self._augment, keys, index, self._augment.stage(epoch)))


def _take(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


HostBatch = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


class Streamed:
    """Batches that come from the host, sent to the device without waiting.

    Args:
        source: called with the epoch's number and a batch's number, returns the batches (x, y, weights) of that epoch
            from that batch on; (x, y, weights, ids) where some samples may be left out.
        device: where the batches are needed.
        steps: batches per epoch, None where only the end of the source tells.
        samples: samples per epoch, None where unknown.
        repeatable: whether the source can be read again from the start of an epoch; a running generator cannot.
        generators: random generators of the source's own, which decide its order.
        augment: changes the pictures in the step.
        ids: a number for each sample of an epoch, in the epoch's order; None: its place in the epoch.
        ahead: on CUDA, copy each batch while the one before it is used. Only for sources that nothing else reads from: they are asked
            for a batch before the one in use is done.
        why: the data do not lie on the device.
        batch_size: samples per batch, None where the source decides.
    """

    residency = "streamed"

    def __init__(self, source: Callable[[int, int], Iterator[HostBatch]], device: torch.device, steps: int | None = None,
                 samples: int | None = None, repeatable: bool = True, generators: Sequence[torch.Generator] = (),
                 augment: Augments | None = None, ids: Order | None = None, ahead: bool = False, why: str = "",
                 batch_size: int | None = None) -> None:
        self._source = source
        self._ahead, self.why = ahead and device.type == "cuda", why
        self._device = device
        self.steps, self.batch_size = steps, batch_size
        self.samples = samples
        self.repeatable = repeatable
        self.generators = tuple(generators)
        self._augment = augment
        self._ids = ids

    def epoch(self, epoch: int = 0, first: int = 0, seen: int | None = None) -> Iterator[Batch]:
        """Returns the batches of one epoch, from batch number `first` on; those before it are behind when this returns.

        Args:
            epoch: number of the epoch, from 0.
            first: number of the first batch.
            seen: samples in the batches before it; of no account where nothing is augmented.
        """
        batches = copied_ahead(self._source(epoch, first), self._to_device, self._device) if self._ahead else (
            self._to_device(item) for item in self._source(epoch, first))
        return batches if self._augment is None else self._keyed(batches, self._augment, epoch, first, seen)

    def _keyed(self, batches: Iterator[Batch], augment: Augments, epoch: int, first: int, seen: int | None) -> Iterator[Batch]:
        """Yields the batches with the keys of their samples."""
        ids = None if self._ids is None else self._ids(epoch)
        assert seen is not None or first == 0, "which samples come next is known by how many came before"
        end = seen or 0
        for batch in batches:
            start, end = end, end + batch.size
            chosen = batch.ids if batch.ids is not None else torch.arange(start, end) if ids is None else ids[start:end]
            yield replace(batch, pending=Pending(augment, self._send(augment.keys(epoch, chosen)), None, augment.stage(epoch)))

    def _to_device(self, item: Any) -> Batch:
        x, y, weights = (self._sent(part) for part in item[:3])
        return Batch(x, y, weights, len(x[0]), ids=item[3] if len(item) == 4 else None)

    def _sent(self, part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self._send(t) for t in part)

    def _send(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(self._device, non_blocking=True)
        return tensor.to(self._device)


def stream_arrays(x: Sequence[Tensor], y: Sequence[Tensor], weights: Sequence[Tensor], batch_size: int, device: torch.device,
                  seed: int | None = None, *, order: Order | None = None, steps: int | None = None,
                  augment: Augments | None = None) -> Streamed:
    """Returns arrays that do not fit on the device as a stream of batches, gathered on the host."""
    host = Resident(x, y, weights, batch_size, torch.device("cpu"), seed, order=order, steps=steps)

    def source(epoch: int, first: int) -> Iterator[HostBatch]:
        for batch in host.epoch(epoch, first):
            yield batch.x, batch.y, batch.weights

    size = _megabytes(t for part in (x, y, weights) for t in part)
    return Streamed(source, device, host.steps, host.samples, augment=augment, ids=host.ids, ahead=True,
                    batch_size=batch_size, why=f"{size}, more than half of what is free on {device}")


def copied_ahead(items: Iterator[HostBatch], send: Callable[[HostBatch], Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches on a CUDA device; while one is used, the next is copied on a stream of its own. The host waits for neither."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sent(item: HostBatch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(side):
            batch = send(item)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(side)
        return batch, done

    def arrived(batch: Batch, done: torch.cuda.Event) -> Batch:
        current = torch.cuda.current_stream(device)
        current.wait_event(done)
        for tensor in (*batch.x, *batch.y, *batch.weights):
            tensor.record_stream(current)  # its memory is not reused before the step has read it
        return batch

    waiting = None
    for item in items:
        following = sent(item)
        if waiting is not None:
            yield arrived(*waiting)
        waiting = following
    if waiting is not None:
        yield arrived(*waiting)


def _megabytes(tensors: Iterable[Tensor]) -> str:
    """Returns the size of tensors as words."""
    size = sum(t.nbytes for t in tensors)
    return f"{size / 2**30:.1f} GB" if size >= 2**29 else f"{size / 2**20:.1f} MB"


def fits_on(device: torch.device, tensors: Sequence[Tensor]) -> bool:
    """Returns whether tensors may be uploaded whole: always on the CPU, up to half of the free memory on a GPU."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(t.nbytes for t in tensors) <= free // 2
