"""The step: forward, loss, backward, update and metrics as a function of a batch.

Nothing in a step reads the device: losses and metrics are summed there, and `Totals.read` is the one place that waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from convolt import constraints
from convolt.data.batches import Batch
from convolt.errors import ShapeError, StateError, explain
from convolt.layout import to_inside, to_outside
from convolt.losses import targets_to_inside
from convolt.training.heads import Head


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
        self._sums.add_(torch.stack([loss.detach().float() for loss in losses]), alpha=batch.size)
        self._count.add_(batch.size)
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

    def read(self) -> dict[str, Any]:
        """Returns the results as floats (matrices as arrays). SYNC: waits for the device, once for all of them."""
        values = [*(self._sums / self._count.clamp(min=1)), *(m.result() for h in self.heads for m in h.all_metrics())]
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
    """

    def __init__(self, model: Any, heads: Sequence[Head], optimizer: Any, precision: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._heads = heads
        self._optimizer = optimizer
        self._device = device
        self._constrained = constraints.gather(model)
        self.precision = precision
        self.module: Any = model  # what runs in the model's place, once a plan has chosen it
        self.train_totals = Totals(heads, device)
        self.test_totals = Totals(heads, device)

    def train(self, batch: Batch) -> None:
        """Forward, loss, backward, update; adds to `train_totals`."""
        self._optimizer.prepare_step()
        self.device_part(batch)
        self._optimizer.finish_step()

    def device_part(self, batch: Batch) -> None:
        """What a training step does on the device, fit for capture in a graph; `prepare_step` and `finish_step` surround it."""
        losses, labels, outputs = self.compute(batch, self.module, self.precision)
        losses[0].backward()  # type: ignore[no-untyped-call]
        self._optimizer.update()
        constraints.apply(self._constrained)
        self._optimizer.zero_grad()
        self.train_totals.add(losses, batch, labels, outputs)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Forward and loss; adds to `test_totals`."""
        losses, labels, outputs = self.compute(batch, self.module, self.precision)
        self.test_totals.add(losses, batch, labels, outputs)

    def compute(self, batch: Batch, module: Any, precision: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Returns (losses, total first; labels; outputs) of `module`, which is the model or stands in for it."""
        with autocast(self._device, precision):
            outputs = flat_outputs(module(*self.inputs(batch)))
            labels = self._labels(batch, outputs)
            return self._losses(batch, labels, outputs), labels, outputs

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
            raise ShapeError(explain("labels", f"{len(batch.y)} array(s)", f"{len(outputs)}, one for each output of the model"))
        return [targets_to_inside(y, output.ndim) for y, output in zip(batch.y, outputs, strict=True)]

    def _losses(self, batch: Batch, labels: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the total loss, then (with several outputs) the loss of each."""
        parts, terms = self._terms(batch, labels, outputs)
        terms = [*terms, *self._model.penalties()]
        total = terms[0] if len(terms) == 1 else torch.stack([t.float() for t in terms]).sum()
        return [total, *parts] if len(self._heads) > 1 else [total]

    def _terms(self, batch: Batch, labels: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns (losses of the outputs, the same times their factors)."""
        parts: list[Tensor] = []
        terms: list[Tensor] = []
        for i, head in enumerate(self._heads):
            if head.loss is not None:
                part = head.loss(labels[i], outputs[i], batch.weights[i] if batch.weights else None)
                parts.append(part)
                terms.append(part if head.weight == 1.0 else part * head.weight)
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
