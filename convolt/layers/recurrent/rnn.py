"""`RNN`: a cell over all steps of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convolt.errors import ArgumentError, ShapeError, StateError, explain
from convolt.layers.base import Layer, leaves, registry
from convolt.layers.recurrent.cells import GatedCell
from convolt.layers.recurrent.scan import loop, scan_stack
from convolt.layers.recurrent.stacked import StackedRNNCells, initial_state, output_size, states_of
from convolt.layers.symbolic import map_structure
from convolt.layers.windows import label
from convolt.layout import Shape, outside_shape, to_inside, to_outside


@registry.register()
class RNN(Layer):
    """Calls a cell on each step of a sequence, with the states that the step before left.

    Args:
        cell: has `call(inputs, states)` (or `forward`), which returns (output, new states), and `state_size`, a number or a list
            of them; optionally `output_size` and `get_initial_state(batch_size)`. A list of cells is stacked.
        return_sequences: whether the output has all steps, or the last alone.
        return_state: whether the last states are returned too: `[output, *states]`.
        go_backwards: from the last step to the first; outputs come in that order.
        stateful: each batch starts with the states that the one before left, sample by sample; see `reset_state`. Batches of
            different sizes have states of their own.
        unroll: accepted; the loop is always unrolled.
        zero_output_for_mask: outputs are zero at steps that a mask leaves out, instead of that of the step before.

    Called as `layer(sequences, initial_state=None, mask=None)`: states as a list of tensors, mask bool `(batch, steps)`; without
    one, that of the sequences counts (see `convolt.masks`).

    Shapes: (batch, steps, features) → (batch, units), or (batch, steps, units) with `return_sequences`.
    Keras counterpart: `keras.layers.RNN`.
    """

    def __init__(self, cell: Any, return_sequences: bool = False, return_state: bool = False, go_backwards: bool = False,
                 stateful: bool = False, unroll: bool = False, zero_output_for_mask: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(cell, (list, tuple)):
            cell = StackedRNNCells(cell)
        elif isinstance(cell, (dict, str)):
            cell = registry.make(cell, Layer)
        if not (isinstance(cell, nn.Module) or hasattr(cell, "call")):
            raise ArgumentError(explain(f"{type(self).__name__}(cell)", repr(cell),
                                        "a cell with `call(inputs, states)`, or a list of cells"))
        states_of(cell)
        self.cell = cell
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.unroll = unroll
        self.zero_output_for_mask = zero_output_for_mask

    @property
    def state_size(self) -> list[Any]:
        """Size of each state."""
        return list(states_of(self.cell))

    # -- building --------------------------------------------------------------------------------------------------

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        shape = tuple(sequences_shape)
        if len(shape) < 3 or (self._gated() is not None and len(shape) != 3):
            raise ShapeError(explain(label(self), f"input of shape {shape}", "(batch, steps, features)",
                                     "Pictures (batch, height, width) are sequences of rows; one with channels needs Reshape."))
        if isinstance(self.cell, Layer):
            self.cell.ensure_built((shape[0], *shape[2:]))
        if self.stateful and shape[0] is not None:
            self._kept_states(shape[0], next(self.parameters(), torch.zeros(0)))

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> Any:
        batch, steps = sequences_shape[:2]
        size = output_size(self.cell)
        output = (batch, steps, size) if self.return_sequences else (batch, size)
        if not self.return_state:
            return output
        if any(not isinstance(size, int) for size in self.state_size):
            raise StateError(explain(f"{label(self)} called on an Input with return_state", "stacked cells, whose states are nested",
                                     "a cell with a flat list of states", "Use one recurrent layer for each cell."))
        return [output, *((batch, size) for size in self.state_size)]

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of the steps if there are steps in the output; states have none."""
        mask = mask[0] if isinstance(mask, list) else mask
        own = mask if self.return_sequences else None
        return [own, *[None] * len(self.state_size)] if self.return_state else own

    # -- states ----------------------------------------------------------------------------------------------------

    def get_initial_state(self, batch_size: int) -> list[Any]:
        """Returns the states with which a sequence begins where none are given."""
        states = initial_state(self.cell, batch_size)
        return list(states) if isinstance(states, (list, tuple)) else [states]

    def reset_state(self) -> None:
        """Sets the states of a stateful layer to zero."""
        for name, buffer in self._buffers.items():
            if name.startswith("state_") and buffer is not None:
                buffer.zero_()

    reset_states = reset_state

    def _kept_states(self, batch: int, like: Tensor) -> list[Any]:
        """Returns the buffers that keep the states between batches of this size; they never move, so that a captured step finds them."""
        made = map_structure(lambda s: s.to(like.device, like.dtype), self.get_initial_state(batch))
        names = [f"state_{batch}_{i}" for i in range(len(list(leaves(made))))]
        for name, value in zip(names, leaves(made), strict=True):
            if name not in self._buffers:
                self.register_buffer(name, torch.zeros_like(value).copy_(value), persistent=False)
        kept = iter([self._buffers[name] for name in names])
        return map_structure(lambda _: next(kept), made)  # type: ignore[no-any-return]

    def _first_states(self, x: Tensor, initial_state: Any) -> list[Any]:
        if initial_state is not None:
            given = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
            if len(given) != len(self.state_size):
                raise ShapeError(explain(f"{label(self)} (initial_state)", f"{len(given)} tensors",
                                         f"{len(self.state_size)}, of sizes {self.state_size}"))
            return given
        if self.stateful:  # a copy: the buffers change before the backward pass needs these
            return map_structure(lambda s: s.to(x.dtype, copy=True), self._kept_states(x.shape[0], x))  # type: ignore[no-any-return]
        return map_structure(lambda s: s.to(x.device, x.dtype), self.get_initial_state(x.shape[0]))  # type: ignore[no-any-return]

    # -- computing -------------------------------------------------------------------------------------------------

    @property
    def why_not_fused(self) -> str | None:
        """Why PyTorch's fused operations (oneDNN, cuDNN) do not compute this layer; None if they do.

        Under a mask, an LSTM whose last states are wanted (`return_state`, `stateful`) goes from step to step as well.
        """
        cells = self._gated()
        if cells is None:
            return "the cell is one of your own"
        return next((reason for cell in cells if (reason := cell.why_not_fused()) is not None), None)

    def _gated(self) -> list[GatedCell] | None:
        """Returns the cells if all of them are Convolt's own."""
        cells = list(self.cell.cells) if type(self.cell) is StackedRNNCells else [self.cell]
        return cells if all(isinstance(cell, GatedCell) and cell.flat for cell in cells) else None

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults, and why the layer is not fused if it is not."""
        reason = self.why_not_fused
        parts = [super().extra_repr(), f"step by step: {reason}" if reason else ""]
        return ", ".join(part for part in parts if part)

    def forward(self, sequences: Tensor, initial_state: Any = None, mask: Any = None) -> Any:
        mask = mask[0] if isinstance(mask, list) else mask
        if sequences.ndim < 3 or sequences.shape[2] == 0:
            raise ShapeError(explain(label(self), f"input of shape {outside_shape(sequences)}", "(batch, steps, …) with at least one step"))
        states = self._first_states(sequences, initial_state)
        if mask is not None:
            mask = mask.bool().flip(1) if self.go_backwards else mask.bool()
        x = sequences.flip(2) if self.go_backwards else sequences
        outputs, last, after = self._run(x, states, mask)
        if mask is not None and self.zero_output_for_mask:
            last = torch.where(mask[:, -1].reshape(-1, *(1,) * (last.ndim - 1)), last, 0.0)
            if outputs is not None:
                outputs = torch.where(mask.reshape(*mask.shape, *(1,) * (outputs.ndim - 2)), outputs, 0.0)
        if self.stateful:
            for buffer, value in zip(leaves(self._kept_states(x.shape[0], x)), leaves(after), strict=True):
                buffer.copy_(value.detach())
        output = last if outputs is None else to_inside(outputs)
        return [output, *after] if self.return_state else output

    def _run(self, x: Tensor, states: list[Any], mask: Tensor | None) -> tuple[Tensor | None, Tensor, list[Any]]:
        """Returns (outputs of all steps, channels last, or None; output of the last; last states) of `x` in its order."""
        cells = self._gated()
        if cells is not None and x.ndim == 3:
            stacked = isinstance(self.cell, StackedRNNCells)
            outputs, last, after = scan_stack(cells, to_outside(x), states if stacked else [states], mask, sequences=self.return_sequences,
                                              last_states=self.return_state or self.stateful, fused=self._may_fuse())
            return outputs, last, after if stacked else after[0]
        for module in self.modules():
            if isinstance(module, GatedCell):
                module.hold_noise(True)
        try:
            each, after = loop(self._step(x), x.shape[2], states, mask)
        finally:
            for module in self.modules():
                if isinstance(module, GatedCell):
                    module.hold_noise(False)
        return torch.stack([to_outside(y) for y in each], 1) if self.return_sequences else None, each[-1], after

    def _may_fuse(self) -> bool:
        return True

    def _step(self, x: Tensor) -> Any:
        """Returns the function of one step for the loop over `x`, whose axis of steps is at index 2."""
        steps = x.unbind(2)
        call = self.cell if callable(self.cell) else self.cell.call

        def step(t: int, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
            output, new = call(steps[t], list(states))
            return output, list(new) if isinstance(new, (list, tuple)) else [new]

        return step
