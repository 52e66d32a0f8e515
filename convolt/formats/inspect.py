"""What a model file holds and whether it is safe, found without loading it: no tensor is read, no code of the file runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convolt.configurable import defaults_of
from convolt.errors import ModelFileError
from convolt.formats import architecture, pickles
from convolt.formats.archive import read_members
from convolt.formats.guard import LIMITS, PICKLE_FIX, check_file, few, kind_of, read_json, shorten
from convolt.formats.hdf5 import Hdf5File, open_hdf5
from convolt.formats.header import read_header

PREPROCESSING = ("Rescaling", "Normalization", "Resizing", "CenterCrop", "Discretization")
CODE = ("Lambda", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
"""Layers of Keras whose configuration is a program, or names one."""


NOT_SHOWN = ("name", "trainable", "dtype", "data_format", "layers", "class_name", "input_dtype", "sparse", "ragged", "optional",
             "build_input_shape", "batch_input_shape", "synchronized")


@dataclass(frozen=True)
class LayerRow:
    """One layer: its depth in models inside models, name, class, arguments that say most, and whether the class is Convolt's."""

    depth: int
    name: str
    kind: str
    arguments: str
    known: bool


@dataclass(frozen=True)
class WeightRow:
    """One array: path, type and shape (in the file's order of axes), and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass
class Report:
    """What a file holds.

    Attributes:
        file, bytes, kind: path, size, and what it is in words.
        safe: whether Convolt would read it; False also for files that are no models.
        verdict: why, in one sentence.
        facts: pairs of a label and a text: format, versions, class names, training, metadata.
        layers: the architecture, if there is one.
        preprocessing: layers that make the input ready.
        weights: the arrays.
        imports: for pickles, what loading it would import.
        problems: what would be refused, and what is dangerous.
    """

    file: str
    bytes: int
    kind: str
    safe: bool = False
    verdict: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    preprocessing: list[str] = field(default_factory=list)
    weights: list[WeightRow] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return {**asdict(self), "facts": dict(self.facts)}


def inspect_file(path: str | Path) -> Report:
    """Returns what a model file holds and whether it is safe.

    Raises:
        ModelFileError: there is no such file, or it cannot be opened. What is wrong inside is in the report.
    """
    path = Path(path)
    size = check_file(path)
    try:
        kind = kind_of(path)
    except ModelFileError as error:
        return Report(str(path), size, "a damaged file", problems=[_without(path, error)], verdict="Convolt refuses it.")
    report = Report(str(path), size, kind.words)
    looks = {"safetensors": _safetensors, "hdf5": _hdf5, "keras": _keras, "pickle": _pickle, "torch": _pickle, "numpy": _numpy}
    look = looks.get(kind.name)
    if look is None:
        report.verdict = "It is no model that Convolt reads."
        return report
    try:
        look(path, report)
    except ModelFileError as error:
        report.problems.append(_without(path, error))
    if not report.verdict:
        report.safe = not report.problems
        report.verdict = "Safe: it holds numbers and names, and nothing in it runs." if report.safe else "Convolt refuses it."
    return report


def _without(path: Path, error: Exception) -> str:
    """Returns a message without the file's path, which stands above it."""
    text = str(error)
    return text.removeprefix(f"{path}: ")


# -- one function for each kind ----------------------------------------------------------------------------------------


def _safetensors(path: Path, report: Report) -> None:
    from convolt.formats import safetensors

    header = read_header(path)
    report.weights = [WeightRow(name, e.dtype, e.shape, e.bytes) for name, e in header.tensors.items()]
    others = {key: text for key, text in header.metadata.items() if key != "convolt"}
    if "convolt" in header.metadata:
        info = safetensors.model_info(path, header.metadata)
        report.facts.append(("format", f"Convolt {info['format']}"))
        _describe(report, info["model"])
        _training(report, info.get("compile") or {})
        _class_names(report, info.get("class_names"))
        _outline(path, report, info)
    else:
        report.facts.append(("format", "weights alone, without an architecture"))
    report.facts += [("metadata", f"{shorten(key)}: {shorten(text, 200)}") for key, text in others.items()]


