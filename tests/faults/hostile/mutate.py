"""Mutants of files: bytes flipped, cut, spliced and overwritten; numbers, names and keys of JSON changed for nasty ones."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

NASTY = (
    0, -1, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**12, 10**30, -(2**63),
    0.0, -0.5, 1e-300, 1e300, 1.5, True, False, None, "", "a", "x" * 5000, "é\u202e\x07", "../../etc/passwd", "/dev/zero",
    "http://127.0.0.1:1/", "os.system", "Lambda", "__class__", 'a")+b', [], [0], [1, 2, 3, 4, 5, 6], [None], [-1, -1], [10**9, 10**9], {},
    {"class_name": "Dense"}, {"class_name": "Dense", "config": {"units": 10**12}}, {"tensor": [0, None]},
    {"class_name": "Sequential", "config": {"layers": []}},
)
NUMBERS = tuple(n for n in NASTY if type(n) is int and 0 <= n < 2**64)
Mutant = Callable[[random.Random, Sequence[bytes]], bytes]


# -- bytes -------------------------------------------------------------------------------------------------------------


def of_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Returns `data` after one to four changes that know nothing of the format."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not changed:
            break
        at = rng.randrange(len(changed)) if rng.random() < 0.4 else min(rng.randrange(512), len(changed) - 1)
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            changed[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            del changed[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            start = rng.randrange(len(changed))
            changed[at:at] = changed[start : start + rng.randrange(1, 128)]
        else:
            start = rng.randrange(max(1, len(other)))
            piece = other[start : start + rng.randrange(1, 256)]
            changed[at : at + len(piece)] = piece
    return bytes(changed)


# -- JSON --------------------------------------------------------------------------------------------------------------


def of_json(rng: random.Random, value: Any) -> Any:
    """Returns a copy of `value` in which one to three values, keys or entries are others."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [(holder, key) for holder in _holders(changed) for key in (holder if isinstance(holder, dict) else range(len(holder)))]
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place]) if len(json.dumps(other[place])) < 20_000 else None
        elif kind == 2 and isinstance(holder, dict):
            names = (f"{key}x", "class_name", "config", "layers", "name", "kwargs", "module", str(rng.choice(NASTY)))
            holder[rng.choice(names)] = holder.pop(key)
        elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * rng.choice((-1, 0, 2, 10, 10**9)) + rng.choice((-1, 0, 1))
        elif kind == 4:
            holder[key] = [holder[key]]
        elif kind == 5 and isinstance(holder[key], list) and holder[key]:
            holder[key] = holder[key] * rng.choice((2, 50))
        else:
            holder[key] = copy.deepcopy(rng.choice(NASTY))
    return changed


def _holders(value: Any) -> list[Any]:
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (dict, list)):
            found.append(item)
            waiting += item.values() if isinstance(item, dict) else item
    return found


def text_of(rng: random.Random, value: Any) -> str:
    """Returns JSON of a changed value; now and then with a token that is none, a key twice, or lists without end."""
    text = json.dumps(of_json(rng, value))
    kind = rng.randrange(20)
    if kind == 0:
        return text.replace("1", rng.choice(("NaN", "Infinity", "1e999", "-0", "9" * 400)), 1)
    if kind == 1:
        return text.replace("{", '{"name":1,"name":2,', 1)
    if kind == 2:
        return text.replace("null", "[" * rng.choice((100, 5000)) + "]" * rng.choice((100, 5000)), 1)
    return text


# -- formats -----------------------------------------------------------------------------------------------------------


def safetensors(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    data = rng.choice(seeds)
    kind = rng.random()
    if kind < 0.35:
        return of_bytes(rng, data, rng.choice(seeds))
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    if kind < 0.8 and "convolt" in metadata:
        metadata["convolt"] = text_of(rng, json.loads(metadata["convolt"]))
        text = json.dumps(header)
    else:
        text = text_of(rng, header)
    encoded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + size :]


def hdf5(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    import h5py

    data = rng.choice(seeds)
    if rng.random() < 0.7:
        return of_bytes(rng, data, rng.choice(seeds))
    memory = io.BytesIO(data)
    with h5py.File(memory, "r+") as file:
        key = rng.choice([k for k in file.attrs if isinstance(file.attrs[k], str)] or [""])
        if key in ("model_config", "training_config"):
            file.attrs[key] = text_of(rng, json.loads(file.attrs[key]))
        elif key:
            file.attrs[key] = rng.choice(("", "x" * 1000, "\x07"))
        paths: list[str] = []
        file.visit(paths.append)
        path = rng.choice(paths)
        if rng.random() < 0.5:
            del file[path]
            if rng.random() < 0.5:
                file[path] = rng.choice((h5py.SoftLink("/"), h5py.ExternalLink("/etc/passwd", "/"), 1.5, [[1, 2], [3, 4]], "text"))
    return memory.getvalue()


def keras(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    data = rng.choice(seeds)
    if rng.random() < 0.3:
        return of_bytes(rng, data, rng.choice(seeds))
    memory, packing = io.BytesIO(), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(memory, "w", packing) as new:
        chosen = rng.choice(("config.json", "config.json", "config.json", "metadata.json", "model.weights.h5", "names"))
        for name in old.namelist():
            content = old.read(name)
            if name == chosen:
                content = text_of(rng, json.loads(content)).encode("utf-8", "surrogatepass") if name.endswith("json") else \
                    of_bytes(rng, content, data)
            if chosen == "names" and rng.random() < 0.5:
                name = rng.choice(("../" + name, "/" + name, name.upper(), "assets/x", "config.json", "x" * 300, name + "\n"))
            new.writestr(zipfile.ZipInfo(name), content)
    return memory.getvalue()


def images(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    return of_bytes(rng, rng.choice(seeds), rng.choice(seeds))


def archives(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Tar archives are changed inside, then packed, for most changes of packed bytes fail at the checksum."""
    import gzip
    import lzma

    data = rng.choice(seeds)
    if data[:2] == b"PK" or rng.random() < 0.3:
        return of_bytes(rng, data, rng.choice(seeds))
    packed = data[:2] == b"\x1f\x8b"
    inside = of_bytes(rng, gzip.decompress(data) if packed else lzma.decompress(data), b"\0" * 600)
    if rng.random() < 0.5:
        inside = _checksummed(inside)
    return gzip.compress(inside, 1) if packed else lzma.compress(inside, preset=0)


def _checksummed(tar: bytes) -> bytes:
    """Gives the first header its right sum, so that a change in it is looked at."""
    if len(tar) < 512:
        return tar
    head = bytearray(tar[:512])
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + tar[512:]


MUTANTS: dict[str, Mutant] = {"safetensors": safetensors, "h5": hdf5, "keras": keras, "images": images, "archives": archives,
                              "pickles": images}


def tar_of(members: dict[str, bytes], mode: str) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return memory.getvalue()
