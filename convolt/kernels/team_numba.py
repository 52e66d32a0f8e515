"""A kernel's call on all of OpenMP's threads at once, without Python between them.

Threads that take turns at Python's lock cost some fifty microseconds a call, more than many a kernel takes. So the loop over
the parts is compiled together with the kernel, and OpenMP's threads run it as they run PyTorch's own ops.
"""

from __future__ import annotations

import types as python_types
from collections.abc import Callable, Collection
from typing import Any, cast

import numba
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils, compiler
from numba.core.registry import cpu_target
from numba.core.typing.templates import signature as typing_signature

_INT, _BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
_NEXT, _PARTS, _FIRST, _COUNT, _FAILED, _ARGUMENTS = range(6)

intrinsic = cast(Callable[[Callable[..., Any]], Callable[..., Any]], extending.intrinsic)


def compiled(function: Callable[..., Any], options: dict[str, Any], fastmath: Collection[str]) -> Callable[..., int]:
    """Returns `call(openmp, threads, parts, first, last, arguments)`, which runs a kernel on parts of a range.

    Args:
        function: a kernel that works on rows first … last - 1 and returns nothing.
        options: of `numba.njit`; the name under which Numba caches the result is the kernel's.
        fastmath: LLVM's flags of liberties in the kernel.

    `openmp` is the address of `GOMP_parallel`, which is given so many threads; with 0 the calling thread does all parts. The
    result is 0, or the code of an exception, of which a kernel has but one: memory that it works in could not be had.
    """
    launch = _launcher(function, fastmath)
    code = _template.__code__.replace(co_filename=function.__code__.co_filename, co_name=function.__name__)
    entry = python_types.FunctionType(code, {"launch": launch, "__name__": function.__module__}, function.__name__)
    inside = (cell.cell_contents for cell in function.__closure__ or ())  # Numba's cache would see these in the kernel itself only
    settings = "".join(f"_{value}" for value in inside if isinstance(value, (bool, int, float, str)))
    entry.__qualname__, entry.__module__ = f"{function.__qualname__}{settings}_rows", function.__module__
    result: Callable[..., int] = numba.njit(entry, **options)
    return result


def _template(openmp: Any, threads: Any, parts: Any, first: Any, last: Any, arguments: Any) -> Any:
    return launch(openmp, threads, parts, first, last, arguments)  # type: ignore[name-defined]  # noqa: F821


def _launcher(function: Callable[..., Any], fastmath: Collection[str]) -> Callable[..., Any]:
    """Returns the intrinsic that does what `compiled` says."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        openmp, threads, parts, first, last, arguments = values
        kinds = (*signature.args[5].types, types.intp, types.intp)
        flags = cpu_target.options.parse_as_flags(compiler.Flags(), {"error_model": "numpy", "nogil": True, "fastmath": set(fastmath)})
        flags.nrt = True
        kernel = context.compile_subroutine(builder, function, typing_signature(types.none, *kinds), flags=flags)
        data = cgutils.alloca_once(builder, ir.LiteralStructType([_INT] * _ARGUMENTS + [arguments.type]))
        zero = ir.Constant(_INT, 0)
        for field, value in enumerate((zero, parts, first, builder.sub(last, first), zero, arguments)):
            builder.store(value, cgutils.gep_inbounds(builder, data, 0, field))
        task, given = _task(context, builder, kernel, data.type), builder.bitcast(data, _BYTES)
        with builder.if_else(builder.icmp_signed("==", openmp, zero)) as (alone, together):
            with alone:
                builder.call(task, [given])
            with together:
                kind = ir.FunctionType(ir.VoidType(), [task.type, _BYTES, ir.IntType(32), ir.IntType(32)])
                parallel = builder.inttoptr(openmp, kind.as_pointer())
                builder.call(parallel, [task, given, builder.trunc(threads, ir.IntType(32)), ir.Constant(ir.IntType(32), 0)])
        return builder.load(cgutils.gep_inbounds(builder, data, 0, _FAILED))

    @intrinsic
    def launch(typing: Any, openmp: Any, threads: Any, parts: Any, first: Any, last: Any, arguments: Any) -> Any:
        return types.intp(types.intp, types.intp, types.intp, types.intp, types.intp, arguments), codegen

    return launch


def _task(context: Any, builder: Any, kernel: Any, data: Any) -> Any:
    """Returns the function that each thread runs: it takes part after part until none is left."""
    task = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [_BYTES]), name=f"{builder.function.name}.task")
    task.linkage = "internal"
    inside = ir.IRBuilder(task.append_basic_block("entry"))
    shared = inside.bitcast(task.args[0], data)
    parts, first, count, arguments = (inside.load(cgutils.gep_inbounds(inside, shared, 0, i)) for i in (_PARTS, _FIRST, _COUNT, _ARGUMENTS))
    given = [inside.extract_value(arguments, i) for i in range(len(kernel.signature.args) - 2)]
    loop, work, failed, end = (task.append_basic_block(name) for name in ("loop", "work", "failed", "end"))
    inside.branch(loop)
    inside.position_at_end(loop)
    part = inside.atomic_rmw("add", cgutils.gep_inbounds(inside, shared, 0, _NEXT), ir.Constant(_INT, 1), "monotonic")
    inside.cbranch(inside.icmp_signed("<", part, parts), work, end)
    inside.position_at_end(work)
    after = inside.add(part, ir.Constant(_INT, 1))
    begin, stop = (inside.add(first, inside.sdiv(inside.mul(count, number), parts)) for number in (part, after))
    status, _ = context.call_internal_no_propagate(inside, kernel.fndesc, kernel.signature, [*given, begin, stop])
    inside.cbranch(status.is_error, failed, loop)
    inside.position_at_end(failed)
    inside.store(inside.sext(status.code, _INT), cgutils.gep_inbounds(inside, shared, 0, _FAILED))
    inside.branch(loop)
    inside.position_at_end(end)
    inside.ret_void()
    return task
