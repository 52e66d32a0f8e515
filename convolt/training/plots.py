"""Pictures of a run: curves, confusion matrix, grids of images.

Plain functions of arrays. Matplotlib is imported at the first call and used through `Figure` objects, which draw with
Agg and leave no global state; so these run in any thread and without a display.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convolt.errors import DataError, explain

FilePath = str | PathLike[str]

_TRAIN, _VALIDATION, _WRONG, _INK, _PALE = "#1f5fa8", "#e0701a", "#c62828", "#24292f", "#d7dce1"
_HAN_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "SimHei",
              "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS")  # fmt: skip
MAX_IMAGES = 36
"""Images in one grid, at the most."""
LETTERS = 11.5
"""Of a heading, in an inch of a line."""


def plot_history(history: Mapping[str, Sequence[float]], path: FilePath) -> None:
    """Draws a panel for the loss and for each metric, training against validation, over the epochs (from 1).

    Args:
        history: name → value of each epoch, as in `History.history`; `val_x` is drawn with `x`, and `learning_rate` only
            if it changed. Values that are not finite are gaps; those that are arrays (a confusion matrix) are left out.
        path: of the PNG.
    """
    history = {name: values for name, values in history.items() if len(values) and all(np.ndim(v) == 0 for v in values)}
    names = [name for name in history if not (name.startswith("val_") and name[4:] in history)]
    names = [name for name in names if name != "learning_rate" or len(set(history[name])) > 1]
    names.sort(key=lambda name: (name == "learning_rate", name != "loss"))
    if not names:
        raise DataError(explain("plot_history", "a history without values", "at least one epoch of one value"))
    columns = min(3, len(names)) if len(names) != 4 else 2
    rows = math.ceil(len(names) / columns)
    figure = _figure(5.0 * columns, 3.7 * rows)
    for index, name in enumerate(names):
        _draw_curves(figure.add_subplot(rows, columns, index + 1), name, history)
    _save(figure, path)


def _draw_curves(axes: Any, name: str, history: Mapping[str, Sequence[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    curves = [("training", history[name], _TRAIN)]
    if f"val_{name}" in history:
        curves.append(("validation", history[f"val_{name}"], _VALIDATION))
    longest = max(len(values) for _, values, _ in curves)
    for label, values, color in curves:
        y = np.asarray(values, dtype=float)
        epochs = np.arange(longest - len(y), longest) + 1
        marker = "o" if longest <= 30 else None
        y = np.where(np.isfinite(y), y, np.nan)
        axes.plot(epochs, y, color=color, label=label, marker=marker, markersize=4, linewidth=1.8)
    axes.set_title(_words(name), loc="left", fontsize=12, color=_INK, parse_math=False)
    axes.set_xlabel("epoch", color=_INK)
    margin = 0.5 if longest == 1 else 0.03 * (longest - 1)
    axes.set_xlim(1 - margin, longest + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.grid(color=_PALE, linewidth=0.8)
    _plain_frame(axes)
    if name != "learning_rate":
        axes.legend(frameon=False, fontsize=9)
    if not all(np.isfinite(np.asarray(values, dtype=float)).all() for _, values, _ in curves):
        axes.text(0.02, 0.03, "gaps: NaN or infinite", transform=axes.transAxes, fontsize=8, color=_WRONG)


def plot_rates(rates: Any, losses: Any, smoothed: Any, marks: Mapping[str, float | None], path: FilePath) -> None:
    """Draws the losses of a search for the learning rate over the rates, on a logarithmic axis.

    Args:
        rates: of the steps, growing.
        losses: of each step's batch.
        smoothed: means of the losses, which decide how much of the axis is shown: an explosion leaves it at the top.
        marks: rates to mark, by name.
        path: of the PNG.
    """
    x, y, mean = (np.asarray(values, dtype=float) for values in (rates, losses, smoothed))
    figure = _figure(7.0, 4.2)
    axes = figure.add_subplot()
    axes.semilogx(x, np.where(np.isfinite(y), y, np.nan), color=_TRAIN, alpha=0.3, linewidth=1.2, label="each batch")
    axes.semilogx(x, np.where(np.isfinite(mean), mean, np.nan), color=_TRAIN, linewidth=2.0, label="smoothed")
    for (name, rate), color in zip(marks.items(), (_VALIDATION, _INK), strict=False):
        if rate is not None:
            at = float(np.interp(np.log(rate), np.log(x), mean))
            axes.plot([rate], [at], "o", color=color, markersize=8, label=f"{name}: {rate:.2g}", zorder=3)
            axes.axvline(rate, color=color, linewidth=0.8, linestyle=":")
    finite = mean[np.isfinite(mean)]
    if len(finite):
        low, first = float(finite.min()), float(finite[0])
        margin = 0.25 * max(first - low, 0.05 * abs(first), 1e-9)
        axes.set_ylim(low - margin, first + 2 * margin)
    axes.set_xlabel("learning rate", color=_INK)
    axes.set_ylabel("loss", color=_INK)
    axes.set_title("Learning rate search", loc="left", fontsize=12, color=_INK)
    axes.grid(color=_PALE, linewidth=0.8)
    _plain_frame(axes)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def plot_confusion(matrix: Any, class_names: Sequence[str] | None, path: FilePath) -> None:
    """Draws a confusion matrix: counts as numbers, the share of the true class as colour.

    Args:
        matrix: (classes, classes) counts; rows are true classes, columns predicted ones.
        class_names: in the order of the rows; None: numbers.
        path: of the PNG.

    The colour scale is stretched at its low end, so that a confusion of one per cent shows. A class without samples has
    a white row.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise DataError(explain("plot_confusion(matrix)", f"shape {counts.shape}", "a square (classes, classes)"))
    classes = len(counts)
    names = _names(class_names, classes)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    cell = 0.62 if classes <= 12 else 0.42 if classes <= 30 else 0.3 if classes <= 60 else 0.24
    label_width = 0.085 * max(len(name) for name in names) * (1.0 if classes <= 30 else 0.7)
    side = max(classes * cell, 2.6)
    figure = _figure(side + label_width + 1.6, side + label_width + 1.0)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="equal")
    _label_cells(axes, counts, shares, 72 * side / classes)
    _class_axes(axes, names, 72 * side / classes)
    scale = 1.0 if classes <= 30 else 1.6
    axes.set_xlabel("predicted class", fontsize=10 * scale, color=_INK)
    axes.set_ylabel("true class", fontsize=10 * scale, color=_INK)
    total, right = counts.sum(), np.trace(counts)
    share = f"{right / total:.2%} of {total:,.0f} right" if total else "no samples"
    axes.set_title(f"Confusion matrix: {share}", loc="left", fontsize=12 * scale, color=_INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format="{x:.0%}", aspect=30, pad=0.02)
    bar.set_label("share of the true class", fontsize=10 * scale, color=_INK)
    bar.ax.tick_params(labelsize=9 * scale, colors=_INK)
    bar.outline.set_visible(False)
    _save(figure, path)


