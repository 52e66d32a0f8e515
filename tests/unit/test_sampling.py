"""Samplers draw by chances, keyed by (seed, epoch); `batch_size="auto"` takes the size at which doubling stops to pay."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.data.batches import Resident, draw_ids
from convolt.errors import ArgumentError, ArgumentTypeError, DataError
from convolt.training import sampling
from convolt.training.batch_size import choose
from convolt.training.sampling import Balanced, Weighted

CPU = torch.device("cpu")
LABELS = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)


def counts(sampler: sampling.Sampler, labels: torch.Tensor = LABELS, epochs: int = 8) -> np.ndarray:
    order = sampler.order(labels, len(labels), 3)
    return sum(np.bincount(labels[order(epoch)].numpy(), minlength=3) for epoch in range(epochs)) / (epochs * len(labels))


def test_balanced_draws_all_classes_alike() -> None:
    assert counts(Balanced()) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert counts(Balanced(power=0)) == pytest.approx([0.9, 0.09, 0.01], abs=0.01)
    half = np.sqrt([900, 90, 10])
    assert counts(Balanced(power=0.5)) == pytest.approx(half / half.sum(), abs=0.02)
    one_hot = torch.nn.functional.one_hot(LABELS).float()
    assert torch.equal(Balanced().order(one_hot, 1000, 3)(0), Balanced().order(LABELS, 1000, 3)(0))


def test_weighted_draws_by_weights_of_samples_and_of_classes() -> None:
    weights = np.where(LABELS == 2, 90.0, np.where(LABELS == 1, 0.0, 1.0))
    assert counts(Weighted(weights)) == pytest.approx([0.5, 0, 0.5], abs=0.02)
    assert counts(Weighted({0: 1, 1: 0, 2: 90})) == pytest.approx([0.5, 0, 0.5], abs=0.02)


def test_without_replacement_each_sample_comes_once_and_the_likely_ones_first() -> None:
    order = Weighted(np.where(LABELS == 2, 1000.0, 1.0), replacement=False).order(None, 1000, 0)(0)
    assert sorted(order.tolist()) == list(range(1000))
    assert (LABELS[order[:20]] == 2).sum() >= 9
    assert len(Weighted(np.ones(1000), samples=50, replacement=False).order(None, 1000, 0)(0)) == 50


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    order = Balanced().order(LABELS, 1000, 3)
    first = order(4)
    torch.manual_seed(9)
    torch.rand(3)
    assert torch.equal(Balanced().order(LABELS, 1000, 3)(4), first)
    assert not torch.equal(order(5), first) and not torch.equal(Balanced().order(LABELS, 1000, 4)(4), first)


@pytest.mark.parametrize("ranks", [2, 3])
def test_readers_share_the_draws_of_an_epoch(ranks: int) -> None:
    whole = Balanced(samples=100).order(LABELS, 1000, 3)(2).tolist()
    parts = [Balanced(samples=100).order(LABELS, 1000, 3, rank, ranks)(2).tolist() for rank in range(ranks)]
    assert [parts[i % ranks][i // ranks] for i in range(100)] == whole


def test_each_draw_of_a_sample_has_a_number_of_its_own() -> None:
    rows = torch.tensor([4, 2, 4, 4, 0, 2])
    assert draw_ids(rows, 5).tolist() == [4, 2, 9, 14, 0, 7]
    shuffled = torch.randperm(50)
    assert torch.equal(draw_ids(shuffled, 50), shuffled)


def test_a_resident_epoch_of_draws_can_start_anywhere() -> None:
    data = Resident([torch.arange(1000)], [LABELS], [], 64, CPU, order=Balanced(samples=300).order(LABELS, 1000, 1))
    whole = [batch.x[0].tolist() for batch in data.epoch(3)]
    assert data.samples == 300 and data.steps == len(whole) == 5 and len(whole[-1]) == 300 - 4 * 64
    assert [batch.x[0].tolist() for batch in data.epoch(3, 2)] == whole[2:]


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: sampling.get("balance"), ArgumentError, "fit\\(sampler\\): got 'balance'; expected \"balanced\""),
    (lambda: Weighted([1, -1]), ArgumentError, "none below 0"),
    (lambda: Weighted(["a"]), ArgumentTypeError, "expected a list of numbers"),
    (lambda: Balanced(power=2), ArgumentError, "a number from 0 to 1"),
    (lambda: Balanced(samples=0), ArgumentError, "a whole number from 1"),
    (lambda: Weighted([1.0, 2.0]).order(None, 3, 0), DataError, "got 2 chances; expected 3"),
    (lambda: Weighted([0.0, 0.0]).order(None, 2, 0), DataError, "got 0 samples that have a chance"),
    (lambda: Weighted([0.0, 1.0], samples=2, replacement=False).order(None, 2, 0), DataError, "replacement=True"),
    (lambda: Weighted({0: 1.0}).order(LABELS, 1000, 0), DataError, "no weight for the classes \\[1, 2\\]"),
    (lambda: Balanced().order(None, 3, 0), DataError, "data without labels"),
    (lambda: Balanced().order(torch.rand(3), 3, 0), DataError, "expected a class for each sample"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_told(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# -- in fit ------------------------------------------------------------------------------------------------------------


RNG = np.random.default_rng(0)
X = RNG.normal(size=(240, 6)).astype("float32")
Y = np.repeat([0, 1, 2], [200, 30, 10])


def net() -> convolt.Sequential:
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    return model


class Pairs(torch.utils.data.Dataset):
    targets = Y

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        self.seen.append(index)
        return X[index], int(Y[index])


def test_fit_on_a_dataset_draws_what_fit_on_arrays_does() -> None:
    dataset = Pairs()
    results = []
    for x, y in ((X, Y), (dataset, None)):
        model = net()
        history = model.fit(x, y, batch_size=32, epochs=2, sampler="balanced", seed=5, verbose=0)
        results.append((history.history, [w.tobytes() for w in model.get_weights()]))
    assert results[0] == results[1]
    drawn = np.bincount(Y[dataset.seen[-480:]], minlength=3) / 480
    assert drawn == pytest.approx([1 / 3] * 3, abs=0.08)


def test_a_sampler_needs_samples_that_can_be_asked_for() -> None:
    with pytest.raises(DataError, match="got a DataLoader, which decides itself what comes"):
        net().fit(torch.utils.data.DataLoader(Pairs(), 8), sampler="balanced", verbose=0)


def test_steps_per_epoch_takes_the_first_steps_of_each_epoch() -> None:
    model = net()
    model.fit(X, Y, batch_size=32, epochs=3, steps_per_epoch=2, verbose=0)
    assert model.optimizer.iterations == 6


# -- batch_size="auto" -------------------------------------------------------------------------------------------------


def measured(rates: dict[int, float], kept: int = 1000) -> Callable[[int], tuple[float, int]]:
    def measure(size: int) -> tuple[float, int]:
        if size not in rates:
            raise torch.OutOfMemoryError("no memory")
        return size / rates[size], kept * size

    return measure


def test_the_size_at_which_doubling_stops_to_pay() -> None:
    found = choose(measured({16: 100, 32: 190, 64: 300, 128: 310}), 50_000, 2**40)
    assert found.size == 64
    assert found.why.startswith("Batch size 64: 128 at once are 1.03× as fast per sample, which is not worth fewer updates")
    assert "16: 100/s, 32: 190/s, 64: 300/s, 128: 310/s" in found.why and "learning rate stays as it is" in found.why


def test_the_size_is_bounded_by_memory_and_by_the_data() -> None:
    growing = {2**n: 100.0 * 2**n for n in range(4, 15)}
    assert choose(measured({n: growing[n] for n in (16, 32)}), 50_000, 2**40).why.startswith("Batch size 32: 64 at once do not fit")
    limited = choose(measured(growing), 50_000, 2 * 64 * 1000)
    assert limited.size == 64 and "128 at once would take more than half" in limited.why
    assert choose(measured(growing), 2000, 2**40).size == 64
    assert "keeps at least 16 steps" in choose(measured(growing), 2000, 2**40).why
    assert choose(measured(growing | {9: 1.0}), 9, 2**40).size == 9
    assert choose(measured(growing), 10**6, 2**40).size == 4096
    with pytest.raises(torch.OutOfMemoryError):
        choose(measured({}), 100, 2**40)
    bounded = choose(measured(growing), 50_000, 2**40, most=100)
    assert bounded.size == 64 and "64: larger ones leave no room to read ahead" in bounded.why
    assert choose(measured(growing), None, 2**40).why.startswith("Batch size 4096: no more than 4096 are tried")


def test_fit_takes_the_size_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    model = net()
    before = [w.copy() for w in model.get_weights()] if model.built else []
    history = model.fit(np.tile(X, (5, 1)), np.tile(Y, 5), batch_size="auto", epochs=1, verbose=2)
    assert not before or len(before) == 4
    said = capsys.readouterr().out
    assert "Batch size" in said and "measured 16:" in said
    size = int(said.split("Batch size ")[1].split(":")[0])
    assert model.optimizer.iterations == -(-1200 // size) and len(history.epoch) == 1


def test_a_resumed_training_keeps_its_size(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    model.fit(X, Y, batch_size="auto", epochs=1, checkpoint=tmp_path, verbose=0)
    steps = model.optimizer.iterations

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("convolt.training.feeding.find_batch_size", never)
    model.fit(X, Y, batch_size="auto", epochs=2, checkpoint=tmp_path, resume_allow=["epochs"], verbose=0)
    assert model.optimizer.iterations == 2 * steps


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return zip(X, Y.tolist(), strict=True)


@pytest.mark.parametrize("kind", [Pairs, Endless])
def test_samples_that_come_one_by_one_are_measured_too(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolt.training.batch_size.LARGEST", 64)
    model = net()
    model.fit(kind(), batch_size="auto", epochs=1, verbose=0)
    size = model.trainer.batch_size
    assert size in ((16,) if kind is Pairs else (16, 32, 64)), "240 // 16 steps allow no more where the number is known"
    assert model.optimizer.iterations == -(-240 // size)


def test_auto_needs_samples() -> None:
    for batches in (torch.utils.data.DataLoader(Pairs(), 8), iter([(X[:8], Y[:8])])):
        with pytest.raises(ArgumentError, match=rf"'auto' with a {type(batches).__name__}, which gives batches of its own; expected"):
            net().fit(batches, batch_size="auto", verbose=0)
    with pytest.raises(ArgumentError, match="fit\\(batch_size\\): got 'big'"):
        net().fit(X, Y, batch_size="big", verbose=0)
