"""Layers that learn from data before the first step, not from gradients: `fit` shows them what comes into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from convolt.data.batches import Batch
from convolt.errors import DataError, explain

ENOUGH = 5000
"""Samples that a layer is shown; more change its statistics little."""


def adapt_layers(model: Any, step: Any, data: Any) -> list[str]:
    """Calls `adapt` of the layers that want data and have had none, one after the other in the order of the model.

    Args:
        model: built, on its device.
        step: of its training; makes inputs of batches.
        data: with `epoch(number)`, which gives the batches, and perhaps `repeatable`.

    Returns:
        The names of the layers that have learned.

    Raises:
        DataError: the data cannot be read twice.
    """
    waiting = {name: module for name, module in model.named_modules() if getattr(module, "wants_data", False)}
    for name, layer in waiting.items():
        if not getattr(data, "repeatable", True):
            raise DataError(explain(f"fit with {name}", "data that can be read only once", "data that can be read again",
                                    f"Show the layer pictures first: model.get_layer({name!r}).adapt(pictures)."))
        layer.adapt(_inputs_of(layer, model, step, data.epoch(0)))
    return list(waiting)


def _inputs_of(layer: nn.Module, model: Any, step: Any, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Yields what comes into a layer, for the first samples, in inference mode."""
    seen: list[Tensor] = []
    modes = {module: module.training for module in model.modules()}
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    count = 0
    try:
        for batch in batches:
            for piece in step.room.pieces(batch.ready()):
                model.eval()
                with torch.no_grad():
                    model(*step.inputs(piece))
                while seen:
                    found = seen.pop()
                    count += len(found)
                    yield found
            if count >= ENOUGH:
                break
    finally:
        hook.remove()
        for module, training in modes.items():
            module.training = training
