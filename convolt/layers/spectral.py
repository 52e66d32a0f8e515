"""Spectral normalization: a kernel is divided by its largest singular value."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt import initializers
from convolt.errors import ArgumentTypeError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label


@registry.register()
class SpectralNormalization(Layer):
    """Divides the kernel of a layer by its largest singular value, before each call in training.

    As in Keras the kernel itself is changed, so that in inference the layer is a plain one. The singular value is found by
    power iteration from a vector that is kept from call to call; the kernel is a matrix of (all other axes, outputs).

    Args:
        layer: with a kernel, such as `Dense` or `Conv2D`, or an `Embedding`; the object or its configuration.
        power_iterations: number of steps before each call.

    Raises:
        ArgumentTypeError: `layer` is none, or has no kernel.
    Shapes: those of the layer.
    Keras counterpart: `keras.layers.SpectralNormalization`; PyTorch's: `torch.nn.utils.parametrizations.spectral_norm`,
    which keeps the kernel as it was. Source: Miyato et al. 2018.
    """

    vector_u: Tensor

    def __init__(self, layer: Any, power_iterations: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(layer, (Layer, dict)):
            raise ArgumentTypeError(explain("SpectralNormalization(layer)", repr(layer), "a layer object", "Such as Dense(10)."))
        self.layer: Layer = registry.make(layer, Layer)
        self.power_iterations = check_positive("SpectralNormalization", "power_iterations", power_iterations)

    def build(self, input_shape: Any) -> None:
        self.layer.ensure_built(input_shape)
        if not isinstance(getattr(self.layer, "weight", None), Tensor):
            raise ArgumentTypeError(explain(f"{label(self)} (layer)", f"a {type(self.layer).__name__}", "a layer with one kernel"))
        self.add_weight((1, self._kernel().shape[-1]), initializers.TruncatedNormal(stddev=0.02), trainable=False, name="vector_u")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def _kernel(self) -> Tensor:
        """Returns the kernel's memory in Keras's order of axes."""
        return dict(self.layer.keras_weights())["weight"]

    @property
    def changed_weights(self) -> list[Tensor]:
        """The parameters that a call in training changes by itself."""
        return [self.layer.weight]  # type: ignore[list-item]

    def keras_weights(self, prefix: str = "") -> list[tuple[str, Tensor]]:
        """Returns the weights in Keras's order: kernel, vector, then what else the layer has."""
        if not self.built:
            return []
        inside = dict(self.layer.keras_weights(f"{prefix}layer."))
        kernel = f"{prefix}layer.weight"
        return [(kernel, inside.pop(kernel)), (f"{prefix}vector_u", self.vector_u.detach()), *inside.items()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            self._normalize()
        return self.layer(*args, **kwargs)

    @torch.no_grad()
    def _normalize(self) -> None:
        kernel = self._kernel()
        matrix, u = kernel.reshape(-1, kernel.shape[-1]), self.vector_u
        v = u
        for _ in range(self.power_iterations):
            v = F.normalize(u @ matrix.T, dim=1, eps=1e-7)
            u = F.normalize(v @ matrix, dim=1, eps=1e-7)
        empty = (matrix == 0).all()  # a kernel of zeros has no direction, and stays
        kernel.copy_(torch.where(empty, kernel, kernel / (v @ matrix @ u.T)))
        self.vector_u.copy_(torch.where(empty, self.vector_u, u))
