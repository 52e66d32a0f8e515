"""The measured search: rewrites are tried one after the other on a real batch, and those that pay are kept.

Greedy, from the plain rewrites to the special ones and what these left: each candidate is the form found so far plus one rewrite. First its
loss and gradients are held against float64, then it is timed in turn with that form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from convolt.compiler.fuse import REWRITES, fuse
from convolt.compiler.host import release_freed_memory
from convolt.compiler.measure import Gradients, Probe

TOLERANCE = {torch.float32: (1e-5, 1e-3, 1e-2), torch.bfloat16: (2e-2, 0.5, 0.25)}
"""Relative errors of loss and gradients and the lean of a parameter against float64 that are always allowed, by the candidate's precision.

An error of half the gradient's length turns it by 30° at most. PyTorch's own autocast has 0.3 in a ResNet-18 at its start,
and parameters lean by 0.15; trainings in bfloat16 end within the spread of seeds all the same.
"""

LAYERS = "layers"
BFLOAT16 = "bfloat16"
RULES = 8  # of the choice; a new number makes earlier measurements void
SEARCH_SECONDS = 3.0  # what trying a form costs, mostly the compilation of its kernels when they are new
GOOD_WIN = 0.3  # share of a run that a good rewrite saves
MOST_OF_RUN = 0.15  # share of a run that its search may take
LONG_STEP = 0.2  # seconds; longer ones are measured once
VERY_LONG_STEP = 1.0  # seconds; what is measured is one run, and what was measured is not measured again
FAR = 1.25  # times as fast, or as slow: two rounds decide
WORTH = 1.03  # a form must be this much faster to be taken


@dataclass(frozen=True)
class Row:
    """One candidate and what became of it.

    Attributes:
        name: "layers", "bfloat16" (for float32), a rewrite that was added to the form so far, or "graph of the whole step".
        seconds: of forward and backward of one batch; None where it was not measured.
        images_per_second: the same as a rate.
        loss_error, gradient_error: relative, against float64; None where not measured.
        verdict: "chosen" or "refused".
        why: in one line.
        memory: bytes that the forward pass keeps for the backward pass; None where not measured.
    """

    name: str
    seconds: float | None
    images_per_second: float | None
    loss_error: float | None
    gradient_error: float | None
    verdict: str
    why: str
    memory: int | None = None


def plain_row(name: str, verdict: str, why: str, seconds: float | None = None, batch_size: int = 0) -> Row:
    """Returns a row without errors and memory."""
    return Row(name, seconds, batch_size / seconds if seconds else None, None, None, verdict, why)


class Search:
    """One search.

    Args:
        model: as it is, layer by layer.
        traced: its graph; None where there is none, or nothing to rewrite.
        probe: measures on a real batch.
        precision: of the computation.
        batch_size: of that batch.
        steps: how many are to come; None if unknown. What can be won must repay the search.
        lower: whether bfloat16 is a candidate in place of `precision`.

    Attributes:
        kept: names of the chosen rewrites.
        precision: the chosen one.
    """

    def __init__(self, model: nn.Module, traced: fx.GraphModule | None, probe: Probe, precision: torch.dtype, batch_size: int,
                 steps: int | None, lower: bool = False) -> None:
        self._traced = traced
        self._probe = probe
        self.precision = precision
        self._lower = lower
        self._batch_size = batch_size
        self._steps = steps
        self._model = self._best = model
        self._best_seconds = 0.0
        self._began = 0.0
        self._rows: list[Row] = []
        self.kept: list[str] = []

    def run(self) -> tuple[Row, ...]:
        """Returns the rows, "layers" first."""
        self._began = self._probe.clock()
        plain = self._best_seconds = self._probe.seconds(self._model, self.precision, budget=0.3, least=1)
        candidates = [BFLOAT16] * self._lower
        if self._traced is not None:
            in_turn = [*(r for r in reversed(REWRITES) if not r.leftover), *(r for r in REWRITES if r.leftover)]
            in_turn.sort(key=lambda rewrite: not rewrite.name.startswith("winograd"))  # these win most
            candidates += [rewrite.name for rewrite in in_turn if fuse(self._traced, (rewrite.name,)).count]
        reference: Gradients | None = None
        for name in candidates:
            if name != BFLOAT16 and self._changes_nothing(name):
                continue
            if why := self._too_short():
                self._rows.append(plain_row(name, "refused", why))
                continue
            reference = reference or self._begin()
            self._try(name, reference)
            release_freed_memory()
            plain = max(plain, self._best_seconds) if self._best is self._model and self.precision == torch.float32 else plain
        changed = bool(self.kept) or any(row.name == BFLOAT16 and row.verdict == "chosen" for row in self._rows)
        why = "another form is faster" if changed else f"{self._batch_size / plain:,.0f} images/s forward and backward"
        searched = any(row.seconds for row in self._rows) or reference is not None
        layers = plain_row(LAYERS, "refused" if changed else "chosen", why if searched else "the form that needs no search",
                           plain, self._batch_size)
        return layers, *self._rows

    def _in_turn(self, module: nn.Module, precision: torch.dtype) -> tuple[float, float]:
        """Returns seconds of a candidate and of the best form so far, short ones in turn: a busy second must not decide."""
        if self._best_seconds >= VERY_LONG_STEP:
            return self._probe.seconds(module, precision, budget=0.0, least=1), self._best_seconds
        rounds = 3 if self._best_seconds < LONG_STEP else 1
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            candidate = self._probe.seconds(module, precision, budget=1.0 / rounds)
            times.append((candidate, self._probe.seconds(self._best, self.precision, budget=1.0 / rounds)))
            if len(times) > 1 and not any(1 / FAR < best / candidate < FAR for candidate, best in times):
                break
        return min(a for a, _ in times), min(b for _, b in times)

    def _changes_nothing(self, name: str) -> bool:
        """Whether rewrites that were chosen before leave nothing for this one."""
        assert self._traced is not None
        return fuse(self._traced, (*self.kept, name)).count == fuse(self._traced, tuple(self.kept)).count

    def _too_short(self) -> str:
        """Returns why the run cannot repay the next candidate; "" if it can."""
        if self._steps is None:
            return ""
        run, spent = self._best_seconds * self._steps, self._probe.clock() - self._began
        if run * GOOD_WIN < SEARCH_SECONDS:
            return f"the run takes about {run:.0f} s, too short to repay the search"
        if spent + SEARCH_SECONDS > max(SEARCH_SECONDS, run * MOST_OF_RUN):
            return f"the search has taken {spent:.0f} s, enough for a run of about {run:.0f} s"
        return ""

    def _begin(self) -> Gradients:
        """Returns the reference; candidates may be off as far as twice the plain form is, or as the tolerance says."""
        release_freed_memory()
        reference = self._probe.reference()
        release_freed_memory()
        self._allow(self._probe.gradients(self._model, self.precision).errors(reference))
        return reference

    def _allow(self, own: tuple[float, float, float]) -> None:
        self._allowed = [max(stated, 2 * error) for stated, error in zip(TOLERANCE[self.precision], own, strict=True)]

    def _try(self, name: str, reference: Gradients) -> None:
        """Makes one change to the best form if it is right and faster, and adds its row in any case."""
        lower = name == BFLOAT16
        precision = torch.bfloat16 if lower else self.precision
        module = self._best if lower or self._traced is None else fuse(self._traced, (*self.kept, name)).module
        errors = self._probe.gradients(module, precision).errors(reference)
        loss_error, gradient_error, lean = errors
        allowed = TOLERANCE[precision] if lower else self._allowed
        if not all(error <= most for error, most in zip(errors, allowed, strict=True)):
            why = (f"loss off by {loss_error:.1e} (allowed {allowed[0]:.0e}), gradients by {gradient_error:.1e} "
                   f"(allowed {allowed[1]:.0e}), one parameter's length by {lean:.1e} (allowed {allowed[2]:.0e})")
            self._rows.append(Row(name, None, None, loss_error, gradient_error, "refused", why))
            return
        seconds, before = self._in_turn(module, precision)
        faster, memory = before / seconds, self._probe.kept_bytes(module, precision)
        rate = f"{self._batch_size / seconds:,.0f} images/s forward and backward, {faster:.2f}× without it"
        verdict, why = ("chosen", rate) if faster >= WORTH else ("refused", f"{faster:.2f}× as fast as without it, not worth a change")
        self._rows.append(Row(name, seconds, self._batch_size / seconds, loss_error, gradient_error, verdict, why, memory))
        if verdict == "chosen":
            self._best, self._best_seconds, self.precision = module, seconds, precision
            if lower:
                self._allow(errors)
            else:
                self.kept.append(name)
        else:
            self._best_seconds = before
