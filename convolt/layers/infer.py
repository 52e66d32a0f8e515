"""Output shapes of any module, found by running it on PyTorch's meta device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from convolt.errors import ConvoltError, StateError, explain
from convolt.layout import Shape, outside_shape, to_inside
from convolt.modes import evaluating


def infer_output_shape(module: nn.Module, input_shapes: Iterable[Any]) -> Any:
    """Returns the output shape of any module by running it on the meta device, where nothing is computed.

    Unknown axes are run with two sizes; those whose output size differs are unknown in the result.

    Raises:
        StateError: the module's code cannot run without values.
    """
    shapes = list(input_shapes)
    try:
        small, large = (_run_on_meta(module, shapes, unknown) for unknown in (64, 128))
    except ConvoltError:
        raise
    except Exception as error:  # whatever a user's code raises on tensors without values
        name = getattr(module, "name", type(module).__name__)
        raise StateError(explain(f"output shape of {name!r}", f"a forward that cannot run without values ({error})",
                                 "a forward of tensors alone", "Define compute_output_shape(self, input_shape) in this layer.")) from error

    def unify(a: Tensor, b: Tensor) -> Shape:
        return tuple(s if s == t else None for s, t in zip(outside_shape(a), outside_shape(b), strict=True))

    if isinstance(small, Tensor):
        return unify(small, large)
    return [unify(a, b) for a, b in zip(small, large, strict=True)]


def _run_on_meta(module: nn.Module, shapes: list[Any], unknown: int) -> Any:
    def is_shape(value: Any) -> bool:
        return isinstance(value, tuple) and all(s is None or isinstance(s, int) for s in value)

    def enter(value: Any) -> Any:
        if is_shape(value):
            return to_inside(torch.empty([unknown if s is None else s for s in value], device="meta"))
        return [enter(v) for v in value] if isinstance(value, list) else value

    state = {name: t.detach().to("meta") for name, t in [*module.named_parameters(), *module.named_buffers()]}
    with evaluating(module), torch.no_grad():
        return torch.func.functional_call(module, state, tuple(enter(v) for v in shapes))
