"""Keras's HDF5 files: the legacy `.h5` with a whole model or weights by layer names, and `.weights.h5` of Keras 3.

Legacy files hold `model_config` and `training_config` as JSON in attributes, and one group of weights for each layer. Files of Keras 3
hold weights alone, under paths such as `layers/dense/vars/0`. Everything is read through `convolt.formats.hdf5`.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from convolt.configurable import to_json
from convolt.errors import ConvoltWarning, ModelFileError, did_you_mean, explain
from convolt.formats import keras_build
from convolt.formats.guard import LIMITS, Limits, few, read_json, shorten
from convolt.formats.hdf5 import Hdf5File, open_hdf5
from convolt.formats.keras_graph import to_keras
from convolt.formats.keras_objects import Source
from convolt.formats.keras_training import compile_to_keras, state_to_keras
from convolt.formats.keras_weights import Leaf, as_array, check_built, children_of, layer_names, leaves_of, legacy_order
from convolt.formats.target import checked_target, write_whole
from convolt.models import Functional, Model, Sequential

KERAS_VERSION = "3.10.0"
"""The version that files say: the oldest whose conventions they follow."""

ATTRIBUTE_BYTES = 64_512
"""The most that Keras puts into one attribute; longer lists go into several (`layer_names0`, …)."""

OWN_STATE = "convolt_optimizer_weights"
"""Group with the optimizer's state. Keras's own, `optimizer_weights`, makes models that Keras 3.15 loads and cannot train: it builds
the optimizer for the model's own variables, of which a model of layers has none."""

OLD_LAYERS = "_layer_checkpoint_dependencies"
"""What TensorFlow 2.13 calls `layers`."""

Pairs = list[tuple[Leaf, str]]


# -- writing -----------------------------------------------------------------------------------------------------------


def save_model(model: Model, filepath: str | Path, *, overwrite: bool = True) -> None:
    """Writes a model to a legacy HDF5 file, which Keras 3 loads with its own `load_model`, and Keras 2 where it has no nested models.

    Raises:
        ModelFileError: a layer is not Keras's, the suffix is another, or the file exists and `overwrite` is False.
        StateError: the model is not built.
    """
    path = checked_target(filepath, overwrite, (".h5", ".hdf5"))
    check_built(model, "save")
    config = to_keras(model, legacy=True)
    attributes = {"keras_version": KERAS_VERSION, "backend": "torch", "model_config": json.dumps(config, allow_nan=False),
                  "convolt": json.dumps(own_settings(model), allow_nan=False)}
    training = compile_to_keras(model)
    if training is not None:
        training["optimizer_config"] = training.pop("optimizer")
        attributes["training_config"] = json.dumps(training, allow_nan=False)

    def fill(file: Any) -> None:
        file.attrs.update(attributes)
        _write_layers(file.create_group("model_weights"), model)
        state = state_to_keras(model) if training is not None else None
        if state is not None:
            group = file.create_group(OWN_STATE)
            _write_weights(group, [(f"{model.optimizer.name}/{i}", value) for i, value in enumerate(state)])

    write_whole(path, hdf5_bytes(fill))


def save_weights(model: Model, filepath: str | Path, *, overwrite: bool = True) -> None:
    """Writes the weights alone: `.weights.h5` as Keras 3 does, another `.h5` by layer names as Keras 2 did; Keras 3 loads both."""
    path = checked_target(filepath, overwrite, (".h5", ".hdf5"))
    check_built(model, "save_weights")
    if path.name.endswith(".weights.h5"):
        write_whole(path, hdf5_bytes(lambda file: write_vars(file, model)))
    else:
        write_whole(path, hdf5_bytes(lambda file: _write_layers(file, model)))


def own_settings(model: Model) -> dict[str, Any]:
    """Returns what Keras has no place for and ignores: class names, how the model was compiled here, and counts such as of batches."""
    trainer = model._trainer
    spec = None if trainer is None else {"optimizer": trainer.optimizer, **trainer.spec, "precision": trainer.precision}
    counts = {f"{path}.{name}": int(getattr(module, name)) for path, module in model.named_modules()
              for name in getattr(module, "own_counts", ()) if getattr(module, name) is not None}
    return {"format": 1, "class_names": model.class_names, "compile": None if spec is None else to_json(spec), "counts": counts}


def hdf5_bytes(fill: Callable[[Any], None]) -> bytes:
    """Returns an HDF5 file that `fill` writes into; equal contents give equal bytes."""
    import h5py

    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        fill(file)
    return memory.getvalue()


def _write_layers(group: Any, model: Model) -> None:
    """Writes one group for each layer, as legacy files have them."""
    named = list(layer_names(model))
    _write_list(group, "layer_names", [name for name, _ in named])
    group.attrs.update({"backend": "torch", "keras_version": KERAS_VERSION})
    for name, layer in sorted(named, key=lambda pair: pair[0]):
        found = [] if layer is None else legacy_order(layer)
        _write_weights(group.create_group(name), [(f"{name}/{leaf.name}", as_array(leaf)) for leaf in found])
    _write_weights(group.create_group("top_level_model_weights"), [])


