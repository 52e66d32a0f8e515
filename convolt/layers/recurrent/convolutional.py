"""`ConvLSTM`: an LSTM whose products are convolutions, for clips of pictures (Shi et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, StateError, explain
from convolt.layers.arguments import check_positive, one_of, tuple_of
from convolt.layers.base import registry
from convolt.layers.convolutional import CONVOLVE
from convolt.layers.recurrent.cells import GatedCell, Noise, without_implementation
from convolt.layers.recurrent.gated import BESIDE_CELL, OWN
from convolt.layers.recurrent.rnn import RNN
from convolt.layers.recurrent.scan import loop
from convolt.layers.windows import channels_last_only, documented_like, extent, label, same_padding, window_sizes
from convolt.layout import Shape, outside_shape, to_outside


class ConvLSTMCell(GatedCell):
    """One step of `ConvLSTM1D`, `ConvLSTM2D` and `ConvLSTM3D`; states are pictures. Keras counterpart: its `ConvLSTMCell`."""

    gates = 4
    flat = False
    activation: Any
    recurrent_activation: Any

    def __init__(self, rank: int, filters: int, kernel_size: Any, strides: Any, padding: str, data_format: Any, dilation_rate: Any,
                 name: str | None = None, **arguments: Any) -> None:
        super().__init__(name=name)
        kind = f"ConvLSTM{rank}D"
        self._keep(check_positive(kind, "filters", filters), arguments)
        self.rank, self.filters = rank, self.units
        self.kernel_size = tuple_of(kind, "kernel_size", kernel_size, rank)
        self.strides = tuple_of(kind, "strides", strides, rank)
        self.padding = one_of(kind, "padding", padding, ("valid", "same"))
        self.data_format = channels_last_only(kind, data_format)
        self.dilation_rate = tuple_of(kind, "dilation_rate", dilation_rate, rank)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ArgumentError(explain(f"{kind}(strides, dilation_rate)", f"{self.strides} and {self.dilation_rate}", "one of them 1"))
        self.state_size = [self.filters, self.filters]
        self._space: tuple[int, ...] = ()

    def build(self, input_shape: Any, *_: Any) -> None:
        if any(size is None for size in input_shape[1:]):
            raise ShapeError(explain(label(self), f"steps of shape {tuple(input_shape)}", "known sizes of space and channels"))
        self._space = tuple(input_shape[1:-1])
        axes, own, width = (self.rank + 1, self.rank, *range(self.rank)), self.__dict__, 4 * self.filters
        for name, channels, kind in (("weight_ih", input_shape[-1], "kernel"), ("weight_hh", self.filters, "recurrent")):
            self.add_weight((*self.kernel_size, channels, width), own[f"{kind}_initializer"], regularizer=own[f"{kind}_regularizer"],
                            constraint=own[f"{kind}_constraint"], name=name, axes=axes)
        if not own["use_bias"]:
            self.bias = None
            return
        self.add_weight((width,), own["bias_initializer"], regularizer=own["bias_regularizer"],
                        constraint=own["bias_constraint"], name="bias")
        if own["unit_forget_bias"]:
            with torch.no_grad():
                self.bias[self.filters:2 * self.filters].fill_(1.0)  # type: ignore[index]

    def output_shape(self, step_shape: Shape) -> Shape:
        """Returns the shape of the states for steps of this shape, channels last."""
        window = extent(self.kernel_size, self.dilation_rate)
        return (step_shape[0], *window_sizes(self, step_shape, window, self.strides, self.padding), self.filters)

    def get_initial_state(self, batch_size: int | None = None) -> list[Tensor]:
        """Returns zeros for h and c, with the channel axis at index 1."""
        if not self._space:
            raise StateError(explain(f"{label(self)}.get_initial_state", "a cell that is not built",
                                     "a built one, which knows the size of pictures"))
        _, *space, _ = self.output_shape((None, *self._space, 1))
        return [self.weight_hh.new_zeros(batch_size or 1, self.filters, *[s or 1 for s in space]) for _ in range(2)]

    def project(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns the inputs' part of all gates for `x` `(batch, channels, *space)`."""
        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            x, padding = _padded(x, self.kernel_size, self.strides, self.dilation_rate, self.padding)
            return CONVOLVE[self.rank](x, weight, None, self.strides, padding, self.dilation_rate)

        total = _per_gate(convolve, x, self.weight_ih, noise.inputs)
        return total if self.bias is None else total + self.bias.reshape(-1, *(1,) * self.rank)

    def recur(self, h: Tensor, noise: Noise, bias: Tensor | None = None) -> Tensor:
        """Returns the state's part of all gates; the convolution keeps the size."""
        one = (1,) * self.rank

        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            x, padding = _padded(x, self.kernel_size, one, one, "same")
            return CONVOLVE[self.rank](x, weight, None, one, padding)

        return _per_gate(convolve, h, self.weight_hh, noise.recurrent)

    def advance(self, projected: Tensor, states: list[Tensor], noise: Noise) -> tuple[Tensor, list[Tensor]]:
        i, f, g, o = (projected + self.recur(states[0], noise)).chunk(4, 1)
        c = self.recurrent_activation(f) * states[1] + self.recurrent_activation(i) * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]

    def conv_noise(self, x: Tensor, h: Tensor) -> Noise:
        """Returns the factors of dropout, a set for each gate, for steps like `x` and states like `h`."""
        if not self.training:
            return Noise()
        return Noise(*(None if rate == 0 else torch.empty(4, *t.shape, device=t.device, dtype=t.dtype).bernoulli_(
            1 - rate, generator=self._generator(t.device)).div_(max(1 - rate, 1e-12))
            for rate, t in ((self.dropout, x), (self.recurrent_dropout, h))))


