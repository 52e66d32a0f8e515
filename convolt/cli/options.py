"""Options that several verbs share, and their checks. Nothing here imports PyTorch."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated, get_args

import typer

from convolt.errors import did_you_mean

_DEVICE = re.compile(r"auto|gpu|cpu|mps|(cuda|xpu)(:\d+)?")
_DEVICE_NAMES = ("auto", "cpu", "gpu", "cuda", "cuda:0", "mps", "xpu")


class Precision(StrEnum):
    """What the model computes in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Execution(StrEnum):
    """How the steps of a training run."""

    AUTO = "auto"
    REPLAY = "replay"
    EAGER = "eager"
    COMPILE = "compile"


class Verbose(StrEnum):
    """How much is said while a model works."""

    AUTO = "auto"
    SILENT = "0"
    LINE = "1"
    EPOCHS = "2"

    @property
    def for_fit(self) -> str | int:
        """The value as `fit` takes it."""
        return self.value if self is Verbose.AUTO else int(self.value)


class Switch(StrEnum):
    """Whether something is done."""

    OFF = "off"
    ON = "on"


class ColorMode(StrEnum):
    """What pictures are turned into."""

    AUTO = "auto"
    RGB = "rgb"
    RGBA = "rgba"
    GRAYSCALE = "grayscale"


class Decoder(StrEnum):
    """What decodes the pictures of files."""

    CPU = "cpu"
    NVJPEG = "nvjpeg"


def check_device(value: str) -> str:
    """Returns a device's name if it is one; whether it is there is found out later."""
    text = value.strip().lower()
    if not _DEVICE.fullmatch(text):
        raise typer.BadParameter(f"{value!r} is no device. {did_you_mean(text, _DEVICE_NAMES)}")
    return text


def check_share(value: float | None) -> float | None:
    """Returns a share from 0 up to, but without, 1."""
    if value is not None and not 0 <= value < 1:
        raise typer.BadParameter(f"{value} is not a share from 0 up to (without) 1. Try 0.1.")
    return value


