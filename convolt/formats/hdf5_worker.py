"""The process of its own in which the HDF5 library reads a file; `convolt.formats.hdf5` starts it and tells why.

Run as a script, with the file as standard input and an empty file as standard output; imports nothing of Convolt. It looks at the
whole file before it reads a value, then writes an index (a length of 8 bytes, JSON, padding to 64 bytes) and the values of all
arrays behind it. A refusal is exit code 3 and, on standard error, JSON with (thing, got, expected, fix).
"""

from __future__ import annotations

import codecs
import json
import math
import os
import sys
from typing import Any

REFUSED = 3
ALIGNMENT = 64
SLICE_BYTES = 32 * 2**20
MEMORY_BYTES = 2 * 2**30
"""Address space of this process: the interpreter with NumPy and HDF5 takes about a quarter, a piece that is read at most a sixteenth."""

NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000


class Refused(Exception):  # noqa: N818 (it is no error, but the answer)
    """Something that the file may not hold: (thing, got, expected, fix)."""


def lock_down(limits: dict[str, int], file_bytes: int) -> None:
    """Takes from this process what it does not need: memory, time, and the right to open any further file or socket."""
    try:
        import resource
    except ImportError:  # Windows
        return
    seconds = limits["cpu_seconds"] + file_bytes // 50_000_000
    most = min(limits["tensor_bytes"], max(limits["unpacked_free"], limits["unpacked_ratio"] * file_bytes))
    wanted = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_CPU": seconds, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 0,
              "RLIMIT_FSIZE": most + 4 * limits["attribute_bytes"] + 2**26}
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        last = value + (name == "RLIMIT_CPU")  # a second between SIGXCPU, which says what happened, and SIGKILL
        limits_now = [n if hard == resource.RLIM_INFINITY else min(n, hard) for n in (value, last)]
        resource.setrlimit(kind, (limits_now[0], limits_now[1]))