def _padded(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int],
            padding: str) -> tuple[Tensor, tuple[int, ...]]:
    """Returns the input and the padding that PyTorch's convolution adds by itself."""
    if padding == "valid":
        return x, (0,) * len(kernel)
    sides = [same_padding(*axis) for axis in zip(x.shape[2:], extent(kernel, dilation), strides, strict=True)]
    if all(before == after for before, after in sides):
        return x, tuple(before for before, _ in sides)
    return F.pad(x, [side for axis in reversed(sides) for side in axis]), (0,) * len(kernel)


def _per_gate(convolve: Any, x: Tensor, weight: Tensor, factors: Tensor | None) -> Tensor:
    """Returns `convolve(x, weight)`, with dropout's factors for each gate."""
    if factors is None:
        return convolve(x, weight)  # type: ignore[no-any-return]
    return torch.cat([convolve(x * own, part) for own, part in zip(factors, weight.chunk(len(factors)), strict=True)], 1)


class ConvLSTM(RNN):
    """An LSTM over clips, whose products with inputs and states are convolutions.

    Args:
        filters: channels of the state and of the output.
        kernel_size: of both convolutions, a number or one for each axis of space.
        strides, padding, dilation_rate: of the inputs' convolution; "valid" or "same".
        data_format: None or "channels_last".
        activation, recurrent_activation, use_bias, kernel_initializer, recurrent_initializer, bias_initializer, unit_forget_bias,
            kernel_regularizer, recurrent_regularizer, bias_regularizer, activity_regularizer, kernel_constraint,
            recurrent_constraint, bias_constraint, dropout, recurrent_dropout, seed, return_sequences, return_state, go_backwards,
            stateful: see `LSTM`.
    """

    rank: ClassVar[int]
    cell: ConvLSTMCell

    def __init__(self, filters: int, kernel_size: Any, strides: Any = 1, padding: str = "valid", data_format: str | None = None,
                 dilation_rate: Any = 1, activation: Any = "tanh", recurrent_activation: Any = "sigmoid", use_bias: bool = True,
                 kernel_initializer: Any = "glorot_uniform", recurrent_initializer: Any = "orthogonal", bias_initializer: Any = "zeros",
                 unit_forget_bias: bool = True, kernel_regularizer: Any = None, recurrent_regularizer: Any = None,
                 bias_regularizer: Any = None, activity_regularizer: Any = None, kernel_constraint: Any = None,
                 recurrent_constraint: Any = None, bias_constraint: Any = None, dropout: float = 0.0, recurrent_dropout: float = 0.0,
                 seed: int | None = None, return_sequences: bool = False, return_state: bool = False, go_backwards: bool = False,
                 stateful: bool = False, **kwargs: Any) -> None:
        given = dict(locals())
        cell = ConvLSTMCell(self.rank, **{name: value for name, value in given.items() if name not in BESIDE_CELL}, name="conv_lstm_cell")
        super().__init__(cell, activity_regularizer=activity_regularizer, **{name: given[name] for name in OWN if name in given},
                         **without_implementation(kwargs))

    @classmethod
    def _argument_names(cls) -> list[str]:
        return [name for name in super()._argument_names() if name != "cell"]

    def __getattr__(self, name: str) -> Any:
        """The cell's arguments are the layer's."""
        modules = self.__dict__.get("_modules", {})
        if name in _ARGUMENTS and "cell" in modules:
            return getattr(modules["cell"], name)
        return super().__getattr__(name)

    @property
    def why_not_fused(self) -> str:
        """Why the layer goes from step to step."""
        return "PyTorch has no fused ConvLSTM"

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        if len(sequences_shape) != self.rank + 3:
            raise ShapeError(explain(label(self), f"input of shape {tuple(sequences_shape)}",
                                     f"(batch, steps, *{self.rank} of space, channels)"))
        super().build(sequences_shape)

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> Any:
        state = self.cell.output_shape((sequences_shape[0], *sequences_shape[2:]))
        output = (state[0], sequences_shape[1], *state[1:]) if self.return_sequences else state
        return [output, state, state] if self.return_state else output

    def _run(self, x: Tensor, states: list[Any], mask: Tensor | None) -> tuple[Tensor | None, Tensor, list[Any]]:
        """The inputs' convolution takes all steps at once, as a larger batch; with dropout, each step by itself."""
        noise = self.cell.conv_noise(x[:, :, 0], states[0])
        if noise.inputs is None:
            moved = x.movedim(2, 1)  # (batch, steps, channels, *space)
            joined = self.cell.project(moved.flatten(0, 1), noise)
            parts = joined.reshape(*moved.shape[:2], *joined.shape[1:]).unbind(1)
        else:
            parts = tuple(self.cell.project(step, noise) for step in x.unbind(2))
        each, after = loop(lambda t, s: self.cell.advance(parts[t], s, noise), x.shape[2], states, mask)
        return torch.stack([to_outside(y) for y in each], 1) if self.return_sequences else None, each[-1], after

    def forward(self, sequences: Tensor, initial_state: Any = None, mask: Any = None) -> Any:
        if self.cell._space and outside_shape(sequences)[2:-1] != self.cell._space:
            raise ShapeError(explain(label(self), f"input of shape {outside_shape(sequences)}",
                                     f"steps of {self.cell._space} in space, with which it was built"))
        return super().forward(sequences, initial_state, mask)


_ARGUMENTS = frozenset(ConvLSTM._argument_names()) - frozenset((*OWN, "activity_regularizer", "name", "trainable", "input_shape"))


@registry.register()
@documented_like(ConvLSTM)
class ConvLSTM1D(ConvLSTM):
    """ConvLSTM over sequences of sequences.

    Shapes: (batch, steps, length, channels) → (batch, new length, filters). Keras counterpart: `keras.layers.ConvLSTM1D`.
    """

    rank = 1


@registry.register()
@documented_like(ConvLSTM)
class ConvLSTM2D(ConvLSTM):
    """ConvLSTM over clips of pictures.

    Shapes: (batch, steps, height, width, channels) → (batch, new height, new width, filters), or with all steps after the batch
    for `return_sequences`. Keras counterpart: `keras.layers.ConvLSTM2D`.
    """

    rank = 2


@registry.register()
@documented_like(ConvLSTM)
class ConvLSTM3D(ConvLSTM):
    """ConvLSTM over clips of volumes.

    Shapes: (batch, steps, depth, height, width, channels) → (batch, new depth, new height, new width, filters).
    Keras counterpart: `keras.layers.ConvLSTM3D`.
    """

    rank = 3
