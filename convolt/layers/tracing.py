"""Models as `torch.fx` graphs whose nodes are layers and PyTorch's own modules."""

from __future__ import annotations

from torch import Tensor, fx, nn

from convolt.layers.base import Layer


class LayerTracer(fx.Tracer):
    """Traces a model to a graph whose leaves are layers and PyTorch's own modules; nested models are entered."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers are leaves; models, which are made of layers, are not."""
        return m.is_leaf if isinstance(m, Layer) else super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """Returns the graph of a model's `forward`.

    Raises:
        Exception: what torch.fx raises when the code branches on values or leaves PyTorch.
    """
    return LayerTracer().trace(model)


class _Call(nn.Module):
    """A model called with a fixed number of inputs, which is what torch.fx can trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class _Call1(_Call):
    def forward(self, a: Tensor) -> object:
        return self.model(a)


class _Call2(_Call):
    def forward(self, a: Tensor, b: Tensor) -> object:
        return self.model(a, b)


class _Call3(_Call):
    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> object:
        return self.model(a, b, c)


def trace_call(model: nn.Module, inputs: int) -> fx.GraphModule:
    """Returns the graph of `model(*inputs)` with nested models dissolved, as a module that shares its layers.

    Raises:
        Exception: what torch.fx raises when the code cannot be followed; with more than three inputs, IndexError.
    """
    root = (_Call1, _Call2, _Call3)[inputs - 1](model)
    return fx.GraphModule(root, LayerTracer().trace(root), type(model).__name__)
