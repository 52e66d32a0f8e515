"""MODEL: a built-in architecture's name, `file.py:function`, or a saved file."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from convolt import applications
from convolt.applications.family import STANDARD
from convolt.cli import model_options
from convolt.errors import ArgumentError, ConvoltError, ModelFileError, ShapeError, did_you_mean, explain
from convolt.formats import SUFFIXES
from convolt.formats.architecture import all_built
from convolt.models import Model, load_model

_GIVEN = ("input_shape", "classes", "num_classes")
"""Arguments of an architecture or of the user's function that DATA decides."""


def is_saved(spec: str) -> bool:
    """Whether MODEL is a saved file."""
    return spec.endswith(SUFFIXES)


def is_code(spec: str) -> bool:
    """Whether MODEL is in the user's own Python file."""
    return _code_parts(spec) is not None


def _code_parts(spec: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"(.*?\.py)(?::(.*))?", spec)
    return (match[1], match[2] or "") if match else None


def short_name(spec: str) -> str:
    """Returns a name for folders: "cnn", "net" for `net.py:make`, the run's name for `runs/cnn-mnist/model.safetensors`."""
    code = _code_parts(spec)
    path = Path(code[0] if code else spec)
    stem = path.parent.name if path.name == "model.safetensors" and path.parent.name else path.stem
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "model"


def make_model(spec: str, input_shape: tuple[int, ...], classes: int, code: str | None = None,
               options: Mapping[str, str] | None = None, several: bool = False) -> Model:
    """Returns the model that MODEL means, with its parameters made.

    Args:
        spec: what the user wrote.
        input_shape: of one sample, channels last.
        classes: number of classes (or of outputs).
        code: the user's file with the classes that a saved model needs.
        options: names and texts of `--model-option`.
        several: whether a sample may have several of the classes: a built-in architecture then ends in a sigmoid.

    Raises:
        ArgumentError: there is no such architecture, file, function or option; the nearest is named.
        ModelFileError: the user's code fails or returns no model; the line is named.
        ShapeError: the model does not take such samples.
    """
    options = options or {}
    if is_saved(spec):
        if options:
            raise ArgumentError(explain(model_options.FLAG, ", ".join(options), "a built-in architecture or file.py:function as MODEL",
                                        "A saved file has its architecture in it."))
        model = open_saved(spec, code)
    elif (parts := _code_parts(spec)) is not None:
        model = _from_code(spec, *parts, input_shape, classes, options)
    elif spec in applications.names():
        entry = applications.get(spec)
        defaults = model_options.parameters_of(entry.function, (*STANDARD, *_GIVEN))
        head = {"classifier_activation": "sigmoid"} if several else {}
        model = entry.make(input_shape, classes, **head, **model_options.typed(spec, defaults, options))
    else:
        raise ArgumentError(
            explain(
                "MODEL",
                repr(spec),
                "a built-in architecture, file.py:function or a saved file (.safetensors, .keras, .h5)",
                did_you_mean(spec, applications.names()),
            )
        )
    if not all_built(model):
        with _named_errors(spec, "building the model"):
            model.build((None, *input_shape))
    _check_input(spec, model, input_shape)
    return model


def open_saved(path: str, code: str | None = None, device: str = "auto") -> Model:
    """Reads a saved model; `code` is the user's file with the classes that it needs."""
    if not is_saved(path):
        raise ArgumentError(explain("FILE", repr(path), "a saved model, such as runs/cnn-mnist/model.safetensors, .keras or .h5"))
    custom = _classes_in(code) if code else {}
    try:
        model: Model = load_model(path, custom_objects=custom, device=device)
    except ModelFileError as error:
        if "custom_objects" in str(error):
            given = r"[^.:]*: load_model\(path, custom_objects=\{[^}]*\}\)\."
            text = re.sub(given, " Pass the Python file with your own classes: --code FILE.py.", str(error))
            raise ModelFileError(text) from error
        raise
    return model


def _check_input(spec: str, model: Model, input_shape: tuple[int, ...]) -> None:
    shapes = model.input_shapes
    if len(shapes) > 1:
        raise ShapeError(
            explain(
                f"MODEL {spec}",
                f"a model with {len(shapes)} inputs",
                "one input",
                "Train it from Python: model.fit takes several.",
            )
        )
    own = tuple(shapes[0][1:]) if shapes else input_shape
    if len(own) != len(input_shape) or any(a is not None and a != b for a, b in zip(own, input_shape, strict=True)):
        raise ShapeError(
            explain(f"MODEL {spec}", f"a model for samples of shape {own}", f"{input_shape}, the shape of DATA's samples")
        )


