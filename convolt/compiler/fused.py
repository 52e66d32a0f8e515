"""What fused nodes are: modules that call one kernel and share the parameters of the layers that they replace."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from convolt import activations, kernels, products
from convolt.layers import BatchNormalization, Conv2D, DepthwiseConv2D, SeparableConv2D


class OneConv(nn.Module):
    """What stands in for one convolution, whose parameters it shares."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def given(self, x: Tensor) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
        """Returns the input in the type of the computation, the strides, and the zeros that are still to be added."""
        conv: Any = self.conv
        padded, padding = _padding(conv, _as_autocast(x))
        strides: Any = conv.stride if isinstance(conv, nn.Conv2d) else conv.strides
        return padded, strides, padding


class ConvReluPool(nn.Module):
    """Convolution, then bias, ReLU and max-pooling in one pass."""

    def __init__(self, conv: nn.Module, pool_size: tuple[int, int]) -> None:
        super().__init__()
        self.conv = conv
        self.pool_size = pool_size

    def forward(self, x: Tensor) -> Tensor:
        """Returns `max_pool(relu(conv(x)))`."""
        conv: Any = self.conv
        y = _convolved(conv, x, None)
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
        given = _as_autocast(x)
        if x.requires_grad or kernels.choose("conv_relu_max_pool", given) == "reference":
            return super().forward(x)
        given, padding = _padding(conv, given)
        return kernels.conv_relu_max_pool(given, conv.weight, conv.bias, padding=padding)


class ConvRelu(OneConv):
    """Convolution and ReLU, which is written over the convolution's result, on CUDA in one pass with the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `relu(conv(x))`."""
        conv: Any = self.conv
        fuses = conv.bias is not None and kernels.choose("bias_relu", _as_autocast(x)) != "reference"
        y = _convolved(conv, x, None if fuses else conv.bias)
        return kernels.bias_relu(y, conv.bias) if fuses else torch.relu_(y)


