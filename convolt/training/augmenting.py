"""`fit(augment=…)`: pictures of a training are changed on the device, as the first thing that a step does.

Resident pictures are gathered, changed and interpolated at once; those of a stream are changed where they have arrived.
What happens to a picture is decided by a key of (seed, epoch, sample): neither batch size, nor workers, nor a restart in the middle
of an epoch has a part in it. Only mixing (mixup, cutmix) looks at the other samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from convolt import losses
from convolt.configurable import to_json
from convolt.data.augment import AlternatingFlip, Augmentation, Resize, Transform, keys
from convolt.data.augment.keys import alternating
from convolt.data.augment.mixing import Mixing
from convolt.data.augment.progressive import ProgressiveResizing
from convolt.data.augment.scaling import Scaling
from convolt.data.augment.words import parse
from convolt.data.batches import Batch
from convolt.errors import ArgumentError, ShapeError, did_you_mean, explain
from convolt.training.checks import extremes
from convolt.training.heads import Head

Size = tuple[int, int]


class Augmenter:
    """What `fit(augment=…)` does to the batches of one training.

    Args:
        transforms: an `Augmentation`, a list of transforms, one of them, or words as on the command line.
        seed: of the keys.
        channels: of the pictures, on which "auto" depends.
        reconstructs: the changed pictures are the labels, too.

    Raises:
        ArgumentError: a transform is unknown, or transforms do not agree.
    """

    def __init__(self, transforms: Any, seed: int, channels: int = 3, reconstructs: bool = False) -> None:
        self.augmentation = as_augmentation(transforms, channels)
        self._seed, self._reconstructs = seed, reconstructs
        self._schedule = next((t for t in self.augmentation.transforms if isinstance(t, ProgressiveResizing)), None)
        self._alternates = any(isinstance(t, AlternatingFlip) for t in self.augmentation.transforms)
        self._at: dict[Size | None, Augmentation] = {}
        self._heads: Sequence[Head] = ()
        self._shapes: Mapping[str, tuple[int, ...]] = {}
        self._boxes: int | None = None

    # -- what the batches ask for ----------------------------------------------------------------------------------------

    def keys(self, epoch: int, ids: Tensor) -> Tensor:
        """Returns an int64 key for each sample of an epoch."""
        made = keys(self._seed, epoch, ids)
        return alternating(made, self._seed, epoch, ids) if self._alternates else made

    def stage(self, epoch: int) -> Size | None:
        """Returns the size of an epoch's pictures where it changes from epoch to epoch."""
        return None if self._schedule is None else self._schedule.size(epoch)

    def finish(self, batch: Batch) -> Batch:
        """Returns a batch with its pictures changed, masks and boxes moved along, labels mixed where pictures are; no host sync."""
        pending, pictures = batch.pending, batch.x[0]
        assert pending is not None
        dense = [i for i, y in enumerate(batch.y) if y.ndim >= 3 and y.shape[1:3] == pictures.shape[1:3] and i != self._boxes]
        if len(dense) > 1:
            raise ArgumentError(explain("fit(augment)", f"{len(dense)} outputs with a label for each pixel", "one at the most"))
        labels, classes = self._shares(batch.y[0]) if self.mixes else (None, None)
        made = self._chain(pending.stage).apply(pictures, pending.index, pending.keys, labels=labels, classes=classes,
                                                masks=batch.y[dense[0]] if dense else None,
                                                boxes=None if self._boxes is None else batch.y[self._boxes])
        moved = {i: t for i, t in ((dense[0] if dense else None, made.masks), (self._boxes, made.boxes)) if t is not None}
        y, weights = (tuple(kept[i] if i in kept else t if pending.index is None else t.index_select(0, pending.index)
                            for i, t in enumerate(part)) for part, kept in ((batch.y, moved), (batch.weights, {})))
        if self._reconstructs:
            y = (made.images,)
        soft: tuple[Tensor, ...] = ()
        if labels is not None and made.labels is not None:
            y, soft = (self._hard(made.labels, y[0]),), (made.labels,)
        return replace(batch, x=(made.images,), y=y, weights=weights, soft=soft, pending=None)

    # -- what the trainer asks for ---------------------------------------------------------------------------------------

    @property
    def resizes(self) -> bool:
        """Whether pictures may have another size afterwards."""
        return any(type(t).output_size is not Transform.output_size for t in self.augmentation.transforms)

    @property
    def rescales(self) -> bool:
        """Whether pixels leave with other values than they have."""
        return any(isinstance(t, Scaling) for t in self.augmentation.transforms)

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of classes."""
        return any(isinstance(t, Mixing) for t in self.augmentation.transforms)

    def settings(self) -> Any:
        """Returns what decides the pictures, for checkpoints."""
        found = dict(to_json(self.augmentation.get_config()))
        parts = found.pop("transforms")
        names = [f"{part['class_name']}{i or ''}" for part, i in zip(parts, _repeats(parts), strict=True)]
        return {"order": ", ".join(names), **found, **{name: part["config"] for name, part in zip(names, parts, strict=True)}}

    def example(self, xs: Sequence[Tensor], model: Any) -> list[Tensor]:
        """Returns a first sample as the model gets it, from which its parameters' shapes follow.

        Args:
            xs: what `fit` was given.
            model: with `input_shapes` and `flexible_input`.

        Raises:
            ArgumentError: there are several inputs.
            ShapeError: they are no pictures, or of a size that the model does not take.
        """
        if len(xs) != 1:
            raise ArgumentError(explain("fit(augment)", f"{len(xs)} inputs", "one input, pictures"))
        x = xs[0]
        if x.ndim != 4:
            raise ShapeError(explain("fit(augment)", f"samples of shape {tuple(x.shape[1:])}", "pictures (height, width, channels)",
                                     "The channel axis is missing: x = x[..., None]." if x.ndim == 3 else ""))
        if model.data_format != "channels_last":
            raise ArgumentError(explain("fit(augment)", f"a model with data_format={model.data_format!r}", "pictures with channels last"))
        height, width, channels = (int(n) for n in x.shape[1:])
        told = any(getattr(t, "value_range", None) is not None for t in (self.augmentation, *self.augmentation.transforms))
        if x.is_floating_point() and not told:
            self.augmentation = _changed(self.augmentation, value_range=value_range(x))
        first = None if self._schedule is None else self._schedule.size(0)
        for size in {self._chain(stage).output_size(height, width) for stage in {first, self._last}}:
            _check_size(model, (*size, channels))
        size = self._chain(self._last).output_size(height, width)
        return [x[:1] if size == (height, width) else torch.zeros((1, *size, channels), dtype=x.dtype, device=x.device)]

    def prepare(self, heads: Sequence[Head], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Finds the output of the boxes, and the loss that takes mixed labels, where there are any.

        Args:
            heads: the outputs.
            shapes: of the outputs, by name, with the class axis at index 1.

        Raises:
            ArgumentError: no output is called so, or the loss cannot take mixed labels, or there are several outputs then.
        """
        self._boxes = _place(self.augmentation.boxes, [head.name for head in heads])
        if not self.mixes:
            return
        if len(heads) != 1:
            raise ArgumentError(explain("fit(augment)", f"mixed pictures with {len(heads)} outputs", "one output",
                                        "Leave out MixUp and CutMix."))
        self._heads, self._shapes = heads, shapes
        heads[0].soft_loss = soft_loss(heads[0].loss, shapes[heads[0].name])

    def describe(self, device: torch.device, resident: bool) -> str:
        """Returns the line of what is done, and where."""
        what = ", ".join(map(repr, self.augmentation.transforms)) or "nothing"
        how = "gathered from resident pictures and resampled once" if resident else "resampled once, behind the copy of each batch"
        return f"Augmentation: {what}. On {device}, inside the step: {how}; training data only."

    # -- inside ------------------------------------------------------------------------------------------------------------

    @property
    def _last(self) -> Size | None:
        return None if self._schedule is None else (self._schedule.end, self._schedule.end)

    def _chain(self, size: Any) -> Augmentation:
        """Returns the augmentation for a stage: with progressive resizing, one for each size."""
        if size is None:
            return self.augmentation
        if size not in self._at:
            stage = [Resize(*size) if isinstance(t, ProgressiveResizing) else t for t in self.augmentation.transforms]
            self._at[size] = _changed(self.augmentation, transforms=stage)
        return self._at[size]

    def _shares(self, y: Tensor) -> tuple[Tensor, int | None]:
        """Returns labels that can be mixed, and how many classes there are where the labels are numbers of classes."""
        head = self._heads[0]
        classes = self._shapes[head.name][1]
        if _sparse(head.loss, y, classes):
            return y.reshape(len(y)).to(torch.int64), classes
        return (y if y.ndim == 2 and y.shape[1] > 1 else y.to(torch.float32)), None

    @staticmethod
    def _hard(shares: Tensor, y: Tensor) -> Tensor:
        """Returns labels for the metrics, in the form that they were given in: the class with the largest share."""
        if shares.ndim == 2 and shares.shape[1] > 1:
            best = shares.argmax(dim=1)
            if y.ndim == 2 and y.shape[1] == shares.shape[1]:
                return functional.one_hot(best, shares.shape[1]).to(y.dtype)
            return best.reshape(y.shape).to(y.dtype)
        return shares.reshape(y.shape) if y.is_floating_point() else shares.round().reshape(y.shape).to(y.dtype)


