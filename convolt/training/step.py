"""The step: forward, loss, backward, update and metrics as a function of a batch.

Nothing in a step reads the device: losses and metrics are summed there, and `Totals.read` is the one place that waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from convolt import constraints
from convolt.data.batches import Batch
from convolt.errors import DoesNotFitError, ShapeError, StateError, explain
from convolt.layout import to_inside, to_outside
from convolt.losses import Loss, targets_to_inside
from convolt.modes import evaluating
from convolt.training.heads import Head
from convolt.training.kept import KeptState
from convolt.training.memory import Room, is_out_of_memory

T = TypeVar("T")
Part = tuple[Batch, list[Tensor], list[Tensor]]  # some samples of a batch, their labels and outputs


def enter(x: Tensor, dtype: str | None, data_format: str = "channels_last") -> Tensor:
    """Returns an input as the model takes it: channel axis at index 1, cast to `dtype`.

    Without a `dtype`, pictures (uint8, or three axes and more) and all floats become float32; other integers stay.
    """
    x = to_inside(x) if data_format == "channels_last" else x
    if dtype is not None:
        return x.to(getattr(torch, dtype))
    if x.is_floating_point() or x.dtype in (torch.uint8, torch.bool) or x.ndim > 2:
        return x.to(torch.float32)
    return x


def flat_outputs(outputs: Any) -> list[Tensor]:
    """Returns a model's outputs as a list: one tensor, a tuple, or a mapping in its order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return list(outputs.values()) if isinstance(outputs, dict) else list(outputs)


