"""The rewrites of convolutions, with what follows them or alone: where each one is legal, and may pay by its shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from convolt.compiler.fused import (
    ConvRelu,
    ConvReluPool,
    Depthwise,
    FirstConvReluPool,
    GemmConv,
    Separable,
    SparseConvReluPool,
    WinogradConv,
    WinogradPool,
)
from convolt.compiler.nodes import Match, conv_of, ends_in_relu, feeds_only, first_input, is_relu, module_of, pool_of
from convolt.kernels.conv import MOST_CHANNELS
from convolt.kernels.depthwise import FEWEST_CHANNELS as FEWEST_TO_ITSELF
from convolt.kernels.depthwise import LARGEST_OF_ONEDNN
from convolt.kernels.gemm import gemm_passes
from convolt.kernels.jit import LANES
from convolt.kernels.tiles import FEWEST_CHANNELS
from convolt.kernels.winograd import MULTIPLE
from convolt.layers import Conv2D, DepthwiseConv2D, SeparableConv2D


def conv_relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """Conv → [ReLU] → pool, and conv → pool → ReLU, which is the same: ReLU keeps order."""
    chain = [node]
    relu = is_relu(graph, node)
    pool_node = first_input(node) if relu else node
    if relu and not feeds_only(pool_node, node):
        return None
    chain = [pool_node, node] if relu else [node]
    pool = pool_of(graph, pool_node) if isinstance(pool_node, fx.Node) else None
    if pool is None:
        return None
    before = first_input(pool_node)
    if not feeds_only(before, pool_node):
        return None
    if not relu and is_relu(graph, before):
        chain.insert(0, before)
        relu, inner = True, first_input(before)
        if not feeds_only(inner, before):
            return None
        before = inner
    conv = conv_of(graph, before)
    if conv is None or not (relu or ends_in_relu(conv)):
        return None
    return Match(ConvReluPool(conv, pool), (first_input(before),), (before, *chain))


def first_conv_relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """The same where the convolution sees the data: few channels, and nothing before it learns."""
    found = conv_relu_pool(graph, node)
    if found is None or not isinstance(found.module, ConvReluPool) or found.module.pool_size not in (2, (2, 2)):
        return None
    conv = found.module.conv
    return Match(FirstConvReluPool(conv), found.inputs, found.covers) if _is_small(conv) and _is_data(graph, found.inputs[0]) else None


def sparse_conv_relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """The same on a CPU, for a plain convolution: four places or more in a pooling window leave little of the gradient."""
    found = conv_relu_pool(graph, node)
    if found is None or not isinstance(found.module, ConvReluPool) or math.prod(found.module.pool_size) < 4:
        return None
    conv: Any = found.module.conv
    if not _is_plain(conv) or conv.weight.device.type != "cpu":
        return None
    return Match(SparseConvReluPool(conv, found.module.pool_size), found.inputs, found.covers)


def winograd_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """The same, or the same without ReLU, on a CPU for a plain 3 × 3 convolution and windows of 2 × 2."""
    found = conv_relu_pool(graph, node)
    if found is not None and isinstance(found.module, ConvReluPool):
        fits = found.module.pool_size == (2, 2) and _is_winograd(found.module.conv)
        return Match(WinogradPool(found.module.conv, True), found.inputs, found.covers) if fits else None
    before = first_input(node)
    conv = conv_of(graph, before) if pool_of(graph, node) == (2, 2) and feeds_only(before, node) else None
    if conv is None or ends_in_relu(conv) or not _is_winograd(conv):
        return None
    return Match(WinogradPool(conv, False), (first_input(before),), (before, node))


def winograd_conv(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """Tiles of 2 × 2 or 4 × 4; which of them, or none, a batch's shape and type say."""
    conv, shape = conv_of(graph, node), node.meta.get("shape", ())
    if conv is None or len(shape) != 4:
        return None
    if not (_is_winograd(conv) and shape[2] % 2 == shape[3] % 2 == 0) and not _is_tiled(conv):
        return None
    return Match(WinogradConv(conv, ends_in_relu(conv)), (first_input(node),), (node,))


