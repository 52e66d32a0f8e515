"""Which chains of a graph are frozen: a convolution, the normalization, scale, sum, activation and pooling behind it, the zeros before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from convolt import activations, kernels
from convolt.compiler.frozen import Chain, Frozen, MaxPool, Packed, freeze, freeze_dense
from convolt.compiler.fuse import REWRITES, fuse
from convolt.compiler.nodes import INSIDE, Pair, activation_of, feeds_only, first_input, module_of, norm_of, pool_of, summands, window_of
from convolt.layers import (
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    LayerScale,
    MaxPooling2D,
    SeparableConv2D,
    ZeroPadding2D,
)
from convolt.layers.windows import same_padding

LEFT = ("bn+add+relu", "bn+add", "bn+relu+pool", "bn+relu", "bn+activation", "relu+pool", "onednn products")
"""Rewrites of what is not part of a chain."""

NOT_BELOW_ZERO = (activations.relu, activations.relu6, activations.sigmoid)
"""Activations whose results max-pooling may pad by nothing in place of zeros."""


def frozen_graph(traced: fx.GraphModule, batch: int, dtype: torch.dtype) -> tuple[fx.GraphModule, dict[str, int]]:
    """Returns a copy of a traced model in which chains are frozen, and how many in which way; no count where there are none.

    Args:
        traced: the model's graph.
        batch: samples of a batch.
        dtype: of the computation.
    """
    graph = fuse(traced, ()).module  # a copy
    count: Counter[str] = Counter()
    for node in list(graph.graph.nodes):
        separable = module_of(graph, node)
        if isinstance(separable, SeparableConv2D) and len(node.meta.get("shape", ())) == 4:
            _part(graph, node, separable)
    _merge_activations(graph)
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), (Dropout, nn.Dropout)):
            node.replace_all_uses_with(first_input(node))
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        found = _chain(graph, node, dtype) if node.op == "call_module" else None
        if found is not None:
            _replace(graph, found, batch, dtype, count)
    if not count:
        return graph, {}
    _overwrite_residuals(graph)
    if dtype != torch.float32:
        for node in graph.graph.nodes:
            layer = module_of(graph, node)
            if type(layer) in (Dense, nn.Linear):
                frozen = freeze_dense(layer, batch, dtype, hands_on=bool(node.meta.get("masked")))  # type: ignore[arg-type]
                graph.add_submodule(str(node.target), frozen)
                count["cast"] += 1
    graph.recompile()
    graph = fuse(graph, tuple(rewrite.name for rewrite in REWRITES if rewrite.name in LEFT and rewrite.pays())).module
    _freeze_pools(graph)
    graph.graph.lint()
    graph.recompile()
    return graph, dict(count)


def _freeze_pools(graph: fx.GraphModule) -> None:
    """Has max-pooling computed without a gradient; it adds the zeros at its border itself where nothing is below zero."""
    for node in list(graph.graph.nodes):
        window = _pool_window(graph, node)
        if window is None:
            continue
        size, strides, padding, ceil_mode = window
        zeros, border = first_input(node), _border_of_pool(graph, node, size)
        inside = border is not None and padding == (0, 0) and not ceil_mode
        node.target = f"{node.name}_frozen"  # the layer may be called elsewhere, too
        graph.add_submodule(node.target, MaxPool(size, strides, border if inside else padding, ceil_mode))  # type: ignore[arg-type]
        if inside:
            node.args = (first_input(zeros),)
            graph.graph.erase_node(zeros)


def _pool_window(graph: fx.GraphModule, node: fx.Node) -> tuple[Pair, Pair, Pair, bool] | None:
    """Returns size, strides and padding of a max-pooling of pictures, and whether windows reach over the end.

    Those of "same" padding may: what is added behind them is left out, as `MaxPooling2D` does it (see `_Pooling._pool_same`).
    """
    layer: Any = module_of(graph, node)
    if type(layer) not in (MaxPooling2D, nn.MaxPool2d) or node.kwargs or not isinstance(first_input(node), fx.Node):
        return None
    shape, window = first_input(node).meta.get("shape", ()), window_of(graph, node)
    if len(shape) != 4:
        return None
    if window is not None:
        (rows, columns), (down, right), (top, left) = window
        return (rows, columns), (down, right), (top, left), False
    if type(layer) is not MaxPooling2D:
        return None
    borders = [same_padding(*sizes) for sizes in zip(shape[2:], layer.pool_size, layer.strides, strict=True)]
    if any(after > top and stride == 1 for (top, after), stride in zip(borders, layer.strides, strict=True)):
        return None
    (rows, columns), (down, right) = layer.pool_size, layer.strides
    return (rows, columns), (down, right), (borders[0][0], borders[1][0]), True


def _border_of_pool(graph: fx.GraphModule, node: fx.Node, size: Pair) -> Pair | None:
    """Returns the zeros that a layer before adds above and on the left of what is pooled, if pooling may add them itself."""
    zeros = first_input(node)
    layer: Any = module_of(graph, zeros)
    if not isinstance(layer, ZeroPadding2D) or not feeds_only(zeros, node):
        return None
    chain = getattr(module_of(graph, first_input(zeros)), "chain", None)
    even = all(one == other and 2 * one <= side for (one, other), side in zip(layer.padding, size, strict=True))
    if not isinstance(chain, Chain) or chain.activation not in NOT_BELOW_ZERO or not even:
        return None
    return layer.padding[0][0], layer.padding[1][0]


def _overwrite_residuals(graph: fx.GraphModule) -> None:
    """Has sums written over the residual where a frozen convolution made that and nobody needs it any more."""
    places = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if isinstance(module, Packed) and module.chain.added:
            residual = node.args[1]
            others = [user for user in residual.users if user is not node]
            ended = all(places[user] < places[node] and isinstance(module_of(graph, user), Frozen) for user in others)
            module.overwrites = ended and node.args[0] is not residual and isinstance(module_of(graph, residual), Frozen)


def _merge_activations(graph: fx.GraphModule) -> None:
    """Has an activation computed once where several branches begin with it."""
    known: dict[tuple[fx.Node, Any], fx.Node] = {}
    for node in list(graph.graph.nodes):
        then = activation_of(graph, node) if node.op.startswith("call") else None
        if then is not None and len(node.all_input_nodes) == 1:
            first = known.setdefault((node.all_input_nodes[0], then), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.graph.erase_node(node)


def _part(graph: fx.GraphModule, node: fx.Node, separable: SeparableConv2D) -> None:
    """Replaces a separable convolution by the two that it consists of."""
    depthwise = DepthwiseConv2D(separable.kernel_size, separable.strides, separable.padding, separable.depth_multiplier,
                                dilation_rate=separable.dilation_rate, use_bias=False, name=f"{separable.name}_depthwise")
    pointwise = Conv2D(separable.filters, 1, activation=separable.activation, name=f"{separable.name}_pointwise")
    depthwise.weight, depthwise.bias = separable.depthwise_weight, None
    pointwise.weight, pointwise.bias = separable.pointwise_weight, separable.bias
    depthwise._channels, pointwise._channels = separable._channels, separable.pointwise_weight.shape[1]
    depthwise.built = pointwise.built = True
    node.target, target = f"{node.target}_depthwise", f"{node.target}_pointwise"
    graph.add_submodule(node.target, depthwise)
    graph.add_submodule(target, pointwise)
    with graph.graph.inserting_after(node):
        last = graph.graph.call_module(target, (node,))
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not last)
    last.meta = dict(node.meta)
    node.meta["shape"] = (node.meta["shape"][0], pointwise._channels, *node.meta["shape"][2:])


@dataclass
class _Found:
    """A chain in a graph: what it computes, the convolution's weight, its input, the residual if there is one, its nodes in order."""

    chain: Chain
    weight: Tensor
    x: fx.Node
    residual: fx.Node | None
    nodes: list[fx.Node]
    norms: int


