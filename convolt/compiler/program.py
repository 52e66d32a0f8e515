"""A recorded step as a program: one Python function, a line for each operation, in which nothing is left to be decided.

No layer, no autograd and no choice of a kernel is in it any more; for a small network these take as long as the arithmetic. A tensor
that a line makes is forgotten after the last line that uses it, so that no more memory is needed than in the step itself. What
kernels fill, and what PyTorch's operations can write into memory that is there, stays where it is from one step to the next: a kernel's
call is one call of machine code, and nothing is left to the system's allocator but the rest.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from convolt.compiler.arena import Arena, Life, placed
from convolt.compiler.outputs import Writing, writing
from convolt.compiler.record import Call, Literal, Place, Recording, Spot, places_in
from convolt.compiler.slices import SlicedRun
from convolt.kernels.compiled import no_memory

STAYING_BYTES = 8 << 20
"""Of blocks with memory of their own that stays from one step to the next, at most."""
SMALL = 1 << 16
"""Bytes of a block that has memory of its own even where there is an arena: finding places for thousands of them takes a second."""
SLICE_CALLS = 4
"""Operations between two places where a program in slices stops."""
_EMPTY = frozenset({"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"})

Program = Callable[..., list[Tensor]]
"""Takes the step's inputs, does what the step did, and returns the results that the recording has."""


class CannotReplayError(RuntimeError):
    """A recorded step cannot be made a program; the message says why."""


class RecordingsDifferError(CannotReplayError):
    """Two recordings of the same work did not do the same; another one may be like the last."""


def make_program(recording: Recording, arena: Arena | None = None) -> Program:
    """Returns the program of a recording.

    Args:
        recording: of a step.
        arena: where that lies which needs no new memory in each step; if it is too small it is made larger, which ends programs that were
            made in it before. None: small blocks have memory of their own, and large ones new memory in each step.

    Raises:
        CannotReplayError: something in it cannot be said in a program.
    """
    return _Writer(recording, arena).program()


def program_of(first: Recording, second: Recording, arena: Arena | None = None) -> Program:
    """Returns the program of two recordings of the same work, if both did the same.

    Raises:
        RecordingsDifferError: they did not.
        CannotReplayError: `make_program` says why there is none.
    """
    if reason := first.reason or second.reason:
        raise CannotReplayError(reason)
    if difference := first.difference(second):
        raise RecordingsDifferError(f"two of them differ: {difference}")
    return make_program(second, arena)


def sliced_run_of(recording: Recording) -> SlicedRun:
    """Returns what does the work of a recording without inputs and results, at once or in slices. See `make_program`."""
    return _Writer(recording, None).sliced_run()


def source_of(program: Program) -> str:
    """Returns a program's text."""
    return str(program.__doc__)


