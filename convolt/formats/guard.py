"""What every reader of model files goes through first: limits, the kind of a file by its content, and JSON within bounds.

A file says nothing about itself that is believed. Its kind comes from its first bytes, never from its name; every size that it
declares is compared with the bytes that are there before anything is allocated; and nothing in it is imported, called or opened.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from convolt.errors import ModelFileError, did_you_mean, explain


@dataclass(frozen=True)
class Limits:
    """The most that a model file may hold. The defaults are far above real models and below what fills a machine.

    Attributes:
        file_bytes: of the file.
        header_bytes: of the JSON at the start of a safetensors file, and of any other JSON that describes a model.
            Parsed JSON takes up to about 30 times its bytes of memory.
        json_depth: lists and mappings inside one another.
        tensor_bytes: of all tensors together, unpacked.
        tensor_axes: of one tensor.
        tensors: tensors (or groups and data sets of an HDF5 file) in one file.
        unpacked_ratio: unpacked bytes for each packed one, from `unpacked_free` bytes on.
        unpacked_free: unpacked bytes that are never suspicious, so that small arrays of zeros may shrink to nothing.
        group_depth: groups of an HDF5 file inside one another.
        attribute_bytes: of all attributes of an HDF5 file.
        archive_members: members of an archive.
        cpu_seconds: for reading an HDF5 file, and one second more for each 50 MB of it.
    """

    file_bytes: int = 32 * 2**30
    header_bytes: int = 16 * 2**20
    json_depth: int = 128
    tensor_bytes: int = 32 * 2**30
    tensor_axes: int = 16
    tensors: int = 100_000
    unpacked_ratio: int = 100
    unpacked_free: int = 16 * 2**20
    group_depth: int = 32
    attribute_bytes: int = 32 * 2**20
    archive_members: int = 1_000
    cpu_seconds: int = 2


LIMITS = Limits()

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"
_TORCH_OLD_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
_NAMES_BY_MAGIC = (
    (b"\xff\xd8\xff", "a JPEG picture"), (b"\x89PNG\r\n\x1a\n", "a PNG picture"), (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"), (b"\x1f\x8b", "a gzip file"), (b"\xfd7zXZ\x00", "an xz file"), (b"PK\x05\x06", "an empty zip archive"),
    (b"%PDF", "a PDF document"), (b"<!DOCTYPE", "a web page"), (b"<html", "a web page"), (b"GGUF", "a GGUF model"),
    (b"{", "a JSON text"), (b"version https://git-lfs", "a Git LFS pointer in place of the file"), (b"\x7fELF", "a program"),
)

PICKLE_FIX = ("A pickle runs code when it is loaded, so Convolt never loads one. Export it where you trust it: "
              "safetensors.torch.save_file(model.state_dict(), \"weights.safetensors\"), then model.load_weights(\"weights.safetensors\").")


@dataclass(frozen=True)
class Kind:
    """What a file is, by its content.

    Attributes:
        name: "safetensors", "hdf5", "keras", "pickle", "torch" (a zip archive with a pickle), "numpy", "zip", "onnx" or "other".
        words: the same for a sentence: "an HDF5 file".
    """

    name: str
    words: str


def kind_of(path: str | Path) -> Kind:
    """Returns what a file is by its first bytes, and for an archive by the names in it; nothing else is read.

    Raises:
        ModelFileError: there is no such file, it is not a plain file, or it cannot be read.
    """
    path = Path(path)
    check_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ModelFileError(explain(str(path), f"a file that cannot be read ({error.strerror})", "a file that can be read")) from error
    return _kind(path, head, size)


def _kind(path: Path, head: bytes, size: int) -> Kind:
    if not size:
        return Kind("other", "an empty file")
    if head.startswith(HDF5_MAGIC):
        return Kind("hdf5", "an HDF5 file")
    if head.startswith(ZIP_MAGIC):
        return _kind_of_zip(path)
    if head.startswith(b"\x93NUMPY"):
        return Kind("numpy", "a NumPy array")
    for magic, words in _NAMES_BY_MAGIC:
        if head.startswith(magic):
            return Kind("other", words)
    if head[8:9] == b"{" and head[7:8] == b"\0":
        return Kind("safetensors", "a safetensors file")
    if _looks_pickled(head):
        return Kind("pickle", "a pickle")
    if head[:1] == b"\x08" and b"\x12" in head[:8]:
        return Kind("onnx", "an ONNX model")
    return Kind("other", "a file of an unknown kind")


def _looks_pickled(head: bytes) -> bool:
    """Whether bytes begin like a pickle: protocol 2 and later say so, 0 and 1 begin with an opcode that names a class or a container."""
    if head[:1] == b"\x80":
        return len(head) > 1 and 2 <= head[1] <= 5
    return head[:2] in (b"(l", b"(d", b"]q", b"}q") or re.match(rb"\(?[ci][\w.]+\n[\w.]+\n", head) is not None


def _kind_of_zip(path: Path) -> Kind:
    from convolt.formats.archive import member_names

    names = member_names(path)
    if any(name.endswith("data.pkl") for name in names):
        return Kind("torch", "a PyTorch file, which holds a pickle")
    if "config.json" in names or "model.weights.h5" in names:
        return Kind("keras", "a .keras archive")
    if names and all(name.endswith(".npy") for name in names):
        return Kind("numpy", "an archive of NumPy arrays")
    return Kind("zip", "a zip archive")


def check_file(path: Path, limits: Limits = LIMITS) -> int:
    """Returns the size of a file.

    Raises:
        ModelFileError: there is no such file (the nearest name is given), it is a folder, pipe or device, or it is too large.
    """
    try:
        there = path.exists()
        near = [p.name for p in path.parent.iterdir() if p.is_file()][:10_000] if not there and path.parent.is_dir() else []
    except OSError as error:
        raise ModelFileError(explain(str(path), f"a file that cannot be read ({error.strerror})", "a file that can be read")) from error
    if not there:
        hint = did_you_mean(path.name, near) if near else ""
        raise ModelFileError(explain(str(path), "no such file", "a model file", "" if hint.startswith("Known") else hint))
    if not path.is_file():
        raise ModelFileError(explain(str(path), "a folder" if path.is_dir() else "no plain file", "a model file"))
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise ModelFileError(explain(str(path), f"{size:,} bytes", f"at most {limits.file_bytes:,}"))
    return size


def expect_kind(path: str | Path, *expected: str) -> Kind:
    """Returns the kind of a file if it is one of the expected ones.

    Raises:
        ModelFileError: it is of another kind; the message says which, and for a pickle how to get the weights out of it.
    """
    kind = kind_of(path)
    if kind.name not in expected:
        words = {"safetensors": "a .safetensors file", "hdf5": "a Keras .h5 file", "keras": "a .keras archive"}
        wanted = " or ".join(words.get(name, name) for name in expected)
        raise ModelFileError(explain(str(path), kind.words, wanted, _fix(kind)))
    return kind


def _fix(kind: Kind) -> str:
    if kind.name in ("pickle", "torch"):
        return PICKLE_FIX
    if kind.name == "onnx":
        return "ONNX files are written, not read: run it with onnxruntime."
    if kind.words in ("an empty file", "a Git LFS pointer in place of the file", "a web page"):
        return "Fetch it again."
    return ""


def read_model_bytes(path: str | Path, *expected: str, limits: Limits = LIMITS) -> bytes:
    """Returns the content of a model file of one of the expected kinds.

    Raises:
        ModelFileError: it is of another kind, too large, or cannot be read.
    """
    expect_kind(path, *expected)
    check_file(Path(path), limits)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(explain(str(path), f"a file that cannot be read ({error.strerror})", "a file that can be read")) from error


# -- JSON --------------------------------------------------------------------------------------------------------------


def read_json(thing: str, text: str | bytes, limits: Limits = LIMITS) -> Any:
    """Returns JSON that a file holds.

    Args:
        thing: what it is, for messages.
        text: UTF-8.
        limits: `header_bytes` and `json_depth` hold.

    Raises:
        ModelFileError: it is not JSON, too long or too deep, a mapping has a key twice, or a number is NaN or infinite.
    """
    if len(text) > limits.header_bytes:
        raise ModelFileError(explain(thing, f"{len(text):,} bytes of JSON", f"at most {limits.header_bytes:,}"))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
            raise ModelFileError(explain(thing, f"the key {shorten(twice)!r} twice", "each key once"))
        return found

    def constant(word: str) -> NoReturn:
        raise ModelFileError(explain(thing, f"the number {word}", "finite numbers"))

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(shorten(digits))

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_float=finite)
    except ModelFileError:
        raise
    except RecursionError as error:
        raise ModelFileError(_too_deep(thing, limits)) from error
    except ValueError as error:
        raise ModelFileError(explain(thing, f"damaged JSON ({shorten(str(error), 120)})", "whole JSON",
                                     "Fetch or save the file again.")) from error
    if depth_of(value, limits.json_depth) > limits.json_depth:
        raise ModelFileError(_too_deep(thing, limits))
    return value


def _too_deep(thing: str, limits: Limits) -> str:
    return explain(thing, "JSON with too many levels", f"at most {limits.json_depth} lists and mappings inside one another")


def depth_of(value: Any, most: int) -> int:
    """Returns how many lists and mappings lie inside one another, or `most` + 1 where they are more; without recursion."""
    level, depth = [value], 0
    while depth <= most:
        level = [part for item in level if isinstance(item, (dict, list)) for part in (item.values() if isinstance(item, dict) else item)
                 if isinstance(part, (dict, list))] if depth else [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return depth
        depth += 1
    return depth


# -- words -------------------------------------------------------------------------------------------------------------


def shorten(text: str, most: int = 80) -> str:
    """Returns a text from a file for a message: printable, and cut to `most` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def few(names: Iterable[str], most: int = 5) -> str:
    """Returns the first names and how many more there are: "a, b and 3 more"; "nothing" for none."""
    listed = [shorten(name) for name in names]
    return "nothing" if not listed else ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
