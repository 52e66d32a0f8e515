"""`convolt inspect`: what a file holds and whether it is safe, without loading it."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from convolt import layers
from convolt.cli.main import main
from convolt.errors import ModelFileError
from convolt.formats.inspect import inspect_file
from convolt.formats.pickles import globals_of
from convolt.models import Model, Sequential


def net() -> Sequential:
    model = Sequential([layers.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu", name="first"),
                        layers.Flatten(), layers.Dense(3, activation="softmax", name="kind")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    model.class_names = ["cat", "dog", "newt"]
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".keras"])
def test_a_model_is_described(suffix: str, tmp_path: Path) -> None:
    net().save(tmp_path / f"m{suffix}")
    report = inspect_file(tmp_path / f"m{suffix}")
    assert report.safe and not report.problems
    rows = {row.name: row for row in report.layers}
    assert rows["first"].kind == "Conv2D" and rows["first"].arguments == "filters=4, kernel_size=[3, 3], activation=relu"
    assert all(row.known for row in report.layers)
    assert any(text.startswith("Rescaling(scale=0.0039") for text in report.preprocessing)
    assert dict(report.facts)["classes"] == "3: cat, dog, newt"
    assert "Adam" in dict(report.facts)["optimizer"]
    assert sum(row.bytes for row in report.weights if "kernel" in row.name or "weight" in row.name or "vars/0" in row.name) > 0
    assert {(3, 144), (144, 3)} & {row.shape for row in report.weights}
    assert json.loads(json.dumps(report.as_json()))["safe"] is True


def test_models_inside_models_are_listed_below_them(tmp_path: Path) -> None:
    inner = Sequential([layers.Input((4,)), layers.Dense(2, name="deep")], name="inner")
    x = layers.Input((4,))
    Model(x, layers.Dense(1, name="top")(inner(x))).save(tmp_path / "m.safetensors")
    depths = {row.name: row.depth for row in inspect_file(tmp_path / "m.safetensors").layers}
    assert (depths["inner"], depths["deep"], depths["top"]) == (1, 2, 1)


def test_no_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net().save(tmp_path / "m.safetensors")
    net().save(tmp_path / "m.h5")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("safetensors.safe_open", fail)
    monkeypatch.setattr("convolt.formats.hdf5.Hdf5File.array", fail)
    assert inspect_file(tmp_path / "m.safetensors").safe
    assert inspect_file(tmp_path / "m.h5").safe


def test_a_class_of_the_user_is_named(tmp_path: Path) -> None:
    class Own(layers.Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    Sequential([layers.Input((4,)), Own(name="mine"), layers.Dense(2)]).save(tmp_path / "m.safetensors")
    report = inspect_file(tmp_path / "m.safetensors")
    assert not report.safe
    assert "'mine'" in report.problems[0] and "custom_objects" in report.problems[0]


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_tells_what_it_would_import_and_is_not_loaded(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Runs(tmp_path / "canary"), protocol))
    report = inspect_file(tmp_path / "m.pkl")
    assert not report.safe and not (tmp_path / "canary").exists()
    assert report.imports in (["io.open"], ["_io.open"], ["__builtin__.open"])
    assert "import what tensors do not need" in report.problems[0]


def test_pytorch_files_of_both_formats(tmp_path: Path) -> None:
    for new in (True, False):
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=new)
        report = inspect_file(tmp_path / "m.pt")
        assert not report.safe and len(report.problems) == 1 and "export" in report.problems[0].lower()
        assert set(report.imports) == {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"}
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    assert any("torch.nn.modules.linear.Linear" in problem for problem in inspect_file(tmp_path / "m.pt").problems)


def test_damaged_pickles_end_quietly() -> None:
    data = pickle.dumps([torch.float32, "x" * 100], 4)
    for end in range(len(data)):
        globals_of(data[:end])
    assert globals_of(b"not a pickle") == ([], 0)
    assert globals_of(b"I" + b"9" * 10_000 + b"\n.")[1] == 0
    assert globals_of(pickle.dumps(1) * 3)[1] == 3


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    memory = io.BytesIO()
    np.save(memory, np.ones(3))
    for content, words in ((b"\xff\xd8\xff\xe0", "a JPEG picture"), (b"", "an empty file"), (memory.getvalue(), "a NumPy array"),
                           (b"PK\x03\x04", "a damaged file")):
        (tmp_path / "m.keras").write_bytes(content)
        report = inspect_file(tmp_path / "m.keras")
        assert (report.safe, report.kind) == (False, words)
        assert report.verdict
    with pytest.raises(ModelFileError, match="no such file"):
        inspect_file(tmp_path / "other.h5")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net().save(tmp_path / "m.safetensors")
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    for words in ("✓ Safe", "Conv2D", "first.weight", "4×1×3×3", "3: cat, dog, newt"):
        assert words in out, out
    assert main(["inspect", str(tmp_path / "m.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["format"] == "Convolt 1"
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Runs(tmp_path / "canary")))
    assert main(["inspect", str(tmp_path / "m.pt")]) == 1
    assert "✗ Unsafe: a pickle is a program" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "none.pt")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_text_from_a_file_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors", {"note": "\x1b[2J\x1b]0;owned\x07[bold]x[/bold]"})
    main(["inspect", str(tmp_path / "m.safetensors")])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "[bold]x[/bold]" in out
