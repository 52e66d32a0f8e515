"""Models: `Sequential`, `Model(inputs, outputs)`, subclasses of `Model`, and wrapped PyTorch modules."""

from typing import Any

from convolt.missing import explain_missing_names
from convolt.models.functional import Functional
from convolt.models.model import Model
from convolt.models.sequential import Sequential
from convolt.models.wrapped import TorchLayer, Wrapped

__all__ = ["Functional", "Model", "Sequential", "TorchLayer", "Wrapped", "load_model"]


def load_model(filepath: Any, custom_objects: dict[str, Any] | None = None, compile: bool = True, device: Any = "auto") -> Any:
    """Reads a model that `model.save` wrote; see `convolt.formats.load_model`."""
    from convolt.formats import load_model as load

    return load(filepath, custom_objects=custom_objects, compile=compile, device=device)


explain_missing_names(__name__)
