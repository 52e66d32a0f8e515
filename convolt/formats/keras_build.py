"""From Keras's configuration and weights to a model: an outline first, then the comparison with the file, then memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from convolt import initializers
from convolt.errors import ConvoltError, ConvoltWarning, ModelFileError, explain
from convolt.formats import architecture, keras_weights
from convolt.formats.guard import Limits, read_json
from convolt.formats.hdf5 import Hdf5File
from convolt.formats.keras_checks import check
from convolt.formats.keras_models import from_keras
from convolt.formats.keras_objects import Source
from convolt.formats.keras_training import compile_error, compile_from_keras, state_from_keras
from convolt.formats.keras_weights import Leaf
from convolt.models import Model

Match = Callable[[Model], Sequence[tuple[Leaf, str]]]
"""Says which array of the file goes to which weight of a model."""


def build(spec: Any, source: Source, match: Match, file: Hdf5File) -> Model:
    """Returns the model of a configuration with the weights of the file.

    The configuration is followed twice: on PyTorch's meta device, where weights have shapes and no memory, and, once all shapes
    were found to be those of the file, with memory. So no configuration of a few bytes makes a model that fills it.

    Raises:
        ModelFileError: the configuration is not Convolt's, or the weights are others.
    """
    outline(spec, source, match, file)
    source.dropped.clear()
    model = _made(spec, source, "cpu")
    fill(model, match(model), file, skip_mismatch=False)
    source.warn()
    return model


def outline(spec: Any, source: Source, match: Match, file: Hdf5File) -> Model:
    """Returns the model of a configuration on the meta device, after comparing its weights with those of the file; no value is read.

    Raises:
        ModelFileError: as `build`.
    """
    check(source.name, spec)
    model = _made(spec, source, "meta")
    _check_all(model, match(model), file)
    return model


def _made(spec: Any, source: Source, device: str) -> Model:
    try:
        with initializers.later(), torch.device(device):
            return from_keras(spec, source)
    except ConvoltError:
        raise
    except Exception as error:  # constructors and shape rules of a hundred classes meet values that nobody thought of
        raise ModelFileError(architecture.refusal(f"{source.name}: architecture", error, "arguments that its layers take", "")) from error


def _check_all(model: Model, pairs: Sequence[tuple[Leaf, str]], file: Hdf5File) -> None:
    """Raises `ModelFileError` unless the file has every weight of the model, in its shape; no value is read."""
    if not architecture.all_built(model):
        raise ModelFileError(explain(f"{file.thing}: the model {model.name!r}", "layers without input shapes", "a model that was built",
                                     "In Keras, call the model once, or start it with an Input, before you save it."))
    own, given = keras_weights.leaves_of(model), {id(leaf.view.untyped_storage()) for leaf, _ in pairs}
    if len(own) != len({leaf.view.untyped_storage()._cdata for leaf, _ in pairs}):  # one may be there twice
        missing = [leaf.name for leaf in own if id(leaf.view.untyped_storage()) not in given]
        raise ModelFileError(explain(f"{file.thing}: weights", f"{len(pairs)} arrays", f"{len(own)}, for every weight of the model",
                                     f"For example {missing[0]!r} is missing." if missing else ""))
    for leaf, path in pairs:
        if file.shape(path) != tuple(leaf.view.shape):
            raise ModelFileError(explain(f"{file.thing}: {path}", f"shape {file.shape(path)}", f"{tuple(leaf.view.shape)}"))


def fill(model: Model, pairs: Sequence[tuple[Leaf, str]], file: Hdf5File, skip_mismatch: bool) -> None:
    """Copies arrays of the file into weights, after all of them were checked.

    Raises:
        ModelFileError: a shape or type does not fit (with `skip_mismatch` a warning, for shapes), or a value is not finite.
    """
    values: list[tuple[Leaf, np.ndarray]] = []
    for leaf, path in pairs:
        if skip_mismatch and file.shape(path) != tuple(leaf.view.shape):
            warnings.warn(f"left out: {file.thing}: {path} has shape {file.shape(path)}, {leaf.name} {tuple(leaf.view.shape)}",
                          ConvoltWarning, stacklevel=5)
            continue
        value = file.array(path)
        keras_weights.fits(leaf, value, f"{file.thing}: {path}")
        values.append((leaf, value))
    keras_weights.fill(model, values)


def settings_of(value: Any, source: Source, limits: Limits) -> Mapping[str, Any]:
    """Returns Convolt's own settings in a Keras file; empty where Keras wrote it."""
    if value is None:
        return {}
    settings = read_json(f"{source.name}: convolt", value, limits) if isinstance(value, str) else value
    if not isinstance(settings, Mapping):
        raise ModelFileError(explain(f"{source.name}: convolt", f"a {type(settings).__name__}", "a mapping"))
    names = settings.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelFileError(explain(f"{source.name}: class names", f"a {type(names).__name__}", "a list of names"))
    return settings


def finish(model: Model, settings: Mapping[str, Any], config: Any, state: Sequence[np.ndarray], source: Source, compile: bool,
           device: Any) -> Model:
    """Moves the model to its device and compiles it: as Convolt's own settings say, else as Keras's do."""
    from convolt import devices

    model.class_names = settings.get("class_names")
    _restore_counts(model, settings.get("counts"))
    model.to(devices.resolve(device))
    model.eval()
    arguments = None
    if compile:
        arguments = settings.get("compile") or compile_from_keras(config, source)
    if arguments is None:
        return model
    try:
        architecture.check_compile(source.name, {key: _as_json(value) for key, value in arguments.items()})
        model.compile(**arguments, device=device)
        if state:
            state_from_keras(model, state)
    except Exception as error:  # classes of the registries, and the caller's, meet values that nobody thought of
        raise compile_error(source, error) from error
    source.warn()
    return model


def _restore_counts(model: Model, counts: Any) -> None:
    """Sets what layers count beside their weights, where the file knows it."""
    for path, module in model.named_modules():
        for name in getattr(module, "own_counts", ()):
            value = counts.get(f"{path}.{name}") if isinstance(counts, Mapping) else None
            if isinstance(value, int) and 0 <= value < 2**62 and getattr(module, name) is not None:
                getattr(module, name).fill_(value)


def _as_json(value: Any) -> Any:
    from convolt.configurable import to_json

    return to_json(value)