def _convolved(conv: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """Returns a convolution's result before its activation."""
    return cast(Tensor, conv.convolve(x, bias) if isinstance(conv, Conv2D) else conv._conv_forward(x, conv.weight, bias))


class SparseConvReluPool(ConvReluPool):
    """The same with stride 1, on a CPU: the backward pass skips what pooling and ReLU have cut off."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `max_pool(relu(conv(x)))`; if no kernel takes it, as `ConvReluPool` does."""
        conv: Any = self.conv
        given = _as_autocast(x)
        if kernels.choose("pooled_conv", given) == "reference":
            return super().forward(x)
        given, padding = _padding(conv, given)
        return kernels.pooled_conv(given, conv.weight, conv.bias, self.pool_size, padding=padding)


class WinogradPool(nn.Module):
    """3 × 3 convolution, bias, ReLU or none, and max-pooling of 2 × 2 in one pass on a CPU, with fewer products."""

    def __init__(self, conv: nn.Module, relu: bool) -> None:
        super().__init__()
        self.conv = conv
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Returns `max_pool(relu(conv(x)))`."""
        conv: Any = self.conv
        given, padding = _padding(conv, _as_autocast(x))
        if kernels.winograd_takes(given, conv.weight, padding, pooled=True):
            return kernels.winograd_max_pool(given, conv.weight, conv.bias, padding=padding, relu=self.relu)
        y = conv(x)
        return kernels.relu_max_pool(y) if self.relu else nn.functional.max_pool2d(y, 2)


class WinogradConv(nn.Module):
    """3 × 3 convolution on a CPU with fewer products.

    Tiles of 2 × 2 results in bfloat16; in float32 tiles of 4 × 4, whose sums of 36 inputs bfloat16 is too short for, but for many
    filters where PyTorch's products, by which these are multiplied, are slow. Measured on ResNet-18's shapes (batch 128, two cores, forward
    and backward in ms), in bfloat16 oneDNN / 2 × 2: 64 at 32 × 32: 69 / 51, 128 at 16 × 16: 63 / 43, 256 at 8 × 8: 61 / 41, 512 at
    4 × 4: 67 / 46; in float32 with AMX oneDNN / 2 × 2 / 4 × 4: 74 / 47 / 40, 67 / 43 / 39, 69 / 47 / 36, 105 / 63 / 49.

    Too few tiles for that are too few places for oneDNN, too, and are left to `GemmConv`: 512 at 3 × 3 of 16 pictures with AVX2 48 / 25.
    """

    def __init__(self, conv: nn.Module, relu: bool) -> None:
        super().__init__()
        self.conv = conv
        self.relu = relu
        self.few_tiles = GemmConv(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the convolution does."""
        conv: Any = self.conv
        given, padding = _padding(conv, _as_autocast(x))
        if self._takes_tiles(given, padding):
            y = kernels.tiled_conv(given, conv.weight, conv.bias, padding=padding)
        elif kernels.winograd_takes(given, conv.weight, padding, pooled=False):
            y = kernels.winograd_conv(given, conv.weight, conv.bias, padding=padding)
        else:
            return cast(Tensor, self.few_tiles(x))
        return torch.relu(y) if self.relu else y

    def _takes_tiles(self, x: Tensor, padding: tuple[int, int]) -> bool:
        weight = cast(Tensor, self.conv.weight)
        fits = x.ndim == 4 and x.dtype == weight.dtype == torch.float32 and kernels.choose("tiled_conv", x) != "reference"
        return fits and kernels.tiles_pay(x.shape, len(weight), padding, training=True)


class Depthwise(OneConv):
    """A convolution of each channel by itself on a CPU, with a weights' gradient of our own.

    Measured on 16 pictures on two cores (oneDNN / own, ms): 5 × 5, 240 channels at 12 × 12: 2.4 / 0.5, 1152 at 3 × 3: 2.6 / 0.2,
    7 × 7, 96 at 24 × 24: 6.0 / 1.1, 768 at 3 × 3: 2.7 / 0.3; in bfloat16 6.7 / 0.4, 8.7 / 0.2, 8.4 / 1.0, 6.6 / 0.2.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the convolution does."""
        conv: Any = self.conv
        given, strides, padding = self.given(x)
        y = kernels.depthwise_conv(given, conv.weight, conv.bias, strides=strides, padding=padding)
        return cast(Tensor, getattr(conv, "activation", activations.linear)(y))


class Separable(OneConv):
    """A separable convolution on a CPU: its first part as `Depthwise` does it, its second one as `GemmConv` does.

    Measured on 16 pictures of 96 × 96 on two cores with AVX2: the convolutions of NASNet-Mobile's step, separable ones for the most part,
    take 452 ms by oneDNN, 227 so.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer does."""
        conv: Any = self.conv
        given, strides, padding = self.given(x)
        y = kernels.depthwise_conv(given, conv.depthwise_weight, strides=strides, padding=padding)
        return cast(Tensor, conv.activation(_product_of(y, conv.pointwise_weight, conv.bias)))


def _product_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns a convolution by 1 × 1, of which those passes are products of matrices that are faster so."""
    passes = kernels.gemm_passes(x.shape, x.dtype, weight.shape, (1, 1), (0, 0))
    return kernels.gemm_conv(x, weight, bias, passes=passes) if any(passes) else nn.functional.conv2d(x, weight, bias)


class GemmConv(OneConv):
    """A convolution on a CPU of which those passes are products of matrices that are faster so, by its shape (`kernels.gemm_passes`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the convolution does."""
        conv: Any = self.conv
        given, strides, padding = self.given(x)
        passes = kernels.gemm_passes(given.shape, given.dtype, conv.weight.shape, strides, padding)
        if not any(passes):
            return cast(Tensor, conv(x))
        y = kernels.gemm_conv(given, conv.weight, conv.bias, strides=strides, padding=padding, passes=passes)
        return cast(Tensor, getattr(conv, "activation", activations.linear)(y))


class Products(nn.Module):
    """Dense layers and attention on a CPU whose products of float32 matrices, and those of their gradients, are oneDNN's.

    Args:
        layer: one of Convolt's, or PyTorch's `Linear`.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Any:
        """Returns what the layer does."""
        with products.by_onednn():
            if isinstance(self.layer, nn.Linear):
                return products.linear(inputs[0], self.layer.weight, self.layer.bias)
            return self.layer(*inputs)


def _as_autocast(x: Tensor) -> Tensor:
    """Returns `x` in the type in which autocast would have a convolution compute."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if x.is_floating_point() and torch.is_autocast_enabled(kind) else x


def _padding(conv: Any, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Returns the input, padded here where the two sides differ, and the zeros that are still to be added."""
    if isinstance(conv, (Conv2D, DepthwiseConv2D, SeparableConv2D)):
        padded, padding = conv._padded(x)
        return padded, (padding[0], padding[1])
    window = conv.kernel_size
    if isinstance(conv.padding, str):
        return x, (window[0] // 2, window[1] // 2) if conv.padding == "same" else (0, 0)
    return x, conv.padding


class ReluPool(nn.Module):
    """ReLU and max-pooling in one pass."""

    def __init__(self, pool_size: tuple[int, int]) -> None:
        super().__init__()
        self.pool_size = pool_size

    def forward(self, x: Tensor) -> Tensor:
        """Returns `max_pool(relu(x))`."""
        return kernels.relu_max_pool(x, self.pool_size)


class Norm(nn.Module):
    """Batch normalization with what follows it: nothing, an activation, or the sum with a residual (and ReLU).

    Args:
        norm: Convolt's `BatchNormalization` or PyTorch's `BatchNorm`.
        then: "", "relu", "add", "add_relu", or another activation's name (see `kernels.bn_activation`).
    """

    def __init__(self, norm: nn.Module, then: str) -> None:
        super().__init__()
        self.norm = norm
        self.then = then

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns the result of all in one op."""
        state, options = self.arguments()
        if residual is not None:
            op = kernels.bn_add_relu if self.then == "add_relu" else kernels.bn_add
            return op(x, residual, *state, **options)
        if self.then in ("", "relu"):
            return (kernels.bn_relu if self.then else kernels.bn)(x, *state, **options)
        return kernels.bn_activation(x, *state, self.then, **options)

    def arguments(self) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
        """Returns what the kernels take beside the input: parameters and running statistics, and options; counts a batch in training."""
        norm: Any = self.norm
        keras = isinstance(norm, BatchNormalization)
        training = norm.training and (not keras or norm.trainable)
        share = 0.0  # of this batch in the running statistics
        if training and keras:
            share = norm.next_share()
        elif training:
            norm.num_batches_tracked.add_(1)
            share = norm.momentum
        epsilon = norm.epsilon if keras else norm.eps
        options: dict[str, Any] = {"training": training, "momentum": share, "eps": epsilon, "unbiased": not keras}
        return (norm.weight, norm.bias, norm.running_mean, norm.running_var), options


class NormPool(Norm):
    """Batch normalization, ReLU and max-pooling in one op.

    Args:
        norm: as in `Norm`.
        pool_size, strides, padding: vertical and horizontal, as `kernels.bn_relu_max_pool` takes them.
    """

    def __init__(self, norm: nn.Module, pool_size: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__(norm, "relu_pool")
        self.window: dict[str, Any] = {"pool_size": pool_size, "strides": strides, "padding": padding}

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns `max_pool(relu(batch_norm(x)))`."""
        state, options = self.arguments()
        return kernels.bn_relu_max_pool(x, *state, **(self.window | options))