class Walk:
    """One look at everything in the file, in which nothing is allocated on the word of the file."""

    def __init__(self, file: Any, file_bytes: int, limits: dict[str, int]) -> None:
        self.file, self.file_bytes, self.limits = file, file_bytes, limits
        self.objects: list[dict[str, Any]] = []
        self.arrays: list[Any] = []
        self.seen: set[int] = set()
        self.total = self.attribute_bytes = 0
        self.most = min(limits["tensor_bytes"], max(limits["unpacked_free"], limits["unpacked_ratio"] * file_bytes))

    def group(self, group: Any, path: str, depth: int = 0) -> None:
        if depth > self.limits["group_depth"]:
            raise Refused(path, "groups inside groups without end", f"at most {self.limits['group_depth']} levels")
        entry: dict[str, Any] = {"path": path, "children": [], "attributes": self.attributes(group.id, path)}
        self.objects.append(entry)
        for name in self.children(group, path):
            inside = f"{path}/{name}" if path else name
            self.link(group, name, inside)
            entry["children"].append(name)
            child = group[name]
            if type(child).__name__ == "Group":
                self.group(child, inside, depth + 1)
            elif type(child).__name__ == "Dataset":
                self.dataset(child, inside)
            else:
                raise Refused(inside, "a named type", "a group or an array of numbers")

    def children(self, group: Any, path: str) -> list[str]:
        """Names in the order in which they were made, where the file kept it, else sorted as the library does."""
        from h5py import h5, h5p

        names: list[bytes] = []

        def take(name: bytes) -> bool | None:
            names.append(name)
            return True if len(names) + len(self.objects) > self.limits["tensors"] else None

        made_in_order = group.id.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
        stopped = group.id.links.iterate(take, idx_type=h5.INDEX_CRT_ORDER if made_in_order else h5.INDEX_NAME)
        if stopped[0]:
            raise Refused(path, f"more than {self.limits['tensors']:,} groups and arrays", "fewer")
        decoded: list[str] = []
        for name in names:
            try:
                text = name.decode("utf-8")
            except UnicodeDecodeError:
                raise Refused(path, "a name that is not UTF-8", "text") from None
            if not text or text in (".", "..") or "/" in text or not text.isprintable() or len(text) > 1024 or text in decoded[-1:]:
                raise Refused(path, f"the name {text[:60]!r}", "a plain name")
            decoded.append(text)
        return decoded

    def link(self, group: Any, name: str, path: str) -> None:
        from h5py import h5l, h5o

        kind = group.id.links.get_info(name.encode()).type
        if kind != h5l.TYPE_HARD:
            word = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}.get(kind, "a link of the user's own kind")
            raise Refused(path, word, "the array or group itself", "The file is not to be trusted.")
        info = h5o.get_info(group.id, name.encode())
        if info.addr in self.seen:
            raise Refused(path, "a second link to one object", "each array and group once", "The file is not to be trusted.")
        self.seen.add(info.addr)

    def attributes(self, identifier: Any, path: str) -> dict[str, Any]:
        from h5py import h5a

        found: dict[str, Any] = {}
        for index in range(h5a.get_num_attrs(identifier)):
            if len(found) > self.limits["tensors"]:
                raise Refused(path, f"more than {self.limits['tensors']:,} attributes", "fewer")
            attribute = h5a.open(identifier, index=index)
            name = attribute.name.decode("utf-8", "replace")
            if name in found:
                raise Refused(path, f"two attributes {name[:60]!r}", "each name once")
            found[name] = self.attribute(attribute, f"{path}@{name[:60]}")
        return found

    def attribute(self, attribute: Any, thing: str) -> Any:
        import numpy as np
        from h5py import h5s, h5t

        kind, shape = attribute.get_type(), attribute.shape
        count = math.prod(shape)
        if attribute.get_space().get_simple_extent_type() == h5s.NULL:
            return []
        if len(shape) > 1:
            raise Refused(thing, f"an attribute of shape {shape}", "one value or a list")
        text = isinstance(kind, h5t.TypeStringID)
        if not text and kind.dtype.name not in NUMBERS:
            raise Refused(thing, f"an attribute of type {type_words(kind)}", "text or numbers")
        self.count_attribute(thing, count * (16 if text and kind.is_variable_str() else kind.get_size()))
        # h5py reads text of variable length as objects: bytes or str
        value = np.empty(shape, kind.dtype)
        if count:
            attribute.read(value)
        if not text:
            return value.tolist()
        items = [plain_text(item, thing) for item in value.reshape(-1).tolist()]
        self.count_attribute(thing, sum(len(item) for item in items))
        return items if shape else items[0]

    def count_attribute(self, thing: str, size: int) -> None:
        self.attribute_bytes += size
        if self.attribute_bytes > self.limits["attribute_bytes"]:
            raise Refused(thing, f"more than {self.limits['attribute_bytes']:,} bytes of attributes", "fewer")

    def dataset(self, dataset: Any, path: str) -> None:
        from h5py import h5s

        kind = dataset.id.get_type()
        if kind.dtype.name not in NUMBERS or kind.get_class() == 10:  # 10: arrays as elements
            raise Refused(path, f"an array of {type_words(kind)}", f"numbers ({', '.join(NUMBERS)})")
        if dataset.id.get_space().get_simple_extent_type() == h5s.NULL:
            raise Refused(path, "an array without a shape", "numbers")
        shape = tuple(dataset.id.shape)
        size = math.prod(shape) * kind.dtype.itemsize
        if len(shape) > self.limits["tensor_axes"]:
            raise Refused(path, f"{len(shape)} axes", f"at most {self.limits['tensor_axes']}")
        self.total += size
        if self.total > self.most:
            raise Refused(path, f"shape {shape}, with which the arrays take {self.total:,} bytes",
                          f"at most {self.most:,} in a file of {self.file_bytes:,} bytes", "It is damaged, or made to fill memory.")
        self.storage(dataset, path, shape, kind.dtype.itemsize, size)
        self.objects.append({"path": path, "shape": shape, "dtype": kind.dtype.name, "attributes": self.attributes(dataset.id, path)})
        self.arrays.append(dataset)

    def storage(self, dataset: Any, path: str, shape: tuple[int, ...], itemsize: int, size: int) -> None:
        """Refuses values that lie in other files, in other arrays, behind unknown filters, or nowhere."""
        from h5py import h5d

        plist = dataset.id.get_create_plist()
        layout = plist.get_layout()
        if plist.get_external_count():
            raise Refused(path, "values in another file (external storage)", "values in this file", "The file is not to be trusted.")
        if layout == h5d.VIRTUAL:
            raise Refused(path, "a virtual array, whose values lie in other files", "values in this file", "The file is not to be trusted.")
        for index in range(plist.get_nfilters()):
            number = plist.get_filter(index)[0]
            if number not in (DEFLATE, SHUFFLE, FLETCHER32, LZF):
                raise Refused(path, f"the filter {number}", "gzip, lzf, shuffle or none", "Write it again with compression='gzip' or none.")
        if not size:
            return
        if layout == h5d.CHUNKED:
            chunk = plist.get_chunk()
            if math.prod(chunk) * itemsize > max(self.limits["unpacked_free"], 4 * size):
                raise Refused(path, f"chunks of shape {chunk}", f"chunks no larger than the array, {shape}")
            wanted, there = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)), dataset.id.get_num_chunks()
            if wanted != there:
                raise Refused(path, f"{there:,} chunks of values", f"{wanted:,} for the shape {shape}", "The file is damaged.")
        elif dataset.id.get_storage_size() != size or (layout == h5d.CONTIGUOUS and not self.lies_inside(dataset, size)):
            raise Refused(path, "values that the file does not hold", f"{size:,} bytes for the shape {shape}", "The file is damaged.")

    def lies_inside(self, dataset: Any, size: int) -> bool:
        offset = dataset.id.get_offset()
        return offset is not None and 0 < offset <= self.file_bytes - size


