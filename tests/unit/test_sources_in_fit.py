"""Each source of pictures is given to `fit` as it is: labels in the form of the loss, classes, bad files, packs, Hugging Face sets."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convolt
import convolt.training.show
from convolt import layers
from convolt.data import ImageFolder, SkippedFilesWarning, from_webdataset, image_dataset_from_directory, open_pack, write_pack
from convolt.data import pictures as pictures_module
from convolt.data.augment.keys import keys
from convolt.data.batches import epoch_order
from convolt.data.pack import StalePackWarning
from convolt.errors import ArgumentError, DataError, ShapeError
from convolt.preprocessing.image import ImageDataGenerator
from convolt.training.given import ClassNamesWarning
from convolt.training.run import RunFolder
from tests.unit.pictures import encode

ROOT = Path(__file__).parents[2]


def picture(label, n, side=8, kind="PNG"):
    pixels = np.random.default_rng(n + 1000 * label).integers(0, 120, (side, side, 3), np.uint8)
    pixels[:, : side // 2] += np.uint8(100 * (label % 2))
    return encode(Image.fromarray(pixels), kind)


def make_folder(root, classes=("cat", "dog"), count=12, first=0):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(count):
            (root / name / f"{n:03d}.png").write_bytes(picture(label, first + n))
    return root


@pytest.fixture
def pets(tmp_path):
    return make_folder(tmp_path / "pets")


def small_model(loss="sparse_categorical_crossentropy", outputs=2, activation="softmax"):
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Flatten(),
                                layers.Dense(outputs, activation=activation)])
    model.compile("adam", loss, ["accuracy"], device="cpu", fusions="none", precision="float32")
    return model


def trained(data, model=None, **options):
    model = model or small_model()
    history = model.fit(data, **{"epochs": 2, "batch_size": 8, "seed": 3, "verbose": 0, **options})
    return model, history.history


def same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


BOTH_WAYS = pytest.mark.parametrize("memory", ["1GB", "1"], ids=["in memory", "streamed"])


# -- the form of the labels ----------------------------------------------------------------------------------------------


@BOTH_WAYS
def test_one_hot_labels_train_like_class_numbers(pets, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    sparse, expected = trained(ImageFolder(pets), validation_split=0.25)
    folder = ImageFolder(pets, label_mode="categorical")
    one_hot, found = trained(folder, small_model("categorical_crossentropy"), validation_split=0.25)
    assert found == expected
    same_weights(one_hot, sparse)
    assert folder.labels.dtype == np.int64
    assert folder.load()[1].dtype == np.float32
    np.testing.assert_array_equal(folder.load()[1], np.eye(2)[folder.labels])
    assert folder.fingerprint() != ImageFolder(pets).fingerprint()


@BOTH_WAYS
def test_binary_labels(pets, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    folder = ImageFolder(pets, label_mode="binary")
    _, history = trained(folder, small_model("binary_crossentropy", 1, "sigmoid"))
    assert history["loss"][1] < history["loss"][0]
    assert folder.load()[1].shape == (24, 1)
    assert ImageFolder(pets, label_mode=None).load()[1] is None


@BOTH_WAYS
def test_labels_in_the_wrong_form_are_told_before_the_first_step(pets, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    with pytest.raises(ShapeError, match=r'sparse_categorical_crossentropy, or label_mode="categorical"'):
        trained(ImageFolder(pets), small_model("categorical_crossentropy"))
    with pytest.raises(ShapeError, match=r"one-hot.*use categorical_crossentropy"):
        trained(ImageFolder(pets, label_mode="categorical"))
    with pytest.raises(DataError, match="without labels"):
        trained(ImageFolder(pets, label_mode=None))
    make_folder(pets, ("eel",), 2)
    with pytest.raises(DataError, match=r"got the label 2; expected 0 to 1"):
        trained(ImageFolder(pets))


def test_label_modes_that_cannot_be(pets):
    with pytest.raises(ArgumentError, match="Did you mean 'categorical'"):
        ImageFolder(pets, label_mode="categorial")
    make_folder(pets, ("eel",))
    with pytest.raises(ArgumentError, match="exactly two classes"):
        ImageFolder(pets, label_mode="binary")
    folder = ImageFolder(pets)
    folder.labels = np.eye(3, dtype=np.float32)[folder.labels]
    with pytest.raises(ArgumentError, match="one label for each picture"):
        folder.label_mode = "categorical"


# -- bad files -----------------------------------------------------------------------------------------------------------


@BOTH_WAYS
def test_a_class_of_bad_files_alone_is_an_error_in_the_first_epoch(pets, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    make_folder(pets, ("ape",), 2)
    for path in (pets / "ape").iterdir():
        path.write_bytes(b"")
    epochs = []
    counting = convolt.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    with pytest.warns(SkippedFilesWarning), pytest.raises(DataError, match=r"only bad files in the class 'ape'.*2 of 26 files left out"):
        trained(ImageFolder(pets), small_model(outputs=3), callbacks=[counting])
    assert epochs == []


def test_a_class_of_bad_files_alone_is_not_packed(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    make_folder(pets, ("ape",), 1)
    (pets / "ape" / "000.png").write_bytes(b"")
    for encoded in (False, True):
        with warnings.catch_warnings(), pytest.raises(DataError, match="only bad files in the class 'ape'"):
            warnings.simplefilter("ignore", SkippedFilesWarning)
            write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)}, encoded=encoded)


def make_shard(path, bad=(), labels=(0, 1), count=24):
    with tarfile.open(path, "w") as archive:
        for n in range(count):
            label = labels[n % len(labels)]
            for ending, content in (("png", b"no picture" if n in bad else picture(label, n)), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{n:03d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


def test_a_class_of_bad_files_alone_in_a_stream_of_shards(tmp_path):
    pytest.importorskip("webdataset")
    shard = make_shard(tmp_path / "s.tar", bad=range(2, 24, 3), labels=(0, 1, 2))
    with warnings.catch_warnings(), pytest.raises(DataError, match=r"only bad files in the class 'eel'.*8 left out: 002\.png"):
        warnings.simplefilter("ignore", SkippedFilesWarning)
        trained(from_webdataset(shard, (8, 8), class_names=["cat", "dog", "eel"]), small_model(outputs=3))


def test_a_label_out_of_range_in_a_stream_of_shards_is_no_bad_file(tmp_path):
    pytest.importorskip("webdataset")
    shard = make_shard(tmp_path / "s.tar", labels=(0, 1, 2))
    with pytest.raises(DataError, match=r"the labels \(2,\); expected labels from 0 to 1"):
        trained(from_webdataset(shard, (8, 8), classes=2))


def test_what_a_stream_of_shards_skipped_is_written(tmp_path):
    pytest.importorskip("webdataset")
    stream = from_webdataset(make_shard(tmp_path / "s.tar", bad=[5]), (8, 8))
    with pytest.warns(SkippedFilesWarning):
        trained(stream)
    stream.write_skipped(tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1].startswith("005.png,")


def test_parts_of_a_folder_tell_it_what_they_left_out(pets, monkeypatch):
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    (pets / "cat" / "003.png").write_bytes(b"")
    folder = ImageFolder(pets)
    with pytest.warns(SkippedFilesWarning):
        trained(folder, validation_split=0.25)
    assert [bad.path for bad in folder.bad] == ["cat/003.png"]


@BOTH_WAYS
def test_what_was_left_out_is_counted_and_listed(pets, tmp_path, monkeypatch, capsys, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    (pets / "cat" / "003.png").write_bytes(b"")
    other = make_folder(tmp_path / "other", count=4, first=500)
    (other / "dog" / "001.png").write_bytes(b"no picture")
    (pets / "dog" / "out.png").symlink_to("/etc/hostname")
    run = RunFolder.create(tmp_path / "runs")
    model = small_model()
    with pytest.warns(SkippedFilesWarning):
        history = model.fit(ImageFolder(pets), validation_data=ImageFolder(other), epochs=2, batch_size=8, verbose=2,
                            checkpoint=tmp_path / "kept", callbacks=[run.history])
    assert [bad.path for bad in history.skipped] == ["cat/003.png", "dog/001.png", "dog/out.png"]
    assert f"3 files of the data left out, listed in {tmp_path / 'kept' / 'skipped.csv'}." in capsys.readouterr().out
    for folder in (tmp_path / "kept", run.path):
        rows = (folder / "skipped.csv").read_text().splitlines()
        assert [row.partition(",")[0] for row in rows] == ["path", "cat/003.png", "dog/001.png", "dog/out.png"]
        assert "zero bytes" in rows[1] and "a link out of the folder" in rows[3]


def test_what_was_left_out_is_told_without_a_folder(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    monkeypatch.chdir(tmp_path)
    (pets / "cat" / "003.png").write_bytes(b"")
    batches = image_dataset_from_directory(pets, image_size=(8, 8), seed=0, verbose=False)
    for data in (ImageFolder(pets), batches):
        with pytest.warns(SkippedFilesWarning):
            history = small_model().fit(data, epochs=1, verbose=2)
        assert "1 file of the data left out, listed in history.skipped: cat/003.png." in capsys.readouterr().out
        assert "zero bytes" in history.skipped[0].reason
    assert small_model().fit(np.zeros((8, 8, 8, 3), "uint8"), np.arange(8) % 2, verbose=0).skipped == []
    assert not list(tmp_path.rglob("skipped.csv"))


def test_what_a_pack_left_out_is_listed(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    (pets / "cat" / "003.png").write_bytes(b"")
    with pytest.warns(SkippedFilesWarning):
        write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    history = small_model().fit(open_pack(tmp_path / "a.pack"), epochs=1, verbose=0, checkpoint=tmp_path / "kept")
    assert [bad.path for bad in history.skipped] == ["cat/003.png"]
    assert (tmp_path / "kept" / "skipped.csv").read_text().splitlines()[1].startswith("cat/003.png,")


def test_a_stopped_training_lists_what_it_left_out_and_goes_on(pets, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1")
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    (pets / "cat" / "003.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedFilesWarning)
        whole, _ = trained(ImageFolder(pets), epochs=3)
        trained(ImageFolder(pets), epochs=2, checkpoint=tmp_path / "kept")
        (tmp_path / "kept" / "skipped.csv").unlink()
        write_pack(tmp_path / "pets.pack", {"train": ImageFolder(pets)})
        resumed, _ = trained(ImageFolder(pets), epochs=3, checkpoint=tmp_path / "kept", resume_allow=["epochs"])
    same_weights(resumed, whole)
    assert (tmp_path / "kept" / "skipped.csv").exists()


# -- several readers -----------------------------------------------------------------------------------------------------

READ = ("import json, sys; from tests.unit.test_sources_in_fit import read_share; "
        "print(json.dumps(read_share(sys.argv[1], int(sys.argv[2]), 2)))")


def read_share(root, rank, ranks):
    """What one of several readers gets of two epochs: (epoch, row, key, digest) of each picture, and the files that it left out."""
    folder = ImageFolder(root, workers=1 + rank)
    found = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
        warnings.simplefilter("ignore", SkippedFilesWarning)
        for epoch in range(2):
            rows = epoch_order(len(folder), 7, epoch, rank, ranks).numpy()
            for x, kept in folder.batches([rows[start : start + 5] for start in range(0, len(rows), 5)], 5):
                names = keys(7, epoch, torch.from_numpy(kept)).tolist()
                found += [(epoch, row, key, hashlib.sha256(p).hexdigest()) for p, row, key in zip(x, kept.tolist(), names, strict=True)]
    return {"found": found, "bad": [(bad.path, bad.reason) for bad in folder.bad], "fingerprint": folder.fingerprint()}


def test_two_processes_skip_what_one_skips_and_number_the_samples_alike(pets):
    """Each reads its half of the same epochs: together they see each picture once, with the number and key that one reader gives it."""
    (pets / "cat" / "003.png").write_bytes(b"")
    (pets / "cat" / "000.png").write_bytes(b"no picture")
    (pets / "dog" / "007.png").write_bytes(picture(1, 7)[:60])
    processes = [subprocess.Popen([sys.executable, "-c", READ, str(pets), str(rank)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
                 for rank in range(2)]
    alone = read_share(pets, 0, 1)
    ranks = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [path for path, _ in alone["bad"]] == ["cat/000.png", "cat/003.png", "dog/007.png"]
    assert len(alone["found"]) == 2 * 21
    shares = [{tuple(sample) for sample in rank["found"]} for rank in ranks]
    assert all(shares) and not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(alone["found"])
    assert {tuple(bad) for rank in ranks for bad in rank["bad"]} == set(alone["bad"])
    assert {rank["fingerprint"] for rank in ranks} == {alone["fingerprint"]}


# -- packs ---------------------------------------------------------------------------------------------------------------


@BOTH_WAYS
@pytest.mark.parametrize("encoded", [False, True], ids=["pixels", "encoded"])
def test_fit_takes_a_pack(pets, tmp_path, monkeypatch, encoded, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    train, rest = ImageFolder(pets).split(0.5)
    test, validation = rest.split(0.5)
    write_pack(tmp_path / "a.pack", {"train": train, "test": test, "validation": validation}, encoded=encoded)
    pack = open_pack(tmp_path / "a.pack")
    expected, values = trained(train, validation_data=validation)
    model, found = trained(pack, validation_data=pack)
    assert found == values
    same_weights(model, expected)
    assert model.class_names == ["cat", "dog"]
    assert f", from {tmp_path / 'a.pack'}" in model.trainer.plan.describe()
    assert model.evaluate(pack, verbose=0) == expected.evaluate(test, verbose=0)
    parts = pack.parts
    assert trained(parts["train"], validation_data=parts["validation"])[1] == values
    assert trained(pack, validation_split=0.25)[1] == trained(train, validation_split=0.25)[1]
    parts["train"].as_pictures.label_mode = "categorical"
    same_weights(trained(pack, small_model("categorical_crossentropy"))[0], trained(train)[0])


def test_a_pack_without_the_part_that_is_meant(pets, tmp_path):
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    with pytest.raises(DataError, match=r"got the parts \['train'\]; expected a part 'validation' or 'test'.*validation_split"):
        trained(open_pack(tmp_path / "a.pack"), validation_data=open_pack(tmp_path / "a.pack"))


def test_the_pixels_of_a_pack_are_not_copied(pets, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1")
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    pack = open_pack(tmp_path / "a.pack")
    model, _ = trained(pack)
    assert model.trainer.plan.residency == "resident", "mapped pixels take no memory"
    part = pack.parts["train"]
    assert np.shares_memory(part.as_pictures.load()[0], part.pictures)
    assert trained(pack, validation_split=0.25)[0].trainer.plan.residency == "streamed"


@BOTH_WAYS
@pytest.mark.parametrize("encoded", [False, True], ids=["pixels", "encoded"])
def test_a_fresh_pack_beside_the_folder_is_read_in_its_place(pets, tmp_path, monkeypatch, encoded, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    (pets / "cat" / "003.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedFilesWarning)
        expected, values = trained(ImageFolder(pets), validation_split=0.25, augment="flip")
        mixed = ImageFolder(pets).subset(np.random.default_rng(0).permutation(24))
        write_pack(tmp_path / "pets.pack", {"train": mixed}, encoded=encoded)
    monkeypatch.setattr(ImageFolder, "content", lambda *_: pytest.fail("a file was read"))
    folder = ImageFolder(pets)
    model, found = trained(folder, validation_split=0.25, augment="flip")
    assert found == values
    same_weights(model, expected)
    assert f"from {tmp_path / 'pets.pack'}" in model.trainer.plan.describe()
    assert [bad.path for bad in folder.bad] == ["cat/003.png"]
    train, validation = ImageFolder(pets).split(0.25)
    assert trained(train, validation_data=validation, augment="flip")[1] == values
    if encoded:  # the pixels of the other pack are those of no image_size
        batches = image_dataset_from_directory(pets, image_size=(8, 8), seed=0, verbose=False)
        model = small_model()
        model.fit(batches, epochs=1, verbose=0)
        assert "pets.pack" in model.trainer.plan.describe()
    assert "pets.pack" in small_model().trainer.find_plan(ImageFolder(pets), None, 8).describe()


def test_a_pack_of_parts_inside_the_folder(tmp_path, monkeypatch):
    for number, part in enumerate(("train", "val")):
        make_folder(tmp_path / "pets" / part, count=8, first=100 * number)
    parts = {"train": ImageFolder(tmp_path / "pets" / "train"), "validation": ImageFolder(tmp_path / "pets" / "val")}
    expected = trained(parts["train"], validation_data=parts["validation"])[1]
    write_pack(tmp_path / "pets.pack", parts)
    monkeypatch.setattr(ImageFolder, "content", lambda *_: pytest.fail("a file was read"))
    found = trained(ImageFolder(tmp_path / "pets" / "train"), validation_data=ImageFolder(tmp_path / "pets" / "val"))[1]
    assert found == expected


def test_a_pack_that_is_not_fresh_is_told_and_not_used(pets, tmp_path, capsys):
    write_pack(tmp_path / "pets.pack", {"train": ImageFolder(pets)})
    model, _ = trained(ImageFolder(pets, image_size=(8, 8)), verbose=2)
    assert "pets.pack is not used: it holds other pictures" in capsys.readouterr().out
    assert "pets.pack" not in model.trainer.plan.describe()
    (pets / "cat" / "012.png").write_bytes(picture(0, 99))
    with pytest.warns(StalePackWarning, match=r"has changed since .*pets\.pack was packed: the pictures are decoded anew"):
        model, _ = trained(ImageFolder(pets))
    assert "pets.pack" not in model.trainer.plan.describe()
    with pytest.warns(StalePackWarning, match="the pack's pictures are used"):
        trained(open_pack(tmp_path / "pets.pack"))
    (tmp_path / "pets.pack").write_bytes(b"CVLTPACK")
    with pytest.warns(StalePackWarning, match=r"pets\.pack.*is decoded anew"):
        trained(ImageFolder(pets))


def test_a_pack_of_smaller_pictures_is_another_set(tmp_path):
    folder = make_folder(tmp_path / "pets", count=3)
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(folder)}, encoded=True)
    write_pack(tmp_path / "b.pack", {"train": ImageFolder(folder)}, encoded=True, max_side=8)
    packs = [open_pack(tmp_path / name) for name in ("a.pack", "b.pack")]
    same, smaller = (pack.parts["train"].as_pictures.in_place_of(ImageFolder(folder)) for pack in packs)
    assert same.fingerprint() == ImageFolder(folder).fingerprint() != smaller.fingerprint()


def test_pixels_of_a_pack_are_packed_again(pets, tmp_path):
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    part = open_pack(tmp_path / "a.pack").parts["train"]
    for encoded in (False, True):
        write_pack(tmp_path / "b.pack", {"train": part.as_pictures}, encoded=encoded)
        np.testing.assert_array_equal(open_pack(tmp_path / "b.pack").parts["train"].as_pictures.load()[0], part.pictures)


# -- classes -------------------------------------------------------------------------------------------------------------


def test_the_model_gets_the_names_of_the_classes(pets, tmp_path):
    model, _ = trained(ImageFolder(pets))
    assert model.class_names == ["cat", "dog"]
    model.save(tmp_path / "model.safetensors")
    assert convolt.load_model(tmp_path / "model.safetensors").class_names == ["cat", "dog"]
    assert trained(image_dataset_from_directory(pets, image_size=(8, 8), seed=0, verbose=False))[0].class_names == ["cat", "dog"]
    numbered, _ = trained(ImageFolder(pets, labels=[0, 1] * 12))
    assert numbered.class_names is None, "numbers are no names"
    with pytest.warns(ClassNamesWarning, match="'cat', 'dog'; expected 'dog', 'cat'"):
        trained(ImageFolder(pets, class_names=["dog", "cat"]), model)
    assert model.class_names == ["cat", "dog"]


def test_a_model_of_pictures_out_of_pictures_gets_no_names(pets):
    model = convolt.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(3, 1)])
    model.compile("adam", "mse", device="cpu", fusions="none")
    flow = ImageDataGenerator(rescale=1 / 255).flow_from_directory(pets, (8, 8), class_mode="input", seed=0)
    model.fit(flow, epochs=1, verbose=0)
    assert model.class_names is None


def test_a_model_that_could_not_be_trained_gets_no_names(pets):
    model = small_model("categorical_crossentropy")
    with pytest.raises(ShapeError):
        trained(ImageFolder(pets), model)
    assert model.class_names is None


@BOTH_WAYS
def test_classes_of_training_and_validation_are_compared(pets, tmp_path, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    other = make_folder(tmp_path / "other", ("cat", "eel"), 4)
    with pytest.raises(DataError, match=r"classes that differ from those of training \(missing: \['dog'\], extra: \['eel'\]\)"):
        trained(ImageFolder(pets), validation_data=ImageFolder(other))
    turned = ImageFolder(pets, class_names=["dog", "cat"])
    with pytest.raises(DataError, match="classes that differ"):
        trained(ImageFolder(pets), validation_data=turned)
    numbered = ImageFolder(pets, labels=[0, 0, 1] * 8)
    assert "val_loss" in trained(ImageFolder(pets), validation_data=numbered)[1]


def test_show_batch_takes_pictures(pets, tmp_path):
    grid = convolt.training.show.show_batch(ImageFolder(pets), count=4, shuffle=False)
    np.testing.assert_array_equal(grid.pictures, ImageFolder(pets).load()[0][:4])
    assert grid.captions == ["cat"] * 4
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets, labels=None)})
    unlabelled = small_model().show_batch(open_pack(tmp_path / "a.pack"), count=4, shuffle=False, augment="flip")
    assert unlabelled.captions == []
