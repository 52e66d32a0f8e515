"""SIGKILL at any instant: the training goes on, and ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convolt.training.checkpoint.store import Store
from tests.faults.conftest import Zygote

WIDTH = 200  # a checkpoint of about 0.9 MB, so that writing one takes a while


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training without a kill gives."""
    return zygote.result(tmp_path_factory.mktemp("whole"), width=WIDTH)


def kill_and_resume(zygote: Zygote, folder: Path, whole: dict[str, Any], **kill: Any) -> bool:
    """Kills a training, lets it go on to its end, compares; returns whether the kill was inside a save."""
    answer = zygote.run(folder, width=WIDTH, **kill)
    resumed = zygote.result(folder, width=WIDTH)
    for part in ("history", "weights", "sums"):
        assert resumed[part] == whole[part], f"{part} after {kill}"
    return bool(answer["inside"])


def kills(zygote: Zygote, root: Path, whole: dict[str, Any], count: int, at_least_inside: int, seed: int = 0) -> tuple[int, int]:
    """Kills at `count` instants, every second one aimed at a save; returns (resumed bit-equal, inside a save)."""
    chance = random.Random(seed)
    done = inside = 0
    while done < count or inside < at_least_inside:
        folder = root / str(done)
        if done % 2 or done >= count:
            kill = {"kill_at_save": chance.randint(1, whole["saves"]), "kill_after": chance.uniform(0, 0.004)}
        else:
            kill = {"kill_after": chance.uniform(0, whole["seconds"])}
        inside += kill_and_resume(zygote, folder, whole, **kill)
        done += 1
        assert done < 3 * count, f"only {inside} of {done} kills were inside a save"
    return done, inside


def test_killed_trainings_end_as_if_they_had_not_been(zygote: Zygote, whole: dict[str, Any], tmp_path: Path) -> None:
    done, inside = kills(zygote, tmp_path, whole, 8, 2)
    assert done >= 8 and inside >= 2


@pytest.mark.faults_full
def test_two_hundred_kills(zygote: Zygote, whole: dict[str, Any], tmp_path: Path, figure: Callable[[str], None]) -> None:
    done, inside = kills(zygote, tmp_path, whole, 200, 100, seed=1)
    assert done >= 200 and inside >= 100
    figure(f"SIGKILL: {done}/{done} resumed bit-equal, {inside} of them killed inside a save")


def end_after_each_call(zygote: Zygote, root: Path, step: int) -> int:
    """Ends the process after each `step`-th filesystem call of its third save; the folder has the second or the third then."""
    calls = zygote.result(root / "all", in_save=3)["calls"]
    assert calls > 20
    whole = zygote.result(root / "whole")
    for last in range(1, calls + 1, step):
        folder = root / str(last)
        answer = zygote.run(folder, in_save=3, last_call=last)
        assert answer["status"] == 9 and answer["inside"]
        damaged: list[str] = []
        found = Store(folder / "checkpoints").load(damaged.append)
        assert found is not None and not damaged
        assert int(found.path.name.partition("-")[0]) in (2, 3)
        resumed = zygote.result(folder)
        assert all(resumed[part] == whole[part] for part in ("history", "weights", "sums")), f"after call {last}"
    return len(range(1, calls + 1, step))


def test_an_end_after_any_filesystem_call_leaves_a_whole_checkpoint(zygote: Zygote, tmp_path: Path) -> None:
    assert end_after_each_call(zygote, tmp_path, 9) >= 3


@pytest.mark.faults_full
def test_an_end_after_each_filesystem_call(zygote: Zygote, tmp_path: Path, figure: Callable[[str], None]) -> None:
    count = end_after_each_call(zygote, tmp_path, 1)
    assert count > 20
    figure(f"End after each filesystem call of a save: {count}/{count} old or new checkpoint, all resumed bit-equal")
