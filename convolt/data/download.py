"""Downloads with a fixed checksum, retries and a progress line."""

from __future__ import annotations

import errno
import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from convolt import __version__
from convolt.data.files import atomic_file, download_folder, find, places_text
from convolt.errors import DataError, explain

CHUNK = 2**20
ATTEMPTS = 4
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@dataclass(frozen=True)
class Remote:
    """A file on the web: the name it has here, where it is, its SHA-256, and the most bytes that are accepted."""

    name: str
    url: str
    sha256: str
    max_bytes: int


class _DamagedTransferError(ConnectionError):
    """A transfer ended early or brought other bytes; worth another try."""


def fetch(remote: Remote) -> Path:
    """Returns the file of a data set: from `CONVOLT_DATA`, from the cache, or downloaded into the cache.

    Raises:
        DataError: there is no copy and it cannot be downloaded; the message says where to put one.
    """
    return find(remote.name) or download(remote, download_folder() / remote.name)


def download(remote: Remote, target: Path, *, attempts: int = ATTEMPTS, pause: float = PAUSE_SECONDS,
             timeout: float = TIMEOUT_SECONDS, stream: TextIO | None = None) -> Path:
    """Downloads a file to `target`, which appears only when it is whole and its SHA-256 is right.

    Args:
        remote: what to download.
        target: the file to make.
        attempts: tries altogether; the pause before each doubles.
        pause: seconds before the second try.
        timeout: seconds without a byte after which a try is given up.
        stream: where the progress line goes (standard error if None).

    Raises:
        DataError: no try succeeded, the server refused, the content is another, or the disk cannot be written.
    """
    if not remote.url.startswith(("https://", "http://")):
        raise DataError(explain(f"address of {remote.name}", remote.url, "an https:// or http:// address"))
    last: Exception | None = None
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _try_download(remote, target, timeout, _Progress(remote.name, stream or sys.stderr))
            return target
        except urllib.error.HTTPError as error:
            last = error
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                break
        except (OSError, http.client.HTTPException) as error:
            last = error
            if getattr(error, "errno", None) in _DISK_ERRORS:
                raise DataError(explain(f"writing {target}", str(error), "a folder with room that can be written",
                                        "Set CONVOLT_CACHE to such a folder.")) from error
    raise DataError(explain(
        f"data set file {remote.name}",
        f"no copy in {places_text()}, and {remote.url} could not be downloaded ({type(last).__name__}: {last})",
        "a copy in one of these places or a network connection",
        f"Download it elsewhere and put it at {target}, or set CONVOLT_DATA to the folder that holds {remote.name}.")) from last


def _try_download(remote: Remote, target: Path, timeout: float, progress: _Progress) -> None:
    request = urllib.request.Request(remote.url, headers={"User-Agent": f"convolt/{__version__}"})
    with urllib.request.urlopen(request, timeout=timeout) as response, atomic_file(target) as file:
        announced = int(response.headers.get("Content-Length") or 0)
        received, digest = 0, hashlib.sha256()
        while chunk := response.read(CHUNK):
            received += len(chunk)
            if received > remote.max_bytes:
                raise DataError(explain(remote.url, f"more than {remote.max_bytes:,} bytes", f"the file {remote.name}",
                                        "The address may show a login page or another file."))
            digest.update(chunk)
            file.write(chunk)
            progress.show(received, announced)
        progress.finish(received, announced)
        if announced and received != announced:
            raise _DamagedTransferError(f"the connection ended after {received:,} of {announced:,} bytes")
        if digest.hexdigest() != remote.sha256:
            raise _DamagedTransferError(f"SHA-256 is {digest.hexdigest()}, expected {remote.sha256}")


class _Progress:
    """One line that is drawn over on a terminal; one line per file elsewhere."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self.name, self.stream = name, stream
        self.on_terminal = stream.isatty()
        self.shown_at = self.started_at = time.monotonic()

    def show(self, received: int, total: int) -> None:
        now = time.monotonic()
        if self.on_terminal and now - self.shown_at > 0.25:
            self.shown_at = now
            self.stream.write(f"\r{self._text(received, total)}")
            self.stream.flush()

    def finish(self, received: int, total: int) -> None:
        start = "\r" if self.on_terminal else ""
        self.stream.write(f"{start}{self._text(received, total)}\n")
        self.stream.flush()

    def _text(self, received: int, total: int) -> str:
        seconds = max(time.monotonic() - self.started_at, 1e-3)
        share = f" of {total / 1e6:.1f}" if total else ""
        return f"Downloading {self.name}: {received / 1e6:.1f}{share} MB, {received / 1e6 / seconds:.1f} MB/s"
