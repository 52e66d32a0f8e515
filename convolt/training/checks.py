"""Arrays and labels are checked once, before training: what would end in a wrong result or a crash is an error here.

These functions read data on the host (or wait for the device, where tensors are there already), so they are called before
the first step and never in it. Each looks at a few megabytes at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from convolt import losses
from convolt.arrays import as_tensor
from convolt.configurable import snake_case
from convolt.errors import ArgumentError, ConvoltWarning, DataError, ShapeError, explain
from convolt.layout import Shape
from convolt.losses.crossentropy import class_axis_to_1
from convolt.losses.shapes import one_hot_labels, paired, sparse_labels, targets_to_inside

CHUNK = 4_000_000
"""Values that are looked at together."""


class PixelRangeWarning(ConvoltWarning):
    """Pixels from 0 to 255 are given as floats, to a model that probably wants 0 to 1."""


def check_inputs(xs: Sequence[Any], input_shapes: Sequence[Shape], what: str = "fit") -> list[Tensor]:
    """Returns the inputs as tensors, channels-last as they came, after checking values and shapes.

    Args:
        xs: arrays or tensors, one for each input of the model.
        input_shapes: what the model wants, batch first, channels last (`None`: any size); empty if it is not known yet.
        what: the call, for messages.

    Raises:
        DataError: an array is empty, or has a NaN or an infinite value (its index is named).
        ShapeError: a shape does not fit; for channels-first images the message has the transposition.
    """
    found = [as_tensor(x, _name(what, "x", i, len(xs))) for i, x in enumerate(xs)]
    if input_shapes and len(input_shapes) != len(found):
        raise DataError(explain(f"{what}: x", f"{len(found)} array(s)", f"{len(input_shapes)}, one for each input of the model"))
    for i, x in enumerate(found):
        name = _name(what, "x", i, len(found))
        check_not_empty(x, name)
        if input_shapes:
            check_shape(x, input_shapes[i], name)
        else:
            _suspect_channels_first(x, name)
        check_finite(x, name)
    return found


def check_count(what: str, value: Any) -> None:
    """Raises `ArgumentError` unless a value is a whole number from 1, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ArgumentError(explain(what, repr(value), "a whole number from 1"))


def rescales(model: Any) -> bool:
    """Returns whether a part of the model brings pixels to values of about one."""
    return any(type(module).__name__ in ("Rescaling", "Normalization") for module in model.modules())


def check_pixels(xs: Sequence[Any], what: str = "fit") -> None:
    """Warns (`PixelRangeWarning`) of floating images with values from 0 to 255; for models that do not scale them themselves."""
    for i, x in enumerate(xs):
        x = as_tensor(x)
        if x.ndim != 4 or not x.is_floating_point() or x.numel() == 0:
            continue
        low, high = extremes(x)
        if low >= 0 and 16 < high <= 255:
            warnings.warn(explain(_name(what, "x", i, len(xs)), f"floating pixels from {low:g} to {high:g}", "pixels from 0 to 1",
                                  "Divide by 255, or begin the model with Rescaling(1 / 255)."), PixelRangeWarning, stacklevel=2)


def check_lengths(xs: Sequence[Tensor], ys: Sequence[Tensor], weights: Sequence[Tensor] = (), what: str = "fit") -> None:
    """Checks that inputs, labels and sample weights have one length, and that weights are finite.

    Raises:
        DataError: the lengths differ (all are named), or a weight is NaN or infinite.
    """
    parts = [(_name("", kind, i, len(group)), part) for kind, group in (("x", xs), ("y", ys), ("sample_weight", weights))
             for i, part in enumerate(group)]
    for name, part in parts:
        if part.ndim == 0:
            raise DataError(explain(f"{what}: {name}", "a single number", "one entry per sample"))
    if len({len(part) for _, part in parts}) > 1:
        lengths = ", ".join(f"{name} {len(part)}" for name, part in parts)
        raise DataError(explain(f"{what}: numbers of samples", lengths, "one length",
                                "Each sample needs its entry: look where some were dropped or added in one of them alone."))
    for name, part in parts[len(xs) + len(ys):]:
        check_finite(part, f"{what}: {name}")


