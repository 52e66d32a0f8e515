"""Trying candidates on a real batch: how fast a step is, and how far its loss and gradients are from the reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convolt.compiler.execute import GraphBackend
from convolt.compiler.host import release_freed_memory, returning_freed_memory
from convolt.compiler.slices import SlicedRun, seconds_in_slices
from convolt.devices import free_bytes
from convolt.kernels.compiled import compiling_seconds

LossOf = Callable[[Callable[..., Any], torch.dtype], Tensor]
"""Computes the loss of a module (or of a function in its place) on the first batch, in a precision, without penalties."""


Form = tuple[nn.Module, torch.dtype]
"""What runs, and in which precision."""


class CannotCaptureError(RuntimeError):
    """A candidate cannot be captured in a graph."""


NEARLY_ZERO = 0.1
"""Share of the mean size of a gradient's elements below which a parameter's gradient counts as zero, as a bias's before normalization."""


SHARE_OF_MEMORY = 0.5
"""Of the free memory that what a forward pass in float64 keeps may take, and what two runs in slices make."""


COMPARED = 1 << 18
"""Numbers that are compared in float64 at once."""


@dataclass(frozen=True)
class Gradients:
    """Loss and gradients of one batch, on the device.

    Attributes:
        loss: a scalar, in float64 where the device has that.
        parts: the gradient of each parameter.
    """

    loss: Tensor
    parts: tuple[Tensor, ...]

    def errors(self, reference: Gradients) -> tuple[float, float, float]:
        """Returns relative errors against a reference: of the loss, of the gradients as one vector, and the largest lean of a parameter.

        Rounding is random: in a deep network with normalization bfloat16 alone, through ReLUs that switch, moves the gradient
        by a third of its length, but in all directions. A kernel that is wrong makes the gradient of some parameter longer,
        shorter or another one. So the lean is how far a parameter's gradient, projected on that of the reference, is from it
        in length. It is told for each parameter, because the largest hide the others in one vector.
        """
        sums = [_compared(part, right) for part, right in zip(self.parts, reference.parts, strict=True)]
        loss = (self.loss - reference.loss).abs() / reference.loss.abs().clamp(min=1e-6)
        if not sums:
            return float(loss), 0.0, 0.0
        moved, along, length = torch.stack(sums).unbind(1)
        sizes = torch.tensor([part.numel() for part in reference.parts], device=length.device)
        scale = length.sum().sqrt().clamp(min=1e-30)
        floor = (NEARLY_ZERO * scale) ** 2 / sizes.sum().clamp(min=1)  # of a squared element
        lean = (along.abs() / (length + floor * sizes)).max()
        return float(loss), float(moved.sum().sqrt() / scale), float(lean)


def _compared(part: Tensor, right: Tensor) -> Tensor:
    """Returns |part - right|², (part - right) · right and |right|² in float64 where the device has that, a few numbers at a time."""
    wide = _wide(right)
    total = torch.zeros(3, dtype=wide, device=right.device)
    ours, theirs = part.detach().reshape(-1), right.reshape(-1)
    for start in range(0, len(theirs), COMPARED):
        a, b = (x[start : start + COMPARED] for x in (ours, theirs))
        exact = b.to(wide)
        moved = a.to(wide) - exact
        total += torch.stack([moved @ moved, moved @ exact, exact @ exact])
    return total


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


