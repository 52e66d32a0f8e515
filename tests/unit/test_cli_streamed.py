"""Each verb that reads DATA says the same of pictures that fit into memory and of pictures that do not, and decodes what it needs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convolt
from convolt import layers
from convolt.cli.main import main
from convolt.data import ImageFolder
from convolt.data import pictures as pictures_module
from tests.unit.pictures import encode

NAMES = ("cat", "dog")
MEMORY = ("1GB", "1")  # all of it, or nothing stays decoded


def picture(label, n, side=12):
    pixels = np.random.default_rng(n + 1000 * label).integers(0, 156, (side, side, 3), np.uint8)
    return encode(Image.fromarray(pixels + np.uint8(100 * label)))


def fill(root, counts, side=12):
    for part, count in counts.items():
        for label, name in enumerate(NAMES):
            (root / part / name).mkdir(parents=True)
            for n in range(count):
                (root / part / name / f"{n:03d}.png").write_bytes(picture(label, n + 500 * (part == "test"), side))


def saved_model(path, side=12):
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input((side, side, 3)), layers.Rescaling(1 / 255), layers.AveragePooling2D(side // 4),
                                layers.Flatten(), layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", precision="float32")
    model.class_names = list(NAMES)
    model.save(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "pets", {"train": 30, "test": 20})
    saved_model("model.safetensors")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """The files whose contents were read, in order."""
    found = []
    content = ImageFolder.content

    def counted(self, index):
        found.append(f"{self.root.name}/{self.files[index]}")
        return content(self, index)

    monkeypatch.setattr(ImageFolder, "content", counted)
    return found


def both(line, monkeypatch, capsys):
    """Returns what a line prints where all pictures fit, and where none does."""
    said = []
    for memory in MEMORY:
        monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
        assert main(line.split()) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
    return said


def test_evaluate(place, monkeypatch, capsys, decoded):
    there, streamed = both("evaluate model.safetensors --data pets --batch-size 16 --verbose 0 --device cpu", monkeypatch, capsys)
    assert there == streamed
    assert "on the test set (40 samples)" in there
    assert {name for name in decoded if name.startswith("train/")} == set(), "of training, no picture is looked at"
    there, streamed = both("evaluate model.safetensors --data pets --part train --verbose 0 --device cpu --out drawn", monkeypatch, capsys)
    assert there == streamed
    assert "predictions.png" in there and (place / "drawn" / "confusion.png").exists()


@pytest.mark.filterwarnings("default::convolt.data.left_out.SkippedFilesWarning")  # the command line speaks it
def test_evaluate_tells_of_bad_files(place, monkeypatch, capsys):
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    (place / "pets" / "test" / "cat" / "003.png").write_bytes(b"")
    for said in both("evaluate model.safetensors --data pets --verbose 0 --device cpu", monkeypatch, capsys):
        assert "1 of 40 files left out: cat/003.png" in said.replace("\n", " ")
        assert "on the test set (39 samples)" in said


def test_lr_find(place, monkeypatch, capsys):
    line = "lr-find model.safetensors --data pets --batch-size 16 --steps 12 --device cpu --precision float32 --json"
    there, streamed = (json.loads(text) for text in both(line, monkeypatch, capsys))
    assert there == streamed and len(there["losses"]) >= 10


def test_plan_decodes_no_more_than_it_measures(place, monkeypatch, capsys, decoded):
    monkeypatch.setenv("PATH", str(place))  # without a C++ compiler nothing is compiled, which would take seconds
    for text in both("plan model.safetensors --data pets --batch-size 4 --device cpu --json", monkeypatch, capsys):
        assert json.loads(text)["residency"] == "resident"
    assert 0 < len(set(decoded)) <= 16 + 8 + 64, "four batches, a few to choose the loss, and some whose size is looked at"


def test_pictures_of_several_sizes_get_that_of_the_architecture(place, monkeypatch, capsys):
    for n in range(4):
        (place / "pets" / "train" / "cat" / f"{n:03d}.png").write_bytes(picture(0, n, 9))
    for said in both("lr-find mobilenet_v3_small --steps 10 --data pets --batch-size 2 --device cpu", monkeypatch, capsys):
        assert "they get 224×224, that of mobilenet_v3_small; --image-size says another" in said


def test_export_is_checked_on_what_does_not_fit(place, monkeypatch, capsys):
    there, streamed = both("export model.safetensors --to pt2 --check pets --samples 30", monkeypatch, capsys)
    assert there == streamed
    assert "on 30 samples of pets" in there and "% before" in there


@pytest.mark.filterwarnings("default::convolt.data.left_out.SkippedFilesWarning")
def test_export_leaves_bad_files_out_of_the_comparison(place, monkeypatch, capsys):
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    expected = both("export model.safetensors --to pt2 --check pets", monkeypatch, capsys)[0]
    (place / "pets" / "test" / "cat" / "003.png").write_bytes(b"")
    for said in both("export model.safetensors --to pt2 --check pets", monkeypatch, capsys):
        assert "on 39 samples of pets" in said
        assert said.count("%") == expected.count("%") == 2


def test_predict(place, monkeypatch, capsys):
    np.save("array.npy", np.zeros((3, 12, 12, 3), np.uint8))
    (place / "pets" / "broken.png").write_bytes(b"no picture")
    tables = []
    for memory in MEMORY:
        monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
        line = "predict model.safetensors pets/test/dog/000.png pets array.npy --batch-size 16 --out table.csv --device cpu"
        assert main(line.split()) == 0
        assert "skipped pets/broken.png" in capsys.readouterr().out
        with open("table.csv", newline="", encoding="utf-8") as file:
            tables.append(list(csv.reader(file)))
    assert tables[0] == tables[1]
    rows = tables[0][1:]
    assert len(rows) == 1 + 100 + 3
    assert [row[0] for row in rows[:2]] == ["pets/test/dog/000.png", "pets/test/cat/000.png"] and rows[-1][0] == "array.npy[2]"
    by_name = {row[0]: row[1:] for row in rows[1:]}
    assert by_name["pets/test/dog/000.png"] == rows[0][1:]
    model = convolt.load_model("model.safetensors", device="cpu")
    expected = model.predict("pets/train/dog/007.png", verbose=0).max()
    assert float(by_name["pets/train/dog/007.png"][1]) == pytest.approx(float(expected), abs=1e-6)


def test_predict_of_nothing_that_can_be_read(place, capsys):
    (place / "bad").mkdir()
    (place / "bad" / "a.png").write_bytes(b"no picture")
    assert main(["predict", "model.safetensors", "bad", "--device", "cpu"]) == 1
    assert "no picture that can be read; the first" in capsys.readouterr().err.replace("\n", " ")
    assert main(["predict", "model.safetensors", "pets/test/cat/000.png", "bad", "--device", "cpu"]) == 0


LIMITED = """
import resource, sys
from convolt.cli.main import main
def run(line):
    code = main(line.split())
    assert code == 0, (line, code)
