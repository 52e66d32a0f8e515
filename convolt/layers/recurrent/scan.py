"""From step to step over a sequence: PyTorch's fused operations where they give Keras's result, a loop where not.

Masks, as in Keras: at a step that a mask leaves out, the states stay as they were and the output is that of the step
before (zeros at the beginning).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from convolt.devices import lacks_bfloat16
from convolt.layers.recurrent.cells import GatedCell, LSTMCell

Step = Callable[[int, Any], tuple[Tensor, Any]]
"""Computes one step: (its number, states) → (output, new states)."""


def loop(step: Step, count: int, states: Any, mask: Tensor | None) -> tuple[list[Tensor], Any]:
    """Returns (the output of each step, the last states).

    Args:
        step: one step.
        count: number of steps.
        states: tensors in nested lists.
        mask: bool `(batch, steps)`; None counts every step.
    """
    outputs: list[Tensor] = []
    for t in range(count):
        output, new = step(t, states)
        if mask is not None:
            counted = mask[:, t]
            output = chosen(counted, output, outputs[-1] if outputs else torch.zeros_like(output))
            new = chosen(counted, new, states)
        outputs.append(output)
        states = new
    return outputs, states


def chosen(counted: Tensor, new: Any, old: Any) -> Any:
    """Returns `new` for the samples that count, `(batch,)`, and `old` for the others; tensors in nested lists."""
    if isinstance(new, (list, tuple)):
        return [chosen(counted, a, b) for a, b in zip(new, old, strict=True)]
    return torch.where(counted.reshape(-1, *(1,) * (new.ndim - 1)), new, old.to(new.dtype))


def scan(cell: GatedCell, x: Tensor, states: list[Tensor], mask: Tensor | None, *, sequences: bool, last_states: bool,
         fused: bool) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """Runs a gated cell over `x` `(batch, steps, features)`.

    Args:
        cell: built.
        x: inputs.
        states: before the first step.
        mask: bool `(batch, steps)`, or None.
        sequences: whether the outputs of all steps are wanted.
        last_states: whether the states after the last step are wanted.
        fused: whether PyTorch's fused operation may be used.

    Returns:
        (outputs of all steps `(batch, steps, units)` or None, output of the last step `(batch, units)`, last states).
    """
    fused = fused and not (isinstance(cell, LSTMCell) and lacks_bfloat16(x))  # PyTorch hands LSTMs to oneDNN, which refuses
    if fused and cell.why_not_fused() is None and (mask is None or not (last_states and isinstance(cell, LSTMCell))):
        noise = cell.noise(x[:, 0])
        x = x if noise.inputs is None else x * noise.inputs[0].unsqueeze(1)
        with _without_hint(x.device):
            return _fused(cell, x, states, mask, sequences)
    noise = cell.noise(x[:, 0])
    projected = cell.project(x.transpose(0, 1), noise).unbind()
    outputs, states = loop(lambda t, s: cell.advance(projected[t], s, noise), x.shape[1], states, mask)
    return torch.stack(outputs, 1) if sequences else None, outputs[-1], states


def _fused(cell: GatedCell, x: Tensor, states: list[Tensor], mask: Tensor | None,
           sequences: bool) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """Computes all steps in one operation.

    Under a mask, each sample's steps that count are moved to the front before it, and its outputs back to their places after
    it: the states never see the others. An LSTM's c is not known then, which is why `scan` loops where it is wanted.
    """
    if mask is None:
        y, after = cell.fused(x, states)
        return y if sequences else None, after[0], after
    order = torch.argsort(mask.logical_not().to(torch.uint8), dim=1, stable=True)
    y, _ = cell.fused(x.gather(1, order.unsqueeze(-1).expand(x.shape)), states)
    position = mask.cumsum(1).sub_(1).unsqueeze(-1)  # of the last step that counted so far; -1 before the first
    last = position[:, -1:]
    h = y.gather(1, last.clamp(min=0).expand(-1, 1, y.shape[-1])).squeeze(1)
    began = (last >= 0).squeeze(1)
    spread = torch.where(position >= 0, y.gather(1, position.clamp(min=0).expand(y.shape)), 0.0) if sequences else None
    return spread, torch.where(began, h, 0.0), [torch.where(began, h, states[0].to(h.dtype))]


@contextmanager
def _without_hint(device: torch.device) -> Iterator[None]:
    """On CUDA, PyTorch advises to keep an RNN's weights in one block of memory, which Keras's order of gates and one bias rule out."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield


def scan_stack(cells: Sequence[GatedCell], x: Tensor, states: Sequence[Any], mask: Tensor | None, **options: Any) -> Any:
    """Runs gated cells that are stacked, one after the other over the whole sequence; like `scan`, with states of each cell."""
    after: list[Any] = []
    result: Any = None
    for i, (cell, own) in enumerate(zip(cells, states, strict=True)):
        wanted = {**options, "sequences": options["sequences"] or i < len(cells) - 1}
        result = scan(cell, x, list(own) if isinstance(own, (list, tuple)) else [own], mask, **wanted)
        after.append(result[2] if isinstance(own, (list, tuple)) else result[2][0])
        x = result[0] if result[0] is not None else x
    return result[0], result[1], after
