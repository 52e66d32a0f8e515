"""`show_batch`: the pictures of a batch as the model gets them, in a labelled grid."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convolt.data.batch_spec import spec_of
from convolt.data.batches import Batch, Pending, draw_ids
from convolt.data.pictures import Pictures
from convolt.errors import ArgumentError, DataError, explain
from convolt.training import checks, given, inputs, plots
from convolt.training.heads import Head
from convolt.training.sampling import Drawing, drawing_of, make_drawing


class Grid:
    """A drawn grid of pictures; notebooks show it.

    Attributes:
        png: the file's content.
        pictures: what was drawn, float or uint8, `(N, H, W, C)`.
        captions: the text over each picture.
    """

    def __init__(self, png: bytes, pictures: np.ndarray, captions: list[str]) -> None:
        self.png, self.pictures, self.captions = png, pictures, captions

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"Grid({len(self.pictures)} pictures of {'×'.join(map(str, self.pictures.shape[1:]))}; save(path) writes the PNG)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the PNG."""
        target = Path(path)
        target.write_bytes(self.png)
        return target


def show_batch(x: Any, y: Any = None, *, augment: Any = None, sampler: Any = None, class_names: Sequence[str] | None = None,
               count: int = 16, epoch: int = 0, seed: int | None = 0, shuffle: bool = True, path: str | os.PathLike[str] | None = None,
               title: str | None = None) -> Grid:
    """Draws the first pictures of an epoch as `fit` with the same arguments would give them to the model.

    Args:
        x, y: as in `fit`: arrays, pictures, a `Dataset`, a loader, or anything that gives batches. Of pictures that are not read yet,
            such as an `ImageFolder`, those alone are decoded that are drawn; they are mixed with each other where `augment` mixes.
        augment, sampler, shuffle, seed: as in `fit`.
        class_names: in the order of the labels; None: those that `x` knows, else numbers.
        count: of pictures, up to 36.
        epoch: whose pictures, from 0.
        path: where to write a PNG, too.
        title: above the grid.

    Raises:
        ArgumentError: `count` is out of range.
        DataError: there are no pictures.

    fastai counterpart: `DataLoaders.show_batch`.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= plots.MAX_IMAGES:
        raise ArgumentError(explain("show_batch(count)", repr(count), f"a whole number from 1 to {plots.MAX_IMAGES}"))
    x, _ = given.as_pictures("fit", x, ())
    names = class_names if class_names is not None else getattr(x, "class_names", None)
    batch = _first(x, y, count, epoch, make_drawing(seed, shuffle, sampler, augment, inputs.channels_of(x)))
    pictures = batch.x[0].float().numpy() if batch.x[0].dtype == torch.bfloat16 else batch.x[0].numpy()
    captions = [_caption(label, names) for label in _labels(batch)]
    text = title or f"Epoch {epoch + 1}: {len(pictures)} pictures of {'×'.join(map(str, pictures.shape[1:]))}, {_values(pictures)}"
    buffer = io.BytesIO()
    plots.plot_images(_shown(pictures), np.arange(len(pictures)) if captions else None, captions or None, buffer, title=text)  # type: ignore[arg-type]
    grid = Grid(buffer.getvalue(), pictures, captions)
    if path is not None:
        grid.save(path)
    return grid


def _first(x: Any, y: Any, count: int, epoch: int, drawing: Drawing) -> Batch:
    """Returns the first samples of an epoch, augmented, on the CPU."""
    host = torch.device("cpu")
    batch: Batch | None
    if isinstance(x, Pictures):
        batch = _of_pictures(x, count, epoch, drawing)
    elif (spec := spec_of(x)) is not None and isinstance(spec.x, Pictures) and (own := drawing_of(spec, drawing)) is not None:
        drawing = own
        batch = _of_pictures(spec.x, count, epoch, drawing)
    elif inputs.is_stream(x):
        batch = next(inputs.from_stream(x, host, count, None, ["x"], ["y"], drawing).epoch(epoch), None)
    else:
        xs = [checks.as_tensor(a, "x") for a in inputs.arrays_of(x, ["x"], "x")]
        ys = [checks.as_tensor(a, "y") for a in inputs.arrays_of(y, ["y"], "y")]
        checks.check_lengths(xs, ys, what="show_batch")
        batch = next(iter(inputs.from_arrays((xs[:1], ys[:1], []), count, host, drawing).epoch(epoch)), None)
    if batch is None or batch.x[0].ndim != 4:
        got = "no samples" if batch is None else f"samples of shape {tuple(batch.x[0].shape[1:])}"
        raise DataError(explain("show_batch", got, "pictures (height, width, channels)"))
    if drawing.augment is not None and drawing.augment.mixes:
        labels = batch.y[0] if batch.y else None
        most = 0 if labels is None else int(labels.shape[1]) if labels.ndim == 2 and labels.shape[1] > 1 else int(labels.max()) + 1
        drawing.augment.prepare([Head("y", _loss_of(labels))], {"y": (1, most)})
    ready = batch.ready()
    return Batch(ready.x, ready.y, (), min(ready.size, count), soft=ready.soft) if ready.size <= count else _cut(ready, count)


def _of_pictures(x: Pictures, count: int, epoch: int, drawing: Drawing) -> Batch | None:
    """Returns the first pictures of an epoch, as far as they can be read; no others are decoded."""
    order = drawing.order(len(x), lambda: None if x.labels is None else torch.from_numpy(x.labels))
    rows = (torch.arange(len(x)) if order is None else order(epoch))[:count]
    pixels, kept = x.read(rows.numpy())
    if not len(kept):
        return None
    labels = x.targets(kept)
    batch = Batch((torch.from_numpy(pixels),), () if labels is None else (torch.from_numpy(labels),), (), len(pixels))
    if drawing.augment is None:
        return batch
    ids = draw_ids(rows, len(x))[torch.from_numpy(np.isin(rows.numpy(), kept))]
    return replace(batch, pending=Pending(drawing.augment, drawing.augment.keys(epoch, ids), None, drawing.augment.stage(epoch)))


def _cut(batch: Batch, count: int) -> Batch:
    return Batch((batch.x[0][:count],), tuple(y[:count] for y in batch.y), (), count, soft=tuple(s[:count] for s in batch.soft))


def _loss_of(labels: Any) -> Any:
    """Returns a loss for labels that are mixed, by their form."""
    from convolt import losses

    one_hot = labels is not None and labels.ndim == 2 and labels.shape[1] > 1
    return losses.CategoricalCrossentropy() if one_hot else losses.SparseCategoricalCrossentropy()


def _labels(batch: Batch) -> list[np.ndarray]:
    """Returns each sample's label: a number, or its shares of the classes."""
    found = batch.soft[0] if batch.soft else batch.y[0] if batch.y else None
    return [] if found is None or found.ndim > 2 else [label.numpy() for label in found]


def _caption(label: np.ndarray, names: Sequence[str] | None) -> str:
    """Returns the class of a sample, or its classes with their shares."""

    def name(number: int) -> str:
        return str(names[number]) if names is not None and 0 <= number < len(names) else str(number)

    if label.size == 1:
        value = float(label.reshape(()))
        return name(int(value)) if value == int(value) else f"{value:.3g}"
    whole = np.flatnonzero(label > 0.995)
    if len(whole):
        return ", ".join(name(int(i)) for i in whole)
    several = [int(i) for i in np.argsort(-label, kind="stable")[:2] if label[i] >= 0.005]
    return " ".join(f"{name(i)[:5]} {label[i]:.0%}" for i in several)


def _values(pictures: np.ndarray) -> str:
    low, high = float(pictures.min()), float(pictures.max())
    return f"values {low:.3g} … {high:.3g}"


def _shown(pictures: np.ndarray) -> np.ndarray:
    """Returns floats from 0 to 255 as bytes, so that they are not drawn by their own range."""
    if pictures.dtype == np.uint8 or pictures.min() < 0 or not 1.5 < pictures.max() <= 255.5:
        return pictures
    shown: np.ndarray = np.clip(np.rint(pictures), 0, 255).astype(np.uint8)
    return shown
