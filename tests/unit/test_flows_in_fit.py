"""`fit` takes apart what Keras iterates: flows of an `ImageDataGenerator` and `image_dataset_from_directory`, in memory or streamed.

What the model sees is what iterating gives, each file is decoded once where all fit, and a resumed training is the uninterrupted one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convolt
from convolt import layers
from convolt.data import ImageFolder
from convolt.data.batches import epoch_order
from convolt.errors import ArgumentError, CheckpointError
from convolt.preprocessing.image import ImageDataGenerator
from convolt.training.checkpoint import Checkpoint
from convolt.training.sampling import make_drawing
from convolt.utils import image_dataset_from_directory
from tests.faults import tiny

COUNT = 46
PLACES = pytest.mark.parametrize(("memory", "where"), [("1GB", "resident"), ("1", "streamed")])
CHANGES = {"rotation_range": 20, "zoom_range": 0.2, "shear_range": 5.0, "horizontal_flip": True, "width_shift_range": 0.1}


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "pets"
    for label, (kind, count) in enumerate((("cat", 24), ("dog", 22))):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 120, (14, 12, 3), dtype="uint8") + np.uint8(100 * label)
            Image.fromarray(pixels).save(folder / kind / f"{number:02d}.png")
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose contents were read, in order."""
    found: list[str] = []
    content = ImageFolder.content

    def counted(self: ImageFolder, index: int) -> bytes:
        found.append(self.files[index])
        return content(self, index)

    monkeypatch.setattr(ImageFolder, "content", counted)
    return found


def model_for(mode: str = "categorical", scaled: bool = True) -> convolt.Sequential:
    """Returns a model for labels of this form, and for pixels from 0 to 1 or to 255."""
    convolt.utils.set_random_seed(0)
    first = layers.Rescaling(1.0 if scaled else 1 / 255)
    end = {"input": [layers.Conv2D(3, 3, padding="same")],
           "binary": [layers.Flatten(), layers.Dense(1, activation="sigmoid")]}.get(mode, [layers.Flatten(), layers.Dense(2, "softmax")])
    loss = {"input": "mse", "binary": "binary_crossentropy", "categorical": "categorical_crossentropy"}
    model = convolt.Sequential([layers.Input((8, 8, 3)), first, layers.Conv2D(3, 3, padding="same"), *end])
    model.compile("sgd", loss.get(mode, "sparse_categorical_crossentropy"), device="cpu", fusions="none", precision="float32")
    return model


class Iterated:
    """A flow whose batches alone can be had."""

    def __init__(self, flow: Any) -> None:
        self.flow = flow

    def __len__(self) -> int:
        return len(self.flow)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        return self.flow.of_epoch(epoch, first)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.flow)


