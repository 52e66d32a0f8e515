"""Cells: one step of a recurrent layer, `(inputs, states) → (output, new states)`.

The product of the inputs with their weights does not depend on the states. A layer takes it for all steps at once
(`project`), and then goes from step to step (`advance`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import activations, constraints, initializers, regularizers
from convolt.errors import ShapeError, StateError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import registry
from convolt.layers.normalization import check_number
from convolt.layers.regularization import _Random
from convolt.layers.windows import label


@dataclass(frozen=True)
class Noise:
    """Factors of dropout, `(count, batch, …)` with one set for all gates (count 1) or one for each; the same at each step."""

    inputs: Tensor | None = None
    recurrent: Tensor | None = None


class GatedCell(_Random):
    """What `SimpleRNNCell`, `LSTMCell` and `GRUCell` share: two kernels, one bias, dropout on both.

    Args:
        units: size of the state and of the output.
        activation: of the candidate and the output; name or function.
        use_bias: whether there is a bias.
        kernel_initializer, recurrent_initializer, bias_initializer: names or objects.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: names or objects.
        kernel_constraint, recurrent_constraint, bias_constraint: applied after each update; names or objects.
        dropout, recurrent_dropout: share of the inputs and of the state's values that are dropped in training, 0 to 1.
        seed: of the dropout; None for PyTorch's global generator.

    Weights: `weight_ih` `(gates · units, features)`, `weight_hh` `(gates · units, units)` and `bias`, PyTorch's order of axes
    with Keras's order of gates; `get_weights` gives Keras's kernel, recurrent kernel and bias.
    """

    gates: ClassVar[int] = 1
    flat: ClassVar[bool] = True  # whether inputs and states are rows of features
    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias: nn.Parameter | None
    dropout: float
    recurrent_dropout: float
    state_size: Any

    def _keep(self, units: int, arguments: dict[str, Any]) -> None:
        """Keeps the constructor's arguments, resolved."""
        kind = type(self).__name__
        self.units = check_positive(kind, "units", units)
        for name, value in arguments.items():
            if name.endswith("activation"):
                value = activations.get(value)
            elif name.endswith("_initializer"):
                value = initializers.get(value)
            elif name.endswith("_regularizer"):
                value = regularizers.get(value)
            elif name.endswith("_constraint"):
                value = constraints.get(value)
            elif name.endswith("dropout"):
                value = check_number(kind, name, value, 0.0, 1.0)
            if name != "seed":
                setattr(self, name, value)
        self._keep_seed(arguments["seed"])
        self.state_size = self.units
        self.output_size = self.units
        self._held: Noise | None = None
        self._holding = False

    def build(self, input_shape: Any, *_: Any) -> None:
        features = input_shape[-1]
        if features is None:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", "a known number of features"))
        self._add_weights(features)

    def _add_weights(self, features: int) -> None:
        width, own = self.gates * self.units, self.__dict__
        self.add_weight((features, width), own["kernel_initializer"], regularizer=own["kernel_regularizer"],
                        constraint=own["kernel_constraint"], name="weight_ih", axes=(1, 0))
        self.add_weight((self.units, width), own["recurrent_initializer"], regularizer=own["recurrent_regularizer"],
                        constraint=own["recurrent_constraint"], name="weight_hh", axes=(1, 0))
        if own["use_bias"]:
            self.add_weight(self._bias_shape(), own["bias_initializer"], regularizer=own["bias_regularizer"],
                            constraint=own["bias_constraint"], name="bias")
        else:
            self.bias = None

    def _bias_shape(self) -> tuple[int, ...]:
        return (self.gates * self.units,)

    def get_initial_state(self, batch_size: int | None = None) -> list[Tensor]:
        """Returns zeros for each state, `(batch, units)`."""
        if batch_size is None:
            raise StateError(explain(f"{label(self)}.get_initial_state", "no batch_size", "the number of samples"))
        count = len(self.state_size) if isinstance(self.state_size, list) else 1
        like = self._parameters.get("weight_hh")
        make = torch.zeros if like is None else like.new_zeros
        return [make(batch_size, self.units) for _ in range(count)]

    def compute_output_shape(self, input_shape: Any, states_shape: Any = None) -> Any:
        """Returns (shape of the output, shapes of the states)."""
        state = (input_shape[0], self.units)
        return [state, [state] * (len(self.state_size) if isinstance(self.state_size, list) else 1)]

    # -- one step --------------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor, states: Any) -> tuple[Tensor, Any]:
        """Returns (output, states after this step) of inputs `(batch, features)`; a single state may come without a list."""
        given = list(states) if isinstance(states, (list, tuple)) else [states]
        noise = self.noise(inputs)
        output, after = self.advance(self.project(inputs, noise), given, noise)
        return output, after if isinstance(states, (list, tuple)) else after[0]

    def project(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns the inputs' part of all gates, `(…, batch, gates · units)`, for inputs `(…, batch, features)`."""
        return _product(x, self.weight_ih, self._input_bias(), noise.inputs)

    def _input_bias(self) -> Tensor | None:
        return self.bias

    def advance(self, projected: Tensor, states: list[Tensor], noise: Noise) -> tuple[Tensor, list[Tensor]]:
        """Returns (output, new states) of one step from the inputs' part of its gates, `(batch, gates · units)`."""
        raise TypeError(f"{type(self).__name__} defines no advance")

    def recur(self, h: Tensor, noise: Noise, bias: Tensor | None = None) -> Tensor:
        """Returns the state's part of all gates."""
        return _product(h, self.weight_hh, bias, noise.recurrent)

    # -- dropout ---------------------------------------------------------------------------------------------------

    def noise(self, x: Tensor) -> Noise:
        """Returns the factors of dropout for a batch of inputs `(batch, …)`: new ones, or those that a layer holds."""
        if not self.training or not (self.dropout or self.recurrent_dropout):
            return Noise()
        if self._held is None or not self._holding:
            self._held = Noise(self._factors(self.dropout, x, x.shape[-1]), self._factors(self.recurrent_dropout, x, self.units))
        return self._held

    def _factors(self, rate: float, x: Tensor, size: int) -> Tensor | None:
        """Keras draws a set for each gate where there is recurrent dropout, and one set for all otherwise."""
        if rate == 0:
            return None
        count = self.gates if self.recurrent_dropout else 1
        factors = torch.empty(count, x.shape[0], size, device=x.device, dtype=x.dtype)
        return factors.bernoulli_(1 - rate, generator=self._generator(x.device)).div_(max(1 - rate, 1e-12))

    def hold_noise(self, holding: bool) -> None:
        """Keeps the factors that the next step draws for all steps of a sequence (True), or lets them go."""
        self._held, self._holding = None, holding

    # -- PyTorch's fused operation ---------------------------------------------------------------------------------

    def why_not_fused(self) -> str | None:
        """Returns why PyTorch's fused operation would give another result than Keras's definition; None where it is the same."""
        return "recurrent_dropout drops values at each step" if self.recurrent_dropout else None

    def fused_weights(self) -> list[Tensor]:
        """Returns the weights as PyTorch's operation takes them: kernels, and with a bias two biases."""
        if self.bias is None:
            return [self.weight_ih, self.weight_hh]
        return [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]

    def fused(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns (outputs `(batch, steps, units)`, last states) of all steps `(batch, steps, features)` in one operation."""
        raise TypeError(f"{type(self).__name__} defines no fused")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, factors: Tensor | None) -> Tensor:
    """Returns `x · weightᵀ + bias` with dropout: factors `(count, batch, size)` for all gates or for each."""
    if factors is None:
        return F.linear(x, weight, bias)
    if len(factors) == 1:
        return F.linear(x * factors[0], weight, bias)
    parts = [F.linear(x * own, part) for own, part in zip(factors, weight.chunk(len(factors)), strict=True)]
    total = torch.cat(parts, -1)
    return total if bias is None else total + bias


@registry.register()
class SimpleRNNCell(GatedCell):
    """`h = activation(x · W + b + h · U)`: one step of `SimpleRNN`.

    Args, weights: see `GatedCell`. Keras counterpart: `keras.layers.SimpleRNNCell`; PyTorch's: `torch.nn.RNNCell`.
    """

    def __init__(self, units: int, activation: Any = "tanh", use_bias: bool = True, kernel_initializer: Any = "glorot_uniform",
                 recurrent_initializer: Any = "orthogonal", bias_initializer: Any = "zeros", kernel_regularizer: Any = None,
                 recurrent_regularizer: Any = None, bias_regularizer: Any = None, kernel_constraint: Any = None,
                 recurrent_constraint: Any = None, bias_constraint: Any = None, dropout: float = 0.0, recurrent_dropout: float = 0.0,
                 seed: int | None = None, **kwargs: Any) -> None:
        given = {name: value for name, value in locals().items() if name not in _NOT_KEPT}
        super().__init__(**without_implementation(kwargs))
        self._keep(units, given)

    activation: Any

    def advance(self, projected: Tensor, states: list[Tensor], noise: Noise) -> tuple[Tensor, list[Tensor]]:
        h = self.activation(projected + self.recur(states[0], noise))
        return h, [h]

    def why_not_fused(self) -> str | None:
        if self.activation not in (activations.tanh, torch.tanh, activations.relu, torch.relu, F.relu):
            return "the activation is neither tanh nor relu"
        return super().why_not_fused()

    def fused(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        ops: Any = torch._VF
        function = ops.rnn_tanh if self.activation in (activations.tanh, torch.tanh) else ops.rnn_relu
        y, h = function(x, states[0].unsqueeze(0), self.fused_weights(), self.bias is not None, 1, 0.0,
                        torch.is_grad_enabled(), False, True)
        return y, [h.squeeze(0)]


_SIGMOIDS = (activations.sigmoid, torch.sigmoid, F.sigmoid)
_TANHS = (activations.tanh, torch.tanh, F.tanh)


@registry.register()
class LSTMCell(GatedCell):
    """One step of `LSTM`: gates input, forget, candidate and output, states h and c (Hochreiter & Schmidhuber 1997).

    Args:
        recurrent_activation: of the three gates.
        unit_forget_bias: start with a bias of 1 at the forget gate (Jozefowicz et al. 2015).

    Other args, weights: see `GatedCell`. Keras counterpart: `keras.layers.LSTMCell`; PyTorch's: `torch.nn.LSTMCell`.
    """

    gates = 4

    def __init__(self, units: int, activation: Any = "tanh", recurrent_activation: Any = "sigmoid", use_bias: bool = True,
                 kernel_initializer: Any = "glorot_uniform", recurrent_initializer: Any = "orthogonal", bias_initializer: Any = "zeros",
                 unit_forget_bias: bool = True, kernel_regularizer: Any = None, recurrent_regularizer: Any = None,
                 bias_regularizer: Any = None, kernel_constraint: Any = None, recurrent_constraint: Any = None,
                 bias_constraint: Any = None, dropout: float = 0.0, recurrent_dropout: float = 0.0, seed: int | None = None,
                 **kwargs: Any) -> None:
        given = {name: value for name, value in locals().items() if name not in _NOT_KEPT}
        super().__init__(**without_implementation(kwargs))
        self._keep(units, given)
        self.state_size = [self.units, self.units]

    activation: Any
    recurrent_activation: Any
    unit_forget_bias: bool

    def _add_weights(self, features: int) -> None:
        super()._add_weights(features)
        if self.bias is not None and self.unit_forget_bias:
            with torch.no_grad():
                self.bias[self.units:2 * self.units].fill_(1.0)

    def advance(self, projected: Tensor, states: list[Tensor], noise: Noise) -> tuple[Tensor, list[Tensor]]:
        i, f, g, o = (projected + self.recur(states[0], noise)).chunk(4, -1)
        c = self.recurrent_activation(f) * states[1] + self.recurrent_activation(i) * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]

    def why_not_fused(self) -> str | None:
        return _other_activations(self) or super().why_not_fused()

    def fused(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        begin = (states[0].unsqueeze(0), states[1].unsqueeze(0))
        y, h, c = torch._VF.lstm(x, begin, self.fused_weights(), self.bias is not None, 1, 0.0,
                                 torch.is_grad_enabled(), False, True)
        return y, [h.squeeze(0), c.squeeze(0)]


@registry.register()
class GRUCell(GatedCell):
    """One step of `GRU`: gates update, reset and candidate, state h (Cho et al. 2014).

    Args:
        recurrent_activation: of the two gates.
        reset_after: the reset gate acts on the product of state and weights (as in cuDNN and PyTorch), which then has a bias
            of its own; False: on the state, before the product.

    Other args, weights: see `GatedCell`; with `reset_after` the bias is `(2, 3 · units)`.
    Keras counterpart: `keras.layers.GRUCell`; PyTorch's: `torch.nn.GRUCell`.
    """

    gates = 3

    def __init__(self, units: int, activation: Any = "tanh", recurrent_activation: Any = "sigmoid", use_bias: bool = True,
                 kernel_initializer: Any = "glorot_uniform", recurrent_initializer: Any = "orthogonal", bias_initializer: Any = "zeros",
                 kernel_regularizer: Any = None, recurrent_regularizer: Any = None, bias_regularizer: Any = None,
                 kernel_constraint: Any = None, recurrent_constraint: Any = None, bias_constraint: Any = None, dropout: float = 0.0,
                 recurrent_dropout: float = 0.0, reset_after: bool = True, seed: int | None = None, **kwargs: Any) -> None:
        given = {name: value for name, value in locals().items() if name not in _NOT_KEPT}
        super().__init__(**without_implementation(kwargs))
        self._keep(units, given)

    activation: Any
    recurrent_activation: Any
    reset_after: bool

    def _bias_shape(self) -> tuple[int, ...]:
        return (2, 3 * self.units) if self.reset_after else (3 * self.units,)

    def _input_bias(self) -> Tensor | None:
        return self.bias if self.bias is None or not self.reset_after else self.bias[0]

    def advance(self, projected: Tensor, states: list[Tensor], noise: Noise) -> tuple[Tensor, list[Tensor]]:
        h, gate = states[0], self.recurrent_activation
        x_z, x_r, x_h = projected.chunk(3, -1)
        if self.reset_after:
            h_z, h_r, h_h = self.recur(h, noise, None if self.bias is None else self.bias[1]).chunk(3, -1)
            z, r = gate(x_z + h_z), gate(x_r + h_r)
            candidate = self.activation(x_h + r * h_h)
        else:
            gates_weight, weight = self.weight_hh[:2 * self.units], self.weight_hh[2 * self.units:]
            factors = noise.recurrent
            h_z, h_r = _product(h, gates_weight, None, None if factors is None else factors[:2]).chunk(2, -1)
            z, r = gate(x_z + h_z), gate(x_r + h_r)
            candidate = self.activation(x_h + F.linear(r * (h if factors is None else h * factors[2]), weight))
        h = z * h + (1 - z) * candidate
        return h, [h]

    def why_not_fused(self) -> str | None:
        if not self.reset_after:
            return "reset_after=False is not what PyTorch and cuDNN compute"
        return _other_activations(self) or super().why_not_fused()

    def fused_weights(self) -> list[Tensor]:
        """Returns the weights with the gates in PyTorch's order: reset, update, candidate."""
        given = [self.weight_ih, self.weight_hh, *(() if self.bias is None else self.bias.unbind())]
        swapped = []
        for weight in given:
            update, reset, candidate = weight.chunk(3)
            swapped.append(torch.cat([reset, update, candidate]))
        return swapped

    def fused(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, h = torch._VF.gru(x, states[0].unsqueeze(0), self.fused_weights(), self.bias is not None, 1, 0.0,
                             torch.is_grad_enabled(), False, True)
        return y, [h.squeeze(0)]


_NOT_KEPT = ("self", "units", "kwargs", "__class__")


def without_implementation(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Leaves out Keras's `implementation`, which chose among ways to compute the same."""
    return {name: value for name, value in kwargs.items() if name != "implementation"}


def _other_activations(cell: LSTMCell | GRUCell) -> str | None:
    if cell.activation not in _TANHS or cell.recurrent_activation not in _SIGMOIDS:
        return "the activations are not tanh and sigmoid"
    return None