def _chain(graph: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> _Found | None:
    """Returns the longest chain that begins with a convolution at this node.

    A scale ends it in bfloat16: autocast would multiply and add what follows in float32, and small scales are lost without that.
    """
    conv: Any = module_of(graph, node)
    x = first_input(node)
    if not isinstance(x, fx.Node) or len(x.meta.get("shape", ())) != 4 or not _can_freeze(conv):
        return None
    if isinstance(conv, Dense):
        if node.meta.get("masked"):
            return None
        conv = _as_convolution(conv)
    border, padding, x, nodes = _padding(graph, conv, node, x)
    weight, bias = conv.weight.detach().float(), None if conv.bias is None else conv.bias.detach().float()
    activation, norms = getattr(conv, "activation", activations.linear), 0
    residual: fx.Node | None = None
    last = node
    after = _only_user(last)
    norm = norm_of(graph, after) if after is not None and activation is activations.linear else None
    if norm is not None and after is not None:
        weight, bias = _folded(weight, bias, norm)
        last, norms = after, 1
        nodes.append(after)
    after = _only_user(last)
    scale = module_of(graph, after) if after is not None and activation is activations.linear else None
    if type(scale) is LayerScale and dtype == torch.float32 and after is not None:
        factors = scale.weight.detach().float()
        weight, bias = weight * factors.view(-1, 1, 1, 1), None if bias is None else bias * factors
        last = after
        nodes.append(after)
    after = _only_user(last)
    sides = summands(graph, after) if after is not None and activation is activations.linear else None
    if sides is not None and after is not None and sides[0] is not sides[1]:
        other = sides[1] if sides[0] is last else sides[0]
        if other.meta.get("shape") == last.meta.get("shape"):
            residual, last = other, after
            nodes.append(after)
    after = _only_user(last)
    then = activation_of(graph, after) if after is not None and activation is activations.linear else None
    if then is not None and after is not None:
        activation, last = then, after
        nodes.append(after)
    after = _only_user(last)
    pool = 1
    if after is not None and residual is None and activation in (activations.linear, activations.relu) and pool_of(graph, after) == (2, 2):
        pool = 2
        nodes.append(after)
    window = (_pair(getattr(conv, "strides", None) or conv.stride), padding, _pair(getattr(conv, "dilation_rate", None) or conv.dilation))
    groups = x.meta["shape"][1] if isinstance(conv, DepthwiseConv2D) else conv.groups
    chain = Chain(bias, *window, groups, border, activation, residual is not None, pool)
    return _Found(chain, weight, x, residual, nodes, norms)


def _can_freeze(conv: Any) -> bool:
    if type(conv) is Dense and conv.weight.device.type not in ("cpu", "meta"):
        return False  # where a product is as fast, and TF32 has switches of its own for convolutions
    if isinstance(conv, (Conv2D, DepthwiseConv2D)) or type(conv) is Dense:
        return conv.activation in (activations.linear, *INSIDE)
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _as_convolution(dense: Dense) -> Conv2D:
    """Returns a dense layer over a map as the convolution by 1 × 1 that it is, with weights of its own."""
    conv = Conv2D(dense.units, 1, activation=dense.activation, name=dense.name)
    conv.weight, conv.bias = nn.Parameter(dense.weight.detach()[:, :, None, None], requires_grad=False), dense.bias
    conv._channels, conv.built = dense.weight.shape[1], True
    return conv


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _padding(graph: fx.GraphModule, conv: Any, node: fx.Node,
             x: fx.Node) -> tuple[tuple[int, ...], tuple[int, int], fx.Node, list[fx.Node]]:
    """Returns (border for `F.pad`, what the convolution adds itself, the input, the chain so far); a layer of zeros before is taken in."""
    if type(conv) is nn.Conv2d:
        return (), _pair(conv.padding), x, [node]
    shape = x.meta["shape"]
    padded, padding = conv._padded(torch.empty(shape, device="meta"))
    rows, columns = (padded.shape[i] - shape[i] for i in (2, 3))
    border: tuple[int, ...] = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2) if rows or columns else ()
    zeros = module_of(graph, x)
    if not isinstance(zeros, ZeroPadding2D) or not feeds_only(x, node) or border or any(padding):
        return border, (padding[0], padding[1]), x, [node]
    (top, bottom), (left, right) = zeros.padding
    nodes, x = [x, node], first_input(x)
    if top == bottom and left == right:
        return (), (top, left), x, nodes
    return (left, right, top, bottom), (0, 0), x, nodes


def _folded(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Returns the weights and bias of convolution and batch normalization in one."""
    epsilon = norm.epsilon if isinstance(norm, BatchNormalization) else norm.eps
    scale, shift = kernels.inference_affine(norm.weight, norm.bias, norm.running_mean, norm.running_var, epsilon)
    return weight * scale.view(-1, 1, 1, 1), shift if bias is None else shift + bias * scale


def _replace(graph: fx.GraphModule, found: _Found, batch: int, dtype: torch.dtype, count: Counter[str]) -> None:
    module = freeze(found.chain, found.weight, (batch, *found.x.meta["shape"][1:]), dtype)
    name, last = f"frozen_{sum(count.values())}", found.nodes[-1]
    graph.add_submodule(name, module)
    with graph.graph.inserting_after(last):
        new = graph.graph.call_module(name, (found.x,) if found.residual is None else (found.x, found.residual))
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)
    for node in reversed(found.nodes):
        graph.graph.erase_node(node)
    count[type(module).__name__.lower()] += 1
    if found.norms:
        count["folded"] += found.norms
