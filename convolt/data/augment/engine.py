"""A list of transforms, applied to a batch at once: one resample, one colour matrix, one pass over memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convolt.configurable import Configurable
from convolt.data.augment.base import Transform, probability, registry
from convolt.data.augment.draft import Draft, Parameters
from convolt.data.augment.effects import has_effects, with_effects
from convolt.data.augment.keys import derived, uniform
from convolt.data.augment.scaling import Scaling
from convolt.data.augment.targets import BOX_FORMATS, moved_boxes, moved_masks, soft_labels
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, explain
from convolt.kernels.warp import picture_means, warp

COUNTERS = 1 << 12
"""Random numbers that one place in a list may take per sample."""

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Augmented:
    """A batch as the model gets it.

    Attributes:
        images: (N, h, w, C).
        labels, boxes, masks: what was given with the pictures, moved along; None where nothing was given.
    """

    images: Tensor
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None


class Augmentation(Configurable):
    """A list of transforms as one operation on batches.

    Args:
        transforms: objects, names or configurations, in the order in which they act on a picture.
        fill_mode, fill_value, interpolation: of the one resample; None takes what the transforms say (they must agree), else
            "reflect", 0 and "bilinear".
        value_range: least and greatest value of a pixel; None takes what the transforms say, else 0 … 255 for whole numbers, 0 … 1
            for floats.
        least_visible: boxes of which a smaller share is left are dropped (see `targets.moved_boxes`).
        mask_fill_value: what masks show beyond the border where fill_mode is "constant".
        boxes: in `fit`, which output has boxes as its targets: its name, or its number from 0; None: none has.
        box_format: of boxes: "xyxy" (left, top, right, bottom in pixels) or "rel_xyxy" (fractions of width and height).

    Raises:
        ArgumentError: transforms do not agree, or a name is unknown.
        ArgumentTypeError: one of them is no transform.
    """

    def __init__(self, transforms: Any, fill_mode: str | None = None, fill_value: float | None = None, interpolation: str | None = None,
                 value_range: tuple[float, float] | None = None, least_visible: float = 0.1, mask_fill_value: float = 0.0,
                 boxes: str | int | None = None, box_format: str = "xyxy") -> None:
        one = isinstance(transforms, (Transform, str, Mapping))
        self.transforms: list[Transform] = [registry.make(t, Transform) for t in ([transforms] if one else transforms)]
        self.fill_mode, self.fill_value, self.interpolation = fill_mode, fill_value, interpolation
        self.value_range = None if value_range is None else tuple(value_range)
        self.least_visible = probability("Augmentation", least_visible, "least_visible")
        self.mask_fill_value = mask_fill_value
        self.boxes, self.box_format = boxes, box_format
        if box_format not in BOX_FORMATS:
            raise ArgumentError(explain("Augmentation(box_format)", repr(box_format), f"one of {', '.join(BOX_FORMATS)}"))
        self._fill_mode: str = self._agreed("fill_mode", "reflect")
        self._fill_value = float(self._agreed("fill_value", 0.0))
        self._interpolation: str = self._agreed("interpolation", "bilinear")
        self._value_range: tuple[float, float] | None = self._agreed("value_range", None)
        self._kept: dict[Any, Tensor] = {}

    def _agreed(self, setting: str, default: Any) -> Any:
        """Returns the setting of the one resample: what was said here, or what all transforms that say something say."""
        own = getattr(self, setting)
        said: dict[Any, Transform] = {}
        for transform in self.transforms:
            value = getattr(transform, setting, None)
            if value is not None and (setting != "fill_value" or hasattr(transform, "fill_mode")):  # an erasing has a fill_value of its own
                said[value] = transform
        if own is not None:
            return own
        if len(said) > 1:
            told = ", ".join(f"{value!r} in {type(t).__name__}" for value, t in said.items())
            raise ArgumentError(explain(f"augment ({setting})", told, "one for all, since there is one resample",
                                        f"Say it once: Augmentation(transforms, {setting}=...)."))
        return next(iter(said), default)

    def __repr__(self) -> str:
        return f"Augmentation([{', '.join(map(repr, self.transforms))}])"

    # -- parameters -------------------------------------------------------------------------------------------------------

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the output for pictures of this size."""
        for transform in self.transforms:
            height, width = transform.output_size(height, width)
        return height, width

    def parameters(self, keys: Tensor, height: int, width: int, channels: int,
                   value_range: tuple[float, float] = (0.0, 255.0)) -> Parameters:
        """Returns what is done to each sample; no host sync.

        Args:
            keys: (N,) int64, from `augment.keys`.
            height, width, channels: of the pictures.
            value_range: least and greatest value, where neither the list nor a transform says it.
        """
        low, high = self._value_range or value_range
        draft = Draft(keys, height, width, channels, float(low), float(high))
        numbers = uniform(keys, self._counters(keys.device))
        start = 0
        for transform in self.transforms:
            transform.add(draft, numbers[:, start : start + transform.draws])
            start += transform.draws
        return draft.parameters()

    def _counters(self, device: torch.device) -> Tensor:
        """Returns the numbers of all draws: each place in the list has its own, whatever stands before it."""
        found = [place * COUNTERS + i for place, t in enumerate(self.transforms) for i in range(t.draws)]
        return self._constant("counters", found, torch.int64, device)

    def _constant(self, name: Any, values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns numbers on the device, sent there once: a copy from the host cannot be captured."""
        if (name, device) not in self._kept:
            self._kept[name, device] = torch.tensor(values, dtype=dtype, device=device)
        return self._kept[name, device]

    def _scale_and_shift(self, channels: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        scalings = [t for t in self.transforms if isinstance(t, Scaling)]
        if not scalings:
            return None, None
        scale, shift = [1.0] * channels, [0.0] * channels
        for t in scalings:
            factors, offsets = t.scale_and_shift(channels)
            scale = [s * f for s, f in zip(scale, factors, strict=True)]
            shift = [s * f + o for s, f, o in zip(shift, factors, offsets, strict=True)]
        return (self._constant(("scale", channels), scale, torch.float32, device),
                self._constant(("shift", channels), shift, torch.float32, device))

    # -- application ------------------------------------------------------------------------------------------------------

    def apply(self, source: Tensor, index: Tensor | None, keys: Tensor, labels: Tensor | None = None, boxes: Tensor | None = None,
              masks: Tensor | None = None, dtype: torch.dtype = torch.float32, classes: int | None = None) -> Augmented:
        """Returns the augmented batch of the rows `index` of `source`; no host sync.

        Args:
            source: (M, H, W, C) uint8 or floats, on the device.
            index: (N,) integers, which rows of `source`; None takes all in order.
            keys: (N,) int64, from `augment.keys`.
            labels: (M, …), in the order of `source`.
            boxes: (M, B, 4) or (M, 4) in `box_format`, likewise; see `targets.moved_boxes`.
            masks: (M, H, W) or (M, H, W, K), likewise; moved with the nearest value.
            dtype: of the pictures: float32, bfloat16, float16, or uint8 (rounded).
            classes: how many there are, where MixUp or CutMix mixes labels that are numbers of classes.

        Returns:
            The batch; pictures in the range of values of the source, unless `Rescale` or `Normalize` is in the list.
        """
        pictures = source if source.dtype in (torch.uint8, torch.float32, torch.float64) else source.to(torch.float32)
        self._check(pictures, index, keys)
        _, height, width, channels = pictures.shape
        chosen = self.parameters(keys, height, width, channels, self._range_of(pictures))
        pictures = pictures.contiguous()
        batch = Augmented(self._images(pictures, index, keys, chosen, dtype), _taken(labels, index))
        if boxes is not None:
            unit = (height, width) if self.box_format == "rel_xyxy" else None
            moved = moved_boxes(_taken(boxes, index), chosen.matrix, chosen.size, self.least_visible, unit)
            batch = dataclasses.replace(batch, boxes=moved)
        if masks is not None:
            flat = self._matrix_of(chosen, len(keys), keys.device)
            batch = dataclasses.replace(batch, masks=moved_masks(masks, index, flat, chosen.size, self._fill_mode, self.mask_fill_value))
        if chosen.partner is None:
            return batch
        if boxes is not None or masks is not None:
            raise ArgumentError(explain("augment", "boxes or masks with MixUp or CutMix", "labels of whole pictures",
                                        "Leave mixing out of the list."))
        return self._mixed(batch, pictures, index, keys, chosen, labels, classes, dtype)

    def _mixed(self, own: Augmented, pictures: Tensor, index: Tensor | None, keys: Tensor, chosen: Parameters, labels: Tensor | None,
               classes: int | None, dtype: torch.dtype) -> Augmented:
        """Returns the batch mixed with partners: other samples of it, or, where `index` chose from more, any rows of the source."""
        assert chosen.partner is not None and chosen.share is not None
        partner = (chosen.partner * len(pictures)).long()
        if index is None:
            others = own.images.index_select(0, partner)
        else:
            other_keys = derived(keys, 1)
            _, *size, channels = pictures.shape
            others_chosen = self.parameters(other_keys, size[0], size[1], channels, self._range_of(pictures))
            others = self._images(pictures, partner, other_keys, others_chosen, dtype)
        height, width = chosen.size
        share = chosen.share.to(torch.float32)[:, None, None, None].expand(-1, height, width, 1)
        kept = chosen.share
        if chosen.cut is not None:
            top, left, bottom, right = (chosen.cut[:, i, None, None] for i in range(4))
            y = torch.arange(height, device=keys.device)[None, :, None]
            x = torch.arange(width, device=keys.device)[None, None, :]
            share = torch.where(((y >= top) & (y < bottom) & (x >= left) & (x < right))[..., None], 0.0, share)
            kept = kept * (1 - ((bottom - top) * (right - left))[:, 0, 0] / (height * width))
        images = share * own.images.to(torch.float32) + (1 - share) * others.to(torch.float32)
        images = (images + 0.5).floor().to(dtype) if dtype == torch.uint8 else images.to(dtype)
        if labels is None:
            return Augmented(images)
        own_labels = labels if index is None else labels.index_select(0, index)  # chosen first: one-hot rows of a whole set are large
        ours, theirs = soft_labels(own_labels, classes), soft_labels(labels.index_select(0, partner), classes)
        weight = kept.to(ours.dtype).view(-1, *[1] * (ours.ndim - 1))
        return Augmented(images, weight * ours + (1 - weight) * theirs)

    def _range_of(self, pictures: Tensor) -> tuple[float, float]:
        return self._value_range or ((0.0, 255.0) if pictures.dtype == torch.uint8 else (0.0, 1.0))

    def _matrix_of(self, chosen: Parameters, count: int, device: torch.device) -> Tensor:
        if chosen.matrix is not None:
            return chosen.matrix
        return self._constant("straight", STRAIGHT, torch.float32, device).view(1, 2, 3).expand(count, -1, -1)

    def _images(self, pictures: Tensor, index: Tensor | None, keys: Tensor, chosen: Parameters, dtype: torch.dtype) -> Tensor:
        """Returns the pictures after everything that happens to one picture by itself."""
        matrix = self._matrix_of(chosen, len(keys), keys.device)
        colour = chosen.colour
        if colour is not None and chosen.colour_of_mean is not None:
            added = (chosen.colour_of_mean @ picture_means(pictures, index).to(torch.float32)[:, :, None])[:, :, 0]
            colour = torch.cat([colour[:, :, :-1], (colour[:, :, -1] + added)[:, :, None]], 2)
        scale, shift = self._scale_and_shift(int(pictures.shape[3]), pictures.device)
        limits = self._range_of(pictures) if colour is not None else None
        first = functools.partial(warp, pictures, matrix, index=index, size=chosen.size, samples=chosen.samples,
                                  most_samples=chosen.most_samples, fill_mode=self._fill_mode, fill_value=self._fill_value,
                                  interpolation=self._interpolation, colour=colour, limits=limits)
        last: dict[str, Any] = {"boxes": chosen.boxes, "values": chosen.values, "scale": scale, "shift": shift, "dtype": dtype}
        if not has_effects(chosen):
            return first(**last)
        images = with_effects(first(dtype=torch.float32), chosen, keys, self._range_of(pictures))
        straight = self._constant("straight", STRAIGHT, torch.float32, keys.device).view(1, 2, 3).expand(len(keys), -1, -1)
        return warp(images, straight, **last)

    @staticmethod
    def _check(pictures: Tensor, index: Tensor | None, keys: Tensor) -> None:
        count = len(pictures) if index is None else len(index)
        if pictures.ndim != 4:
            raise ShapeError(explain("augment", f"pictures of shape {tuple(pictures.shape)}", "(samples, height, width, channels)"))
        if keys.dtype != torch.int64 or tuple(keys.shape) != (count,):
            raise ArgumentTypeError(explain("augment (keys)", f"{keys.dtype} of shape {tuple(keys.shape)}", f"int64 of shape ({count},)",
                                            "Use augment.keys(seed, epoch, sample_ids)."))


def _taken(values: Tensor | None, index: Tensor | None) -> Any:
    return values if values is None or index is None else values.index_select(0, index)
