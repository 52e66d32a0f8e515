"""The plan: in which form the step runs, found by rule and by a short measurement, with a reason for each refusal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from convolt import __version__
from convolt.compiler.candidates import BFLOAT16
from convolt.compiler.compiled import COMPILED, LAYERS_COMPILED, CannotCompileError, Compiled, Compiling, Shapes
from convolt.compiler.fuse import REWRITES, Fused, fuse
from convolt.compiler.fused import Norm
from convolt.compiler.host import keep_freed_memory
from convolt.compiler.measure import Probe
from convolt.compiler.rows import Row, plain_row
from convolt.compiler.search import LAYERS, RULES, Search
from convolt.compiler.trace import Untraceable, trace
from convolt.devices import has_slow_mkl, tf32_in_use, why_not_bfloat16
from convolt.errors import ArgumentError, did_you_mean, explain

GRAPH = "graph of the whole step"
SEVERAL = "graph of several steps"
REPLAY = "replay of the whole step"
ASKED_FOR_EAGER = "asked for eager"


@dataclass(frozen=True)
class Plan:
    """How the step runs. JSON both ways through `dataclasses.asdict` and `Plan.from_json`.

    Attributes:
        device: of the computation.
        precision: "float32" or "bfloat16".
        form: "layers" (each by itself) or "fused".
        fusions: how often each rewrite of the table was used.
        memory: what becomes of freed host memory.
        threads: of the host's computation.
        tf32: operations on float32 that are computed in TF32, in words; empty where there are none.
        execution: "eager"; "compile": the form is compiled by `torch.compile`; or "graph": the whole step is captured once and replayed,
            with the compiled form where `compiled_for` has one; or "replay": the whole step is recorded on a CPU and replayed.
        compiled_for: shapes of the inputs for which the form is compiled, other batches run in the form as it is; empty: for none.
        micro_batch: most samples that are computed at once; None: whole batches.
        steps_per_execution: how many steps are executed between two calls of the callbacks, on CUDA as one graph.
        residency: "resident" (all samples lie on the device) or "streamed" (batches come from the host).
        residency_why: how much there is, or why it does not lie on the device.
        rows: the candidates.
        cached: whether the measurements are from an earlier run.
        provisional: whether this is the form of the first step, before the plan is made.
    """

    device: str
    precision: str
    form: str
    fusions: dict[str, int]
    memory: str
    threads: int
    tf32: str = ""
    execution: str = "eager"
    compiled_for: Shapes = ()
    micro_batch: int | None = None
    steps_per_execution: int = 1
    residency: str = "resident"
    residency_why: str = ""
    rows: tuple[Row, ...] = ()
    cached: bool = False
    provisional: bool = False
    before: str = field(default="", repr=False)
    after: str = field(default="", repr=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON values, without the graphs."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("before", "after")}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Plan:
        """Returns the plan that `dataclasses.asdict` made the values from.

        Raises:
            TypeError, KeyError, ValueError: the values are not those of a plan.
        """
        if values["precision"] not in ("float32", BFLOAT16):
            raise ValueError(f"precision {values['precision']!r}")
        shapes = tuple(tuple(int(size) for size in shape) for shape in values.get("compiled_for", ()))
        return Plan(**values | {"rows": tuple(Row(**row) for row in values["rows"]), "compiled_for": shapes})

    def describe(self) -> str:
        """Returns the plan in one or two lines."""
        fused = ", ".join(f"{name} ×{count}" for name, count in self.fusions.items())
        form = f"fused ({fused})" if self.form == "fused" else "layer by layer"
        how = (REPLAY, *(row.name for row in self.rows if row.name.startswith("graph of ")))
        chosen = next((row for row in reversed(self.rows) if row.verdict == "chosen" and row.name not in how), None)
        step = self._in_words()
        step += f", at most {self.micro_batch} samples at once" if self.micro_batch else ""
        precision = f"{self.precision} ({self.tf32} in TF32)" if self.tf32 and self.precision == "float32" else self.precision
        lines = [f"Plan: {self.device}, {precision}, {form}{step}, freed memory {self.memory}, {self.threads} threads"
                 + (f": {chosen.why}{self._gain()}" if chosen else "") + (" (measured earlier)" if self.cached else "")]
        shown = [row for row in self.rows if row.verdict == "refused" and row.name != LAYERS
                 and not (row.name == GRAPH and self.device == "cpu") and not (row.name == REPLAY and row.why == ASKED_FOR_EAGER)]
        lines += [f"      not {row.name}: {row.why}" for row in shown]
        doubts = ", ".join(row.name for row in self.rows if row.doubt)
        lines += [f"      in doubt, and measured by the next run: {doubts}"] if doubts else []
        lines += [f"      data {self.residency}: {self.residency_why}"] if self.residency_why else []
        return "\n".join(lines)

    def _gain(self) -> str:
        """Returns how much faster the form is than layer by layer, where several rewrites were measured."""
        timed = [row.seconds for row in self.rows if row.seconds and (row.verdict == "chosen" or row.name == LAYERS)]
        return f", {timed[0] / timed[-1]:.2f}× layer by layer" if len(timed) > 2 else ""

    def with_execution(self, refused: str | None, together: int | None = None, apart: str | None = None) -> Plan:
        """Returns the plan with the whole step in a graph, or with the reason why not.

        Args:
            refused: why no step can be captured; None if it can.
            together: steps between two calls of the callbacks; None: as they are.
            apart: why that many steps cannot be one graph.
        """
        count = together or self.steps_per_execution
        rows = [*self.rows, plain_row(GRAPH, "refused" if refused else "chosen", refused or "the rule on CUDA")]
        if together is not None and together > 1 and refused is None:
            rows.append(plain_row(f"graph of {count} steps", "refused" if apart else "chosen", apart or "asked for"))
        alone = "compile" if self.compiled_for else "eager"
        return dataclasses.replace(self, execution=alone if refused else "graph", steps_per_execution=count, rows=tuple(rows))

    def with_together(self, count: int, why: str) -> Plan:
        """Returns the plan with so many steps in a graph as were chosen, and with the reason."""
        rows = [row for row in self.rows if row.name == GRAPH or not row.name.startswith("graph of ")]
        name = f"graph of {count} steps" if count > 1 else SEVERAL
        rows.append(plain_row(name, "chosen" if count > 1 else "refused", why))
        return dataclasses.replace(self, steps_per_execution=count, rows=tuple(rows))

    def with_replay(self, refused: str | None) -> Plan:
        """Returns the plan with the whole step recorded and replayed on a CPU, or with the reason why not."""
        rows = [row for row in self.rows if row.name != REPLAY]
        rows.append(plain_row(REPLAY, "refused" if refused else "chosen", refused or "the rule on CPUs"))
        return dataclasses.replace(self, execution="eager" if refused else "replay", rows=tuple(rows))

    def step_seconds(self) -> float | None:
        """Returns the measured time of a step's forward and backward pass in the chosen form; None where none was measured."""
        return next((row.seconds for row in reversed(self.rows) if row.seconds and row.verdict == "chosen"), None)

    def _in_words(self) -> str:
        """Returns how the steps run, where that is worth a word."""
        count, compiled = self.steps_per_execution, ", compiled" if self.compiled_for else ""
        in_one = any(row.name == f"graph of {count} steps" and row.verdict == "chosen" for row in self.rows)
        if self.execution == "graph":
            return compiled + (f", {count} steps in one graph" if in_one else ", whole step in one graph")
        replayed = ", whole step replayed" if self.execution == "replay" else ""
        return compiled + replayed + (f", callbacks every {count} steps" if count > 1 else "")

    def as_fusions(self) -> str | tuple[str, ...]:
        """Returns what `compile(fusions=…)` takes to get this form again without measuring."""
        return tuple(self.fusions) if self.form == "fused" else "none"

    def as_execution(self) -> str:
        """Returns what `compile(execution=…)` takes to have the form compiled again, or not, without measuring."""
        return "compile" if self.compiled_for else "replay" if self.execution in ("graph", "replay") else "eager"

    def graph(self) -> str:
        """Returns the model's graph before and after the rewrites."""
        return f"before:\n{self.before}\n\nafter:\n{self.after}"