def _class_axes(axes: Any, names: Sequence[str], cell_points: float) -> None:
    """Writes the class names along both axes, turned where they would touch, and draws lines between the cells."""
    classes = len(names)
    steps = np.arange(classes)
    size = 10 if classes <= 12 else 9 if classes <= 30 else 6.5
    if 0.65 * size * max(len(name) for name in names) < cell_points:
        turn: dict[str, Any] = {}
    elif classes > 30:
        turn = {"rotation": 90}
    else:
        turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(steps, names, fontsize=size, parse_math=False, **turn)
    axes.set_yticks(steps, names, fontsize=size, parse_math=False)
    grid = {"color": "white" if classes <= 30 else _PALE, "linewidth": 1.2 if classes <= 30 else 0.4, "in_layout": False}
    axes.vlines(steps[:-1] + 0.5, -0.5, classes - 0.5, **grid)
    axes.hlines(steps[:-1] + 0.5, -0.5, classes - 0.5, **grid)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
    axes.tick_params(length=0, colors=_INK)
    for spine in axes.spines.values():
        spine.set_color(_PALE)


def _label_cells(axes: Any, counts: NDArray[Any], shares: NDArray[Any], cell_points: float) -> None:
    """Writes the counts; zeros only where there are few classes, and long numbers in thousands.

    All numbers of one colour are one path, in which each number's outline is repeated: ten thousand text objects would
    take half a minute.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath

    classes = len(counts)
    texts = {(i, j): _short(counts[i, j]) for i, j in np.ndindex(counts.shape) if counts[i, j] or classes <= 12}
    longest = max((len(text) for text in texts.values()), default=1)
    size = min(11.0, cell_points * 0.8 / (0.62 * max(longest, 2)), cell_points * 0.5) / cell_points  # in cells
    outlines: dict[str, Any] = {}
    numbers: dict[str, list[Any]] = {"#b3bcc5": [], "white": [], _INK: []}
    for (i, j), text in texts.items():
        if text not in outlines:
            outline = TextPath((0, 0), text, size=size)
            box = outline.get_extents()
            outlines[text] = Path((outline.vertices - [(box.x0 + box.x1) / 2, 0.36 * size]) * [1, -1], outline.codes)
        color = "#b3bcc5" if not counts[i, j] else "white" if shares[i, j] > 0.45 else _INK
        numbers[color].append(Path(np.add(outlines[text].vertices, [j, i]), outlines[text].codes))
    for color, paths in numbers.items():
        if paths:
            # Not `add_patch`, which would measure the path to set the limits of the axes.
            axes.add_artist(PathPatch(Path.make_compound_path(*paths), facecolor=color, edgecolor="none", in_layout=False))


def _short(count: Any) -> str:
    if count != int(count):
        return f"{count:.2g}"
    return f"{int(count):,}" if count < 10_000 else f"{count / 1000:,.0f}k"


def plot_images(x: Any, labels: Any, class_names: Sequence[str] | None, path: FilePath, predictions: Any = None,
                probabilities: Any = None, title: str | None = None) -> None:
    """Draws a grid of up to 36 images, each with its class, or with its prediction and whether that is right.

    Args:
        x: (N, H, W, C) or (N, H, W), uint8 or float; 1 channel is grey, 3 are colours. Floats outside of 0–1 are scaled
            to the range of the images shown.
        labels: (N,) class numbers, or (N, classes) one-hot, or None where they are unknown.
        class_names: in the order of the numbers; None: numbers.
        path: of the PNG.
        predictions: (N,) predicted class numbers. The order is then: wrong ones, the most confident first, then right
            ones, the least confident first; wrong ones are framed in red.
        probabilities: (N,) of the predicted class, or (N, classes), from 0 to 1.
        title: above the grid; made from the predictions if None.
    """
    count = len(x)
    if not count:
        raise DataError(explain("plot_images(x)", "no images", "at least one"))
    truth, guess = _class_numbers(labels, count, "labels"), _class_numbers(predictions, count, "predictions")
    sure = _confidence(probabilities, guess, count)
    chosen = np.arange(count) if guess is None else most_telling(truth, guess, sure)
    chosen = chosen[:MAX_IMAGES]
    pixels = _displayable(np.stack([np.asarray(x[int(i)]) for i in chosen]))
    lines = 1 if guess is None or truth is None else 2
    highest = max(int(v.max()) for v in (truth, guess) if v is not None) if truth is not None or guess is not None else 0
    names = _names(class_names, highest + 1)
    axes, corners, size = _grid(pixels.shape, title or _heading(truth, guess) or "", lines)
    for index, picture, (left, top) in zip(chosen, pixels, corners, strict=True):
        gray = {"cmap": "gray", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}
        axes.imshow(picture, interpolation="nearest" if max(picture.shape[:2]) <= 100 else "antialiased", aspect="auto",
                    extent=(left, left + size[0], top + size[1], top), **gray)
        _caption(axes, (left, top), size, names, *(None if v is None else v[index] for v in (truth, guess, sure)))
    axes.set(xlim=(0, axes.figure.get_figwidth()), ylim=(axes.figure.get_figheight(), 0))
    _save(axes.figure, path)


def _grid(shape: tuple[int, ...], title: str, lines: int) -> tuple[Any, list[tuple[float, float]], tuple[float, float]]:
    """Returns axes over a whole figure, whose units are inches from its upper left; each picture's corner; and the size of all.

    Axes for each picture, as matplotlib's own grids have them, take seconds.
    """
    columns = math.ceil(math.sqrt(shape[0]))
    rows = math.ceil(shape[0] / columns)
    ratio = shape[1] / shape[2]
    width = max(1.7 * columns, 4.0 if title else 0.0)
    heading = textwrap.wrap(title, int(LETTERS * width))
    above = 0.08 + (0.2 * len(heading) + 0.08 if heading else 0.0)
    height = 1.58 * min(ratio, 2.5)
    step = width / columns, height + 0.15 * lines + 0.13
    figure = _figure(width, above + step[1] * rows + 0.08, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(0.1, 0.1, "\n".join(heading), ha="left", va="top", fontsize=11, color=_INK, parse_math=False)
    corners = [((place % columns + 0.5) * step[0] - height / ratio / 2, above + (place // columns + 1) * step[1] - height - 0.05)
               for place in range(shape[0])]
    return axes, corners, (height / ratio, height)


def most_telling(truth: NDArray[Any] | None, guess: NDArray[Any], sure: NDArray[Any] | None) -> NDArray[Any]:
    """Returns the order in which predictions are worth a look: confidently wrong first, confidently right last."""
    wrong = np.zeros(len(guess), bool) if truth is None else truth != guess
    confidence = np.zeros(len(guess)) if sure is None else sure
    return np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))


def _heading(truth: NDArray[Any] | None, guess: NDArray[Any] | None) -> str | None:
    if truth is None or guess is None:
        return None
    wrong = int((truth != guess).sum())
    order = "the most confidently wrong first" if wrong else "the least sure first"
    return f"{wrong:,} of {len(guess):,} wrong ({wrong / len(guess):.2%}); {order}"


def _caption(axes: Any, corner: tuple[float, float], size: tuple[float, float], names: Sequence[str], truth: int | None, guess: int | None,
             sure: float | None) -> None:
    """Writes above a picture and frames it."""
    from matplotlib.patches import Rectangle

    wrong = guess is not None and truth is not None and guess != truth
    axes.add_artist(Rectangle(corner, *size, fill=False, edgecolor=_WRONG if wrong else _PALE, linewidth=2.5 if wrong else 0.8))
    if guess is None:
        text = "" if truth is None else _clip(names[truth], 20)
    else:
        percent = "" if sure is None else f" · {_percent(sure)}"
        text = _clip(names[guess], 21 - len(percent)) + percent
        if truth is not None:
            text += f"\ntrue: {_clip(names[truth], 14)}" if wrong else "\ncorrect"
    axes.text(corner[0] + size[0] / 2, corner[1] - 0.05, text, ha="center", va="bottom", fontsize=8.5, color=_WRONG if wrong else _INK,
              parse_math=False)


def _percent(share: float) -> str:
    """Whole per cents; 100% only for what is exactly so, since 99.7% is another thing."""
    return f"{share:.0%}" if share == 1 or share < 0.995 else f"{min(math.floor(share * 1000) / 10, 99.9):.1f}%"


def _clip(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


# -- arrays --------------------------------------------------------------------------------------------------------


def _class_numbers(values: Any, count: int, what: str) -> NDArray[Any] | None:
    """Returns class numbers (N,) from numbers, one-hot rows or (N, 1)."""
    if values is None:
        return None
    numbers = np.asarray(values)
    if numbers.ndim == 2:
        numbers = numbers[:, 0] if numbers.shape[1] == 1 else numbers.argmax(axis=1)
    if numbers.shape != (count,):
        raise DataError(explain(f"plot_images({what})", f"shape {np.shape(values)}", f"({count},) as there are {count} images"))
    return numbers.astype(np.int64)


def _confidence(probabilities: Any, guess: NDArray[Any] | None, count: int) -> NDArray[Any] | None:
    if probabilities is None or guess is None:
        return None
    values = np.asarray(probabilities, dtype=float)
    if values.ndim == 2 and len(values) == count:
        values = values[np.arange(count), guess] if values.shape[1] > 1 else values[:, 0]
    if values.shape != (count,):
        raise DataError(explain("plot_images(probabilities)", f"shape {np.shape(probabilities)}",
                                f"({count},) or ({count}, classes)"))
    return np.asarray(np.nan_to_num(values))


def _displayable(x: NDArray[Any]) -> NDArray[Any]:
    """Returns images as float32 in 0–1, (N, H, W) if grey and (N, H, W, 3) if in colour."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise DataError(explain("plot_images(x)", f"shape {x.shape}", "(N, H, W, C) or (N, H, W)"))
    if x.dtype == np.uint8:
        pixels = x.astype(np.float32) / 255
    else:
        pixels = np.nan_to_num(x.astype(np.float32))
        low, high = pixels.min(), pixels.max()
        if low < 0 or high > 1:
            pixels = (pixels - low) / max(high - low, 1e-12)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels.mean(axis=-1)


