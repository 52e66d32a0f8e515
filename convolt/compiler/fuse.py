"""The table of rewrites: which neighbours in a graph become one fused op, and when that is legal.

A rewrite looks at one node and returns the fused module that replaces a chain ending there, or None. Fused modules
share the parameters of the layers that they replace: saving, `summary` and resuming see the same model as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from convolt import activations
from convolt.compiler.fused import (
    ConvRelu,
    ConvReluPool,
    Depthwise,
    FirstConvReluPool,
    GemmConv,
    Norm,
    NormPool,
    Products,
    ReluPool,
    SparseConvReluPool,
    WinogradConv,
    WinogradPool,
)
from convolt.compiler.nodes import (
    activation_of,
    conv_of,
    ends_in_relu,
    feeds_only,
    first_input,
    is_relu,
    module_of,
    norm_of,
    pool_of,
    summands,
    window_of,
)
from convolt.devices import multiplies_at_half_rate
from convolt.kernels.conv import MOST_CHANNELS
from convolt.kernels.depthwise import FEWEST_CHANNELS as FEWEST_TO_ITSELF
from convolt.kernels.depthwise import LARGEST_OF_ONEDNN
from convolt.kernels.gemm import gemm_passes
from convolt.kernels.jit import LANES
from convolt.kernels.pool_reference import DEAD
from convolt.kernels.tiles import FEWEST_CHANNELS
from convolt.kernels.winograd import MULTIPLE
from convolt.layers import Conv2D, Dense, DepthwiseConv2D, EinsumDense, GroupQueryAttention, MultiHeadAttention, ZeroPadding2D


@dataclass(frozen=True)
class Match:
    """A chain that can be fused.

    Attributes:
        module: what replaces it.
        inputs: nodes that the module is called on.
        covers: the chain, whose last node gets replaced.
    """

    module: nn.Module
    inputs: tuple[fx.Node, ...]
    covers: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Rewrite:
    """A row of the table.

    Attributes:
        name: in plans.
        what: it does, in one line.
        match: finds it at a node.
        leftover: whether it is for what longer rewrites leave, so that the search tries it after them.
        pays: whether it may be faster on this machine; where it was asked for by its name, as by a plan of another one, that is not asked.
    """

    name: str
    what: str
    match: Callable[[fx.GraphModule, fx.Node], Match | None]
    leftover: bool = False
    pays: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Fused:
    """The result: the rewritten module, how often each rewrite was used, and the names of the nodes that were replaced."""

    module: fx.GraphModule
    count: dict[str, int]
    covers: frozenset[str] = frozenset()


def _conv_relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
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


def _first_conv_relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """The same where the convolution sees the data: few channels, and nothing before it learns."""
    found = _conv_relu_pool(graph, node)
    if found is None or not isinstance(found.module, ConvReluPool) or found.module.pool_size not in (2, (2, 2)):
        return None
    conv = found.module.conv
    return Match(FirstConvReluPool(conv), found.inputs, found.covers) if _is_small(conv) and _is_data(graph, found.inputs[0]) else None


def _sparse_conv_relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """The same on a CPU, for a plain convolution: four places or more in a pooling window leave little of the gradient."""
    found = _conv_relu_pool(graph, node)
    if found is None or not isinstance(found.module, ConvReluPool) or math.prod(found.module.pool_size) < 4:
        return None
    conv: Any = found.module.conv
    if not _is_plain(conv) or conv.weight.device.type != "cpu":
        return None
    return Match(SparseConvReluPool(conv, found.module.pool_size), found.inputs, found.covers)


def _winograd_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """The same, or the same without ReLU, on a CPU for a plain 3 × 3 convolution and windows of 2 × 2."""
    found = _conv_relu_pool(graph, node)
    if found is not None and isinstance(found.module, ConvReluPool):
        fits = found.module.pool_size == (2, 2) and _is_winograd(found.module.conv)
        return Match(WinogradPool(found.module.conv, True), found.inputs, found.covers) if fits else None
    before = first_input(node)
    conv = conv_of(graph, before) if pool_of(graph, node) == (2, 2) and feeds_only(before, node) else None
    if conv is None or ends_in_relu(conv) or not _is_winograd(conv):
        return None
    return Match(WinogradPool(conv, False), (first_input(before),), (before, node))


def _winograd_conv(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """Tiles of 2 × 2 or 4 × 4; which of them, or none, a batch's shape and type say."""
    conv, shape = conv_of(graph, node), node.meta.get("shape", ())
    if conv is None or len(shape) != 4:
        return None
    if not (_is_winograd(conv) and shape[2] % 2 == shape[3] % 2 == 0) and not _is_tiled(conv):
        return None
    return Match(WinogradConv(conv, ends_in_relu(conv)), (first_input(node),), (node,))


