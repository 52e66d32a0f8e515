"""What the nodes of a traced model are: which layer, function or method each one calls, and who needs its value."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from convolt import activations
from convolt.layers import Activation, Add, BatchNormalization, Conv2D, Layer, MaxPooling2D, ReLU, SiLU

_OF_TORCH = {nn.ReLU6: activations.relu6, nn.SiLU: activations.silu, nn.Sigmoid: activations.sigmoid, nn.Tanh: activations.tanh,
             nn.Hardswish: activations.hard_silu}
INSIDE = (activations.relu, activations.relu6, activations.silu, activations.sigmoid, activations.tanh, activations.hard_silu,
          activations.gelu)
"""Activations that fit into a convolution."""

Pair = tuple[int, int]


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


def module_of(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    """Returns the module that a node calls, if fusing it would hide nothing: hooks and activity penalties forbid it."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return None
    return None if isinstance(module, Layer) and module.activity_regularizer is not None else module


def feeds_only(node: Any, user: fx.Node) -> bool:
    """Whether nobody but `user` needs the node's value."""
    return isinstance(node, fx.Node) and len(node.users) == 1 and user in node.users


def first_input(node: fx.Node) -> Any:
    """Returns the node's first argument."""
    return node.args[0] if node.args else None


def is_relu(graph: fx.GraphModule, node: Any) -> bool:
    """Whether a node is a plain ReLU: layer, PyTorch module, function or method."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_function":
        return node.target in (torch.relu, F.relu)
    if node.op == "call_method":
        return node.target == "relu"
    module = module_of(graph, node)
    if isinstance(module, ReLU):
        return module.max_value is None and module.negative_slope == 0 and module.threshold == 0
    return isinstance(module, nn.ReLU) or (isinstance(module, Activation) and module.activation is activations.relu)


def window_of(graph: fx.GraphModule, node: Any) -> tuple[Pair, Pair, Pair] | None:
    """Returns size, strides and padding (as much on either side) of the max-pooling that a node calls."""
    module = module_of(graph, node)
    if isinstance(module, MaxPooling2D):
        return (module.pool_size, module.strides, (0, 0)) if module.padding == "valid" else None  # type: ignore[return-value]
    if not isinstance(module, nn.MaxPool2d) or module.return_indices or module.ceil_mode or module.dilation not in (1, (1, 1)):
        return None
    given = (module.kernel_size, module.stride, module.padding)
    size, strides, padding = ((v[0], v[1]) if isinstance(v, (tuple, list)) else (v, v) for v in given)
    return size, strides, padding


def pool_of(graph: fx.GraphModule, node: Any) -> Pair | None:
    """Returns the window of a max-pooling whose windows do not overlap and are not padded."""
    window = window_of(graph, node)
    return window[0] if window is not None and window[0] == window[1] and window[2] == (0, 0) else None


def conv_of(graph: fx.GraphModule, node: Any) -> Conv2D | nn.Conv2d | None:
    """Returns the 2-D convolution that a node calls, if it is linear or ends in ReLU."""
    module = module_of(graph, node)
    if isinstance(module, Conv2D) and module.activation in (activations.linear, activations.relu):
        return module
    return module if type(module) is nn.Conv2d else None


def ends_in_relu(conv: nn.Module) -> bool:
    """Whether a convolution has ReLU inside."""
    return isinstance(conv, Conv2D) and conv.activation is activations.relu


def norm_of(graph: fx.GraphModule, node: Any) -> nn.Module | None:
    """Returns the batch normalization over channels that a node calls."""
    module = module_of(graph, node)
    if isinstance(module, BatchNormalization) and node.meta.get("masked"):
        return None  # fused, it would count the steps that the mask leaves out
    if isinstance(module, BatchNormalization):
        rank = len(node.meta.get("shape", ()))
        return module if module.axis in (-1, rank - 1) else None
    tracked = isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats and module.momentum is not None
    return module if tracked else None


def summands(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Returns the two nodes that a node adds."""
    if isinstance(module_of(graph, node), Add):
        given = list(node.args[0]) if isinstance(node.args[0], (list, tuple)) else []
    elif node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add) and not node.kwargs:
        given = list(node.args)
    else:
        return None
    return (given[0], given[1]) if len(given) == 2 and all(isinstance(g, fx.Node) for g in given) else None


def activation_of(graph: fx.GraphModule, node: fx.Node) -> Any:
    """Returns the function of `convolt.activations` that a node computes, of those that fit into a convolution."""
    if is_relu(graph, node):
        return activations.relu
    module = module_of(graph, node)
    if isinstance(module, ReLU):
        return activations.relu6 if (module.max_value, module.negative_slope, module.threshold) == (6, 0, 0) else None
    if isinstance(module, SiLU):
        return activations.silu
    if isinstance(module, Activation):
        return module.activation if module.activation in INSIDE else None
    if node.op == "call_function":
        functions: dict[Any, Callable[..., Tensor]] = {
            F.silu: activations.silu, F.relu6: activations.relu6, F.hardswish: activations.hard_silu}
        return functions.get(node.target)
    if isinstance(module, nn.GELU):
        return activations.gelu if module.approximate == "none" else None
    return _OF_TORCH.get(type(module))  # type: ignore[arg-type]
