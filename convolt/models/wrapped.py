"""PyTorch modules inside and as Convolt models."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from convolt.configurable import snake_case
from convolt.errors import ModelFileError, explain
from convolt.layers.arguments import one_of
from convolt.layers.base import Layer, unique_name
from convolt.layout import Shape
from convolt.models.model import Model


class _HasModule(nn.Module):
    """What holds a PyTorch module, some of whose normalizations may be frozen."""

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; frozen normalizations stay in inference mode, as Convolt's own do."""
        super().train(mode)
        for module in self.modules():
            if mode and getattr(module, "keeps_statistics", False):
                module.training = False
        return self


class TorchLayer(_HasModule, Layer):
    """A `torch.nn.Module` as a layer: called as it is, on tensors whose channel axis is at index 1.

    Args:
        module: any module; its parameters are the layer's.
    """

    is_leaf = False

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        kwargs.setdefault("name", unique_name(snake_case(type(module).__name__)))
        super().__init__(**kwargs)
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        return self.module(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Raises `ModelFileError`: the module's code is not part of a file."""
        raise ModelFileError(explain(f"configuration of {self.name!r}", f"the PyTorch module {type(self.module).__name__}",
                                     "a Convolt layer", "Save its weights with model.save_weights(path) and build the model in code."))


class Wrapped(_HasModule, Model):
    """`compile`, `fit`, `evaluate` and `predict` for any `torch.nn.Module`; made by `Model.wrap(module)`.

    Args:
        module: takes and returns tensors with the channel axis at index 1, as PyTorch's modules do.
        input_shape: of one sample, channels last, for `summary()` before the first data.
        data_format: of the arrays given to `fit`, `evaluate` and `predict`.
    """

    def __init__(self, module: nn.Module, input_shape: Shape | None = None, data_format: str = "channels_last", **kwargs: Any) -> None:
        kwargs.setdefault("name", snake_case(type(module).__name__))
        super().__init__(input_shape=input_shape, **kwargs)
        self.module = module
        self.data_format = one_of("Model.wrap", "data_format", data_format, ("channels_last", "channels_first"))
        if input_shape is not None and data_format == "channels_last":
            self.build_shapes = ((None, *input_shape),)
        self.built = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        return self.module(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Raises `ModelFileError`: the module's code is not part of a file."""
        raise ModelFileError(explain(f"configuration of {self.name!r}", f"the PyTorch module {type(self.module).__name__}",
                                     "a model of Convolt layers", "Save its weights with model.save_weights(path)."))