def check_labels(y: Any, *, loss: Any, output_shape: Sequence[int], what: str = "fit") -> Tensor:
    """Returns labels as a tensor, channels-last as they came, after checking that a loss can use them.

    Args:
        y: labels of one output.
        loss: the `Loss` of this output; None and losses of the user get the checks of values alone.
        output_shape: shape of this output, with the class axis at index 1 and any batch size.
        what: the call, for messages.

    Raises:
        DataError: labels are empty, NaN, infinite, out of range or not whole numbers; index and value are named.
        ShapeError: labels are one-hot where whole numbers are wanted, or the reverse, or have another shape.
    """
    name = f"{what}: y"
    labels = as_tensor(y, name)
    check_not_empty(labels, name)
    check_finite(labels, name)
    if loss is not None and output_shape:
        _check_for_loss(labels, loss, output_shape, name)
    return labels


def _check_for_loss(y: Tensor, loss: Any, output_shape: Sequence[int], name: str) -> None:
    sparse = isinstance(loss, losses.SparseCategoricalCrossentropy)
    binary = isinstance(loss, (losses.BinaryCrossentropy, losses.BinaryFocalCrossentropy))
    one_output = len(output_shape) < 2 or output_shape[1] == 1
    if isinstance(loss, losses.Crossentropy):
        sparse = not one_output and (y.ndim < len(output_shape) or y.shape[-1] == 1)
        binary = one_output
    axis = getattr(loss, "axis", -1) if sparse else -1
    _check_label_shape(y, loss, sparse, binary, axis, output_shape)
    if isinstance(loss, losses.Loss):
        loss.check_values(y, tuple(output_shape), name)
    if sparse:
        classes = class_axis_to_1(torch.empty(tuple(output_shape), device="meta"), axis, len(output_shape)).shape[1]
        _check_classes(y, classes, getattr(loss, "ignore_class", None), name)
    elif binary:
        low, high = extremes(y)
        if low < 0 or high > 1:
            index, value = first_where(y, lambda chunk: (chunk < 0) | (chunk > 1))
            raise DataError(explain(f"{name}[{index}]", value, "labels from 0 to 1 for a binary crossentropy",
                                    "Labels -1 and 1 become 0 and 1 with (y + 1) / 2; hinge takes them as they are."
                                    if (low, high) == (-1, 1) else "More than two classes need sparse_categorical_crossentropy."))


def _check_label_shape(y: Tensor, loss: Any, sparse: bool, binary: bool, axis: int, output_shape: Sequence[int]) -> None:
    """Runs the loss's own checks on shapes alone, on PyTorch's meta device."""
    prediction = torch.empty((len(y), *output_shape[1:]), device="meta")
    rank = prediction.ndim
    labels = targets_to_inside(torch.empty(y.shape, device="meta"), rank)
    one_hot = isinstance(loss, (losses.CategoricalCrossentropy, losses.CategoricalFocalCrossentropy))
    if sparse or one_hot:
        axis = loss.axis if one_hot else axis
        pair = class_axis_to_1(labels, axis, rank), class_axis_to_1(prediction, axis, rank)
        if sparse:
            sparse_labels("sparse_categorical_crossentropy", *pair)
        else:
            one_hot_labels(snake_case(type(loss).__name__), *pair)
    elif type(loss).__module__.startswith("convolt.losses.") and not isinstance(loss, losses.FunctionLoss):
        if binary:
            paired("binary_crossentropy", labels, prediction)
        else:
            loss.check_shapes(labels, prediction)


def _check_classes(y: Tensor, classes: int, ignored: int | None, name: str) -> None:
    """Checks that labels are whole numbers from 0 to classes - 1, or the ignored class."""
    if y.dtype == torch.bool:
        return
    if y.is_floating_point() and any(bool((chunk != chunk.round()).any()) for _, chunk in chunks(y)):
        index, value = first_where(y, lambda chunk: chunk != chunk.round())
        raise DataError(explain(f"{name}[{index}]", value, "whole numbers, the classes",
                                "Targets of a regression need a loss such as 'mse'."))

    def outside(chunk: Tensor) -> Tensor:
        wrong = (chunk < 0) | (chunk >= classes)
        return wrong if ignored is None else wrong & (chunk != ignored)

    low, high = extremes(y)
    if low >= 0 and high < classes:
        return
    if any(bool(outside(chunk).any()) for _, chunk in chunks(y)):
        index, value = first_where(y, outside)
        fix = "A label that stands for 'none' is named by SparseCategoricalCrossentropy(ignore_class=…)."
        if (low, high) == (1, classes):
            fix = f"Classes that start at 1 need y - 1, or a last layer with {classes + 1} units."
        elif low >= 0:
            fix = f"A last layer with {int(high) + 1} units has room for all labels."
        raise DataError(explain(f"{name}[{index}]", f"the label {int(value)}",
                                f"0 to {classes - 1}, since the model has {classes} classes", fix))


# -- values --------------------------------------------------------------------------------------------------------


