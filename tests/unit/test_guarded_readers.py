"""The readers that every model file goes through: limits, kinds, JSON, zip archives, HDF5 in a process of its own."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.errors import ArgumentError, ModelFileError
from convolt.formats import guard, hdf5_worker, load_weights
from convolt.formats.archive import read_members
from convolt.formats.guard import LIMITS, Limits, kind_of, read_json
from convolt.formats.hdf5 import open_hdf5
from convolt.formats.header import read_header
from convolt.layers.tracing import trace_call
from convolt.models import Model, Sequential

# -- kinds -------------------------------------------------------------------------------------------------------------


def torch_file(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path)


def old_torch_file(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def npy(save: object) -> bytes:
    memory = io.BytesIO()
    save(memory, np.ones(2))
    return memory.getvalue()


@pytest.mark.parametrize(("write", "kind"), [
    (torch_file, "torch"), (old_torch_file, "pickle"), (lambda p: p.write_bytes(pickle.dumps({"a": 1}, 4)), "pickle"),
    (lambda p: p.write_bytes(pickle.dumps(os.system, 0)), "pickle"), (lambda p: p.write_bytes(npy(np.save)), "numpy"),
    (lambda p: p.write_bytes(npy(np.savez)), "numpy"), (lambda p: h5py.File(p, "w").close(), "hdf5"),
    (lambda p: Sequential([layers.Input((2,)), layers.Dense(1)]).save_weights(p), "safetensors"), (lambda p: p.write_bytes(b""), "other"),
    (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0"), "other"), (lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch"), "onnx"),
])
def test_the_kind_follows_from_the_content(write: object, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path)
    assert kind_of(path).name == kind


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"no such file.*Did you mean 'model.h5'"):
        kind_of(tmp_path / "modell.h5")
    with pytest.raises(ModelFileError, match="a folder"):
        kind_of(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="no plain file"):
        kind_of(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="at most 0"):
        guard.check_file(tmp_path / "model.h5", Limits(file_bytes=0))


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "message"), [
    ('{"a": NaN}', "the number NaN"), ('{"a": -Infinity}', "-Infinity"), ('{"a": 1e999}', "1e999"),
    ('{"a": 1, "a": 2}', "the key 'a' twice"),
    ("[" * 200 + "]" * 200, "too many levels"), ("[" * 10**6, "too many levels"), ('{"a":', "damaged JSON"), (b"\xff", "damaged JSON"),
    ("9" * 5000, "damaged JSON"), ("[]" + " " * LIMITS.header_bytes, "bytes of JSON"),
])
def test_json_within_bounds(text: str | bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_json("config", text)


def test_json_is_read() -> None:
    value = {"a": [1, 2.5, None, {"é": True}]}
    assert read_json("config", json.dumps(value)) == read_json("config", json.dumps(value).encode()) == value
    assert guard.depth_of(value, 10) == 3
    assert guard.depth_of(1, 10) == 0


# -- zip archives ------------------------------------------------------------------------------------------------------


def archive_of(members: list[tuple[object, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return memory.getvalue()


def a_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a")
    info.external_attr = 0o120777 << 16
    return info


def encrypted() -> bytes:
    data = bytearray(archive_of([("a", b"abc")], zipfile.ZIP_STORED))
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + at] |= 1
    return bytes(data)


@pytest.mark.parametrize(("data", "message"), [
    (archive_of([("a", b"x" * 101)]), "101 bytes; expected at most 100"), (archive_of([("a", b""), ("b", b"")]), "the unknown b"),
    (archive_of([]), "without its end|no a"), (archive_of([("../a", b"")]), "own folder"),
    (archive_of([(a_link(), b"/etc/passwd")]), "link"),
    (encrypted(), "encrypted"), (archive_of([("a", b"x")], zipfile.ZIP_BZIP2), "compression 12"), (b"PK\x03\x04", "without its end"),
    (archive_of([(f"{i}", b"") for i in range(2000)]), "at most 1,000 members"),
])
def test_what_an_archive_may_not_hold(data: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_members(data, {"a": 100})


def test_unpacking_stops_at_the_cap_whatever_the_directory_says() -> None:
    data = archive_of([("a", bytes(50 * 2**20))])
    lying = data.replace((50 * 2**20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    with pytest.raises(ModelFileError, match=r"damaged|100"):
        read_members(lying, {"a": 1000})
    with pytest.raises(ModelFileError, match="zip bomb"):
        read_members(data, {"a": 2**30})


def test_members_are_read(tmp_path: Path) -> None:
    data = archive_of([("a", b"1"), ("b/c", b"2"), ("d", b"3")])
    (tmp_path / "a.zip").write_bytes(data)
    for source in (data, tmp_path / "a.zip"):
        assert read_members(source, {"a": 1}, optional={"b/": 0, "d": 1, "e": 1}) == {"a": b"1", "d": b"3"}


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def test_hdf5_gives_arrays_and_attributes_as_they_are(tmp_path: Path) -> None:
    arrays = {"a/b": np.arange(6, dtype=">f4").reshape(2, 3), "a/c": np.array(7, "int64"), "d": np.zeros((0, 3), "float16"),
              "e": np.arange(5000, dtype="uint8").reshape(50, 100), "f": np.array([True, False])}
    with h5py.File(tmp_path / "x.h5", "w", track_order=True) as file:
        for name, value in arrays.items():
            options = {"chunks": (7, 30), "compression": "gzip", "shuffle": True, "fletcher32": True} if name == "e" else {}
            file.create_dataset(name, data=value, **options)
        file.attrs.update({"text": "é", "bytes": b"abc", "number": 3, "float": 2.5, "names": [b"a", b"bc"], "words": ["x", "ÿ"],
                           "none": []})
        file["a"].attrs["of a"] = True
    for source in (tmp_path / "x.h5", (tmp_path / "x.h5").read_bytes()):
        with open_hdf5(source) as file:
            assert file.names() == ["a", "d", "e", "f"]
            assert file.names("a") == ["b", "c"]
            assert set(file.arrays()) == set(arrays)
            for name, value in arrays.items():
                got = file.array(name, finite=True)
                np.testing.assert_array_equal(got, value)
                assert got.dtype == value.dtype.newbyteorder("=") and got.flags.c_contiguous and got.flags.writeable
                assert file.shape(name) == value.shape and name in file
            assert file.attributes() == {"text": "é", "bytes": "abc", "number": 3, "float": 2.5, "names": ["a", "bc"], "words": ["x", "ÿ"],
                                         "none": []}
            assert file.attributes("a") == {"of a": True}
            assert "z" not in file
            with pytest.raises(ModelFileError, match="nothing of that name"):
                file.array("z")
            with pytest.raises(ModelFileError, match="another kind"):
                file.array("a")


def test_large_arrays_come_in_pieces(tmp_path: Path) -> None:
    value = np.random.default_rng(0).random((1, 300, 40_000), "float32")  # 48 MB, more than one piece
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = value
    with open_hdf5(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file.array("x"), value)
    with pytest.raises(ModelFileError, match=r"shape \(1, 300, 40000\).* at most 1,000,000"), \
            open_hdf5(tmp_path / "x.h5", limits=replace(LIMITS, tensor_bytes=10**6)):
        pass


@pytest.mark.parametrize(("limits", "message"), [
    ({"tensors": 3}, "more than 3"), ({"group_depth": 2}, "groups inside groups"), ({"attribute_bytes": 10}, "bytes of attributes"),
    ({"tensor_axes": 1}, "2 axes"), ({"file_bytes": 100}, "at most 100"),
])
def test_limits_of_hdf5(limits: dict[str, int], message: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/b/c/d"] = np.ones((2, 2))
        file.attrs["long"] = "x" * 100
    with pytest.raises(ModelFileError, match=message), open_hdf5(tmp_path / "x.h5", limits=replace(LIMITS, **limits)):
        pass


def test_a_crash_of_the_library_is_an_error_of_ours(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = 1.0

    def crashes(*_: object) -> int:
        return subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], check=False).returncode

    def wrote_nonsense(_source: object, out: io.BytesIO, *_: object) -> int:
        out.write((10).to_bytes(8, "little") + b'[{"path":1')
        return 0

    with pytest.raises(ModelFileError, match=f"ended with signal {int(signal.SIGSEGV)}"), open_hdf5(tmp_path / "x.h5", run=crashes):
        pass
    with pytest.raises(ModelFileError, match=r"wrote nonsense|damaged JSON"), open_hdf5(tmp_path / "x.h5", run=wrote_nonsense):
        pass


def test_the_process_that_reads_hdf5_can_open_nothing_more(tmp_path: Path) -> None:
    code = f"""