def check_rate(value: float | None) -> float | None:
    """Returns a learning rate if it is finite and above 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a finite number above 0. Try 0.001.")
    return value


AUTO = "auto"
"""A batch size that is measured."""


def parse_batch_size(value: str) -> int | str:
    """Returns a whole number from 1, or "auto"."""
    text = value.strip().lower()
    if text != AUTO and not (text.isdecimal() and int(text) > 0):
        raise typer.BadParameter(f"{value!r} is neither a whole number from 1 nor auto.")
    return text if text == AUTO else int(text)


def parse_size(value: str | None) -> tuple[int, int] | None:
    """Returns (height, width) from "64", "64,48" or "64x48"."""
    if value is None:
        return None
    sizes = parse_numbers(value)
    if not 1 <= len(sizes) <= 2:
        raise typer.BadParameter(f"{value!r} is not a size. Write HEIGHT,WIDTH, such as 64,64, or one number for both.")
    return sizes[0], sizes[-1]


def check_size(value: str | None) -> str | None:
    """Returns the text of a size that `parse_size` understands."""
    parse_size(value)
    return value


def parse_shape(value: str | None) -> tuple[int, ...] | None:
    """Returns the shape of one sample from "28,28,1" or "28x28x1"."""
    return None if value is None else parse_numbers(value)


def parse_fusions(value: str) -> str | list[str]:
    """Returns a text of rewrites as `compile(fusions=…)` takes them: a word for all of them, or their names."""
    return value if value in ("auto", "none", "all") else split_names([value])


def check_shape(value: str | None) -> str | None:
    """Returns the text of a shape that `parse_shape` understands."""
    parse_shape(value)
    return value


def parse_numbers(value: str) -> tuple[int, ...]:
    """Returns whole numbers from 1 that stand in a text with "," or "x" between them; brackets are allowed."""
    parts = re.split(r"\s*[,x×]\s*|\s+", value.strip().strip("()[]").strip())
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{value!r} is not a list of whole numbers from 1. Write them like 28,28,1.")
    return tuple(int(part) for part in parts)


def split_names(values: list[str] | None) -> list[str]:
    """Returns the names in options that may be given several times and may hold several, with commas between."""
    return [name.strip() for value in values or [] for name in value.split(",") if name.strip()]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help=(
            "A built-in architecture ([b]cnn[/b]), [b]file.py:function[/b] with your own, or a saved file "
            "([b].safetensors[/b], [b].keras[/b], [b].h5[/b])."
        ),
    ),
]
SAVED = "A saved model: [b].safetensors[/b], [b].keras[/b], [b].h5[/b]."
File = Annotated[str, typer.Argument(metavar="FILE", show_default=False, help=SAVED)]
DATA = (
    "[b]mnist[/b], [b]cifar10[/b], [b]digits[/b]; a folder with one folder per class; a [b].csv[/b] of paths and labels; "
    "[b].tar[/b] shards; a [b].pack[/b]; or an [b].npz[/b] file."
)
Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        metavar="DATA",
        show_default=False,
        help=DATA,
    ),
]
Fusions = Annotated[
    str, typer.Option("--fusions", metavar="NAMES", help="auto: as measured; none, all, or names of rewrites with commas between.")
]
Executed = Annotated[
    Execution,
    typer.Option(
        "--execution",
        help="auto: the whole step replayed where that works (on CUDA one graph), torch.compile where a long run repays it; replay: "
        "without torch.compile; eager: neither; compile: torch.compile in any case.",
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        "--micro-batch", metavar="SAMPLES", min=1, show_default=False, help="Most samples at once; the update is that of the batch."
    ),
]
Together = Annotated[
    str,
    typer.Option(
        "--steps-per-execution",
        metavar="K",
        callback=parse_batch_size,
        help="Steps between two calls of callbacks, on CUDA in one graph; [b]auto[/b]: as many as nobody notices.",
    ),
]
OptionalModel = Annotated[str | None, get_args(Model)[1]]
OptionalData = Annotated[str | None, get_args(Data)[1]]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Samples per step.")]
BatchSizeOrAuto = Annotated[
    str,
    typer.Option(
        "--batch-size",
        "-b",
        metavar="N",
        callback=parse_batch_size,
        help="Samples per step; [b]auto[/b] measures the largest that is still getting faster.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", callback=check_device, help="auto, cpu, cuda, cuda:1, mps or xpu.")
]
Progress = Annotated[Verbose, typer.Option("--verbose", help="0 silent, 1 progress line, 2 a line per epoch.")]
ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size", metavar="HEIGHT,WIDTH", callback=check_size, show_default=False, help="Resize the pictures of a folder."
    ),
]
Colors = Annotated[ColorMode, typer.Option("--color-mode", help="Colours of the pictures of a folder.")]
Decoding = Annotated[
    Decoder,
    typer.Option(
        "--decoder",
        help="Of pictures in files; [b]nvjpeg[/b]: of JPEGs an NVIDIA GPU, whose pixels differ from the usual ones by a few levels.",
    ),
]
Augment = Annotated[
    str | None,
    typer.Option(
        "--augment",
        metavar="WORDS",
        show_default=False,
        help=(
            "Change the pictures of the training, anew in each epoch: [b]flip,rotate=10,zoom=0.2[/b], [b]auto[/b], "
            "[b]trivial[/b], [b]randaugment[/b], …"
        ),
    ),
]
Code = Annotated[
    str | None,
    typer.Option(
        "--code",
        metavar="FILE.py",
        show_default=False,
        help=("Your Python file with the classes of layers and models that the saved model needs."),
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        show_default=False,
        help="Begin with these weights ([b].safetensors[/b] of Convolt or PyTorch, [b].h5[/b], [b].keras[/b]); "
        "a head for other classes begins anew.",
    ),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze",
        metavar="LAYERS",
        show_default=False,
        help="Layers that do not learn: [b]backbone[/b] (all but the head), or names and patterns such as [b]block1_*[/b].",
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option",
        metavar="NAME=VALUE",
        show_default=False,
        help="An argument of the architecture, such as [b]variant=torch[/b] or [b]dropout=0.3[/b], or of your function; may be repeated.",
    ),
]