def seen(model: Any, data: Any, epoch: int, what: str = "fit", first: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns pictures and labels of an epoch as the model gets them."""
    batches, _ = model.trainer._data(what, data, None, None, None, None)
    ready = [batch.ready() for batch in batches.epoch(epoch, first, first * data.batch_size)]
    return [(batch.x[0].numpy(), batch.y[0].numpy()) for batch in ready]


@PLACES
@pytest.mark.parametrize("mode", ["categorical", "binary", "sparse", "input"])
def test_the_model_sees_what_the_flow_gives(pets: Path, monkeypatch: pytest.MonkeyPatch, memory: str, where: str, mode: str) -> None:
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    flow = ImageDataGenerator(rescale=1 / 255, brightness_range=(0.7, 1.2), **CHANGES).flow_from_directory(
        pets, (8, 8), batch_size=10, class_mode=mode, seed=3)
    model = model_for(mode)
    for epoch in (0, 2):
        found, wanted = seen(model, flow, epoch), list(flow.of_epoch(epoch))
        assert [len(x) for x, _ in found] == [10, 10, 10, 10, 6]
        for (x, y), (flow_x, flow_y) in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, flow_x, atol=1e-5)
            np.testing.assert_allclose(y, flow_y[:, None] if mode == "binary" else flow_y, atol=1e-5)
            assert y.dtype == flow_y.dtype
    np.testing.assert_array_equal(seen(model, flow, 2, first=3)[0][0], found[3][0])
    history = model.fit(flow, epochs=2, verbose=0)
    assert model.trainer.plan.residency == where
    by_hand = model_for(mode)
    iterated = by_hand.fit(Iterated(flow), epochs=2, verbose=0)
    np.testing.assert_allclose(history.history["loss"], iterated.history["loss"], rtol=1e-4)
    for one, other in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@PLACES
def test_validation_by_subset_is_what_the_flow_gives(pets: Path, monkeypatch: pytest.MonkeyPatch, memory: str, where: str) -> None:
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    generator = ImageDataGenerator(rescale=1 / 255, validation_split=0.25, horizontal_flip=True)
    train, validation = (generator.flow_from_directory(pets, (8, 8), batch_size=10, subset=part) for part in ("training", "validation"))
    model = model_for()
    for (x, y), (flow_x, flow_y) in zip(seen(model, validation, 0, "fit(validation_data)"), validation.of_epoch(0), strict=True):
        np.testing.assert_allclose(x, flow_x, atol=1e-5)
        np.testing.assert_array_equal(y, flow_y)
    history = model.fit(train, validation_data=validation, epochs=2, verbose=0).history
    by_hand = model_for()
    iterated = by_hand.fit(Iterated(train), validation_data=Iterated(validation), epochs=2, verbose=0).history
    np.testing.assert_allclose(history["val_loss"], iterated["val_loss"], rtol=1e-4)
    np.testing.assert_allclose(model.evaluate(validation, verbose=0), history["val_loss"][-1], rtol=1e-6)


def test_each_file_is_decoded_once(pets: Path, decoded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    generator = ImageDataGenerator(rescale=1 / 255, validation_split=0.25, **CHANGES)
    train, validation = (generator.flow_from_directory(pets, (8, 8), subset=part) for part in ("training", "validation"))
    model_for().fit(train, validation_data=validation, epochs=3, verbose=2)
    assert len(decoded) == len(set(decoded)) == COUNT
    said = capsys.readouterr().out
    assert "resident" in said and said.count("Augmentation: GeneratorGeometry(rotation_range=20") == 1


@PLACES
def test_a_flow_of_arrays(memory: str, where: str) -> None:
    random = np.random.default_rng(0)
    x, y, weights = random.integers(0, 256, (23, 8, 8, 3), "uint8"), np.arange(23) % 2, random.random(23).astype("float32")
    for pictures in (x, x.astype("float32")):
        flow = ImageDataGenerator(rescale=1 / 255, **CHANGES).flow(pictures, y, batch_size=6, sample_weight=weights, seed=2)
        model = model_for("sparse")
        batches, _ = model.trainer._data("fit", flow, None, None, None, None)
        for batch, wanted in zip([b.ready() for b in batches.epoch(1)], list(flow.of_epoch(1)), strict=True):
            for part, expected in zip((batch.x, batch.y, batch.weights), wanted, strict=True):
                np.testing.assert_allclose(part[0].numpy(), expected, atol=1e-5)
        model.fit(flow, epochs=1, verbose=0)
        assert model.trainer.plan.residency == "resident"


def test_what_a_step_cannot_do_is_iterated(pets: Path) -> None:
    doubled = ImageDataGenerator(preprocessing_function=lambda picture: picture / 255)
    model = model_for()
    model.fit(doubled.flow_from_directory(pets, (8, 8)), epochs=1, verbose=0)
    assert model.trainer.plan.residency_why == "what a DirectoryFlow gives"
    plain = ImageDataGenerator(rescale=1 / 255).flow_from_directory(pets, (8, 8), seed=0)
    other = model_for()
    other.fit(plain, augment="flip", epochs=1, verbose=0)
    assert other.trainer.plan.residency == "streamed", "the flow's changes and others"
    for settings in ({"samplewise_center": True}, {"data_format": "channels_first"}):
        assert ImageDataGenerator(**settings).flow_from_directory(pets, (8, 8)).batch_spec() is None
    assert ImageDataGenerator().flow_from_directory(pets, (8, 8), class_mode=None).batch_spec() is None
    masks = np.zeros((4, 8, 8), "int64")
    assert ImageDataGenerator().flow(np.zeros((4, 8, 8, 3), "uint8"), masks).batch_spec() is None
    with pytest.raises(ArgumentError, match="labels beside a dataset"):
        model_for().fit(plain, np.zeros(COUNT), verbose=0)


def test_indexing_decodes_its_batch_alone(pets: Path, decoded: list[str]) -> None:
    flow = ImageDataGenerator(rescale=1 / 255, **CHANGES).flow_from_directory(pets, (8, 8), batch_size=5, seed=1)
    x, y = flow[3]
    rows = epoch_order(COUNT, 1, 0)[15:20]
    assert sorted(decoded) == sorted(flow.filenames[row] for row in rows)
    assert y.argmax(1).tolist() == flow.classes[rows].tolist()
    np.testing.assert_array_equal(x, list(flow.of_epoch(0))[3][0])
    decoded.clear()
    next(flow)
    assert len(decoded) == 5
    with pytest.raises(IndexError):
        flow[10]


# -- image_dataset_from_directory ------------------------------------------------------------------------------------------


def batches_of(pets: Path, **options: Any) -> Any:
    return image_dataset_from_directory(pets, image_size=8, batch_size=10, verbose=False, **options)


@PLACES
@pytest.mark.parametrize("mode", ["int", "categorical", "binary"])
def test_batches_of_a_folder_are_its_pictures(pets: Path, monkeypatch: pytest.MonkeyPatch, memory: str, where: str, mode: str) -> None:
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    data = batches_of(pets, label_mode=mode, seed=4)
    model = model_for(mode, scaled=False)
    x, _ = ImageFolder(pets, (8, 8)).load()
    for epoch in (0, 1):
        rows = epoch_order(COUNT, 4, epoch).numpy()
        found = seen(model, data, epoch)
        np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), x[rows])
        np.testing.assert_array_equal(np.concatenate([y for _, y in found]), data.folder.labelled(mode).targets(rows))
    form = next(iter(data))[1]
    assert (form.shape, form.dtype) == (found[0][1].shape, found[0][1].dtype)
    model.fit(data, validation_data=batches_of(pets, label_mode=mode, shuffle=False), epochs=2, verbose=0)
    assert model.trainer.plan.residency == where


def test_a_seed_of_fit_decides_where_the_batches_have_none(pets: Path) -> None:
    losses = [model_for("int", scaled=False).fit(batches_of(pets), epochs=2, seed=seed, verbose=0).history["loss"] for seed in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]
    own = [model_for("int", scaled=False).fit(batches_of(pets, seed=1), epochs=2, seed=seed, verbose=0).history["loss"] for seed in (5, 6)]
    assert own[0] == own[1]


def test_augmentation_is_keyed_by_sample(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory or streamed, in order or shuffled, with batches of 10 or of 7: each picture is changed in the same way."""
    found = []
    for memory, shuffle, size in (("1GB", True, 10), ("1", True, 7), ("1", False, 10)):
        monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
        data = image_dataset_from_directory(pets, image_size=8, batch_size=size, shuffle=shuffle, seed=4, verbose=False)
        drawing = make_drawing(9, True, None, "flip,rotate=30,zoom=0.2", 3)
        batches, _ = model_for("int", scaled=False).trainer._data("fit", data, None, None, None, None, drawing)
        x = np.concatenate([batch.ready().x[0].numpy() for batch in batches.epoch(1)])
        rows = epoch_order(COUNT, 4, 1).numpy() if shuffle else np.arange(COUNT)
        found.append(x[np.argsort(rows)])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - ImageFolder(pets, (8, 8)).load()[0]).max() > 5


