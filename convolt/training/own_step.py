"""Steps that a model defines itself, in `train_step` or `test_step`, and what becomes of the values that they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.data.batches import Batch
from convolt.errors import ArgumentError, ArgumentTypeError, DoesNotFitError, StateError, explain
from convolt.training.heads import Head
from convolt.training.memory import is_out_of_memory
from convolt.training.step import Step, T, Totals, autocast, flat_outputs


def defines(model: Any, method: str) -> bool:
    """Whether a model has a `method` of its own (`train_step`, `test_step`) in place of the standard one."""
    found = getattr(type(model), method, None)
    return found is not None and not getattr(found, "standard", False)


class LoggedTotals(Totals):
    """Means over an epoch of the values that a step returns, beside the metrics.

    A value that has the name of a metric in `model.metrics` is that metric's own result; the others are averaged over the
    samples, on the device.
    """

    def __init__(self, model: Any, heads: Any, device: torch.device) -> None:
        super().__init__(heads, device)
        known = {id(metric) for head in heads for metric in head.all_metrics()}
        self._own = [metric.to(device) for metric in model.metrics if id(metric) not in known]
        self._forget([])

    def _forget(self, names: list[str]) -> None:
        self.names = names
        self._sums = torch.zeros(len(names), device=self._device)

    def add_logs(self, logs: Any, size: int) -> None:
        """Adds what a step returned for `size` samples."""
        if not isinstance(logs, Mapping):
            raise ArgumentTypeError(explain("train_step (or test_step)", f"a result of type {type(logs).__name__}",
                                            "a dict of names and values", 'For example return {"loss": loss}.'))
        metrics = set(super().result_names()[len(self.names) :]) | {metric.name for metric in self._own}
        values = {name: value for name, value in logs.items() if name not in metrics}
        if new := [name for name in values if name not in self.names]:
            self.names = [*self.names, *new]
            self._sums = torch.cat([self._sums, self._sums.new_zeros(len(new))])
        for name, value in values.items():
            plain = value.detach().float() if isinstance(value, Tensor) else float(value)
            self._sums[self.names.index(name)].add_(plain, alpha=size)
        self._count.add_(size)

    def reset(self) -> None:
        super().reset()
        for metric in self._own:
            metric.reset()

    def result_names(self) -> list[str]:
        return [*super().result_names(), *(metric.name for metric in self._own)]

    def results(self) -> list[Tensor]:
        return [*super().results(), *(metric.result() for metric in self._own)]

    def tensors(self) -> dict[str, Tensor]:
        logged = {f"log.{name}": self._sums[i] for i, name in enumerate(self.names)}
        own = {f"own.{i}.{name}": value for i, metric in enumerate(self._own) for name, value in metric.state().items()}
        return {**{name: value for name, value in super().tensors().items() if name != "sums"}, **logged, **own}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        logged = {name.removeprefix("log."): value for name, value in tensors.items() if name.startswith("log.")}
        self._forget(list(logged))
        for i, metric in enumerate(self._own):
            prefix = f"own.{i}."
            metric.load_state({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
        sums = torch.stack([*logged.values()]) if logged else self._sums
        super().load_tensors({**tensors, "sums": sums})


class OwnStep(Step):
    """A step whose work is the model's `train_step(data)` or `test_step(data)`.

    `self(x)` in there is what the plan chose to run in the model's place, and on CUDA the whole step is captured in a graph
    as any other, if `model.optimizer` is the one optimizer that it uses. Batches are not split.
    """

    def __init__(self, model: Any, heads: Sequence[Head], optimizer: Any, precision: torch.dtype, device: torch.device,
                 micro_batch: int | None = None) -> None:
        super().__init__(model, heads, optimizer, precision, device)
        if micro_batch is not None:
            raise StateError(explain("compile(micro_batch)", f"{micro_batch} with a train_step of your own", "None",
                                     "Only Convolt's own step can be computed in parts."))
        if defines(model, "train_step"):
            self.train_totals = LoggedTotals(model, self._heads, self._device)
        if defines(model, "test_step"):
            self.test_totals = LoggedTotals(model, self._heads, self._device)

    @property
    def trains_itself(self) -> bool:
        """Whether the model has a `train_step` of its own."""
        return isinstance(self.train_totals, LoggedTotals)

    def attempt(self, work: Callable[[], T], batch: Batch | None) -> T:
        """Returns what `work` does; one batch is one piece of work."""
        if not self.trains_itself:
            return super().attempt(work, batch)
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise DoesNotFitError(explain("train_step", "too little memory", "memory for a whole batch: a step of your own "
                                              "is not computed in parts", "Give fit a smaller batch_size.")) from error
            raise

    def device_part(self, batch: Batch) -> None:
        """Runs `train_step`; see `Step.device_part`."""
        if not isinstance(self.train_totals, LoggedTotals):
            super().device_part(batch)
            return
        batch = batch.ready()
        if batch.soft:
            raise ArgumentError(explain("fit(augment)", "mixed pictures and a train_step of your own", "pictures of one class each",
                                        "Leave out MixUp and CutMix, or mix in train_step."))
        with self._optimizer.prepared():
            logs = self._run(self._model.train_step, batch)
        self.apply_constraints()
        self._optimizer.zero_grad()
        self.train_totals.add_logs(logs, batch.size)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Runs `test_step` where the model has its own."""
        if isinstance(self.test_totals, LoggedTotals):
            with self.given_precision():
                self.test_totals.add_logs(self._run(self._model.test_step, batch), batch.size)
        else:
            super().evaluate(batch)

    def _run(self, method: Callable[[Any], Any], batch: Batch) -> Any:
        """Calls the model's method with the batch in Keras's form: x, (x, y) or (x, y, sample_weight)."""
        x, y, weights = (one_or_all(part) for part in (self.inputs(batch), batch.y, batch.weights))
        given = x if y is None else (x, y) if weights is None else (x, y, weights)
        self._model.own_step = self
        try:
            return method(given)
        finally:
            self._model.own_step = None

    # -- what the model's methods call -------------------------------------------------------------------------------

    def call(self, *inputs: Any) -> Any:
        """Runs the model, in the form and precision of the plan."""
        with autocast(self._device, self.precision):
            return self.module(*inputs)

    def loss_of(self, y: Any, outputs: Any, weights: Any) -> Tensor:
        """Returns the compiled loss with all penalties."""
        batch, flat = _batch(y, weights), flat_outputs(outputs)
        with autocast(self._device, self.precision):
            return self._losses(batch, self._labels(batch, flat), flat, None)[0]

    def add_to_metrics(self, y: Any, outputs: Any, weights: Any) -> dict[str, Tensor]:
        """Adds predictions to the compiled metrics and returns their results so far."""
        totals = self.train_totals if self._model.training else self.test_totals
        batch, flat = _batch(y, weights), flat_outputs(outputs)
        totals.add_predictions(batch, self._labels(batch, flat), flat)
        names = totals.result_names()[len(totals.names) :]
        return dict(zip(names, (m.result() for h in self._heads for m in h.all_metrics()), strict=False))


def one_or_all(values: Any) -> Any:
    """Returns None for nothing, one value as it is, and several as a list."""
    return None if not values else values[0] if len(values) == 1 else list(values)


def _batch(y: Any, weights: Any) -> Batch:
    def spread(values: Any) -> tuple[Tensor, ...]:
        return () if values is None else tuple(flat_outputs(values))

    labels = spread(y)
    return Batch((), labels, spread(weights), len(labels[0]) if labels else 0)


def make_step(model: Any, heads: Sequence[Head], optimizer: Any, precision: torch.dtype, device: torch.device,
              micro_batch: int | None) -> Step:
    """Returns the step of a model: its own where it defines one."""
    own = defines(model, "train_step") or defines(model, "test_step")
    return (OwnStep if own else Step)(model, heads, optimizer, precision, device, micro_batch)


def other_optimizer(model: Any) -> str | None:
    """Returns why a `train_step` cannot be captured in a graph: the model keeps optimizers beside the compiled one."""
    if not defines(model, "train_step"):
        return None
    others = [name for name, value in vars(model).items() if hasattr(value, "prepare_step") and value is not model.optimizer]
    return f"train_step may use the optimizer in {others[0]!r}, whose numbers a graph would freeze" if others else None
