"""Pictures with several labels each, from a table through every verb: `train`, `evaluate`, `predict`, `plan`, `lr-find`, `data`."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convolt
from convolt import layers
from convolt.cli.main import main

NAMES = ("blue", "green", "red")
CORNERS = ((0, 0), (0, 8), (8, 0))
TRAIN = "train cnn --epochs 6 --batch-size 16 --verbose 0 --device cpu --precision float32 --fusions none"


def draw(place: Path, count: int) -> np.ndarray:
    """Draws a square of a colour into its corner for each label that a picture has; returns which it has, bool (count, 3)."""
    random = np.random.default_rng(0)
    labels = random.random((count, 3)) < 0.5
    (place / "drawn").mkdir()
    for number, row in enumerate(labels):
        pixels = random.integers(0, 60, (16, 16, 3), np.uint8)
        for i in np.flatnonzero(row):
            y, x = CORNERS[i]
            pixels[y : y + 7, x : x + 7, 2 - i] += np.uint8(180)
        Image.fromarray(pixels).save(place / "drawn" / f"{number:03d}.png")
    return labels


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    labels = draw(folder, 240)
    names = [f"drawn/{number:03d}.png" for number in range(len(labels))]
    cells = ["|".join(name for name, has in zip(NAMES, row, strict=True) if has) for row in labels]
    with open(folder / "words.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "labels"), *zip(names, cells, strict=True)])
    with open(folder / "columns.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", *NAMES), *((name, *row.astype(int)) for name, row in zip(names, labels, strict=True))])
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("CONVOLT_CACHE", str(place / "cache"))


def run(line, capsys):
    code = main(line.split())
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("data", ["words", "columns"])
@pytest.mark.parametrize("memory", ["1GB", "1"])
def test_train_evaluate_and_predict(data, memory, place, monkeypatch, capsys):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    name = f"{data}-{memory}"
    code, said = run(f"{TRAIN} --data {data}.csv --name {name}", capsys)
    assert code == 0, said
    assert "binary crossentropy for each label" in said and "3 classes" in said
    config = json.loads(Path("runs", name, "config.json").read_text())
    assert config["metrics"] == ["binary_accuracy"] and config["result"]["binary_accuracy"] > 0.95
    assert {"first_batch.png", "predictions.png"} <= {path.name for path in Path("runs", name).iterdir()}
    saved = f"runs/{name}/model.safetensors"
    model = convolt.load_model(saved)
    assert model.class_names == list(NAMES) and model.layers[-1].activation is convolt.activations.sigmoid

    code, said = run(f"evaluate {saved} --data {data}.csv --part train --verbose 0 --out {name}", capsys)
    assert code == 0, said
    assert "Result: binary_accuracy 9" in said.replace("100", "9") and "all labels right" in said
    assert "recall" in said and "predictions.png" in said and "confusion" not in said
    code, said = run(f"predict {saved} drawn --out {name}.csv", capsys)
    assert code == 0, said
    with open(f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        shares = {label: float(row[label]) for label in NAMES}
        assert row["labels"] == "|".join(label for label in NAMES if shares[label] > 0.5)
    with open("words.csv", newline="") as file:
        truth = {row["path"]: row["labels"] for row in csv.DictReader(file)}
    assert np.mean([truth[row["input"]] == row["labels"] for row in rows]) > 0.9
    nothing = next(row["input"] for row in rows if not row["labels"])
    assert "none (most likely " in next(line for line in run(f"predict {saved} {nothing}", capsys)[1].splitlines() if nothing in line)


@pytest.mark.parametrize("memory", ["1GB", "1"])
def test_the_measure_of_evaluate_is_what_the_labels_say(memory, place, monkeypatch, capsys):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    model = convolt.Sequential([layers.Input((16, 16, 3)), layers.Rescaling(1 / 255), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    model.build((None, 16, 16, 3))
    model.class_names = list(NAMES)
    model.compile("adam", convolt.losses.BinaryCrossentropy(from_logits=True), ["binary_accuracy"])
    model.set_weights([np.eye(3, dtype=np.float32)[::-1] * 20, np.array([-4, -4, -4], np.float32)])
    model.save("logits.safetensors")
    code, said = run("evaluate logits.safetensors --data words.csv --verbose 0", capsys)
    assert code == 0, said
    table = convolt.data.from_csv("words.csv", separator="|")
    x, y = table.load()
    found = x.mean((1, 2))[:, ::-1] / 255 * 20 > 4
    truth = y > 0
    row = next(line.split() for line in said.splitlines() if "green" in line)
    assert [int(row[1]), int(row[2])] == [truth[:, 1].sum(), (truth & found)[:, 1].sum()]
    assert f"all labels right {(truth == found).all(1).mean():.2%}" in said, said


@pytest.mark.slow
def test_smoothing_resuming_and_the_other_verbs(place, capsys):
    code, said = run("plan speednet --model-option widths=4,8,8 --data words.csv --batch-size 4 --device cpu", capsys)
    assert code == 0, said
    code, said = run("lr-find cnn --data words.csv --batch-size 16 --steps 12 --device cpu --precision float32", capsys)
    assert code == 0, said
    code, said = run(f"{TRAIN.replace('6', '1', 1)} --data words.csv --name smooth --label-smoothing 0.1", capsys)
    assert code == 0 and "binary crossentropy, labels smoothed by 0.1" in said, said
    code, said = run("train cnn --data words.csv --resume runs/smooth --epochs 2 --allow-change epochs --batch-size 16 --device cpu "
                     "--precision float32 --fusions none --label-smoothing 0.1 --verbose 0", capsys)
    assert code == 0, said
    code, said = run("data show words.csv -o grid.png --in-order", capsys)
    assert code == 0, said
    code, said = run("data check words.csv", capsys)
    assert "3, of " in said and "red" in said, said


def test_a_softmax_is_refused(place, capsys):
    Path("net.py").write_text("from convolt import Sequential, layers\n\n\ndef net(input_shape, classes):\n"
                              "    return Sequential([layers.Input(input_shape), layers.GlobalAveragePooling2D(),\n"
                              "                       layers.Dense(classes, activation='softmax')])\n")
    code, said = run(f"{TRAIN.replace('cnn', 'net.py:net')} --data words.csv --name refused", capsys)
    assert code == 2
    assert "a softmax at the end" in said and 'Dense(3, activation="sigmoid")' in " ".join(said.split())