def first_plan(device: torch.device, precision: torch.dtype) -> Plan:
    """Returns how the first step runs, before anything is measured: layer by layer."""
    rows = (plain_row(LAYERS, "chosen", "the first step, before anything is measured"),)
    return dataclasses.replace(_bare(device, precision), rows=rows, provisional=True)


def _bare(device: torch.device, precision: torch.dtype) -> Plan:
    return Plan(str(device), _name(precision), "layers", {}, keep_freed_memory(), torch.get_num_threads(), tf32_in_use(device))


def make_plan(model: nn.Module, inputs: Sequence[Tensor], probe: Probe | None, *, precision: torch.dtype, device: torch.device,
              batch_size: int, steps: int | None, fusions: Any = "auto", cache: Path | None = None,
              lower: str | None = "", compiling: Compiling | None = None) -> tuple[Plan, nn.Module]:
    """Returns the plan and the module to run in the model's place (the model itself where nothing was rewritten).

    Args:
        model: built, on its device.
        inputs: an example of what its forward takes, two samples are enough.
        probe: measures candidates on the first batch; None where no batch can be looked at before training.
        precision: of the computation, where bfloat16 does not take its place.
        device: where it runs.
        batch_size: of the steps.
        steps: how many are to come; None if unknown. A short run is not worth a search.
        fusions: "auto", "none", "all", or names of rewrites; all but "auto" are taken without measuring.
        cache: folder for measurements; None keeps none.
        lower: None if bfloat16 is a candidate in place of `precision`, else why not; "" says nothing of it.
        compiling: how `torch.compile` may be used; None: not at all, and nothing is said of it.
    """
    names = check_fusions(fusions)
    base = _bare(device, precision)
    if precision == torch.bfloat16 and (why := why_not_bfloat16(device)):
        base = _with_row(base, "refused", "float32", f"bfloat16 was asked for, which as far as is known is not faster here: {why}")
    traced = None if fusions == "none" and compiling is None else trace(model, inputs)
    if isinstance(traced, Untraceable):
        base = _with_row(base, "refused", "fused", str(traced)) if fusions != "none" else base
        traced = None
    graph, traced = traced, None if fusions == "none" else traced
    candidates = traced is not None and fuse(traced, names).count
    module: nn.Module = model
    if traced is not None:
        base = dataclasses.replace(base, before=_text(traced))
        if not candidates:
            base = _with_row(base, "refused", "fused", "no rewrite of the table fits this model")
    if candidates and fusions != "auto":
        assert traced is not None
        fused = fuse(traced, names)
        base, module = _fused(_with_row(base, "chosen", "fused", "asked for"), fused), fused.module
    compiling = compiling and dataclasses.replace(compiling, graph=None if base.form == "fused" else graph)
    searched = traced if candidates and fusions == "auto" else None
    if probe is None and (searched is not None or lower is None):
        why = "a loss of your own cannot be tried before training"
        base = _with_row(base, "refused", "fused", f"{why}; ask for it with fusions='all'") if searched is not None else base
        base = _with_row(base, "refused", BFLOAT16, f"{why}; ask for it with precision='bfloat16'") if lower is None else base
    elif lower:
        base = _with_row(base, "refused", BFLOAT16, lower)
    if probe is None or (searched is None and lower is not None and compiling is None):
        if base.form == "layers":
            why = "asked for" if fusions == "none" else "the form that needs no search" if candidates else "the only form"
            base = dataclasses.replace(base, rows=(plain_row(LAYERS, "chosen", why), *base.rows))
        return _unmeasured(base, module, compiling)
    file = _cache_file(cache, base, module, inputs, batch_size, steps, [lower is None, probe.in_graphs], compiling)
    search = Search(module, searched, probe, precision, batch_size, steps, lower is None, compiling)
    return _search(module, searched, search, base, file)