def as_augmentation(transforms: Any, channels: int = 3) -> Augmentation:
    """Returns what `fit(augment=…)` means: an `Augmentation`, transforms in a list or alone, or words such as "flip,rotate=10"."""
    if isinstance(transforms, Augmentation):
        return transforms
    return Augmentation(parse(transforms, channels) if isinstance(transforms, str) else transforms)


def _changed(augmentation: Augmentation, **arguments: Any) -> Augmentation:
    """Returns an augmentation with other arguments."""
    return Augmentation(**{name: arguments.get(name, getattr(augmentation, name)) for name in augmentation.get_config()})


def value_range(x: Tensor) -> tuple[float, float]:
    """Returns the least and greatest value that floating pixels may have: 0 … 1, 0 … 255, -1 … 1, or what there is, in whole numbers."""
    low, high = extremes(x)
    if low >= 0 and high <= 255.5:
        return 0.0, 1.0 if high <= 1.5 else 255.0
    if low >= -1.001 and high <= 1.001:
        return -1.0, 1.0
    return float(math.floor(low)), float(math.ceil(high))


def soft_loss(loss: Any, shape: Sequence[int]) -> losses.Loss:
    """Returns the loss that takes shares of classes in place of classes.

    Args:
        loss: of `compile`.
        shape: of the output, with the class axis at index 1.

    Raises:
        ArgumentError: it has no such counterpart.
    """
    fix = "Use categorical_crossentropy with one-hot labels, or leave out MixUp and CutMix."
    if loss is None or len(shape) != 2:
        raise ArgumentError(explain("fit(augment)", "mixed pictures without one loss on (N, classes)", "such a loss", fix))
    if isinstance(loss, losses.SparseCategoricalCrossentropy):
        if loss.ignore_class is not None:
            raise ArgumentError(explain("fit(augment)", f"mixed pictures and ignore_class={loss.ignore_class}", "no ignored class", fix))
        return losses.CategoricalCrossentropy(loss.from_logits, axis=loss.axis, reduction=loss.reduction, name=loss.name)
    known = (losses.CategoricalCrossentropy, losses.CategoricalFocalCrossentropy, losses.BinaryCrossentropy,
             losses.BinaryFocalCrossentropy, losses.Crossentropy, losses.MeanSquaredError, losses.MeanAbsoluteError, losses.KLDivergence)
    if not isinstance(loss, known):
        name = getattr(loss, "name", type(loss).__name__)
        raise ArgumentError(explain("fit(augment)", f"mixed pictures and the loss {name!r}", "a loss that takes shares of classes", fix))
    return loss


