"""Calls of a model in inference mode, one batch after the other: on a CPU they are recorded, and then replayed without layers."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from convolt.compiler.frozen import UNCHANGING
from convolt.compiler.host import returning_freed_memory
from convolt.compiler.program import CannotReplayError, Program, program_of
from convolt.compiler.record import Recorder, Recording
from convolt.compiler.replay import MOST_PROGRAMS, settings_of, why_not_recorded


class Repeated:
    """What a module makes of batches; from the fourth one of a shape on without calling its layers, with the same result to the last bit.

    It is replayed in the main thread alone: programs have memory of their own, in which two threads would meet.

    Args:
        module: in inference mode, with weights that stay as they are. It is the caller's to keep.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._runs: Counter[Any] = Counter()
        self._recordings: dict[Any, Recording] = {}
        self._programs: dict[Any, tuple[Program, TreeSpec]] = {}
        self._settings: Any = None
        self._known = False
        self._ready = False
        self._beneath = False

    def is_of(self, module: nn.Module) -> bool:
        """Whether these are calls of a module."""
        return self._module() is module

    def look(self, module: nn.Module, beneath: bool = False) -> None:
        """Forgets what was recorded if the module has changed since the last look; called before the first of several batches.

        Args:
            module: in inference mode.
            beneath: whether nothing in it asks for gradients. Then autograd is not even passed on the way to the kernels: that is a few
                microseconds for each call of one. Unlike tensors of `torch.inference_mode`, what a layer keeps from such a call can be
                trained with.
        """
        self._beneath = beneath
        settings = [settings_of(part) for part in module.modules() if not isinstance(part, UNCHANGING)]
        if settings != self._settings:
            self._settings, self._known = settings, why_not_recorded(module) is None
            self._recordings.clear()
            self._programs.clear()
        self._ready = self._known and threading.current_thread() is threading.main_thread()

    def __call__(self, call: Callable[..., Any], *inputs: Tensor) -> Any:
        """Returns `call(*inputs)`, which calls the module in its precision."""
        if not self._ready or any(x.device.type != "cpu" for x in inputs) or torch.is_autocast_enabled("cpu"):
            return self._called(call, inputs)
        kind = (torch.get_num_threads(), *((x.shape, x.stride(), x.dtype) for x in inputs))
        if kind in self._programs:
            program, structure = self._programs[kind]
            return tree_unflatten(program(*inputs), structure)
        self._runs[kind] += 1
        if self._runs[kind] == 1 or len(self._programs) == MOST_PROGRAMS or (kind in self._recordings and self._recordings[kind].reason):
            return self._called(call, inputs)
        return self._recorded(kind, call, inputs)

    def _called(self, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd() if self._beneath else nullcontext():
            return call(*inputs)

    def _recorded(self, kind: Any, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        """Returns what the call does, and makes it a program if it did the same as the last one.

        Autograd is passed here: beneath it a recorder meets operations that consist of others, such as `lstm`, as one, within which
        autocast then does not see what it has to convert.
        """
        recorder = Recorder(inputs)
        with returning_freed_memory(), recorder:
            outputs = call(*inputs)
            flat, structure = tree_flatten(outputs)
            if not all(isinstance(output, Tensor) for output in flat):
                recorder.fail("an output that is no tensor")
            recorder.give(flat)
        recording, before = recorder.recording, self._recordings.get(kind)
        self._recordings[kind] = recording
        if before is not None and not recording.reason:
            try:
                self._programs[kind] = program_of(before, recording), structure
            except CannotReplayError as error:
                recording.reason = str(error)
        return outputs
