"""`convolt data pack` and `convolt data check`, and trainings from what they deal with."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from convolt.cli.main import main
from convolt.data import ImageFolder
from convolt.data.pack import StalePackWarning
from convolt.data.sources import open_source
from convolt.data.survey import alike, perceptual_hash
from convolt.training.show import show_batch
from tests.unit.pictures import encode

KINDS = ("cat", "dog")


def noise(n, side=16):
    pixels = np.random.default_rng(n).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def pets(tmp_path):
    for part, count in (("train", 30), ("test", 6)):
        for label, name in enumerate(KINDS):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for n in range(count):
                data = encode(noise(n + 100 * label + 1000 * (part == "test")))
                (tmp_path / "pets" / part / name / f"{n:02d}.png").write_bytes(data)
    return tmp_path / "pets"


def run(line, capsys):
    code = main(line.split())
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_pack_is_the_folder(pets, tmp_path, capsys):
    code, said = run(f"data pack {pets} {tmp_path}/a.pack", capsys)
    assert code == 0, said
    assert "60 to train, 12 to test, 16×16×3 uint8, 2 classes" in said
    folder, pack = open_source(str(pets)), open_source(str(tmp_path / "a.pack"))
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(pack, name), getattr(folder, name))
    assert pack.class_names == folder.class_names == KINDS
    code, said = run(f"data pack {pets} {tmp_path}/b.pack --encoded --max-side 12", capsys)
    assert code == 0, said
    assert "encoded" in said
    assert open_source(str(tmp_path / "b.pack"), image_size=(8, 8)).x_test.shape == (12, 8, 8, 3)


def test_a_pack_beside_its_folder_is_used_while_it_is_fresh(pets, tmp_path, monkeypatch, capsys):
    assert run(f"data pack {pets} {pets}.pack", capsys)[0] == 0
    assert open_source(str(pets)).note == f"from {pets}.pack"
    assert open_source(str(pets), image_size=(8, 8)).note == "", "other pictures than those that were packed"
    (pets / "train" / "cat" / "99.png").write_bytes(encode(noise(5000)))
    with pytest.warns(StalePackWarning, match="decoded anew"):
        source = open_source(str(pets))
    assert (source.note, len(source.x_train)) == ("", 61)
    with pytest.warns(StalePackWarning, match="the pack's pictures are used"):
        assert len(open_source(f"{pets}.pack").x_train) == 60
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        code, said = run("data show pets -n 4", capsys)
    assert code == 0 and said.replace("\n", " ").count("has changed since pets.pack was packed") == 1, "told once, as a line"


def test_a_set_beyond_the_memory_is_streamed_with_the_same_result(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    line = f"train cnn --data {pets} --epochs 2 --batch-size 16 --device cpu --precision float32 --fusions none --verbose 0"
    found = []
    for memory, words in (("1GB", ""), ("10kB", " --name streamed")):
        monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
        code, said = run(line + words, capsys)
        assert code == 0, said
        assert ("too large to be kept decoded" in said) == bool(words)
        folder = tmp_path / "runs" / ("streamed" if words else "cnn-pets")
        config = json.loads((folder / "config.json").read_text())
        assert config["data"]["streamed"] == bool(words) and config["plan"]["residency"] == ("streamed" if words else "resident")
        assert {"first_batch.png", "confusion.png", "predictions.png", "history.png"} <= {path.name for path in folder.iterdir()}
        found.append((said.partition("Result:")[2].splitlines()[0], (folder / "history.csv").read_text(),
                      {name: (folder / name).read_bytes() for name in ("first_batch.png", "confusion.png", "predictions.png")},
                      load_file(folder / "model.safetensors")))
    for one, other in zip(found[0][:3], found[1][:3], strict=True):
        assert one == other
    for name, weights in found[0][3].items():
        np.testing.assert_array_equal(weights, found[1][3][name])
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1GB")  # a resumed run reads as it did before, whatever fits now
    code, said = run("train --resume runs/streamed", capsys)
    assert code == 0, said
    assert "too large to be kept decoded" in said


@pytest.mark.filterwarnings("default::convolt.data.left_out.SkippedFilesWarning")  # the command line speaks it
def test_a_streamed_validation_split_and_its_bad_files(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "10kB")
    for n in range(100, 240):
        (pets / "train" / KINDS[n % 2] / f"{n}.png").write_bytes(encode(noise(n)))
    (pets / "train" / "cat" / "00.png").write_bytes(b"")
    code, said = run(f"train cnn --data {pets}/train --epochs 1 --batch-size 32 --verbose 0 --validation-split 0.2", capsys)
    assert code == 0, said
    assert "20% held out of the training set (40 samples)" in said
    assert (tmp_path / "runs" / "cnn-train" / "skipped.csv").read_text().splitlines()[1].startswith("cat/00.png,")


def test_what_is_left_out_of_a_stream_is_told_in_lines(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1")
    monkeypatch.setattr("convolt.data.pictures.MAX_BAD_SHARE", 0.5)
    for n in range(20):
        (pets / "train" / "cat" / f"{n:02d}.png").write_bytes(b"")
    with warnings.catch_warnings(record=True) as raw:
        warnings.simplefilter("always")
        code, said = run(f"train cnn --data {pets} --epochs 1 --batch-size 16 --device cpu --name told --verbose 0", capsys)
    assert code == 0, said
    assert raw == [] and "SkippedFilesWarning" not in said and "20 of 60 files left out" in said
    rows = (tmp_path / "runs" / "told" / "skipped.csv").read_text().splitlines()[1:]
    assert len(rows) == 20 and rows == sorted(rows)


def test_sizes_that_differ_are_told_before_a_streamed_training(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "10kB")
    (pets / "train" / "cat" / "00.png").write_bytes(encode(noise(0, 20)))
    code, said = run(f"train cnn --data {pets} --epochs 1 --batch-size 32 --verbose 0", capsys)
    assert code == 0, said
    assert "The pictures have different sizes: they get" in said


def test_show_decodes_what_it_draws(pets, tmp_path, monkeypatch, capsys):
    decoded = set()
    content = ImageFolder.content
    monkeypatch.setattr(ImageFolder, "content", lambda self, index: (decoded.add(self.files[index]), content(self, index))[1])
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1kB")
    code, said = run(f"data show {pets} --augment flip,rotate=10,cutmix=1 -n 5 -o {tmp_path}/grid.png", capsys)
    assert code == 0, said
    assert "5 pictures of 16×16×3" in said and "of 60 in pets" in said
    assert len(decoded) == 5
    drawn = show_batch(ImageFolder(pets / "train"), augment="flip,rotate=10", count=6, seed=3, epoch=1)
    x, y = ImageFolder(pets / "train").load()
    wanted = show_batch(x, y, augment="flip,rotate=10", count=6, seed=3, epoch=1, class_names=KINDS)
    np.testing.assert_array_equal(drawn.pictures, wanted.pictures)
    assert drawn.captions == wanted.captions


def test_a_measured_batch_size(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said = run(f"train cnn --data {pets} --epochs 1 --batch-size auto --device cpu --name auto", capsys)
    assert code == 0, said
    assert "batch auto" in said and "Batch size 16: an epoch of 60 samples keeps at least 16 steps" in said
    config = json.loads((tmp_path / "runs" / "auto" / "config.json").read_text())
    assert (config["options"]["batch_size"], config["plan"]["batch_size"]) == ("auto", 16)
    assert "--batch-size auto" in (tmp_path / "runs" / "auto" / "command.txt").read_text()
    code, said = run("train --resume runs/auto --verbose 0", capsys)
    assert code == 0, said
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1")
    code, said = run(f"train cnn --data {pets} --epochs 1 --batch-size auto --device cpu --name streamed", capsys)
    assert code == 0 and "Batch size 16: an epoch of 60 samples" in said, said
    assert json.loads((tmp_path / "runs" / "streamed" / "config.json").read_text())["plan"]["batch_size"] == 16
    for wrong in ("0", "many", "1.5"):
        code, said = run(f"train cnn --data {pets} --batch-size {wrong}", capsys)
        assert code == 2 and "neither a whole number from 1 nor auto" in said


@pytest.mark.parametrize("line", ["data pack {pets} {tmp}/a.txt", "data pack {pets} {tmp}/a.pack --max-side 12"])
def test_wrong_command_lines_of_pack(pets, tmp_path, capsys, line):
    assert run(line.format(pets=pets, tmp=tmp_path), capsys)[0] == 2


def test_a_sound_set(pets, capsys):
    code, said = run(f"data check {pets}", capsys)
    assert code == 0, said
    for words in ("60", "2, of 30 pictures each", "16×16 (60)", "broken", "none", "Nothing wrong."):
        assert words in said


def test_everything_that_can_be_wrong(pets, capsys):
    copy = (pets / "train" / "cat" / "00.png").read_bytes()
    (pets / "train" / "cat" / "copy.png").write_bytes(copy)
    (pets / "train" / "dog" / "copy.png").write_bytes(encode(noise(0, 64)))  # the same picture, larger
    (pets / "test" / "cat" / "leak.png").write_bytes(encode(noise(3)))
    (pets / "train" / "cat" / "broken.png").write_bytes(copy[:100])
    (pets / "train" / "cat" / "loop.png").symlink_to("loop.png")
    code, said = run(f"data check {pets}", capsys)
    assert code == 1
    assert "ignored     1 link" in said and "ignored cat/loop.png: a link that leads nowhere or in a circle" in said
    assert "broken cat/broken.png" in said
    assert "one picture, several labels: cat/00.png, cat/copy.png, dog/copy.png" in said
    assert "leak: train/cat/03.png is also test/cat/leak.png" in said
    code, said = run(f"data check {pets} --json", capsys)
    found = json.loads(said)
    assert code == 1
    assert found["faults"] == 3
    assert found["leaks"] == [["train/cat/03.png", "test/cat/leak.png"]]
    assert found["parts"]["train"]["sizes"] == {"16×16": 61, "64×64": 1}
    assert [bad["path"] for bad in found["parts"]["train"]["broken"]] == ["cat/broken.png"]


def test_hashes():
    picture = np.asarray(noise(1, 64).convert("L"))
    larger = np.asarray(Image.fromarray(picture).resize((160, 160), Image.Resampling.BICUBIC))
    hashes = np.stack([perceptual_hash(p) for p in (picture, picture[:, ::-1].copy(), larger, np.asarray(noise(2, 64).convert("L")))])
    assert alike(hashes) == [[0, 2]]
    assert not perceptual_hash(np.full((9, 9), 77, np.uint8)).any()
    assert alike(hashes[:0]) == []


def test_groups_are_those_of_comparing_all_with_all():
    chance = np.random.default_rng(0)
    codes = chance.integers(0, 256, (300, 16), np.uint8)
    for row in range(0, 300, 10):  # a copy with 0 to 8 other bits
        bits = np.unpackbits(codes[row])
        bits[chance.permutation(128)[: row // 10 % 9]] ^= 1
        codes[row + 1] = np.packbits(bits)
    expected = [[row, row + 1] for row in range(0, 300, 10) if row // 10 % 9 <= 6]
    assert sorted(alike(codes)) == expected


@pytest.mark.filterwarnings("default::convolt.data.left_out.SkippedFilesWarning")  # the command line speaks it
def test_training_from_a_table_lists_what_it_skipped(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    rows = [f"pets/train/{name}/{n:02d}.png,{name}" for name in KINDS for n in range(30)]
    rows += [f"pets/test/{name}/{n:02d}.png,{name}" for name in KINDS for n in range(6)]
    many = [row.replace("pets/", f"{k}/pets/") for k in ("a", "b") for row in rows]
    for k in ("a", "b"):
        (tmp_path / k).mkdir()
        (tmp_path / k / "pets").symlink_to(pets)
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join([*many, "a/pets/test/cat/none.png,cat"]) + "\n")
    code, said = run("train cnn --data labels.csv --epochs 1 --batch-size 32 --verbose 0", capsys)
    assert code == 0, said
    assert "1 of 145 files left out" in said
    assert "1 file left out, see skipped.csv" in said
    skipped = (tmp_path / "runs" / "cnn-labels" / "skipped.csv").read_text().splitlines()
    assert skipped[0] == "path,reason"
    assert skipped[1].startswith("a/pets/test/cat/none.png,")
    from convolt import load_model

    assert load_model(tmp_path / "runs" / "cnn-labels" / "model.safetensors").class_names == list(KINDS)


@pytest.mark.parametrize(("data", "message"), [
    ("digits", "got the built-in set digits, which is arrays"), ("nowhere", "got nowhere, which does not exist"),
    ("nowhere.csv", "got nowhere.csv, which does not exist"), ("notes.txt", "got the file notes.txt"),
    ("notes.tar", "expected a whole, uncompressed tar"), ("empty", "empty"), ("nolabels.csv", "nolabels.csv")])
@pytest.mark.parametrize("verb", ["check", "pack"])
def test_what_is_no_set_of_pictures_is_named(tmp_path, monkeypatch, capsys, verb, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "notes.tar").write_text("words" * 300)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nolabels.csv").write_text("path,kind\na.jpg,cat\n")
    code, said = run(f"data {verb} {data}" + (" a.pack" if verb == "pack" else ""), capsys)
    assert code != 0
    assert message in " ".join(said.split()), said
    assert "Traceback" not in said
