"""Which weights an optimizer trains, when that changes between two trainings of one model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def forget_other_weights(optimizer: Any, model: nn.Module, trained: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Lets an optimizer begin anew where layers of its model were frozen or unfrozen since; its settings stay.

    An optimizer that trains another model is left alone: `bind` then says what is wrong.
    """
    before = {id(parameter) for parameter in optimizer._parameters.values()}
    if before and before != {id(parameter) for _, parameter in trained} and before <= {id(p) for p in model.parameters()}:
        optimizer.restart()


def use(trainer: Any, optimizer: Any) -> None:
    """Lets a trainer train with this optimizer from now on, which begins anew."""
    optimizer.restart()
    trainer.optimizer, trainer._step, trainer._bound = optimizer, None, []
