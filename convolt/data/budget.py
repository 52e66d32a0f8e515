"""How much memory decoded pictures may take on the host."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from convolt.errors import ArgumentError, explain

VARIABLE = "CONVOLT_DATA_MEMORY"
SHARE = 0.5
"""Part of what is free that decoded pictures may take, where the variable does not say how much."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_UNKNOWN = 4 * 2**30
_NO_LIMIT = 2**60


def data_memory() -> int:
    """Returns the bytes that decoded pictures may take: `CONVOLT_DATA_MEMORY`, such as "8GB", else half of what is free.

    What is free is the least of the system's available memory, and of what the limits of the container (cgroup) and of the process
    (`ulimit -v`, `ulimit -d`) leave.

    Raises:
        ArgumentError: the variable is not a size.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if text:
        return parse_bytes(text, f"environment variable {VARIABLE}")
    return int(SHARE * free_memory())


def parse_bytes(text: str, thing: str) -> int:
    """Returns the number of bytes in "300MB", "8 GB" or "1000000"; a kilobyte has 1,024.

    Raises:
        ArgumentError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None or float(match[1]) * _UNITS[match[2]] < 1:
        raise ArgumentError(explain(thing, repr(text), "a size in bytes", "Write 500MB or 8GB."))
    return int(float(match[1]) * _UNITS[match[2]])


def free_memory() -> int:
    """Returns the bytes that this process may still take, as far as the system tells."""
    found = [value for value in (_available(), _left_in_group(), *_left_in_process()) if value is not None]
    return max(0, min(found, default=_UNKNOWN))


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_group() -> int | None:
    """Returns what the control group of the process leaves: of version 2, or of version 1."""
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            return int((root / limit).read_text(encoding="ascii")) - int((root / used).read_text(encoding="ascii"))
    return None


def _left_in_process() -> list[int]:
    try:
        import resource

        sizes = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except (ImportError, OSError):  # Windows has neither, macOS not the latter
        return []
    page = resource.getpagesize()
    limits = ((resource.RLIMIT_AS, int(sizes[0])), (resource.RLIMIT_DATA, int(sizes[5])))
    return [limit - used * page for kind, used in limits if 0 <= (limit := resource.getrlimit(kind)[0]) < _NO_LIMIT]
