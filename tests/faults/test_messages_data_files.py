"""Pictures, folders and arrays on the disk: `messages/data_files.md` has what is said about each fault, word for word."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convolt.data import folder as folder_module
from convolt.data.folder import ImageFolder, check_same_classes
from convolt.data.npz import load_npz
from tests.faults.spoken import Page
from tests.unit.pictures import GOOD, encode, gradient, png_that_says

PAGE = Page("data_files", "What a user reads about data on the disk", __file__)


def pets(folder: Path, count: int = 60) -> Path:
    """Two classes with 60 pictures each, so that one bad file is below 1%."""
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for n in range(count):
            (folder / "pets" / name / f"{n:02d}.png").write_bytes(GOOD)
    return folder / "pets"


LARGE = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
BAD = {
    "A picture of zero bytes": b"", "A picture cut off": LARGE[: len(LARGE) // 2],
    "A web page called .png": b"<html><body>Not found</body></html>",
    "A decompression bomb": png_that_says(50_000, 50_000), "Bytes that are no picture": bytes(range(256)),
}  # fmt: skip


def bad_picture(about: str, content: bytes) -> None:
    """Adds a folder with one bad picture of 120 to the page: it is skipped, counted and listed."""
    def run(folder: Path, patch: pytest.MonkeyPatch) -> None:
        (pets(folder) / "cat" / "07.png").write_bytes(content)
        assert len(ImageFolder(folder / "pets").load()[0]) == 119

    PAGE.row(about)(run)


for _about, _content in BAD.items():
    bad_picture(_about, _content)


@PAGE.row("More than 1% of the files are bad")
def too_many(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (pets(folder) / "cat" / "03.png").write_bytes(b"")
    (folder / "pets" / "dog" / "01.png").write_bytes(b"GIF89a")
    ImageFolder(folder / "pets").load()


@PAGE.row("A file that vanishes")
def vanishes(folder: Path, patch: pytest.MonkeyPatch) -> None:
    found = ImageFolder(pets(folder))
    (folder / "pets" / "cat" / "07.png").unlink()
    found.load()


@PAGE.row("A file that may not be read")
def forbidden(folder: Path, patch: pytest.MonkeyPatch) -> None:
    found, real = ImageFolder(pets(folder)), os.open

    def refuse(path: object, *arguments: int) -> int:  # as root, who runs tests in containers, may read everything
        if str(path).endswith("11.png") and "dog" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments)  # type: ignore[call-overload, no-any-return]

    patch.setattr(folder_module.os, "open", refuse)
    found.load()


@PAGE.row("A pipe called like a picture")
def pipe(folder: Path, patch: pytest.MonkeyPatch) -> None:
    found = ImageFolder(pets(folder))
    (folder / "pets" / "cat" / "07.png").unlink()
    os.mkfifo(folder / "pets" / "cat" / "07.png")
    found.load()


@PAGE.row("Links that lead outside, in a circle or nowhere, and nothing else")
def links(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "secret.png").write_bytes(GOOD)
    (folder / "pets" / "cat").mkdir(parents=True)
    for name, target in (("out.png", "secret.png"), ("self.png", "pets/cat/self.png"), ("gone.png", "nothing.png")):
        (folder / "pets" / "cat" / name).symlink_to(folder / target)
    ImageFolder(folder / "pets")


@PAGE.row("A class without pictures")
def empty_class(folder: Path, patch: pytest.MonkeyPatch) -> None:
    pets(folder)
    (folder / "pets" / "bird").mkdir()
    ImageFolder(folder / "pets")


@PAGE.row("A class of bad files alone")
def bad_class(folder: Path, patch: pytest.MonkeyPatch) -> None:
    pets(folder)
    (folder / "pets" / "bird").mkdir()
    (folder / "pets" / "bird" / "a.png").write_bytes(b"")
    ImageFolder(folder / "pets").load()


@PAGE.row("No pictures at all")
def no_pictures(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "notes.txt").write_text("nothing")
    ImageFolder(folder)


@PAGE.row("No such folder")
def no_folder(folder: Path, patch: pytest.MonkeyPatch) -> None:
    ImageFolder(folder / "nowhere")


@PAGE.row("Pictures of several sizes")
def sizes(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (pets(folder) / "dog" / "05.png").write_bytes(encode(Image.fromarray(gradient(9, 9))))
    ImageFolder(folder / "pets").load()


@PAGE.row("Classes of training and validation differ")
def classes(folder: Path, patch: pytest.MonkeyPatch) -> None:
    check_same_classes(["cat", "dog"], ["cat", "horse"], "the validation folder")


@PAGE.row("An .npz file that is cut off")
def cut_npz(folder: Path, patch: pytest.MonkeyPatch) -> None:
    np.savez(folder / "data.npz", x=np.zeros((4, 2)), y=np.arange(4))
    (folder / "data.npz").write_bytes((folder / "data.npz").read_bytes()[:100])
    load_npz(folder / "data.npz")


@PAGE.row("An .npz file with a pickle inside")
def pickled_npz(folder: Path, patch: pytest.MonkeyPatch) -> None:
    np.savez(folder / "data.npz", x=np.array([{"a": 1}], dtype=object), y=np.arange(1))
    load_npz(folder / "data.npz")


@PAGE.row("An .npz file without x and y")
def nameless_npz(folder: Path, patch: pytest.MonkeyPatch) -> None:
    np.savez(folder / "data.npz", images=np.zeros((4, 2)), labels=np.arange(4))
    load_npz(folder / "data.npz")


def test_every_message_is_the_one_that_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGE.check(tmp_path, monkeypatch)
