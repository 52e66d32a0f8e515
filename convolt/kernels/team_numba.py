"""A kernel as machine code with one way to call it: the address of a function that takes a block of 64-bit numbers.

The block holds the address of `GOMP_parallel` (or 0), the number of threads, the number of parts, the first row and the one after the
last, then the kernel's arguments, an array as its address and sizes, a tuple as its members. The result is 0, or the code of an
exception, of which a kernel has but one: memory that it works in could not be had.

Threads that take turns at Python's lock cost some fifty microseconds a call, more than many a kernel takes. So the loop over the
parts is compiled together with the kernel, and OpenMP's threads run it as they run PyTorch's own ops. Nothing in the code needs
Python or Numba's runtime: memory comes from `malloc`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import binding, ir
from numba import _dynfunc, from_dtype  # type: ignore[attr-defined]
from numba.core import cgutils, codegen, compiler, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.np import arrayobj

from convolt.kernels import jit

F = TypeVar("F", bound=Callable[..., Any])
_locked = cast(Callable[[F], F], global_compiler_lock)
_INT, _NARROW, _VOID = ir.IntType(64), ir.IntType(32), ir.VoidType()
_BYTES, _BLOCK = ir.IntType(8).as_pointer(), ir.IntType(64).as_pointer()
LINE = 64
"""Bytes of a cache line: a vector that lies in two of them takes twice as long to load."""
_OPENMP, _THREADS, _PARTS, _FIRST, _LAST, HEADER = range(6)
_NEXT, _FAILED, _GIVEN = range(3)
_MEMORY = (_INT, _BYTES, _BYTES, _BYTES, _INT, _BYTES)  # Numba's record: references, what frees it, for that, address, size, allocator
_SCALARS = {"i": types.intp, "b": types.boolean, "f": types.float32, "d": types.float64}


@_locked
def object_code(name: str, function: Callable[..., Any], kinds: Sequence[Any], rows: bool, fastmath: Collection[str]) -> bytes:
    """Returns an object file in which `name` is the kernel's function.

    Args:
        name: of the function in the file.
        function: the kernel. It returns nothing.
        kinds: of its arguments, as `compiled.kinds_and_values` gives them, without rows.
        rows: whether it takes two more arguments and works on rows first … last - 1, so that it can be called on parts of them.
        fastmath: LLVM's flags of liberties in the kernel.
    """
    jit.tell_numba()
    options = {"nopython": True, "error_model": "numpy", "nogil": True, "fastmath": set(fastmath)}
    flags = cpu_target.options.parse_as_flags(compiler.Flags(), options)
    flags.nrt = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    given = [_type_of(kind) for kind in kinds]
    typing, context = cpu_target.typing_context, cpu_target.target_context
    typing.refresh()
    context.refresh()
    with _parts_left_as_they_are(context):
        made = compiler.compile_extra(typing, context, function, (*given, types.intp, types.intp) if rows else tuple(given), types.none,
                                      flags, {})
    library = context.codegen().create_library(name)
    library.enable_object_caching()
    module = library.create_ir_module(name)
    _define_memory(module)
    entry = ir.Function(module, ir.FunctionType(_INT, [_BLOCK]), name=name)
    callee = ir.Function(module, context.call_conv.get_function_type(made.fndesc.restype, made.fndesc.argtypes),
                         name=made.fndesc.llvm_func_name)
    (_in_parts if rows else _at_once)(context, entry, callee, made.fndesc, given)
    library.add_ir_module(module)
    library.add_linking_library(made.library)
    library.finalize()
    if needed := [f.name for f in library._final_module.functions if f.is_declaration and f.name.startswith(("NRT_", "numba_"))]:
        raise TypeError(f"kernel {function.__name__}: {', '.join(needed)} is in Numba's runtime, which kernels do without (no lists)")
    return bytes(library._get_compiled_object())


class _Part(codegen.JITCodeLibrary):
    """A function that becomes part of a kernel: it is optimized and made machine code with the kernel, not before as well."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._verify_declare_only_symbols()  # type: ignore[no-untyped-call]
        self._finalized = True


@contextmanager
def _parts_left_as_they_are(context: Any) -> Iterator[None]:
    """Numba makes machine code of each function that a kernel calls, with all that this one calls: half of the time of a compilation."""
    maker = context.codegen()
    before = maker._library_class, context.get_executable
    maker._library_class, context.get_executable = _Part, _never_called
    try:
        yield
    finally:
        maker._library_class, context.get_executable = before


