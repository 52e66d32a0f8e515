"""Trying candidates on a real batch: how fast a step is, and how far its loss and gradients are from the reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LossOf = Callable[[nn.Module, torch.dtype], Tensor]
"""Computes the loss of a module on the first batch, in a precision."""


@dataclass(frozen=True)
class Gradients:
    """Loss and gradients of one batch, on the device, in float32."""

    loss: Tensor
    flat: Tensor

    def errors(self, reference: Gradients) -> tuple[float, float]:
        """Returns the relative errors (of the loss, of the gradients as one vector) against a reference."""
        scale = reference.flat.norm().clamp(min=1e-30)
        gradient = (self.flat - reference.flat).norm() / scale
        loss = (self.loss - reference.loss).abs() / reference.loss.abs().clamp(min=1e-6)
        return float(loss), float(gradient)


class Probe:
    """Runs forward, loss and backward of candidates; the model is left as it was.

    Args:
        model: whose parameters, buffers and random state are kept.
        loss_of: computes the loss of a candidate on the first batch.
        device: whose work is waited for.
        clock: returns seconds.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._loss_of = loss_of
        self._device = device
        self._clock = clock

    def gradients(self, module: nn.Module, precision: torch.dtype) -> Gradients:
        """Returns loss and gradients of a candidate; each call sees the same random numbers."""
        with self._as_it_was():
            loss = self._run(module, precision)
            grads = [p.grad.float().reshape(-1) for p in self._trained() if p.grad is not None]
            return Gradients(loss.detach().float(), torch.cat(grads))

    def seconds(self, module: nn.Module, precision: torch.dtype, budget: float, warmup: int = 1, most: int = 9) -> float:
        """Returns the median time of a step's forward and backward, from at most `most` runs in about `budget` seconds."""
        times: list[float] = []
        with self._as_it_was():
            for _ in range(warmup):
                self._run(module, precision)
            self._wait()
            start = self._clock()
            while len(times) < 2 or (len(times) < most and self._clock() - start < budget):
                before = self._clock()
                self._run(module, precision)
                self._wait()
                times.append(self._clock() - before)
        return statistics.median(times)

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self._model.parameters() if p.requires_grad]

    def _run(self, module: nn.Module, precision: torch.dtype) -> Tensor:
        for p in self._trained():
            p.grad = None
        loss = self._loss_of(module, precision)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Puts buffers, random state, gradients and modes back at the end."""
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        modes = {module: module.training for module in self._model.modules()}
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._model.train()
            try:
                yield
            finally:
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
                for module, training in modes.items():
                    module.training = training
                for p in self._trained():
                    p.grad = None
