"""A model as `predict` runs it: batch normalization folded into convolutions, weights laid out once, chains in one call.

`freeze_model` gives a graph that computes what the model computes in inference mode, as long as its weights stay as they are.
`Runner` uses it once a model has enough to do to repay the freezing, and notices when a weight has changed.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from convolt import activations, kernels
from convolt.compiler.frozen import Chain, cast_weights, freeze
from convolt.compiler.fuse import fuse
from convolt.compiler.nodes import INSIDE, activation_of, feeds_only, first_input, module_of, norm_of, pool_of, summands
from convolt.compiler.repeated import Repeated
from convolt.compiler.trace import Untraceable, trace
from convolt.kernels.memory import is_dense
from convolt.layers import BatchNormalization, Conv2D, Dense, DepthwiseConv2D, Dropout, SeparableConv2D, ZeroPadding2D

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest difference from the model itself, relative to its largest output."""

CONVOLUTIONS = (Conv2D, DepthwiseConv2D, SeparableConv2D)
"""Convolt's that can be frozen."""

LEFT = ("bn+add+relu", "bn+add", "bn+relu+pool", "bn+relu", "bn+activation", "relu+pool", "onednn products")
"""Rewrites of what is not part of a frozen chain."""

CALL = 4e6
"""Products (see `_Size.work`) in the time that calling a layer takes by itself: about 20 µs on two cores of a CPU."""

FREEZING = {"cpu": 50.0}
"""How many calls of each of its layers a model is frozen in, about 1 ms for each. A GPU is asked for a hundred times more work."""

@dataclass(frozen=True)
class Frozen:
    """A model with fixed weights.

    Attributes:
        module: takes what the model takes, gives what it gives.
        count: how many convolutions are computed in which way, and how many batch normalizations were folded.
        error: largest difference from the model on the first samples, relative to its largest output.
    """

    module: fx.GraphModule
    count: dict[str, int]
    error: float

    def __str__(self) -> str:
        names = {"tiled": "convolutions by tiles", "winograd": "by tiles of bfloat16", "packed": "laid out for oneDNN",
                 "plain": "by PyTorch", "folded": "normalizations folded", "cast": "dense layers converted"}
        parts = ", ".join(f"{self.count[name]} {text}" for name, text in names.items() if name in self.count)
        return f"weights frozen: {parts}; outputs off by {self.error:.0e} of the largest"


@dataclass(frozen=True)
class Refused:
    """Why a model stays as it is."""

    reason: str

    def __str__(self) -> str:
        return f"layer by layer: {self.reason}"


def weights_key(model: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Any, ...]:
    """Returns what changes whenever a weight is known to, or the size of the pictures or the precision does.

    PyTorch counts a tensor's changes, but not those by its fused optimizers and by kernels that write to memory directly, which
    `_Kept.numbers` tell.
    """
    versions = ((t.data_ptr(), 0 if t.is_inference() else t._version) for t in weights_of(model))
    return (dtype, *(tuple(x.shape[1:]) for x in inputs), *versions)


def weights_of(model: nn.Module) -> Iterator[Tensor]:
    """Yields the parameters and buffers of a model."""
    for module in model.modules():
        yield from (t for own in (module._parameters, module._buffers) for t in own.values() if t is not None)


