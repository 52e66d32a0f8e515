"""The header of a safetensors file, checked in full before a tensor is read.

The format is a length (8 bytes), JSON of that length, and the tensors' bytes. The JSON has an entry for each tensor, with its type, its
shape and the place of its bytes, and `__metadata__`, a mapping of text to text. Valid files have no gap, no overlap and nothing at the
end. Source: https://github.com/huggingface/safetensors, section Format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convolt.errors import ModelFileError, did_you_mean, explain
from convolt.formats.guard import LIMITS, Limits, check_file, expect_kind, few, read_json, shorten

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}
"""Types of values and their sizes; the file's names."""

TORCH_NAMES: Mapping[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U16": "uint16", "I16": "int16",
    "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64",
    "F64": "float64", "C64": "complex64",
}
MAX_NAME = 1024


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: type (PyTorch's name), shape (PyTorch's axes), and the place of its bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """Tensors by name, in the order of their bytes; and the metadata."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path, limits: Limits = LIMITS) -> Header:
    """Returns the header of a safetensors file; no tensor is read.

    Raises:
        ModelFileError: the file is of another kind, truncated or too long; the header is too large, no JSON, names a tensor twice;
            an entry has an unknown type, an impossible shape, or a place that overlaps another's or leaves a gap.
    """
    size = check_file(path, limits)
    expect_kind(path, "safetensors")
    thing = f"{path}: header"
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > limits.header_bytes:
                raise ModelFileError(explain(thing, f"{length:,} bytes", f"at most {limits.header_bytes:,}", "The file is damaged."))
            if 8 + length > size:
                raise ModelFileError(explain(str(path), f"{size:,} bytes", f"a header that ends after {8 + length:,}",
                                             "The file is truncated: fetch or save it again."))
            text = file.read(length)
    except OSError as error:
        raise ModelFileError(explain(str(path), f"a file that cannot be read ({error.strerror})", "a file that can be read")) from error
    value = read_json(thing, text, limits)
    if not isinstance(value, dict):
        raise ModelFileError(explain(thing, f"a {type(value).__name__}", "a mapping"))
    metadata = _metadata(thing, value.pop("__metadata__", {}))
    if len(value) > limits.tensors:
        raise ModelFileError(explain(thing, f"{len(value):,} tensors", f"at most {limits.tensors:,}"))
    entries = {name: _entry(f"{path}: {shorten(name)}", name, entry, limits) for name, entry in value.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_places(path, ordered, size - 8 - length, limits)
    return Header(ordered, metadata)


def _metadata(thing: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or any(not isinstance(text, str) for text in value.values()):
        raise ModelFileError(explain(f"{thing}: __metadata__", "something else than text", "a mapping of text to text"))
    return value


def _entry(thing: str, name: str, value: Any, limits: Limits) -> Entry:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ModelFileError(explain(thing, "a tensor with this name", f"printable names of up to {MAX_NAME} characters"))
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        got = few(value) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise ModelFileError(explain(thing, got, "dtype, shape and data_offsets"))
    dtype, shape, place = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ModelFileError(explain(f"{thing}: dtype", shorten(repr(dtype)), "a type of safetensors",
                                     did_you_mean(str(dtype)[:20], ITEM_BYTES)))
    if not _are_sizes(shape) or len(shape) > limits.tensor_axes:
        raise ModelFileError(explain(f"{thing}: shape", shorten(repr(shape)), f"up to {limits.tensor_axes} whole numbers from 0"))
    if not _are_sizes(place) or len(place) != 2 or place[0] > place[1]:
        raise ModelFileError(explain(f"{thing}: data_offsets", shorten(repr(place)), "two whole numbers from 0, start and end"))
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if wanted != place[1] - place[0]:
        raise ModelFileError(explain(thing, f"{place[1] - place[0]:,} bytes",
                                     shorten(f"{wanted:,} for {dtype} of shape {tuple(shape)}", 160)))
    return Entry(TORCH_NAMES[dtype], tuple(shape), *place)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in values)


def _check_places(path: Path, entries: Mapping[str, Entry], room: int, limits: Limits) -> None:
    """Refuses bytes that belong to two tensors or to none; `entries` come in the order of their starts."""
    end = 0
    for name, entry in entries.items():
        if entry.end > room:
            raise ModelFileError(explain(f"{path}: {shorten(name)}", f"a place that ends after {entry.end:,} bytes", f"at most {room:,}",
                                         "The file is truncated: fetch or save it again."))
        if entry.start != end:
            got = f"a place that overlaps another's by {end - entry.start:,} bytes" if entry.start < end else \
                f"a gap of {entry.start - end:,} bytes before it"
            raise ModelFileError(explain(f"{path}: {shorten(name)}", got, "tensors one after another", "The file is damaged."))
        end = entry.end
    if end != room:
        raise ModelFileError(explain(str(path), f"{room - end:,} bytes after the last tensor", "none", "The file is damaged."))
    if end > limits.tensor_bytes:
        raise ModelFileError(explain(str(path), f"{end:,} bytes of tensors", f"at most {limits.tensor_bytes:,}"))