def _write_weights(group: Any, weights: Sequence[tuple[str, np.ndarray]]) -> None:
    _write_list(group, "weight_names", [name for name, _ in weights])
    for name, value in weights:
        group.create_dataset(name, data=value)


def _write_list(group: Any, name: str, words: list[str]) -> None:
    encoded = np.array([word.encode() for word in words] or np.zeros(0))
    parts = max(1, -(-encoded.nbytes // ATTRIBUTE_BYTES))
    for i, part in enumerate(np.array_split(encoded, parts)):
        group.attrs[f"{name}{i}" if parts > 1 else name] = part


def write_vars(file: Any, model: Model) -> None:
    """Writes the weights under Keras 3's paths, with a group for each layer."""

    def write(layer: Any, path: str) -> None:
        file.require_group(f"{path}vars").attrs["name"] = layer.name
        if isinstance(layer, (Sequential, Functional)):
            for key, part in children_of(layer):
                write(part, f"{path}layers/{key}/")
        else:
            for leaf in leaves_of(layer, twice=True):
                file.create_dataset(f"{path}{leaf.path}", data=as_array(leaf))

    if not isinstance(model, (Sequential, Functional)):
        raise ModelFileError(explain("a Keras file", f"the model {model.name!r} of class {type(model).__name__}",
                                     "a Sequential or functional model", "Save its weights as .h5 (by layer names) or .safetensors."))
    write(model, "")


# -- reading -----------------------------------------------------------------------------------------------------------


def load_model(filepath: str | Path, custom_objects: Mapping[str, Any] | None = None, compile: bool = True, device: Any = "auto", *,
               limits: Limits = LIMITS) -> Model:
    """Reads a model from a legacy HDF5 file of Keras 3, of Keras 2 and TensorFlow, or of Convolt.

    Args:
        filepath: the file.
        custom_objects: your own classes and functions by name.
        compile: whether to compile it as the file says.
        device: where it goes.
        limits: the most that the file may hold.

    Raises:
        ModelFileError: the file is damaged, holds weights alone, or holds a layer that Convolt does not have.
    """
    path = Path(filepath)
    with open_hdf5(path, limits=limits) as file:
        attributes = file.attributes()
        if "model_config" not in attributes:
            got = "weights without an architecture" if is_weights(file) else "an HDF5 file without a model"
            raise ModelFileError(explain(str(path), got, "a file that model.save wrote",
                                         "Build the model in code and call model.load_weights(path)."))
        source = Source(str(path), dict(custom_objects or {}), _text(attributes.get("keras_version")))
        spec = read_json(f"{path}: model_config", _text(attributes["model_config"]), limits)
        training = attributes.get("training_config")
        model = keras_build.build(spec, source, lambda outline: legacy_pairs(outline, file, "model_weights", by_name=True), file)
        settings = keras_build.settings_of(attributes.get("convolt"), source, limits)
        config = None if training is None else read_json(f"{path}: training_config", _text(training), limits)
        state = _legacy_state(file) if compile and source.version.startswith("3") else []
        return keras_build.finish(model, settings, config, state, source, compile, device)


def load_weights(model: Model, filepath: str | Path, *, by_name: bool = False, skip_mismatch: bool = False,
                 limits: Limits = LIMITS) -> None:
    """Reads weights of either kind of HDF5 file into a model; see `Model.load_weights`."""
    check_built(model, "load_weights")
    with open_hdf5(Path(filepath), limits=limits) as file:
        fill_from(model, file, by_name, skip_mismatch)


def fill_from(model: Model, file: Hdf5File, by_name: bool, skip_mismatch: bool) -> None:
    """Copies the weights in an HDF5 file of either kind into a model, after all of them were checked."""
    legacy = _legacy_root(file)
    if legacy is not None:
        pairs = legacy_pairs(model, file, legacy, by_name, skip_mismatch)
    elif by_name:
        raise ModelFileError(explain(f"load_weights({file.thing}, by_name=True)", "a file of Keras 3, whose weights have paths",
                                     "a legacy .h5 file, whose weights have layer names", "Leave by_name out."))
    else:
        pairs = vars_pairs(model, file, skip_mismatch)
    keras_build.fill(model, pairs, file, skip_mismatch)


def is_weights(file: Hdf5File) -> bool:
    """Whether an HDF5 file holds weights as Keras writes them."""
    return _legacy_root(file) is not None or any(name in file for name in ("layers", OLD_LAYERS, "vars"))


def _legacy_root(file: Hdf5File) -> str | None:
    """Returns the group with a legacy file's layers."""
    for path in ("", "model_weights"):
        if path in file or not path:
            names = file.attributes(path)
            if "layer_names" in names or "layer_names0" in names:
                return path
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _words(file: Hdf5File, path: str, name: str) -> list[str]:
    """Returns a list of words in an attribute, or in several where Keras had to split it."""
    attributes = file.attributes(path)
    keys = [name] if name in attributes else list(takewhile(attributes.__contains__, (f"{name}{i}" for i in count())))
    parts = [attributes[key] for key in keys]
    if not all(isinstance(part, list) and all(isinstance(word, str) for word in part) for part in parts):
        raise ModelFileError(explain(f"{file.thing}: {path or '/'}", f"an attribute {name!r} that is no list of names", "a list of names"))
    return [word for part in parts for word in part]  # type: ignore[union-attr]


def _legacy_state(file: Hdf5File) -> list[np.ndarray]:
    group = OWN_STATE if OWN_STATE in file else "optimizer_weights"
    if group not in file:
        return []
    return [file.array(f"{group}/{name}") for name in _words(file, group, "weight_names")]


def legacy_pairs(model: Model, file: Hdf5File, root: str, by_name: bool = False, skip_mismatch: bool = False) -> Pairs:
    """Returns which array of a legacy file goes to which weight.

    Args:
        model: with its layers built.
        file: the file.
        root: its group with the layers.
        by_name: layers of equal names; False takes the layers that have weights one after the other.
        skip_mismatch: leave layers out, with a warning, whose number of weights differs.

    Raises:
        ModelFileError: the file has another number of layers with weights, or a layer another number of weights.
    """
    prefix = f"{root}/" if root else ""
    saved = {name: [f"{prefix}{name}/{weight}" for weight in _words(file, f"{prefix}{name}", "weight_names")]
             for name in _words(file, root, "layer_names")}
    saved = {name: weights for name, weights in saved.items() if weights}
    own = {name: weights for name, layer in layer_names(model) if layer is not None and (weights := legacy_order(layer))}
    if by_name:
        matches = [(name, name) for name in saved if name in own]
        if not matches and saved and own:
            raise ModelFileError(explain(f"{file.thing}: layers", few(saved), f"names such as {few(own)}",
                                         "Without by_name=True layers are matched by their order."))
    elif len(saved) != len(own):
        raise ModelFileError(explain(f"{file.thing}: layers", f"{len(saved)} layers with weights: {few(saved)}",
                                     f"{len(own)}: {few(own)}", "by_name=True takes the layers whose names are equal."))
    else:
        matches = list(zip(saved, own, strict=True))
    pairs: Pairs = []
    for theirs, ours in matches:
        if len(saved[theirs]) == len(own[ours]):
            pairs += zip(own[ours], saved[theirs], strict=True)
            continue
        message = explain(f"{file.thing}: layer {shorten(theirs)!r}", f"{len(saved[theirs])} weights",
                          f"{len(own[ours])} for {ours!r}: {few(leaf.name for leaf in own[ours])}")
        if not skip_mismatch:
            raise ModelFileError(message)
        warnings.warn(f"left out: {message}", ConvoltWarning, stacklevel=5)
    return pairs


def vars_pairs(model: Model, file: Hdf5File, skip_mismatch: bool = False) -> Pairs:
    """Returns which array of a file of Keras 3 goes to which weight.

    Raises:
        ModelFileError: a weight is missing from the file, or the file has one that the model has not.
    """
    if not isinstance(model, (Sequential, Functional)):
        raise ModelFileError(explain(f"{file.thing}: weights", f"the model {model.name!r} of class {type(model).__name__}",
                                     "a Sequential or functional model", "Load weights of such models from .safetensors or legacy .h5."))
    old = "layers" not in file and OLD_LAYERS in file
    own = {re.sub(r"(^|/)layers/", rf"\g<1>{OLD_LAYERS}/", leaf.path) if old else leaf.path: leaf for leaf in leaves_of(model, twice=True)}
    there = {path for path in file.arrays() if path.startswith(("layers/", f"{OLD_LAYERS}/", "vars/"))}
    there = {path for path in there if "seed_generator" not in path}
    missing, unknown = [path for path in own if path not in there], sorted(there - own.keys())
    if (missing or unknown) and not skip_mismatch:
        hint = did_you_mean(missing[0], unknown) if missing and unknown else ""
        raise ModelFileError(explain(f"{file.thing}: weights", f"missing {few(missing)}, unknown {few(unknown)}",
                                     f"exactly the {len(own)} weights of {model.name!r}", hint if hint.startswith("Did") else ""))
    if missing or unknown:
        warnings.warn(f"{file.thing}: left out: missing {few(missing)}, unknown {few(unknown)}", ConvoltWarning, stacklevel=5)
    return [(leaf, path) for path, leaf in own.items() if path in there]