lines = ["evaluate model.safetensors --data {} --part train --batch-size 8 --verbose 0 --device cpu",
         "lr-find model.safetensors --data {} --batch-size 8 --steps 10 --device cpu --json",
         "plan model.safetensors --data {} --batch-size 8 --device cpu --json",
         "export model.safetensors --to pt2 --check {} --samples 1280",
         "predict model.safetensors {} --batch-size 8 --device cpu --out table.csv"]
for line in lines:
    run(line.format("few"))
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 96 * 2**20,) * 2)
for line in lines:
    run(line.format("pets"))
from convolt.data import ImageFolder
try:
    ImageFolder("pets", image_size=(256, 256)).load()
except MemoryError:
    print("whole: MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_stays_bounded(tmp_path):
    """240 MB of decoded pictures; the system refuses any allocation beyond 96 MB more than the verbs took for a few of them."""
    fill(tmp_path / "whole", {"pets": 640, "few": 32}, 10)
    for name in ("pets", "few"):
        (tmp_path / "whole" / name).rename(tmp_path / name)
    saved_model(tmp_path / "model.safetensors", 256)
    environment = {**os.environ, "CONVOLT_DATA_MEMORY": "12MB", "MALLOC_ARENA_MAX": "1", "CONVOLT_CACHE": str(tmp_path / "cache"),
                   "PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("whole: MemoryError\n")
    assert "(1,280 samples)" in done.stdout and "on 128 samples of pets" in done.stdout
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1281
