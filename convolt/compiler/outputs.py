"""Operations that can write their results into memory that is there: what PyTorch calls their `out` variants, and what is as good as one.

Most operations have a variant with `out=`, but only of some is that the same code with another place for its results. The others compute
as ever and copy; convolutions are among them.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from convolt.compiler.record import Call, Literal

aten = torch.ops.aten

_COPIES = frozenset({"clone", "_to_copy"})
_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})


class Writing(NamedTuple):
    """The call of an operation that writes into memory that is given.

    Attributes:
        function: of PyTorch's dispatcher.
        args, kwargs: as a `Call` has them, without the results.
        names: of the arguments for the results; () where there is one result, and it is the first argument.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    names: tuple[str, ...]


def writing(call: Call) -> Writing | None:
    """Returns how a call can write its results into memory that is given, with the same bits; None if it cannot."""
    if call.is_kernel or (call.kept and call.name != "native_batch_norm") or not call.made or None in call.made:
        return None
    if call.name in _COPIES:
        return Writing(aten.copy_.default, call.args[:1], (), ())
    if call.name in _ZEROS:
        return Writing(aten.zero_.default, (), (), ())
    if call.name == "relu":
        return Writing(aten.clamp_min.out, (*call.args, Literal(0, "int 0")), (), ("out",))
    found = _variant(call.function)
    if found is None or len(found[1]) != len(call.made):
        return None
    return Writing(found[0], call.args, call.kwargs, found[1])


@functools.cache
def _variant(function: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Returns an operation's variant that writes directly on a CPU, and the names of its arguments for results; None if there is none."""
    wanted = [(argument.name, str(argument.type)) for argument in function._schema.arguments]
    for overload in function.overloadpacket.overloads():
        other = getattr(function.overloadpacket, overload)
        results = tuple(argument.name for argument in other._schema.arguments if argument.is_out)
        given = [(argument.name, str(argument.type)) for argument in other._schema.arguments if not argument.is_out]
        name = f"{other._schema.name}.{overload}"
        if results and given == wanted and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
            return other, results
    return None