def _outline(path: Path, report: Report, info: Mapping[str, Any]) -> None:
    """Tries the architecture without memory, as loading does, unless it needs classes of the user."""
    from convolt.formats import safetensors

    architecture.check(str(path), info["model"])
    if all(row.known for row in report.layers):
        outline = safetensors.compare_outline(path, info["model"], {}, read_header(path))
        if info.get("compile"):
            safetensors.compile_as_saved(path, outline, info["compile"], "cpu")


def _hdf5(path: Path, report: Report) -> None:
    from convolt.formats.keras_h5 import legacy_pairs

    with open_hdf5(path, values=False) as file:
        attributes = file.attributes()
        _keras_versions(report, attributes)
        _hdf5_weights(report, file)
        _keras_config(path, report, attributes.get("model_config"), attributes,
                      lambda model: legacy_pairs(model, file, "model_weights", by_name=True), file)
        training = attributes.get("training_config")
        if isinstance(training, str):
            _training(report, read_json(f"{path}: training_config", training))


def _keras(path: Path, report: Report) -> None:
    from convolt.formats.keras_h5 import vars_pairs

    members = read_members(path, {"model.weights.h5": LIMITS.file_bytes},
                           optional={"config.json": LIMITS.header_bytes, "metadata.json": LIMITS.header_bytes, "assets/": 0})
    metadata = read_json(f"{path}: metadata.json", members.get("metadata.json", b"{}"))
    metadata = metadata if isinstance(metadata, dict) else {}
    _keras_versions(report, metadata)
    config = read_json(f"{path}: config.json", members["config.json"]) if "config.json" in members else None
    with open_hdf5(members["model.weights.h5"], values=False, thing=f"{path}: model.weights.h5") as file:
        _hdf5_weights(report, file)
        _keras_config(path, report, config, metadata, lambda model: vars_pairs(model, file), file)
    if isinstance(config, dict) and isinstance(config.get("compile_config"), dict):
        _training(report, config["compile_config"])


def _keras_versions(report: Report, values: Mapping[str, Any]) -> None:
    for key, label in (("keras_version", "Keras"), ("backend", "backend"), ("date_saved", "saved")):
        if isinstance(values.get(key), str):
            report.facts.append((label, shorten(values[key])))


def _hdf5_weights(report: Report, file: Hdf5File) -> None:
    for name in file.arrays():
        shape, dtype = file.shape(name), file.dtype(name)
        report.weights.append(WeightRow(name, dtype.name, shape, math.prod(shape) * dtype.itemsize))


def _keras_config(path: Path, report: Report, config: Any, settings: Mapping[str, Any], match: Any, file: Hdf5File) -> None:
    """Lists the architecture, and tries it without memory, as loading does."""
    from convolt.formats import keras_build
    from convolt.formats.keras_objects import Source

    if config is None:
        report.facts.append(("format", "weights alone, without an architecture"))
        return
    value = read_json(f"{path}: model_config", config) if isinstance(config, str) else config
    _describe(report, value)
    own = keras_build.settings_of(settings.get("convolt"), source := Source(str(path), {}, str(settings.get("keras_version", ""))), LIMITS)
    _class_names(report, own.get("class_names"))
    if all(row.known for row in report.layers):
        keras_build.outline(value, source, match, file)
    report.facts += [("not kept", shorten(text, 200)) for text in dict.fromkeys(source.dropped)]


