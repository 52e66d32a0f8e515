"""The order of samples: the same after a stop at any place, for any number of workers and readers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import convolt
from convolt.data.batches import Resident, Streamed, epoch_order
from convolt.errors import ArgumentError, CheckpointError, ConvoltWarning
from convolt.training import inputs
from convolt.training.sampling import Drawing, make_drawing
from tests.faults import tiny

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores is what is tested


# -- the order itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 64, 101])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_readers_share_an_epoch_without_gap_or_overlap(count: int, ranks: int) -> None:
    shards = [epoch_order(count, 3, 5, rank, ranks).tolist() for rank in range(ranks)]
    assert sorted(chain(*shards)) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    whole = epoch_order(count, 3, 5).tolist()
    assert [shards[i % ranks][i // ranks] for i in range(count)] == whole  # interleaved: together they follow the one order


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch_order(100, 4, 2)
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(epoch_order(100, 4, 2), first)
    assert not torch.equal(epoch_order(100, 4, 3), first)
    assert not torch.equal(epoch_order(100, 5, 2), first)


def test_a_reader_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="got 2 of 2; expected a number from 0 to 1"):
        epoch_order(10, 0, 0, 2, 2)


@pytest.mark.parametrize("make", ["resident", "dataset", "loader", "sequence", "iterable"])
@pytest.mark.parametrize("seed", [None, 3])
def test_an_epoch_can_start_at_any_batch(make: str, seed: int | None) -> None:
    ids = torch.arange(23)
    if make == "resident":
        data: Any = Resident([ids], [ids], [], 5, CPU, seed)
    else:
        source = {"dataset": Ids(23), "loader": DataLoader(Ids(23), 5), "sequence": ByIndex(), "iterable": list(_batches())}[make]
        data = inputs.from_stream(source, CPU, 5, None, ["x"], ["y"], Drawing(seed, shuffle=seed is not None))
    whole = [batch.y[0].tolist() for batch in data.epoch(4)]
    assert sorted(chain(*whole)) == list(range(23))
    for first in range(len(whole) + 1):
        assert [batch.y[0].tolist() for batch in data.epoch(4, first)] == whole[first:]


class Ids(Dataset):
    """Samples that are their own number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index)]), index


class ByIndex:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return list(_batches())[index]


def _batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, 23, 5):
        ids = torch.arange(start, min(23, start + 5))
        yield ids[:, None].float(), ids


# -- stops at random, with workers -------------------------------------------------------------------------------------


class Shard:
    """A loader over the part of one reader, in the keyed order of the epoch, read by worker processes."""

    def __init__(self, count: int, batch: int, seed: int, workers: int, rank: int, ranks: int) -> None:
        self.arguments = (count, batch, seed, workers, rank, ranks)

    def stream(self) -> Streamed:
        count, batch, seed, workers, rank, ranks = self.arguments

        def source(epoch: int, first: int) -> Iterator[Any]:
            order = epoch_order(count, seed, epoch, rank, ranks).tolist()[first * batch :]
            loader = DataLoader(Ids(count), batch, sampler=order, num_workers=workers, generator=torch.Generator())
            return (inputs.host_batch(item, ["x"], ["y"]) for item in loader)

        return Streamed(source, CPU)


def ids_of(stream: Streamed, epoch: int, first: int = 0, most: int | None = None) -> list[int]:
    found: list[int] = []
    for number, batch in enumerate(stream.epoch(epoch, first)):
        if number == most:
            break
        found += batch.y[0].tolist()
    return found


