"""Which samples an epoch draws, and in which order: `fit(sampler=…)`.

An order depends on (seed, epoch) alone. So it is the same on every device and after every restart, and several readers that
each take their part of it (`epoch_order`'s rank and ranks) see together what one would see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.data.batch_spec import BatchSpec
from convolt.data.batches import Order, epoch_generator, epoch_order
from convolt.errors import ArgumentError, ArgumentTypeError, DataError, explain
from convolt.training.augmenting import Augmenter
from convolt.training.checkpoint.settings import fingerprint

_DRAW = 7  # apart from the order without a sampler, which has the same seed and epoch


class Sampler:
    """Draws the samples of an epoch; a subclass defines `chances`.

    Args:
        samples: drawn in an epoch; None: as many as there are.
        replacement: whether a sample may come several times in an epoch. Without replacement the likelier samples come
            earlier, and each once: all of them, or `samples` of them.
    """

    def __init__(self, samples: int | None = None, replacement: bool = True) -> None:
        if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
            raise ArgumentError(explain(f"{type(self).__name__}(samples)", repr(samples), "a whole number from 1, or None"))
        self.samples, self.replacement = samples, bool(replacement)

    def settings(self) -> dict[str, Any]:
        """Returns what tells this sampler from others, for checkpoints."""
        return {"kind": type(self).__name__, **{name: fingerprint(value) for name, value in vars(self).items() if name[0] != "_"}}

    def chances(self, labels: Tensor | None, count: int) -> Tensor:
        """Returns the chance of each sample, not negative, float64 `(count,)`; their sum is of no account.

        Args:
            labels: of the samples, axis 0 along them; None where there are none.
            count: number of samples.
        """
        raise NotImplementedError

    def order(self, labels: Tensor | None, count: int, seed: int, rank: int = 0, ranks: int = 1) -> Order:
        """Returns what gives the rows of each epoch, int64 on the CPU.

        Args:
            labels, count: see `chances`.
            seed: of the order.
            rank, ranks: which of several readers asks; each gets every `ranks`-th draw.

        Raises:
            DataError: no sample has a chance, or too few have.
        """
        chances = self.chances(labels, count).double().cpu()
        possible = int((chances > 0).sum())
        drawn = self.samples or (count if self.replacement else possible)
        what = type(self).__name__
        if len(chances) != count:
            raise DataError(explain(what, f"{len(chances)} chances", f"{count}, one for each sample"))
        if not possible or (not self.replacement and drawn > possible):
            raise DataError(explain(what, f"{possible} samples that have a chance", f"at least {1 if self.replacement else drawn}",
                                    "" if self.replacement else "replacement=True draws samples several times."))

        def draw(epoch: int) -> Tensor:
            generator = epoch_generator(seed + _DRAW, epoch)
            noise = torch.rand(drawn if self.replacement else count, dtype=torch.float64, generator=generator)
            if self.replacement:
                rows = torch.searchsorted(chances.cumsum(0), noise * chances.sum(), right=True)
                rows = rows.clamp_(max=int(chances.nonzero()[-1]))  # where rounding puts a draw behind the last sample
            else:
                rows = torch.sort(noise.log() / chances, descending=True, stable=True).indices[:drawn]  # Efraimidis & Spirakis, 2006
            return rows[rank::ranks]

        return draw


class Balanced(Sampler):
    """Draws from all classes alike, however many samples each has.

    Args:
        samples: drawn in an epoch; None: as many as there are.
        power: 1 gives each class the same chance, 0 each sample; 0.5 lies between.

    PyTorch counterpart: `torch.utils.data.WeightedRandomSampler` with the inverse frequencies of the classes.
    """

    def __init__(self, samples: int | None = None, power: float = 1.0) -> None:
        super().__init__(samples)
        if isinstance(power, bool) or not isinstance(power, (int, float)) or not 0 <= power <= 1:
            raise ArgumentError(explain("Balanced(power)", repr(power), "a number from 0 to 1"))
        self.power = float(power)

    def chances(self, labels: Tensor | None, count: int) -> Tensor:
        classes = _classes(labels)
        frequencies = torch.bincount(classes).double().clamp(min=1)
        return frequencies[classes] ** -self.power


class Weighted(Sampler):
    """Draws samples by weights of their own.

    Args:
        weights: one for each sample, not negative; or one for each class, as a mapping.
        samples: drawn in an epoch; None: as many as there are.
        replacement: whether a sample may come several times in an epoch.

    PyTorch counterpart: `torch.utils.data.WeightedRandomSampler`.
    """

    def __init__(self, weights: Any, samples: int | None = None, replacement: bool = True) -> None:
        super().__init__(samples, replacement)
        found = list(weights.values()) if isinstance(weights, Mapping) else weights
        try:
            self._values = torch.as_tensor(np.asarray(found, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(explain("Weighted(weights)", type(weights).__name__, "a list of numbers")) from error
        if self._values.ndim != 1 or not bool(torch.isfinite(self._values).all()) or bool((self._values < 0).any()):
            raise ArgumentError(explain("Weighted(weights)", f"shape {tuple(self._values.shape)} with values from "
                                        f"{float(self._values.min()) if self._values.numel() else math.nan:g}",
                                        "one finite number for each sample, none below 0"))
        self.weights = {int(k): float(v) for k, v in weights.items()} if isinstance(weights, Mapping) else self._values.tolist()

    def chances(self, labels: Tensor | None, count: int) -> Tensor:
        if not isinstance(self.weights, dict):
            return self._values
        classes = _classes(labels)
        table = torch.zeros(max(int(classes.max()), *self.weights) + 1, dtype=torch.float64)
        missing = sorted(set(classes.tolist()) - set(self.weights))
        if missing:
            raise DataError(explain("Weighted(weights)", f"no weight for the classes {missing[:10]}", "one for each class of the labels"))
        table[list(self.weights)] = torch.tensor(list(self.weights.values()), dtype=torch.float64)
        return table[classes]


def get(spec: Any) -> Sampler | None:
    """Returns the sampler that `fit(sampler=…)` means: an object, "balanced", or weights of samples.

    Raises:
        ArgumentError: it is none of these.
    """
    if spec is None or isinstance(spec, Sampler):
        return spec
    if isinstance(spec, str):
        if spec in ("balanced", "class_balanced"):
            return Balanced()
        raise ArgumentError(explain("fit(sampler)", repr(spec), '"balanced", weights of the samples, or a Sampler'))
    return Weighted(spec)


def _classes(labels: Tensor | None) -> Tensor:
    """Returns the class of each sample from whole numbers or one-hot rows."""
    if labels is None:
        raise DataError(explain("fit(sampler)", "data without labels that can be read at once", "arrays, or a Dataset with targets"))
    labels = labels.detach().cpu()
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.argmax(dim=1)
    flat = labels.reshape(len(labels), -1)
    if flat.shape[1] != 1 or bool((flat != flat.round()).any()) or bool((flat < 0).any()):
        raise DataError(explain("fit(sampler)", f"labels of shape {tuple(labels.shape)}", "a class for each sample",
                                "Weighted(weights) takes a weight for each sample."))
    return flat[:, 0].long()


@dataclass(frozen=True)
class Drawing:
    """How the batches of a training are drawn, and what becomes of their pictures; the default is for data in their own order.

    Attributes:
        seed: of the order and of the sampler; None keeps the order of the data.
        sampler: draws the samples.
        augment: changes the pictures.
        shuffle: whether the order changes with each epoch where there is no sampler.
    """

    seed: int | None = None
    sampler: Sampler | None = None
    augment: Augmenter | None = None
    shuffle: bool = False

    def settings(self) -> dict[str, Any]:
        """Returns what decides the result of a training, for checkpoints; None where it is left out."""
        return {"sampler": None if self.sampler is None else self.sampler.settings(),
                "augment": None if self.augment is None else self.augment.settings()}

    def order(self, count: int, labels: Callable[[], Tensor | None]) -> Order | None:
        """Returns what gives the rows of each epoch; None: all of them as they come.

        Args:
            count: number of samples.
            labels: gives them where they are needed.
        """
        seed = self.seed
        if self.sampler is not None:
            assert seed is not None, "a sampler has a seed"
            return self.sampler.order(labels(), count, seed)
        if not self.shuffle or seed is None:
            return None
        return lambda epoch: epoch_order(count, seed, epoch)


def make_drawing(seed: int | None, shuffle: bool, sampler: Any, augment: Any, channels: int = 3,
                 saved: Callable[[int | None, bool], int | None] | None = None) -> Drawing:
    """Returns the drawing of a call of `fit`.

    Args:
        seed: of all that is random in it; None: drawn from PyTorch's generator.
        shuffle, sampler, augment: as `fit` was given them.
        channels: of the pictures.
        saved: takes the seed and whether the user gave it (or none is needed), returns that of the training to go on with.
    """
    chosen = get(sampler)
    random = shuffle or chosen is not None or augment is not None
    drawn = None if not random else int(torch.randint(2**62, ())) if seed is None else seed
    drawn = saved(drawn, seed is not None or not random) if saved is not None else drawn
    return Drawing(drawn, chosen, None if augment is None else Augmenter(augment, drawn or 0, channels), bool(shuffle))


def drawing_of(spec: BatchSpec, asked: Drawing) -> Drawing | None:
    """Returns how the batches of a spec are drawn; None where they have changes of their own, and others are asked for besides.

    Args:
        spec: of what was given to `fit`.
        asked: what `fit` was asked for beside it.
    """
    if spec.augmentation is None:
        return replace(asked, seed=asked.seed if spec.seed is None else spec.seed, shuffle=spec.shuffle)
    if asked.augment is not None or asked.sampler is not None:
        return None
    return Drawing(spec.seed, None, Augmenter(spec.augmentation, spec.seed or 0, reconstructs=spec.reconstructs), spec.shuffle)
