"""What a training begins with: a model whose options fit, the weights of a file, layers that do not learn, data that fit a saved model."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from convolt import applications
from convolt.applications.weights import COUNTER, TorchNames, has_torch_names, load
from convolt.cli import model_options, model_spec, parts, say
from convolt.cli.options import ColorMode
from convolt.data.pictures import Pictures
from convolt.data.sources import Source
from convolt.errors import ArgumentError, DataError, ModelFileError, ShapeError, explain
from convolt.formats import safetensors
from convolt.formats.guard import expect_kind, few
from convolt.models.parts import head_start, parts_of

if TYPE_CHECKING:
    from convolt.applications.family import Architecture
    from convolt.models import Model

Options = dict[str, str]
"""Options of an architecture: names, and texts of values."""

CHOICES = {"stem": ("large", "small"), "variant": ("keras", "torch")}
"""Options under which published weights differ; where nobody says them, a file of weights chooses. More variants are in `entry.others`."""

SAMPLE = 64
"""Pictures that are looked at before they are streamed."""

SETS = {"digits": ((8, 8, 1), 10), "mnist": ((28, 28, 1), 10), "cifar10": ((32, 32, 3), 10)}
"""Data sets that are known by name: shape of a sample, and number of classes."""


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        model: with its parameters made, and the weights of the file if one was given.
        options: of its architecture: those that were given, and those that the size of the pictures or the file decided.
        rows: labels and sentences for the plan.
    """

    model: Model
    options: Options
    rows: list[tuple[str, str]]


def begin(spec: str, input_shape: tuple[int, ...], classes: int, *, code: str | None = None, options: Sequence[str] = (),
          weights: str | None = None, freeze: Sequence[str] = (), several: bool = False) -> Start:
    """Makes the model that MODEL means, with its options, weights and frozen layers.

    Args:
        spec, input_shape, classes, code, several: as `model_spec.make_model` takes them.
        options: values of `--model-option`.
        weights: a file. If it fits another variant or stem than the usual one, and none was given, that one is taken.
        freeze: what does not learn; empty: everything learns.

    Raises:
        ArgumentError, ModelFileError, ShapeError: as `make_model`, `load_start` and `freeze_layers` do.
    """
    given = {name: text for name, text in model_options.parse(options).items() if (name, text) != ("stem", "auto")}
    entry = _entry(spec)
    by_size = {name: text for name, text in model_options.texts(entry.fitted(input_shape) if entry else {}).items() if name not in given}
    chosen = by_size | given

    def make(options: Options) -> Model:
        return model_spec.make_model(spec, input_shape, classes, code, options, several)

    rows = []
    if weights is None:
        model = make(chosen)
    else:
        model, chosen, text = _load_fitting(make, spec, weights, chosen, given)
        rows.append(("weights", text))
    if chosen:
        why = {name: "" if name in given else " (the pictures' size)" if by_size.get(name) == text else " (the weights need it)"
               for name, text in chosen.items()}
        rows.insert(0, ("options", ", ".join(f"{name}={text}{why[name]}" for name, text in chosen.items())))
    if freeze:
        rows.append(("freeze", freeze_layers(model, freeze)))
    return Start(model, chosen, rows)


def _load_fitting(make: Callable[[Options], Model], spec: str, weights: str, chosen: Options,
                  given: Mapping[str, str]) -> tuple[Model, Options, str]:
    """Returns the model with the weights of a file, the options under which they fit, and what was loaded.

    Raises:
        ModelFileError: they do not fit, or only under other options than the given ones, which the message says.
    """
    model = make(chosen)
    try:
        return model, chosen, load_start(model, spec, weights, chosen.get("variant"))
    except ModelFileError as error:
        first = error
    for other in _alternatives(spec, chosen):
        try:
            model = make(other)
            text = load_start(model, spec, weights, other.get("variant"))
        except (ModelFileError, ShapeError):
            continue  # the first error is the one that is told
        if other.items() >= given.items():
            return model, other, text
        needed = {name: other[name] for name in given if other[name] != given[name]}
        raise ModelFileError(f"{first} The file fits {' '.join(model_options.flags(needed))}.") from first
    raise first


