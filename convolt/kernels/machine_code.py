"""Object files of kernels, loaded without LLVM: its code for a process of its own is moved to memory and told the addresses it needs.

Such code reaches everything by 64-bit addresses (LLVM's large code model), so that loading takes two kinds of relocation.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
from typing import NamedTuple

_HEADER, _SECTION = struct.Struct("<16xHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")
_SYMBOL, _RELOCATION, _WORD = struct.Struct("<IBBHQQ"), struct.Struct("<QQq"), struct.Struct("<Q")
_SYMBOLS, _RELOCATIONS, _NO_BITS, _UNWIND = 2, 4, 8, 0x70000001  # types of sections
_WRITTEN, _LOADED = 1, 2  # flags of sections
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2  # in place of a section's number
_ADDRESS, _DISTANCE = 1, 24  # R_X86_64_64, R_X86_64_PC64
_EXECUTABLE = mmap.PROT_READ | mmap.PROT_EXEC if sys.platform != "win32" else 0


class CannotLoadError(Exception):
    """The file has something that this loader does not know; LLVM can load it."""


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int
    size: int


def loads_here() -> bool:
    """Whether this loader is for this system."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 2**32


def load(name: str, code: bytes) -> tuple[int, object]:
    """Returns the address of a function in an object file, and the memory that has to be kept.

    Raises:
        CannotLoadError: the file needs more than this loader can do.
    """
    sections, symbols = _read(code)
    places, constant, size = _laid_out(sections, symbols)
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for number, place in places.items():
        if number >= 0 and sections[number].type != _NO_BITS:
            section = sections[number]
            memory[place : place + section.size] = code[section.offset : section.offset + section.size]

    def address(index: int) -> int:
        symbol = symbols[index]
        if symbol.section == _UNDEFINED:
            return _outside(symbol.name)
        if symbol.section == _ABSOLUTE:
            return symbol.value
        place = places.get(-1 - index if symbol.section == _COMMON else symbol.section)
        if place is None:
            raise CannotLoadError(f"{symbol.name} lies in a section that is not loaded")
        return base + place + (0 if symbol.section == _COMMON else symbol.value)

    for section in sections:
        if section.type == _RELOCATIONS and section.info in places:
            for at, what, more in _RELOCATION.iter_unpack(code[section.offset : section.offset + section.size]):
                place, kind = places[section.info] + at, what & 0xFFFFFFFF
                if kind not in (_ADDRESS, _DISTANCE):
                    raise CannotLoadError(f"relocation of type {kind}")
                value = address(what >> 32) + more - (base + place if kind == _DISTANCE else 0)
                _WORD.pack_into(memory, place, value % 2**64)
    found = next((i for i, symbol in enumerate(symbols) if symbol.name == name and symbol.section != _UNDEFINED), None)
    if found is None:
        raise CannotLoadError(f"no function {name}")
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(base), ctypes.c_size_t(constant), _EXECUTABLE):
        raise CannotLoadError(f"no executable memory (errno {ctypes.get_errno()})")
    return address(found), memory


def _read(code: bytes) -> tuple[list[_Section], list[_Symbol]]:
    header = _HEADER.unpack_from(code)
    start, size, count = header[5], header[10], header[11]
    if code[:6] != b"\x7fELF\x02\x01" or size != _SECTION.size:
        raise CannotLoadError("not an ELF file of 64 bits")
    sections = [_Section(*_SECTION.unpack_from(code, start + i * size)) for i in range(count)]
    symbols = []
    for section in sections:
        if section.type == _SYMBOLS:
            names = sections[section.link].offset
            for name, _, _, number, value, length in _SYMBOL.iter_unpack(code[section.offset : section.offset + section.size]):
                symbols.append(_Symbol(code[names + name : code.index(b"\0", names + name)].decode(), number, value, length))
    return sections, symbols


def _laid_out(sections: list[_Section], symbols: list[_Symbol]) -> tuple[dict[int, int], int, int]:
    """Returns where each loaded section lies, and, under -1 - number, each symbol without one; the bytes never written, and all."""
    places: dict[int, int] = {}
    size = constant = 0
    for written in (False, True):
        for number, section in enumerate(sections):
            if section.flags & _LOADED and section.type != _UNWIND and bool(section.flags & _WRITTEN) is written:
                places[number] = size = _aligned(size, section.align)
                size += section.size
        if not written:
            constant = size = _aligned(size, mmap.PAGESIZE)
    for number, symbol in enumerate(symbols):
        if symbol.section == _COMMON:
            places[-1 - number] = size = _aligned(size, symbol.value)
            size += symbol.size
    return places, constant, size


def _aligned(size: int, align: int) -> int:
    return -(-size // max(1, align)) * max(1, align)


def _outside(name: str) -> int:
    """Returns the address of a function of the C library."""
    for library in (None, "libm.so.6"):
        try:
            return ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value or 0
        except (AttributeError, OSError):
            continue
    raise CannotLoadError(f"{name} is not in the C library")