@PLACES
@pytest.mark.parametrize("kind", ["flow", "batches", "seeded batches"])
def test_a_resumed_training_is_the_uninterrupted_one(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, where: str,
                                                     kind: str) -> None:
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)

    def data() -> Any:
        if kind == "flow":
            return ImageDataGenerator(rescale=1 / 255, **CHANGES).flow_from_directory(pets, (8, 8), batch_size=10, class_mode="sparse")
        return batches_of(pets, seed=2 if kind == "seeded batches" else None)

    def fit(folder: str, kill_at: int | None) -> tuple[list[float], list[np.ndarray]]:
        model = model_for("sparse", scaled=kind == "flow")
        checkpoint = Checkpoint(tmp_path / folder, every_steps=4)
        history = model.fit(data(), epochs=3, verbose=0, augment=None if kind == "flow" else "flip,rotate=20", checkpoint=checkpoint,
                            callbacks=[tiny.KillAt(kill_at)])
        return history.history["loss"], model.get_weights()

    losses, weights = fit("whole", None)
    with pytest.raises(tiny.Kill):
        fit("part", 7)  # in the second epoch of five steps
    torch.manual_seed(77)  # another process has other random numbers
    np.random.seed(77)
    again, resumed = fit("part", None)
    assert again == losses
    for one, other in zip(weights, resumed, strict=True):
        np.testing.assert_array_equal(one, other)
    smaller = data()
    smaller.batch_size = 5
    with pytest.raises(CheckpointError, match="batch_size: 10 → 5"):
        model_for("sparse", scaled=kind == "flow").fit(smaller, epochs=4, augment=None if kind == "flow" else "flip,rotate=20", verbose=0,
                                checkpoint=tmp_path / "part", callbacks=[tiny.KillAt(None)])
