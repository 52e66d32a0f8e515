"""`export`: writes a model for other programs, and keeps the file only if it computes the same.

The file is written beside its target, run by the program that it is for, and compared with the model on real samples;
then it is renamed. A file beyond the tolerance never gets the name that was asked for.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from convolt.errors import ArgumentError, DataError, ModelFileError, did_you_mean, explain
from convolt.formats import keras_run, onnx, program
from convolt.formats.exported import Exported
from convolt.formats.target import file_mode
from convolt.modes import evaluating

CHUNK_BYTES = 2**28
"""Of arrays that are compared at once."""

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""How far an output may be off: |after - before| ≤ ABSOLUTE + RELATIVE · |before|."""


class Format(Protocol):
    """Writes an `Exported` model, and runs such a file."""

    def write(self, exported: Exported, path: Path) -> None:
        """Writes the file."""

    def run(self, path: Path, inputs: Sequence[np.ndarray], batch_size: int = 256) -> list[np.ndarray]:
        """Returns the outputs of the file."""


FORMATS: Mapping[str, Any] = {"onnx": onnx, "pt2": program, "h5": keras_run, "keras": keras_run}


@dataclass(frozen=True)
class Comparison:
    """What the gate measured.

    Attributes:
        runner: the program that ran the file.
        samples: how many were compared.
        difference: the largest |after - before| of any output.
        excess: the largest |after - before| / (ABSOLUTE + RELATIVE · |before|); at most 1 passes.
        before, after: the metric of the model and of the file; None without labels.
    """

    runner: str
    samples: int
    difference: float
    excess: float
    before: float | None = None
    after: float | None = None


def export(model: Any, filepath: str | Path, format: str | None = None, *, input_dtype: str = "float32",
           check: Iterator[Sequence[np.ndarray]] | Sequence[np.ndarray] | np.ndarray | None = None,
           metric: Callable[[Sequence[np.ndarray]], float] | None = None) -> Comparison:
    """Writes a model as ONNX, `torch.export` program or Keras file, after comparing its outputs with the model's.

    Args:
        model: a built model.
        filepath: the target; its suffix is the format if `format` is None.
        format: "onnx", "pt2", "h5" or "keras".
        input_dtype: "float32", or "uint8" for files that take the bytes of pictures (ONNX and pt2).
        check: inputs to compare on, one array for each input, or an iterator of such, one part after the other; random ones if None.
        metric: computes a number from the outputs, to be the same (within 0.001) before and after.

    Returns:
        What was compared, and how far the outputs are apart.

    Raises:
        ArgumentError: an unknown format, or one that does not take `input_dtype`.
        ModelFileError: the model cannot be written in this format, or the file computes something else.
    """
    path = Path(filepath)
    name = (format or path.suffix.removeprefix(".")).lower()
    if name not in FORMATS:
        raise ArgumentError(explain("export(format)", repr(name), f"one of {list(FORMATS)}", did_you_mean(name, FORMATS)))
    if input_dtype != "float32" and name in ("h5", "keras"):
        raise ArgumentError(explain("export(input_dtype)", repr(input_dtype), f"'float32' for a file of Keras (.{name})",
                                    "Keras converts bytes itself; onnx and pt2 take input_dtype='uint8'."))
    if not path.parent.is_dir():
        raise ModelFileError(explain(str(path), f"the folder {str(path.parent)!r}, which does not exist", "a folder that exists"))
    devices = {p.device for p in model.parameters()}
    model.to("cpu")  # files hold no device
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".{name}", dir=path.parent)
    os.close(handle)
    try:
        with evaluating(model):
            exported = Exported(model, input_dtype)
            FORMATS[name].write(exported, Path(temporary))
            result = _compare(exported, Path(temporary), name, check, metric)
        _refuse_beyond_tolerance(path, name, result)
        os.chmod(temporary, file_mode())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
        if len(devices) == 1:
            model.to(devices.pop())
    return result


def _compare(exported: Exported, path: Path, name: str, check: Any, metric: Callable[[Sequence[np.ndarray]], float] | None) -> Comparison:
    difference = excess = 0.0
    samples = 0
    kept: tuple[list[list[np.ndarray]], list[list[np.ndarray]]] = ([], [])  # for the metric, which wants all outputs at once
    for inputs in _inputs(exported, check):
        with torch.no_grad():
            parts = [exported(*(torch.from_numpy(x[i : i + 256]) for x in inputs)) for i in range(0, len(inputs[0]), 256)]
        before = [np.concatenate([part.detach().numpy() for part in output]) for output in zip(*parts, strict=True)]
        after = FORMATS[name].run(path, inputs)
        shapes = [[list(y.shape) for y in outputs] for outputs in (before, after)]
        if shapes[0] != shapes[1]:
            raise ModelFileError(explain(f"the {name} file of {exported.model.name!r}", f"outputs of shapes {shapes[1]}", f"{shapes[0]}"))
        for a, b in zip(after, before, strict=True):
            gap = np.abs(a.astype(np.float64) - b)
            difference, excess = max(difference, _largest(gap)), max(excess, _largest(gap / (ABSOLUTE + RELATIVE * np.abs(b))))
        samples += len(inputs[0])
        if metric:
            kept[0].append(before)
            kept[1].append(after)
    if not samples:
        raise DataError(explain("export(check)", "no samples", "at least one"))
    found = [metric([np.concatenate(parts) for parts in zip(*outputs, strict=True)]) for outputs in kept] if metric else []
    return Comparison(_runner(name), samples, difference, excess, *found)


def _inputs(exported: Exported, check: Any) -> Iterator[list[np.ndarray]]:
    """Yields the inputs as the file takes them, one part after the other."""
    if check is None:
        yield [x.numpy() for x in exported.examples(32)]
        return
    for part in check if isinstance(check, Iterator) else [check]:
        arrays = [part] if isinstance(part, np.ndarray) else list(part)
        if len(arrays) != len(exported.dtypes) or len(arrays[0]) == 0:
            wanted = f"{len(exported.dtypes)}, one for each input, with samples"
            raise DataError(explain("export(check)", f"{len(arrays)} array(s)", wanted))
        each = sum(int(np.prod(x.shape[1:])) * np.dtype(dtype).itemsize for x, dtype in zip(arrays, exported.dtypes, strict=True))
        size = max(1, CHUNK_BYTES // max(1, each))
        for start in range(0, len(arrays[0]), size):
            yield [np.ascontiguousarray(x[start : start + size], dtype=dtype) for x, dtype in zip(arrays, exported.dtypes, strict=True)]


def _largest(values: np.ndarray) -> float:
    """Returns the largest value; infinity if one is no number."""
    return float(np.nan_to_num(values, nan=np.inf).max(initial=0.0))


def _refuse_beyond_tolerance(path: Path, name: str, result: Comparison) -> None:
    if result.excess > 1:
        raise ModelFileError(explain(f"export to {path}", f"outputs that are off by up to {result.difference:.3g} in {result.runner}",
                                     f"at most {ABSOLUTE:g} + {RELATIVE:g} · |value|", "No file was written."))
    if result.before is not None and result.after is not None and not abs(result.after - result.before) <= 1e-3:
        raise ModelFileError(explain(f"export to {path}", f"a metric of {result.after:.4f} in {result.runner}",
                                     f"{result.before:.4f}, the model's own", "No file was written."))


def _runner(name: str) -> str:
    """Returns what ran the file, with its version."""
    if name == "onnx":
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"
    if name == "pt2":
        return f"torch.export of PyTorch {torch.__version__}"
    return keras_run.runner() if importlib.util.find_spec("keras") else "Convolt's own reader (Keras is not installed)"