def _never_called(library: Any, fndesc: Any, env: Any) -> Any:
    """Returns what Numba knows a part by: a function that Python could call, if there were machine code for it."""
    return _dynfunc.make_function(fndesc.lookup_module(), fndesc.qualname, "", 0, env, (library,))


@_locked
def load(name: str, code: bytes) -> tuple[int, Any]:
    """Returns the address of a function in an object file that LLVM loads, and what has to be kept meanwhile."""
    nothing = binding.parse_assembly("").as_bitcode()
    library = cpu_target.target_context.codegen().unserialize_library((name, "object", (code, nothing)))
    address = library.codegen._engine.get_function_address(name)
    if not address:
        raise RuntimeError(f"LLVM finds no function {name} in its machine code")
    return address, library


def _type_of(kind: Any) -> Any:
    if not isinstance(kind, str):
        return types.BaseTuple.from_types([_type_of(part) for part in kind])
    if kind in _SCALARS:
        return _SCALARS[kind]
    dtype, axes = kind.split("/")
    return types.Array(from_dtype(np.dtype(dtype)), int(axes), "C")


def _word(builder: Any, block: Any, at: int) -> Any:
    return builder.load(builder.gep(block, [ir.Constant(_INT, at)]))


def _unpacked(context: Any, builder: Any, kinds: Any, words: Iterator[Any]) -> list[Any]:
    """Returns arguments of such types from the words of a block."""
    found = []
    for kind in kinds:
        if isinstance(kind, types.BaseTuple):
            found.append(context.make_tuple(builder, kind, _unpacked(context, builder, kind, words)))
        elif isinstance(kind, types.Array):
            array, data = context.make_array(kind)(context, builder), next(words)
            shape = [next(words) for _ in range(kind.ndim)]
            element = context.get_data_type(kind.dtype)
            size = ir.Constant(_INT, context.get_abi_sizeof(element))
            strides = [size]
            for length in reversed(shape[1:]):
                strides.insert(0, builder.mul(strides[0], length))
            arrayobj.populate_array(array, builder.inttoptr(data, element.as_pointer()), shape, strides, size, None)
            found.append(array._getvalue())
        elif kind == types.float64:
            found.append(builder.bitcast(next(words), ir.DoubleType()))
        elif kind == types.float32:
            found.append(builder.bitcast(builder.trunc(next(words), _NARROW), ir.FloatType()))
        else:
            found.append(next(words) if kind == types.intp else builder.trunc(next(words), ir.IntType(1)))
    return found


def _arguments(context: Any, builder: Any, block: Any, kinds: Sequence[Any]) -> list[Any]:
    return _unpacked(context, builder, kinds, (_word(builder, block, HEADER + i) for i in range(1 << 16)))


def _call(context: Any, builder: Any, callee: Any, description: Any, arguments: Sequence[Any]) -> Any:
    """Calls the kernel; returns its status."""
    return context.call_conv.call_function(builder, callee, description.restype, description.argtypes, arguments)[0]


def _at_once(context: Any, entry: Any, callee: Any, description: Any, kinds: Sequence[Any]) -> None:
    """Fills the entry of a kernel that does all in one call."""
    builder = ir.IRBuilder(entry.append_basic_block("entry"))
    status = _call(context, builder, callee, description, _arguments(context, builder, entry.args[0], kinds))
    builder.ret(builder.select(status.is_error, builder.sext(status.code, _INT), ir.Constant(_INT, 0)))


def _in_parts(context: Any, entry: Any, callee: Any, description: Any, kinds: Sequence[Any]) -> None:
    """Fills the entry of a kernel that works on rows: this thread, or all of OpenMP's, take part after part."""
    builder, block = ir.IRBuilder(entry.append_basic_block("entry")), entry.args[0]
    shared = cgutils.alloca_once(builder, ir.LiteralStructType([_INT, _INT, _BLOCK]))
    zero = ir.Constant(_INT, 0)
    for field, value in enumerate((zero, zero, block)):
        builder.store(value, cgutils.gep_inbounds(builder, shared, 0, field))
    task, given = _task(context, entry, callee, description, kinds, shared.type), builder.bitcast(shared, _BYTES)
    openmp = _word(builder, block, _OPENMP)
    with builder.if_else(builder.icmp_signed("==", openmp, zero)) as (alone, together):
        with alone:
            builder.call(task, [given])
        with together:
            parallel = builder.inttoptr(openmp, ir.FunctionType(_VOID, [task.type, _BYTES, _NARROW, _NARROW]).as_pointer())
            builder.call(parallel, [task, given, builder.trunc(_word(builder, block, _THREADS), _NARROW), ir.Constant(_NARROW, 0)])
    builder.ret(builder.load(cgutils.gep_inbounds(builder, shared, 0, _FAILED)))


