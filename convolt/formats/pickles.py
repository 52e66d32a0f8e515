"""What a pickle would import, found without loading it: its opcodes are read, none is carried out."""

from __future__ import annotations

import pickletools
from io import BytesIO
from pathlib import Path

from convolt.formats.archive import member_starts
from convolt.formats.guard import ZIP_MAGIC, shorten

MAX_BYTES = 8 * 2**20
MAX_OPCODES = 1_000_000

TENSOR_GLOBALS = frozenset({
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict",
    "torch.Size", "torch.device", "numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct", "numpy.ndarray",
    "numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "_codecs.encode",
    *(f"torch.{kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")),
})
"""What pickles of plain tensors and arrays import; anything else is code of somebody."""


def globals_of(data: bytes) -> tuple[list[str], int]:
    """Returns (names that the pickles in `data` would import, how many whole pickles there are, one after another).

    A name that a pickle puts together while it runs is given as "?". PyTorch's old format has five pickles, then bytes of tensors.
    """
    found: dict[str, None] = {}
    stream, count = BytesIO(data[:MAX_BYTES]), 0
    while _one_pickle(stream, found):
        count += 1
    return list(found), count


def _one_pickle(stream: BytesIO, found: dict[str, None]) -> bool:
    """Adds the names of one pickle if it ends as pickles do, and returns whether it does."""
    names: dict[str, None] = {}
    pushed: list[str | None] = []  # the last values, as far as they are text
    memo: dict[int, str | None] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                return False
            name = opcode.name
            if name in ("GLOBAL", "INST"):
                names[_dotted(*str(argument).split(" ", 1))] = None
                pushed.append(None)
            elif name == "STACK_GLOBAL":
                names[_dotted(*(pushed[-2:] if len(pushed) > 1 else (None, None)))] = None
                pushed.append(None)
            elif name in ("EXT1", "EXT2", "EXT4"):
                names[f"the extension {argument}"] = None
            elif name == "MEMOIZE":
                memo[len(memo)] = pushed[-1] if pushed else None
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(argument)] = pushed[-1] if pushed else None  # type: ignore[arg-type]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                pushed.append(memo.get(int(argument)))  # type: ignore[arg-type]
            elif opcode.stack_after:
                pushed.append(argument if isinstance(argument, str) and "UNICODE" in name else None)
            del pushed[:-2]
    except Exception:  # the pickle ends early or is none: genops says so by ValueError and a dozen others
        found |= {name: None for name in names if not found}  # of the first pickle, what could be read is told all the same
        return False
    found |= names
    return True


def _dotted(module: str | None = None, name: str | None = None) -> str:
    return f"{shorten(module) if module else '?'}.{shorten(name) if name else '?'}"


def pickles_in(path: Path) -> list[bytes]:
    """Returns the start of each pickle in a file: the file itself, or the .pkl members of a PyTorch archive.

    Raises:
        ModelFileError: it is a damaged archive.
    """
    with open(path, "rb") as file:
        start = file.read(MAX_BYTES + 1)
    return member_starts(path, ".pkl", MAX_BYTES + 1) if start.startswith(ZIP_MAGIC) else [start]
