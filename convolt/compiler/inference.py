"""A model as `predict` runs it: batch normalization folded into convolutions, weights laid out once, chains in one call.

`freeze_model` gives a graph that computes what the model computes in inference mode, as long as its weights stay as they are.
`Runner` uses it once a model has enough to do to repay the freezing, and notices when a weight has changed.
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from convolt.compiler.chains import frozen_graph
from convolt.compiler.repeated import Repeated
from convolt.compiler.replay import settings_of
from convolt.compiler.trace import Untraceable, trace
from convolt.kernels.memory import in_order, is_dense
from convolt.layers import Conv2D, DepthwiseConv2D, SeparableConv2D

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest difference from the model itself, relative to its largest output."""

CONVOLUTIONS = (Conv2D, DepthwiseConv2D, SeparableConv2D)
"""Convolt's that can be frozen."""

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


def weights_key(parts: Sequence[nn.Module], inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Any, ...]:
    """Returns what changes whenever a weight is known to, or a setting, a hook, the size of the pictures or the precision does.

    PyTorch counts a tensor's changes, but not those by its fused optimizers and by kernels that write to memory directly, which
    `_Kept.numbers` tell.
    """
    versions = [0 if t.is_inference() else t._version for t in weights_of(parts)]
    return dtype, _sizes(inputs), versions, [settings_of(part) for part in parts]


def _sizes(inputs: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    """Returns the shapes of samples."""
    return tuple(x.shape[1:] for x in inputs)


def weights_of(parts: Iterable[nn.Module]) -> list[Tensor]:
    """Returns the parameters and buffers of the parts of a model."""
    return [t for part in parts for own in (part._parameters, part._buffers) for t in own.values() if t is not None]


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
        numbers: these when the model was frozen.
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
        by_type = defaultdict[torch.dtype, list[Tensor]](list)
        for weight in weights_of(model.modules()):
            by_type[weight.dtype].append(_few_numbers(weight.detach()))
        self.few = list(by_type.values())
        self.numbers = self._read()
        self.result = freeze_model(model, inputs, dtype)
        return self.result

    def is_of(self, key: tuple[Any, ...]) -> bool:
        """Whether this is still so. SYNC: the device is read where a frozen form depends on it."""
        return self.key == key and (self.result is None or self.numbers == self._read())

    def _read(self) -> list[bytes]:
        joined = (torch.cat([numbers if numbers.ndim == 1 else numbers.reshape(-1) for numbers in views]) for views in self.few)
        return [numbers.view(torch.uint8).cpu().numpy().tobytes() for numbers in joined]


def _few_numbers(tensor: Tensor) -> Tensor:
    """Returns a view of about 64 numbers from all over a tensor."""
    if is_dense(tensor):
        return in_order(tensor)[:: max(1, tensor.numel() // 64)]
    along = max(1, int(64 ** (1 / tensor.ndim)))  # each axis
    return tensor[tuple(slice(None, None, max(1, size // along)) for size in tensor.shape)]


_kept: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def _asks_for_no_gradients(parts: Iterable[nn.Module]) -> bool:
    """Whether all code that runs within the model is Convolt's or PyTorch's own, which asks for no gradients there."""
    return all(type(part).__module__.startswith(("convolt.", "torch.nn.")) and not part._forward_hooks
               and not part._forward_pre_hooks for part in parts)


class Runner:
    """Runs batches of a model in inference mode: as it is, or frozen where that pays.

    The choice follows from the amount of work that was asked for since the weights last changed, not from the clock.

    Args:
        model: built, in inference mode, on its device; or what stands for one, as a part of it.
        samples: how many are to come; None if unknown.
        dtype: of the computation.
        say: told in one line when the model is frozen, or why it is not.
    """

    def __init__(self, model: nn.Module, samples: int | None, dtype: torch.dtype, say: Callable[[str], None]) -> None:
        self._model, self._samples, self._dtype, self._say = model, samples, dtype, say
        self._parts = list(model.modules())
        self._module: nn.Module | None = None
        self._sizes: tuple[torch.Size, ...] = ()
        self._repeated: Repeated | None = None
        self._plain = _asks_for_no_gradients(self._parts)

    def __call__(self, *inputs: Tensor) -> Any:
        """Returns the model's outputs for a batch as its forward takes it, without gradients."""
        with torch.no_grad():
            if self._repeated is None:
                self._module, self._repeated = self._choose(inputs)
                self._repeated.look(self._module, self._plain)
                self._sizes = _sizes(inputs)
            if self._sizes != _sizes(inputs):  # which the frozen form was not made for
                return self._run(self._model, *inputs)
            return self._repeated(functools.partial(self._run, self._module), *inputs)

    def _run(self, module: nn.Module | None, *inputs: Tensor) -> Any:
        assert module is not None
        device = inputs[0].device.type
        if self._dtype == torch.float32 and not torch.is_autocast_enabled(device):
            return module(*inputs)
        with torch.autocast(device, self._dtype, enabled=self._dtype != torch.float32):
            return module(*inputs)

    def _choose(self, inputs: Sequence[Tensor]) -> tuple[nn.Module, Repeated]:
        key = weights_key(self._parts, inputs, self._dtype)
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
        module, count = frozen_graph(traced, len(inputs[0]), dtype)
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