import json, os, socket, sys
sys.path.insert(0, {str(Path(hdf5_worker.__file__).parent)!r})
import hdf5_worker
hdf5_worker.lock_down(json.loads({json.dumps(asdict(LIMITS))!r}), 1000)
for attempt in (lambda: open({str(tmp_path / "canary")!r}, "w"), lambda: open("/etc/hostname"), lambda: os.pipe(), socket.socket):
    try:
        attempt()
    except OSError as error:
        assert error.errno == 24, error
    else:
        sys.exit("it could")
try:
    bytearray(3 * 2**30)
except MemoryError:
    sys.exit(0)
sys.exit("it could take memory")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "canary").exists()


# -- our own files -----------------------------------------------------------------------------------------------------


def test_the_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    model = Sequential([layers.Input((4,)), layers.Dense(3, name="a")])
    model.save(tmp_path / "m.safetensors")
    header = read_header(tmp_path / "m.safetensors")
    assert {name: (entry.dtype, entry.shape, entry.bytes) for name, entry in header.tensors.items()} == {
        "a.bias": ("float32", (3,), 12), "a.weight": ("float32", (3, 4), 48)}
    assert "convolt" in header.metadata


def test_weights_that_are_not_finite_are_allowed_by_name(tmp_path: Path) -> None:
    model = Sequential([layers.Input((4,)), layers.Dense(3, name="a")])
    with torch.no_grad():
        model.get_layer("a").bias.fill_(float("inf"))
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match=r"allow_nonfinite=\['a.bias'\]"):
        convolt.load_model(tmp_path / "m.safetensors")
    again = convolt.formats.load_model(tmp_path / "m.safetensors", allow_nonfinite=["a.bias"], device="cpu")
    assert again.get_layer("a").bias.isinf().all()
    load_weights(model, tmp_path / "m.safetensors", allow_nonfinite=["a.bias"])
    with pytest.raises(ModelFileError, match="allow_nonfinite"):
        load_weights(model, tmp_path / "m.safetensors", allow_nonfinite=["a.weight"])


def test_no_initial_value_is_drawn_for_a_model_from_a_file(tmp_path: Path) -> None:
    Sequential([layers.Input((4,)), layers.Dense(3, kernel_initializer="orthogonal")]).save(tmp_path / "m.safetensors")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    convolt.load_model(tmp_path / "m.safetensors", device="cpu")
    assert torch.equal(state, torch.get_rng_state())


def test_names_cannot_become_code() -> None:
    """torch.fx writes a layer's name into the code of a graph, between quotation marks that it does not escape."""
    for name in ('a"), print("b', "a'b", "a\\", "a`b", "a\nb"):
        with pytest.raises(ArgumentError, match="without quotes"):
            Sequential([layers.Input((4,)), layers.Dense(3, name=name)])
    model = Model(x := layers.Input((4,)), layers.Dense(3, name="1 (größer) = ]")(x))
    assert trace_call(model, 1)(torch.ones(1, 4)).shape == (1, 3)


def test_arguments_of_calls_cannot_become_code() -> None:
    x = layers.Input((4,))
    with pytest.raises(ArgumentError, match="the name of an argument"):
        Model(x, layers.ReLU()(x, **{"a = print(1), b": 1}))
