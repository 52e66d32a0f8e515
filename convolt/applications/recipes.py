"""How an architecture is trained best: the defaults of `convolt train` for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingRecipe:
    """Settings that belong to an architecture. Each can be overridden on the command line; what is not said there is as here.

    Attributes:
        epochs, batch_size, optimizer, learning_rate, schedule, label_smoothing, augment, precision: the options of `convolt train` of
            these names. A precision that the device has no units for is left out.
        optimizer_arguments: others of the optimizer, which hold while `optimizer` is that of the recipe.
        average_epochs: with this optimizer, the weights become the mean over those of so many last epochs (`optimizers.SWA`); 0: they stay.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    schedule: str
    label_smoothing: float = 0.0
    augment: str | None = None
    precision: str = "auto"
    optimizer_arguments: Mapping[str, Any] = field(default_factory=dict)
    average_epochs: float = 0.0

    def options(self) -> dict[str, Any]:
        """Returns the settings that are options of the command line, by name."""
        return {name: value for name, value in asdict(self).items() if name not in ("optimizer_arguments", "average_epochs")}
