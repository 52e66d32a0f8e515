"""`SimpleRNN`, `LSTM` and `GRU`: `RNN` over the cell of that name."""

from __future__ import annotations

from typing import Any, ClassVar

from convolt.configurable import snake_case
from convolt.errors import ArgumentError, explain
from convolt.layers.base import registry
from convolt.layers.recurrent.cells import GatedCell, GRUCell, LSTMCell, SimpleRNNCell, without_implementation
from convolt.layers.recurrent.rnn import RNN
from convolt.layers.windows import documented_like, label

OWN = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll", "zero_output_for_mask")
"""Arguments that belong to the loop, not to the cell."""

BESIDE_CELL = (*OWN, "use_cudnn", "activity_regularizer", "self", "kwargs", "__class__")


class Gated(RNN):
    """A recurrent layer over one of Convolt's cells, with the cell's arguments.

    Args:
        units: size of the state and of the output.
        activation, recurrent_activation: of the candidate and the output, and of the gates; names or functions.
        use_bias: whether there is a bias.
        kernel_initializer, recurrent_initializer, bias_initializer: names or objects.
        kernel_regularizer, recurrent_regularizer, bias_regularizer, activity_regularizer: names or objects.
        kernel_constraint, recurrent_constraint, bias_constraint: applied after each update; names or objects.
        dropout, recurrent_dropout: share of the inputs and of the state's values that are dropped in training, the same at each step.
        seed: of the dropout; None for PyTorch's global generator.
        return_sequences, return_state, go_backwards, stateful, unroll, zero_output_for_mask: see `RNN`.
        use_cudnn: False goes from step to step; True is an error where PyTorch's fused operation cannot be used.
    """

    cell_class: ClassVar[type[GatedCell]]
    use_cudnn: bool | str = "auto"

    def _begin(self, given: dict[str, Any], kwargs: dict[str, Any]) -> None:
        """Makes the cell and keeps the arguments; `given` is what the constructor got."""
        cell = self.cell_class(**{name: value for name, value in given.items() if name not in BESIDE_CELL},
                               name=snake_case(self.cell_class.__name__))
        own = {name: given[name] for name in OWN if name in given}
        super().__init__(cell, activity_regularizer=given["activity_regularizer"], **own, **without_implementation(kwargs))
        self.use_cudnn = given.get("use_cudnn", "auto")
        if self.use_cudnn not in ("auto", True, False):
            raise ArgumentError(explain(f"{type(self).__name__}(use_cudnn)", repr(self.use_cudnn), "'auto', True or False"))

    @classmethod
    def _argument_names(cls) -> list[str]:
        return [name for name in super()._argument_names() if name != "cell"]

    def __getattr__(self, name: str) -> Any:
        """The cell's arguments are the layer's."""
        modules = self.__dict__.get("_modules", {})
        if name in _OF_CELLS and "cell" in modules:
            return getattr(modules["cell"], name)
        return super().__getattr__(name)

    @property
    def why_not_fused(self) -> str | None:
        """Why PyTorch's fused operations do not compute this layer; None if they do (see `RNN.why_not_fused`)."""
        return "use_cudnn=False asks for it" if self.use_cudnn is False else super().why_not_fused

    def _may_fuse(self) -> bool:
        if self.use_cudnn is True and self.why_not_fused is not None:
            raise ArgumentError(explain(f"{label(self)} (use_cudnn)", "True", "a layer that PyTorch's fused operation can compute",
                                        f"Here {self.why_not_fused}. Use 'auto'."))
        return self.use_cudnn is not False


_OF_CELLS = frozenset(name for cell in (SimpleRNNCell, LSTMCell, GRUCell) for name in cell._argument_names()) - frozenset(
    ("name", "trainable", "activity_regularizer", "input_shape"))