def _unmeasured(plan: Plan, module: nn.Module, compiling: Compiling | None) -> tuple[Plan, nn.Module]:
    """Has the form compiled where that was asked for, though there is nothing to try it on."""
    if compiling is None or not compiling.asked:
        return plan, module
    if compiling.refused:
        return _with_row(plan, "refused", COMPILED, compiling.refused), module
    compiled = Compiled(module, compiling.shapes, compiling.graph)
    plan = _with_row(plan, "chosen", COMPILED, "asked for")
    return dataclasses.replace(plan, execution="compile", compiled_for=compiling.shapes), compiled


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _with_row(plan: Plan, verdict: str, name: str, why: str) -> Plan:
    return dataclasses.replace(plan, rows=(*plan.rows, plain_row(name, verdict, why)))


def _fused(plan: Plan, fused: Fused) -> Plan:
    return dataclasses.replace(plan, form="fused", fusions=fused.count, after=_text(fused.module))


def _search(module: nn.Module, traced: fx.GraphModule | None, search: Search, base: Plan, cache: Path | None) -> tuple[Plan, nn.Module]:
    """Takes the precision and the rewrites that pay, as a search finds now or as one found before."""
    known = _read_cache(cache)
    rows = known or search.run()
    compiled = any(row.name in (COMPILED, LAYERS_COMPILED) and row.verdict == "chosen" for row in rows)
    if known is not None and any(row.doubt for row in known) and not compiled:
        rows = search.reconsider(known)
    if rows != known:
        _write_cache(cache, rows)
    kept = tuple(row.name for row in rows if row.verdict == "chosen")
    precision = BFLOAT16 if BFLOAT16 in kept else base.precision
    if base.form == "fused":
        rows = rows[1:]  # the form was asked for
    plan = dataclasses.replace(base, precision=precision, rows=(*rows, *base.rows), cached=known is not None)
    rewrites = tuple(name for name in kept if name not in (LAYERS, BFLOAT16, COMPILED, LAYERS_COMPILED))
    if traced is not None and rewrites:
        fused = fuse(traced, rewrites)
        plan, module = _fused(plan, fused), fused.module
    if COMPILED not in kept and LAYERS_COMPILED not in kept:
        return plan, module
    return _compiled(plan, module, search)


