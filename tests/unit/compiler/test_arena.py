"""The memory of programs: blocks that are needed at the same time lie apart, in little more than what is needed at once."""

import gc
import mmap
import random
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.compiler import arena as module
from convolt.compiler.arena import LINE, Arena, Life, placed
from convolt.compiler.replay import ReplayedStep

RNG = np.random.default_rng(0)


def needed_at_once(blocks: dict[int, Life]) -> int:
    return max(sum(life.size for life in blocks.values() if life.first <= now <= life.last) for now in range(200))


@pytest.mark.parametrize("seed", range(20))
def test_blocks_that_are_needed_at_the_same_time_lie_apart(seed: int) -> None:
    chance = random.Random(seed)
    blocks = {}
    for block in range(120):
        first = chance.randrange(180)
        last = first + chance.choice([0, 1, 2, 5, 40]) % (200 - first)
        blocks[block] = Life(first, last, chance.choice([1, 63, 64, 4096, 33_000, 100_000]))
    offsets, size = placed(blocks)
    assert offsets.keys() == blocks.keys()
    for one, a in blocks.items():
        assert offsets[one] % LINE == 0 and offsets[one] >= 0 and offsets[one] + a.size <= size
        for other, b in blocks.items():
            if one < other and a.first <= b.last and b.first <= a.last:
                assert offsets[one] + a.size <= offsets[other] or offsets[other] + b.size <= offsets[one]
    assert needed_at_once(blocks) <= size <= 1.3 * needed_at_once(blocks)


def test_nothing_takes_no_memory() -> None:
    assert placed({}) == ({}, 0)
    assert placed({7: Life(0, 3, 0)}) == ({7: 0}, 0)


def test_an_arena_grows_and_is_released() -> None:
    arena = Arena()
    arena.release()
    assert not arena.fit(0)
    assert arena.fit(5000) and not arena.fit(4000)
    first = arena.memory
    assert first.nbytes() >= 5000 and first.data_ptr() % mmap.PAGESIZE == 0
    numbers = torch.empty(0, dtype=torch.uint8).set_(first, 0, (5000,), (1,)).fill_(7)
    assert arena.fit(9000) and arena.memory.nbytes() >= 9000
    assert int(numbers.sum()) == 35_000, "what lay in the smaller one is still there for who has it"
    new = torch.empty(0, dtype=torch.uint8).set_(arena.memory, 0, (9000,), (1,)).fill_(7)
    arena.release()
    if sys.platform == "linux":
        assert int(new[: 9000 // mmap.PAGESIZE * mmap.PAGESIZE].sum()) == 0
    assert int(new.fill_(3).sum()) == 27_000


def test_memory_that_is_not_there_is_said() -> None:
    with pytest.raises(MemoryError, match=r"no memory of .* MiB for a program"):
        Arena().fit(1 << 60)


def network(**options: Any) -> Any:
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([
        layers.Input((24, 24, 3)), layers.Conv2D(32, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU(),
        layers.Conv2D(32, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU(),
        layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", device="cpu", precision="float32", fusions=("winograd conv", "bn+relu"),
                  **options)
    return model


X, Y = RNG.random((200, 24, 24, 3)).astype("float32"), np.arange(200) % 3


def weights_after(model: Any, sizes: tuple[int, ...]) -> list[np.ndarray]:
    for size in sizes:
        model.fit(X, Y, batch_size=size, epochs=4, verbose=0, seed=1, validation_data=(X[:70], Y[:70]))
    found: list[np.ndarray] = model.get_weights()
    return found


def arena_of(model: Any) -> Arena:
    replay = model._trainer._replay
    assert isinstance(replay, ReplayedStep)
    return replay._arena


@pytest.mark.parametrize("sizes", [(48,), (16, 48, 16)])
def test_programs_share_memory_that_grows_with_them(sizes: tuple[int, ...]) -> None:
    """The last batch, and validation's, have programs of their own; a larger batch has those before made anew."""
    found = weights_after(network(execution="replay"), sizes)
    model = network(execution="replay")
    again = weights_after(model, sizes)
    eager = weights_after(network(execution="eager"), sizes)
    assert model.plan.execution == "replay", model.plan.describe()
    for a, b, c in zip(found, again, eager, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    largest = 48 * 24 * 24 * 32 * 4
    assert 3 * largest < arena_of(model).memory.nbytes() < 12 * largest


def test_memory_that_was_too_small_goes_with_the_programs_that_worked_in_it() -> None:
    model = network(execution="replay")
    weights_after(model, (16,))
    before = [weakref.ref(program) for program in model._trainer._replay._programs.values()]
    gc.disable()
    try:
        weights_after(model, (48,))
        assert before and not any(program() for program in before)
    finally:
        gc.enable()


def test_without_memory_steps_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def mmap(*_: object, **__: object) -> None:
            raise OSError(12, "Cannot allocate memory")

    eager = weights_after(network(execution="eager"), (48,))
    monkeypatch.setattr(module, "mmap", Full)
    model = network(execution="replay")
    for a, b in zip(weights_after(model, (48,)), eager, strict=True):
        assert np.array_equal(a, b)
    assert "no memory of" in model.plan.describe() and model.plan.execution != "replay"
