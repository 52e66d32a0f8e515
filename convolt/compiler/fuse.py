"""The table of rewrites: which neighbours in a graph become one fused op, and when that is legal.

A rewrite looks at one node and returns the fused module that replaces a chain ending there, or None; those of convolutions are in
`convs.py`. Fused modules share the parameters of the layers that they replace: saving, `summary` and resuming see the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from convolt import activations
from convolt.compiler import convs
from convolt.compiler.fused import Norm, NormPool, Products, ReluPool
from convolt.compiler.nodes import Match, activation_of, feeds_only, first_input, is_relu, module_of, norm_of, pool_of, summands, window_of
from convolt.devices import has_slow_mkl
from convolt.kernels.pool_reference import DEAD
from convolt.layers import Dense, EinsumDense, GroupQueryAttention, MultiHeadAttention, ZeroPadding2D


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


def _relu_pool(graph: fx.GraphModule, node: fx.Node) -> Match | None:
    pool, relu = pool_of(graph, node), first_input(node)
    if pool is None or not is_relu(graph, relu) or not feeds_only(relu, node) or len(node.meta.get("shape", ())) != 4:
        return None
    return Match(ReluPool(pool), (first_input(relu),), (relu, node))


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
    Rewrite("first conv+relu+pool", "the first convolution, bias, ReLU and max-pooling in one pass", convs.first_conv_relu_pool),
    Rewrite("winograd conv+pool", "3 × 3 convolution, ReLU and pooling in one pass, 2.25 times fewer products (CPU)", convs.winograd_pool),
    Rewrite("sparse conv+relu+pool", "the same, with a gradient that skips what pooling cut off (CPU)", convs.sparse_conv_relu_pool),
    Rewrite("conv+relu+pool", "bias, ReLU and max-pooling after a convolution in one pass", convs.conv_relu_pool),
    Rewrite("bn+add+relu", "batch normalization, residual sum and ReLU in one pass", _bn_add_relu),
    Rewrite("bn+relu+pool", "batch normalization, ReLU and max-pooling in one pass", _bn_relu_pool),
    Rewrite("bn+relu", "batch normalization and ReLU in one pass", _bn_relu),
    Rewrite("bn+activation", "batch normalization and ReLU6, SiLU or hard SiLU in one pass", _bn_activation),
    Rewrite("bn+add", "batch normalization and residual sum in one pass", _bn_add, leftover=True),
    Rewrite("bn", "batch normalization alone", _bn, leftover=True),
    Rewrite("relu+pool", "ReLU and max-pooling in one pass", _relu_pool),
    Rewrite("winograd conv", "3 × 3 convolution with 2.25 to 4 times fewer products, by its shape (CPU)", convs.winograd_conv),
    Rewrite("depthwise conv", "convolution of each channel by itself, with a weights' gradient of our own (CPU)", convs.depthwise),
    Rewrite("separable conv", "depthwise and 1 × 1 convolution, each with gradients by what its shape wants (CPU)", convs.separable),
    Rewrite("gemm conv", "convolution of many channels to few places by products of matrices, pass by pass (CPU)", convs.gemm_conv),
    Rewrite("onednn products", "dense layers' and attention's products of float32 matrices by oneDNN (CPU)", _products,
            pays=lambda: has_slow_mkl()),
    Rewrite("conv+relu", "bias and ReLU written over a convolution's result, on CUDA in one pass", convs.conv_relu, leftover=True),
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


def is_legal(traced: fx.GraphModule, rewrite: Rewrite) -> bool:
    """Whether there is a place in a graph for a rewrite; `fuse` would copy the graph."""
    return any(node.op.startswith("call") and rewrite.match(traced, node) is not None for node in traced.graph.nodes)


def _replace(module: fx.GraphModule, match: Match, name: str) -> None:
    last = match.covers[-1]
    module.add_submodule(name, match.module)
    with module.graph.inserting_after(last):
        fused = module.graph.call_module(name, match.inputs)
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for node in reversed(match.covers):
        module.graph.erase_node(node)