@dataclass
class _Kept:
    """What is known of a model: the work that its weights have done so far, and the frozen form.

    Attributes:
        key: of the weights, see `weights_key`.
        work: in products.
        size: of the model, in which its work is told.
        result: the frozen form, or why there is none.
        repeated: calls of what the model is computed by.
        few: views of about 64 numbers from all over each weight, by type. Whoever changes weights uncounted moves every number.
        numbers: the bytes of these when the model was frozen.
    """

    key: tuple[Any, ...]
    size: _Size
    work: float = 0.0
    result: Frozen | Refused | None = None
    repeated: Repeated | None = None
    few: list[list[Tensor]] = field(default_factory=list)
    numbers: list[bytes] = field(default_factory=list)

    def freeze(self, model: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype) -> Frozen | Refused:
        """Returns the frozen form, made now."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for weight in weights_of(model):
            by_type.setdefault(weight.dtype, []).append(_few_numbers(weight.detach()))
        self.few = list(by_type.values())
        self.numbers = self._read()
        self.result = freeze_model(model, inputs, dtype)
        return self.result

    def is_of(self, key: tuple[Any, ...]) -> bool:
        """Whether this is still so. SYNC: the device is read where a frozen form depends on it."""
        return self.key == key and (self.result is None or self.numbers == self._read())

    def _read(self) -> list[bytes]:
        joined = (torch.cat([numbers.reshape(-1) for numbers in views]) for views in self.few)
        return [numbers.view(torch.uint8).cpu().numpy().tobytes() for numbers in joined]


def _few_numbers(tensor: Tensor) -> Tensor:
    """Returns a view of about 64 numbers from all over a tensor."""
    if is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))[:: max(1, tensor.numel() // 64)]
    along = max(1, int(64 ** (1 / tensor.ndim)))  # each axis
    return tensor[tuple(slice(None, None, max(1, size // along)) for size in tensor.shape)]


_kept: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def _asks_for_no_gradients(model: nn.Module) -> bool:
    """Whether all code that runs within the model is Convolt's or PyTorch's own, which asks for no gradients there."""
    return all(type(module).__module__.startswith(("convolt.", "torch.nn.")) and not module._forward_hooks
               and not module._forward_pre_hooks for module in model.modules())


class Runner:
    """Runs batches of a model in inference mode: as it is, or frozen where that pays.

    The choice follows from the amount of work that was asked for since the weights last changed, not from the clock.

    Args:
        model: built, in inference mode, on its device.
        samples: how many are to come; None if unknown.
        dtype: of the computation.
        say: told in one line when the model is frozen, or why it is not.
    """

    def __init__(self, model: nn.Module, samples: int | None, dtype: torch.dtype, say: Callable[[str], None]) -> None:
        self._model, self._samples, self._dtype, self._say = model, samples, dtype, say
        self._module: nn.Module | None = None
        self._repeated: Repeated | None = None
        self._plain = _asks_for_no_gradients(model)

    def __call__(self, *inputs: Tensor) -> Any:
        """Returns the model's outputs for a batch as its forward takes it, without gradients.

        Where nothing asks for gradients within, autograd is not even passed on the way to the kernels: that is a few microseconds for
        each call of one. Unlike tensors of `torch.inference_mode`, what a layer keeps from such a call can be trained with.
        """
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd() if self._plain else nullcontext():
            if self._repeated is None:
                self._module, self._repeated = self._choose(inputs)
                self._repeated.look(self._module)
            return self._repeated(self._run, *inputs)

    def _run(self, *inputs: Tensor) -> Any:
        assert self._module is not None
        device = inputs[0].device.type
        if self._dtype == torch.float32 and not torch.is_autocast_enabled(device):
            return self._module(*inputs)
        with torch.autocast(device, self._dtype, enabled=self._dtype != torch.float32):
            return self._module(*inputs)

    def _choose(self, inputs: Sequence[Tensor]) -> tuple[nn.Module, Repeated]:
        key = weights_key(self._model, inputs, self._dtype)
        known = _kept.get(self._model)
        if known is None or not known.is_of(key):
            known = _kept[self._model] = _Kept(key, _Size.of(self._model))
        if known.result is None:
            known.work += known.size.work(inputs[0], self._samples)
            if known.size.weights and known.work >= known.size.work_of_freezing(inputs[0].device):
                self._say(f"predict: {known.freeze(self._model, inputs, self._dtype)}")
        module = known.result.module if isinstance(known.result, Frozen) else self._model
        if known.repeated is None or not known.repeated.is_of(module):
            known.repeated = Repeated(module)
        return module, known.repeated


@dataclass(frozen=True)
class _Size:
    """How large a model is.

    Attributes:
        weights: numbers in the windows of its convolutions.
        layers: how many there are.
    """

    weights: int
    layers: int

    @staticmethod
    def of(model: nn.Module) -> _Size:
        """Returns that of a model."""
        modules = list(model.modules())
        convolutions = (m for m in modules if isinstance(m, (*CONVOLUTIONS, nn.Conv2d)))
        weights = sum(w.numel() for conv in convolutions for w in conv._parameters.values() if w is not None)
        return _Size(weights, sum(1 for module in modules if not module._modules))

    def work(self, x: Tensor, samples: int | None) -> float:
        """Returns how much work batches like `x` are, in products: those of the convolutions, and `CALL` for each call of a layer.

        The former are told from the weights alone, as if maps were an eighth of the picture's side. None without convolutions.
        """
        if x.ndim != 4 or not self.weights:
            return 0.0
        samples = len(x) if samples is None else samples
        return self.weights * max(1.0, x[0, 0].numel() / 64) * samples + CALL * self.layers * -(-samples // len(x))

    def work_of_freezing(self, device: torch.device) -> float:
        """Returns how much work is as much as the freezing, in products."""
        return FREEZING.get(device.type, 100 * FREEZING["cpu"]) * CALL * self.layers


def freeze_model(model: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype) -> Frozen | Refused:
    """Returns the model for inference on inputs like these, or why it stays as it is.

    Args:
        model: built, in inference mode, on its device.
        inputs: a batch as its forward takes it.
        dtype: of the computation.
    """
    few = [x[:2] for x in inputs]
    traced = trace(model, few)
    if isinstance(traced, Untraceable):
        return Refused(str(traced))
    with torch.no_grad():
        module, count = _frozen_graph(traced, len(inputs[0]), dtype)
        if not count:
            return Refused("no convolution that can be frozen")
        module.eval()
        with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
            mine = module(*few)
        error = _difference(mine, model(*few))
    if not error <= TOLERANCE[dtype]:
        return Refused(f"outputs would be off by {error:.1e} of the largest (allowed {TOLERANCE[dtype]:.0e})")
    return Frozen(module, count, error)


def _difference(mine: Any, theirs: Any) -> float:
    """Returns the largest difference of two results of a model, relative to the largest number."""
    pairs = list(zip(_flat(mine), _flat(theirs), strict=True))
    if not all(torch.isfinite(b).all() for _, b in pairs):
        return float("inf")  # tiles would spread what is not finite
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12)) for a, b in pairs)


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [t for part in (outputs.values() if isinstance(outputs, dict) else outputs) for t in _flat(part)]


def _frozen_graph(traced: fx.GraphModule, batch: int, dtype: torch.dtype) -> tuple[fx.GraphModule, dict[str, int]]:
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
        found = _chain(graph, node) if node.op == "call_module" else None
        if found is not None:
            _replace(graph, found, batch, dtype, count)
    if not count:
        return graph, {}
    if dtype != torch.float32:
        for node in graph.graph.nodes:
            layer = module_of(graph, node)
            if type(layer) in (Dense, nn.Linear):
                graph.add_submodule(str(node.target), cast_weights(layer, dtype))  # type: ignore[arg-type]
                count["cast"] += 1
    graph.graph.lint()
    graph.recompile()
    return fuse(graph, LEFT).module, dict(count)


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
    """A chain in a graph: what it computes, its input, the residual if there is one, its nodes in order."""

    chain: Chain
    x: fx.Node
    residual: fx.Node | None
    nodes: list[fx.Node]
    norms: int


def _chain(graph: fx.GraphModule, node: fx.Node) -> _Found | None:
    """Returns the longest chain that begins with a convolution at this node."""
    conv: Any = module_of(graph, node)
    x = first_input(node)
    if not isinstance(x, fx.Node) or len(x.meta.get("shape", ())) != 4 or not _can_freeze(conv):
        return None
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
    chain = Chain(weight, bias, *window, groups, border, activation, residual is not None, pool)
    return _Found(chain, x, residual, nodes, norms)


def _can_freeze(conv: Any) -> bool:
    if isinstance(conv, (Conv2D, DepthwiseConv2D)):
        return conv.activation in (activations.linear, *INSIDE)
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


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
    module = freeze(found.chain, (batch, *found.x.meta["shape"][1:]), dtype)
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
