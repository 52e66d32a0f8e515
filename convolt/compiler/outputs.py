"""Operations that can write their results into memory that is there: by their `out` variants, or by one that is as good.

That an operation has such a variant, even one with code of its own, does not make both the same: batch normalization's reads means
where its input is not dense, and a loss with a reduction takes the memory of its result for that of all samples. So there is a table of
those that are, each of which the tests hold against the operation itself, in memory that something else has filled. Convolutions are not
among them: their variants compute as ever, and copy.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from convolt.compiler.record import Call, Literal, Place

aten = torch.ops.aten

_COPIES = frozenset({"clone", "_to_copy"})
_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})
CHECKED = frozenset({
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "threshold_backward", "sigmoid", "sigmoid_backward", "tanh", "tanh_backward",
    "gelu", "gelu_backward", "silu", "silu_backward", "hardtanh", "hardtanh_backward", "mm", "addmm", "bmm", "baddbmm", "cat", "mean.dim",
    "_softmax", "_softmax_backward_data", "max_pool2d_with_indices", "max_pool2d_with_indices_backward", "avg_pool2d",
    "avg_pool2d_backward", "native_batch_norm",
})  # fmt: skip
"""Operations whose `out` variants give the same bits, with their overloads."""


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
    """Returns how a call can write its results, each into memory as large as it is, with the same bits; None if it cannot."""
    if call.is_kernel or not call.made or None in call.made:
        return None
    if call.name in _COPIES:
        return Writing(aten.copy_.default, call.args[:1], (), ())
    if call.name in _ZEROS:
        return Writing(aten.zero_.default, (), (), ())
    if call.name == "relu":  # which is computed by it
        return Writing(aten.clamp_min.out, (*call.args, Literal(0, "int 0")), (), ("out",))
    if _full_name(call.function) not in CHECKED or (call.name == "native_batch_norm" and not _is_dense(call.args[0])):
        return None
    found = _variant(call.function)
    if found is None or len(found[1]) != len(call.made):
        return None
    return Writing(found[0], call.args, call.kwargs, found[1])


def _full_name(function: Any) -> str:
    overload = function._overloadname
    return function._schema.name.removeprefix("aten::") + ("" if overload == "default" else f".{overload}")  # type: ignore[no-any-return]


def _is_dense(place: Place) -> bool:
    """Whether a tensor lies in memory in the order of its axes, or channels-last."""
    tensor = torch.empty_strided(place.shape, place.strides, device="meta")
    orders = {4: (torch.channels_last,), 5: (torch.channels_last_3d,)}.get(tensor.ndim, ())
    return any(tensor.is_contiguous(memory_format=order) for order in (torch.contiguous_format, *orders))


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
