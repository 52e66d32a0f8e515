"""ONNX: a model for other runtimes, with its preprocessing layers, class names and any batch size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convolt.errors import ConvoltError, MissingPackageError, ModelFileError, explain
from convolt.formats.exported import Exported

OPSET = 20


def write(exported: Exported, path: Path) -> None:
    """Writes the model as ONNX through `torch.onnx`, with metadata (see `Exported.metadata`) as model properties.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
        ModelFileError: an operation of the model has no counterpart in ONNX; the first line of the reason is given.
    """
    _need("onnx", "onnxscript")
    examples = exported.examples()
    names = exported.output_names()
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program = torch.onnx.export(exported, examples, dynamo=True, verbose=False, opset_version=OPSET,
                                        input_names=exported.input_names, output_names=names,
                                        dynamic_shapes=(tuple({0: batch} for _ in examples),))  # one entry: *inputs
            assert program is not None, "torch.onnx.export returns a program when it is given no file"
            program.optimize()
    except ConvoltError:
        raise
    except Exception as error:  # the exporter wraps whatever goes wrong inside
        what = f"export of {exported.model.name!r} to ONNX"
        raise ModelFileError(explain(what, _first_cause(error), "operations that ONNX has")) from error
    for name, value in exported.metadata().items():
        program.model.metadata_props[name] = value
    program.model.graph.name = exported.model.name
    program.save(path, external_data=False)


def run(path: Path, inputs: Sequence[np.ndarray], batch_size: int = 256) -> list[np.ndarray]:
    """Returns the outputs of an ONNX file in onnxruntime on the CPU."""
    _need("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    parts = [session.run(None, {name: x[i : i + batch_size] for name, x in zip(names, inputs, strict=True)})
             for i in range(0, len(inputs[0]), batch_size)]
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


def _need(*packages: str) -> None:
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(explain("ONNX", f"no package {', '.join(missing)}", "the extra `onnx`", 'pip install "convolt[onnx]"'))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about itself (packages that it does not find, its own deprecations) from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_cause(error: BaseException) -> str:
    cause: Any = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
