"""Whether a candidate of the search is right: its loss and gradients on a real batch, held against float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from convolt.compiler.host import release_freed_memory
from convolt.compiler.measure import Gradients, Probe

TOLERANCE = {torch.float32: (1e-5, 1e-3, 1e-2), torch.bfloat16: (2e-2, 0.5, 0.25)}
"""Relative errors of loss and gradients and the lean of a parameter against float64 that are always allowed, by the candidate's precision.

An error of half the gradient's length turns it by 30° at most. PyTorch's own autocast has 0.3 in a ResNet-18 at its start,
and parameters lean by 0.15; trainings in bfloat16 end within the spread of seeds all the same.
"""

OFF = 3e-6
"""By which share weights are moved to see how far gradients are when results are as far off as other orders of sums and tiles have them.

In a ResNet-18 at its start, on four seeds, 1e-6 moves the gradient by 3.4e-3 to 4.9e-3 of its length and 1e-5 by 1.0e-2 to 2.5e-2; the
plain form is off by 1.0e-3 to 4.1e-3, tiles by 1.6e-3 to 5.6e-3, and once by 1.3e-2, as few or many numbers were near zero.
"""

Errors = tuple[float, float, float]
"""Of the loss, of the gradients as one vector, the largest lean of a parameter (see `Gradients.errors`)."""


class Numerics:
    """What the candidates of one search are held against. Nothing is computed before `begin`.

    Args:
        probe: computes loss and gradients.
        model: as it is, layer by layer.

    Attributes:
        reference: in float64; None before `begin`.
        allowed: how far a candidate of the search's precision may be off.
    """

    def __init__(self, probe: Probe, model: nn.Module) -> None:
        self._probe, self._model = probe, model
        self._moved: Errors = (0.0, 0.0, 0.0)
        self.reference: Gradients | None = None
        self.allowed: Errors = (0.0, 0.0, 0.0)

    def begin(self, precision: torch.dtype) -> None:
        """Computes the reference; candidates may be off as far as twice the plain form is, or as the tolerance says.

        In a deep network rounding decides for a few numbers near zero whether ReLU lets them pass, and each of them moves the gradient by
        more than all other rounding. So the plain form is also tried with weights that are off as far as a fast kernel's results are.
        """
        if self.reference is not None:
            return
        release_freed_memory()
        self.reference = self._probe.reference()
        release_freed_memory()
        own = self.errors(self._model, precision)
        if precision == torch.float32:
            self._moved = self._probe.moved_gradients(precision, OFF).errors(self.reference)
        self.allow(own, precision)

    def errors(self, module: nn.Module, precision: torch.dtype) -> Errors:
        """Returns how far a candidate is off."""
        assert self.reference is not None
        return self._probe.gradients(module, precision).errors(self.reference)

    def allow(self, own: Errors, precision: torch.dtype) -> None:
        """Allows what follows from the errors of the plain form in a precision."""
        self.allowed = self.allowed_beside(own, precision)

    def allowed_beside(self, own: Errors, precision: torch.dtype) -> Errors:
        """Returns the errors that are allowed where those of the plain form in a precision are as given, and its gradients' when moved.

        What was moved says nothing about the loss and about a parameter's length, by which a kernel that is wrong is told.
        """
        loss, gradients, lean = TOLERANCE[precision]
        return max(loss, 2 * own[0]), max(gradients, 2 * own[1], 2 * self._moved[1]), max(lean, 2 * own[2])


def too_far(errors: Sequence[float], allowed: Sequence[float]) -> str:
    """Returns how far loss and gradients are off where that is more than allowed; "" where they are right."""
    if all(error <= most for error, most in zip(errors, allowed, strict=True)):
        return ""
    (loss, gradients, lean), most = errors, allowed
    return (f"loss off by {loss:.1e} (allowed {most[0]:.0e}), gradients by {gradients:.1e} (allowed {most[1]:.0e}), "
            f"one parameter's length by {lean:.1e} (allowed {most[2]:.0e})")
