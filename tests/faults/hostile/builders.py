"""Hostile model files, one for each way in which a file can do harm or be wrong. Each is made from a whole file by one change.

A builder takes the bench and returns the file. What would run would touch `bench.canary`; what would be fetched, from `bench.url`.
"""

from __future__ import annotations

import base64
import io
import json
import marshal
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

Builder = Callable[["Bench"], Path]


@dataclass(frozen=True)
class Hostile:
    """A hostile file: its name, what it is for readers, and how it is made."""

    name: str
    about: str
    build: Builder


CORPUS: list[Hostile] = []


def hostile(about: str) -> Callable[[Builder], Builder]:
    """Lists a builder in the corpus, under the function's name."""

    def add(build: Builder) -> Builder:
        CORPUS.append(Hostile(build.__name__, about, build))
        return build

    return add


def small_model() -> Any:
    """Returns the whole model: 4 numbers in, 3 hidden, 2 out."""
    import torch

    from convolt import layers
    from convolt.models import Sequential

    torch.manual_seed(0)
    return Sequential([layers.Input((4,)), layers.Dense(3, name="hidden", activation="relu"), layers.Dense(2, name="kind")], name="net")


class Bench:
    """Where files are built: a folder, the canary, and whole files to start from."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.canary = folder, folder / "canary"
        self.url = f"http://127.0.0.1:{port}/payload"
        self.secret = folder / "secret.bin"
        self.secret.write_bytes(np.arange(2048, dtype="float32").tobytes())

    @cached_property
    def own(self) -> bytes:
        model = small_model()
        model.compile("adam", "mse", ["mae"], device="cpu")
        model.save(self.folder / "whole.safetensors")
        return (self.folder / "whole.safetensors").read_bytes()

    def _of_keras(self, suffix: str) -> bytes:
        small_model().save(self.folder / f"whole{suffix}")
        return (self.folder / f"whole{suffix}").read_bytes()

    @cached_property
    def h5(self) -> bytes:
        return self._of_keras(".h5")

    @cached_property
    def keras(self) -> bytes:
        return self._of_keras(".keras")

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    # -- own files -------------------------------------------------------------------------------------------------

    def header(self) -> tuple[dict[str, Any], bytes]:
        """Returns (header, bytes of the tensors) of the own file."""
        size = struct.unpack("<Q", self.own[:8])[0]
        return json.loads(self.own[8 : 8 + size]), self.own[8 + size :]

    def from_header(self, name: str, header: Any, values: bytes) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return self.write(f"{name}.safetensors", struct.pack("<Q", len(text)) + text + values)

    def changed_header(self, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        header, values = self.header()
        change(header)
        return self.from_header(name, header, values)

    def changed_model(self, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        """Changes what the own file says of the model."""
        header, values = self.header()
        info = json.loads(header["__metadata__"]["convolt"])
        change(info)
        header["__metadata__"]["convolt"] = json.dumps(info)
        return self.from_header(name, header, values)

    def changed_layer(self, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        """Changes the first layer in the own file."""
        return self.changed_model(name, lambda info: change(info["model"]["config"]["layers"][0]))

    # -- Keras's files ---------------------------------------------------------------------------------------------

    def changed_h5(self, name: str, change: Callable[[Any], object]) -> Path:
        import h5py

        path = self.write(f"{name}.h5", self.h5)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    def h5_layer(self, name: str, entry: dict[str, Any]) -> Path:
        """Puts a layer in the place of the first one that the .h5 file describes."""

        def change(file: Any) -> None:
            config = json.loads(file.attrs["model_config"])
            config["config"]["layers"][1] = entry
            file.attrs["model_config"] = json.dumps(config)

        return self.changed_h5(name, change)

    def zipped(self, name: str, change: Callable[[dict[str, Any]], object], compression: int = zipfile.ZIP_STORED) -> Path:
        """Writes the .keras file again with other members; a value may be a list, for members of one name."""
        import warnings

        with zipfile.ZipFile(io.BytesIO(self.keras)) as archive:
            members: dict[str, Any] = {key: archive.read(key) for key in archive.namelist()}
        change(members)
        path = self.folder / f"{name}.keras"
        with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of two members with one name
            for key, content in members.items():
                for one in content if isinstance(content, list) else [content]:
                    archive.writestr(key, one)
        return path

    def keras_config(self, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        """Changes `config.json`."""

        def members(found: dict[str, Any]) -> None:
            config = json.loads(found["config.json"])
            change(config)
            found["config.json"] = json.dumps(config).encode()

        return self.zipped(name, members)

    def keras_layer(self, name: str, entry: dict[str, Any]) -> Path:
        """Puts a layer in the place of the first one that the .keras file describes."""
        return self.keras_config(name, lambda config: config["config"]["layers"].__setitem__(1, entry))

    def keras_weights(self, name: str, change: Callable[[Any], object]) -> Path:
        """Changes the HDF5 file inside the .keras file."""
        import h5py

        def members(found: dict[str, Any]) -> None:
            memory = io.BytesIO(found["model.weights.h5"])
            with h5py.File(memory, "r+") as file:
                change(file)
            found["model.weights.h5"] = memory.getvalue()

        return self.zipped(name, members)


def lambda_layer(bench: Bench) -> dict[str, Any]:
    """A layer of Keras that runs bytecode from the file, as `keras.saving` writes it."""
    code = compile(f"lambda x: (open({str(bench.canary)!r}, 'w').close(), x)[1]", "hostile", "eval").co_consts[0]
    packed = base64.b64encode(marshal.dumps(code)).decode()
    function = {"class_name": "__lambda__", "config": {"code": packed, "defaults": None, "closure": None}}
    return {"module": "keras.layers", "class_name": "Lambda", "registered_name": None, "config": {"name": "hidden", "function": function}}


class Touches:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def pickled(bench: Bench, protocol: int = 2) -> bytes:
    return pickle.dumps(Touches(bench.canary), protocol=protocol)
