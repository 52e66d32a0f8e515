"""What a training step does on a CPU, written down while it runs: PyTorch's operations one by one, and the kernels' calls.

The step itself runs, and trains; nothing is held back or done twice. What is written down has no tensors in it, which would stay in
memory for as long, but says of each where it lies: in which block of memory, from where in it, in what shape.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from convolt.kernels import compiled
from convolt.kernels.memory import Flat

_READS = frozenset({"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::item"})
"""What tells the host a value."""
_MOVES = frozenset({"aten::set_", "aten::resize_", "aten::resize_as_"})
"""What gives a tensor other memory than it had."""
_WRITES_UNSAID = ("batch_norm",)
"""In the names of operations that change running statistics, which their schemas do not say."""


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
        block: number of the block of memory, in the order in which the step met them.
        offset: of the first element in the block, in elements; in an input's block, from the input's first element.
        shape, strides: of the tensor, in elements.
        dtype: of the elements.
    """

    block: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class Spot(NamedTuple):
    """An address that a kernel is given: so many bytes from the beginning of a block (or from an input's first element)."""

    block: int
    offset: int


class Literal(NamedTuple):
    """An argument that is no tensor. Two are the same if their words are.

    Attributes:
        value: of the argument.
        words: from which a change can be told, exact also for floats.
    """

    value: Any
    words: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Literal) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)


class Call(NamedTuple):
    """One thing that the step did.

    Attributes:
        function: of PyTorch's dispatcher, or the machine code of a kernel.
        name: for messages.
        args, kwargs: tensors as `Place`, addresses as `Spot`, other values as `Literal`, in tuples and lists as they were.
        made: for each tensor of the result the place of its memory if that is new, else None.
        kept: whether it has to be done even if nobody uses the result: it writes, or draws random numbers.
        grad: whether autograd was on, at which some operations look.
    """

    function: Any
    name: str
    args: Any
    kwargs: tuple[tuple[str, Any], ...]
    made: tuple[Place | None, ...]
    kept: bool
    grad: bool = False

    @property
    def is_kernel(self) -> bool:
        """Whether it is the call of a kernel: `args` is then the block that it is given."""
        return not isinstance(self.function, torch._ops.OpOverload)


@dataclass
class Recording:
    """What a step did.

    Attributes:
        calls: in their order.
        inputs: places of the step's inputs, in blocks of their own.
        results: places of what is asked for (see `Recorder.give`).
        sizes: bytes of each block.
        outside: number of a block → memory that was there before the step, and stays.
        left: blocks that the step has made and somebody still has after it: their contents are a result.
        reason: why the step cannot be replayed; "" if it can.
    """

    calls: list[Call] = field(default_factory=list)
    inputs: list[Place] = field(default_factory=list)
    results: list[Place] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    outside: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    reason: str = ""

    def difference(self, other: Recording) -> str:
        """Returns what another step did otherwise, in words; "" if nothing."""
        if (self.inputs, self.results) != (other.inputs, other.results):
            return "batches, or results, that lie otherwise in memory"
        for ours, theirs in zip(self.calls, other.calls, strict=False):
            if ours != theirs:
                return f"{ours.name} with {_arguments(ours)}, then {theirs.name} with {_arguments(theirs)}"
        if len(self.calls) != len(other.calls):
            return f"{len(self.calls)} calls, then {len(other.calls)}"
        if self.outside.keys() != other.outside.keys():
            return "tensors that are there before the step"
        written = self._written()
        for block, memory in self.outside.items():
            its = other.outside[block]
            if memory._cdata != its._cdata and (block in written or not _same_bytes(memory, its)):
                return "a tensor that is made anew before each step"
        return ""

    def _written(self) -> set[int]:
        return {place.block for call in self.calls if call.kept for place in places_in((call.args, call.kwargs))}


