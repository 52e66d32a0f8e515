"""Reading .tar.gz and .tar.xz archives that may be hostile, as a stream: nothing is ever extracted to the disk."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from convolt.errors import DataError, explain

CHUNK = 2**18
XZ_MEMORY = 256 * 2**20
"""The most that the xz decoder may allocate for its dictionary."""

MAX_MEMBERS = 1_000_000
_DAMAGE = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)


def read_tar(path: Path, wanted: Callable[[str], bool], *, member_bytes: int, total_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the wanted members of a .tar.gz or .tar.xz archive, in the archive's order.

    Args:
        path: the archive.
        wanted: says by its name whether a member is expected; others are passed over.
        member_bytes: the most that one wanted member may hold.
        total_bytes: the most that the whole archive may unpack to.

    Raises:
        DataError: the archive is damaged or ends early; a name is absolute or climbs out with `..`; a wanted name
            occurs twice, is not a plain file, or is too large; the archive unpacks to more than it may.
    """
    seen: set[str] = set()
    try:
        with _open_bounded(path, total_bytes) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for count, member in enumerate(archive):
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header that it has met
                name = _safe_name(path, member.name)
                if count >= MAX_MEMBERS:
                    raise DataError(explain(str(path), f"more than {MAX_MEMBERS:,} members", "fewer"))
                if not wanted(name):
                    continue
                if name in seen:
                    raise DataError(explain(str(path), f"two members called {name!r}", "unique names"))
                seen.add(name)
                yield name, _content(path, archive, member, member_bytes)
            while stream.read(CHUNK):  # the checksum stands at the end
                continue
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(explain(str(path), f"a file that cannot be read ({type(error).__name__}: {error})",
                                "a whole .tar.gz or .tar.xz archive", "Fetch it again.")) from error


def _safe_name(path: Path, name: str) -> str:
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name or name[1:2] == ":":
        raise DataError(explain(str(path), f"the member {name!r}", "names inside the archive's own folder",
                                "The archive is not to be trusted."))
    return name.removeprefix("./")


def _content(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, member_bytes: int) -> bytes:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise DataError(explain(f"{path}: {member.name}", "a link, device or sparse file", "a plain file"))
    if member.size > member_bytes:
        raise DataError(explain(f"{path}: {member.name}", f"{member.size:,} bytes", f"at most {member_bytes:,}"))
    file = archive.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise DataError(explain(f"{path}: {member.name}", f"{len(content):,} bytes", f"{member.size:,}",
                                "Fetch the archive again."))
    return content


def _open_bounded(path: Path, total_bytes: int) -> BinaryIO:
    source: io.RawIOBase | gzip.GzipFile
    if path.name.endswith((".gz", ".tgz")):
        source = gzip.open(path, "rb")  # noqa: SIM115 (closed by _Bounded.close)
    elif path.name.endswith((".xz", ".txz")):
        source = _XzStream(path)
    else:
        raise DataError(explain(str(path), f"a file ending in {path.suffix!r}", ".tar.gz or .tar.xz"))
    return cast(BinaryIO, _Bounded(source, path, total_bytes))


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than `limit` bytes: the guard against archives that unpack without end."""

    def __init__(self, source: io.RawIOBase | gzip.GzipFile, path: Path, limit: int) -> None:
        self.source, self.path, self.limit, self.given = source, path, limit, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(CHUNK if size < 0 else min(size, CHUNK)) or b""
        self.given += len(data)
        if self.given > self.limit:
            raise DataError(explain(str(self.path), f"more than {self.limit:,} bytes when unpacked", "less"))
        return data

    def close(self) -> None:
        self.source.close()
        super().close()


class _XzStream(io.RawIOBase):
    """Unpacks one xz stream with bounded memory, which `lzma.open` cannot promise."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self.decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self.decoder.eof:
            data = self.file.read(CHUNK) if self.decoder.needs_input else b""
            if self.decoder.needs_input and not data:
                raise EOFError("the compressed data ends early")
            if unpacked := self.decoder.decompress(data, max_length=size):
                return unpacked
        return b""

    def close(self) -> None:
        self.file.close()
        super().close()
