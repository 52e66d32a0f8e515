"""Reading zip archives that may be hostile: only members that are expected, each once, none larger than its cap; nothing is extracted."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from convolt.errors import ModelFileError, explain
from convolt.formats.guard import LIMITS, Limits, check_file, few, shorten

CHUNK = 2**18
MAX_NAME = 255
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, IndexError, struct.error, zipfile.BadZipFile, zlib.error)
"""What zipfile raises for damaged archives (RuntimeError: encryption; NotImplementedError: an unknown compression)."""


def read_members(path: str | Path | bytes, expected: Mapping[str, int], *, optional: Mapping[str, int] | None = None,
                 limits: Limits = LIMITS) -> dict[str, bytes]:
    """Returns the contents of the expected members of a zip archive by name.

    Args:
        path: the archive, or its bytes.
        expected: the names that must be there, each with the most bytes that it may unpack to.
        optional: the same for names that may be there. A folder is named with a slash at the end: what lies in it may be there and is
            neither read nor returned.
        limits: `archive_members`, `unpacked_ratio` and `unpacked_free` hold.

    Raises:
        ModelFileError: the archive is damaged; a member is missing, unknown, there twice, encrypted, a link, larger than its cap, or
            unpacks to far more than it takes; or a name is absolute or climbs out with `..`.
    """
    thing = "the archive" if isinstance(path, bytes) else str(path)
    wanted = {**(optional or {}), **expected}
    with _opened(path, thing, limits) as (archive, size):
        members = _checked(thing, archive.infolist(), wanted, expected)
        return {name: _content(thing, archive, info, wanted[name], size, limits) for name, info in members.items()}


def member_names(path: str | Path | bytes, limits: Limits = LIMITS) -> list[str]:
    """Returns the names in an archive as they stand there, unchecked; no content is read.

    Raises:
        ModelFileError: the archive is damaged or has too many members.
    """
    thing = "the archive" if isinstance(path, bytes) else str(path)
    with _opened(path, thing, limits) as (archive, _):
        return [info.filename for info in archive.infolist()]


def member_starts(path: str | Path, suffix: str, most: int, limits: Limits = LIMITS) -> list[bytes]:
    """Returns up to `most` bytes of each member whose name ends in `suffix`, whatever else is in the archive.

    Raises:
        ModelFileError: the archive is damaged or has too many members, or such a member is encrypted.
    """
    with _opened(path, str(path), limits) as (archive, _):
        starts = []
        for info in archive.infolist():
            if info.filename.endswith(suffix):
                with archive.open(info) as member:
                    starts.append(member.read(most))
        return starts


@contextmanager
def _damage_told(thing: str) -> Iterator[None]:
    try:
        yield
    except ModelFileError:
        raise
    except _DAMAGE as error:
        raise ModelFileError(explain(thing, f"a damaged archive ({type(error).__name__}: {shorten(str(error), 120)})",
                                     "a whole zip archive", "Fetch or save it again.")) from error


@contextmanager
def _opened(path: str | Path | bytes, thing: str, limits: Limits) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Opens an archive after a look at its last record, since zipfile believes what that says of the directory's size."""
    if isinstance(path, bytes):
        file: BinaryIO = io.BytesIO(path)
        size = len(path)
    else:
        size = check_file(Path(path), limits)
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    with file, _damage_told(thing):
        file.seek(max(0, size - 2**16 - 22))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < 22:
            raise ModelFileError(explain(thing, "a zip archive without its end", "a whole zip archive", "Fetch or save it again."))
        entries, directory = struct.unpack_from("<HI", tail, at + 10)
        if entries > limits.archive_members or directory > limits.archive_members * (MAX_NAME + 256):
            raise ModelFileError(explain(thing, f"a directory of {entries:,} members and {directory:,} bytes",
                                         f"at most {limits.archive_members:,} members"))
        with zipfile.ZipFile(file) as archive:
            yield archive, size


def _checked(thing: str, infos: list[zipfile.ZipInfo], wanted: Mapping[str, int], needed: Mapping[str, int]) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    unknown = []
    for info in infos:
        name = info.orig_filename
        if len(name) > MAX_NAME or not _is_inside(name):
            raise ModelFileError(explain(thing, f"the member {shorten(name)!r}", "names inside the archive's own folder",
                                         "The archive is not to be trusted."))
        if name in seen:
            raise ModelFileError(explain(thing, f"two members called {shorten(name)!r}", "each name once",
                                         "The archive is not to be trusted."))
        seen.add(name)
        if any(folder.endswith("/") and name.startswith(folder) for folder in wanted):
            continue
        if name not in wanted:
            unknown.append(name)
        else:
            found[name] = info
    missing = [name for name in needed if name not in found]
    if missing or unknown:
        words = [f"no {few(missing)}"] * bool(missing) + [f"the unknown {few(unknown)}"] * bool(unknown)
        others = [name for name in wanted if name not in needed]
        raise ModelFileError(explain(f"{thing}: members", " and ".join(words),
                                     ", ".join(needed) + (f", and perhaps {', '.join(others)}" if others else "")))
    return found


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and ".." not in parts and not name.startswith(("/", "\\")) and name[1:2] != ":" and "\0" not in name


def _content(thing: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, cap: int, size: int, limits: Limits) -> bytes:
    """Unpacks one member piece by piece, so that no more is ever held than its cap."""
    name = f"{thing}: {info.filename}"
    if info.flag_bits & 0x1:
        raise ModelFileError(explain(name, "an encrypted member", "a plain one"))
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        raise ModelFileError(explain(name, "a symbolic link", "a plain member", "The archive is not to be trusted."))
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelFileError(explain(name, f"compression {info.compress_type}", "stored or deflated"))
    if info.file_size > cap:
        raise ModelFileError(explain(name, f"{info.file_size:,} bytes", f"at most {cap:,}"))
    allowed = max(limits.unpacked_free, limits.unpacked_ratio * size)
    pieces, given = [], 0
    with archive.open(info) as stream:
        while piece := stream.read(CHUNK):
            given += len(piece)
            if given > cap or given > allowed:
                bound = min(cap, allowed)
                raise ModelFileError(explain(name, f"more than {bound:,} bytes from an archive of {size:,}", f"at most {bound:,}",
                                             "It is a zip bomb, or the file is damaged."))
            pieces.append(piece)
    if given != info.file_size:
        raise ModelFileError(explain(name, f"{given:,} bytes", f"the {info.file_size:,} that the archive says", "Fetch or save it again."))
    return b"".join(pieces)