def _depthwise(graph: fx.GraphModule, node: fx.Node) -> Match | None:
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


def _gemm_conv(graph: fx.GraphModule, node: fx.Node) -> Match | None:
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


def _products(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """Dense layers and attention in float32 on a CPU."""
    layer = module_of(graph, node)
    kinds = (Dense, EinsumDense, GroupQueryAttention, MultiHeadAttention, nn.Linear)
    if layer is None or type(layer) not in kinds or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in layer.parameters())
    inputs = [value for value in node.args if isinstance(value, fx.Node)]
    if not plain or node.kwargs or len(inputs) < len(node.args):
        return None
    return Match(Products(layer), tuple(inputs), (node,))


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


def _relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    pool, relu = pool_of(graph, node), first_input(node)
    if pool is None or not is_relu(graph, relu) or not feeds_only(relu, node) or len(node.meta.get("shape", ())) != 4:
        return None
    return Match(ReluPool(pool), (first_input(relu),), (relu, node))


def _conv_relu(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    conv = conv_of(graph, node)
    if conv is not None:
        return Match(ConvRelu(conv), (first_input(node),), (node,)) if ends_in_relu(conv) else None
    before = first_input(node)
    conv = conv_of(graph, before) if is_relu(graph, node) and feeds_only(before, node) else None
    return Match(ConvRelu(conv), (first_input(before),), (before, node)) if conv is not None and not ends_in_relu(conv) else None


def _bn_add(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    sides = summands(graph, node)
    for norm_node, residual in (sides, sides[::-1]) if sides and sides[0] is not sides[1] else ():
        norm = norm_of(graph, norm_node)
        if norm is not None and feeds_only(norm_node, node) and norm_node.meta.get("shape") == residual.meta.get("shape"):
            return Match(Norm(norm, "add"), (first_input(norm_node), residual), (norm_node, node))
    return None


def _bn_add_relu(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    total = first_input(node)
    found = _bn_add(graph, total) if is_relu(graph, node) and feeds_only(total, node) else None
    if found is None or not isinstance(found.module, Norm):
        return None
    return Match(Norm(found.module.norm, "add_relu"), found.inputs, (*found.covers, node))


def _bn_relu(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    before = first_input(node)
    norm = norm_of(graph, before)
    if norm is None or not is_relu(graph, node) or not feeds_only(before, node):
        return None
    return Match(Norm(norm, "relu"), (first_input(before),), (before, node))


def _bn_relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    """BN → ReLU → [zeros at the border, which ReLU makes as good as none] → pool, and BN → pool → ReLU."""
    chain: list[Any] = [node]
    if is_relu(graph, node):
        chain.insert(0, first_input(node))
    window = window_of(graph, chain[0])
    if window is None:
        return None
    size, strides, padding = window
    if chain[0] is node:
        chain.insert(0, first_input(node))
        zeros = module_of(graph, chain[0])
        if isinstance(zeros, ZeroPadding2D) and padding == (0, 0):
            (top, bottom), (left, right) = zeros.padding
            padding = (top, left) if (top, left) == (bottom, right) else (size[0], 0)
            chain.insert(0, first_input(chain[0]))
        if not is_relu(graph, chain[0]):
            return None
    chain.insert(0, first_input(chain[0]))
    norm = norm_of(graph, chain[0])
    fits = math.prod(size) <= DEAD and all(2 * border <= side for side, border in zip(size, padding, strict=True))
    if norm is None or not fits or len(node.meta.get("shape", ())) != 4 or not all(map(feeds_only, chain, chain[1:])):
        return None
    return Match(NormPool(norm, size, strides, padding), (first_input(chain[0]),), tuple(chain))


def _bn_activation(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    names = {activations.relu6: "relu6", activations.silu: "silu", activations.hard_silu: "hard_silu"}
    before, name = first_input(node), names.get(activation_of(graph, node))
    norm = norm_of(graph, before)
    if norm is None or name is None or not feeds_only(before, node):
        return None
    return Match(Norm(norm, name), (first_input(before),), (before, node))


def _bn(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    norm = norm_of(graph, node)
    return None if norm is None else Match(Norm(norm, ""), (first_input(node),), (node,))


REWRITES = (  # in order: the longest chains first
    Rewrite("first conv+relu+pool", "the first convolution, bias, ReLU and max-pooling in one pass", _first_conv_relu_pool),
    Rewrite("winograd conv+pool", "3 × 3 convolution, ReLU and pooling in one pass, 2.25 times fewer products (CPU)", _winograd_pool),
    Rewrite("sparse conv+relu+pool", "the same, with a gradient that skips what pooling cut off (CPU)", _sparse_conv_relu_pool),
    Rewrite("conv+relu+pool", "bias, ReLU and max-pooling after a convolution in one pass", _conv_relu_pool),
    Rewrite("bn+add+relu", "batch normalization, residual sum and ReLU in one pass", _bn_add_relu),
    Rewrite("bn+relu+pool", "batch normalization, ReLU and max-pooling in one pass", _bn_relu_pool),
    Rewrite("bn+relu", "batch normalization and ReLU in one pass", _bn_relu),
    Rewrite("bn+activation", "batch normalization and ReLU6, SiLU or hard SiLU in one pass", _bn_activation),
    Rewrite("bn+add", "batch normalization and residual sum in one pass", _bn_add, leftover=True),
    Rewrite("bn", "batch normalization alone", _bn, leftover=True),
    Rewrite("relu+pool", "ReLU and max-pooling in one pass", _relu_pool),
    Rewrite("winograd conv", "3 × 3 convolution with 2.25 to 4 times fewer products, by its shape (CPU)", _winograd_conv),
    Rewrite("depthwise conv", "convolution of each channel by itself, with a weights' gradient of our own (CPU)", _depthwise),
    Rewrite("gemm conv", "convolution of many channels to few places by products of matrices, pass by pass (CPU)", _gemm_conv),
    Rewrite("onednn products", "dense layers' and attention's products of float32 matrices by oneDNN (CPU)", _products,
            pays=lambda: multiplies_at_half_rate()),
    Rewrite("conv+relu", "bias and ReLU written over a convolution's result, on CUDA in one pass", _conv_relu, leftover=True),
)


def fuse(traced: fx.GraphModule, names: tuple[str, ...] | None = None) -> Fused:
    """Returns a copy of the graph in which the table's rewrites that pay (or those in `names`) are done wherever they are legal."""
    graph = fx.Graph()
    val_map: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(traced.graph, val_map))
    for old, new in val_map.items():
        new.meta = dict(old.meta)
    result = fx.GraphModule(traced, graph, type(traced).__name__)
    count: dict[str, int] = {}
    covers: set[str] = set()
    for rewrite in REWRITES:
        if not (rewrite.pays() if names is None else rewrite.name in names):
            continue
        for node in list(result.graph.nodes):
            match = rewrite.match(result, node) if node.op.startswith("call") else None
            if match is not None:
                covers.update(covered.name for covered in match.covers)
                _replace(result, match, f"fused_{len(count)}_{sum(count.values())}")
                count[rewrite.name] = count.get(rewrite.name, 0) + 1
    result.graph.lint()
    result.recompile()
    return Fused(result, count, frozenset(covers))


def _replace(module: fx.GraphModule, match: Match, name: str) -> None:
    last = match.covers[-1]
    module.add_submodule(name, match.module)
    with module.graph.inserting_after(last):
        fused = module.graph.call_module(name, match.inputs)
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for node in reversed(match.covers):
        module.graph.erase_node(node)