def stop_at_random(count: int, seed: int) -> int:
    """Stops `count` readings of a few epochs at random places and goes on with new readers; returns how many gave the same ids."""
    chance = random.Random(seed)
    same = 0
    for number in range(count):
        workers, ranks = (0, 1, 4)[number % 3], (1, 2)[number // 3 % 2]
        samples, batch, key = chance.randint(20, 60), chance.randint(2, 7), chance.randrange(1000)
        equal = True
        for rank in range(ranks):
            shard = (samples, batch, key, workers, rank, ranks)
            expected = [i for epoch in range(2) for i in epoch_order(samples, key, epoch, rank, ranks).tolist()]
            steps = -(-len(expected) // 2 // batch)
            epoch, first = chance.randrange(2), chance.randrange(steps + 1)
            found = [i for e in range(epoch) for i in ids_of(Shard(*shard).stream(), e)]
            found += ids_of(Shard(*shard).stream(), epoch, 0, first)  # stopped here
            found += ids_of(Shard(*shard).stream(), epoch, first)  # and gone on by another process
            found += [i for e in range(epoch + 1, 2) for i in ids_of(Shard(*shard).stream(), e)]
            equal = equal and found == expected
        same += equal
    return same


def test_stops_do_not_change_the_order() -> None:
    assert stop_at_random(6, 0) == 6


@pytest.mark.faults_full
def test_five_hundred_stops(figure: Callable[[str], None]) -> None:
    same = stop_at_random(500, 1)
    figure(f"Data order: {same} of 500 random stops over workers {{0, 1, 4}} and readers {{1, 2}} gave the same ordered sample ids")
    assert same == 500


# -- the augmented pictures of a stopped training -----------------------------------------------------------------------


class Numbered(Dataset):
    """Pictures with their number as label."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.pictures[index]), index


def seen_by_the_model(data: Any, epoch: int, first: int, batch: int, most: int | None = None) -> list[tuple[int, bytes]]:
    """The number and the augmented pixels of each sample, from batch number `first` on."""
    found: list[tuple[int, bytes]] = []
    for number, item in enumerate(data.epoch(epoch, first, first * batch)):
        if number == most:
            break
        ready = item.ready()
        found += [(int(y), x.numpy().tobytes()) for x, y in zip(ready.x[0], ready.y[0], strict=True)]
    return found


@dataclass(frozen=True)
class Shown:
    """Pictures, and the ways in which they reach a model."""

    pictures: np.ndarray
    key: int
    words: str
    workers: int

    def resident(self, size: int) -> Any:
        arrays = [torch.from_numpy(self.pictures)], [torch.arange(len(self.pictures))], []
        return inputs.from_arrays(arrays, size, CPU, make_drawing(self.key, True, None, self.words))

    def loaded(self, size: int) -> Any:
        source = DataLoader(Numbered(self.pictures), size, num_workers=self.workers)
        return inputs.from_stream(source, CPU, None, None, ["x"], ["y"], make_drawing(self.key, False, None, self.words))

    def asked_for(self, size: int) -> Any:
        drawing = make_drawing(self.key, True, None, self.words)
        return inputs.from_stream(Numbered(self.pictures), CPU, size, None, ["x"], ["y"], drawing)


def stop_augmented_at_random(count: int, seed: int) -> int:
    """Stops `count` epochs of augmented pictures and goes on with other workers; returns how many gave the same pictures in order."""
    chance = random.Random(seed)
    same = 0
    for number in range(count):
        samples, key, epoch = chance.randint(12, 30), chance.randrange(1000), chance.randrange(5)
        pictures = np.random.default_rng(key).integers(0, 256, size=(samples, 8, 8, 3), dtype="uint8")
        words = chance.choice(["flip,rotate=20,zoom=0.2", "translate=0.2,brightness=0.3,cutout=0.4", "shear=0.2,hue=0.1,noise=0.1"])
        shown = Shown(pictures, key, words, (0, 1, 4)[number % 3])
        equal = True
        for make, whole in ((shown.resident, shown.resident), (shown.asked_for, shown.resident), (shown.loaded, shown.loaded)):
            expected = seen_by_the_model(whole(samples), epoch, 0, samples)
            size = chance.randint(1, 9)
            first = chance.randrange(-(-samples // size))
            found = seen_by_the_model(make(size), epoch, 0, size, most=first)
            equal = equal and found + seen_by_the_model(make(size), epoch, first, size) == expected
        same += equal
    return same


def test_stops_do_not_change_the_augmented_pictures() -> None:
    assert stop_augmented_at_random(6, 0) == 6


@pytest.mark.faults_full
def test_five_hundred_stops_with_augmentation(figure: Callable[[str], None]) -> None:
    same = stop_augmented_at_random(500, 1)
    figure(f"Augmentation: {same} of 500 random stops over workers {{0, 1, 4}} and batch sizes 1 to 9 gave the same pictures, bit for bit")
    assert same == 500


# -- fit on what gives batches -----------------------------------------------------------------------------------------


class Pairs(Dataset):
    """Samples with noise of NumPy and PyTorch, as augmentation draws it."""

    def __len__(self) -> int:
        return len(tiny.X)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        noise = torch.rand(24).numpy() * 0.1 + np.random.rand(24).astype("float32") * 0.1
        return (tiny.X[index] + noise).astype("float32"), int(tiny.Y[index])


class Epochs:
    """What starts an epoch each time it is iterated."""

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, 96, 8):
            yield tiny.X[start : start + 8], tiny.Y[start : start + 8]


def generator() -> Iterator[Any]:
    while True:
        yield from Epochs()


SOURCES: dict[str, Callable[[], Any]] = {
    "dataset": Pairs,
    "shuffled loader": lambda: DataLoader(Pairs(), 8, shuffle=True),
    "loader with a generator": lambda: DataLoader(Pairs(), 8, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "two workers": lambda: DataLoader(Pairs(), 8, shuffle=True, num_workers=2),
    "iterable": Epochs,
}


@pytest.mark.parametrize("name", SOURCES)
def test_fit_goes_on_in_the_middle_of_an_epoch(name: str, tmp_path: Path) -> None:
    def train(folder: Path, kill: int | None) -> Any:
        model = tiny.net(seed=7, **({"optimizer": "adam"} if name == "iterable" else {}))  # of unknown length
        history = model.fit(SOURCES[name](), batch_size=8, epochs=3, verbose=0, callbacks=[tiny.KillAt(kill)],
                            checkpoint=convolt.Checkpoint(folder, every_steps=1))  # fmt: skip
        return tiny.result(model, history)

    expected = train(tmp_path / "whole", None)
    for kill in (5, 12, 20):
        with pytest.raises(tiny.Kill):
            train(tmp_path / f"killed-{kill}", kill)
        assert train(tmp_path / f"killed-{kill}", None) == expected


def test_a_generator_can_be_trained_on_but_not_resumed(tmp_path: Path) -> None:
    def train(kill: int | None) -> None:
        model = tiny.net()
        model.fit(generator(), steps_per_epoch=12, epochs=2, verbose=0, callbacks=[tiny.KillAt(kill)],
                  checkpoint=convolt.Checkpoint(tmp_path, every_steps=1))  # fmt: skip

    with pytest.warns(ConvoltWarning, match="come from a generator, which cannot be wound"), pytest.raises(tiny.Kill):
        train(5)
    with pytest.raises(CheckpointError, match="got a generator; expected data that can be read again from the start of an epoch"):
        train(None)
