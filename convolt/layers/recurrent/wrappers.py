"""Layers around a layer: both directions of a sequence, and the same layer at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.mask_flow import mask_arguments
from convolt.layers.windows import label
from convolt.layout import Shape, to_inside, to_outside

MERGES = ("concat", "sum", "mul", "ave", None)


def _checked_layer(owner: str, argument: str, layer: Any) -> Layer:
    """Returns a layer given as such or as its configuration."""
    if not isinstance(layer, (Layer, dict)):
        raise ArgumentTypeError(explain(f"{owner}({argument})", repr(layer), "a layer object", "Such as LSTM(32), with its arguments."))
    made: Layer = registry.make(layer, Layer)
    return made


@registry.register()
class Bidirectional(Layer):
    """Runs a recurrent layer forwards and a copy of it backwards, and merges their outputs.

    Args:
        layer: recurrent layer; its configuration is used, with new weights, as in Keras.
        merge_mode: "concat" joins features, "sum", "mul" and "ave" compute; None returns both.
        weights: initial values, in the order of `get_weights`.
        backward_layer: another layer for the way back, with the opposite `go_backwards`.

    With `return_state` the result is `[output, *forward states, *backward states]`. Outputs at masked steps are zero.

    Shapes: (batch, steps, features) → those of the layer, with twice the features for "concat".
    Keras counterpart: `keras.layers.Bidirectional`. Source: Schuster & Paliwal 1997.
    """

    def __init__(self, layer: Any, merge_mode: str | None = "concat", weights: Any = None, backward_layer: Any = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if merge_mode not in MERGES:
            raise ArgumentError(explain("Bidirectional(merge_mode)", repr(merge_mode), f"one of {list(MERGES)}"))
        given: Any = _checked_layer("Bidirectional", "layer", layer)
        if not hasattr(given, "go_backwards"):
            raise ArgumentError(explain("Bidirectional(layer)", type(given).__name__, "a recurrent layer",
                                        "A layer that looks at each step by itself needs no direction: use TimeDistributed."))
        self.forward_layer = self._copy(given, "forward", {})
        self.backward_layer = self._copy(given, "backward", {"go_backwards": True}) if backward_layer is None else \
            _checked_layer("Bidirectional", "backward_layer", backward_layer)
        self.merge_mode = merge_mode
        self._check_directions()
        for each in (self.forward_layer, self.backward_layer):
            if hasattr(each, "zero_output_for_mask"):
                each.zero_output_for_mask = each.return_sequences
        self.return_sequences, self.return_state = bool(given.return_sequences), bool(given.return_state)
        self.stateful = bool(given.stateful)
        self._initial_weights = weights

    @staticmethod
    def _copy(layer: Layer, prefix: str, changes: dict[str, Any]) -> Layer:
        name = f"{prefix}_{layer.name.removeprefix(prefix + '_')}"
        return type(layer).from_config({**layer.get_config(), **changes, "name": name})

    def _check_directions(self) -> None:
        ahead: Any = self.forward_layer
        back: Any = self.backward_layer
        for name in ("go_backwards", "stateful", "return_sequences", "return_state"):
            pair = [getattr(each, name, None) for each in (ahead, back)]
            if None in pair or (pair[0] == pair[1]) == (name == "go_backwards"):
                raise ArgumentError(explain("Bidirectional(layer, backward_layer)", f"{name}={pair[0]} and {pair[1]}",
                                            "recurrent layers with opposite go_backwards, and otherwise the same"))

    def _arguments(self) -> dict[str, Any]:
        own = {name: value for name, value in super()._arguments().items() if name not in ("weights", "layer", "backward_layer")}
        return {**own, "layer": self.forward_layer, "backward_layer": self.backward_layer}

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        for each in (self.forward_layer, self.backward_layer):
            each.ensure_built(tuple(sequences_shape))
        if self._initial_weights is not None:
            self.set_weights(self._initial_weights)

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> Any:
        shape = self.forward_layer.compute_output_shape(sequences_shape)
        first, states = (shape[0], list(shape[1:])) if self.return_state else (shape, [])
        both = (*first[:-1], 2 * first[-1]) if self.merge_mode == "concat" else first
        outputs = [first, first] if self.merge_mode is None else [both]
        return [*outputs, *states, *states] if len(outputs) > 1 or states else both

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of the steps for each output that has steps."""
        mask = mask[0] if isinstance(mask, list) else mask
        own = mask if self.return_sequences else None
        return [own, own] if self.merge_mode is None else [own]

    def forward(self, sequences: Tensor, initial_state: Any = None, mask: Any = None) -> Any:
        half = 0 if initial_state is None else len(initial_state) // 2
        ahead, back = (None, None) if initial_state is None else (initial_state[:half], initial_state[half:])
        y: Any = self.forward_layer(sequences, initial_state=ahead, mask=mask)
        z: Any = self.backward_layer(sequences, initial_state=back, mask=mask)
        states: list[Any] = []
        if self.return_state:
            states = [*y[1:], *z[1:]]
            y, z = y[0], z[0]
        z = z.flip(2) if self.return_sequences else z
        outputs = self._merge(y, z)
        return [*outputs, *states] if len(outputs) > 1 or states else outputs[0]

    def _merge(self, y: Tensor, z: Tensor) -> list[Tensor]:
        if self.merge_mode is None:
            return [y, z]
        if self.merge_mode == "concat":
            return [to_inside(torch.cat([to_outside(y), to_outside(z)], -1))]
        if self.merge_mode == "mul":
            return [y * z]
        return [y + z if self.merge_mode == "sum" else (y + z) / 2]

    def reset_state(self) -> None:
        """Sets the states of stateful layers to zero."""
        for each in self.children():
            each.reset_state()  # type: ignore[operator]

    reset_states = reset_state