def depthwise(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """A convolution of each channel by itself, on a CPU: with large windows, and with strides in bfloat16, oneDNN has no fast gradients."""
    conv: Any = module_of(graph, node)
    if (not isinstance(conv, (Conv2D, DepthwiseConv2D)) and type(conv) is not nn.Conv2d) or len(node.meta.get("shape", ())) != 4:
        return None
    weight = getattr(conv, "weight", None)  # of Convolt's layers once they are built
    if weight is None or weight.device.type != "cpu" or weight.shape[1] != 1 or len(weight) < FEWEST_TO_ITSELF:
        return None
    if isinstance(conv, nn.Conv2d):
        fits = conv.in_channels == conv.groups == len(weight) and conv.dilation == (1, 1) and _has_even_zeros(conv)
    else:
        groups = len(weight) if isinstance(conv, DepthwiseConv2D) and conv.depth_multiplier == 1 else getattr(conv, "groups", 0)
        fits = groups == len(weight) and conv.dilation_rate == (1, 1)
    pays = math.prod(weight.shape[2:]) > LARGEST_OF_ONEDNN or (getattr(conv, "stride", None) or conv.strides) != (1, 1)
    return Match(Depthwise(conv), (first_input(node),), (node,)) if fits and pays else None


def separable(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """A separable convolution on a CPU, of which one of the two parts at least has passes that are faster than oneDNN's."""
    conv = module_of(graph, node)
    if type(conv) is not SeparableConv2D or not conv.built or len(node.meta.get("shape", ())) != 4:
        return None
    window, single = conv.depthwise_weight, conv.pointwise_weight
    if window.device.type != "cpu" or conv.depth_multiplier > 1 or conv.dilation_rate != (1, 1) or len(window) < FEWEST_TO_ITSELF:
        return None
    height, width = node.meta["shape"][2:]
    passes = gemm_passes((1, len(window), height, width), torch.bfloat16, single.shape, (1, 1), (0, 0))
    pays = any(passes) or math.prod(conv.kernel_size) > LARGEST_OF_ONEDNN or conv.strides != (1, 1)
    return Match(Separable(conv), (first_input(node),), (node,)) if pays else None


def gemm_conv(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """A convolution without holes and groups on a CPU; at least the weights' gradient must be faster so in bfloat16."""
    conv: Any = module_of(graph, node)
    if not (type(conv) in (Conv2D, nn.Conv2d) and len(node.meta.get("shape", ())) == 4 and conv.groups == 1):
        return None
    weight = getattr(conv, "weight", None)  # of Convolt's layers once they are built
    plain = _has_even_zeros(conv) and conv.dilation == (1, 1) if isinstance(conv, nn.Conv2d) else conv.dilation_rate == (1, 1)
    if weight is None or weight.device.type != "cpu" or not plain:
        return None
    height, width = node.meta["shape"][2:]  # of the results: as if the input were just what they need
    needed = (1, weight.shape[1], height + weight.shape[2] - 1, width + weight.shape[3] - 1)
    pays = any(gemm_passes(needed, torch.bfloat16, weight.shape, (1, 1), (0, 0)))
    return Match(GemmConv(conv), (first_input(node),), (node,)) if pays else None


def conv_relu(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """Conv → ReLU, or a convolution whose own activation that is."""
    conv = conv_of(graph, node)
    if conv is not None:
        return Match(ConvRelu(conv), (first_input(node),), (node,)) if ends_in_relu(conv) else None
    before = first_input(node)
    conv = conv_of(graph, before) if is_relu(graph, node) and feeds_only(before, node) else None
    return Match(ConvRelu(conv), (first_input(before),), (before, node)) if conv is not None and not ends_in_relu(conv) else None


def _has_even_zeros(conv: nn.Conv2d) -> bool:
    """Whether padding is by zeros, as many on either side."""
    return conv.padding_mode == "zeros" and (conv.padding != "same" or all(size % 2 for size in conv.kernel_size))


def _is_tiled(conv: Any) -> bool:
    """Whether a convolution is plain and 3 × 3 with as many channels as tiles of 4 × 4 want, on a CPU."""
    fits = conv.kernel_size == (3, 3) and all(n >= FEWEST_CHANNELS and n % LANES == 0 for n in conv.weight.shape[:2])
    return fits and _is_plain(conv) and conv.weight.device.type == "cpu"


def _is_winograd(conv: Any) -> bool:
    """Whether a convolution is plain and 3 × 3 with as many channels and filters as the kernel wants, on a CPU."""
    fits = conv.kernel_size == (3, 3) and not any(size % MULTIPLE for size in conv.weight.shape[:2])
    return fits and _is_plain(conv) and conv.weight.device.type == "cpu"


def _is_plain(conv: Any) -> bool:
    """Whether a convolution has no step, holes, groups, or padding by other than zeros that are as many on either side."""
    if isinstance(conv, Conv2D):
        steps = (conv.strides, conv.dilation_rate)
    elif _has_even_zeros(conv):
        steps = (conv.stride, conv.dilation)
    else:
        return False
    return steps == ((1, 1), (1, 1)) and conv.groups == 1


def _is_small(conv: Any) -> bool:
    """Whether a convolution is plain and 3 × 3 over few channels."""
    return _is_plain(conv) and conv.kernel_size == (3, 3) and conv.weight.shape[1] <= MOST_CHANNELS


def _is_data(graph: fx.GraphModule, node: Any) -> bool:
    """Whether a value is an input of the model, or made of inputs by layers without parameters (`Rescaling`, `Reshape`, …)."""
    if not isinstance(node, fx.Node) or node.op in ("placeholder", "get_attr"):
        return isinstance(node, fx.Node) and node.op == "placeholder"
    if node.op == "call_module" and next(graph.get_submodule(str(node.target)).parameters(), None) is not None:
        return False
    return all(_is_data(graph, before) for before in node.all_input_nodes)
