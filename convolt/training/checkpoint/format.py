"""One checkpoint is one safetensors file: tensors, the rest of the state as JSON in its header, a checksum over every byte.

The header starts with the SHA-256 of the whole file, taken with zeros in the place of the sum itself. So a flipped bit or a
missing end is found wherever it is, the names and shapes in the header included, and any tool reads the tensors.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from convolt.errors import CheckpointError, explain

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_PREFIX = b'{"__metadata__":{"sha256":"'
_SUM_AT = 8 + len(_PREFIX)
_NO_SUM = b"0" * 64
_CHUNK = 1 << 20

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip


def encode(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[memoryview]:
    """Returns a checkpoint's bytes as parts in their order; the parts of tensors are their own memory, not copies.

    Args:
        tensors: on the CPU, contiguous.
        state: JSON values; floats keep all their bits.

    Raises:
        CheckpointError: a tensor of a type that safetensors lacks, or a state that is too large.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise CheckpointError(explain(f"checkpoint: {name}", str(tensor.dtype), f"one of {[str(t) for t in _TYPES]}"))
        entries[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    metadata = json.dumps({"convolt_checkpoint": json.dumps(state), "format": "pt"}, separators=(",", ":"))
    text = _PREFIX + _NO_SUM + b'",' + metadata[1:].encode()
    text += ("," + json.dumps(entries, separators=(",", ":"))[1:]).encode() if entries else b"}"
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(explain("checkpoint", f"{len(text):,} bytes of state beside tensors", f"at most {MAX_HEADER_BYTES:,}",
                                      "A callback's state_dict is too large: put its arrays into tensors()."))
    head = bytearray(len(text).to_bytes(8, "little") + text)
    parts = [memoryview(head), *(memoryview(_bytes_of(tensor)) for tensor in tensors.values() if tensor.numel())]
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    head[_SUM_AT : _SUM_AT + 64] = total.hexdigest().encode()
    return parts


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def decode(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors, state) of a file after checking its sum; what is checked is what is used, for it is read once.

    Raises:
        CheckpointError: the file is damaged, foreign or from a newer Convolt.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        state = _read(path, io.BytesIO(data), len(data))
        return load(data), state
    except (SafetensorError, OSError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or str(error)) from error


def read_state(path: Path) -> dict[str, Any]:
    """Returns the state beside the tensors, after checking the sum of the whole file.

    Raises:
        CheckpointError: as `decode`.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def _read(path: Path, file: BinaryIO, size: int) -> dict[str, Any]:
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if not _SUM_AT + 64 <= 8 + length <= min(size, 8 + MAX_HEADER_BYTES):
        raise _damaged(path, f"{size:,} bytes that do not begin as a checkpoint or end too soon")
    text = file.read(length)
    total = hashlib.sha256(head)
    total.update(text[: len(_PREFIX)] + _NO_SUM + text[len(_PREFIX) + 64 :])
    for chunk in iter(lambda: file.read(_CHUNK), b""):
        total.update(chunk)
    found = text[len(_PREFIX) : len(_PREFIX) + 64]
    if not text.startswith(_PREFIX) or total.hexdigest().encode() != found:
        raise _damaged(path, "bytes that do not agree with its checksum")
    return _parse(path, text)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        state = json.loads(json.loads(text)["__metadata__"]["convolt_checkpoint"])
        version = state["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"a header of another kind ({type(error).__name__}: {error})") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(explain(str(path), f"format {version!r}", f"at most {FORMAT_VERSION}", "Update convolt to read it."))
    return dict(state)


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(explain(str(path), got, "a whole checkpoint"))


def sums(tensors: Mapping[str, Tensor], groups: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields (group, SHA-256) of the tensors whose names start with each group's prefix, names and shapes included.

    Args:
        tensors: of a checkpoint.
        groups: prefix of names by group.
    """
    for group, prefix in groups.items():
        total = hashlib.sha256()
        for name in sorted(name for name in tensors if name.startswith(prefix)):
            tensor = tensors[name].contiguous()
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(_bytes_of(tensor))
        yield group, total.hexdigest()
