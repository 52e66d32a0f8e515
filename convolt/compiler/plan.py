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
from convolt.compiler.fuse import REWRITES, Fused, fuse
from convolt.compiler.fused import Norm
from convolt.compiler.host import keep_freed_memory
from convolt.compiler.measure import Probe
from convolt.compiler.trace import Untraceable, trace
from convolt.errors import ArgumentError, did_you_mean, explain

GRAPH = "graph of the whole step"

TOLERANCE = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (2e-2, 1e-1)}
"""Relative errors of loss and gradients against float64 that are always allowed, by the candidate's precision."""

RULES = 2  # of the choice; a new number makes earlier measurements void
SEARCH_SECONDS = 3.0  # what trying a form costs, mostly the compilation of its kernels when they are new
GOOD_WIN = 0.3  # share of a run that a good rewrite saves
WORTH = 1.03  # a form must be this much faster to be taken


@dataclass(frozen=True)
class Row:
    """One candidate and what became of it.

    Attributes:
        name: of the form.
        seconds: of forward and backward of one batch; None where it was not measured.
        images_per_second: the same as a rate.
        loss_error, gradient_error: relative, against float64; None where not measured.
        verdict: "chosen" or "refused".
        why: in one line.
    """

    name: str
    seconds: float | None
    images_per_second: float | None
    loss_error: float | None
    gradient_error: float | None
    verdict: str
    why: str


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
        execution: "eager", or "graph": the whole step captured once and replayed.
        micro_batch: most samples that are computed at once; None: whole batches.
        rows: the candidates.
        cached: whether the measurements are from an earlier run.
    """

    device: str
    precision: str
    form: str
    fusions: dict[str, int]
    memory: str
    threads: int
    execution: str = "eager"
    micro_batch: int | None = None
    rows: tuple[Row, ...] = ()
    cached: bool = False
    before: str = field(default="", repr=False)
    after: str = field(default="", repr=False)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Plan:
        """Returns the plan that `dataclasses.asdict` made the values from."""
        return Plan(**values | {"rows": tuple(Row(**row) for row in values["rows"])})

    def describe(self) -> str:
        """Returns the plan in one or two lines."""
        fused = ", ".join(f"{name} ×{count}" for name, count in self.fusions.items())
        form = f"fused ({fused})" if self.form == "fused" else "layer by layer"
        chosen = next((row for row in self.rows if row.verdict == "chosen" and row.name != GRAPH), None)
        step = ", whole step in one graph" if self.execution == "graph" else ""
        step += f", at most {self.micro_batch} samples at once" if self.micro_batch else ""
        lines = [f"Plan: {self.device}, {self.precision}, {form}{step}, freed memory {self.memory}, {self.threads} threads"
                 + (f": {chosen.why}" if chosen else "") + (" (measured earlier)" if self.cached else "")]
        shown = [row for row in self.rows if row.verdict == "refused" and not (row.name == GRAPH and self.device == "cpu")]
        lines += [f"      not {row.name}: {row.why}" for row in shown]
        return "\n".join(lines)

    def with_execution(self, refused: str | None) -> Plan:
        """Returns the plan with the whole step in a graph, or with the reason why not."""
        if refused is None:
            return dataclasses.replace(self, execution="graph", rows=(*self.rows, _row(GRAPH, "chosen", "the rule on CUDA")))
        return dataclasses.replace(self, execution="eager", rows=(*self.rows, _row(GRAPH, "refused", refused)))

    def as_fusions(self) -> str | tuple[str, ...]:
        """Returns what `compile(fusions=…)` takes to get this form again without measuring."""
        return tuple(self.fusions) if self.form == "fused" else "none"

    def graph(self) -> str:
        """Returns the model's graph before and after the rewrites."""
        return f"before:\n{self.before}\n\nafter:\n{self.after}"


def make_plan(model: nn.Module, inputs: Sequence[Tensor], probe: Probe | None, *, precision: torch.dtype, device: torch.device,
              batch_size: int, steps: int | None, fusions: Any = "auto", cache: Path | None = None) -> tuple[Plan, nn.Module]:
    """Returns the plan and the module to run in the model's place (the model itself where nothing was rewritten).

    Args:
        model: built, on its device.
        inputs: an example of what its forward takes, two samples are enough.
        probe: measures candidates on the first batch; None where no batch can be looked at before training.
        precision: of the computation.
        device: where it runs.
        batch_size: of the steps.
        steps: how many are to come; None if unknown. A short run is not worth a search.
        fusions: "auto", "none", "all", or names of rewrites; all but "auto" are taken without measuring.
        cache: folder for measurements; None keeps none.
    """
    names = check_fusions(fusions)
    base = Plan(str(device), str(precision).removeprefix("torch."), "layers", {}, keep_freed_memory(), torch.get_num_threads())
    if fusions == "none":
        return dataclasses.replace(base, rows=(_row("layers", "chosen", "asked for"),)), model
    traced = trace(model, inputs)
    if isinstance(traced, Untraceable):
        return dataclasses.replace(base, rows=(_row("layers", "chosen", "the only form"), _row("fused", "refused", str(traced)))), model
    base = dataclasses.replace(base, before=_text(traced))
    fused = fuse(traced, names)
    if not fused.count:
        nothing = _row("fused", "refused", "no rewrite of the table fits this model")
        return dataclasses.replace(base, rows=(_row("layers", "chosen", "the only form"), nothing)), model
    with_fusions = dataclasses.replace(base, form="fused", fusions=fused.count, after=_text(fused.module))
    if names is not None or fusions == "all":
        return dataclasses.replace(with_fusions, rows=(_row("fused", "chosen", "asked for"),)), fused.module
    if probe is None:
        unseen = _row("fused", "refused", "a stream's batches and a loss of your own cannot be tried before training; ask for it with fusions='all'")
        return dataclasses.replace(base, rows=(_row("layers", "chosen", "the form that needs no search"), unseen)), model
    file = _cache_file(cache, base, inputs, batch_size, steps)
    return _search(model, fused, probe, base, with_fusions, precision, batch_size, steps, file)


