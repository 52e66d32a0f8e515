"""Pictures that grow with the epochs: small ones teach coarse things at a fraction of the cost."""

from __future__ import annotations

from torch import Tensor

from convolt.data.augment.base import Transform, registry
from convolt.data.augment.draft import Draft
from convolt.data.augment.geometry import Resize
from convolt.errors import ArgumentError, explain


@registry.register()
class ProgressiveResizing(Transform):
    """Resizes pictures to sizes that grow from epoch to epoch, in `fit(augment=…)`; outside of it, to the last size.

    The size grows linearly over the first `epochs` epochs, in steps of `multiple`, and stays at `end` from then on. The model must take
    pictures of any size, so it ends in global pooling and begins with `Input((None, None, channels))` or without an `Input`.
    fastai counterpart: training the same learner again with larger pictures (Howard, 2018).

    Args:
        start: height and width in the first epoch.
        end: height and width in the end.
        epochs: number of the first epoch (from 1) with pictures of the full size.
        multiple: sizes between are multiples of it; 32 spares most networks rounding in their strides.
    """

    def __init__(self, start: int, end: int, epochs: int, multiple: int = 8) -> None:
        for name, value in (("start", start), ("end", end), ("epochs", epochs), ("multiple", multiple)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(explain(f"ProgressiveResizing({name})", repr(value), "a whole number from 1"))
        self.start, self.end, self.epochs, self.multiple = start, end, epochs, multiple

    def size(self, epoch: int) -> tuple[int, int]:
        """Returns height and width in an epoch, from 0."""
        if epoch + 1 >= self.epochs or self.epochs == 1:
            return self.end, self.end
        side = self.start + (self.end - self.start) * epoch / (self.epochs - 1)
        rounded = max(self.multiple, self.multiple * round(side / self.multiple)) if epoch else self.start
        return rounded, rounded

    def at(self, epoch: int) -> Resize:
        """Returns the resizing of an epoch."""
        return Resize(*self.size(epoch))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.end, self.end

    def add(self, draft: Draft, u: Tensor) -> None:
        Resize(self.end, self.end).add(draft, u)
