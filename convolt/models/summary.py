"""`summary()`: layers, output shapes, parameters and FLOPs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from convolt.errors import StateError, explain
from convolt.layers.base import Layer
from convolt.layout import Shape, inside_shape, outside_shape


@dataclass
class Row:
    """One call of one layer.

    Attributes:
        name, kind: of the layer.
        output: shape(s) of the output, batch first (None), channels last.
        parameters: number of values in its weights.
        flops: floating-point operations of one forward pass of one sample (convolutions and matrix products; a multiply
            and an add are two).
        frozen: "frozen" or "partly frozen" where training leaves weights as they are, else "".
    """

    name: str
    kind: str
    output: Any
    parameters: int
    flops: int
    frozen: str = ""


@dataclass
class Summary:
    """What `summary` shows, as data.

    Attributes:
        name, kind: of the model.
        rows: one for each call of a layer.
        trainable, frozen: number of values in parameters that training changes, and in all other weights.
    """

    name: str
    kind: str
    rows: list[Row]
    trainable: int
    frozen: int

    @property
    def flops(self) -> int:
        """FLOPs of one forward pass of one sample."""
        return sum(row.flops for row in self.rows)

    def as_text(self, width: int | None = None) -> str:
        """Returns the table as text of at most `width` columns (by default as many as it needs)."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, title=f'{self.kind} "{self.name}"', title_justify="left", title_style="bold")
        table.add_column("Layer", no_wrap=True)
        table.add_column("Output shape", no_wrap=True)
        table.add_column("Parameters", justify="right", no_wrap=True)
        table.add_column("FLOPs", justify="right", no_wrap=True)
        for row in self.rows:
            kind = f"{row.kind}, {row.frozen}" if row.frozen else row.kind
            table.add_row(f"{row.name} ({kind})", str(row.output), f"{row.parameters:,}", human(row.flops) if row.flops else "–")
        out = io.StringIO()
        console = Console(file=out, width=width or 120, color_system=None)
        console.print(table)
        total = self.trainable + self.frozen
        console.print(f"Parameters: {total:,} ({bytes_text(4 * total)} in float32), trainable {self.trainable:,}, "
                      f"frozen {self.frozen:,}", highlight=False)
        console.print(f"FLOPs of one forward pass of one sample: {human(self.flops)} (convolutions and matrix products)", highlight=False)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def human(number: float) -> str:
    """Returns a count with a unit: 1,234,567 → "1.23 M"."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000 or unit == "T":
            break
        number /= 1000
    return f"{number:.3g} {unit}".rstrip()


def bytes_text(count: float) -> str:
    """Returns a size with a unit: 2048 → "2.0 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}"


def summarize(model: Any) -> Summary:
    """Returns the summary of a model whose input shapes are known.

    Raises:
        StateError: they are not known yet.
    """
    shapes = model.input_shapes
    if not shapes:
        raise StateError(explain(f"summary of {model.name!r}", "a model whose input shape is not known", "a built model",
                                 "Start it with Input(shape), call build((None, height, width, channels)), or fit it first."))
    rows = _run(model, shapes, unknown=32)
    if any(size is None for shape in shapes for size in shape[1:]):
        rows = [_unify(a, b) for a, b in zip(rows, _run(model, shapes, unknown=64), strict=True)]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kind = "Model" if type(model).__name__ in ("Functional", "Wrapped") else type(model).__name__
    return Summary(model.name, kind, rows, trainable, _all_values(model) - trainable)


def _all_values(module: nn.Module) -> int:
    return sum(t.numel() for t in module.state_dict().values())


def _frozen(module: nn.Module) -> str:
    """Returns how much of a part does not learn, as a word."""
    learning = [p.requires_grad for p in module.parameters()]
    return "" if all(learning) else "partly frozen" if any(learning) else "frozen"


def _unify(a: Row, b: Row) -> Row:
    def shape(x: Any, y: Any) -> Any:
        if isinstance(x, list):
            return [shape(i, j) for i, j in zip(x, y, strict=True)]
        return tuple(i if i == j else None for i, j in zip(x, y, strict=True))

    return Row(a.name, a.kind, shape(a.output, b.output), a.parameters, a.flops, a.frozen)


def _parts(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Returns the modules that get a row: layers, nested models as one, and PyTorch modules without children."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        is_leaf = isinstance(child, Layer) or not any(True for _ in child.children())
        found += [(path, child)] if is_leaf else _parts(child, f"{path}.")
    return found


def _recurrent_flops(x: Any, *shapes: Any, **_: Any) -> int:
    """Returns the FLOPs of the products in a fused recurrent layer: each step of each sample meets each weight once."""
    weights = [shape for shape in shapes[:4] if len(shape) == 2] or [shape for shape in shapes[0] if len(shape) == 2]
    return int(2 * x[0] * x[1] * sum(rows * columns for rows, columns in weights))


_FORMULAS = flop_registry | {operation: shape_wrapper(_recurrent_flops)  # type: ignore[no-untyped-call]
                             for operation in (torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten._cudnn_rnn)}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of what runs in it, by PyTorch's formulas. PyTorch's own counter imports its compiler, which takes seconds."""

    supports_higher_order_operators = True
    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True is what imports the compiler, which never sees this

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(getattr(func, "overloadpacket", None))
        if formula is None and hasattr(func, "decompose"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=result) if formula else 0
        return result


def _run(model: Any, shapes: Sequence[Shape], unknown: int) -> list[Row]:
    """Runs one sample of zeros through the model and notes each call of a part."""
    rows: list[Row] = []
    counter = _Counter()  # type: ignore[no-untyped-call]
    before: dict[nn.Module, int] = {}
    handles = []
    for path, part in _parts(model):

        def start(module: nn.Module, inputs: Any) -> None:
            before[module] = counter.total

        def end(module: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            name = module.name if isinstance(module, Layer) else path
            kind = type(module.module).__name__ if hasattr(module, "module") else type(module).__name__
            flops = counter.total - before[module]
            rows.append(Row(name, kind, _shape_of(output), _all_values(module), flops, _frozen(module)))

        handles += [part.register_forward_pre_hook(start), part.register_forward_hook(end)]
    parameter = next(iter(model.parameters()), torch.empty(0))
    dtypes = model.input_dtypes or ["float32"] * len(shapes)
    inputs = [torch.zeros(inside_shape([1, *(unknown if s is None else s for s in shape[1:])]), dtype=getattr(torch, dtype),
                          device=parameter.device) for shape, dtype in zip(shapes, dtypes, strict=True)]
    try:
        with counter:
            model.run_once(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _shape_of(output: Any) -> Any:
    if isinstance(output, Tensor):
        return (None, *outside_shape(output)[1:])
    values = output.values() if isinstance(output, dict) else output
    return [_shape_of(value) for value in values]