def check_not_empty(x: Tensor, name: str) -> None:
    """Raises `DataError` if there are no samples, or none of them has a value."""
    if x.ndim == 0:
        raise DataError(explain(name, "a single number", "an array with one entry per sample"))
    if x.numel() == 0:
        raise DataError(explain(name, f"no values (shape {tuple(x.shape)})", "at least one sample"))


def check_finite(x: Tensor, name: str) -> None:
    """Raises `DataError`, with the index, if a value is NaN or infinite."""
    if not x.is_floating_point() or x.numel() == 0:
        return
    if all(bool(torch.isfinite(torch.stack(torch.aminmax(chunk))).all()) for _, chunk in chunks(x)):
        return
    index, value = first_where(x, lambda chunk: ~torch.isfinite(chunk))
    raise DataError(explain(f"{name}[{index}]", str(value), "finite numbers",
                            "np.nan_to_num replaces them; better find where they come from."))


def chunks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yields (number of the first sample, samples) of about `CHUNK` values each."""
    step = max(1, CHUNK // max(1, x[0].numel()))
    for start in range(0, len(x), step):
        yield start, x[start:start + step]


def extremes(x: Tensor) -> tuple[float, float]:
    """Returns the lowest and the highest value."""
    x = x.to(torch.uint8) if x.dtype == torch.bool else x
    pairs = [torch.stack(torch.aminmax(chunk)) for _, chunk in chunks(x)]
    lows, highs = torch.stack(pairs).unbind(1)
    return lows.min().item(), highs.max().item()


def first_where(x: Tensor, condition: Any) -> tuple[str, float]:
    """Returns (index, value) of the first value for which `condition` of a chunk holds; there must be one."""
    for start, chunk in chunks(x):
        wrong = condition(chunk)
        if bool(wrong.any()):
            place = wrong.nonzero()[0].tolist()
            return ", ".join(map(str, [place[0] + start, *place[1:]])), chunk[tuple(place)].item()
    raise DataError(explain("first_where", "no value that fits", "at least one"))


# -- shapes --------------------------------------------------------------------------------------------------------


def check_shape(x: Tensor, expected: Shape, name: str) -> None:
    """Raises `ShapeError` unless `x` has the expected shape (batch first, `None` for any size), with the code that mends it."""
    shape, wanted = tuple(x.shape[1:]), tuple(expected[1:])
    if _fits(shape, wanted):
        return
    fix = ""
    if len(shape) == len(wanted) > 1 and _fits((*shape[1:], shape[0]), wanted):
        order = (0, *range(2, len(shape) + 1), 1)
        fix = f"The channels come first: x = x.transpose{order} puts them last (torch: x.permute{order})."
    elif _fits((*shape, 1), wanted):
        fix = "The channel axis is missing: x = x[..., None]."
    elif _fits(tuple(x.shape), wanted):
        fix = "The batch axis is missing: x = x[None] for one sample."
    elif len(wanted) == 1 and None not in wanted and _size(shape) == wanted[0]:
        fix = f"x = x.reshape(len(x), {wanted[0]}), or begin the model with Flatten()."
    elif len(shape) == len(wanted) == 3 and shape[2] == wanted[2]:
        fix = f"Resize the pictures, or begin the model with Input({shape})."
    elif len(shape) == len(wanted) == 3 and (shape[2], wanted[2]) in ((1, 3), (3, 1)):
        size = "" if _fits(shape[:2], wanted[:2]) else f", image_size={wanted[:2]}"
        fix = f"Read the pictures with color_mode={'rgb' if wanted[2] == 3 else 'grayscale'!r}{size}."
    raise ShapeError(explain(name, f"samples of shape {shape}", str(wanted), fix))


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))


def _size(shape: Sequence[int]) -> int:
    size = 1
    for s in shape:
        size *= s
    return size


def _suspect_channels_first(x: Tensor, name: str) -> None:
    """Warns where the model's input is not known, but images look like (N, 1 or 3, height, width)."""
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[2] == x.shape[3] > 4:
        warnings.warn(explain(name, f"images of shape {tuple(x.shape[1:])}", "channels last, (height, width, channels)",
                              "If the channels come first: x = x.transpose(0, 2, 3, 1)."), ConvoltWarning, stacklevel=3)


def _name(what: str, kind: str, index: int, count: int) -> str:
    label = kind if count == 1 else f"{kind}[{index}]"
    return f"{what}: {label}" if what else label


__all__ = [
    "PixelRangeWarning", "as_tensor", "check_finite", "check_inputs", "check_labels", "check_lengths", "check_not_empty",
    "check_pixels", "check_shape",
]
