"""A checkpoint that is cut off or has a flipped bit is noticed, the one before it is used, and the user is told."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convolt.errors import CheckpointError
from convolt.training.checkpoint import format
from convolt.training.checkpoint.session import CheckpointWarning
from convolt.training.checkpoint.store import Store
from tests.faults import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with three checkpoints, killed in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(4), folder, more=[tiny.KillAt(14)])
    return folder


def damage(run: Path, count: int, how: Callable[[bytes, random.Random], bytes]) -> int:
    """Damages the newest checkpoint in `count` ways and returns how often that was noticed and the one before it used."""
    store = Store(run / "checkpoints")
    *_, before, newest = store.files()
    whole = newest.read_bytes()
    chance = random.Random(count)
    noticed = 0
    try:
        for _ in range(count):
            newest.write_bytes(how(whole, chance))
            told: list[str] = []
            found = store.load(told.append)
            assert found is not None
            noticed += found.path == before and len(told) == 1 and newest.name in told[0] and before.name in told[0]
    finally:
        newest.write_bytes(whole)
    assert store.load(pytest.fail).path == newest  # type: ignore[union-attr, arg-type]
    return noticed


def cut(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole))]


def flip(whole: bytes, chance: random.Random) -> bytes:
    """Flips one bit, in the header as often as elsewhere."""
    header = 8 + int.from_bytes(whole[:8], "little")
    place = chance.randrange(header) if chance.random() < 0.5 else chance.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]


@pytest.mark.parametrize("how", [cut, flip])
def test_damage_is_noticed(run: Path, how: Callable[[bytes, random.Random], bytes]) -> None:
    assert damage(run, 60, how) == 60


@pytest.mark.faults_full
def test_two_thousand_damages(run: Path, figure: Callable[[str], None]) -> None:
    cuts, flips = damage(run, 1000, cut), damage(run, 1000, flip)
    figure(f"Damaged checkpoints: {cuts}/1000 truncations and {flips}/1000 bit flips noticed, the previous one used, the user told")
    assert cuts + flips == 2000


def test_fit_goes_on_from_the_one_before_and_says_so(tmp_path: Path) -> None:
    expected = tiny.net()
    history = tiny.fit(expected, more=[tiny.KillAt(None)])
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(14)])
    newest = Store(tmp_path / "checkpoints").files()[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    model = tiny.net()
    with pytest.warns(CheckpointWarning, match=f"Checkpoint damaged: .*{newest.name}.*.* The one before it is used: 0000"):
        resumed = tiny.fit(model, tmp_path, more=[tiny.KillAt(None)])
    assert tiny.result(model, resumed) == tiny.result(expected, history)


def test_no_whole_checkpoint_is_an_error_and_never_a_silent_start(tmp_path: Path) -> None:
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(3)])
    for path in Store(tmp_path / "checkpoints").files():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"damaged files .*at least one whole checkpoint\. resume=False starts anew"):
        tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(None)])
    tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(None)], resume=False)


def test_any_tool_reads_the_tensors(run: Path) -> None:
    from safetensors.torch import load_file

    newest = Store(run / "checkpoints").files()[-1]
    tensors = load_file(newest)
    assert {name.partition("/")[0] for name in tensors} == {"model", "optimizer", "totals", "callbacks", "random", "random_at_epoch"}
    assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith("model/"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_type_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    tensors = {"a": values, "scalar": values[0, 1], "empty": values[:0]}
    state = {"format": 1, "text": 'quotes " and \\ and "sha256":"', "number": 0.1 + 0.2, "none": None}
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"".join(format.encode(tensors, state)))
    found, found_state = format.decode(path)
    assert found_state == state
    assert all(torch.equal(found[name], value) and found[name].dtype == dtype for name, value in tensors.items())


def test_a_newer_format_and_a_foreign_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"".join(format.encode({}, {"format": 99})))
    with pytest.raises(CheckpointError, match=r"got format 99; expected at most 1\. Update convolt"):
        format.decode(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100)}, path)
    with pytest.raises(CheckpointError, match="expected a whole checkpoint"):
        format.decode(path)
    with pytest.raises(CheckpointError, match="No such file"):
        format.decode(tmp_path / "none.safetensors")


def test_a_state_that_does_not_fit_is_an_error_although_its_sum_is_right(tmp_path: Path) -> None:
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(6)])
    newest = Store(tmp_path / "checkpoints").files()[-1]
    tensors, state = format.decode(newest)
    wrong = {
        "cursor": {**state, "cursor": {"epoch": -1}}, "plan": {**state, "plan": None}, "settings": {**state, "settings": []},
        "order_seed": {**state, "order_seed": "x"}, "optimizer": {**state, "optimizer": {"iterations": -3}},
        "callbacks": {**state, "callbacks": {}}, "random": state, "weight": state,
    }  # fmt: skip
    for name, changed in wrong.items():
        left_out = {"random": "random/torch", "weight": "model/dense.bias"}.get(name)
        kept = {n: t for n, t in tensors.items() if n != left_out}
        assert (len(kept) < len(tensors)) == (left_out is not None)
        newest.write_bytes(b"".join(format.encode(kept, changed)))
        with pytest.raises(CheckpointError):
            tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(None)])
