"""State dicts of plain PyTorch modules, under PyTorch's own names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from convolt.formats.guard import LIMITS, Limits
from convolt.formats.header import read_header
from convolt.models import Model, Wrapped

PREFIX = "module."
"""What the names of a wrapped module's weights begin with in the files that the wrapping model writes."""


class PlainModule:
    """The module inside a wrapping model, seen without the wrapping: names are those that the module itself gives."""

    def __init__(self, model: Wrapped) -> None:
        self.name, self._module = model.name, model.module

    def modules(self) -> Iterator[nn.Module]:
        """Yields the parts."""
        return self._module.modules()

    def state_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Returns the weights under PyTorch's names."""
        return self._module.state_dict(**kwargs)

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Takes weights under PyTorch's names."""
        self._module.load_state_dict(state, strict=strict)


def owner_of(model: Model, filepath: str | Path, limits: Limits = LIMITS) -> Model | PlainModule:
    """Returns whose names a `.safetensors` file has: the model's, or those of the PyTorch module that it wraps."""
    if not isinstance(model, Wrapped):
        return model
    names = read_header(Path(filepath), limits).tensors
    return model if any(name.startswith(PREFIX) for name in names) else PlainModule(model)
