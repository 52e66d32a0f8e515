"""Model → graph of layer calls with shapes, or the reason and the line of code why not."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from convolt.layers.tracing import trace_call
from convolt.masks import mask_of


@dataclass(frozen=True)
class Untraceable:
    """Why a model stays as it is.

    Attributes:
        reason: torch.fx's words.
        line: "file:number: code" of the user's line that could not be followed, if it is known.
    """

    reason: str
    line: str | None

    def __str__(self) -> str:
        return f"{self.reason} ({self.line})" if self.line else self.reason


def trace(model: nn.Module, inputs: Sequence[Tensor]) -> fx.GraphModule | Untraceable:
    """Returns the model as a graph module that shares its layers, with the output's shape in each node's `meta["shape"]`.

    Args:
        model: any module.
        inputs: an example of what it takes; two samples are enough.
    """
    try:
        module = trace_call(model, len(inputs))
    except Exception as error:  # torch.fx raises whatever the user's code raises on a proxy
        return Untraceable(f"torch.fx cannot follow the model: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                           _user_line(error))
    _Shapes(module).run_on(inputs)
    return module


def _user_line(error: BaseException) -> str | None:
    """Returns the innermost line outside of PyTorch and Convolt."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and "/convolt/" not in f.filename and not f.filename.startswith("<")]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else None


class _Shapes(fx.Interpreter):
    """Runs a graph once in inference mode and notes the shape of each tensor."""

    def run_on(self, inputs: Sequence[Tensor]) -> None:
        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.no_grad():
                self.run(*inputs)
        finally:
            for module, training in modes.items():
                module.training = training

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
            n.meta["masked"] = mask_of(result) is not None
        return result