def _search(model: nn.Module, fused: Fused, probe: Probe, plain_plan: Plan, fused_plan: Plan, precision: torch.dtype, batch_size: int,
            steps: int | None, cache: Path | None) -> tuple[Plan, nn.Module]:
    """Measures both forms, unless the run is too short for that or it was done before."""
    known = _read_cache(cache)
    rows = known or _measure(model, fused.module, probe, precision, batch_size, steps)
    if known is None:
        _write_cache(cache, rows)
    chosen = next(row.name for row in rows if row.verdict == "chosen")
    plan = dataclasses.replace(fused_plan if chosen == "fused" else plain_plan, rows=rows, cached=known is not None)
    return plan, fused.module if chosen == "fused" else model


def _measure(model: nn.Module, module: nn.Module, probe: Probe, precision: torch.dtype, batch_size: int,
             steps: int | None) -> tuple[Row, ...]:
    """Returns the rows of both forms; stops before the search where the run is too short to repay it."""
    plain = probe.seconds(model, precision, budget=0.3)
    if steps is not None and plain * steps * GOOD_WIN < SEARCH_SECONDS:
        why = f"the run takes about {plain * steps:.0f} s, too short to repay the search"
        return _row("layers", "chosen", "the form that needs no search", plain, batch_size), _row("fused", "refused", why)
    return _compare(model, module, probe, precision, batch_size, plain)


def _compare(model: nn.Module, module: nn.Module, probe: Probe, precision: torch.dtype, batch_size: int, plain: float) -> tuple[Row, Row]:
    """Returns the rows of the plain and the fused form: first whether it is right, then how fast it is."""
    reference = probe.reference()
    plain_errors = probe.gradients(model, precision).errors(reference)
    loss_error, gradient_error = probe.gradients(module, precision).errors(reference)
    allowed = [max(stated, 2 * error) for stated, error in zip(TOLERANCE[precision], plain_errors, strict=True)]
    if not (loss_error <= allowed[0] and gradient_error <= allowed[1]):
        why = f"loss off by {loss_error:.1e} (allowed {allowed[0]:.0e}), gradients by {gradient_error:.1e} (allowed {allowed[1]:.0e})"
        return (_row("layers", "chosen", "the one that is right", plain, batch_size),
                Row("fused", None, None, loss_error, gradient_error, "refused", why))
    seconds = probe.seconds(module, precision, budget=1.0)
    plain = min(plain, probe.seconds(model, precision, budget=1.0))
    faster = plain / seconds
    if faster < WORTH:
        return (_row("layers", "chosen", f"{batch_size / plain:,.0f} images/s forward and backward", plain, batch_size),
                Row("fused", seconds, batch_size / seconds, loss_error, gradient_error, "refused",
                    f"{faster:.2f}× as fast as layer by layer, not worth a change"))
    return (_row("layers", "refused", f"{batch_size / plain:,.0f} images/s", plain, batch_size),
            Row("fused", seconds, batch_size / seconds, loss_error, gradient_error, "chosen",
                f"{batch_size / seconds:,.0f} images/s forward and backward, {faster:.2f}× layer by layer"))


def _row(name: str, verdict: str, why: str, seconds: float | None = None, batch_size: int = 0) -> Row:
    return Row(name, seconds, batch_size / seconds if seconds else None, None, None, verdict, why)


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


def _cache_file(folder: Path | None, plan: Plan, inputs: Sequence[Tensor], batch_size: int, steps: int | None) -> Path | None:
    """Returns where the choice for this model, batch, length of run, hardware and software is kept.

    Short runs keep theirs too: a repeated run must take the same form, or its results would differ in the last bits.
    """
    if folder is None:
        return None
    processor = platform.processor() or platform.machine()
    if plan.device.startswith("cuda"):
        processor = torch.cuda.get_device_name(plan.device)
    shapes = [tuple(x.shape[1:]) for x in inputs]
    software = [RULES, [rewrite.name for rewrite in REWRITES], __version__, torch.__version__]
    hardware = [plan.device, processor, plan.threads, os.cpu_count()]
    key = json.dumps([plan.before, shapes, batch_size, steps, plan.precision, software, hardware])
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