class Probe:
    """Runs forward, loss and backward of candidates; the model is left as it was.

    Args:
        model: whose parameters, buffers and random state are kept.
        loss_of: computes the loss of a candidate on the first batch.
        device: whose work is waited for.
        checked_loss_of: the same on a part of the batch that is enough to tell right from wrong; None: on all of it.
        clock: returns seconds.
        graphs: captures a run and replays it for timing, where the step will be a graph: outside of one, a device waits for
            the host, and what is timed is Python. None: runs are timed as they are, which is also done once the model itself
            could not be captured.
        half_loss_of: the same as `loss_of` on half of the batch; None where it has no two halves.

    Attributes:
        parts: into how many the batch is divided, one of which is timed.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf, device: torch.device, checked_loss_of: LossOf | None = None,
                 clock: Callable[[], float] = time.perf_counter, graphs: GraphBackend | None = None,
                 half_loss_of: LossOf | None = None) -> None:
        self._model = model
        self._loss_of = self._timed_loss_of = loss_of
        self._half_loss_of = half_loss_of
        self.parts = 1
        self._checked_loss_of = checked_loss_of or loss_of
        self._device = device
        self.clock = clock
        self._graphs = graphs
        self._have_run: set[Form] = set()
        self._kept_runs: dict[tuple[nn.Module, torch.dtype, int], Callable[[], Any]] = {}

    def compiling_seconds(self) -> float:
        """Returns how much of the clock's time has gone into compiling kernels, which is done once on a machine."""
        return compiling_seconds() if self.clock is time.perf_counter else 0.0

    def halve(self) -> bool:
        """Has runs be timed on half of the batch, if it has halves: of a long step that is telling enough."""
        if self._half_loss_of is None or self.parts > 1:
            return False
        self._timed_loss_of, self.parts = self._half_loss_of, 2
        return True

    def whole(self) -> None:
        """Has runs be timed on all of the batch again."""
        self._timed_loss_of, self.parts = self._loss_of, 1

    @property
    def in_graphs(self) -> bool:
        """Whether candidates are timed as graphs."""
        return self._graphs is not None

    def gradients(self, module: nn.Module, precision: torch.dtype, whole: bool = False) -> Gradients:
        """Returns loss and gradients of a candidate, on all of the batch where asked; each call sees the same random numbers."""
        with self._as_it_was():
            loss = self._run(module, precision, self._loss_of if whole else self._checked_loss_of)
            return self._collect(loss, [p.grad for p in self._trained()])

    def moved_gradients(self, precision: torch.dtype, share: float) -> Gradients:
        """Returns what `gradients` does of the model itself, with each weight off by a random share of it of that size."""
        weights = self._trained()
        kept = [p.detach().clone() for p in weights]
        generator = torch.Generator(self._device).manual_seed(0)
        try:
            with torch.no_grad():
                for p in weights:
                    p.mul_(1 + share * torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype))
            return self.gradients(self._model, precision)
        finally:
            with torch.no_grad():
                for p, value in zip(weights, kept, strict=True):
                    p.copy_(value)

    def reference(self, whole: bool = False) -> Gradients:
        """Returns loss and gradients of the model itself in float64, or in float32 where the device has no float64.

        Float32 is no reference here: where pooling meets near-ties, as in flat backgrounds, its rounding alone can move
        gradients by a thousandth, more than a good kernel does.
        """
        if self._device.type == "mps":
            return self.gradients(self._model, torch.float32, whole)
        with self._as_it_was(), returning_freed_memory():
            values = {name: p.detach().double().requires_grad_(p.requires_grad) for name, p in self._model.named_parameters()}
            buffers = {name: b.double() if b.is_floating_point() else b.clone() for name, b in self._model.named_buffers()}
            loss_of = self._loss_of if whole else self._checked_loss_of
            loss = loss_of(lambda *inputs: torch.func.functional_call(self._model, values | buffers, inputs), torch.float64)
            trained = [value for value in values.values() if value.requires_grad]
            return self._collect(loss, torch.autograd.grad(loss, trained, allow_unused=True))

    def _collect(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> Gradients:
        """Returns them in float32 at most, whose rounding is far below what is allowed."""
        parts = (torch.zeros_like(p) if g is None else g.float() for p, g in zip(self._trained(), gradients, strict=True))
        return Gradients(loss.detach().to(_wide(loss)), tuple(parts))

    def seconds(self, module: nn.Module, precision: torch.dtype, budget: float, least: int = 2, most: int = 9) -> float:
        """Returns the median time of a step's forward and backward, of `least` to `most` runs in about `budget` seconds.

        One more comes before, but for single runs of what was captured and is kept. After `halve` it is twice the time of half of a batch.

        Raises:
            CannotCaptureError: the step will be a graph, and this candidate cannot be one, though the model can.
        """
        times: list[float] = []
        ready = self._kept_runs.get((module, precision, self.parts)) if least == 1 else None  # a long run: each costs
        if ready is None:
            release_freed_memory()  # holes that another form has left do not add up; the run that is not counted fills them again
        with self._as_it_was():
            run = ready or self._ready(module, precision)
            self._wait()
            start = self.clock()
            while len(times) < least or (len(times) < most and self.clock() - start < budget):
                before = self.clock()
                run()
                self._wait()
                times.append(self.clock() - before)
        return self.parts * statistics.median_low(times)  # of two, the one that no other work came between

    def in_slices(self, form: Form, other: Form, times: int, hopeless: float) -> tuple[float, float] | None:
        """Returns the time of a step's forward and backward of two forms, run so many times in slices in turn.

        None where one of them has no slices, or both together would need too much memory. See `seconds_in_slices`.

        Raises:
            CannotCaptureError: as `seconds` does.
        """
        if self._graphs is None or not self._graphs.keeps or not all(getattr(module, "recordable", True) for module, _ in (form, other)):
            return None
        with self._as_it_was():
            one, two = (self._kept_runs.get((*each, self.parts)) or self._ready(*each) for each in (form, other))
            if not (isinstance(one, SlicedRun) and isinstance(two, SlicedRun)):
                return None
            if one.bytes_at_once + two.bytes_at_once > SHARE_OF_MEMORY * free_bytes(self._device):
                return None
            seconds = seconds_in_slices(one, two, times, self.clock, hopeless)
            return self.parts * seconds[0], self.parts * seconds[1]

    def _ready(self, module: nn.Module, precision: torch.dtype) -> Callable[[], Any]:
        """Returns what runs a candidate, after running it once."""

        def run() -> None:
            self._run(module, precision, self._timed_loss_of)

        if self._graphs is None or (self._graphs.keeps and not getattr(module, "recordable", True)):
            run()
            return run
        if (module, precision, self.parts) in self._kept_runs:
            kept = self._kept_runs[module, precision, self.parts]
            kept()
            return kept
        if not (self._graphs.keeps and (module, precision) in self._have_run):
            self._graphs.warm_up(run)
        try:
            captured = self._graphs.capture(run, [own for seeded in _generators(self._model) for own in seeded.values()])
            if self._graphs.keeps:
                self._kept_runs[module, precision, self.parts] = captured
                captured()  # what is timed finds the memory that it needs
            return captured
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # CUDA reports what a graph cannot hold as a RuntimeError
            if module is not self._model:
                raise CannotCaptureError(f"it cannot be captured in a graph: {str(error).splitlines()[0]}") from error
            self._graphs = None  # so it will be with the step, which then says so
            return run

    def kept_bytes(self, module: nn.Module, precision: torch.dtype) -> int:
        """Returns how many bytes the forward pass of a candidate keeps for its backward pass, beside the parameters."""
        own = {p.untyped_storage().data_ptr() for p in self._model.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # a node that kept its own output as it is would never be freed

        with self._as_it_was(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self._timed_loss_of(module, precision)
        del loss
        return self.parts * sum(kept.values())

    def too_large(self) -> str:
        """Returns why the whole batch is not to be computed in float64, where memory is short; "" if it can be."""
        needed, free = 2 * self.kept_bytes(self._model, torch.float32), free_bytes(self._device)
        if needed <= SHARE_OF_MEMORY * free:
            return ""
        return f"holding it against float64 would take about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self._model.parameters() if p.requires_grad]

    def _run(self, module: nn.Module, precision: torch.dtype, loss_of: LossOf | None = None) -> Tensor:
        self._have_run.add((module, precision))
        for p in self._trained():
            p.grad = None
        loss = (loss_of or self._loss_of)(module, precision)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Puts buffers, random state, gradients, modes, and weights that a forward pass changes, back at the end."""
        changed = [w for module in self._model.modules() for w in getattr(module, "changed_weights", ())]  # by a forward pass alone
        kept = [(state, state.detach().clone()) for state in (*self._model.buffers(), *changed)]
        modes = {module: module.training for module in self._model.modules()}
        seeded = [(own, {device: g.get_state() for device, g in own.items()}) for own in _generators(self._model)]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._model.train()
            try:
                yield
            finally:
                with torch.no_grad():
                    for state, value in kept:
                        state.copy_(value)
                for module, training in modes.items():
                    module.training = training
                for own, states in seeded:
                    for device in list(own):
                        if device in states:
                            own[device].set_state(states[device])
                        else:
                            del own[device]  # made by an attempt: the first step makes it anew, from its seed
                for p in self._trained():
                    p.grad = None


def _generators(model: nn.Module) -> list[dict[torch.device, torch.Generator]]:
    """Returns the generators of layers with a seed of their own, by device; those that a first forward pass makes are added to them."""
    found = (getattr(module, "generators", None) for module in model.modules())
    return [own for own in found if isinstance(own, dict)]
