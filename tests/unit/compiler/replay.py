"""A graph on the CPU: records the operations of a step and replays them into the same memory, as a CUDA graph does.

It raises on what a CUDA graph could not hold: reading a value on the host, drawing from a random generator that the graph
was not told of, and a tensor that is not where it was. PyTorch's operations are recorded one by one, a kernel of Numba as
one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from convolt.kernels import registry

HOST_READS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"})


@dataclass(frozen=True)
class Operation:
    """One recorded call, and whether it writes into an argument or gives a view of one."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    outputs: list[Tensor]
    writes: bool = False
    view: bool = False

    def tensors(self) -> list[Tensor]:
        return [*_tensors((self.args, self.kwargs)), *self.outputs]


class Recorder(TorchDispatchMode):
    """Runs operations and notes them."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.kernels = 0
        self._generators = generators
        self._in_kernel = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._in_kernel:
            return func(*args, **(kwargs or {}))
        if func._schema.name in HOST_READS:
            raise RuntimeError(f"{func._schema.name} reads a value on the host while a graph is captured")
        drawn = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Generator)]
        if not all(any(_same(generator, known) for known in self._generators) for generator in drawn):
            raise RuntimeError(f"{func._schema.name} draws from a generator that is not registered with the graph")
        result = func(*args, **(kwargs or {}))
        self.operations.append(Operation(func, args, kwargs or {}, _tensors(result), *_aliases(func)))
        return result

    @contextmanager
    def of_kernels(self) -> Iterator[None]:
        """Records Numba's kernels, which PyTorch does not see."""

        def recorded(name: str, backend: str, *arguments: Any) -> Any:
            if backend != "numba":
                return registry.run(name, backend, *arguments)
            self._in_kernel = True
            try:
                result = registry.run(name, backend, *arguments)
            finally:
                self._in_kernel = False
            self.kernels += 1
            self.operations.append(Operation(registry.run, (name, backend, *arguments), {}, _tensors(result)))
            return result

        modules = [module for name, module in sys.modules.items() if name.startswith("convolt.kernels.") and module is not registry
                   and getattr(module, "run", None) is registry.run]
        for module in modules:
            module.run = recorded
        try:
            yield
        finally:
            for module in modules:
                module.run = registry.run


def _same(generator: torch.Generator, known: torch.Generator) -> bool:
    """Whether two objects are one generator, as far as their states tell: the dispatcher wraps it anew."""
    return torch.equal(generator.get_state(), known.get_state())


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor)]


def _aliases(func: Any) -> tuple[bool, bool]:
    """Returns (whether an operation writes into an argument, whether its result is a view of one)."""
    infos = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return any(info.is_write for info in infos), bool(infos) and not any(info.is_write for info in infos)


@contextmanager
def optimizers_see_a_capture() -> Iterator[None]:
    """Has PyTorch's optimizers refuse what they refuse while CUDA captures a graph."""

    def check(optimizer: torch.optim.Optimizer) -> None:
        if not all(group["capturable"] for group in optimizer.param_groups):
            raise RuntimeError("Attempting CUDA graph capture of step() for an instance of "
                               f"{type(optimizer).__name__} but param_groups' capturable is False.")

    newest = "_accelerator_graph_capture_health_check"
    name = newest if hasattr(torch.optim.Optimizer, newest) else "_cuda_graph_capture_health_check"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, name, check)
        yield


class ReplayOnCpu:
    """Stands in for `CudaGraphs`. A capture on CUDA computes nothing, so what this one computes is undone by the caller's
    `undo`, which puts parameters and states back.

    Attributes:
        captures, replays: how many there were.
        kernels: how often the last captured graph calls a kernel of Numba.
    """

    keeps = False

    def __init__(self, snapshot: Callable[[], Callable[[], None]]) -> None:
        self.snapshot = snapshot
        self.captures = self.replays = self.kernels = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        undo = self.snapshot()
        with Recorder(generators) as recorder, recorder.of_kernels(), optimizers_see_a_capture():
            work()
        undo()
        self.captures += 1
        self.kernels = recorder.kernels
        places = [(tensor, tensor.data_ptr(), tensor.shape) for operation in recorder.operations for tensor in operation.tensors()]

        def replay() -> None:
            self.replays += 1
            for tensor, address, shape in places:
                if tensor.data_ptr() != address or tensor.shape != shape:
                    raise RuntimeError("a tensor of the captured graph has moved or changed its shape")
            with torch.no_grad():
                for operation in recorder.operations:
                    if operation.view:
                        continue
                    result = operation.function(*operation.args, **operation.kwargs)
                    if not operation.writes:
                        for target, value in zip(operation.outputs, _tensors(result), strict=True):
                            target.copy_(value)

        return replay