@registry.register()
@documented_like(Gated)
class SimpleRNN(Gated):
    """A recurrent layer whose output is its state: `h = activation(x · W + b + h · U)`.

    Shapes: (batch, steps, features) → (batch, units), or (batch, steps, units) with `return_sequences`.
    Keras counterpart: `keras.layers.SimpleRNN`; PyTorch's: `torch.nn.RNN`.
    """

    cell_class = SimpleRNNCell

    def __init__(self, units: int, activation: Any = "tanh", use_bias: bool = True, kernel_initializer: Any = "glorot_uniform",
                 recurrent_initializer: Any = "orthogonal", bias_initializer: Any = "zeros", kernel_regularizer: Any = None,
                 recurrent_regularizer: Any = None, bias_regularizer: Any = None, activity_regularizer: Any = None,
                 kernel_constraint: Any = None, recurrent_constraint: Any = None, bias_constraint: Any = None, dropout: float = 0.0,
                 recurrent_dropout: float = 0.0, return_sequences: bool = False, return_state: bool = False, go_backwards: bool = False,
                 stateful: bool = False, unroll: bool = False, seed: int | None = None, **kwargs: Any) -> None:
        self._begin(dict(locals()), kwargs)


@registry.register()
@documented_like(Gated)
class LSTM(Gated):
    """Long short-term memory (Hochreiter & Schmidhuber 1997): gates decide what the state c keeps and what h shows.

    `unit_forget_bias` starts with a bias of 1 at the forget gate. States: `[h, c]`. On a CPU it is oneDNN's, on CUDA cuDNN's, where
    that gives the same result (see `why_not_fused`).

    Shapes: (batch, steps, features) → (batch, units), or (batch, steps, units) with `return_sequences`.
    Keras counterpart: `keras.layers.LSTM`; PyTorch's: `torch.nn.LSTM`.
    """

    cell_class = LSTMCell

    def __init__(self, units: int, activation: Any = "tanh", recurrent_activation: Any = "sigmoid", use_bias: bool = True,
                 kernel_initializer: Any = "glorot_uniform", recurrent_initializer: Any = "orthogonal", bias_initializer: Any = "zeros",
                 unit_forget_bias: bool = True, kernel_regularizer: Any = None, recurrent_regularizer: Any = None,
                 bias_regularizer: Any = None, activity_regularizer: Any = None, kernel_constraint: Any = None,
                 recurrent_constraint: Any = None, bias_constraint: Any = None, dropout: float = 0.0, recurrent_dropout: float = 0.0,
                 seed: int | None = None, return_sequences: bool = False, return_state: bool = False, go_backwards: bool = False,
                 stateful: bool = False, unroll: bool = False, use_cudnn: bool | str = "auto", **kwargs: Any) -> None:
        self._begin(dict(locals()), kwargs)


@registry.register()
@documented_like(Gated)
class GRU(Gated):
    """Gated recurrent unit (Cho et al. 2014): one state, two gates.

    `reset_after=True` is what PyTorch and cuDNN compute, False the first version of the paper.

    Shapes: (batch, steps, features) → (batch, units), or (batch, steps, units) with `return_sequences`.
    Keras counterpart: `keras.layers.GRU`; PyTorch's: `torch.nn.GRU`.
    """

    cell_class = GRUCell

    def __init__(self, units: int, activation: Any = "tanh", recurrent_activation: Any = "sigmoid", use_bias: bool = True,
                 kernel_initializer: Any = "glorot_uniform", recurrent_initializer: Any = "orthogonal", bias_initializer: Any = "zeros",
                 kernel_regularizer: Any = None, recurrent_regularizer: Any = None, bias_regularizer: Any = None,
                 activity_regularizer: Any = None, kernel_constraint: Any = None, recurrent_constraint: Any = None,
                 bias_constraint: Any = None, dropout: float = 0.0, recurrent_dropout: float = 0.0, seed: int | None = None,
                 return_sequences: bool = False, return_state: bool = False, go_backwards: bool = False, stateful: bool = False,
                 unroll: bool = False, reset_after: bool = True, use_cudnn: bool | str = "auto", **kwargs: Any) -> None:
        self._begin(dict(locals()), kwargs)
