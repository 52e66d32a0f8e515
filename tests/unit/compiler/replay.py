"""A graph on the CPU: records the operations of a step and replays them into the same memory, as a CUDA graph does.

It raises on what a CUDA graph could not hold: reading a value on the host, and a tensor that is not where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

HOST_READS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"})


class Recorder(TorchDispatchMode):
    """Runs operations and notes them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in HOST_READS:
            raise RuntimeError(f"{func._schema.name} reads a value on the host while a graph is captured")
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        self.operations.append((func, args, kwargs or {}, outputs))
        return result


def _aliases(func: Any) -> tuple[bool, bool]:
    """Returns (whether an operation writes into an argument, whether its result is a view of one)."""
    infos = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return any(info.is_write for info in infos), bool(infos) and not any(info.is_write for info in infos)


class ReplayOnCpu:
    """Stands in for `CudaGraphs`. A capture on CUDA computes nothing, so what this one computes is undone by the caller's
    `undo`, which puts parameters and states back.
    """

    def __init__(self, snapshot: Callable[[], Callable[[], None]]) -> None:
        self.snapshot = snapshot
        self.replays = 0
        self.moved: Callable[[], list[Tensor]] = list

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        undo = self.snapshot()
        with Recorder() as recorder:
            work()
        undo()
        places = [(t, t.data_ptr(), t.shape) for _, args, kwargs, outputs in recorder.operations
                  for t in [*(leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)), *outputs]]

        def replay() -> None:
            self.replays += 1
            for tensor, address, shape in places:
                if tensor.data_ptr() != address or tensor.shape != shape:
                    raise RuntimeError("a tensor of the captured graph has moved or changed its shape")
            with torch.no_grad():
                for func, args, kwargs, outputs in recorder.operations:
                    writes, view = _aliases(func)
                    if view:
                        continue
                    result = func(*args, **kwargs)
                    if not writes:
                        fresh = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
                        for target, value in zip(outputs, fresh, strict=True):
                            target.copy_(value)

        return replay
