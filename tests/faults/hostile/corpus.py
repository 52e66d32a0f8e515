"""The corpus: damaged and lying files of Convolt's own format, and pickles. `corpus_keras` has those of Keras."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.hostile.builders import Bench, hostile, pickled

# -- damaged -----------------------------------------------------------------------------------------------------------


@hostile("Truncated in the header")
def truncated_header(bench: Bench) -> Path:
    return bench.write("truncated_header.safetensors", bench.own[:200])


@hostile("Truncated in the values")
def truncated_values(bench: Bench) -> Path:
    return bench.write("truncated_values.safetensors", bench.own[:-5])


@hostile("Bytes after the last tensor")
def trailing_bytes(bench: Bench) -> Path:
    return bench.write("trailing_bytes.safetensors", bench.own + b"hidden")


@hostile("Empty")
def empty_file(bench: Bench) -> Path:
    return bench.write("empty_file.safetensors", b"")


@hostile("A web page under the name of a model")
def web_page(bench: Bench) -> Path:
    return bench.write("web_page.h5", b"<!DOCTYPE html><title>404</title>")


# -- header ------------------------------------------------------------------------------------------------------------


@hostile("Oversized header")
def oversized_header(bench: Bench) -> Path:
    return bench.write("oversized_header.safetensors", (2**40).to_bytes(8, "little") + bench.own[8:])


@hostile("One tensor twice in the header")
def duplicate_tensor(bench: Bench) -> Path:
    size = int.from_bytes(bench.own[:8], "little")
    text = bench.own[8 : 8 + size].rstrip()
    return bench.from_header("duplicate_tensor", text[:-1] + b',"kind.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
                             bench.own[8 + size :])


@hostile("Overlapping tensors")
def overlapping_tensors(bench: Bench) -> Path:
    def change(header: dict[str, Any]) -> None:
        entry = header["kind.bias"]
        entry["data_offsets"] = [entry["data_offsets"][0] - 4, entry["data_offsets"][1] - 4]

    return bench.changed_header("overlapping_tensors", change)


@hostile("A gap between tensors")
def gap_between_tensors(bench: Bench) -> Path:
    header, values = bench.header()
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [n + 16 for n in entry["data_offsets"]]
    return bench.from_header("gap_between_tensors", header, bytes(16) + values)


@hostile("A shape whose size overflows 64 bits")
def shape_overflow(bench: Bench) -> Path:
    return bench.changed_header("shape_overflow", lambda h: h["kind.bias"].update(shape=[2**62, 4]))


@hostile("A negative size")
def negative_size(bench: Bench) -> Path:
    return bench.changed_header("negative_size", lambda h: h["kind.bias"].update(shape=[-2]))


@hostile("An unknown type of values")
def unknown_dtype(bench: Bench) -> Path:
    return bench.changed_header("unknown_dtype", lambda h: h["kind.bias"].update(dtype="F33"))


@hostile("Metadata that is not text")
def nested_metadata(bench: Bench) -> Path:
    return bench.changed_header("nested_metadata", lambda h: h["__metadata__"].update(more={"a": [1]}))


@hostile("NaN in the JSON")
def nan_in_json(bench: Bench) -> Path:
    return bench.changed_layer("nan_in_json", lambda layer: layer["config"].update(units=float("nan")))


@hostile("JSON without end")
def deep_json(bench: Bench) -> Path:
    return bench.from_header("deep_json", b'{"a":' * 200_000, b"")


# -- what does not fit -------------------------------------------------------------------------------------------------


@hostile("Shape mismatch")
def shape_mismatch(bench: Bench) -> Path:
    return bench.changed_layer("shape_mismatch", lambda layer: layer["config"].update(units=5))


@hostile("Type mismatch")
def dtype_mismatch(bench: Bench) -> Path:
    return bench.changed_header("dtype_mismatch", lambda h: h["kind.bias"].update(dtype="I32"))


@hostile("Missing and unknown names")
def misspelt_name(bench: Bench) -> Path:
    return bench.changed_header("misspelt_name", lambda h: h.update({"kind.bais": h.pop("kind.bias")}))


@hostile("Non-finite weights")
def nonfinite_weights(bench: Bench) -> Path:
    header, values = bench.header()
    start = header["kind.bias"]["data_offsets"][0]
    return bench.from_header("nonfinite_weights", header, values[:start] + np.float32("nan").tobytes() + values[start + 4 :])


@hostile("Newer format")
def newer_format(bench: Bench) -> Path:
    return bench.changed_model("newer_format", lambda info: info.update(format=2))


@hostile("Weights alone")
def no_architecture(bench: Bench) -> Path:
    return bench.changed_header("no_architecture", lambda h: h["__metadata__"].pop("convolt"))


# -- architecture ------------------------------------------------------------------------------------------------------


@hostile("Unknown layer")
def unknown_layer(bench: Bench) -> Path:
    return bench.changed_layer("unknown_layer", lambda layer: layer.update(class_name="Densee"))


@hostile("A class name that is a path to a function")
def importing_class_name(bench: Bench) -> Path:
    entry = {"class_name": "os.system", "config": {"command": f"touch {bench.canary}"}}
    return bench.changed_layer("importing_class_name", lambda layer: layer.update(entry))


@hostile("A name that becomes code where torch.fx writes the model's graph as Python")
def code_in_name(bench: Bench) -> Path:
    code = f'a", open("{str(bench.canary).replace(".", "_")}", "w")), getattr(self, "a'
    return bench.changed_layer("code_in_name", lambda layer: layer["config"].update(name=code))


@hostile("An argument of a call that becomes code in the same way")
def code_in_argument(bench: Bench) -> Path:
    layer = {"class_name": "ReLU", "config": {"name": "relu"}}
    config = {"name": "net", "inputs": [{"batch_shape": [None, 4], "dtype": "float32", "name": "x"}], "input_keys": None, "layers": [layer],
              "calls": [{"layer": 0, "args": [{"tensor": [0, None]}], "kwargs": {f"a = open({str(bench.canary)!r}, 'w'), b": 1}}],
              "outputs": {"tensor": [1, None]}}
    return bench.changed_model("code_in_argument", lambda info: info.update(model={"class_name": "Functional", "config": config}))


@hostile("Shape bomb in the architecture: parameters that the file does not hold")
def units_bomb(bench: Bench) -> Path:
    return bench.changed_layer("units_bomb", lambda layer: layer["config"].update(units=10**12))


@hostile("Shape bomb: a number beyond 64 bits")
def overflow_bomb(bench: Bench) -> Path:
    return bench.changed_layer("overflow_bomb", lambda layer: layer["config"].update(units=10**30))


@hostile("Models inside models, each called twice: 2^40 calls in 6 kB")
def call_bomb(bench: Bench) -> Path:
    model: dict[str, Any] = {"class_name": "ReLU", "config": {"name": "relu"}}
    for level in range(20):
        calls = [{"layer": 0, "args": [{"tensor": [i, None]}], "kwargs": {}} for i in range(4)]
        config = {"name": f"m{level}", "inputs": [{"batch_shape": [None, 4], "dtype": "float32", "name": "x"}], "input_keys": None,
                  "layers": [model], "calls": calls, "outputs": {"tensor": [4, None]}}
        model = {"class_name": "Functional", "config": config}
    return bench.changed_model("call_bomb", lambda info: info.update(model=model))


@hostile("A metric whose state fills the memory")
def metric_bomb(bench: Bench) -> Path:
    metric = {"class_name": "MeanIoU", "config": {"num_classes": 10**6}}
    return bench.changed_model("metric_bomb", lambda info: info["compile"].update(metrics=[metric]))


@hostile("Unknown loss")
def unknown_loss(bench: Bench) -> Path:
    return bench.changed_model("unknown_loss", lambda info: info["compile"].update(loss="mean_absolute_errors"))


# -- pickles -----------------------------------------------------------------------------------------------------------


@hostile("CVE-2025-32434: a PyTorch file, whose pickle runs code")
def torch_archive(bench: Bench) -> Path:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("model/data.pkl", pickled(bench))
        archive.writestr("model/version", "3\n")
    return bench.write("torch_archive.pt", memory.getvalue())


@hostile("A pickle under the name of a model")
def renamed_pickle(bench: Bench) -> Path:
    return bench.write("renamed_pickle.safetensors", pickled(bench, 4))


@hostile("A pickle of protocol 0, which is text")
def old_pickle(bench: Bench) -> Path:
    return bench.write("old_pickle.pkl", pickled(bench, 0))


@hostile("A NumPy file with a pickled object")
def numpy_object(bench: Bench) -> Path:
    memory = io.BytesIO()
    np.lib.format.write_array(memory, np.array([None], dtype=object))
    return bench.write("numpy_object.npy", memory.getvalue())
