"""The table of fused ops, and the choice of a version for the tensors at hand.

An op is one name: `kernels.NAME` is what callers use, `reference.NAME` is the same in plain PyTorch, and the table says
which modules hold faster versions. A version that is missing (no Triton, no Numba) or fails is given up for the rest of
the process: the reference takes over, and a `KernelWarning` says so once. Out of memory is no failure of a kernel.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ConvoltError, ConvoltWarning, did_you_mean, explain
from convolt.kernels import reference

BACKENDS = ("auto", "reference", "numba", "triton")
NUMBA = (torch.float32, torch.bfloat16)
TRITON = (torch.float32, torch.bfloat16, torch.float16)


class KernelWarning(ConvoltWarning):
    """A fused kernel could not be used; plain PyTorch does its work, with the same result, more slowly."""


@dataclass(frozen=True)
class Kernel:
    """A row of the table.

    Attributes:
        name: of the op, in `convolt.kernels` and in `reference`.
        what: one line.
        versions: backend → module.
        dtypes: backend → types of the main tensor that it takes.
    """

    name: str
    what: str
    versions: dict[str, str]
    dtypes: dict[str, tuple[torch.dtype, ...]] = field(default_factory=lambda: {"numba": NUMBA, "triton": TRITON})


def _rows(*kernels: Kernel) -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in kernels}


_POOL = {"numba": "convolt.kernels.pool_numba", "triton": "convolt.kernels.pool_triton"}
_WINOGRAD = {"numba": "convolt.kernels.winograd_numba"}
_NORM = {"numba": "convolt.kernels.norm_numba", "triton": "convolt.kernels.norm_triton"}
_NORM_POOL = {"numba": "convolt.kernels.norm_pool_numba", "triton": "convolt.kernels.norm_pool_triton"}
_UINT8 = (torch.uint8,)
_WARP = {"numba": "convolt.kernels.warp_numba", "triton": "convolt.kernels.warp_triton"}
_PICTURES: dict[str, tuple[torch.dtype, ...]] = dict.fromkeys(("numba", "triton"), (torch.uint8, torch.float32))

KERNELS = _rows(
    Kernel("bias_relu", "+ bias → ReLU, in place", {"triton": "convolt.kernels.bias_triton"}),
    Kernel("max_pool", "max-pooling alone, where no gradient is wanted", {"numba": "convolt.kernels.max_pool_numba"}),
    Kernel("relu_max_pool", "ReLU → max-pooling", _POOL),
    Kernel("bias_relu_max_pool", "+ bias → ReLU → max-pooling", _POOL),
    Kernel("conv_relu_max_pool", "3 × 3 convolution of few channels → ReLU → 2 × 2 max-pooling", {"numba": "convolt.kernels.conv_numba"}),
    Kernel("pooled_conv", "convolution → ReLU → max-pooling with a sparse gradient", {"numba": "convolt.kernels.sparse_numba"}),
    Kernel("tiled_conv", "3 × 3 convolution of many channels by tiles", {"numba": "convolt.kernels.winograd4_numba"}),
    Kernel("winograd_conv", "3 × 3 convolution with fewer products", _WINOGRAD),
    Kernel("winograd_max_pool", "3 × 3 convolution with fewer products → (ReLU →) 2 × 2 max-pooling", _WINOGRAD),
    Kernel("depthwise_conv", "convolution of each channel by itself", {"numba": "convolt.kernels.depthwise_numba"}),
    Kernel("bn", "batch normalization", _NORM),
    Kernel("bn_activation", "batch normalization → ReLU6, SiLU or hard SiLU", _NORM),
    Kernel("bn_add", "batch normalization → + residual", _NORM),
    Kernel("bn_relu", "batch normalization → ReLU", _NORM),
    Kernel("bn_add_relu", "batch normalization → + residual → ReLU", _NORM),
    Kernel("bn_relu_max_pool", "batch normalization → ReLU → max-pooling", _NORM_POOL),
    Kernel("softmax_crossentropy", "softmax → cross-entropy of each sample", {"triton": "convolt.kernels.crossentropy_triton"}),
    Kernel("warp", "index → geometry, colour, erasing → normalise → cast", _WARP, _PICTURES),
    Kernel("picture_means", "index → mean of each channel", _WARP, _PICTURES),
    Kernel("resize", "a uint8 picture in another size, antialiased", {"numba": "convolt.kernels.resize_numba"}, {"numba": _UINT8}),
)

_given_up: dict[tuple[str, str], str] = {}
_loaded: dict[tuple[str, str], ModuleType] = {}  # a look at the import system at each call of each kernel takes longer


def give_up(name: str, backend: str, error: BaseException) -> None:
    """Never tries this version again in this process, and says so once."""
    if (name, backend) not in _given_up:
        reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
        _given_up[name, backend] = reason
        warnings.warn(f"kernel {name!r} ({backend}) cannot be used, plain PyTorch does its work: {reason}", KernelWarning, stacklevel=3)


def reset() -> None:
    """Forgets which versions were given up, and which were loaded."""
    _given_up.clear()
    _loaded.clear()


def why_not(name: str, x: Tensor, backend: str) -> str:
    """Returns why a version cannot run on a tensor like `x`, or an empty string if it can; loads nothing.

    Raises:
        ArgumentError: there is no such op or backend.
    """
    if name not in KERNELS:
        raise ArgumentError(explain("kernel", repr(name), "the name of a known kernel", did_you_mean(name, KERNELS)))
    if backend not in BACKENDS:
        raise ArgumentError(explain("backend", repr(backend), f"one of {', '.join(BACKENDS)}", did_you_mean(str(backend), BACKENDS)))
    if backend in ("auto", "reference"):
        return ""
    kernel = KERNELS[name]
    if backend not in kernel.versions:
        return f"{name} has no {backend} version"
    if x.dtype not in kernel.dtypes[backend]:
        return f"{name} ({backend}) does not take {x.dtype}"
    if backend == "numba" and x.device.type != "cpu":
        return f"Numba's kernels run on the CPU, the tensor is on {x.device.type}"
    if backend == "triton" and x.device.type != "cuda" and not interpreting():
        return f"Triton's kernels run on CUDA devices, the tensor is on {x.device.type}"
    return _given_up.get((name, backend), "")


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels on CPU tensors (`TRITON_INTERPRET=1` in the environment)."""
    import os

    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def choose(name: str, x: Tensor, backend: str = "auto") -> str:
    """Returns the backend that runs the op `name` on a tensor like `x`: "reference", "numba" or "triton".

    Raises:
        ArgumentError: a backend was asked for by name and cannot run this; the message has the reason.
    """
    wanted = backend if backend != "auto" else {"cpu": "numba", "cuda": "triton"}.get(x.device.type, "reference")
    reason = why_not(name, x, wanted)
    if reason and backend != "auto" and (name, wanted) not in _given_up:
        raise ArgumentError(explain("backend", repr(backend), "one that can run this", f"{reason}. Try backend='auto'."))
    if reason or wanted == "reference":
        return "reference"
    return wanted if load(name, wanted) is not None else "reference"


def load(name: str, backend: str) -> ModuleType | None:
    """Returns the module with a version of an op, or None (after a warning) if it cannot be imported."""
    if (name, backend) in _loaded:
        return _loaded[name, backend]
    try:
        return _loaded.setdefault((name, backend), importlib.import_module(KERNELS[name].versions[backend]))
    except Exception as error:  # whatever a broken installation of Triton or Numba raises
        give_up(name, backend, error)
        return None


def run(name: str, backend: str, family: str, function: str, *arguments: Any) -> Any:
    """Runs one pass of an op with a chosen backend; if that fails, the pass of the reference.

    Args:
        name: of the op.
        backend: what `choose` returned.
        family, function: the pass is `function` in the version's module and `family_function` in the reference.
        arguments: of the pass.
    """
    plain: Callable[..., Any] = getattr(reference, f"{family}_{function}")
    module = None if backend == "reference" or (name, backend) in _given_up else load(name, backend)
    if module is None:
        return plain(*arguments)
    try:
        return getattr(module, function)(*arguments)
    except (ConvoltError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a compiler's, a driver's or a launch's failure: the work must still be done
        give_up(name, backend, error)
        return plain(*arguments)
