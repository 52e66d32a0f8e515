"""Disks that are full, read-only or lie: the old checkpoint stays whole, and the message says what happened."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convolt.errors import CheckpointError
from convolt.training.checkpoint import format, store
from convolt.training.checkpoint.store import Store
from tests.faults import tiny
from tests.faults.conftest import Zygote


def mounted(folder: Path, *options: str) -> bool:
    """Mounts something on a folder; whether that was allowed."""
    folder.mkdir()
    return subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of little more than half a megabyte."""
    folder = tmp_path / "disk"
    if not mounted(folder, "-t", "tmpfs", "-o", "size=640k", "tmpfs"):
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_checkpoint(small_disk: Path) -> None:
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), small_disk, more=[tiny.KillAt(5)])
    before = Store(small_disk / "checkpoints").files()
    with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"x" * 4096)
    with pytest.raises(CheckpointError) as raised:
        tiny.fit(tiny.net(), small_disk, more=[tiny.KillAt(None)])
    assert re.search(r"checkpoint '.*0000\d\d-epoch-.*': got the error 'No space left on device, [\d,]+ bytes free'; expected a disk "
                     r"that takes its [\d,]+ bytes\. The newest whole checkpoint is still 0000\d\d-epoch-", str(raised.value))  # fmt: skip
    assert Store(small_disk / "checkpoints").files() == before
    assert not list((small_disk / "checkpoints").glob(".*.part"))
    (small_disk / "filler").unlink()
    expected = tiny.net()
    history = tiny.fit(expected, more=[tiny.KillAt(None)])
    model = tiny.net()
    resumed = tiny.fit(model, small_disk, more=[tiny.KillAt(None)])
    assert tiny.result(model, resumed) == tiny.result(expected, history)


def test_a_disk_that_is_full_from_the_start_is_told_before_the_first_step(small_disk: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No space left on device.*There is no earlier checkpoint"):
        tiny.fit(tiny.net(width=600), small_disk, more=[tiny.KillAt(1)])


def test_a_file_size_limit_is_told_like_a_full_disk(zygote: Zygote, tmp_path: Path) -> None:
    answer = zygote.run(tmp_path, in_save=4, limit=8192)
    assert answer["status"] == 1 and answer["inside"]
    error = (tmp_path / "error.txt").read_text(encoding="utf-8")
    assert "got the error 'File too large'" in error and "The newest whole checkpoint is still 000003-" in error
    assert Store(tmp_path / "checkpoints").load(pytest.fail).path.name.startswith("000003-")  # type: ignore[union-attr, arg-type]
    assert zygote.result(tmp_path)["weights"] == zygote.result(tmp_path / "whole")["weights"]


def test_a_read_only_disk_is_told_before_the_first_step(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    if not mounted(folder, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        pytest.skip("this user may not mount a disk")
    try:
        with pytest.raises(CheckpointError, match=r"a folder that cannot be made \(Read-only file system\); expected one"):
            tiny.fit(tiny.net(), folder / "run", more=[tiny.KillAt(1)])
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_folder_on_a_disk_that_became_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    if not mounted(folder, "-t", "tmpfs", "tmpfs"):
        pytest.skip("this user may not mount a disk")
    try:
        with pytest.raises(tiny.Kill):
            tiny.fit(tiny.net(), folder, more=[tiny.KillAt(5)])
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(CheckpointError, match=r"a folder that cannot be written \(Read-only file system\)"):
            tiny.fit(tiny.net(), folder, more=[tiny.KillAt(1)])
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"run folder '.*file/checkpoints': got a folder that cannot be made \(Not a directory\)"):
        tiny.fit(tiny.net(), tmp_path / "file", more=[tiny.KillAt(1)])


class ShortWrites:
    """The module `os` with a disk that takes a few bytes at a time, or says that it took more than it did."""

    def __init__(self, lies: bool) -> None:
        self.lies = lies

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, handle: int, data: Any) -> int:
        written = os.write(handle, data[: max(1, len(data) // 2)])
        return len(data) if self.lies and len(data) > 1000 else written


@pytest.mark.parametrize("lies", [False, True])
def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lies: bool) -> None:
    monkeypatch.setattr(store, "os", ShortWrites(lies))
    if lies:
        with pytest.raises(CheckpointError, match=r"got the error 'a file of [\d,]+ bytes in place of [\d,]+'"):
            tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(1)])
        assert not Store(tmp_path / "checkpoints").files()
    else:
        with pytest.raises(tiny.Kill):
            tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(3)])
        format.decode(Store(tmp_path / "checkpoints").files()[-1])


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    stale = folder / ".000007-epoch-1-step-12.safetensors.part"
    stale.write_bytes(b"half")
    (folder / ".notes.part").write_text("the user's own")
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(3)])
    assert not stale.exists() and (folder / ".notes.part").exists()
