"""Taking what passes through a layer: the model runs as far as that layer and no further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from convolt.errors import StateError, explain


class _ReachedError(BaseException):
    """Ends a forward pass at the tapped layer; no `Exception`, so that a model's own `except Exception` lets it through."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class Tap:
    """A model that ends at one of its layers; everything else is the model's own.

    Args:
        model: the whole.
        module: where it ends.
    """

    def __init__(self, model: Any, module: nn.Module) -> None:
        self._model, self._module = model, module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *inputs: Any) -> Any:
        """Returns what the layer gives (or gets) when the model is called on these tensors."""
        try:
            self._model(*inputs)
        except _ReachedError as reached:
            return reached.value
        name = getattr(self._module, "name", type(self._module).__name__)
        raise StateError(explain(f"features({name!r})", "a layer that the model does not call", "one that its forward calls"))


@contextmanager
def tapped(model: Any, module: nn.Module, *, before: bool = False) -> Iterator[Tap]:
    """Gives a model that ends at `module`: with its output, or with its first input if `before`."""

    def enters(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _ReachedError(inputs[0])

    def leaves(_: nn.Module, inputs: Any, output: Any) -> None:
        raise _ReachedError(output)

    handle = module.register_forward_pre_hook(enters) if before else module.register_forward_hook(leaves)
    try:
        yield Tap(model, module)
    finally:
        handle.remove()
