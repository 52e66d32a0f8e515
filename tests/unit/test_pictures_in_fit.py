"""`fit` on pictures: in memory or streamed, the training is the same; memory stays bounded; bad files are skipped alike everywhere."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import convolt
from convolt import layers
from convolt.data import ImageFolder, SkippedFilesWarning, from_csv, from_tar, from_webdataset
from convolt.data.budget import data_memory, free_memory, parse_bytes
from convolt.data.shards import expand
from convolt.errors import ArgumentError, DataError
from tests.unit.pictures import encode


def picture(label, n, side=12):
    pixels = np.random.default_rng(n).integers(0, 120, (side, side, 3), np.uint8)
    pixels[:, : side // 2] += np.uint8(100 * label)
    return encode(Image.fromarray(pixels), "JPEG")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pets"
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for n in range(110):
            (folder / name / f"{n:03d}.jpg").write_bytes(picture(label, n + 1000 * label))
    return folder


def small_model(outputs=2, activation="softmax", loss="sparse_categorical_crossentropy"):
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input((12, 12, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu"),
                                layers.Flatten(), layers.Dense(outputs, activation=activation)])
    model.compile("adam", loss, ["accuracy"], device="cpu", fusions="none", precision="float32")
    return model


def trained(data, **options):
    model = small_model()
    history = model.fit(data, epochs=2, batch_size=32, seed=3, verbose=0, **options)
    return model, history.history


def test_a_measured_batch_size(pets, monkeypatch, capsys):
    results = []
    for size, memory in ((16, "1GB"), ("auto", "1GB"), ("auto", "98000"), ("auto", "1")):
        monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
        model = small_model()
        history = model.fit(ImageFolder(pets), epochs=2, batch_size=size, seed=3, validation_split=0.2, augment="flip", verbose=2)
        results.append((history.history, [w.tobytes() for w in model.get_weights()]))
        assert ("Batch size 16: an epoch of 176 samples keeps at least 16 steps" in capsys.readouterr().out) == (size == "auto")
    assert all(result == results[0] for result in results[1:])


def test_the_room_for_reading_ahead_bounds_a_measured_batch(pets, monkeypatch, capsys):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", str(5 * 40 * 12 * 12 * 3 * 4 // 3))  # three quarters of it for five batches of 40
    monkeypatch.setattr("convolt.training.batch_size.STEPS", 2)
    model = small_model()
    rates = iter([100.0, 1000.0])
    monkeypatch.setattr("convolt.compiler.measure.Probe.seconds", lambda *_, **__: 1 / next(rates))
    model.fit(ImageFolder(pets), epochs=1, batch_size="auto", seed=3, verbose=2)
    assert "Batch size 32: larger ones leave no room to read ahead" in capsys.readouterr().out


def test_a_streamed_flow_keeps_its_own_batch_size(pets, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1")
    flow = convolt.preprocessing.image.ImageDataGenerator().flow_from_directory(str(pets), (12, 12), batch_size=20, class_mode="sparse")
    model = small_model()
    model.fit(flow, batch_size="auto", epochs=1, verbose=0)
    assert model.optimizer.iterations == 11 and model.trainer.batch_size == 20


def test_in_memory_and_streamed_train_alike(pets, monkeypatch):
    results = []
    for memory in ("1GB", "98000", "1"):  # all of it, a part of it, none of it stays decoded
        monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
        model, history = trained(ImageFolder(pets), validation_split=0.2)
        results.append((history, [w.copy() for w in model.get_weights()], model.trainer.plan))
    assert [plan.residency for _, _, plan in results] == ["resident", "streamed", "streamed"]
    assert "the first 10 kept decoded" in results[1][2].describe()
    for history, weights, _ in results[1:]:
        assert history == results[0][0]
        for one, other in zip(weights, results[0][1], strict=True):
            np.testing.assert_array_equal(one, other)


def test_validation_split_of_a_folder_holds_all_classes(pets):
    model, history = trained(ImageFolder(pets), validation_split=0.25)
    assert len(history["val_loss"]) == 2
    train, held_out = ImageFolder(pets).split(0.25)
    assert np.bincount(held_out.labels).tolist() == [28, 28]
    assert not set(train.files) & set(held_out.files)
    assert model.evaluate(held_out, batch_size=32, verbose=0)[0] == history["val_loss"][-1]


def test_a_kept_picture_is_not_decoded_again(pets, monkeypatch):
    folder = ImageFolder(pets)
    folder.keep(10**6)
    x, _ = folder.load()
    monkeypatch.setattr(ImageFolder, "content", lambda *_: pytest.fail("decoded twice"))
    again, kept = folder.read(np.array([5, 3, 200]))
    np.testing.assert_array_equal(again, x[[5, 3, 200]])
    np.testing.assert_array_equal(kept, [5, 3, 200])
    assert folder.subset([1]).kept == 0


@pytest.mark.parametrize("memory", ["1GB", "1"])
def test_bad_files_are_skipped_alike(pets, tmp_path, monkeypatch, memory):
    import shutil

    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    shutil.copytree(pets, tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "007.jpg").write_bytes(b"")
    folder = ImageFolder(tmp_path / "pets")
    with pytest.warns(SkippedFilesWarning, match=r"cat/007\.jpg"):
        small_model().fit(folder, epochs=2, batch_size=64, verbose=0)
    assert [bad.path for bad in folder.bad] == ["cat/007.jpg"]
    folder.write_skipped(tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1].startswith("cat/007.jpg,image: got zero bytes")


def test_order_and_skipped_files_do_not_depend_on_who_reads(pets, tmp_path):
    """Readers with 1, 2 and 5 threads see the same pictures in the same order and skip the same."""
    import shutil

    shutil.copytree(pets, tmp_path / "pets")
    (tmp_path / "pets" / "dog" / "050.jpg").write_bytes(b"\xff\xd8\xff")
    found = []
    for workers in (1, 2, 5):
        folder = ImageFolder(tmp_path / "pets", image_size=(80, 80), workers=workers)
        order = np.random.default_rng(0).permutation(len(folder))
        with pytest.warns(SkippedFilesWarning):
            parts = list(folder.batches([order[:100], order[100:130], order[130:]], 100))
        found.append((np.concatenate([x for x, _ in parts]), np.concatenate([kept for _, kept in parts]), folder.bad))
    for x, kept, bad in found[1:]:
        np.testing.assert_array_equal(x, found[0][0])
        np.testing.assert_array_equal(kept, found[0][1])
        assert bad == found[0][2]
    assert len(found[0][1]) == 219


def test_labels_beside_pictures_and_pictures_without_labels(pets):
    with pytest.raises(ArgumentError, match="labels beside pictures"):
        small_model().fit(ImageFolder(pets), np.zeros(220), verbose=0)
    with pytest.raises(DataError, match="without labels"):
        small_model().fit(ImageFolder(pets, labels=None), verbose=0)


def test_several_labels_for_each_picture(pets, monkeypatch):
    table = pets.parent / "labels.csv"
    rows = [f"pets/{name}/{n:03d}.jpg,{name}{'|young' if n % 2 else ''}" for name in ("cat", "dog") for n in range(110)]
    table.write_text("path,labels\n" + "\n".join(rows) + "\n")
    for memory in ("1GB", "1"):
        monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
        data = from_csv(table, separator="|")
        assert data.class_names == ["cat", "dog", "young"]
        history = small_model(3, "sigmoid", "binary_crossentropy").fit(data, epochs=1, validation_split=0.2, seed=0, verbose=0)
        assert np.isfinite(history.history["val_loss"][0])


def test_early_end_of_an_epoch_leaves_no_reader_behind(pets, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1")
    model = small_model()
    history = model.fit(ImageFolder(pets), epochs=2, batch_size=16, steps_per_epoch=3, seed=0, verbose=0)
    assert len(history.history["loss"]) == 2
    assert model.trainer.plan.residency == "streamed"


# -- shards ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"s-{shard:02d}.tar", "w") as archive:
            for n in range(40):
                number = shard * 40 + n
                for ending, content in (("jpg", picture(number % 2, number)), ("cls", str(number % 2).encode())):
                    info = tarfile.TarInfo(f"{number:05d}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(tmp_path / "s-{00..02}.tar")


def test_shards_on_a_disk_are_pictures(shards):
    data = from_tar(shards, class_names=["cat", "dog"])
    assert len(data) == 120
    assert data.class_names == ["cat", "dog"]
    x, y = data.load()
    np.testing.assert_array_equal(y, np.arange(120) % 2)
    np.testing.assert_array_equal(data.read([77])[0][0], x[77])
    assert len(trained(data, validation_split=0.2)[1]["val_loss"]) == 2


def test_shards_as_a_stream(shards):
    one, two = (from_webdataset(shards, (12, 12), shuffle=50) for _ in range(2))
    epochs = [[np.concatenate(parts) for parts in zip(*one.open_epoch(epoch, 0, 32, 7), strict=True)] for epoch in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in two.open_epoch(1, 0, 32, 7)]), epochs[1][0])
    assert not np.array_equal(epochs[0][1], epochs[1][1])
    np.testing.assert_array_equal(np.concatenate([y for _, y in one.open_epoch(0, 2, 32, 7)]), epochs[0][1][64:])
    x, y = from_tar(shards).load()
    plain = [np.concatenate(parts) for parts in zip(*one.open_epoch(0, 0, 50, None), strict=True)]
    np.testing.assert_array_equal(plain[0], x)
    np.testing.assert_array_equal(plain[1], y)
    history = small_model().fit(one, epochs=2, batch_size=32, seed=0, verbose=0)
    assert len(history.history["loss"]) == 2


def test_what_is_wrong_with_shards(tmp_path, shards):
    with pytest.raises(DataError, match=r"s-03\.tar: got no such file"):
        from_tar(shards.replace("02}", "03}"))
    whole = (tmp_path / "s-01.tar").read_bytes()
    (tmp_path / "s-01.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(DataError, match=r"s-01\.tar"):
        from_tar(shards)
    for pattern in ("a-{0..}.tar", "a-{9..1}.tar", "a-{0..99999999}.tar", "a-{}.tar"):
        with pytest.raises(ArgumentError, match="shards"):
            expand(pattern)
    assert expand("a-{08..10}.{x,y}") == ["a-08.x", "a-08.y", "a-09.x", "a-09.y", "a-10.x", "a-10.y"]
    with pytest.raises(ArgumentError, match="runs a command"):
        from_webdataset("pipe:touch owned", (12, 12))


@pytest.mark.parametrize(("name", "content", "kind", "message"), [
    ("a.cls", b"one", None, "no label"), ("a.cls", b"-1", None, "no label"), ("a.cls", b"", None, "no label"),
    ("a.json", b"{", None, "no label"), ("a.jpg", b"", tarfile.SYMTYPE, "a link"), ("b.jpg", b"x", None, "without a label")])
def test_hostile_members(tmp_path, name, content, kind, message):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for member, data in (("z.jpg", picture(0, 0)), ("z.cls", b"0"), (name, content)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            if member == name and kind:
                info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match=message):
        from_tar(tmp_path / "s.tar")


# -- memory ------------------------------------------------------------------------------------------------------------

BOUNDED = """
import resource, sys
import numpy as np
import convolt.training.trainer, simplejpeg
from convolt.data import ImageFolder
from convolt.training.picture_inputs import open_pictures
import torch
folder = ImageFolder(sys.argv[1], image_size=(256, 256))
folder.read(np.arange(8))  # the pool's threads and Pillow's tables are there
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 24 * 2**20,) * 2)
opened, _ = open_pictures("fit", folder, None, 0.0, torch.device("cpu"))
batches, steps = opened.x.opener(8, None)
seen = sum(len(x) for epoch in range(2) for x, y in batches(epoch, 0))
print(type(opened.x).__name__, seen, folder.nbytes // 2**20)
try:
    folder.load()
except MemoryError:
    print("whole: MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_stays_bounded_on_a_set_ten_times_as_large(tmp_path):
    """120 MB of decoded pictures, 12 MB allowed, and the system refuses any allocation beyond 24 MB more than at the start."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(320):
            (tmp_path / "pets" / name / f"{n}.jpg").write_bytes(picture(0, n % 4, 16))
    environment = {**os.environ, "CONVOLT_DATA_MEMORY": "12MB", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", BOUNDED, str(tmp_path / "pets")], capture_output=True, text=True, check=False,
                          env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["PictureStream", "1280", "120", "whole:", "MemoryError"]


def test_how_much_memory_pictures_may_take(monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1.5 GB")
    assert data_memory() == 3 * 2**29
    monkeypatch.delenv("CONVOLT_DATA_MEMORY")
    assert 0 < data_memory() <= free_memory() < 2**60
    assert [parse_bytes(text, "x") for text in ("10", "2k", "3MiB")] == [10, 2048, 3 * 2**20]
    for text in ("much", "-1", "0", "1XB"):
        with pytest.raises(ArgumentError, match="a size in bytes"):
            parse_bytes(text, "x")


@pytest.mark.gpu
def test_streamed_batches_on_a_gpu(pets, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1")
    from convolt.training.picture_inputs import open_pictures

    opened, _ = open_pictures("fit", ImageFolder(pets), None, 0.0, torch.device("cuda"))
    batches, _ = opened.x.opener(32, None)
    x, _ = next(batches(0, 0))
    assert torch.from_numpy(x).is_pinned()


@pytest.mark.parametrize("order", [None, [3, 0, 4, 2, 1, 0, 4]])
def test_a_bad_file_moves_the_numbers_of_no_other_picture(tmp_path, monkeypatch, order):
    """Augmentation is keyed by them: they are places in the epoch's order, whoever finds the bad file, and when."""
    from convolt.data import pictures as module
    from convolt.training.picture_inputs import PictureStream

    monkeypatch.setattr(module, "MAX_BAD_SHARE", 0.5)
    (tmp_path / "a").mkdir()
    for n in range(5):
        (tmp_path / "a" / f"{n}.jpg").write_bytes(b"" if n == 0 else picture(0, n))
    rows = list(range(5)) if order is None else order
    expected = [place for place, row in enumerate(rows) if row != 0]
    for batch_size in (2, 3, 5):
        folder = ImageFolder(tmp_path, image_size=(12, 12))
        stream = PictureStream(folder, 1, torch.device("cpu"))
        opened, _ = stream.opener(batch_size, None if order is None else lambda _: torch.tensor(order))
        with pytest.warns(SkippedFilesWarning):
            assert [p for batch in opened(0, 0) for p in batch.places.tolist()] == expected
        later = [p for batch in opened(0, 1) for p in batch.places.tolist()]
        assert later == [place for place in expected if place >= batch_size]


def test_the_keys_of_a_stream_are_those_numbers(pets, tmp_path, monkeypatch):
    import shutil

    from convolt.training.inputs import from_stream
    from convolt.training.picture_inputs import PictureStream
    from convolt.training.sampling import make_drawing

    shutil.copytree(pets, tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "007.jpg").write_bytes(b"")
    seen = []
    for root in (pets, tmp_path / "pets"):
        stream = PictureStream(ImageFolder(root, image_size=(12, 12)), 1, torch.device("cpu"))
        batches = from_stream(stream, torch.device("cpu"), 32, None, ["x"], ["y"], make_drawing(3, True, None, "flip", 3))
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedFilesWarning)
            seen.append([key for batch in batches.epoch(0) for key in batch.pending.keys.tolist()])
    assert len(seen[0]) == 220 and len(seen[1]) == 219
    missing = [key for key in seen[0] if key not in seen[1]]
    assert len(missing) == 1 and [key for key in seen[0] if key != missing[0]] == seen[1]
