"""`predict` and `evaluate` take every source that `fit` takes, in its order, with the numbers that arrays give, in bounded memory."""

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
from convolt.data import (
    ImageFolder,
    SkippedFilesWarning,
    from_csv,
    from_huggingface,
    from_tar,
    from_webdataset,
    image_dataset_from_directory,
    open_pack,
    write_pack,
)
from convolt.data import pictures as pictures_module
from convolt.data.pack import StalePackWarning
from convolt.errors import DataError, ShapeError
from convolt.preprocessing.image import ImageDataGenerator
from convolt.training.given import ClassNamesWarning
from tests.unit.pictures import encode

NAMES = ("cat", "dog")
COUNT = 40
BOTH_WAYS = pytest.mark.parametrize("memory", ["1GB", "1"], ids=["in memory", "streamed"])


def picture(label, n, side=10):
    pixels = np.random.default_rng(n + 1000 * label).integers(0, 156, (side, side, 3), np.uint8)
    return encode(Image.fromarray(pixels + np.uint8(100 * label)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Forty pictures as a folder, a table, shards and packs."""
    root = tmp_path_factory.mktemp("data")
    lines = ["path,label"]
    with tarfile.open(root / "s-0.tar", "w") as archive:
        for label, name in enumerate(NAMES):
            (root / "pets" / name).mkdir(parents=True)
            for n in range(COUNT // 2):
                content = picture(label, n)
                (root / "pets" / name / f"{n:02d}.png").write_bytes(content)
                lines.append(f"pets/{name}/{n:02d}.png,{name}")
                for ending, data in (("png", content), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{label}{n:02d}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    write_pack(root / "pixels.pack", {"train": ImageFolder(root / "pets")})
    few = ImageFolder(root / "pets").subset([0, 30])
    write_pack(root / "encoded.pack", {"test": ImageFolder(root / "pets"), "train": few}, encoded=True)
    return root


class Samples(torch.utils.data.Dataset):
    """A `Dataset` of arrays."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


def batches(x, y):
    return ((x[start : start + 16], y[start : start + 16]) for start in range(0, len(x), 16))


def huggingface(root):
    datasets = pytest.importorskip("datasets")
    files = [root / "pets" / name / f"{n:02d}.png" for name in NAMES for n in range(COUNT // 2)]
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files], "label": [n // 20 for n in range(COUNT)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    return datasets.Dataset.from_dict(rows, features=features)


def shards(root):
    pytest.importorskip("webdataset")
    return from_webdataset(str(root / "s-0.tar"), (10, 10))


GENERATOR = ImageDataGenerator()
SOURCES = {
    "folder": lambda root, x, y: ImageFolder(root / "pets"),
    "table": lambda root, x, y: from_csv(root / "labels.csv"),
    "tar": lambda root, x, y: from_tar(root / "s-0.tar"),
    "streamed shards": lambda root, x, y: shards(root),
    "pack": lambda root, x, y: open_pack(root / "encoded.pack"),
    "part of a pack": lambda root, x, y: open_pack(root / "pixels.pack").parts["train"],
    "encoded part": lambda root, x, y: open_pack(root / "encoded.pack").parts["test"],
    "huggingface": lambda root, x, y: huggingface(root),
    "from_huggingface": lambda root, x, y: from_huggingface(huggingface(root)),
    "huggingface stream": lambda root, x, y: huggingface(root).to_iterable_dataset(),
    "directory flow": lambda root, x, y: GENERATOR.flow_from_directory(root / "pets", (10, 10), class_mode="sparse", shuffle=False),
    "array flow": lambda root, x, y: GENERATOR.flow(x, y, batch_size=16, shuffle=False),
    "batches": lambda root, x, y: image_dataset_from_directory(root / "pets", image_size=10, shuffle=False, verbose=False),
    "dataset": lambda root, x, y: Samples(x, y),
    "loader": lambda root, x, y: torch.utils.data.DataLoader(Samples(x, y), 16),
    "generator": lambda root, x, y: batches(x, y),
}


def small_model(channels=3):
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input((10, 10, channels)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="relu"),
                                layers.Flatten(), layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", fusions="none", precision="float32")
    return model


@BOTH_WAYS
@pytest.mark.parametrize("kind", SOURCES)
def test_each_source_gives_what_arrays_give(place, monkeypatch, memory, kind):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", "1GB")
    x, y = ImageFolder(place / "pets").load()
    model = small_model()
    expected, values = model.predict(x, batch_size=16, verbose=0), model.evaluate(x, y, batch_size=16, verbose=0)
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    found = model.predict(SOURCES[kind](place, x, y), batch_size=16, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert model.evaluate(SOURCES[kind](place, x, y), batch_size=16, verbose=0) == pytest.approx(values, rel=1e-6)
    unlike = np.abs(expected[:-1] - expected[1:]).max(axis=1)
    assert (unlike > 1e-6).all(), "each row tells which picture it is of"


@BOTH_WAYS
def test_weights_are_frozen_for_a_stream_as_for_arrays(place, monkeypatch, memory, capsys):
    """Whether that pays follows from the number of samples, which a stream of pictures has, too."""
    from convolt.compiler import inference

    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    model = small_model()
    size = inference._Size.of(model)
    enough = size.work(torch.zeros(16, 3, 10, 10), COUNT)
    monkeypatch.setitem(inference.FREEZING, "cpu", enough / (inference.CALL * size.layers))
    model.predict(ImageFolder(place / "pets"), batch_size=16, verbose=2)
    assert "weights frozen" in capsys.readouterr().out
    few = small_model()
    few.predict(ImageFolder(place / "pets").subset(range(39)), batch_size=16, verbose=2)
    assert "weights frozen" not in capsys.readouterr().out


@BOTH_WAYS
def test_pictures_without_labels_are_predicted(place, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    model = small_model()
    expected = model.predict(ImageFolder(place / "pets"), verbose=0)
    for data in (ImageFolder(place / "pets", labels=None),
                 image_dataset_from_directory(place / "pets", image_size=10, label_mode=None, shuffle=False, verbose=False),
                 GENERATOR.flow_from_directory(place / "pets", (10, 10), class_mode=None, shuffle=False),
                 place / "pets", str(place / "pets")):
        np.testing.assert_allclose(model.predict(data, verbose=0), expected, rtol=1e-6)
    np.testing.assert_allclose(model.predict(place / "pets" / "cat" / "03.png", verbose=0), expected[3:4], rtol=1e-6)
    with pytest.raises(DataError, match="without labels"):
        model.evaluate(ImageFolder(place / "pets", labels=None), verbose=0)


def test_a_pack_of_training_alone_is_predicted(place):
    model = small_model()
    found = model.predict(open_pack(place / "pixels.pack"), verbose=0)
    np.testing.assert_allclose(found, model.predict(place / "pets", verbose=0), rtol=1e-6)
    with pytest.raises(DataError, match=r"got the parts \['train'\]; expected a part 'test' or 'validation'"):
        model.evaluate(open_pack(place / "pixels.pack"), verbose=0)


def test_a_pack_beside_the_folder_is_read_and_a_stale_one_told(tmp_path, monkeypatch):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for n in range(4):
        (tmp_path / "pets" / "cat" / f"{n}.png").write_bytes(picture(0, n))
    write_pack(tmp_path / "pets.pack", {"train": ImageFolder(tmp_path / "pets")})
    model = small_model()
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "content", lambda *_: pytest.fail("a file was read"))
        packed = model.predict(ImageFolder(tmp_path / "pets"), verbose=0)
    (tmp_path / "pets" / "cat" / "4.png").write_bytes(picture(0, 4))
    with pytest.warns(StalePackWarning, match="decoded anew"):
        np.testing.assert_array_equal(model.predict(ImageFolder(tmp_path / "pets"), verbose=0)[:4], packed)
    with pytest.warns(StalePackWarning, match="the pack's pictures are used"):
        assert len(model.predict(open_pack(tmp_path / "pets.pack"), verbose=0)) == 4


@BOTH_WAYS
def test_rows_of_bad_files_are_missing_and_the_files_told(tmp_path, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    monkeypatch.setattr(pictures_module, "MAX_BAD_SHARE", 0.5)
    for label, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        for n in range(6):
            (tmp_path / name / f"{n}.png").write_bytes(b"" if (label, n) == (0, 3) else picture(label, n))
    model, folder = small_model(), ImageFolder(tmp_path)
    with pytest.warns(SkippedFilesWarning, match=r"cat/3\.png"):
        found = model.predict(folder, batch_size=4, verbose=0)
    assert [bad.path for bad in folder.bad] == ["cat/3.png"]
    x, y = folder.load()
    np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-6)
    assert model.evaluate(folder, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-6)


@BOTH_WAYS
def test_pictures_of_another_form_are_told(place, monkeypatch, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    for data in (ImageFolder(place / "pets", image_size=(8, 8)), ImageFolder(place / "pets", color_mode="grayscale")):
        for verb in ("predict", "evaluate"):
            with pytest.raises(ShapeError, match=rf"{verb}.*expected \(10, 10, 3\)"):
                getattr(small_model(), verb)(data, verbose=0)


def test_pictures_of_a_huggingface_set_are_read_as_the_model_takes_them(place, capsys):
    model = small_model(channels=1)
    found = model.predict(huggingface(place), verbose=2)
    assert "predict: pictures of the Hugging Face set are read as 10×10 grayscale" in capsys.readouterr().out
    np.testing.assert_allclose(found, model.predict(ImageFolder(place / "pets", color_mode="grayscale"), verbose=0), rtol=1e-6)


def test_evaluating_on_other_classes_is_told(place):
    model = small_model()
    model.class_names = ["dog", "cat"]
    with pytest.warns(ClassNamesWarning, match="'dog', 'cat'; expected 'cat', 'dog'"):
        model.evaluate(ImageFolder(place / "pets"), verbose=0)
    assert model.class_names == ["dog", "cat"]


def test_a_stream_that_is_not_shuffled_keeps_its_order(place):
    """`fit(shuffle=False)` takes shards as they come, with augmentation or without."""
    data = shards(place)
    seen = []
    for augment in (None, "brightness=0"):
        model = small_model()
        drawing = convolt.training.sampling.make_drawing(3, False, None, augment)
        found, _ = model.trainer._data("fit", data, None, None, 16, None, drawing)
        seen.append(np.concatenate([batch.y[0].numpy() for batch in found.epoch(0)]).tolist())
    assert seen == [[0] * 20 + [1] * 20] * 2


LIMITED = """
import resource, sys
import numpy as np
import convolt
from convolt import layers
from convolt.data import ImageFolder
model = convolt.Sequential([layers.Input((256, 256, 3)), layers.Rescaling(1 / 255), layers.AveragePooling2D(64), layers.Flatten(),
                            layers.Dense(2, activation="softmax")])
model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", precision="float32")
folder = ImageFolder(sys.argv[1], image_size=(256, 256))
few = folder.subset(range(32))
model.predict(few, batch_size=8, verbose=0), model.evaluate(few, batch_size=8, verbose=0)  # threads and libraries are there
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 48 * 2**20,) * 2)
found = model.predict(folder, batch_size=8, verbose=0)
accuracy = model.evaluate(folder, batch_size=8, verbose=0, return_dict=True)["accuracy"]
print(len(found), abs(accuracy - float((found.argmax(1) == folder.labels).mean())) < 1e-6, folder.nbytes // 2**20)
try:
    folder.load()
except MemoryError:
    print("whole: MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_stays_bounded(tmp_path):
    """240 MB of decoded pictures; the system refuses any allocation beyond 48 MB more than a few of them took."""
    for label, name in enumerate(NAMES):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(640):
            (tmp_path / "pets" / name / f"{n}.png").write_bytes(picture(label, n % 4))
    environment = {**os.environ, "CONVOLT_DATA_MEMORY": "12MB", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "pets")], capture_output=True, text=True, check=False,
                          env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["1280", "True", "240", "whole:", "MemoryError"]
