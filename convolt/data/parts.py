"""Pictures of DATA by parts: what a folder, a table, shards or a pack have for training, testing and validation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convolt.data.budget import data_memory
from convolt.data.csv_labels import from_csv
from convolt.data.folder import ImageFolder, check_same_classes
from convolt.data.pack import Pack, StalePackWarning, open_pack
from convolt.data.pictures import Pictures
from convolt.data.shards import from_tar
from convolt.data.split import fixed_permutation
from convolt.errors import ArgumentError, DataError, explain

IN_MEMORY = ("mnist", "cifar10", "digits")
"""Built-in sets, which are no files of pictures."""

TEST_FOLDERS = ("test", "testing")
VALIDATION_FOLDERS = ("val", "valid", "validation")
Size = tuple[int, int] | None


def folder_parts(path: Path, image_size: Size, color_mode: str) -> dict[str, ImageFolder]:
    """Returns "train", and "test" and "validation" as far as there are such, of a folder of class folders or one with such parts inside.

    Raises:
        DataError: no pictures, a part without the training part, or parts with other classes.
    """
    inside = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    parts = [next((inside[n] for n in names if n in inside), None) for names in (("train",), TEST_FOLDERS, VALIDATION_FOLDERS)]
    train_path, test_path, validation_path = parts
    if train_path is None and inside and set(inside) <= {*TEST_FOLDERS, *VALIDATION_FOLDERS}:
        raise DataError(explain(f"image folder {path}", f"the folders {sorted(inside)} without train", "train/ beside them"))
    has_parts = train_path is not None and (len(inside) == 1 or test_path is not None or validation_path is not None)
    found = {"train": ImageFolder(train_path if has_parts and train_path else path, image_size, color_mode)}
    for name, part in (("test", test_path), ("validation", validation_path)):
        if has_parts and part is not None:
            found[name] = ImageFolder(part, image_size, color_mode)
            check_same_classes(found["train"].class_names, found[name].class_names, f"image folder {part}")
    return found


def picture_parts(spec: str, image_size: Size, color_mode: str, decoder: str = "cpu") -> Mapping[str, Pictures]:
    """Returns the parts of a folder, a table (.csv), or shards (.tar, with braces for several).

    Raises:
        ArgumentError: it is the name of a built-in set, or a file of another kind.
        DataError: it does not exist, or cannot be used.
    """
    path = Path(spec).expanduser()
    _check_pictures(spec, path)
    found: dict[str, Pictures] = {}
    if path.is_dir():
        found |= folder_parts(path, image_size, color_mode)
    elif spec.lower().endswith(".csv"):
        found["train"] = from_csv(path, separator="auto", image_size=image_size, color_mode=color_mode)
    else:
        found["train"] = from_tar(spec, image_size=image_size, color_mode=color_mode)
    for part in found.values():
        part.decoder = decoder
    return found


def _check_pictures(spec: str, path: Path) -> None:
    """Raises an error that says what DATA is if it is no pictures in files."""
    expected = "a folder of class folders, a .csv table, or .tar shards"
    if spec in IN_MEMORY:
        raise ArgumentError(explain("data", f"the built-in set {spec}, which is arrays", expected,
                                    f"It needs neither check nor pack: convolt train cnn --data {spec}."))
    if path.is_dir() or path.suffix.lower() == ".tar":
        return
    if not path.exists():
        raise DataError(explain("data", f"{spec}, which does not exist", expected))
    if path.suffix.lower() != ".csv":
        raise ArgumentError(explain("data", f"the file {spec}", expected))


def mixed(parts: Mapping[str, Pictures]) -> dict[str, Pictures]:
    """Returns the parts with the training pictures mixed: a `validation_split` from the end of a sorted folder would hold one class."""
    return {name: part.subset(fixed_permutation(len(part))) if name == "train" else part for name, part in parts.items()}


Samples = np.ndarray | Pictures
Labelled = tuple[Samples, np.ndarray]


def load_parts(spec: str, parts: Mapping[str, Pictures], leave_beyond: int | None = None) -> dict[str, Labelled]:
    """Decodes all parts, or leaves them undecoded.

    Args:
        spec: what the user wrote, for messages.
        parts: by name.
        leave_beyond: bytes of decoded pictures beyond which all of them are left as they are, for `fit` to stream; 0 leaves any. None:
            more than `data_memory()` is an error.

    Raises:
        DataError: they would take more memory than they may, have no labels, or differ in shape; bad files as in `Pictures.load`.
    """
    if leave_beyond is not None and (not leave_beyond or sum(part.nbytes for part in parts.values()) > leave_beyond):
        return {name: (part, _labels_of(part)) for name, part in parts.items()}
    needed, room = sum(part.nbytes for part in parts.values()), data_memory()
    if needed > room:
        raise DataError(explain(spec, f"pictures that take {needed / 2**30:.1f} GB decoded", f"at most {room / 2**30:.1f} GB",
                                f"Pack them: convolt data pack {spec} FILE.pack, then --data FILE.pack. In Python, fit streams what does "
                                "not fit. CONVOLT_DATA_MEMORY=64GB sets another bound."))
    loaded: dict[str, Labelled] = {}
    for name, part in parts.items():
        _labels_of(part)
        x, y = part.load()
        assert y is not None, "_labels_of has looked"
        first = loaded.get("train", (x,))[0]
        if x.shape[1:] != first.shape[1:]:
            raise DataError(explain(part.title, f"shape {x.shape[1:]}", f"{first.shape[1:]} as in training",
                                    "Pass image_size=(height, width) to resize all pictures."))
        loaded[name] = (x, y)
    return loaded


def _labels_of(part: Pictures) -> np.ndarray:
    """Returns the labels of a part, which must have such."""
    if part.labels is None:
        raise DataError(explain(part.title, "pictures without labels", "labels"))
    return part.labels


def pack_arrays(path: Path, image_size: Size, color_mode: str | None = None,
                leave_beyond: int | None = None) -> tuple[Pack, dict[str, Labelled]]:
    """Returns a pack and its parts: arrays mapped from the file where it holds pixels, `load_parts` of the files that it holds.

    Raises:
        DataError: the pack is damaged, has no labels, or its pictures have another size or other colours than are asked for.

    Warns:
        StalePackWarning: the folder that it was made from has changed.
    """
    pack = open_pack(path)
    if changed := pack.stale():
        warnings.warn(f"{changed}: the pack's pictures are used. Pack the folder anew.", StalePackWarning, stacklevel=3)
    if not agrees(pack, image_size, color_mode):
        raise DataError(explain(str(path), f"pictures decoded as {pack.header.decoding}", f"image_size {image_size} and {color_mode}",
                                "Leave these out, or pack the folder anew with them."))
    if any(part.labels is None for part in pack.parts.values()):
        raise DataError(explain(str(path), "pictures without labels", "labels"))
    encoded = {name: part.pictures for name, part in pack.parts.items() if isinstance(part.pictures, Pictures)}
    for pictures in encoded.values():
        pictures.image_size = image_size or pictures.image_size
    loaded = load_parts(str(path), encoded, leave_beyond) if encoded else {}
    for name, part in pack.parts.items():
        if isinstance(part.pictures, np.ndarray) and part.labels is not None:
            loaded[name] = (part.pictures, part.labels)
    return pack, loaded


def agrees(pack: Pack, image_size: Size, color_mode: str | None) -> bool:
    """Whether a pack's pixels are what would be decoded now."""
    colours = color_mode is None or pack.header.decoding.get("color_mode") == color_mode
    pixels = next((part.info.shape[:2] for part in pack.parts.values() if part.info.shape), None)
    return colours and (image_size is None or pixels is None or tuple(image_size) == pixels)