# -- the user's own file -----------------------------------------------------------------------------------------------


def _from_code(spec: str, path: str, name: str, input_shape: tuple[int, ...], classes: int, options: Mapping[str, str]) -> Model:
    module = import_file(path)
    own = {
        key: value
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    if not name:
        raise ArgumentError(
            explain(
                "MODEL",
                repr(spec),
                f"a function or class in that file: {path}:NAME",
                f"It has: {', '.join(own)}." if own else "It has none of its own.",
            )
        )
    if name not in vars(module):
        raise ArgumentError(
            explain(
                f"MODEL {path}",
                f"no {name!r} in it",
                "a function or class of that file",
                did_you_mean(name, own) if own else "It has none of its own.",
            )
        )
    thing = vars(module)[name]
    is_model = isinstance(thing, Model) or not callable(thing)
    more = model_options.typed(spec, {} if is_model else model_options.parameters_of(thing, _GIVEN), options)
    with _named_errors(spec, "making the model"):
        model = thing if isinstance(thing, Model) else _call(spec, thing, input_shape, classes, more)
    if not isinstance(model, Model):
        fix = f"Return convolt.Model.wrap({name}(...), input_shape) for a PyTorch module." if hasattr(model, "parameters") else ""
        raise ModelFileError(explain(f"MODEL {spec}", f"a {type(model).__name__}", "a convolt.Model", fix))
    return model


def _call(spec: str, function: Any, input_shape: tuple[int, ...], classes: int, more: Mapping[str, Any]) -> Any:
    """Calls function(input_shape, classes), by these names where it has them; or function(). `more` are others by name."""
    if not callable(function):
        raise ModelFileError(
            explain(f"MODEL {spec}", f"a {type(function).__name__}", "a function that returns a model, or a Model class")
        )
    values = {"input_shape": input_shape, "classes": classes, "num_classes": classes, **more}
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_name = {p.name: values[p.name] for p in parameters if p.name in values and p.kind is not p.POSITIONAL_ONLY}
    needed = [p.name for p in parameters if p.default is p.empty and p.name not in by_name]
    if not needed:
        return function(**by_name)
    if len(needed) == 2 and by_name.keys() == more.keys():
        return function(input_shape, classes, **more)
    raise ModelFileError(
        explain(
            f"MODEL {spec}",
            f"a function of ({', '.join(p.name for p in parameters)})",
            "function(input_shape, classes) or function()",
        )
    )


def import_file(path: str) -> ModuleType:
    """Imports a Python file of the user; files beside it can be imported by it.

    Raises:
        ArgumentError: there is no such file.
        ModelFileError: importing it fails; the line is named.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        near = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise ArgumentError(
            explain("MODEL", f"{path}, which does not exist", "a Python file", did_you_mean(file.name, near) if near else "")
        )
    module_name = "convolt_user_" + re.sub(r"\W", "_", file.stem)
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _named_errors(path, "importing it"):
        spec.loader.exec_module(module)
    return module


def _classes_in(path: str) -> dict[str, Any]:
    return {key: value for key, value in vars(import_file(path)).items() if isinstance(value, type) and not key.startswith("_")}


class _named_errors:  # noqa: N801 (reads as a statement)
    """Turns an error in the user's code into one that names file and line; the traceback is there with --debug."""

    def __init__(self, spec: str, doing: str) -> None:
        self.spec, self.doing = spec, doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, ModelFileError):
            return
        parts = _code_parts(self.spec)
        own = Path(parts[0]).expanduser().resolve() if parts else None
        frames = [f for f in traceback.extract_tb(trace) if own is not None and Path(f.filename).resolve() == own]
        if isinstance(error, SyntaxError) and error.lineno is not None:
            where = f", line {error.lineno}"
        else:
            where = f", line {frames[-1].lineno} ({frames[-1].line})" if frames else ""
        what = str(error) if isinstance(error, ConvoltError) else f"{type(error).__name__}: {error}"
        raise ModelFileError(
            explain(f"MODEL {self.spec}{where}", what, f"no error while {self.doing}", "--debug shows the traceback.")
        ) from error