def _compiled(plan: Plan, form: nn.Module, search: Search) -> tuple[Plan, nn.Module]:
    """Returns the plan with the compiled form, which the search has, or which an earlier one found and is compiled now."""
    try:
        module = search.compiled or search.compile_again(form, getattr(torch, plan.precision))
    except CannotCompileError as error:
        rows = tuple(dataclasses.replace(row, verdict="refused", why=f"{error}; an earlier run could compile it")
                     if row.name in (COMPILED, LAYERS_COMPILED) and row.verdict == "chosen" else row for row in plan.rows)
        return dataclasses.replace(plan, rows=rows), form
    assert search.compiling is not None
    return dataclasses.replace(plan, execution="compile", compiled_for=search.compiling.shapes), module


def check_fusions(fusions: Any) -> tuple[str, ...] | None:
    """Returns the names of rewrites that were asked for, or None for all of the table."""
    if fusions in ("auto", "all", "none"):
        return None
    known = [rewrite.name for rewrite in REWRITES]
    given = [fusions] if isinstance(fusions, str) else list(fusions)
    for name in given:
        if name not in known:
            raise ArgumentError(explain("fusions", repr(name), f"'auto', 'all', 'none' or names among {known}", did_you_mean(name, known)))
    return tuple(given)


def _text(module: fx.GraphModule) -> str:
    """Returns a graph as lines `name = what(inputs) → shape`."""
    lines = []
    for node in module.graph.nodes:
        inputs = ", ".join(str(n) for n in node.all_input_nodes)
        what = node.op
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            what = f"{type(called).__name__}({called.then})" if isinstance(called, Norm) else type(called).__name__
        elif node.op.startswith("call"):
            what = getattr(node.target, "__name__", str(node.target))
        shape = f" → {node.meta['shape'][1:]}" if "shape" in node.meta else ""
        lines.append(f"  {node.name} = {what}({inputs}){shape}" if node.op != "output" else f"  return {inputs}")
    return "\n".join(lines)


# -- measurements of earlier runs ----------------------------------------------------------------------------------


def _cache_file(folder: Path | None, plan: Plan, module: nn.Module, inputs: Sequence[Tensor], batch_size: int, steps: int | None,
                measured: list[bool], compiling: Compiling | None) -> Path | None:
    """Returns where the choice for this model, batch, length of run, hardware and software is kept.

    `measured` says whether bfloat16 is a candidate, and whether candidates are timed as graphs.

    Short runs keep theirs too: a repeated run must take the same form, or its results would differ in the last bits.
    """
    if folder is None:
        return None
    capabilities = [*sorted(torch.cpu.get_capabilities().items()), torch.backends.cpu.get_cpu_capability()]
    processor: Any = [platform.machine(), capabilities, has_slow_mkl()]  # a home folder may be shared by several kinds
    if plan.device.startswith("cuda"):
        processor = torch.cuda.get_device_name(plan.device)
    shapes = [tuple(x.shape[1:]) for x in inputs] + [(name, *p.shape) for name, p in module.named_parameters()]
    software = [RULES, [rewrite.name for rewrite in REWRITES], __version__, torch.__version__]
    hardware = [plan.device, processor, plan.threads, os.cpu_count()]
    compiled = None if compiling is None else [compiling.shapes, compiling.asked, not compiling.refused]
    asked = [plan.precision, plan.tf32, measured, compiled]
    key = json.dumps([plan.before, shapes, batch_size, steps, asked, plan.fusions, software, hardware])
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _read_cache(file: Path | None) -> tuple[Row, ...] | None:
    """Returns the rows of an earlier measurement; a damaged file is as good as none."""
    if file is None or not file.is_file():
        return None
    try:
        return tuple(Row(**row) for row in json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError):
        return None


def _write_cache(file: Path | None, rows: Sequence[Row]) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    temporary.write_text(json.dumps([dataclasses.asdict(row) for row in rows]), encoding="utf-8")
    os.replace(temporary, file)


