"""Which parameters an optimizer's weight decay applies to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from convolt.errors import StateError, explain


class DecaysWeights:
    """Gives an optimizer the choice of parameters that decay."""

    name: str
    weight_decay: Any
    _parameters: dict[str, nn.Parameter]
    _excluded_objects: set[int]
    _excluded_names: set[str]
    _excluded_pattern: re.Pattern[str] | None

    def decay_of(self, name: str, parameter: nn.Parameter) -> float | None:
        """Returns the weight decay of a parameter that is not left out."""
        return self.weight_decay  # type: ignore[no-any-return]

    def exclude_from_weight_decay(self, var_list: Iterable[Tensor] = (), var_names: Iterable[str] = ()) -> None:
        """Leaves parameters out of weight decay: these, and those in whose name one of the patterns is found.

        Keras counterpart: the method of this name. Call it before `fit`.
        """
        if self._parameters:
            raise StateError(explain(f"{self.name}.exclude_from_weight_decay", "a bound optimizer", "a call before training"))
        patterns = list(var_names)
        self._excluded_objects = {id(v) for v in var_list}
        self._excluded_pattern = re.compile("|".join(patterns)) if patterns else None

    def may_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to a parameter: it has two axes or more and is not excluded."""
        if parameter.ndim <= 1 or name in self._excluded_names or id(parameter) in self._excluded_objects:
            return False
        return self._excluded_pattern is None or not self._excluded_pattern.search(name)