def _alternatives(spec: str, chosen: Options) -> Iterator[Options]:
    """Yields the options with other variants and stems, those with fewer changes first."""
    entry = _entry(spec)
    names = [name for name in CHOICES if entry is not None and name in entry.options]
    usual = {name: str(entry.options[name]) for name in names} if entry else {}
    now = usual | chosen
    choices = [(*CHOICES[name], *(entry.others if entry and name == "variant" else ())) for name in names]
    others = [now | dict(zip(names, values, strict=True)) for values in itertools.product(*choices)]
    changes = {i: sum(other[name] != now[name] for name in names) for i, other in enumerate(others)}
    for i in sorted(changes, key=changes.__getitem__):
        if changes[i]:
            yield {name: text for name, text in others[i].items() if name in chosen or usual.get(name) != text}


def _entry(spec: str) -> Architecture | None:
    return applications.get(spec) if spec in applications.names() else None


def load_start(model: Model, spec: str, weights: str, variant: str | None = None) -> str:
    """Reads the weights that a training begins with; a head for other classes keeps its new weights.

    Args:
        model: built.
        spec: MODEL as the user wrote it; the names in PyTorch's files belong to an architecture.
        weights: the file, of Convolt, Keras or PyTorch (`.safetensors`).
        variant: the argument of the architecture, on which PyTorch's names depend.

    Returns:
        What was loaded, as words.

    Raises:
        ArgumentError: there is no such file.
        ModelFileError: it is damaged, or lacks weights of the backbone.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ArgumentError(explain("--weights", f"{weights}, which does not exist", "a file with weights (.safetensors, .h5, .keras)"))
    entry = _entry(spec)
    names = None if entry is None else entry.torch_names(variant)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = _load_what_fits(model, path, names, before)
    if entry is not None:
        entry.match_pixels(model, path, variant)
    if not new:
        return f"all weights of {weights}"
    return f"weights of {weights}, but for {few(new, 2)}, which begin{'s' if len(new) == 1 else ''} anew"


def _load_what_fits(model: Model, path: Path, names: TorchNames | None, before: dict[str, Tensor]) -> list[str]:
    """Returns the names of the weights that the file does not have in the right shape, after loading the others."""
    try:
        load(model, path, names, include_top=True)
        return []
    except ModelFileError as error:
        model.load_state_dict(before)
        whole = error
    try:
        new = _load_partly(model, path, names)
        layers = parts_of(model)
        head = {part.path for part in layers[head_start(model, layers) :]}
        lacking = [name for name in new if name.rpartition(".")[0] not in head]
        if lacking or len(new) == len(before):
            raise ModelFileError(explain(str(path), f"nothing that fits {few(lacking)}", f"the weights of the backbone of {model.name!r}",
                                         f"All of the model's weights: {whole}"))
    except ModelFileError:
        model.load_state_dict(before)
        raise
    own = model.state_dict()
    for name in new:
        own[name].copy_(before[name])
    return new


@torch.no_grad()
def _load_partly(model: Model, path: Path, names: TorchNames | None) -> list[str]:
    """Loads what fits by name and shape; returns the names of the others, whose values are lost."""
    own = model.state_dict()
    if _kind(path) == "safetensors":
        there, _ = safetensors.read(path)
        if names is not None and has_torch_names(model, path, names):
            fitting = names.prepared(there, model)
            there = {name: fitting[theirs] for name, theirs in names.table(model).items() if theirs in fitting}
        fits = {name for name, tensor in there.items() if name in own and own[name].shape == tensor.shape and tensor.isfinite().all()}
        for name in fits:
            own[name].copy_(there[name])
        return [name for name in own if name not in fits and not name.endswith(COUNTER)]
    floats = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
    for tensor in floats.values():
        tensor.fill_(torch.nan)  # what is no number afterwards was not in the file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shapes differ is what we look at
        by_name = _kind(path) == "hdf5" and not path.name.endswith(".weights.h5")  # files of Keras 3 have paths in place of names
        model.load_weights(path, by_name=by_name, skip_mismatch=True)
    return [name for name, tensor in floats.items() if tensor.isnan().any()]


def _kind(path: Path) -> str:
    return expect_kind(path, "safetensors", "hdf5", "keras").name


def freeze_layers(model: Model, what: Sequence[str]) -> str:
    """Freezes layers; returns how much of the model learns, as words.

    Raises:
        ArgumentError: no layer fits, or nothing is left that learns.
    """
    model.freeze(list(what))
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not learning:
        raise ArgumentError(explain("--freeze", ", ".join(what), "layers that leave some to learn", "backbone leaves the head."))
    total = sum(p.numel() for p in model.parameters())
    return f"{', '.join(what)}: {learning:,} of {total:,} parameters learn"


def load_data(model: str, data: str, size: tuple[int, int] | None, color_mode: ColorMode, code: str | None = None,
              leave_beyond: int | None = 0, decoder: str = "cpu") -> Source:
    """Loads DATA for MODEL. Pictures of different sizes get the size of the architecture, unless another is given.

    Args:
        model: MODEL as the user wrote it; the pictures of a folder are resized to what a saved model takes.
        data, size, color_mode, leave_beyond, decoder: as `parts.load` takes them.
        code: see `model_spec.open_saved`.
    """
    try:
        source = parts.load(data, size, color_mode, _saved_shape(model, code), leave_beyond, decoder)
        if isinstance(source.x_train, Pictures):  # so that different sizes are told now
            source.x_train.read(np.unique(np.linspace(0, len(source.x_train) - 1, SAMPLE).astype(int)))
        return source
    except DataError as error:
        if size is not None or "image_size" not in str(error) or model not in applications.names():
            raise
    side = applications.get(model).size
    say.line(f"The pictures have different sizes: they get {side}×{side}, that of {model}; --image-size says another.")
    return parts.load(data, (side, side), color_mode, leave_beyond=leave_beyond, decoder=decoder)


def _saved_shape(model: str, code: str | None) -> tuple[int | None, ...] | None:
    """Returns the shape of a saved model's samples; None for other models."""
    if not model_spec.is_saved(model):
        return None
    shapes = model_spec.open_saved(model, code, "cpu").input_shapes
    return tuple(shapes[0][1:]) if shapes else None


def fitting_data(model: Any) -> str:
    """Returns the name of the data set that a saved model takes, for a command line without `--data`.

    Raises:
        ArgumentError: none fits.
    """
    shapes = model.input_shapes
    shape = tuple(shapes[0][1:]) if len(shapes) == 1 else None
    output: Any = model.compute_output_shape(shapes[0]) if shape is not None and None not in shape else None
    classes = output[-1] if isinstance(output, tuple) and len(output) == 2 else None
    for name, (samples, count) in SETS.items():
        if shape == samples and classes == count and (not model.class_names or list(model.class_names) == _class_names(name)):
            return name
    what = f"samples of shape {shape}" if shape is not None else f"{len(shapes)} inputs"
    raise ArgumentError(explain("--data", "nothing", f"data for this model, which takes {what} and has {classes or 'other'} outputs",
                                "Give a folder with one folder per class, or an .npz file: --data FOLDER. "
                                f"Without --data, one of {', '.join(SETS)} is taken where it fits."))


def _class_names(name: str) -> list[str]:
    from convolt.data import cifar
    from convolt.data.sources import DIGIT_NAMES

    return list(cifar.CLASSES if name == "cifar10" else DIGIT_NAMES)
