"""A first convolution whose kernels whiten the patches of the training data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import initializers
from convolt.errors import ArgumentTypeError, DataError, ShapeError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import Layer, registry
from convolt.layers.normalization import check_number
from convolt.layers.windows import label
from convolt.layout import Shape, to_inside


@registry.register()
class PatchWhitening(Layer):
    """Convolution with fixed kernels: the directions in which small patches of the data vary, each scaled to variance one.

    The kernels are the eigenvectors of the patches' covariance (about zero) over the roots of their eigenvalues, so that the outputs
    of the data are uncorrelated and of equal size, and each again with the other sign, so that a ReLU after it loses nothing. They
    are learned from data, not from gradients: by `adapt`, or by `fit`, which shows the layer its first pictures when it begins.
    Until then the kernels are random and orthogonal. Only the bias is trained.

    Args:
        kernel_size: side of the square patches, in pixels.
        epsilon: added to each eigenvalue, which bounds how much rare directions are enlarged.
        use_bias: whether there is a (trained) bias.

    Shapes: (batch, height, width, channels) → (batch, height - k + 1, width - k + 1, 2 · k² · channels).

    Raises:
        ShapeError: the input is no batch of pictures, or smaller than a patch.
    Source: Page 2019, "How to train your ResNet 8"; Jordan 2024, arXiv 2404.00498.
    """

    kernel: Tensor
    adapted: Tensor
    bias: nn.Parameter | None

    def __init__(self, kernel_size: int = 2, epsilon: float = 5e-4, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_size = check_positive("PatchWhitening", "kernel_size", kernel_size)
        self.epsilon = check_number("PatchWhitening", "epsilon", epsilon, 0.0)
        self.use_bias = bool(use_bias)

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}",
                                     "(batch, height, width, channels) with known channels"))
        size, channels = self.kernel_size, input_shape[-1]
        self.compute_output_shape(input_shape)
        half = initializers.values_of("orthogonal", (size, size, channels, channels * size**2)).permute(3, 2, 0, 1)
        self.add_weight((2 * len(half), channels, size, size), "zeros", trainable=False, name="kernel")
        self.kernel.copy_(torch.cat([half, -half]))
        self.add_weight((), "zeros", trainable=False, name="adapted")
        if self.use_bias:
            self.add_weight((2 * len(half),), "zeros", name="bias")
        else:
            self.register_parameter("bias", None)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, channels = input_shape
        less = self.kernel_size - 1
        for side in (height, width):
            if side is not None and side <= less:
                raise ShapeError(explain(label(self), f"pictures of {height}×{width} pixels", f"at least {less + 1}×{less + 1}"))
        sides = (None if side is None else side - less for side in (height, width))
        return (batch, *sides, None if channels is None else 2 * channels * self.kernel_size**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @property
    def wants_data(self) -> bool:
        """Whether nothing was learned from data yet; asks the device."""
        return bool(self.adapted.item() == 0) if self.built else True

    @torch.no_grad()
    def adapt(self, data: Any) -> None:
        """Learns the kernels from data, in place of what they were.

        Args:
            data: what comes into this layer: NumPy array (channels last), tensor (channels at index 1), or an iterable of either.

        Raises:
            ArgumentTypeError: the data is something else.
            ShapeError: a batch has other channels than the layer was built for, or another rank.
            DataError: there is no data, or it has NaN or infinity.
        """
        total: Tensor | None = None
        count = 0
        for batch in self._batches(data):
            self.ensure_built((None, *batch.shape[2:], batch.shape[1]))
            if batch.ndim != 4 or batch.shape[1] != self.kernel.shape[1]:
                raise ShapeError(explain(f"{label(self)}.adapt", f"data of shape {tuple(batch.shape)} (channels at index 1)",
                                         f"pictures with {self.kernel.shape[1]} channels"))
            patches = patches_of(batch, self.kernel_size)
            gram = patches.T @ patches
            total = gram if total is None else total + gram
            count += len(patches)
        if total is None or not count:
            raise DataError(explain(f"{label(self)}.adapt", "no data", "at least one picture"))
        if not bool(torch.isfinite(total).all()):
            raise DataError(explain(f"{label(self)}.adapt", "data with NaN or infinity", "finite values"))
        half = whitening(total.cpu() / count, self.epsilon).reshape(-1, *self.kernel.shape[1:])
        self.kernel.copy_(torch.cat([half, -half]))
        self.adapted.fill_(1.0)

    def _batches(self, data: Any) -> Iterable[Tensor]:
        if isinstance(data, np.ndarray):
            data = to_inside(torch.as_tensor(data))
        if isinstance(data, Tensor):
            return torch.split(data, CHUNK)
        if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
            return (part for batch in data for part in self._batches(batch))
        raise ArgumentTypeError(explain(f"{label(self)}.adapt", type(data).__name__, "an array, a tensor or an iterable of batches"))


CHUNK = 512
"""Pictures whose patches are in memory at once."""


def patches_of(pictures: Tensor, size: int) -> Tensor:
    """Returns all patches of pictures (N, C, H, W) as rows (patches, C · size²) of float64 (float32 where there is none)."""
    real = torch.float32 if pictures.device.type == "mps" else torch.float64
    windows = pictures.to(real).unfold(2, size, 1).unfold(3, size, 1)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, pictures.shape[1] * size**2)


def whitening(covariance: Tensor, epsilon: float) -> Tensor:
    """Returns the matrix W for which W · covariance · Wᵀ is the identity, as far as `epsilon` lets it; largest direction first."""
    values, vectors = torch.linalg.eigh(covariance.double())
    rows: Tensor = (vectors / (values.clamp(min=0.0) + epsilon).sqrt()).T.flip(0)
    return rows