class _Writer:
    """Writes a program line by line.

    Args:
        recording: of the step.
        arena: see `make_program`.
    """

    def __init__(self, recording: Recording, arena: Arena | None) -> None:
        self._recording = recording
        self._calls = _wanted(recording)
        self._last = self._last_uses()
        self._writing: dict[int, Writing] = {}
        self._staying, self._offsets = self._blocks_that_stay(arena)
        self._lines: list[str] = []
        self._grad = False
        self._names: dict[str, Any] = {"fail": _fail, "set_grad": torch.set_grad_enabled,
                                       "memory": [*recording.outside.values(), *self._staying.values()]}
        self._tensors: dict[Place, str] = {}  # what has a name
        self._bases: dict[int, tuple[str, Place]] = {}  # the first tensor of a block that is another one in each step
        self._addresses: dict[int, str] = {}
        self._alive: dict[int, list[str]] = {}  # names that are forgotten with a block
        self._count = 0

    def program(self) -> Program:
        """Returns the function."""
        for _ in self._written():
            pass
        results = ", ".join([self._tensor(place) for place in self._recording.results])
        made: Program = torch.inference_mode()(self._function(f"return [{results}]"))
        return made

    def sliced_run(self) -> SlicedRun:
        """Returns the work as a function that stops every few operations, with gradients switched off."""
        for number in self._written():
            if number % SLICE_CALLS == 0:
                self._lines += ["set_grad(False)", "yield", "set_grad(True)"] if self._grad else ["yield"]
        self._lines.append("set_grad(False)")
        return SlicedRun(self._function("yield"), self._bytes_at_once())

    def _bytes_at_once(self) -> int:
        """Returns how much memory there is at most of what calls make."""
        born: dict[int, int] = {}
        for number, call in enumerate(self._calls):
            for place in call.made:
                if place is not None and place.block not in self._recording.outside:
                    born.setdefault(place.block, number)
        changes = [0] * (len(self._calls) + 2)
        for block, number in born.items():
            changes[number] += self._recording.sizes[block]
            changes[self._last[block] + 1] -= self._recording.sizes[block]
        return max(itertools.accumulate(changes))

    def _written(self) -> Iterator[int]:
        """Writes all calls, after the inputs have names, and yields the number of each."""
        self._check_that_all_is_filled()
        for place in self._recording.inputs:
            self._bases[place.block] = (f"x{place.block}", place)
            self._tensors[place] = f"x{place.block}"
        for number, call in enumerate(self._calls):
            self._write(call, number)
            self._forget(number)
            yield number

    def _function(self, last: str) -> Any:
        """Returns the function of all lines and the last one."""
        given = ", ".join(f"x{place.block}" for place in self._recording.inputs)
        text = "\n".join([f"def program({given}):", *(f"    {line}" for line in (*self._lines, last))])
        exec(compile(text, "<a training step>", "exec"), self._names)  # names and numbers alone: no text of anybody's is in it
        made = self._names.pop("program")  # which otherwise would keep itself, and the memory it works in
        made.__doc__ = text
        return made

    def _check_that_all_is_filled(self) -> None:
        """Some operations write into memory without a call of PyTorch's dispatcher: it is then read, but nothing has filled it."""
        empty: dict[int, str] = {}
        for call in self._calls:
            for place in places_in((call.args, call.kwargs)):
                if place.block in empty and not call.kept and self._recording.sizes[place.block]:
                    raise CannotReplayError(f"what {call.name} reads was written by something that is not recorded")
                empty.pop(place.block, None)
            empty |= {place.block: call.name for place in call.made if place is not None and call.name in _EMPTY}

    # -- what is where -------------------------------------------------------------------------------------------------

    def _last_uses(self) -> dict[int, int]:
        """Returns for each block the last call that uses it; one after all of them for the blocks of results."""
        uses = {place.block: number for number, call in enumerate(self._calls) for place in _places_of(call)}
        return uses | {place.block: len(self._calls) for place in self._recording.results}

    def _blocks_that_stay(self, arena: Arena | None) -> tuple[dict[int, torch.UntypedStorage], dict[int, int]]:
        """Returns where blocks lie whose memory is the same in each step: memory, and bytes from its beginning.

        In an arena that is all that are filled after they were made or that operations can write into, the small ones beside it;
        without one the smallest of the former, as long as there is room.
        """
        results = {place.block for place in self._recording.results}
        made: dict[int, int] = {}
        for number, call in enumerate(self._calls):
            places = [place for place in call.made if place is not None]
            blocks = [place.block for place in places]
            into = writing(call) if arena is not None and call.name not in _EMPTY and all(map(self._fills, places)) else None
            if results.isdisjoint(blocks) and (into or call.name in _EMPTY):
                made |= dict.fromkeys(blocks, number)
                if into:
                    self._writing[number] = into
        sizes, room, found = self._recording.sizes, STAYING_BYTES, {}
        for block in sorted(made, key=lambda each: (sizes[each], each)):
            if sizes[block] > room or (arena is not None and sizes[block] > SMALL):
                break
            room -= sizes[block]
            found[block] = torch.empty(sizes[block], dtype=torch.uint8).untyped_storage()
        if arena is None:
            return found, {}
        left = {block: Life(number, self._last[block], sizes[block]) for block, number in made.items() if block not in found}
        offsets, size = placed(left)
        try:
            arena.fit(size)
        except MemoryError as error:
            raise CannotReplayError(str(error)) from error
        return found | dict.fromkeys(offsets, arena.memory), offsets

    def _fills(self, place: Place) -> bool:
        """Whether a tensor takes all of its block."""
        return place.offset == 0 and math.prod(place.shape) * place.dtype.itemsize == self._recording.sizes[place.block]

    def _memory(self, block: int) -> torch.UntypedStorage | None:
        """Returns the memory of a block that is the same in each step; None of another one."""
        outside = self._recording.outside.get(block)
        return self._staying.get(block) if outside is None else outside

    # -- lines ---------------------------------------------------------------------------------------------------------

    def _write(self, call: Call, number: int) -> None:
        if call.is_kernel:
            self._write_kernel(call)
            return
        if call.name in _EMPTY and all(place is None or place.block in self._staying for place in call.made):
            return
        if call.grad != self._grad:  # autograd's part is left out in any case
            self._grad = call.grad
            self._lines.append(f"set_grad({call.grad})")
        if number in self._writing:
            self._write_into(call, self._writing[number])
            return
        text = self._text(call.function, call.args, call.kwargs)
        new = [(index, place) for index, place in enumerate(call.made) if place is not None and self._last[place.block] > number]
        if not new:
            self._lines.append(text)
        elif len(call.made) == 1 and not _gives_a_list(call.function):
            self._lines.append(f"{self._born(new[0][1])} = {text}")
        else:
            self._lines.append(f"t = {text}")
            self._lines += [f"{self._born(place)} = t[{index}]" for index, place in new if place.block not in self._bases]
            self._lines.append("del t")

    def _write_into(self, call: Call, into: Writing) -> None:
        """Writes a call whose results have memory that stays."""
        places = tuple(place for place in call.made if place is not None)
        named = tuple(zip(into.names, places, strict=True)) if into.names else ()
        self._lines.append(self._text(into.function, into.args if into.names else (*places, *into.args), (*into.kwargs, *named)))

    def _text(self, function: Any, args: Iterable[Any], kwargs: Iterable[tuple[str, Any]]) -> str:
        """Returns the call of an operation."""
        given = [self._argument(value) for value in args]
        given += [f"{name}={self._argument(value)}" for name, value in kwargs]
        return f"{self._constant('o', getattr(function, '_op', function))}({', '.join(given)})"

    def _born(self, place: Place) -> str:
        """Returns the name of a tensor that is made in this line."""
        name = self._tensors[place] = f"v{place.block}"
        self._bases[place.block] = (name, place)
        self._alive.setdefault(place.block, []).append(name)
        return name

    def _write_kernel(self, call: Call) -> None:
        words = [word.value if isinstance(word, Literal) else 0 for word in call.args]
        block = array("q", words)
        kept = self._constant("b", block)
        for at, word in enumerate(call.args):
            if not isinstance(word, Spot):
                continue
            memory = self._memory(word.block)
            if memory is not None:
                block[at] = memory.data_ptr() + self._offsets.get(word.block, 0) + word.offset
            else:
                self._lines.append(f"{kept}[{at}] = {self._address(word.block)}" + (f" + {word.offset}" if word.offset else ""))
        function, address = self._constant("k", call.function), block.buffer_info()[0]
        self._constant("a", [word.value for word in call.args if isinstance(word, Literal)])  # arrays of which the addresses are
        self._lines.append(f"if {function}({address}): fail({call.name!r})")

    def _address(self, block: int) -> str:
        """Returns the name of a block's address in this step."""
        if block not in self._addresses:
            name, place = self._bases[block]
            start = "" if block < len(self._recording.inputs) or not place.offset else f" - {place.offset * place.dtype.itemsize}"
            self._addresses[block] = f"p{block}"
            self._lines.append(f"p{block} = {name}.data_ptr(){start}")
        return self._addresses[block]

    def _argument(self, value: Any) -> str:
        if isinstance(value, Place):
            return self._tensor(value)
        if isinstance(value, Literal):
            plain = value.value is None or type(value.value) in (bool, int) or (type(value.value) is float and math.isfinite(value.value))
            return repr(value.value) if plain else self._constant("c", value.value)
        inside = ", ".join(self._argument(each) for each in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside},)" if len(value) == 1 else f"({inside})"

    def _tensor(self, place: Place) -> str:
        """Returns the name of a tensor, which a line before gives it where it has none."""
        if place in self._tensors:
            return self._tensors[place]
        memory = self._memory(place.block)
        if memory is not None:
            first = self._offsets.get(place.block, 0) // place.dtype.itemsize + place.offset
            tensor = torch.empty(0, dtype=place.dtype).set_(memory, first, place.shape, place.strides)
            name = self._tensors[place] = self._constant("c", tensor)
            return name
        if place.block not in self._bases:
            raise CannotReplayError("a tensor is used before it is made")
        base, origin = self._bases[place.block]
        if place.dtype != origin.dtype:
            raise CannotReplayError(f"numbers of {origin.dtype} are taken for {place.dtype}")
        name = self._tensors[place] = f"w{self._next()}"
        offset = f"{base}.storage_offset() + {place.offset}" if place.block < len(self._recording.inputs) else str(place.offset)
        self._lines.append(f"{name} = {base}.as_strided({place.shape}, {place.strides}, {offset})")
        self._alive.setdefault(place.block, []).append(name)
        return name

    def _forget(self, number: int) -> None:
        """Ends the life of what no later line uses."""
        ended = [block for block in {place.block for place in _places_of(self._calls[number])} if self._last[block] == number]
        names = [name for block in sorted(ended) for name in self._alive.pop(block, [])]
        if names:
            self._lines.append(f"del {', '.join(names)}")

    def _constant(self, kind: str, value: Any) -> str:
        name = f"{kind}{self._next()}"
        self._names[name] = value
        return name

    def _next(self) -> int:
        self._count += 1
        return self._count


def _wanted(recording: Recording) -> list[Call]:
    """Returns the calls without those whose results nobody uses."""
    used = recording.left | {place.block for place in recording.results}
    found = []
    for call in reversed(recording.calls):
        if call.kept or any(place is not None and place.block in used for place in call.made):
            used |= {place.block for place in places_in((call.args, call.kwargs))}
            found.append(call)
    return found[::-1]


def _places_of(call: Call) -> Iterable[Place | Spot]:
    return [*places_in((call.args, call.kwargs)), *(place for place in call.made if place is not None)]


def _gives_a_list(function: Any) -> bool:
    return len(function._schema.returns) != 1 or not isinstance(function._schema.returns[0].type, torch.TensorType)


def _fail(name: str) -> None:
    raise no_memory(name)
