"""`fit(augment=…)`: the model gets the pictures that the engine makes of (seed, epoch, sample), in whatever way they come."""

import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import convolt
from convolt import layers
from convolt.compiler.execute import CapturedStep
from convolt.data.augment import (
    Augmentation,
    CutMix,
    MixUp,
    ProgressiveResizing,
    RandAugment,
    RandomBrightness,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    RandomTranslation,
    RandomZoom,
    Rescale,
    TrivialAugment,
    keys,
)
from convolt.data.augment.words import WORDS, parse
from convolt.errors import ArgumentError, CheckpointError, ShapeError
from convolt.training import inputs
from convolt.training.checks import PixelRangeWarning
from convolt.training.sampling import make_drawing
from tests.unit.compiler.replay import ReplayOnCpu

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, size=(60, 12, 10, 3), dtype="uint8")
Y = RNG.integers(0, 4, size=60)
CHAIN = "flip,rotate=20,zoom=0.2,brightness=0.2,cutout=0.3"


class Seen(convolt.Model):
    """A model that keeps what its steps get."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.dense = layers.GlobalAveragePooling2D(), layers.Dense(4)
        self.pictures: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.pool(x / 255))

    def train_step(self, data: Any) -> dict[str, torch.Tensor]:
        x, y = data[:2]
        self.pictures.append(x.detach().clone())
        self.labels.append(y.clone())
        loss = self.compute_loss(x, y, self(x))
        loss.backward()
        self.optimizer.step()
        return {"loss": loss}


def net(*, fixed: bool = False, optimizer: Any = "adam", loss: Any = "sparse_categorical_crossentropy",
        **options: Any) -> convolt.Sequential:
    convolt.utils.set_random_seed(0)
    size = (12, 10) if fixed else (None, None)
    model = convolt.Sequential([
        layers.Input((*size, 3)), layers.Rescaling(1 / 255), layers.Conv2D(6, 3, padding="same"), layers.BatchNormalization(),
        layers.ReLU(), layers.Dropout(0.2), layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax"),
    ])  # fmt: skip
    model.compile(optimizer, loss, ["accuracy"], device="cpu", fusions="none", precision="float32", **options)
    return model


def weights(model: Any) -> list[bytes]:
    return [w.tobytes() for w in model.get_weights()]


class Pairs(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(X[index]), int(Y[index])


# -- the same pictures, however they come ------------------------------------------------------------------------------


def pictures_of(data: Any, epoch: int, first: int = 0, seen: int | None = None) -> torch.Tensor:
    """The pictures of an epoch as the model gets them, in order."""
    return torch.cat([batch.ready().x[0] for batch in data.epoch(epoch, first, seen)])


def expected(epoch: int, seed: int = 5, chain: Any = CHAIN) -> tuple[torch.Tensor, torch.Tensor]:
    """(pictures, rows) that an epoch of all samples must give."""
    drawing = make_drawing(seed, True, None, chain)
    rows = drawing.order(len(X), lambda: None)(epoch)  # type: ignore[misc]
    made = Augmentation(parse(chain)).apply(torch.from_numpy(X), rows, keys(seed, epoch, rows))
    return made.images, rows


def resident(batch: int) -> Any:
    drawing = make_drawing(5, True, None, CHAIN)
    return inputs.from_arrays(([torch.from_numpy(X)], [torch.from_numpy(Y)], []), batch, CPU, drawing)


def dataset(batch: int) -> Any:
    return inputs.from_stream(Pairs(), CPU, batch, None, ["x"], ["y"], make_drawing(5, True, None, CHAIN))


@pytest.mark.parametrize("make", [resident, dataset])
@pytest.mark.parametrize("batch", [1, 7, 60])
def test_a_picture_depends_on_seed_epoch_and_sample_alone(make: Callable[[int], Any], batch: int) -> None:
    for epoch in (0, 3):
        assert torch.equal(pictures_of(make(batch), epoch), expected(epoch)[0])


def test_arrays_too_large_for_the_device_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "fits_on", lambda *_: False)
    assert torch.equal(pictures_of(resident(7), 2), expected(2)[0])


def test_workers_have_no_part_in_it() -> None:
    def loader(workers: int, batch: int) -> Any:
        source = DataLoader(Pairs(), batch, num_workers=workers)
        return inputs.from_stream(source, CPU, None, None, ["x"], ["y"], make_drawing(5, True, None, CHAIN))

    rows = torch.arange(60)
    wanted = Augmentation(parse(CHAIN)).apply(torch.from_numpy(X), rows, keys(5, 1, rows)).images
    for workers, batch in ((0, 8), (0, 11), (1, 8), (4, 8)):
        assert torch.equal(pictures_of(loader(workers, batch), 1), wanted)


test_workers_have_no_part_in_it = pytest.mark.filterwarnings("ignore:This DataLoader will create")(test_workers_have_no_part_in_it)


class Uneven:
    """Batches of different sizes, which no batch number tells the first sample of."""

    def __iter__(self) -> Iterator[Any]:
        start = 0
        for size in (5, 9, 1, 20, 25):
            yield X[start : start + size], Y[start : start + size]
            start += size


def test_an_epoch_goes_on_in_its_middle_with_the_same_pictures() -> None:
    chance = random.Random(0)
    whole = expected(2)[0]
    for _ in range(10):
        batch, make = chance.randint(1, 20), chance.choice([resident, dataset])
        first = chance.randrange(-(-60 // batch) + 1)
        rest = pictures_of(make(batch), 2, first, first * batch) if first * batch < 60 else torch.empty(0, 12, 10, 3)
        assert torch.equal(rest, whole[first * batch :])
    uneven = inputs.from_stream(Uneven(), CPU, None, None, ["x"], ["y"], make_drawing(5, True, None, CHAIN))
    assert torch.equal(pictures_of(uneven, 2, 3, 15), pictures_of(uneven, 2)[15:])


def test_the_step_gets_these_pictures_with_their_labels() -> None:
    model = Seen()
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    model.fit(X, Y, batch_size=16, epochs=2, seed=5, augment=CHAIN, verbose=0)
    for epoch in range(2):
        images, rows = expected(epoch)
        got, labels = (torch.cat(part[epoch * 4 : epoch * 4 + 4]) for part in (model.pictures, model.labels))
        assert torch.equal(got, images.permute(0, 3, 1, 2))
        assert torch.equal(labels, torch.from_numpy(Y)[rows])
    assert not torch.equal(model.pictures[0], model.pictures[4])


def test_draws_of_the_same_sample_differ() -> None:
    drawing = make_drawing(5, True, [1.0] + [0.0] * 59, "rotate=90")
    data = inputs.from_arrays(([torch.from_numpy(X)], [torch.from_numpy(Y)], []), 60, CPU, drawing)
    pictures = pictures_of(data, 0)
    assert len({picture.numpy().tobytes() for picture in pictures}) == 60


def test_validation_is_not_augmented() -> None:
    model = net()
    history = model.fit(X, Y, epochs=1, augment=CHAIN, validation_data=(X[:20], Y[:20]), verbose=0)
    assert history.history["val_loss"][0] == pytest.approx(model.evaluate(X[:20], Y[:20], verbose=0)[0], rel=1e-6)
    split = net().fit(X, Y, epochs=1, augment=CHAIN, validation_split=0.25, verbose=0).history
    assert {"val_loss", "loss"} <= split.keys()


@pytest.mark.parametrize("options", [{"micro_batch": 5}, {"optimizer": "sam"}, {"optimizer": "swa"}], ids=["micro-batches", "sam", "swa"])
def test_what_looks_at_batches_again_sees_the_augmented_ones(options: dict[str, Any]) -> None:
    optimizer = {"sam": lambda: convolt.optimizers.SAM("sgd"), "swa": lambda: convolt.optimizers.SWA("adam", start=2, every=1)}
    chosen = options | ({"optimizer": optimizer[options["optimizer"]]()} if "optimizer" in options else {})
    model = net(**chosen)
    model.fit(X, Y, batch_size=12, epochs=2, augment=[RandomCrop(8), RandomFlip("horizontal")], seed=1, verbose=0)
    assert model.optimizer.iterations == 10 and all(np.isfinite(w).all() for w in model.get_weights())


# -- captured in a graph -----------------------------------------------------------------------------------------------


def snapshot_of(model: Any) -> Callable[[], Callable[[], None]]:
    def snapshot() -> Callable[[], None]:
        step, optimizer = model.trainer._step, model.optimizer
        metrics = [state for metric in model.metrics for state in metric.state().values()]
        live = [*model.parameters(), *model.buffers(), *optimizer.slots().values(), *step.train_totals.tensors().values(), *metrics]
        kept, generator = [(tensor, tensor.detach().clone()) for tensor in live], torch.get_rng_state()

        def undo() -> None:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
            torch.set_rng_state(generator)

        return undo

    return snapshot


@pytest.mark.parametrize(("chain", "replays"), [([RandomFlip("horizontal"), RandomRotation(20), RandomBrightness(0.2)], 47),
                                               ([RandomFlip("horizontal"), ProgressiveResizing(6, 12, 2)], 44),
                                               ([TrivialAugment(), RandAugment(3, 20)], 47)], ids=["plain", "growing", "policies"])
@pytest.mark.parametrize("kernels", ["numba", "reference"])
def test_a_captured_step_gathers_and_augments_as_the_eager_one(
    chain: list[Any], replays: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "reference":  # whose single operations the stand-in for graphs records
        monkeypatch.setattr(sys.modules["convolt.kernels.warp"], "choose", lambda *_: "reference")
    eager, captured = net(), net()
    backend = None
    for model in (eager, captured):
        convolt.utils.set_random_seed(2)
        model.fit(X[:8], Y[:8], verbose=0)
        model.train()
        convolt.utils.set_random_seed(1)
        drawing = make_drawing(5, True, None, chain)
        data = inputs.from_arrays(([torch.from_numpy(X)], [torch.from_numpy(Y)], []), 12, CPU, drawing)
        step = model.trainer._step
        step.train_totals.reset()
        if model is captured:
            backend = ReplayOnCpu(snapshot_of(model))
            step = CapturedStep(step, model.optimizer, backend, pytest.fail)
        for epoch in range(10):  # of five steps each
            for batch in data.epoch(epoch):
                step.train(batch)
    assert backend is not None and backend.replays == replays and (backend.kernels > 0) == (kernels == "numba")
    assert weights(eager) == weights(captured)


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_pictures_grow_with_the_epochs() -> None:
    assert [ProgressiveResizing(8, 32, 4).size(epoch)[0] for epoch in range(6)] == [8, 16, 24, 32, 32, 32]
    model = Seen()
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    model.fit(X, Y, batch_size=30, epochs=3, augment=[ProgressiveResizing(8, 16, 3, multiple=4)], verbose=0)
    assert [tuple(p.shape[2:]) for p in model.pictures] == [(8, 8)] * 2 + [(12, 12)] * 2 + [(16, 16)] * 2


def test_a_crop_makes_the_size_that_the_model_takes() -> None:
    larger = RNG.integers(0, 256, size=(20, 16, 14, 3), dtype="uint8")
    model = net(fixed=True)
    model.fit(larger, Y[:20], augment=[RandomCrop(12, 10)], verbose=0)
    with pytest.raises(ShapeError, match="pictures of 8×8 after augmentation; expected 12×10, as the model takes them"):
        net(fixed=True).fit(larger, Y[:20], augment=[RandomCrop(8)], verbose=0)
    with pytest.raises(ShapeError, match="pictures of 6×6 after augmentation"):
        net(fixed=True).fit(X, Y, augment=[ProgressiveResizing(6, 12, 3)], verbose=0)


def test_values_leave_as_the_model_wants_them() -> None:
    model = Seen()
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    model.fit(X, Y, batch_size=60, augment=[RandomZoom(0.1), Rescale(1 / 255)], verbose=0)
    assert float(model.pictures[0].min()) >= 0 and 0.5 < float(model.pictures[0].max()) <= 1


# -- checkpoints -------------------------------------------------------------------------------------------------------


class Kill(Exception):
    pass


class KillAt(convolt.callbacks.Callback):
    def __init__(self, step: int | None) -> None:
        self.left = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left = None if self.left is None else self.left - 1
        if self.left == 0:
            raise Kill


@pytest.mark.parametrize("source", ["arrays", "dataset", "uneven"])
@pytest.mark.parametrize("seed", [None, 4])
def test_a_resumed_training_gets_the_same_pictures(source: str, seed: int | None, tmp_path: Path) -> None:
    def train(folder: Path, kill: int | None) -> Any:
        convolt.utils.set_random_seed(3)
        model = net()
        data: Any = {"arrays": (X, Y), "dataset": (Pairs(), None), "uneven": (Uneven(), None)}[source]
        chain = [*parse(CHAIN), ProgressiveResizing(8, 12, 3)]
        history = model.fit(*data, batch_size=13, epochs=3, seed=seed, shuffle=source != "uneven", augment=chain,
                            sampler="balanced" if source == "arrays" else None, verbose=0, callbacks=[KillAt(kill)],
                            checkpoint=convolt.Checkpoint(folder, every_steps=1))  # fmt: skip
        return history.history, weights(model)

    wanted = train(tmp_path / "whole", None)
    for kill in (2, 5, 9, 13):
        with pytest.raises(Kill):
            train(tmp_path / f"at-{kill}", kill)
        assert train(tmp_path / f"at-{kill}", None) == wanted


def test_another_augmentation_is_another_training(tmp_path: Path) -> None:
    net().fit(X, Y, epochs=1, augment="flip,rotate=10", checkpoint=tmp_path, verbose=0)
    with pytest.raises(CheckpointError, match=r"augment\.RandomRotation\.degrees: 10\.0 → 20\.0"):
        net().fit(X, Y, epochs=2, augment="flip,rotate=20", checkpoint=tmp_path, resume_allow=["epochs"], verbose=0)
    with pytest.raises(CheckpointError, match=r"augment\.order: RandomFlip, RandomRotation → RandomRotation, RandomFlip"):
        net().fit(X, Y, epochs=2, augment="rotate=10,flip", checkpoint=tmp_path, resume_allow=["epochs"], verbose=0)
    with pytest.raises(CheckpointError, match="augment"):
        net().fit(X, Y, epochs=2, checkpoint=tmp_path, resume_allow=["epochs"], verbose=0)
    with pytest.raises(CheckpointError, match="sampler"):
        net().fit(X, Y, epochs=2, augment="flip,rotate=10", sampler="balanced", checkpoint=tmp_path, resume_allow=["epochs"], verbose=0)


# -- words and messages ------------------------------------------------------------------------------------------------


def test_the_docs_list_all_words() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "training_data.md").read_text(encoding="utf-8")
    table = page[page.index("| moves |") : page.index("`alternate_flip` (`AlternatingFlip`)")]
    assert set(re.findall(r"`(\w+)`", table)) == {"auto", *WORDS}


def test_words_are_transforms() -> None:
    assert [repr(t) for t in parse("flip,rotate=-5:20,crop=8:2,zoom=0.1")] == [
        "RandomFlip(mode='horizontal')", "RandomRotation(degrees=(-5.0, 20.0))", "RandomCrop(height=8, padding=2)",
        "RandomZoom(height_factor=0.1)"]
    assert [type(t).__name__ for t in parse("auto", channels=1)] == ["RandomRotation", "RandomTranslation", "RandomZoom"]
    assert type(parse("auto")[0]) is RandomFlip


def test_the_line_says_what_runs_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    net().fit(X, Y, augment=[RandomFlip("horizontal"), RandomRotation(10)], verbose=2)
    assert "Augmentation: RandomFlip(mode='horizontal'), RandomRotation(degrees=10). On cpu, inside the step: gathered from resident" \
        in capsys.readouterr().out
    net().fit(Pairs(), augment="flip", verbose=2)
    assert "behind the copy of each batch; training data only." in capsys.readouterr().out


@pytest.mark.parametrize(("augment", "error", "message"), [
    ("flp", ArgumentError, "augment: got 'flp'; expected transforms, such as flip,rotate=10,zoom=0.2, of auto, flip"),
    ("rotate=x", ArgumentError, "augment: rotate: got 'x'; expected numbers"),
    ("crop", ArgumentError, "augment: crop: got no value; expected a size, and perhaps padding: crop=32:4"),
    ("flip=left", ArgumentError, "augment: flip: got 'left'; expected one of horizontal, vertical, both"),
    ([ProgressiveResizing(4, 8, 2), 3], Exception, "transform"),
])  # fmt: skip
def test_what_cannot_be_done_is_told(augment: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        net().fit(X, Y, augment=augment, verbose=0)


def test_only_pictures_can_be_augmented() -> None:
    model = convolt.Sequential([layers.Dense(4)])
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    with pytest.raises(ShapeError, match=r"fit\(augment\): got samples of shape \(3,\); expected pictures"):
        model.fit(np.zeros((4, 3), "float32"), Y[:4], augment="flip", verbose=0)
    with pytest.raises(ArgumentError, match=r"ProgressiveResizing\(start\): got 0"):
        ProgressiveResizing(0, 4, 2)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_makes_a_transform(word: str) -> None:
    numbers = {"crop": "=8:2", "center_crop": "=8", "resized_crop": "=8", "resize": "=8", "progressive": "=6:8:2"}
    assert len(parse(word + numbers.get(word, ""))) == 1


# -- mixed labels, and labels of pixels --------------------------------------------------------------------------------


ONE_HOT = np.eye(4, dtype="float32")[Y]


def test_mixing_turns_a_sparse_loss_into_the_categorical_one_for_training() -> None:
    histories = [net(loss=loss).fit(X, y, batch_size=20, epochs=2, augment=[MixUp(0.4), CutMix(1.0, probability=0.5)], seed=3, verbose=0,
                                    validation_data=(X, y)).history
                 for loss, y in (("sparse_categorical_crossentropy", Y), ("categorical_crossentropy", ONE_HOT), ("crossentropy", Y))]
    assert histories[0]["loss"] == histories[1]["loss"] == histories[2]["loss"]
    assert histories[0]["accuracy"] == histories[1]["accuracy"] and 0 <= histories[0]["accuracy"][0] <= 1
    assert histories[0]["val_loss"] == pytest.approx(histories[1]["val_loss"], rel=1e-5), "validation keeps its labels and its loss"


def test_mixed_labels_are_the_shares_of_the_pictures() -> None:
    flat = np.repeat(np.arange(4, dtype="uint8") * 50, 10)[:, None, None, None] * np.ones((1, 6, 6, 3), "uint8")
    drawing = make_drawing(5, True, None, [MixUp(1.0)])
    model = net()
    model.fit(flat, np.repeat(np.arange(4), 10), augment=[MixUp(1.0)], verbose=0)
    drawing.augment.prepare(model.trainer._heads, {"dense": (1, 4), model.output_names[0]: (1, 4)})
    data = inputs.from_arrays(([torch.from_numpy(flat)], [torch.arange(4).repeat_interleave(10)], []), 16, CPU, drawing)
    for batch in data.epoch(1):
        ready = batch.ready()
        assert torch.allclose(ready.soft[0].sum(1), torch.ones(ready.size)) and ready.soft[0].shape == (ready.size, 4)
        brightness = (ready.soft[0] * torch.arange(4) * 50).sum(1)
        assert torch.allclose(ready.x[0].mean((1, 2, 3)), brightness, atol=0.1)
        assert torch.equal(ready.y[0], ready.soft[0].argmax(1)), "metrics get the class with the larger share"


def test_mixed_pictures_work_with_binary_labels() -> None:
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input((12, 10, 3)), layers.Flatten(), layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "binary_crossentropy", ["accuracy"], device="cpu")
    assert np.isfinite(model.fit(X / np.float32(255), Y % 2, augment=[MixUp(0.4)], verbose=0).history["loss"]).all()


@pytest.mark.parametrize(("loss", "message"), [
    (convolt.losses.SparseCategoricalCrossentropy(ignore_class=3), "mixed pictures and ignore_class=3"),
    (lambda y, p: ((y - p) ** 2).mean(), "a loss that takes shares of classes. Use categorical_crossentropy with one-hot labels"),
])  # fmt: skip
def test_a_loss_that_cannot_take_mixed_labels_is_told(loss: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        net(loss=loss).fit(X, Y, augment=[MixUp(0.4)], verbose=0)


def test_labels_of_pixels_move_along() -> None:
    convolt.utils.set_random_seed(0)
    masks = (X[..., 0] > 128).astype("int64")
    model = convolt.Sequential([layers.Input((12, 10, 3)), layers.Rescaling(1 / 255), layers.Conv2D(2, 1, activation="softmax")])
    model.compile(convolt.optimizers.Adam(0.3), "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    model.fit(X, masks, batch_size=20, epochs=40, augment=[RandomFlip(), RandomTranslation(0.2, 0.2, whole_pixels=True)], verbose=0)
    assert model.evaluate(X, masks, verbose=0)[1] > 0.95, "a label that stayed behind teaches nothing of its pixel"


def test_mixing_needs_the_standard_step() -> None:
    model = Seen()
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    with pytest.raises(ArgumentError, match="mixed pictures and a train_step of your own"):
        model.fit(X, Y, augment=[MixUp(0.4)], verbose=0)


@pytest.mark.parametrize(("scale", "offset"), [(1 / 255, 0.0), (1.0, 0.0), (2 / 255, -1.0)], ids=["0-1", "0-255", "-1-1"])
def test_floats_are_brightened_in_their_own_range(scale: float, offset: float) -> None:
    model = Seen()
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PixelRangeWarning)
        model.fit((X * scale + offset).astype("float32"), Y, batch_size=60, augment=[RandomBrightness(0.2)], seed=1, verbose=0)
    got = (model.pictures[0].numpy() - offset) / scale
    reference = Augmentation([RandomBrightness(0.2)])
    rows = make_drawing(1, True, None, None).order(60, lambda: None)(0)  # type: ignore[misc]
    wanted = reference.apply(torch.from_numpy(X), rows, keys(1, 0, rows)).images.permute(0, 3, 1, 2).numpy()
    assert np.abs(got - wanted).max() < 0.01


def test_rescaling_in_the_list_is_rescaling() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Seen()
        model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
        model.fit(X.astype("float32"), Y, augment=[RandomFlip("horizontal"), Rescale(1 / 255)], verbose=0)