class Totals:
    """Sums of losses on the device, and the metrics, of an epoch so far."""

    def __init__(self, heads: Sequence[Head], device: torch.device) -> None:
        self.heads = heads
        self.names = ["loss", *(f"{h.name}_loss" for h in heads if len(heads) > 1 and h.loss is not None)]
        self._sums = torch.zeros(len(self.names), device=device)
        self._count = torch.zeros((), device=device)
        self._device = device

    def add(self, losses: Sequence[Tensor], batch: Batch, labels: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Adds one batch: its losses (total first) weighted by its size, and its predictions to the metrics."""
        self.add_losses(losses, batch.size)
        self.add_predictions(batch, labels, outputs)

    def add_losses(self, losses: Sequence[Tensor], size: int) -> None:
        """Adds the losses of a batch, total first."""
        sums = losses[0].detach() if len(losses) == 1 else torch.stack([loss.detach().float() for loss in losses])
        self._sums.add_(sums, alpha=size)
        self._count.add_(size)

    def add_predictions(self, batch: Batch, labels: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Adds the predictions of a batch, or of a part of one, to the metrics."""
        for i, head in enumerate(self.heads):
            for metric in head.metrics:
                metric.update(labels[i], outputs[i])
            for metric in head.weighted_metrics:
                metric.update(labels[i], outputs[i], batch.weights[i] if batch.weights else None)

    def reset(self) -> None:
        """Starts a new epoch."""
        self._sums.zero_()
        self._count.zero_()
        for head in self.heads:
            for metric in head.all_metrics():
                metric.reset()

    def tensors(self) -> dict[str, Tensor]:
        """Returns the live sums by name, for a checkpoint."""
        metrics = {f"{i}.{j}.{name}": value for i, head in enumerate(self.heads) for j, metric in enumerate(head.all_metrics())
                   for name, value in metric.state().items()}
        return {"sums": self._sums, "count": self._count, **metrics}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` returned."""
        self._sums.copy_(tensors["sums"])
        self._count.copy_(tensors["count"])
        for i, head in enumerate(self.heads):
            for j, metric in enumerate(head.all_metrics()):
                prefix = f"{i}.{j}."
                metric.load_state({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})

    def result_names(self) -> list[str]:
        """Returns the names of the results, in order."""
        single = len(self.heads) == 1
        return [*self.names, *((m.name if single else f"{h.name}_{m.name}") for h in self.heads for m in h.all_metrics())]

    def results(self) -> list[Tensor]:
        """Returns the results on the device, in the order of their names."""
        return [*(self._sums / self._count.clamp(min=1)), *(m.result() for h in self.heads for m in h.all_metrics())]

    def read(self) -> dict[str, Any]:
        """Returns the results as floats (matrices as arrays). SYNC: waits for the device, once for all of them."""
        values = self.results()
        sizes = [value.numel() for value in values]
        flat = torch.cat([value.detach().reshape(-1).to(self._device, torch.float32) for value in values]).cpu().split(sizes)  # type: ignore[no-untyped-call]
        return {name: part.item() if value.ndim == 0 else part.reshape(value.shape).numpy()
                for name, value, part in zip(self.result_names(), values, flat, strict=True)}


class Step:
    """One training or evaluation step of a model.

    Args:
        model: the module; `penalties()` is added to the training loss where it has such a method.
        heads: loss and metrics for each output.
        optimizer: updates the parameters; None for evaluation alone.
        precision: torch dtype of the computation.
        device: where it runs.
        micro_batch: most samples that are computed at once; None: the whole batch. A batch gives one update all the same.

    When memory runs out, fewer samples are computed at once from then on (`convolt.training.memory`). A step that is tried
    again begins as the first attempt did: nothing but buffers and random state has changed by then, and both are put back.
    """

    def __init__(self, model: Any, heads: Sequence[Head], optimizer: Any, precision: torch.dtype, device: torch.device,
                 micro_batch: int | None = None) -> None:
        self._model = model
        self._heads = heads
        self._optimizer = optimizer
        self._device = device
        self._constrained = constraints.gather(model)
        self.precision = precision  # of training; a plan may choose another one
        self._given_precision = precision
        self.together = 1  # steps that are executed between two looks at callbacks
        self.module: Any = model  # what runs in the model's place, once a plan has chosen it
        self.train_totals = Totals(heads, device)
        self.test_totals = Totals(heads, device)
        self.room = Room("training", micro_batch)
        self.test_room = Room("evaluation", micro_batch)
        self.kept = KeptState(model)
        self._changing = False

    def begin_epoch(self) -> None:
        """Is called before the batches of each epoch, for what stands in for the step."""

    def train_together(self, batches: Sequence[Batch]) -> None:
        """Trains on several batches, one step after the other."""
        for batch in batches:
            self.train(batch)

    def train(self, batch: Batch) -> None:
        """Forward, loss, backward, update; adds to `train_totals`."""
        self._optimizer.prepare_step()
        self.attempt(lambda: self.device_part(batch), batch)
        self._optimizer.finish_step()

    def attempt(self, work: Callable[[], T], batch: Batch | None) -> T:
        """Returns what `work`, a `device_part` or its capture, does; tries with smaller micro-batches when memory runs out."""
        if batch is None:
            return work()
        self.kept.keep()

        def undo() -> None:
            self.kept.put_back()
            self._optimizer.zero_grad()

        return self.room.attempt(work, batch.size, undo)

    def device_part(self, batch: Batch) -> None:
        """What a training step does on the device, fit for capture in a graph; `prepare_step` and `finish_step` surround it."""
        batch = batch.ready()
        losses, parts = self._gradients(batch)
        try:
            self._changing = True
            self._optimizer.update(partial(self._gradients_again, batch) if self._optimizer.needs_closure else None)
            self.apply_constraints()
            self._optimizer.zero_grad()
            self.train_totals.add_losses(losses, batch.size)
            for part in parts:
                self.train_totals.add_predictions(*part)
        except (RuntimeError, MemoryError) as error:
            if self._changing and is_out_of_memory(error):
                raise DoesNotFitError(explain("training", "too little memory for the update of the weights, which is half done",
                                              "memory for it beside the gradients", "Begin anew, or from a checkpoint, with an "
                                              "optimizer that keeps less, such as SGD or Lion.")) from error
            raise
        self._changing = False

    def apply_constraints(self) -> None:
        """Brings constrained weights back to where they may be."""
        constraints.apply(self._constrained)

    def _gradients(self, batch: Batch) -> tuple[list[Tensor], list[Part]]:
        """Computes the gradients of a batch; returns its losses, and the labels and outputs of its parts."""
        pieces = self.room.pieces(batch)
        return self._piece_by_piece(batch, pieces, lambda losses: losses[0].backward())  # type: ignore[no-untyped-call]

    def _gradients_again(self, batch: Batch) -> None:
        """Computes gradients at other weights, and changes nothing else: buffers are put back."""
        self._changing = False  # the caller puts the weights back if this fails
        with self.kept.buffers():
            self._gradients(batch)
        self._changing = True

    def _piece_by_piece(self, batch: Batch, pieces: Sequence[Batch],
                        then: Callable[[list[Tensor]], None]) -> tuple[list[Tensor], list[Part]]:
        """Computes the parts of a batch, so that their losses add up to the batch's; `then` gets those of each part."""
        if len(pieces) == 1:
            losses, labels, outputs = self.compute(batch, self.module, self.precision)
            then(losses)
            return losses, [(batch, labels, outputs)]
        total: list[Tensor] = []
        parts: list[Part] = []
        for piece, shares in zip(pieces, self._shares(batch, pieces), strict=True):
            losses, labels, outputs = self.compute(piece, self.module, self.precision, shares)
            then(losses)
            total = [a + b.detach() for a, b in zip(total, losses, strict=True)] if total else [loss.detach() for loss in losses]
            parts.append((piece, labels, outputs))
        return total, parts

    @torch.no_grad()
    def _shares(self, batch: Batch, pieces: Sequence[Batch]) -> list[list[Any]]:
        """Returns for each part what its losses, and last its penalties, count in those of the batch.

        A mean over all samples is the mean of the parts, weighted by their sizes. Where sample weights, ignored classes or
        masks decide what a loss is divided by, a forward pass that changes nothing finds that out first.
        """
        sizes = [piece.size / batch.size for piece in pieces]
        divisors = self._divisors(pieces[:1])
        if any(divisor is not None for divisor in divisors[0]):
            divisors = self._divisors(pieces)
        columns: list[list[Any]] = []
        for i, head in enumerate(self._heads):
            if divisors[0][i] is None:
                columns.append([1.0] * len(pieces) if head.loss is not None and head.loss.reduction == "sum" else sizes)
            else:
                own = torch.stack([row[i] for row in divisors])
                whole = own.sum()
                columns.append(list((torch.where(own == 0, 1, own) / torch.where(whole == 0, 1, whole)).unbind()))
        return [list(row) for row in zip(*columns, sizes, strict=True)]

    def _divisors(self, pieces: Sequence[Batch]) -> list[list[Any]]:
        """Returns for each part and output what its loss is divided by; None where that is the number of samples."""
        found = []
        with self.kept.buffers(), evaluating(self.module), autocast(self._device, self.precision):
            for piece in pieces:
                outputs = flat_outputs(self.module(*self.inputs(piece)))
                goals = self._goals(piece, self._labels(piece, outputs), outputs)
                found.append([None if loss is None else loss.divisor(goal, outputs[i], piece.weights[i] if piece.weights else None)
                              for i, (loss, goal) in enumerate(goals)])
        return found

    def forget_plan(self) -> None:
        """Runs the model itself again, in the precision that was given."""
        self.module, self.precision = self._model, self._given_precision

    @contextmanager
    def given_precision(self) -> Iterator[None]:
        """Computes in the precision that was given: what is evaluated must not depend on what a plan found fast."""
        chosen, self.precision = self.precision, self._given_precision
        try:
            yield
        finally:
            self.precision = chosen

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Forward and loss; adds to `test_totals`."""
        room = self.test_room
        with self.given_precision():
            losses, parts = room.attempt(lambda: self._piece_by_piece(batch, room.pieces(batch), lambda losses: None), batch.size)
        self.test_totals.add_losses(losses, batch.size)
        for part in parts:
            self.test_totals.add_predictions(*part)

    def compute(self, batch: Batch, module: Any, precision: torch.dtype,
                shares: Sequence[Any] | None = None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Returns (losses, total first; labels; outputs) of `module`, which is the model or stands in for it.

        Args:
            batch: or a part of one.
            module: takes the inputs.
            precision: of the computation.
            shares: factor of each output's loss, and last of the penalties, where `batch` is a part.
        """
        with autocast(self._device, precision):
            outputs = flat_outputs(module(*self.inputs(batch)))
            labels = self._labels(batch, outputs)
            return self._losses(batch, labels, outputs, shares), labels, outputs

    def loss_alone(self, batch: Batch, module: Any, precision: torch.dtype) -> Tensor:
        """Returns the loss of `module` without penalties on weights and activities, also in float64."""
        given = [x.double() if precision == torch.float64 and x.is_floating_point() else x for x in self.inputs(batch)]
        with nullcontext() if precision == torch.float64 else autocast(self._device, precision):
            outputs = flat_outputs(module(*given))
            loss = sum(self._terms(batch, self._labels(batch, outputs), outputs)[1], start=torch.zeros((), device=self._device))
        self._model.penalties()  # forgets those of this run's activities
        return loss

    def inputs(self, batch: Batch) -> list[Tensor]:
        """Returns what the model's forward takes for a batch."""
        dtypes = self._model.input_dtypes or [None] * len(batch.x)
        return [enter(x, dtype, self._model.data_format) for x, dtype in zip(batch.x, dtypes, strict=True)]

    def _labels(self, batch: Batch, outputs: Sequence[Tensor]) -> list[Tensor]:
        if len(batch.y) != len(outputs):
            raise ShapeError(explain("labels", f"{len(batch.y)} array(s)", f"{len(outputs)}, one for each output of the model",
                                      "Give y, or a dataset of (x, y)." if not batch.y else ""))
        return [targets_to_inside(y, output.ndim) for y, output in zip(batch.y, outputs, strict=True)]

    def _goals(self, batch: Batch, labels: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[tuple[Loss | None, Tensor]]:
        """Returns each output's loss and the labels that it takes: soft ones where pictures were mixed."""
        if not batch.soft:
            return [(head.loss, label) for head, label in zip(self._heads, labels, strict=True)]
        return [(head.soft_loss, targets_to_inside(soft, output.ndim))
                for head, soft, output in zip(self._heads, batch.soft, outputs, strict=True)]

    def _losses(self, batch: Batch, labels: Sequence[Tensor], outputs: Sequence[Tensor], shares: Sequence[Any] | None) -> list[Tensor]:
        """Returns the total loss, then (with several outputs) the loss of each."""
        parts, terms = self._terms(batch, labels, outputs, shares)
        terms = [*terms, *(penalty if shares is None else penalty * shares[-1] for penalty in self._model.penalties())]
        total = terms[0] if len(terms) == 1 else torch.stack([t.float() for t in terms]).sum()
        return [total, *parts] if len(self._heads) > 1 else [total]

    def _terms(self, batch: Batch, labels: Sequence[Tensor], outputs: Sequence[Tensor],
               shares: Sequence[Any] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Returns (losses of the outputs, the same times their factors)."""
        parts: list[Tensor] = []
        terms: list[Tensor] = []
        for i, (loss, goal) in enumerate(self._goals(batch, labels, outputs)):
            if loss is not None:
                part = loss(goal, outputs[i], batch.weights[i] if batch.weights else None)
                part = part if shares is None else part * shares[i]
                parts.append(part)
                weight = self._heads[i].weight
                terms.append(part if weight == 1.0 else part * weight)
        if not terms:
            raise StateError(explain("compile(loss)", None, "a loss for at least one output",
                                     'For example loss="sparse_categorical_crossentropy".'))
        return parts, terms


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Returns the context in which a model computes: bf16 where asked for, with weights in float32."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def leave(output: Tensor) -> Tensor:
    """Returns an output as the user sees it: channels last, float32 where it was computed in bf16."""
    output = to_outside(output.detach())
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
