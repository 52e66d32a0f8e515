"""The lock on a run folder: one training writes into it at a time.

The lock is the operating system's own on an open file, so that it ends with its process however that ends, and a stale
one cannot exist. What is written in the file only serves the message. A lock of this kind (`lockf`) is not inherited by
the workers of a loader, which may live a little longer than a killed training.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from convolt.errors import CheckpointError, explain

_BYTE = 1 << 30  # far behind the text, since Windows lets nobody read what is locked
_held: set[tuple[int, str]] = set()  # the system lets one process lock twice
_guard = threading.Lock()


class FolderLock:
    """The lock of a folder, held from `acquire` to `release`.

    Args:
        folder: which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._key = (os.getpid(), str(self.path.resolve()))
        self._handle: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            CheckpointError: another training has it; the message names its process and host.
        """
        with _guard:
            if self._key in _held:
                raise self._taken(f"another training of this process ({os.getpid()})")
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                got = f"a folder that cannot be written ({error.strerror})"
                raise CheckpointError(explain(f"run folder {str(self.path.parent)!r}", got, "one that can",
                                              "Choose another folder.")) from error
            try:
                _lock(handle)
            except OSError as error:
                holder = _holder(handle)
                os.close(handle)
                raise self._taken(holder) from error
            _held.add(self._key)
            self._handle = handle
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0) if hasattr(os, "pwrite") else os.write(handle, json.dumps(owner).encode())

    def release(self) -> None:
        """Gives the lock back; may be called twice."""
        with _guard:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
                _held.discard(self._key)

    def _taken(self, holder: str) -> CheckpointError:
        return CheckpointError(explain(f"run folder {str(self.path.parent)!r}", f"a folder in use by {holder}",
                                       "a folder of its own for each run", "Wait until that run has ended, or choose another folder."))


def is_locked(folder: Path) -> bool:
    """Whether a training is writing into the folder now."""
    lock = FolderLock(folder)
    if not lock.path.exists():
        return False
    try:
        lock.acquire()
    except CheckpointError:
        return True
    lock.release()
    return False


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _BYTE)


def _holder(handle: int) -> str:
    try:
        owner = json.loads(os.read(handle, 4096))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]} since {str(owner['since'])[:40]}"
    except (ValueError, TypeError, KeyError, OSError):
        return "another process"