def _task(context: Any, entry: Any, callee: Any, description: Any, kinds: Sequence[Any], data: Any) -> Any:
    """Returns the function that each thread runs: it takes part after part until none is left."""
    task = ir.Function(entry.module, ir.FunctionType(_VOID, [_BYTES]), name=f"{entry.name}.task")
    task.linkage = "internal"
    inside = ir.IRBuilder(task.append_basic_block("entry"))
    shared = inside.bitcast(task.args[0], data)
    block = inside.load(cgutils.gep_inbounds(inside, shared, 0, _GIVEN))
    parts, first, end = (_word(inside, block, i) for i in (_PARTS, _FIRST, _LAST))
    count, arguments = inside.sub(end, first), _arguments(context, inside, block, kinds)
    loop, work, failed, done = (task.append_basic_block(name) for name in ("loop", "work", "failed", "done"))
    inside.branch(loop)
    inside.position_at_end(loop)
    part = inside.atomic_rmw("add", cgutils.gep_inbounds(inside, shared, 0, _NEXT), ir.Constant(_INT, 1), "monotonic")
    inside.cbranch(inside.icmp_signed("<", part, parts), work, done)
    inside.position_at_end(work)
    after = inside.add(part, ir.Constant(_INT, 1))
    begin, stop = (inside.add(first, inside.sdiv(inside.mul(count, number), parts)) for number in (part, after))
    status = _call(context, inside, callee, description, [*arguments, begin, stop])
    inside.cbranch(status.is_error, failed, loop)
    inside.position_at_end(failed)
    inside.store(inside.sext(status.code, _INT), cgutils.gep_inbounds(inside, shared, 0, _FAILED))
    inside.branch(loop)
    inside.position_at_end(done)
    inside.ret_void()
    return task


def _define_memory(module: Any) -> None:
    """Defines how arrays inside of kernels get their memory and give it back, by the names that Numba's runtime has for it."""
    take = ir.Function(module, ir.FunctionType(_BYTES, [_INT]), name="malloc")
    give = ir.Function(module, ir.FunctionType(_VOID, [_BYTES]), name="free")
    for name, target in (("NRT_Allocate", take), ("NRT_Free", give), ("NRT_MemInfo_call_dtor", give)):
        builder, arguments = _defined(module, name, target.function_type)
        found = builder.call(target, arguments)
        builder.ret(found) if target is take else builder.ret_void()
    for name, kinds in (("NRT_MemInfo_alloc", [_INT]), ("NRT_MemInfo_alloc_aligned", [_INT, _NARROW])):
        builder, (size, *_) = _defined(module, name, ir.FunctionType(_BYTES, kinds))
        _allocate(builder, take, size)


def _defined(module: Any, name: str, kind: Any) -> tuple[Any, Any]:
    """Returns a builder for a new function, and its arguments."""
    function = ir.Function(module, kind, name=name)
    function.linkage = "weak"
    return ir.IRBuilder(function.append_basic_block("entry")), function.args


def _allocate(builder: Any, take: Any, size: Any) -> None:
    """Takes memory for Numba's record of an array and, from the beginning of a cache line on, the array; null where there is none."""
    record, nothing = 8 * len(_MEMORY), ir.Constant(_BYTES, None)
    place = builder.call(take, [builder.add(size, ir.Constant(_INT, record + LINE))])
    with builder.if_then(builder.icmp_unsigned("==", place, nothing)):
        builder.ret(place)
    behind = builder.add(builder.ptrtoint(place, _INT), ir.Constant(_INT, record + LINE - 1))
    data = builder.inttoptr(builder.and_(behind, ir.Constant(_INT, -LINE)), _BYTES)
    made = builder.bitcast(place, ir.LiteralStructType(_MEMORY).as_pointer())
    for field, value in enumerate((ir.Constant(_INT, 1), nothing, nothing, data, size, nothing)):
        builder.store(value, cgutils.gep_inbounds(builder, made, 0, field))
    builder.ret(place)
