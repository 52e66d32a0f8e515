"""Every source of pictures gives its labels in the same forms: they are compared with one another, and with arrays in `fit`."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

import convolt
from convolt import layers
from convolt.data import ImageFolder, from_csv, from_huggingface, from_tar, from_webdataset, image_dataset_from_directory
from convolt.data.label_modes import LABEL_MODES
from convolt.errors import ArgumentError, ConvoltError, ShapeError
from tests.unit.pictures import encode

datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")

NAMES = ["cat", "dog"]
LABELS = [0] * 9 + [1] * 7
SEVERAL = [(0,), (0, 1), (1,), (0, 1)] * 4
MODES = {"int": "sparse_categorical_crossentropy", "categorical": "categorical_crossentropy", "binary": "binary_crossentropy",
         "multi_label": "binary_crossentropy"}


def picture(n):
    return encode(Image.fromarray(np.random.default_rng(n).integers(0, 256, (6, 6, 3), np.uint8)))


def shard(path, labels):
    with tarfile.open(path, "w") as archive:
        for n, found in enumerate(labels):
            for ending, data in (("png", picture(n)), ("cls", " ".join(map(str, found)).encode())):
                info = tarfile.TarInfo(f"{n:02d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for n, label in enumerate(LABELS):
        (root / "pets" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (root / "pets" / NAMES[label] / f"{n:02d}.png").write_bytes(picture(n))
    files = [f"pets/{NAMES[label]}/{n:02d}.png" for n, label in enumerate(LABELS)]
    (root / "one.csv").write_text("path,label\n" + "".join(f"{f},{NAMES[label]}\n" for f, label in zip(files, LABELS, strict=True)))
    (root / "several.csv").write_text("path,label\n" + "".join(
        f"{f},{'|'.join(NAMES[n] for n in found)}\n" for f, found in zip(files, SEVERAL, strict=True)))
    (root / "flags.csv").write_text("path,cat,dog\n" + "".join(
        f"{f},{int(0 in found)},{int(1 in found)}\n" for f, found in zip(files, SEVERAL, strict=True)))
    shard(root / "one.tar", [(label,) for label in LABELS])
    shard(root / "several.tar", SEVERAL)
    return root


def dataset(several):
    feature = datasets.ClassLabel(names=NAMES)
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(16)], "label": [list(s) for s in SEVERAL] if several else LABELS}
    kinds = {"image": datasets.Image(), "label": [feature] if several else feature}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


SIZE = {"image_size": (6, 6)}
SOURCES = {
    "folder": lambda root, mode: ImageFolder(root / "pets", label_mode=mode),
    "batches": lambda root, mode: image_dataset_from_directory(root / "pets", **SIZE, label_mode=mode, shuffle=False, verbose=False),
    "table": lambda root, mode: from_csv(root / "one.csv", label_mode=mode),
    "tar": lambda root, mode: from_tar(root / "one.tar", class_names=NAMES, label_mode=mode),
    "stream of shards": lambda root, mode: from_webdataset(str(root / "one.tar"), (6, 6), class_names=NAMES, label_mode=mode),
    "huggingface": lambda root, mode: from_huggingface(dataset(False), label_mode=mode),
    "huggingface stream": lambda root, mode: from_huggingface(dataset(False).to_iterable_dataset(), **SIZE, label_mode=mode),
}
SEVERAL_SOURCES = {
    "table": lambda root, mode: from_csv(root / "several.csv", separator="|", label_mode=mode),
    "columns": lambda root, mode: from_csv(root / "flags.csv", label_mode=mode),
    "tar": lambda root, mode: from_tar(root / "several.tar", class_names=NAMES, label_mode=mode),
    "stream of shards": lambda root, mode: from_webdataset(str(root / "several.tar"), (6, 6), class_names=NAMES, label_mode=mode),
    "huggingface": lambda root, mode: from_huggingface(dataset(True), label_mode=mode),
    "huggingface stream": lambda root, mode: from_huggingface(dataset(True).to_iterable_dataset(), **SIZE, label_mode=mode),
}


def given(data):
    """Returns all labels that a source gives, None without."""
    if hasattr(data, "load"):
        return data.load()[1]
    found = [batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None for batch in data]
    return None if found[0] is None else np.concatenate(found)


WANTED = {"int": np.asarray(LABELS), "categorical": np.eye(2, dtype=np.float32)[LABELS],
          "binary": np.asarray(LABELS, np.float32)[:, None], "multi_label": np.eye(2, dtype=np.float32)[LABELS]}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("mode", LABEL_MODES)
def test_one_label_for_each_picture(place, kind, mode):
    found = given(SOURCES[kind](place, mode))
    if mode is None:
        assert found is None
        return
    np.testing.assert_array_equal(found, WANTED[mode])
    assert found.dtype == WANTED[mode].dtype


@pytest.mark.parametrize("kind", SEVERAL_SOURCES)
def test_several_labels_for_each_picture(place, kind):
    expected = np.asarray([[0 in found, 1 in found] for found in SEVERAL], np.float32)
    found = given(SEVERAL_SOURCES[kind](place, "multi_label"))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    for mode in ("categorical", "binary"):
        with pytest.raises(ConvoltError, match=r"several labels each|2 labels"):
            given(SEVERAL_SOURCES[kind](place, mode))


@pytest.mark.parametrize("kind", SOURCES)
def test_an_unknown_form_is_told(place, kind):
    with pytest.raises(ArgumentError, match=r"label_mode: got categorial; .*Did you mean 'categorical'"):
        SOURCES[kind](place, "categorial")


def test_a_stream_needs_the_number_of_classes(place):
    for mode in ("categorical", "multi_label"):
        with pytest.raises(ArgumentError, match=f'label_mode="{mode}": got a stream whose number of classes is not known'):
            from_webdataset(str(place / "one.tar"), (6, 6), label_mode=mode)
    with pytest.raises(ArgumentError, match="exactly two classes"):
        from_webdataset(str(place / "one.tar"), (6, 6), classes=3, label_mode="binary")


def small_model(mode):
    convolt.utils.set_random_seed(0)
    units, activation = {"binary": (1, "sigmoid"), "multi_label": (2, "sigmoid")}.get(mode, (2, "softmax"))
    model = convolt.Sequential([layers.Input((6, 6, 3)), layers.Rescaling(1 / 255), layers.Flatten(),
                                layers.Dense(units, activation=activation)])
    model.compile("sgd", MODES[mode], device="cpu", fusions="none", precision="float32")
    return model


@pytest.mark.parametrize("memory", ["1GB", "1"], ids=["in memory", "streamed"])
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("mode", MODES)
def test_fit_learns_what_it_learns_from_arrays(place, monkeypatch, kind, mode, memory):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    x, _ = ImageFolder(place / "pets").load()
    options = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0}
    data = SOURCES[kind](place, mode)
    if kind == "batches":
        data.batch_size = 8
    expected, model = small_model(mode), small_model(mode)
    losses = expected.fit(x, WANTED[mode], **options).history["loss"]
    assert model.fit(data, **options).history["loss"] == pytest.approx(losses, rel=1e-5)
    assert model.evaluate(data, batch_size=8, verbose=0) == pytest.approx(expected.evaluate(x, WANTED[mode], verbose=0), rel=1e-5)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_form_that_the_loss_does_not_take_is_told_before_the_first_step(place, kind):
    for mode, loss in (("int", "categorical"), ("categorical", "int")):
        with pytest.raises(ShapeError, match=r"use sparse_categorical_crossentropy|use categorical_crossentropy|one-hot"):
            small_model(loss).fit(SOURCES[kind](place, mode), epochs=1, verbose=0)
