"""What fused nodes are: modules that call one kernel and share the parameters of the layers that they replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convolt import kernels
from convolt.layers import BatchNormalization, Conv2D


class ConvReluPool(nn.Module):
    """Convolution, then bias, ReLU and max-pooling in one pass."""

    def __init__(self, conv: nn.Module, pool_size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = conv
        self.pool_size = pool_size

    def forward(self, x: Tensor) -> Tensor:
        """Returns `max_pool(relu(conv(x)))`."""
        conv: Any = self.conv
        y = conv.convolve(x, None) if isinstance(conv, Conv2D) else conv._conv_forward(x, conv.weight, None)
        if conv.bias is None:
            return kernels.relu_max_pool(y, self.pool_size)
        return kernels.bias_relu_max_pool(y, conv.bias, self.pool_size)


class FirstConvReluPool(ConvReluPool):
    """The same for a network's first convolution, 3 × 3 before windows of 2 × 2: on a CPU all of it is one pass."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__(conv, (2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `max_pool(relu(conv(x)))`; if x needs a gradient or no kernel takes it, as `ConvReluPool` does."""
        conv: Any = self.conv
        kind = x.device.type
        given = x.to(torch.get_autocast_dtype(kind)) if x.is_floating_point() and torch.is_autocast_enabled(kind) else x
        if x.requires_grad or kernels.choose("conv_relu_max_pool", given) == "reference":
            return super().forward(x)
        padding: Any
        if isinstance(conv, Conv2D):
            given, padding = conv._padded(given)
        else:
            padding = {"same": (1, 1), "valid": (0, 0)}[conv.padding] if isinstance(conv.padding, str) else conv.padding
        return kernels.conv_relu_max_pool(given, conv.weight, conv.bias, padding=padding)


class ReluPool(nn.Module):
    """ReLU and max-pooling in one pass."""

    def __init__(self, pool_size: tuple[int, int]) -> None:
        super().__init__()
        self.pool_size = pool_size

    def forward(self, x: Tensor) -> Tensor:
        """Returns `max_pool(relu(x))`."""
        return kernels.relu_max_pool(x, self.pool_size)


class Norm(nn.Module):
    """Batch normalization with what follows it: nothing, ReLU, or the sum with a residual and ReLU.

    Args:
        norm: Convolt's `BatchNormalization` or PyTorch's `BatchNorm`.
        then: "", "relu" or "add_relu".
    """

    def __init__(self, norm: nn.Module, then: str) -> None:
        super().__init__()
        self.norm = norm
        self.then = then

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns the result of the three in one op."""
        norm: Any = self.norm
        keras = isinstance(norm, BatchNormalization)
        training = norm.training and (not keras or norm.trainable)
        share = 0.0  # of this batch in the running statistics
        if training and keras:
            share = norm.next_share()
        elif training:
            norm.num_batches_tracked.add_(1)
            share = norm.momentum
        options: dict[str, Any] = {"training": training, "momentum": share, "eps": norm.epsilon if keras else norm.eps, "unbiased": not keras}
        state = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if self.then == "add_relu":
            assert residual is not None
            return kernels.bn_add_relu(x, residual, *state, **options)
        return kernels.bn_relu(x, *state, **options) if self.then == "relu" else kernels.bn(x, *state, **options)