def pack_beside(folder: Path, image_size: Size, color_mode: str) -> Path | None:
    """Returns `FOLDER.pack` beside a folder if it holds these very pictures, decoded in this way; a stale one is told and not used."""
    path = folder.with_name(f"{folder.name}.pack")
    if not path.is_file():
        return None
    pack = open_pack(path, verify=False)
    inside = {Path(part.info.source) for part in pack.parts.values()}
    if not all(source.is_relative_to(folder.resolve()) for source in inside):
        return None
    asked = list(image_size) if image_size is not None else None
    if pack.header.decoding.get("image_size") != asked or not agrees(pack, image_size, color_mode):
        return None
    if changed := pack.stale():
        warnings.warn(f"{changed}: the pictures are decoded anew. Pack the folder again.", StalePackWarning, stacklevel=3)
        return None
    return path


def packed_in_place_of(folder: ImageFolder) -> tuple[Pictures, str]:
    """Returns (the pictures of a folder, from a pack beside it where a fresh one holds them; a sentence about one that does not).

    A pack `pets.pack` is beside the folder `pets`, and beside its parts such as `pets/train`, of which each is looked for in it.

    Warns:
        StalePackWarning: the folder has changed since it was packed, or the pack is damaged; the pictures are then decoded anew.
    """
    places = (at if at.name not in ("", "..") else Path(os.path.abspath(at)) for at in (folder.root, folder.root.parent))
    paths = [at.with_name(f"{at.name}.pack") for at in places if at.name]
    for path in paths:
        if not path.is_file():
            continue
        source = str(folder.root.resolve())
        try:
            if all(part.info.source != source for part in open_pack(path, verify=False).parts.values()):
                continue  # of another folder: its pictures need no checking
            pack = open_pack(path, workers=folder.workers)
        except DataError as error:
            warnings.warn(f"{error} {folder.title} is decoded anew.", StalePackWarning, stacklevel=6)
            continue
        parts = [part.as_pictures for part in pack.parts.values() if part.info.source == source]
        if changed := pack.stale():
            warnings.warn(f"{changed}: the pictures are decoded anew. Pack the folder again.", StalePackWarning, stacklevel=6)
            continue
        found = next((part for part in parts if part.holds(folder)), None)
        if found is not None:
            return found.in_place_of(folder), ""
        return folder, f"{path} is not used: it holds other pictures of {folder.root}, or decoded in another way ({pack.header.decoding})."
    return folder, ""
