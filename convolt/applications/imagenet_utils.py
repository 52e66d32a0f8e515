"""What pictures become before a network of ImageNet sees them, and what its predictions are called.

Keras counterpart: `keras.applications.imagenet_utils`. Nothing is changed in place and nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt import layers
from convolt.data.files import cache_folder
from convolt.errors import ArgumentError, DataError, ShapeError, did_you_mean, explain
from convolt.formats.guard import read_json
from convolt.layers.symbolic import SymbolicTensor

Numbers = tuple[float, ...]

PIXELS: dict[str, tuple[Numbers, Numbers, bool]] = {
    "caffe": ((103.939, 116.779, 123.68), (1.0,), True),
    "tf": ((127.5,), (127.5,), False),
    "torch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
    "unit": ((0.0,), (255.0,), False),
    "none": ((0.0,), (1.0,), False),
}
"""Mode → (mean, deviation, whether the channels are reversed to BGR first): pixels 0 … 255 become (pixels - mean) / deviation."""

CLASS_INDEX = "imagenet_class_index.json"
"""Keras's file: {"0": ["n01440764", "tench"], …}."""


def preprocess_input(x: Any, data_format: str | None = None, mode: str = "caffe") -> Any:
    """Returns pixels 0 … 255 as a network of ImageNet takes them.

    Args:
        x: array or tensor (…, height, width, 3) of any number type, or a symbolic tensor (batch, height, width, 3); three channels, RGB.
        data_format: "channels_last" (or None), or "channels_first" for (…, 3, height, width).
        mode: "caffe" (BGR, minus the mean of ImageNet), "tf" (-1 … 1), "torch" (mean 0 and deviation 1 over ImageNet),
            "unit" (0 … 1, which Keras does not have) or "none".

    Returns:
        A new float array or tensor of the same shape; a symbolic tensor for a symbolic one. Keras changes float arrays in place;
        Convolt never does.

    Raises:
        ArgumentError: the mode or the data format is unknown.
        ShapeError: "caffe" and "torch" need three channels.
    """
    if mode not in PIXELS:
        raise ArgumentError(explain("preprocess_input(mode)", repr(mode), f"one of {list(PIXELS)}", did_you_mean(str(mode), PIXELS)))
    if data_format not in (None, "channels_last", "channels_first"):
        raise ArgumentError(explain("preprocess_input(data_format)", repr(data_format), "'channels_last' or 'channels_first'"))
    mean, deviation, reverse = PIXELS[mode]
    symbolic = isinstance(x, SymbolicTensor)
    values = x if isinstance(x, Tensor) or symbolic else np.asarray(x)
    axis = -3 if data_format == "channels_first" else -1
    if len(mean) > 1 and (values.ndim < 3 or values.shape[axis] != len(mean)):
        raise ShapeError(explain(f"preprocess_input(mode={mode!r})", f"shape {tuple(values.shape)}", "three channels, RGB",
                                 "Repeat grey pictures three times: np.repeat(x, 3, axis=-1)."))
    if symbolic:
        return _symbolic(x, data_format, mode)
    shape = (-1, 1, 1) if axis == -3 else (-1,)
    if isinstance(values, Tensor):
        values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
        values = values.flip(axis) if reverse else values
        return (values - values.new_tensor(mean).reshape(shape)) / values.new_tensor(deviation).reshape(shape)
    values = values if values.dtype.kind == "f" else values.astype("float32")
    values = np.flip(values, axis) if reverse else values
    return (values - np.asarray(mean, values.dtype).reshape(shape)) / np.asarray(deviation, values.dtype).reshape(shape)


def _symbolic(x: SymbolicTensor, data_format: str | None, mode: str) -> SymbolicTensor:
    """The same as layers in front of a network, all of which Keras has."""
    mean, deviation, reverse = PIXELS[mode]
    if data_format == "channels_first":
        raise ArgumentError(explain("preprocess_input(data_format)", "'channels_first' for a symbolic tensor", "'channels_last'"))
    if reverse:  # as the rows of a picture, the channels can be cut apart
        rows = layers.Permute((3, 1, 2))(x)
        x = layers.Permute((2, 3, 1))(layers.Concatenate(axis=1)([layers.Cropping2D(((i, 2 - i), 0))(rows) for i in (2, 1, 0)]))
    if mode == "none":
        return x
    scale, offset = [1 / d for d in deviation], [-m / d for m, d in zip(mean, deviation * (len(mean) // len(deviation)), strict=True)]
    return layers.Rescaling(scale if len(scale) > 1 else scale[0], offset if len(offset) > 1 else offset[0])(x)  # type: ignore[no-any-return]


def preprocessing(mode: str) -> Callable[..., Any]:
    """Returns the `preprocess_input(x, data_format=None)` of a family."""

    def preprocess(x: Any, data_format: str | None = None) -> Any:
        return preprocess_input(x, data_format, mode)

    preprocess.__name__ = preprocess.__qualname__ = "preprocess_input"
    preprocess.__doc__ = f"{(preprocess_input.__doc__ or '').splitlines()[0]} Here `mode` is {mode!r}; see `imagenet_utils`."
    return preprocess


def decode_predictions(preds: Any, top: int = 5, class_names: Sequence[str] | None = None) -> list[list[tuple[str, str, float]]]:
    """Returns the most probable classes of each sample.

    Args:
        preds: (batch, classes), an array or tensor.
        top: how many of the classes.
        class_names: of your own classes; None reads Keras's `imagenet_class_index.json` in the folder that `CONVOLT_WEIGHTS`
            names or in the cache.

    Returns:
        For each sample a list of (WordNet id, name, score), best first; the id is the name where `class_names` are given.

    Raises:
        ShapeError: `preds` is not (batch, number of names).
        DataError: the file with the names is not there or damaged.
    """
    scores = preds.detach().cpu().numpy() if isinstance(preds, Tensor) else np.asarray(preds)
    names = [(name, name) for name in class_names] if class_names is not None else _imagenet_names()
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise ShapeError(explain("decode_predictions(preds)", f"shape {scores.shape}", f"(batch, {len(names)})",
                                 "Give class_names=[…] for classes of your own." if class_names is None else ""))
    return [[(*names[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top]] for row in scores]


def weight_folders() -> list[Path]:
    """Returns where files of weights are looked for by name: the folder `CONVOLT_WEIGHTS`, then the cache.

    Raises:
        ArgumentError: the variable names something that is not a folder.
    """
    value = os.environ.get("CONVOLT_WEIGHTS", "").strip()
    own = [Path(value).expanduser()] if value else []
    if own and not own[0].is_dir():
        raise ArgumentError(explain("environment variable CONVOLT_WEIGHTS", repr(value), "an existing folder",
                                    "Correct it, or unset it to use the cache."))
    return [*own, cache_folder() / "weights"]


def _imagenet_names() -> list[tuple[str, str]]:
    folders = weight_folders()
    path = next((folder / CLASS_INDEX for folder in folders if (folder / CLASS_INDEX).is_file()), None)
    if path is None:
        raise DataError(explain("decode_predictions", f"no file {CLASS_INDEX}", f"it in {' or '.join(map(str, folders))}",
                                "Set CONVOLT_WEIGHTS to its folder, or give class_names=[…]."))
    try:
        entries = read_json(str(path), path.read_bytes())
        return [(str(entries[str(i)][0]), str(entries[str(i)][1])) for i in range(len(entries))]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(explain(str(path), f"{type(error).__name__}: {error}", '{"0": ["n01440764", "tench"], …}')) from error
