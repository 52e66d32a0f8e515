"""The measured search: rewrites are tried one after the other on a real batch, and those that pay are kept.

Greedy, from the plain rewrites to the special ones and what these left: each candidate is the form found so far plus one rewrite, or
those of batch normalization together. First its loss and gradients are held against float64, then it is timed in turn with that form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from convolt.compiler.candidates import BFLOAT16, REWRITE_NAMES, candidates_for, worth_of
from convolt.compiler.compiled import COMPILED, LAYERS_COMPILED, CannotCompileError, Compiled, Compiling, seconds_of
from convolt.compiler.fuse import fuse
from convolt.compiler.host import release_freed_memory
from convolt.compiler.measure import CannotCaptureError, Form, Gradients, Probe
from convolt.compiler.numerics import TOLERANCE, Numerics, too_far
from convolt.compiler.rounds import DECIDED, LONG_STEP, in_turn, step_seconds
from convolt.compiler.rows import WORTH, Row, Timed, plain_row
from convolt.compiler.shares import Shares
from convolt.devices import multiplies_in_tiles

LAYERS = "layers"
RULES = 28  # of the choice; a new number makes earlier measurements void
SEARCH_SECONDS = 3.0  # what trying a form costs, mostly the compilation of its kernels when they are new
GOOD_WIN = 0.3  # share of a run that a good rewrite saves
MOST_OF_RUN = 0.15  # share of a run that its search may take
MOST_OF_RUN_COMPILING = 0.05  # share of a run that compiling may take, which wins seldom and must be done anew by the next run
MOST_SECONDS = 30.0  # of a search, or as many steps where these take longer: somebody waits, however long the run is
MOST_COMPILING = 40.0  # seconds that compiling kernels may take besides, which the next search on the machine need not do again
HALVED = 0.5  # what a rewrite leaves of the time of the layers that it replaces, at best


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
        compiling: how `torch.compile` may be used; None: not at all.

    Attributes:
        kept: names of the chosen rewrites.
        precision: the chosen one.
        compiled: the chosen form, where it is a compiled one.
        compiling: as given.
    """

    def __init__(self, model: nn.Module, traced: fx.GraphModule | None, probe: Probe, precision: torch.dtype, batch_size: int,
                 steps: int | None, lower: bool = False, compiling: Compiling | None = None) -> None:
        self._traced = traced
        self._probe = probe
        self.precision = precision
        self._lower = lower
        self.compiling = compiling
        self._batch_size = batch_size
        self._steps = steps
        self._model = self._best = model
        self._best_seconds = self._chosen_seconds = 0.0
        self._gain = 1.0  # of what was chosen over the layers
        self._began = self._compiled_before = 0.0
        self._shares: Shares | None = None
        self._numerics = Numerics(probe, model)
        self._rows: list[Row] = []
        self._unreached: set[str] = set()
        self.kept: list[str] = []
        self.compiled: Compiled | None = None

    def run(self) -> tuple[Row, ...]:
        """Returns the rows, "layers" first."""
        self._begin_clock()
        self._measure_best()
        for names in candidates_for(self._traced, self._lower):
            self._consider(names)
        self._reconsider_precision()
        self._compile()
        plain = (self._chosen_seconds or self._best_seconds) * self._gain  # as if it had been measured beside what was chosen last
        why = self._why_not_layers() or f"{self._batch_size / plain:,.0f} images/s forward and backward"
        if not (self._why_not_layers() or self._numerics.reference or any(row.seconds for row in self._rows)):
            why = "the form that needs no search"
        layers = plain_row(LAYERS, "refused" if self._why_not_layers() else "chosen", why, plain, self._batch_size)
        return layers, *self._rows

    def _consider(self, names: tuple[str, ...]) -> None:
        """Tries rewrites, or adds a row that says why not; for lack of time only one, whether they would be tried together or alone."""
        if names != (BFLOAT16,) and self._changes_nothing(names):
            return
        why = self._not_worth()
        late = "" if why else self._out_of_time()
        if late and self._unreached.issuperset(names):
            return
        if late:
            self._unreached.update(names)
            tried = self._numerics.reference is not None  # if time was too short for any, the next run's will be
            self._rows.append(plain_row(", ".join(names), "refused", late, doubt=tried))
        elif why := why or self._hopeless(names):
            self._rows.append(plain_row(", ".join(names), "refused", why))
        else:
            self._try(names)

    def _begin_clock(self) -> None:
        self._began, self._compiled_before = self._probe.clock(), self._probe.compiling_seconds()

    def _measure_best(self) -> float:
        self._best_seconds = step_seconds(self._probe, (self._best, self.precision), halve=self._on_cpu())
        return self._best_seconds

    def _on_cpu(self) -> bool:
        return all(p.device.type == "cpu" for p in self._model.parameters())

    def _why_not_layers(self) -> str:
        chosen = [row for row in self._rows if row.verdict == "chosen"]
        if not chosen:
            return ""
        return "another form is faster" if any(row.seconds for row in chosen) else "another form was asked for"

    def _changes_nothing(self, names: tuple[str, ...]) -> bool:
        """Whether rewrites that were chosen before leave nothing for these."""
        assert self._traced is not None
        return fuse(self._traced, (*self.kept, *names)).count == fuse(self._traced, tuple(self.kept)).count

    def _hopeless(self, names: tuple[str, ...]) -> str:
        """Returns why rewrites cannot be worth a change, by rule or in a long step, which costs seconds to try; "" if they may be."""
        if self._traced is None or names == (BFLOAT16,) or not self._on_cpu():  # elsewhere nodes take no time, but what waits for them
            return ""
        if names == ("winograd conv",) and self.precision == torch.bfloat16 and multiplies_in_tiles():
            return "this processor multiplies bfloat16 in tiles (AMX), beside which the transforms take longer than they save"
        if names == ("onednn products",) and self.precision == torch.bfloat16:
            return "products in bfloat16 are oneDNN's in any case"
        if self._best_seconds < LONG_STEP:
            return ""
        refused = (row for row in self._rows if row.name.startswith("bn+") and row.seconds and row.verdict == "refused")
        slow = next((row for row in refused if names == ("bn",) and (row.seconds or 0.0) > DECIDED * self._best_seconds), None)
        if slow is not None:
            return f"{slow.name!r}, which saves more, is slower"
        self._shares = self._shares or Shares(self._traced, self._probe, self.precision)
        share = self._shares.of(fuse(self._traced, names).covers)
        return f"the layers that it replaces take {share:.0%} of the time" if share * HALVED < 1 - 1 / WORTH else ""

    def _not_worth(self) -> str:
        """Returns why the run cannot repay any candidate; "" if it can."""
        run = self._best_seconds * (self._steps or 0)
        return f"the run takes about {run:.0f} s, too short to repay the search" if self._steps and run * GOOD_WIN < SEARCH_SECONDS else ""

    def _out_of_time(self) -> str:
        """Returns why the run, or who waits for it, cannot repay one more candidate; "" if it can."""
        spent = self._probe.clock() - self._began
        once = min(MOST_COMPILING, self._probe.compiling_seconds() - self._compiled_before)
        if spent - once + SEARCH_SECONDS > max(MOST_SECONDS, MOST_SECONDS * self._best_seconds):
            return f"the search has taken {spent:.0f} s" + (f", {once:.0f} of them for compiling kernels" if once >= 1 else "")
        run = self._best_seconds * (self._steps or 0)
        if self._steps is not None and spent + SEARCH_SECONDS > max(SEARCH_SECONDS, run * MOST_OF_RUN):
            return f"the search has taken {spent:.0f} s, enough for a run of about {run:.0f} s"
        return ""

    def _try(self, names: tuple[str, ...]) -> None:
        """Makes a change to the best form if it is right and faster, and adds its row in any case: if it was made, one for each name."""
        self._numerics.begin(self.precision)
        self._try_beside(names)
        release_freed_memory()

    def _try_beside(self, names: tuple[str, ...]) -> None:
        lower, name = names == (BFLOAT16,), ", ".join(names)
        precision = torch.bfloat16 if lower else self.precision
        module = self._best if lower or self._traced is None else fuse(self._traced, (*self.kept, *names)).module
        errors = self._numerics.errors(module, precision)
        allowed = TOLERANCE[precision] if lower else self._numerics.allowed
        if why := too_far(errors, allowed):
            self._rows.append(Row(name, None, None, *errors[:2], "refused", why))
            return
        timed = self._timed(name, (module, precision), errors)
        if timed is None:
            return
        row = self._row(name, timed, errors, self._probe.kept_bytes(module, precision))
        if row.verdict == "refused":
            self._rows.append(replace(row, doubt=timed.doubt))
            self._best_seconds = timed.before
        else:
            why = row.why + (" (all of " + name + ")" if len(names) > 1 else "")
            self._rows += [replace(row, name=each, why=why, doubt=timed.doubt) for each in names]
            self._best, self.precision = module, precision
            self._take(timed)
            if lower:
                self._numerics.allow(errors, precision)
            else:
                self.kept += names

    def _reconsider_precision(self) -> None:
        """Takes float32 after all where the rewrites that were found since bfloat16 was chosen are as fast in it."""
        at = next((i for i, row in enumerate(self._rows) if row.name == BFLOAT16 and row.verdict == "chosen"), None)
        if at is None or not self.kept or not self._numerics.reference or self._out_of_time():
            return
        plain, fused = (self._numerics.errors(form, torch.float32) for form in (self._model, self._best))
        wrong = too_far(fused, self._numerics.allowed_beside(plain, torch.float32))
        timed = None if wrong else self._timed(LAYERS, (self._best, torch.float32), fused, worth=1.0)
        if timed is not None and timed.ratio >= timed.worth:
            why = f"float32 is {timed.ratio:.2f}× as fast with the rewrites below"
            self._rows[at] = replace(self._rows[at], verdict="refused", why=why, doubt=timed.doubt)
            last = max(i for i, row in enumerate(self._rows) if row.verdict == "chosen")
            self._rows[last] = replace(self._rows[last], seconds=timed.seconds, images_per_second=self._batch_size / timed.seconds)
            self.precision = torch.float32
            self._take(timed)

    def _take(self, timed: Timed) -> None:
        self._best_seconds = self._chosen_seconds = timed.seconds
        self._gain *= timed.ratio

    def _timed(self, name: str, candidate: Form, errors: tuple[float, float, float], worth: float | None = None) -> Timed | None:
        """Measures a candidate beside the best form so far; None, after adding its row, where the step is a graph that cannot hold it."""
        try:
            timed = in_turn(self._probe, candidate, (self._best, self.precision), self._best_seconds, self._best_seconds)
            return replace(timed, worth=worth_of(name, timed) if worth is None else worth)
        except CannotCaptureError as error:
            self._rows.append(Row(name, None, None, *errors[:2], "refused", str(error)))
            return None

    def _row(self, name: str, timed: Timed, errors: Sequence[float], memory: int | None) -> Row:
        """Returns the row of a form that is right, from its time and that of the best form so far."""
        seconds, faster = timed.seconds, timed.ratio
        rate = f"{self._batch_size / seconds:,.0f} images/s forward and backward, {faster:.2f}× without it"
        refused = "refused", f"{faster:.2f}× as fast as without it, not worth a change"
        verdict, why = ("chosen", rate) if faster >= timed.worth else refused
        return Row(name, seconds, self._batch_size / seconds, errors[0], errors[1], verdict, why, memory)

    # -- what an earlier search left in doubt --------------------------------------------------------------------------

    def reconsider(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Returns an earlier search's rows after trying what it had no time for, and measuring once more what is in doubt.

        The latter is measured with and without it in the form that was found. A verdict that is confirmed is in doubt no more. One that
        is contradicted stays for now, so that a repeated run takes the same form; if the next run contradicts it as well, it is replaced.
        """
        self._begin_clock()
        self.kept = [row.name for row in rows if row.verdict == "chosen" and row.name in REWRITE_NAMES]
        if any(row.verdict == "chosen" and row.name == BFLOAT16 for row in rows):
            self.precision = torch.bfloat16
        self._best = self._form(self.kept)
        self._measure_best()
        found: list[Row] = []
        for row in rows:
            if any(known.name == row.name and known.verdict == "chosen" for known in found):
                continue  # with others of its kind, which an earlier search had refused together and one by one
            if not row.doubt or self._not_worth() or self._out_of_time():
                found.append(row)
            else:
                found += self._late(row) if row.loss_error is None else self._again(row)
        changed = any(row.verdict == "chosen" for row in found[1:])
        why = "another form is faster" if changed else f"{rows[0].images_per_second or 0:,.0f} images/s forward and backward"
        return replace(rows[0], verdict="refused" if changed else "chosen", why=why), *found[1:]

    def _late(self, row: Row) -> list[Row]:
        """Returns the rows of what an earlier search had no time to try: of several rewrites together, and then of each."""
        before, names = len(self._rows), tuple(row.name.split(", "))
        for each in (names, *((name,) for name in names if len(names) > 1)):
            self._consider(each)
        return self._rows[before:]

    def _form(self, names: Sequence[str]) -> nn.Module:
        return fuse(self._traced, tuple(names)).module if names and self._traced is not None else self._model

    def _again(self, row: Row) -> list[Row]:
        """Returns the rows of a candidate after one more measurement: one, or one for each of several rewrites that are taken together."""
        names = row.name.split(", ")
        lower, without = row.name == BFLOAT16, [name for name in self.kept if name not in names]
        form = self._form(self.kept) if lower else self._form([*without, *names])
        candidate = form, torch.bfloat16 if lower else self.precision
        other = (form, torch.float32) if lower else (self._form(without), self.precision)
        try:
            timed = in_turn(self._probe, candidate, other, self._best_seconds)
        except CannotCaptureError:
            return [row]  # what was found before stays, and so does the doubt
        timed = replace(timed, worth=worth_of(row.name, timed))
        new = self._row(row.name, timed, (row.loss_error or 0.0, row.gradient_error or 0.0), row.memory)
        if new.verdict == row.verdict:
            return [replace(row, doubt=False, again="")]
        if row.again == new.verdict:
            why = f"{new.why} (so two runs found after one that found the contrary)"
            return [replace(new, name=name, why=why) for name in (names if new.verdict == "chosen" else [row.name])]
        return [replace(row, again=new.verdict)]

    # -- torch.compile ---------------------------------------------------------------------------------------------

    def _compile(self) -> None:
        """Tries the best form compiled, and, where it has rewrites, the layers compiled: the compiler has its own."""
        if self.compiling is None:
            return
        form = self._best
        for name, candidate in ((COMPILED, form), (LAYERS_COMPILED, self._model)):
            if name == LAYERS_COMPILED and (form is self._model or self.compiling.asked):
                return
            if why := self.compiling.refused or self._too_short_to_compile(candidate):
                self._rows.append(plain_row(name, "refused", why))
                return
            self._try_compiled(name, candidate)
            release_freed_memory()

    def _graph_of(self, form: nn.Module) -> nn.Module | None:
        return self.compiling.graph if form is self._model and self.compiling else None

    def compile_again(self, form: nn.Module, precision: torch.dtype) -> Compiled:
        """Returns a form that an earlier search had compiled, compiled.

        Raises:
            CannotCompileError: that is no longer possible.
        """
        assert self.compiling is not None
        module = Compiled(form, self.compiling.shapes, self._graph_of(form), self._probe.clock)
        module.try_out(lambda: self._probe.gradients(module, precision, whole=True))
        return module

    def _too_short_to_compile(self, form: nn.Module) -> str:
        """Returns why the run cannot repay a compilation; "" if it can, or if it was asked for."""
        assert self.compiling is not None
        if self.compiling.asked:
            return ""
        if self._steps is None:
            return "a run of unknown length may not repay it"
        run, needed = self._best_seconds * self._steps, seconds_of(form)
        if needed > run * MOST_OF_RUN_COMPILING:
            return f"the run takes about {run:.0f} s, too short to repay about {needed:.0f} s of compiling"
        return ""

    def _try_compiled(self, name: str, form: nn.Module) -> None:
        """Compiles a form and takes it if it is right and faster, or asked for; adds its row in any case."""
        assert self.compiling is not None
        module = Compiled(form, self.compiling.shapes, self._graph_of(form), self._probe.clock)
        if why := self._probe.too_large():
            self._rows.append(plain_row(name, "refused", why))
            return
        if self._probe.parts > 1:  # its code is for whole batches
            self._probe.whole()
            self._best_seconds = self._probe.seconds(self._best, self.precision, budget=0.0, least=1)
        try:
            reference = self._probe.reference(whole=True)  # of the shape that the code is for
            own = self._probe.gradients(form, self.precision, whole=True).errors(reference)
            began = self._probe.clock()
            module.deadline = None if self.compiling.asked else began + MOST_OF_RUN_COMPILING * self._best_seconds * (self._steps or 0)
            found: Gradients = module.try_out(lambda: self._probe.gradients(module, self.precision, whole=True))
        except (CannotCompileError, MemoryError, torch.OutOfMemoryError) as error:
            self._rows.append(plain_row(name, "refused", str(error).splitlines()[0]))
            return
        errors = found.errors(reference)
        module.deadline, took = None, f"compiled in {self._probe.clock() - began:.0f} s"
        allowed = [max(stated, 2 * error) for stated, error in zip(TOLERANCE[self.precision], own, strict=True)]
        if why := too_far(errors, allowed):
            self._rows.append(Row(name, None, None, *errors[:2], "refused", why))
            return
        if self.compiling.asked:
            self._rows.append(Row(name, None, None, *errors[:2], "chosen", f"asked for, {took}"))
            self.compiled = module
            return
        timed = self._timed(name, (module, self.precision), errors)
        if timed is None:
            return
        row = self._row(name, timed, errors, None)
        self._rows.append(replace(row, why=f"{row.why}, {took}"))
        if row.verdict == "refused":
            self._best_seconds = timed.before
            return
        self._best, self.compiled = module, module
        self._take(timed)
        if name == LAYERS_COMPILED:
            self._rows = [replace(row, verdict="refused", why=f"{row.why}; the layers compiled are faster")
                          if row.name in (*self.kept, COMPILED) and row.verdict == "chosen" else row for row in self._rows]
            self.kept = []
