"""The recipe of an architecture as the defaults of `convolt train`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from convolt import applications, devices
from convolt.applications.recipes import TrainingRecipe
from convolt.cli.options import Precision

NONE = "none"
"""What `--augment` is where the recipe augments and the user does not want it."""


def recipe_of(model: str) -> TrainingRecipe | None:
    """Returns the recipe of MODEL, if it is a built-in architecture that has one."""
    return applications.get(model).recipe if model in applications.names() else None


def with_recipe(given: Mapping[str, Any], said: Collection[str]) -> dict[str, Any]:
    """Returns the options with those of the recipe in place of what the user did not say.

    Args:
        given: all options by name.
        said: names of those that the user gave.

    A rate belongs to its optimizer: with another optimizer than the recipe's, that one's own holds.
    """
    recipe = recipe_of(given["model"])
    found = dict(given)
    if recipe is not None:
        found |= {name: value for name, value in _options(recipe, str(given["device"])).items() if name not in said}
        if found["optimizer"] != recipe.optimizer and "learning_rate" not in said:
            found["learning_rate"] = None
    return found | ({"augment": None} if found["augment"] == NONE else {})


def recipe_text(options: Any) -> str | None:
    """Returns whose recipe is followed and where it is not, for the plan; None where there is none."""
    recipe = recipe_of(options.model)
    if recipe is None:
        return None
    others = [name.replace("_", " ") for name, value in _options(recipe, options.device).items() if getattr(options, name) != value]
    return f"that of {options.model}{', but for ' + ', '.join(others) if others else ''}"


def _options(recipe: TrainingRecipe, device: str) -> dict[str, Any]:
    """Returns the recipe's options, with a precision that the device is made for."""
    found = recipe.options() | {"precision": Precision(recipe.precision)}
    if found["precision"] is Precision.BFLOAT16 and devices.why_not_bfloat16(devices.resolve(device)):
        found["precision"] = Precision.AUTO
    return found