@registry.register()
class TimeDistributed(Layer):
    """Calls one layer, with one set of weights, on each step of a sequence.

    Steps are put into the batch and computed at once; a layer that keeps statistics (`BatchNormalization`) is called step by
    step, as in Keras.

    Args:
        layer: takes one step, `(batch, …)`.

    Shapes: (batch, steps, …) → (batch, steps, *output of the layer).
    Keras counterpart: `keras.layers.TimeDistributed`.
    """

    supports_masking = True

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = _checked_layer("TimeDistributed", "layer", layer)

    def _step_shape(self, shape: Sequence[int | None]) -> Shape:
        if len(shape) < 3:
            raise ShapeError(explain(label(self), f"input of shape {tuple(shape)}", "(batch, steps, …), three axes or more"))
        return (shape[0], *shape[2:])

    def build(self, input_shape: Any) -> None:
        self.layer.ensure_built(self._step_shape(input_shape))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        shape = self.layer.compute_output_shape(self._step_shape(input_shape))
        return (shape[0], input_shape[1], *shape[1:])

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        x = to_outside(inputs)
        self._check_mask(x, mask)
        inner = mask if mask is not None and mask.ndim > 2 and "mask" in mask_arguments(type(self.layer))[1] else None
        if self.training and next(self.layer.buffers(), None) is not None:
            return self._each(x, inner)
        extra = {} if inner is None else {"mask": inner.flatten(0, 1)}
        y = to_outside(self.layer(to_inside(x.flatten(0, 1)), **extra))
        return to_inside(y.reshape(*x.shape[:2], *y.shape[1:]))

    def _each(self, x: Tensor, mask: Tensor | None) -> Tensor:
        masks: Any = [{}] * x.shape[1] if mask is None else [{"mask": mask[:, t]} for t in range(x.shape[1])]
        return to_inside(torch.stack([to_outside(self.layer(to_inside(x[:, t]), **masks[t])) for t in range(x.shape[1])], 1))

    def _check_mask(self, x: Tensor, mask: Tensor | None) -> None:
        if mask is not None and (mask.ndim < 2 or mask.shape[:2] != x.shape[:2]):
            raise ShapeError(explain(f"{label(self)} (mask)", f"shape {tuple(mask.shape)}", f"(batch, steps, …) = {tuple(x.shape[:2])}, …"))
