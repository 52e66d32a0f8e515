"""How good a model is on a part of DATA, as numbers, sentences and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convolt.cli import say
from convolt.cli.parts import Part, class_numbers, label_sets, read
from convolt.cli.recipe import probabilities
from convolt.data.parts import Samples
from convolt.models import Model
from convolt.training.run import RunFolder

MOST_CONFUSED = 3
LEAST = 0.5
"""Probability from which a sample has a label, where it may have several."""


@dataclass(frozen=True)
class Result:
    """A model on a part of DATA.

    Attributes:
        part: which part.
        values: loss and metrics by name.
        shares: probabilities (N, classes); None where the labels are no classes.
        several: whether a sample may have several of the classes.
    """

    part: Part
    values: dict[str, Any]
    shares: np.ndarray | None
    several: bool = False

    @property
    def numbers(self) -> dict[str, float]:
        """The values that are single numbers."""
        return {name: float(value) for name, value in self.values.items() if np.ndim(value) == 0}

    def confusion(self) -> np.ndarray:
        """Returns counts (classes, classes): rows are true classes, columns predicted ones. Not for several labels each."""
        assert self.shares is not None and not self.several, "only for classes"
        classes = self.shares.shape[1]
        pairs = class_numbers(self.part.y).astype(np.int64) * classes + self.shares.argmax(axis=1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns which labels each sample has and which were found, both bool (N, classes)."""
        assert self.shares is not None and self.several, "only where a sample may have several labels"
        return self.part.y > 0, self.shares > LEAST


def measure(model: Model, part: Part, batch_size: int, *, classes: int, several: bool = False, verbose: str | int = 0) -> Result:
    """Returns loss and metrics of a compiled model on a part, as far as it can be read, and its probabilities if there are classes."""
    values = model.evaluate(*part.given, batch_size=batch_size, verbose=verbose, return_dict=True)
    shares = probabilities(model.predict(part.x, batch_size=batch_size, verbose=0), several) if classes else None
    return Result(part.readable(), values, shares, several)


def sentence(result: Result) -> str:
    """Returns "accuracy 99.12%, loss 0.0281 on the test set (10,000 samples)"."""
    values = result.numbers
    words = [f"{name} {say.percent(value) if name.endswith('accuracy') else f'{value:.4f}'}" for name, value in values.items()]
    words.sort(key=lambda text: "accuracy" not in text)
    if result.several:
        truth, found = result.labels()
        words.insert(1, f"all labels right {say.percent((truth == found).all(axis=1).mean())}")
    return f"{', '.join(words)} on {result.part.name} ({say.plural(len(result.part), 'sample')})"


def confusions(result: Result, class_names: Sequence[str]) -> str:
    """Returns the most frequent mistakes as words: "4 taken for 9 (11 times), …"; empty if there are none, or several labels."""
    if result.shares is None or result.several:
        return ""
    counts = result.confusion()
    np.fill_diagonal(counts, 0)
    order = np.argsort(counts, axis=None, kind="stable")[::-1][:MOST_CONFUSED]
    pairs = [np.unravel_index(i, counts.shape) for i in order]
    times = [(class_names[t], class_names[p], int(counts[t, p])) for t, p in pairs if counts[t, p]]
    return ", ".join(f"{truth} taken for {guess} ({count} time{'' if count == 1 else 's'})" for truth, guess, count in times)


def draw(folder: RunFolder, result: Result, class_names: Sequence[str]) -> list[str]:
    """Writes `confusion.png` (not of several labels) and, for pictures, `predictions.png`; returns the names of the files."""
    if result.shares is None:
        return []
    written = [] if result.several else [folder.write_confusion(result.confusion(), class_names).name]
    if len(result.part.x.shape) == 4:
        if result.several:
            (truth, guesses), names = label_sets(result.labels(), class_names)
            sure = np.where(result.shares > LEAST, result.shares, 1 - result.shares).min(axis=1)
        else:
            truth, guesses, names, sure = class_numbers(result.part.y), result.shares.argmax(axis=1), list(class_names), result.shares
        written.append(folder.write_predictions(_Readable(result.part.x), truth, guesses, sure, names).name)
    return written


class _Readable:
    """Samples one by one: of pictures that are not in memory, those alone are decoded that are looked at."""

    def __init__(self, x: Samples) -> None:
        self._x = x

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, row: int) -> np.ndarray:
        sample: np.ndarray = read(self._x, np.array([row]))[0][0]
        return sample
