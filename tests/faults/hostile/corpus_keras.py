"""The corpus: Keras's .h5 files and .keras archives that reach for code, other files, the network or all of the memory."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.hostile.builders import Bench, hostile, lambda_layer


def kernel_of(file: Any) -> str:
    """Returns the path of the first kernel in an open file."""
    found: list[str] = []
    file.visititems(lambda path, thing: found.append(path) if hasattr(thing, "shape") and thing.shape == (4, 3) else None)
    return found[0]


def replaced(file: Any, link: Any) -> None:
    path = kernel_of(file)
    del file[path]
    file[path] = link


# -- code --------------------------------------------------------------------------------------------------------------


@hostile("CVE-2024-3660: a Lambda layer with bytecode")
def lambda_in_keras(bench: Bench) -> Path:
    return bench.keras_layer("lambda_in_keras", lambda_layer(bench))


@hostile("CVE-2025-9905: the same in .h5, where safe_mode was ignored")
def lambda_in_h5(bench: Bench) -> Path:
    return bench.h5_layer("lambda_in_h5", lambda_layer(bench))


@hostile("CVE-2025-1550: any module and function from config.json")
def any_function(bench: Bench) -> Path:
    entry = {"module": "os", "class_name": "function", "registered_name": "function", "config": "system",
             "inbound_nodes": [{"args": [f"touch {bench.canary}"], "kwargs": {}}]}
    return bench.keras_layer("any_function", entry)


@hostile("CVE-2025-1550: a function in the place of an activation")
def function_as_activation(bench: Bench) -> Path:
    function = {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"}
    entry = {"module": "keras.layers", "class_name": "Dense", "registered_name": None,
             "config": {"name": "hidden", "units": 3, "activation": function}}
    return bench.keras_layer("function_as_activation", entry)


@hostile("CVE-2025-8747: keras.utils.get_file called from the file")
def get_file(bench: Bench) -> Path:
    entry = {"module": "keras.utils", "class_name": "function", "registered_name": "function", "config": "get_file",
             "inbound_nodes": [{"args": [], "kwargs": {"fname": str(bench.canary), "origin": bench.url}}]}
    return bench.keras_layer("get_file", entry)


@hostile("CVE-2025-9906: the file switches the safe mode off, then brings its code")
def switches_safety_off(bench: Bench) -> Path:
    switch = {"module": "keras.config", "class_name": "function", "registered_name": "function",
              "config": "enable_unsafe_deserialization", "inbound_nodes": [{"args": [], "kwargs": {}}]}

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][1:1] = [switch, lambda_layer(bench)]

    return bench.keras_config("switches_safety_off", change)


@hostile("A PyTorch module pickled inside a layer of Keras")
def torch_module_wrapper(bench: Bench) -> Path:
    entry = {"module": "keras.layers", "class_name": "TorchModuleWrapper", "registered_name": None,
             "config": {"name": "hidden", "module": "gASVCQAAAAAAAACMBW1vZGVslC4="}}
    return bench.keras_layer("torch_module_wrapper", entry)


@hostile("A class of somebody's, by its registered name")
def custom_class(bench: Bench) -> Path:
    entry = {"module": "builtins", "class_name": "Dense", "registered_name": "Evil>Dense", "config": {"name": "hidden", "units": 3}}
    return bench.keras_layer("custom_class", entry)


def functional(argument: str, legacy: bool) -> dict[str, Any]:
    """Returns a functional model of Keras in which a ReLU is called with an argument of this name."""
    tensor = {"class_name": "__keras_tensor__", "config": {"shape": [None, 4], "dtype": "float32", "keras_history": ["x", 0, 0]}}
    calls: list[Any] = [[["x", 0, 0, {argument: 1}]]] if legacy else [{"args": [tensor], "kwargs": {argument: 1}}]
    layers = [{"module": "keras.layers", "class_name": "InputLayer", "registered_name": None, "name": "x", "inbound_nodes": [],
               "config": {"batch_shape": [None, 4], "dtype": "float32", "name": "x"}},
              {"module": "keras.layers", "class_name": "ReLU", "registered_name": None, "name": "relu", "inbound_nodes": calls,
               "config": {"name": "relu"}}]
    return {"module": "keras", "class_name": "Functional", "registered_name": None,
            "config": {"name": "net", "layers": layers, "input_layers": [["x", 0, 0]], "output_layers": [["relu", 0, 0]]}}


@hostile("An argument of a call that becomes code in torch.fx, in .keras")
def code_in_argument_of_keras(bench: Bench) -> Path:
    code = f"a = open({str(bench.canary)!r}, 'w'), b"

    def change(config: dict[str, Any]) -> None:
        config.clear()
        config.update(functional(code, legacy=False))

    return bench.keras_config("code_in_argument_of_keras", change)


@hostile("The same in .h5, where calls are lists")
def code_in_argument_of_h5(bench: Bench) -> Path:
    code = f"a = open({str(bench.canary)!r}, 'w'), b"
    return bench.changed_h5("code_in_argument_of_h5",
                            lambda file: file.attrs.__setitem__("model_config", json.dumps(functional(code, legacy=True))))


# -- other files and the network ---------------------------------------------------------------------------------------


@hostile("CVE-2025-12058: a vocabulary file named by the configuration")
def vocabulary_file(bench: Bench) -> Path:
    entry = {"module": "keras.layers", "class_name": "StringLookup", "registered_name": None,
             "config": {"name": "hidden", "vocabulary": str(bench.secret)}}
    return bench.keras_layer("vocabulary_file", entry)


@hostile("CVE-2025-12058: a URL in the place of an argument")
def url_as_argument(bench: Bench) -> Path:
    entry = {"module": "keras.layers", "class_name": "Dense", "registered_name": None,
             "config": {"name": "hidden", "units": 3, "activation": bench.url}}
    return bench.keras_layer("url_as_argument", entry)


@hostile("CVE-2026-1669: weights that lie in another file (external storage)")
def external_storage(bench: Bench) -> Path:
    def change(file: Any) -> None:
        path = kernel_of(file)
        del file[path]
        file.create_dataset(path, (4, 3), "float32", external=[(str(bench.secret.resolve()), 0, 48)])

    return bench.changed_h5("external_storage", change)


@hostile("CVE-2026-1669: the same inside .keras")
def external_storage_in_keras(bench: Bench) -> Path:
    def change(file: Any) -> None:
        path = kernel_of(file)
        del file[path]
        file.create_dataset(path, (4, 3), "float32", external=[(str(bench.secret.resolve()), 0, 48)])

    return bench.keras_weights("external_storage_in_keras", change)


@hostile("A link to another HDF5 file")
def external_link(bench: Bench) -> Path:
    import h5py

    other = str((bench.folder / "whole.h5").resolve())
    return bench.changed_h5("external_link", lambda file: replaced(file, h5py.ExternalLink(other, "/")))


@hostile("A soft link")
def soft_link(bench: Bench) -> Path:
    import h5py

    return bench.changed_h5("soft_link", lambda file: replaced(file, h5py.SoftLink("/model_weights")))


@hostile("A virtual data set, whose values lie in another file")
def virtual_dataset(bench: Bench) -> Path:
    import h5py

    def change(file: Any) -> None:
        path = kernel_of(file)
        del file[path]
        layout = h5py.VirtualLayout((4, 3), "float32")
        layout[:] = h5py.VirtualSource(str((bench.folder / "whole.h5").resolve()), path, (4, 3))
        file.create_virtual_dataset(path, layout)

    return bench.changed_h5("virtual_dataset", change)


@hostile("A group that contains itself")
def group_loop(bench: Bench) -> Path:
    return bench.changed_h5("group_loop", lambda file: file["model_weights"].__setitem__("again", file["model_weights"]))


# -- memory ------------------------------------------------------------------------------------------------------------


@hostile("CVE-2026-0897: a shape of 4 TB without values")
def shape_bomb(bench: Bench) -> Path:
    def change(file: Any) -> None:
        path = kernel_of(file)
        del file[path]
        file.create_dataset(path, (10**6, 10**6), "float32", chunks=(1000, 1000))

    return bench.keras_weights("shape_bomb", change)


@hostile("Values of 100 MB that take 100 kB packed")
def packed_bomb(bench: Bench) -> Path:
    def change(file: Any) -> None:
        path = kernel_of(file)
        del file[path]
        file.create_dataset(path, data=np.zeros((1000, 25_000), "float32"), chunks=(100, 2_500), compression="gzip", compression_opts=9)

    return bench.changed_h5("packed_bomb", change)


@hostile("A type that is no number")
def compound_values(bench: Bench) -> Path:
    def change(file: Any) -> None:
        path = kernel_of(file)
        del file[path]
        file.create_dataset(path, data=np.zeros(3, [("a", "f4"), ("b", "i4")]))

    return bench.changed_h5("compound_values", change)


@hostile("Zip bomb")
def zip_bomb(bench: Bench) -> Path:
    zeros = bytes(60 * 2**20)
    return bench.zipped("zip_bomb", lambda m: m.update({"model.weights.h5": m["model.weights.h5"] + zeros}), zipfile.ZIP_DEFLATED)


@hostile("A configuration of 20 MB")
def config_bomb(bench: Bench) -> Path:
    return bench.zipped("config_bomb", lambda m: m.update({"config.json": b"[" + b"0," * 10**7 + b"0]"}), zipfile.ZIP_DEFLATED)


@hostile("Shape bomb in config.json: parameters that the file does not hold")
def units_bomb_in_keras(bench: Bench) -> Path:
    return bench.keras_config("units_bomb_in_keras", lambda c: c["config"]["layers"][1]["config"].update(units=10**12))


@hostile("A size whose bytes overflow 64 bits")
def overflow_in_keras(bench: Bench) -> Path:
    return bench.keras_config("overflow_in_keras", lambda c: c["config"]["layers"][1]["config"].update(units=2**62))


# -- archives ----------------------------------------------------------------------------------------------------------


@hostile("One member twice")
def duplicate_member(bench: Bench) -> Path:
    return bench.zipped("duplicate_member", lambda m: m.update({"config.json": [m["config.json"], m["config.json"]]}))


@hostile("CVE-2025-12060, CVE-2025-12638: a member that climbs out of the archive")
def climbing_member(bench: Bench) -> Path:
    return bench.zipped("climbing_member", lambda m: m.update({"../canary": b"out"}))


@hostile("A member with an absolute path")
def absolute_member(bench: Bench) -> Path:
    return bench.zipped("absolute_member", lambda m: m.update({"/canary": b"out"}))


@hostile("A member that nobody expects")
def unknown_member(bench: Bench) -> Path:
    return bench.zipped("unknown_member", lambda m: m.update({"payload.py": b"print()"}))


@hostile("A member is missing")
def missing_member(bench: Bench) -> Path:
    return bench.zipped("missing_member", lambda m: m.pop("model.weights.h5"))


@hostile("An archive cut off")
def truncated_archive(bench: Bench) -> Path:
    return bench.write("truncated_archive.keras", bench.keras[:-40])


@hostile("An HDF5 file cut off")
def truncated_h5(bench: Bench) -> Path:
    return bench.write("truncated_h5.h5", bench.h5[: len(bench.h5) // 2])


@hostile("Unknown layer in .h5")
def unknown_layer_in_h5(bench: Bench) -> Path:
    return bench.h5_layer("unknown_layer_in_h5", {"class_name": "Densee", "config": {"name": "hidden", "units": 3}})


@hostile("Weights of another shape in .h5")
def shape_mismatch_in_h5(bench: Bench) -> Path:
    def change(file: Any) -> None:
        path = kernel_of(file)
        del file[path]
        file.create_dataset(path, data=np.zeros((4, 7), "float32"))

    return bench.changed_h5("shape_mismatch_in_h5", change)


@hostile("Non-finite weights in .h5")
def nonfinite_in_h5(bench: Bench) -> Path:
    return bench.changed_h5("nonfinite_in_h5", lambda file: file[kernel_of(file)].__setitem__((0, 0), np.inf))


@hostile("config.json is no mapping")
def config_is_a_list(bench: Bench) -> Path:
    return bench.zipped("config_is_a_list", lambda m: m.update({"config.json": json.dumps([1, 2]).encode()}))