def _names(class_names: Sequence[str] | None, count: int) -> list[str]:
    names = [str(i) for i in range(count)] if class_names is None else [str(name) for name in class_names]
    if len(names) < count:
        raise DataError(explain("class_names", f"{len(names)} names", f"a name for each of the {count} classes"))
    return names


# -- figures -------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, layout: Any = "constrained") -> Any:
    """`layout` "none": what is drawn fills the figure already."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout=layout, facecolor="white")


def _plain_frame(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#8b949e")
    axes.tick_params(colors=_INK, labelsize=9)


def _words(name: str) -> str:
    return name.replace("_", " ")


@cache
def _font_families() -> tuple[str, ...]:
    """Matplotlib's own font, and behind it a Chinese one if there is any, for class names."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(font for font in _HAN_FONTS if font in installed))


def _save(figure: Any, path: FilePath) -> None:
    """Writes the PNG with fonts that cover its texts; a letter that no font has is drawn as a box."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    if any(ord(letter) >= 0x2E80 for text in texts for letter in text.get_text()):  # Chinese, Japanese, Korean
        families = list(_font_families())
        for text in texts:
            text.set_fontfamily(families)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        tight = {"bbox_inches": "tight", "pad_inches": 0.12} if figure.get_layout_engine() else {}
        figure.savefig(path, format="png", **tight)
