"""What a model shows of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convolt.training.show import Grid


class Looking:
    """The part of `Model` that draws pictures."""

    class_names: list[str] | None

    def show_batch(self, x: Any, y: Any = None, **options: Any) -> Grid:
        """Draws a labelled grid of the pictures that `fit(x, y, …)` gives to this model; see `convolt.training.show.show_batch`.

        Args:
            x, y: as in `fit`.
            options: `augment`, `sampler`, `shuffle` and `seed` as in `fit`; `count`, `epoch`, `class_names`, `path`, `title`.

        Returns:
            A grid that notebooks show; `save(path)` writes it.
        """
        from convolt.training.show import show_batch

        if "class_names" not in options and self.class_names:
            options["class_names"] = self.class_names
        return show_batch(x, y, **options)
