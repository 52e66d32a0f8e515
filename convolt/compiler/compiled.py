"""`torch.compile` for long runs: a form of the model whose training passes are compiled, for batches of one shape.

Nothing here imports Dynamo or Inductor before a form is compiled: that alone takes seconds.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convolt.compiler import fused

COMPILED = "compiled"
LAYERS_COMPILED = "layers compiled"
BASE_SECONDS = 15.0  # of a compilation, to begin with
LAYER_SECONDS = 1.0  # for each layer, the backward pass included

Shapes = tuple[tuple[int, ...], ...]


class TooLongError(RuntimeError):
    """A compilation has taken more than its share of the run."""


@dataclass(frozen=True)
class Compiling:
    """How `torch.compile` may be used.

    Attributes:
        shapes: of the model's inputs in a training step, for which code is made.
        refused: why there can be none; "" if there can.
        asked: whether the user asked for it, so that neither its time nor its gain is a reason against it.
        graph: of the model without rewrites; None where it cannot be traced.
    """

    shapes: Shapes
    refused: str = ""
    asked: bool = False
    graph: nn.Module | None = None


class Compiled(nn.Module):
    """A form of the model, and code that `torch.compile` made of it for training on batches of the given shapes.

    Other batches, such as a smaller last one, and passes without gradients run in the form as it is: code for them would take
    as long to make once more. So what runs follows from the batch alone, in a resumed training as well.

    Random numbers are drawn as the form draws them (Inductor's `fallback_random`). Kernels of Numba and Triton in fused layers
    are called from between the pieces of compiled code.

    Args:
        form: the model, or what stands in for it.
        shapes: of its inputs.
        graph: the form as torch.fx traced it, which the compiler follows better than a model's own code; None: there is none.
        clock: returns seconds.

    Attributes:
        form: as above.
        deadline: on the clock, after which no further piece is compiled; None: there is none.
    """

    recordable = False
    """Whether a recording sees what it does (`convolt.compiler.record`)."""

    def __init__(self, form: nn.Module, shapes: Shapes, graph: nn.Module | None = None,
                 clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.form = form
        self._source = graph or form
        self.deadline: float | None = None
        self._shapes = shapes
        self._clock = clock
        self._code: Callable[..., Any] | None = None

    def forward(self, *inputs: Any) -> Any:
        """Returns what the form does."""
        if torch.is_grad_enabled() and tuple(tuple(x.shape) for x in inputs) == self._shapes:
            if self._code is None:
                _keep_kernels_out(self._source)
                self._code = torch.compile(self._source, dynamic=False, backend=self._backend)
            return self._code(*inputs)
        return self.form(*inputs)

    def try_out(self, run: Callable[[], Any]) -> Any:
        """Returns what `run` does, which computes a training pass with this module and so has it compiled.

        Raises:
            CannotCompileError: the compiler failed, in one line.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the compiler about itself
            try:
                return run()
            except Exception as error:  # whatever Dynamo, Inductor and the compilers behind them raise
                raise CannotCompileError(_in_a_line(error)) from error

    def _backend(self, graph: Any, inputs: Sequence[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def compile_one(*arguments: Any, **options: Any) -> Any:
            if self.deadline is not None and self._clock() > self.deadline:
                raise TooLongError("compiling took more than its share of the run")
            return compile_fx_inner(*arguments, **options)

        return compile_fx(graph, inputs, inner_compile=compile_one, config_patches={"fallback_random": True})


class CannotCompileError(RuntimeError):
    """A form cannot be compiled; the message says why."""


def form_of(module: Any) -> Any:
    """Returns what a module computes without compiled code: the form of a `Compiled`, else the module itself."""
    return module.form if isinstance(module, Compiled) else module


def seconds_of(form: nn.Module) -> float:
    """Returns about how long it takes to compile a form, at the most."""
    return BASE_SECONDS + LAYER_SECONDS * sum(1 for part in form.modules() if next(part.children(), None) is None)


def why_not_compiled(device: torch.device) -> str:
    """Returns why no code can be compiled for a device on this machine; "" if it can. Loads nothing."""
    if device.type == "cuda":
        return "" if find_spec("triton") else "Triton is not installed"
    if device.type != "cpu":
        return f"not known to be right on {device.type}"
    compiler = os.environ.get("CXX", "").strip()
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["g++", "clang++"])):
        return f"no C++ compiler: {compiler or 'neither g++ nor clang++'} is on the PATH"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers (Python.h) are not installed"
    return ""


def _keep_kernels_out(form: nn.Module) -> None:
    """Has the compiler call fused layers as they are: it can follow neither Numba nor what chooses between kernels."""
    import torch._dynamo

    for part in form.modules():
        if type(part).__module__ == fused.__name__:
            part.forward = torch._dynamo.disable(part.forward, recursive=True)  # type: ignore[no-untyped-call]


def _in_a_line(error: BaseException) -> str:
    inner = getattr(error, "inner_exception", None) or error
    text = next((line.strip() for line in str(inner).splitlines() if line.strip()), "")
    return text if isinstance(inner, TooLongError) else f"{type(inner).__name__}: {text}"


def shapes_of(inputs: Sequence[Tensor]) -> Shapes:
    """Returns the shapes of a step's inputs, as plans keep them."""
    return tuple(tuple(int(size) for size in x.shape) for x in inputs)