def _place(output: str | int | None, names: Sequence[str]) -> int | None:
    """Returns the number of the output that `Augmentation(boxes=…)` means."""
    if output is None or (isinstance(output, int) and not isinstance(output, bool) and 0 <= output < len(names)):
        return output
    if output in names:
        return names.index(output)
    raise ArgumentError(explain("Augmentation(boxes)", repr(output), f"an output of the model, one of {list(names)}, or its number",
                                did_you_mean(str(output), names)))


def _repeats(parts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns for each transform how many of its kind stand before it."""
    kinds = [part["class_name"] for part in parts]
    return [kinds[:i].count(kind) for i, kind in enumerate(kinds)]


def _sparse(loss: Any, y: Tensor, classes: int) -> bool:
    if isinstance(loss, losses.Crossentropy):
        return classes > 1 and (y.ndim < 2 or y.shape[1] == 1)
    return isinstance(loss, losses.SparseCategoricalCrossentropy)


def _check_size(model: Any, shape: tuple[int, int, int]) -> None:
    """Raises `ShapeError` for pictures that the model does not take."""
    if model.flexible_input or not model.input_shapes:
        return
    wanted = tuple(model.input_shapes[0][1:])
    if len(wanted) == 3 and any(w not in (None, s) for w, s in zip(wanted, shape, strict=True)):
        raise ShapeError(explain("fit(augment)", f"pictures of {shape[0]}×{shape[1]} after augmentation",
                                 f"{wanted[0]}×{wanted[1]}, as the model takes them",
                                 "A model that begins with Input((None, None, channels)) and ends in global pooling takes any size."))
