"""Keras 3's `.keras` files: a zip archive with `config.json`, `metadata.json` and `model.weights.h5`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convolt.errors import ModelFileError, explain
from convolt.formats import keras_build
from convolt.formats.archive import read_members
from convolt.formats.guard import LIMITS, Limits, read_json
from convolt.formats.hdf5 import Hdf5File, open_hdf5
from convolt.formats.keras_graph import to_keras
from convolt.formats.keras_h5 import KERAS_VERSION, fill_from, hdf5_bytes, own_settings, vars_pairs, write_vars
from convolt.formats.keras_objects import Source
from convolt.formats.keras_training import compile_to_keras, state_to_keras
from convolt.formats.keras_weights import check_built
from convolt.formats.target import checked_target, write_whole
from convolt.models import Model

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
UNCHANGING_DATE = (1980, 1, 1, 0, 0, 0)


def save_model(model: Model, filepath: str | Path, *, overwrite: bool = True) -> None:
    """Writes a model that Keras 3 loads: architecture, weights, how it was compiled, and the state of Adam, AdamW, SGD and RMSprop.

    Class names and Convolt's own settings lie in `metadata.json`, where Keras does not look.

    Raises:
        ModelFileError: a layer is not Keras's, the suffix is another, or the file exists and `overwrite` is False.
        StateError: the model is not built.
    """
    path = checked_target(filepath, overwrite, (".keras",))
    check_built(model, "save")
    config = to_keras(model)
    training = compile_to_keras(model)
    if training is not None:
        config["compile_config"] = training
    metadata = {"keras_version": KERAS_VERSION, "convolt": own_settings(model)}

    def fill(file: Any) -> None:
        write_vars(file, model)
        state = state_to_keras(model) if training is not None else None
        if state is not None:
            group = file.create_group("optimizer/vars")
            group.attrs["name"] = model.optimizer.name
            for i, value in enumerate(state):
                group.create_dataset(str(i), data=value)

    members = {METADATA: json.dumps(metadata, allow_nan=False).encode(), CONFIG: json.dumps(config, allow_nan=False).encode(),
               WEIGHTS: hdf5_bytes(fill)}
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, UNCHANGING_DATE), content)
    write_whole(path, memory.getbuffer())


def load_model(filepath: str | Path, custom_objects: Mapping[str, Any] | None = None, compile: bool = True, device: Any = "auto", *,
               limits: Limits = LIMITS) -> Model:
    """Reads a `.keras` file of Keras 3, of TensorFlow 2.13 and later, or of Convolt.

    Args:
        filepath: the file.
        custom_objects: your own classes and functions by name.
        compile: whether to compile it as the file says.
        device: where it goes.
        limits: the most that the file may hold.

    Raises:
        ModelFileError: the file is damaged, or holds a layer that Convolt does not have.
    """
    members = _members(Path(filepath), limits)
    if CONFIG not in members:
        raise ModelFileError(explain(str(filepath), "weights without an architecture", "a file that model.save wrote",
                                     "Build the model in code and call model.load_weights(path)."))
    metadata = read_json(f"{filepath}: {METADATA}", members.get(METADATA, b"{}"), limits)
    metadata = metadata if isinstance(metadata, Mapping) else {}
    source = Source(str(filepath), dict(custom_objects or {}), str(metadata.get("keras_version", "")))
    spec = read_json(f"{filepath}: {CONFIG}", members[CONFIG], limits)
    with open_hdf5(members[WEIGHTS], limits=limits, thing=f"{filepath}: {WEIGHTS}") as file:
        model = keras_build.build(spec, source, lambda outline: vars_pairs(outline, file), file)
        settings = keras_build.settings_of(metadata.get("convolt"), source, limits)
        config = spec.get("compile_config") if isinstance(spec, Mapping) else None
        return keras_build.finish(model, settings, config, _state(file) if compile else [], source, compile, device)


def load_weights(model: Model, filepath: str | Path, *, skip_mismatch: bool = False, limits: Limits = LIMITS) -> None:
    """Reads the weights of a `.keras` file into a model; its architecture is not looked at."""
    check_built(model, "load_weights")
    with open_hdf5(_members(Path(filepath), limits)[WEIGHTS], limits=limits, thing=f"{filepath}: {WEIGHTS}") as file:
        fill_from(model, file, by_name=False, skip_mismatch=skip_mismatch)


def _members(path: Path, limits: Limits) -> dict[str, bytes]:
    optional = {CONFIG: limits.header_bytes, METADATA: limits.header_bytes, "assets/": 0}
    return read_members(path, {WEIGHTS: limits.file_bytes}, optional=optional, limits=limits)


def _state(file: Hdf5File) -> list[np.ndarray]:
    if "optimizer/vars" not in file:
        return []
    names = file.names("optimizer/vars")
    return [file.array(f"optimizer/vars/{i}") for i in range(len(names)) if str(i) in names]