def type_words(kind: Any) -> str:
    """Names a type of HDF5."""
    words = {2: "times", 3: "text", 4: "bit fields", 5: "opaque values", 6: "compounds", 7: "references", 8: "enumerations",
             9: "values of variable length", 10: "arrays"}
    return words.get(kind.get_class(), f"{kind.get_size()}-byte numbers")


def plain_text(item: Any, thing: str) -> str:
    """Returns text of an attribute as str."""
    if isinstance(item, str):
        return item
    if not isinstance(item, bytes):  # a null pointer
        return ""
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(thing, "bytes that are not UTF-8", "text") from None


def write_values(dataset: Any, out: Any) -> None:
    """Writes an array in C order and native byte order, piece by piece."""
    import numpy as np

    shape, dtype = tuple(dataset.id.shape), np.dtype(dataset.id.dtype.name)
    axis = next((i for i, n in enumerate(shape) if n > 1), 0)
    if not shape or not math.prod(shape):
        out.write(np.asarray(dataset[()] if not shape else np.empty(shape), dtype).tobytes())
        return
    row = math.prod(shape[axis + 1 :]) * dtype.itemsize
    if row > 4 * SLICE_BYTES:
        raise Refused(dataset.name.strip("/"), f"rows of {row:,} bytes", f"at most {4 * SLICE_BYTES:,}")
    step = max(1, SLICE_BYTES // max(1, row))
    for start in range(0, shape[axis], step):
        part = (*(slice(None),) * axis, slice(start, start + step))
        out.write(np.ascontiguousarray(dataset[part], dtype).tobytes())


def read(source: Any, out: Any, limits: dict[str, int], values: bool) -> None:
    """Looks at the file, then writes the index and, if wanted, the values."""
    import h5py
    import numpy as np

    file_bytes = os.fstat(source.fileno()).st_size
    with h5py.File(source, "r") as file:
        walk = Walk(file, file_bytes, limits)
        walk.seen.add(h5py.h5o.get_info(file.id).addr)
        walk.group(file["/"], "")
        offset = 0
        for entry in walk.objects:
            if "shape" in entry:
                entry["offset"] = offset
                size = math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
                offset += -(-size // ALIGNMENT) * ALIGNMENT
        try:
            index = json.dumps(walk.objects, allow_nan=False).encode()
        except ValueError:
            raise Refused("attributes", "a number that is NaN or infinite", "finite numbers") from None
        out.write(len(index).to_bytes(8, "little") + index + b"\0" * (-(8 + len(index)) % ALIGNMENT))
        for dataset in walk.arrays if values else []:
            write_values(dataset, out)
            out.write(b"\0" * (-math.prod(dataset.shape) * dataset.dtype.itemsize % ALIGNMENT))
        out.flush()


def main(limits: dict[str, int], values: bool) -> int:
    """Reads standard input and writes standard output; returns the exit code."""
    import h5py  # noqa: F401

    for codec in ("ascii", "utf-8", "latin-1"):  # found now, since no file can be opened later
        codecs.lookup(codec)
    source, out = sys.stdin.buffer, sys.stdout.buffer
    lock_down(limits, os.fstat(source.fileno()).st_size)
    try:
        read(source, out, limits, values)
    except Refused as refused:
        reason = [*refused.args, *[""] * (4 - len(refused.args))]
    except Exception as error:  # what the library says of a damaged file has any class
        reason = ["", f"a file that the HDF5 library cannot read ({type(error).__name__}: {str(error)[:160]})", "a whole HDF5 file",
                  "Fetch or save it again."]
    else:
        return 0
    sys.stderr.write(json.dumps(reason))
    sys.stderr.flush()
    return REFUSED


if __name__ == "__main__":
    sys.path += [folder for folder in sys.argv[3:] if folder not in sys.path]
    os._exit(main(json.loads(sys.argv[1]), sys.argv[2] == "values"))
