"""Convolutions whose weights change no more: batch normalization folded in, laid out for the hardware, with all that follows in one call.

Four ways to compute one: Winograd's tiles of 4 × 4 (CPU, float32) or 2 × 2 (CPU without AMX, bfloat16) for 3 × 3 windows over many
channels, oneDNN with weights laid out beforehand (CPU), and PyTorch's own convolution. A dense layer over a map is a convolution by 1 × 1;
others keep their weights in the type of the computation. Max-pooling has no gradient.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import activations, kernels
from convolt.devices import multiplies_in_tiles, onednn_takes_bfloat16
from convolt.kernels.memory import channels_last
from convolt.layers import Layer
from convolt.layout import to_inside, to_outside

Activation = Callable[[Tensor], Tensor]

ONEDNN: dict[Activation, tuple[str, list[float], str]] = {
    activations.relu: ("relu", [], ""), activations.relu6: ("hardtanh", [0.0, 6.0], ""), activations.sigmoid: ("sigmoid", [], ""),
    activations.tanh: ("tanh", [], ""), activations.silu: ("swish", [], ""), activations.hard_silu: ("hardswish", [], ""),
    activations.gelu: ("gelu", [], "none"),
}
"""Activations that oneDNN computes within a convolution: its name for them, their numbers, the variant."""


_POINTWISE, _POINTWISE_OVER = torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._convolution_pointwise_
"""Convolution and what follows it, and the same written over a residual; called by their overloads, which saves the search for one."""
_LINEAR = torch.ops.mkldnn._linear_pointwise.default


@dataclass(frozen=True)
class Chain:
    """What one frozen convolution stands for, but for its weight: each way has that in a layout of its own, and once is enough.

    Attributes:
        bias: (F,) or None, float32.
        stride, padding, dilation: vertical and horizontal; `padding` is what the convolution adds itself.
        groups: of channels.
        border: zeros to be added before, as `F.pad` takes them; empty if none.
        activation: at the end; `activations.linear` for none.
        added: whether another tensor is added before the activation.
        pool: 2 where windows of 2 × 2 are pooled at the end, else 1.
    """

    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    border: Sequence[int] = ()
    activation: Activation = activations.linear
    added: bool = False
    pool: int = 1


def freeze(chain: Chain, weight: Tensor, shape: Sequence[int], dtype: torch.dtype) -> nn.Module:
    """Returns the module that computes a chain for inputs of a shape (N, C, H, W) fastest.

    The choice follows from shapes, types and the device alone, so that the same model gives the same bits.

    Args:
        chain: what is computed.
        weight: (F, C / groups, height, width), batch normalization folded in, float32.
        shape: of the inputs.
        dtype: of the computation.
    """
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Plain(chain, weight, dtype)
    if dtype == torch.bfloat16 and not onednn_takes_bfloat16():
        return Plain(chain, weight, dtype)
    height, width = (size + sum(chain.border[i : i + 2]) for size, i in zip(shape[2:], (2, 0), strict=True)) if chain.border else shape[2:]
    padded = (shape[0], shape[1], height, width)
    plain_window = chain.stride == chain.dilation == (1, 1) and chain.groups == 1 and tuple(weight.shape[2:]) == (3, 3)
    if plain_window and dtype == torch.float32 and kernels.tiles_pay(padded, len(weight), chain.padding):
        return Tiled(chain, weight, padded)
    if plain_window and dtype == torch.bfloat16 and not multiplies_in_tiles() and Winograd.takes(chain, weight, padded):
        return Winograd(chain, weight, padded)
    return Packed(chain, weight, padded, dtype)


class Frozen(nn.Module, ABC):
    """What the four have in common: the border before, the residual and the pooling behind."""

    def __init__(self, chain: Chain, dtype: torch.dtype) -> None:
        super().__init__()
        self.chain, self.dtype = chain, dtype

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns the chain's result, in the type of the computation."""
        x = x.to(self.dtype)
        if self.chain.border:
            x = F.pad(x, list(self.chain.border))
        return self.compute(channels_last(x), None if residual is None else residual.to(self.dtype))

    @abstractmethod
    def compute(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Returns the result for an input with its border."""


def _behind(chain: Chain, y: Tensor, residual: Tensor | None, activated: bool) -> Tensor:
    """Residual, activation (unless it is done) and pooling of a convolution's result, which is overwritten."""
    if residual is not None:
        y = y.add_(residual)
    if not activated and chain.activation is not activations.linear:
        y = y.relu_() if chain.activation is activations.relu else chain.activation(y)
    return kernels.max_pool(y, (chain.pool, chain.pool)) if chain.pool > 1 else y


class Plain(Frozen):
    """PyTorch's convolution."""

    def __init__(self, chain: Chain, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__(chain, dtype)
        self._weight = weight.to(dtype, memory_format=torch.channels_last)
        self._bias = None if chain.bias is None else chain.bias.to(dtype)

    def compute(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See `Frozen`."""
        chain = self.chain
        y = F.conv2d(x, self._weight, self._bias, chain.stride, chain.padding, chain.dilation, chain.groups)
        return _behind(chain, y, residual, activated=False)


class Packed(Frozen):
    """oneDNN's convolution with the activation, or sum and activation, inside, and with weights in the layout that it wants."""

    def __init__(self, chain: Chain, weight: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__(chain, dtype)
        self._window = (list(chain.padding), list(chain.stride), list(chain.dilation), chain.groups)
        given = weight.to(dtype).to_mkldnn()
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(given, *self._window, list(shape))  # type: ignore[call-arg]
        self._bias = None if chain.bias is None else chain.bias.to(dtype)
        self._inside = ONEDNN.get(chain.activation) if not chain.added else None
        self.overwrites = False
        """Whether the sum may be written over the residual."""

    def compute(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See `Frozen`."""
        chain = self.chain
        if residual is not None and chain.activation in (activations.relu, activations.linear):
            name, residual = "relu" if chain.activation is activations.relu else None, channels_last(residual)
            given: Any = (self._weight, self._bias, *self._window, "add", 1.0, name, [], "")
            y: Tensor = _POINTWISE_OVER.binary(residual, x, *given) if self.overwrites else _POINTWISE.binary(x, residual, *given)
            return _behind(chain, y, None, activated=True)
        name, numbers, variant = self._inside or ("none", [], "")
        y = _POINTWISE.default(x, self._weight, self._bias, *self._window, name, numbers, variant)
        return _behind(chain, y, residual, activated=self._inside is not None)


class Tiled(Frozen):
    """Winograd's convolution by tiles of 4 × 4 results, with bias, sum, ReLU and pooling on the way back."""

    def __init__(self, chain: Chain, weight: Tensor, shape: Sequence[int]) -> None:
        super().__init__(chain, torch.float32)
        self._filters: Any = kernels.tiled_filters(weight, tuple(shape), chain.padding)
        self._all = chain.activation in (activations.relu, activations.linear)

    def compute(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See `Frozen`."""
        chain = self.chain
        if not self._all:
            return _behind(chain, self._filters(x, chain.bias), residual, activated=False)
        return self._filters(x, chain.bias, residual, chain.activation is activations.relu, chain.pool)  # type: ignore[no-any-return]


class Winograd(Frozen):
    """Winograd's convolution by tiles of 2 × 2 results in bfloat16, which are pooled on the way back where they are pooling windows.

    Pictures of an odd side get one more line of zeros, and what is computed of it is cut off.
    """

    def __init__(self, chain: Chain, weight: Tensor, shape: Sequence[int]) -> None:
        super().__init__(chain, torch.bfloat16)
        self._pools = _pools_inside(chain)
        self._relu = chain.activation is activations.relu and not chain.added
        self._convolve = kernels.winograd_filters(weight, chain.bias, padding=chain.padding, pool=self._pools, relu=self._relu,
                                                  dtype=torch.bfloat16)
        self._more = _even(chain, shape)

    @staticmethod
    def takes(chain: Chain, weight: Tensor, shape: Sequence[int]) -> bool:
        """Whether the kernel takes inputs of a shape (N, C, H, W), borders included."""
        down, right = _even(chain, shape)
        pictures = torch.empty((*shape[:2], shape[2] + down, shape[3] + right), dtype=torch.bfloat16)
        return kernels.winograd_takes(pictures, weight, chain.padding, pooled=_pools_inside(chain))

    def compute(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See `Frozen`."""
        down, right = self._more
        if down or right:
            y = self._convolve(channels_last(F.pad(x, (0, right, 0, down))))
            y = channels_last(y[:, :, : y.shape[2] - down, : y.shape[3] - right])
        else:
            y = self._convolve(x)
        return y if self._pools else _behind(self.chain, y, residual, activated=self._relu)


def _even(chain: Chain, shape: Sequence[int]) -> tuple[int, int]:
    """Returns how many lines and columns pictures need for results of even sides; none where what is odd is not computed, for pooling."""
    return (0, 0) if _pools_inside(chain) else (shape[2] % 2, shape[3] % 2)


def _pools_inside(chain: Chain) -> bool:
    return chain.pool == 2 and not chain.added and chain.activation in (activations.relu, activations.linear)


class MaxPool(nn.Module):
    """Max-pooling without a gradient, see `kernels.max_pool`."""

    def __init__(self, size: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int], ceil_mode: bool = False) -> None:
        super().__init__()
        self._window, self._ceil_mode = (size, strides, padding), ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        """Returns the largest value of each window."""
        return kernels.max_pool(x, *self._window, ceil_mode=self._ceil_mode)


def freeze_dense(layer: nn.Module, batch: int, dtype: torch.dtype, hands_on: bool = False) -> nn.Module:
    """Returns a `Dense` or `nn.Linear` with weights of its own in another type, which autocast would else convert for every batch.

    Args:
        layer: with float32 weights.
        batch: samples of a batch.
        dtype: of the computation.
        hands_on: whether the layer hands on the mask of its input.
    """
    weight: Any = layer.weight
    if dtype == torch.bfloat16 and not hands_on and weight.device.type == "cpu" and onednn_takes_bfloat16():
        return PackedDense(layer, batch)
    twin = copy.copy(layer)
    twin._parameters = {name: None if p is None else nn.Parameter(p.detach().to(dtype), requires_grad=False)
                        for name, p in layer._parameters.items()}
    return twin


class PackedDense(nn.Module):
    """oneDNN's product in bfloat16 with the activation inside, and with weights in the layout that it wants."""

    def __init__(self, layer: Any, batch: int) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(torch.bfloat16), batch)
        self._bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)
        self._outside = isinstance(layer, Layer)
        activation = getattr(layer, "activation", activations.linear)
        self._inside = ONEDNN.get(activation, ("none", [], ""))
        self._activation = activations.linear if activation in ONEDNN else activation

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's result, in bfloat16 before an activation that is not inside."""
        x = (to_outside(x) if self._outside else x).to(torch.bfloat16)
        y: Tensor = _LINEAR(x, self._weight, self._bias, *self._inside)
        return self._activation(to_inside(y) if self._outside else y)


UNCHANGING = (Frozen, MaxPool, PackedDense)
"""Parts that only a frozen model has, where nobody else changes them."""