class Recorder(TorchDispatchMode):
    """Writes down what is done inside its `with`, in this thread.

    Args:
        inputs: the tensors that are others in each step.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self._thread = threading.get_ident()
        self._numbers: dict[int, int] = {}
        self._living: list[StorageWeakRef] = []
        self._starts: list[int] = []  # of inputs' first elements; 0 in other blocks, which are counted from their beginning
        self._bases: list[tuple[int, int]] = []  # (address, number of the block), sorted
        for tensor in inputs:
            if tensor.layout != torch.strided or tensor.untyped_storage()._cdata in self._numbers:
                self.fail("the batch's tensors are not dense, or share their memory")
                return
            self._new_block(tensor, int(tensor.storage_offset()))
            self.recording.inputs.append(self._place(tensor))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which keeps PyTorch from importing its compiler to be told that there is nothing to compile

    def __enter__(self) -> Any:
        compiled.watch(self)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        compiled.watch(None)
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        before = {*self.recording.outside, *range(len(self.recording.inputs))}
        self.recording.left = {number for number, memory in enumerate(self._living)
                               if number not in before and not memory.expired()}  # type: ignore[no-untyped-call]
        self._living.clear()

    def fail(self, reason: str) -> None:
        """Notes why what is done here cannot be replayed; the first reason is kept."""
        self.recording.reason = self.recording.reason or reason

    def give(self, results: Sequence[Tensor]) -> None:
        """Has a program give these tensors back."""
        if not self.recording.reason:
            self.recording.results = [self._place(result) for result in results]

    # -- PyTorch's operations ----------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.recording.reason:
            return func(*args, **kwargs)
        name = func._schema.name
        if name in _READS or torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            self.fail(f"{name.removeprefix('aten::')} lets the host look at a value")
        if name in _MOVES:
            self.fail(f"{name.removeprefix('aten::')} gives a tensor other memory")
        given = self._described(args), tuple((key, self._described(value)) for key, value in kwargs.items())
        known = len(self._starts)
        result = func(*args, **kwargs)
        if self.recording.reason:
            return result
        results = result if isinstance(result, (tuple, list)) else (result,)
        made = tuple(self._made(each, known) for each in results)
        if torch.Tag.inplace_view in func.tags:  # another shape, which the places of what uses it have
            return result
        kept = func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags or any(part in name for part in _WRITES_UNSAID)
        if kept or any(made):  # else it gives views alone, which the places of what uses them describe
            self.recording.calls.append(Call(func, name.removeprefix("aten::"), *given, made, kept, torch.is_grad_enabled()))
        return result

    def _made(self, result: Any, known: int) -> Place | None:
        """Returns the place of a result in memory that was not there when `known` blocks were."""
        if not isinstance(result, Tensor):  # a number, which is the same as long as the recordings are
            return None
        place = self._place(result, made=True)
        return place if place is not None and place.block >= known else None

    def _described(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            opaque = value.layout == torch._mkldnn  # type: ignore[attr-defined]
            return Literal(value, f"weights for oneDNN {id(value)}") if opaque else self._place(value)  # they were laid out beforehand
        if isinstance(value, (list, tuple)):
            return type(value)(self._described(each) for each in value) if type(value) in (list, tuple) else self._literal(value)
        return self._literal(value)

    def _literal(self, value: Any) -> Literal:
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            self.fail(f"an argument of type {type(value).__name__}")
        words = value.hex() if type(value) is float else "generator" if isinstance(value, torch.Generator) else repr(value)
        return Literal(value, f"{type(value).__name__} {words}")

    # -- memory ------------------------------------------------------------------------------------------------------

    def _place(self, tensor: Tensor, made: bool = False) -> Any:
        """Returns where a tensor lies; its block is a new one if it was never met."""
        if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg() or tensor.device.type != "cpu":
            self.fail(f"a tensor on {tensor.device} of layout {tensor.layout}")
            return None
        number = self._numbers.get(tensor.untyped_storage()._cdata)
        if number is None:
            number = self._new_block(tensor, 0)
            if not made:
                self.recording.outside[number] = tensor.untyped_storage()
        offset = int(tensor.storage_offset()) - self._starts[number]
        return Place(number, offset, tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def _new_block(self, tensor: Tensor, start: int) -> int:
        memory, number = tensor.untyped_storage(), len(self._starts)
        self._numbers[memory._cdata] = number
        # It also keeps the number `_cdata` from being given to another block.
        self._living.append(StorageWeakRef(memory))  # type: ignore[no-untyped-call]
        self._starts.append(start)
        self.recording.sizes.append(memory.nbytes())
        if memory.nbytes():
            bisect.insort(self._bases, (memory.data_ptr(), number))
        return number

    def _spot(self, address: int) -> Spot | None:
        """Returns where an address points; None if into nothing that is known."""
        at = bisect.bisect_right(self._bases, (address, len(self._starts)))
        for base, number in reversed(self._bases[:at]):
            if address < base + self.recording.sizes[number] and not self._living[number].expired():  # type: ignore[no-untyped-call]
                start = 0
                if number < len(self.recording.inputs):
                    start = self._starts[number] * self.recording.inputs[number].dtype.itemsize
                return Spot(number, address - base - start)
        return None

    # -- kernels -----------------------------------------------------------------------------------------------------

    def called(self, name: str, function: Callable[[Any], int], block: Sequence[int], places: Sequence[int],
               arguments: Sequence[Any]) -> None:
        """Notes the call of a kernel (see `compiled.watch`).

        Args:
            name: of the kernel.
            function: its machine code.
            block: that it is given.
            places: of addresses in the block.
            arguments: from which the block was made, as far as known.
        """
        if self.recording.reason or threading.get_ident() != self._thread:
            return
        self._meet(arguments)
        words: list[Any] = [Literal(word, str(word)) for word in block]
        for place in places:
            address = block[place]
            spot = self._spot(address) if address else None
            words[place] = spot or self._of_array(name, address, arguments)
        self.recording.calls.append(Call(function, name, tuple(words), (), (), True))

    def _meet(self, arguments: Sequence[Any]) -> None:
        """Makes the memory of a kernel's arguments known."""
        for argument in arguments:
            tensor = argument[3] if isinstance(argument, Flat) else argument
            if isinstance(tensor, Tensor):
                self._place(tensor)

    def _of_array(self, name: str, address: int, arguments: Sequence[Any]) -> Literal:
        """Returns the address of a NumPy array, or of nothing, as it is; the array has to stay, and to be the same in each step."""
        array = next((a for a in arguments if isinstance(a, np.ndarray) and a.ctypes.data == address), None)
        if array is not None and array.size:
            return Literal(_Kept(address, array), f"array {array.tobytes()!r}")
        if address and array is None:
            self.fail(f"the kernel {name} was given memory that belongs to no tensor")
        return Literal(0, "nothing")

    def elsewhere(self, name: str) -> None:
        """Notes that a kernel ran on threads that a replay cannot reach."""
        if threading.get_ident() == self._thread:
            self.fail(f"the kernel {name} runs on Python's threads here")


class _Kept(int):
    """The address of an array, which is kept with it."""

    array: np.ndarray[Any, Any]

    def __new__(cls, address: int, array: np.ndarray[Any, Any]) -> _Kept:
        made = super().__new__(cls, address)
        made.array = array
        return made


def places_in(values: Any) -> list[Place | Spot]:
    """Returns all places in the arguments of a call."""
    if isinstance(values, (Place, Spot)):
        return [values]
    if isinstance(values, (list, tuple)) and not isinstance(values, Literal):
        return [place for value in values for place in places_in(value)]
    return []


def _same_bytes(first: torch.UntypedStorage, second: torch.UntypedStorage) -> bool:
    return first.nbytes() == second.nbytes() and torch.equal(_as_bytes(first), _as_bytes(second))


def _as_bytes(memory: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(memory)


def _arguments(call: Call) -> str:
    return ", ".join(value.words if isinstance(value, Literal) else "…" for value in call.args) if not call.is_kernel else "a block"
