"""Disks that are full, read-only or shared: `messages/disk.md` has what is said, word for word.

A disk of a size and a read-only one need a mount, which not every user may make: the test is skipped there as a whole.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from convolt.training.checkpoint import store
from convolt.training.checkpoint.store import Store
from tests.faults import tiny
from tests.faults.conftest import Zygote
from tests.faults.spoken import Page
from tests.faults.test_disk import ShortWrites, mounted

PAGE = Page("disk", "What a user reads about the disk of checkpoints and models", __file__)


@contextmanager
def disk(folder: Path, *options: str) -> Iterator[Path]:
    """A disk of its own below the folder, for a while."""
    if not mounted(folder / "disk", "-t", "tmpfs", *options, "tmpfs"):
        pytest.skip("this user may not mount a disk")
    try:
        yield folder / "disk"
    finally:
        subprocess.run(["umount", "-l", str(folder / "disk")], check=True)


def stopped(folder: Path, at: int = 5) -> None:
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), folder, more=[tiny.KillAt(at)])


def go_on(folder: Path, **options: Any) -> None:
    tiny.fit(tiny.net(**options), folder, more=[tiny.KillAt(None)])


@PAGE.row("The disk is full in a training")
def full(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with disk(folder, "-o", "size=640k") as place:
        stopped(place)
        with open(place / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"x" * 4096)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        go_on(place)


@PAGE.row("The disk is full from the start")
def full_from_the_start(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with disk(folder, "-o", "size=640k") as place:
        go_on(place, width=600)


@PAGE.row("A model is saved to a disk that is full")
def full_for_a_model(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with disk(folder, "-o", "size=64k") as place:
        model = tiny.net(width=600)
        tiny.fit(model, epochs=1)
        try:
            model.save(place / "model.safetensors")
        finally:
            assert not list(place.iterdir())


@PAGE.row("The disk is read-only")
def read_only(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with disk(folder, "-o", "ro") as place:
        go_on(place / "run")


@PAGE.row("The disk becomes read-only between two trainings")
def became_read_only(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with disk(folder) as place:
        stopped(place)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        go_on(place)


@PAGE.row("The run folder lies below a file")
def below_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    go_on(folder / "file")


@PAGE.row("A write that takes less than it says")
def short_write(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store, "os", ShortWrites(lies=True))
    go_on(folder)


@PAGE.row("The newest checkpoint is damaged")
def damaged(folder: Path, patch: pytest.MonkeyPatch) -> None:
    stopped(folder)
    newest = Store(folder / "checkpoints").files()[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    go_on(folder)


@PAGE.row("Every checkpoint is damaged")
def all_damaged(folder: Path, patch: pytest.MonkeyPatch) -> None:
    stopped(folder)
    for path in Store(folder / "checkpoints").files():
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)
    go_on(folder)


@pytest.fixture(autouse=True)
def _in_another_process(zygote: Zygote) -> None:
    def limited(folder: Path, patch: pytest.MonkeyPatch) -> str:
        assert zygote.run(folder, in_save=4, limit=8192)["status"] == 1
        return (folder / "error.txt").read_text(encoding="utf-8").splitlines()[-1]

    def two_trainings(folder: Path, patch: pytest.MonkeyPatch) -> str:
        from convolt import callbacks

        def second(batch: int, logs: Any) -> None:
            if batch == 0:
                assert zygote.run(folder)["status"] == 1

        with pytest.raises(tiny.Kill):
            tiny.fit(tiny.net(), folder, more=[tiny.KillAt(3), callbacks.LambdaCallback(on_train_batch_end=second)])
        return (folder / "error.txt").read_text(encoding="utf-8").splitlines()[-1]

    PAGE.rows["A limit on the size of files"] = limited
    PAGE.rows["Two trainings in one folder"] = two_trainings


def test_every_message_is_the_one_that_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGE.check(tmp_path, monkeypatch)