def _pickle(path: Path, report: Report) -> None:
    found: dict[str, None] = {}
    count = 0
    for data in pickles.pickles_in(path):
        names, whole = pickles.globals_of(data)
        found |= dict.fromkeys(names)
        count += whole
    report.imports = list(found)
    others = [name for name in found if name not in pickles.TENSOR_GLOBALS]
    if not count:
        report.problems.append("It could not be read to its end; it may import more than is listed.")
    if others:
        report.problems.append(f"Loading it would import what tensors do not need: {few(others, 10)}.")
    report.problems.append(PICKLE_FIX)
    report.verdict = "Unsafe: a pickle is a program that runs when it is loaded. Convolt never loads one."


def _numpy(path: Path, report: Report) -> None:
    report.verdict = "It is no model. Arrays for training are read with convolt train … --data FILE.npz, never with pickled objects."


# -- what models say of themselves -------------------------------------------------------------------------------------


def _describe(report: Report, description: Any) -> None:
    """Lists the layers, models inside models too."""
    from convolt.layers import registry
    from convolt.models import Model  # noqa: F401 (which lists the kinds of models too)

    for depth, entry in _layers(description, 0):
        kind, config = str(entry.get("class_name")), entry.get("config")
        config = config if isinstance(config, dict) else {}
        known = kind in registry or kind in ("InputLayer", "Model")
        name = shorten(str(config.get("name", "")), 60)
        arguments = _arguments(config, defaults_of(registry.find(kind)) if kind in registry else {})
        report.layers.append(LayerRow(depth, name, shorten(kind, 60), arguments, known))
        if kind in PREPROCESSING:
            report.preprocessing.append(f"{kind}({arguments})")
        if kind in CODE:
            report.problems.append(f"layer {name!r}: a {kind} is a program inside the file. Convolt refuses it.")
        elif not known:
            report.problems.append(f"layer {name!r}: Convolt has no class {shorten(kind, 60)!r}; the file loads only with custom_objects.")


def _layers(value: Any, depth: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (depth, layer) for each layer of a description, in order; the depth is bounded by `read_json`."""
    if not isinstance(value, dict):
        return
    yield depth, value
    config = value.get("config")
    inside = config.get("layers") if isinstance(config, dict) else None
    for entry in inside if isinstance(inside, list) else ():
        yield from _layers(entry, depth + 1)


def _arguments(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Returns the arguments of a layer that are numbers, texts or lists of numbers, and not the class's defaults."""
    shown = []
    for key, value in config.items():
        if key in NOT_SHOWN or value is None or (key in defaults and _is_default(value, defaults[key])):
            continue
        if isinstance(value, (bool, int, float, str)) or (isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)):
            shown.append(f"{shorten(str(key), 40)}={shorten(str(value), 40)}")
    return shorten(", ".join(shown), 120)


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(default, (tuple, int)) and isinstance(value, list):  # one number stands for all axes
        return value == (list(default) if isinstance(default, tuple) else [default] * len(value))
    return bool(value == default) or (default is None and value == "linear")


def _training(report: Report, config: Any) -> None:
    if not isinstance(config, dict):
        return
    for key, label in (("optimizer", "optimizer"), ("optimizer_config", "optimizer"), ("loss", "loss"), ("metrics", "metrics"),
                       ("precision", "precision")):
        words = _short(config.get(key))
        if words:
            report.facts.append((label, words))


def _short(value: Any) -> str:
    """Returns an object of a configuration in a few words: its class, with its learning rate if it has one."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_short, value[:10])))
    if not isinstance(value, dict):
        return "" if value is None else shorten(str(value), 60)
    if "class_name" not in value:
        return ", ".join(f"{shorten(str(k), 30)}: {_short(v)}" for k, v in list(value.items())[:10])
    config = value.get("config")
    rate = config.get("learning_rate") if isinstance(config, dict) else None
    return shorten(f"{value['class_name']}{f'(learning_rate={_short(rate)})' if rate is not None else ''}", 120)


def _class_names(report: Report, names: Any) -> None:
    if isinstance(names, list) and names:
        report.facts.append(("classes", f"{len(names)}: {few(map(str, names), 10)}"))
