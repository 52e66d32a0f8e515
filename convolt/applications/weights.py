"""Files of weights for the architectures: where they lie, and what their names mean.

Nothing is downloaded. Keras's files (`.h5`, `.weights.h5`, `.keras`) have Keras's layer names and order, which are those of the
architectures here. State dicts of PyTorch (`.safetensors`, as timm and torchvision publish them) have names of their own; each
architecture says by `TorchNames` what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convolt.applications.imagenet_utils import weight_folders
from convolt.errors import ArgumentError, ModelFileError, explain
from convolt.formats import SUFFIXES, safetensors
from convolt.formats.guard import expect_kind, few
from convolt.formats.header import read_header
from convolt.models import Model

Tensors = dict[str, Tensor]
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

COUNTER = "num_batches_tracked"
"""PyTorch's batch normalization counts its batches; nothing here needs the count."""

CLASSIFIER = r"predictions|\bfc\.|classifier|\bhead\b"
"""How the last layer is called in messages about a file."""


@dataclass(frozen=True)
class TorchNames:
    """How PyTorch's state dicts name the weights of an architecture.

    Attributes:
        rules: (pattern, replacement) pairs of regular expressions; the first that matches the whole of a name of Convolt's
            state dict, such as "conv1_bn.weight", makes PyTorch's of it.
        prepare: makes tensors of PyTorch's state dict into ones that fit one by one (the order of a flattened picture, packed
            matrices taken apart); gets the state dict and the model.
        title: whose names they are.
        head: pattern of PyTorch's names of the classifier, which may be left over without a top.
        fix: what to do where the names do not fit, for messages.
        pixels: mode of `imagenet_utils.PIXELS` of the networks in these files.
        pixels_by_name: name of a weight → mode of the files that have it, where there are several publishers.
    """

    rules: Rules
    prepare: Callable[[Tensors, Model], Tensors] | None = None
    title: str = "torchvision"
    head: str = r"(fc|classifier|head)\..*"
    fix: str = ""
    pixels: str = "torch"
    pixels_by_name: Mapping[str, str] = field(default_factory=dict)

    def pixels_of(self, path: Path) -> str:
        """Returns the mode of pixels of the network whose weights are in a file."""
        there = read_header(path).tensors
        return next((mode for name, mode in self.pixels_by_name.items() if name in there), self.pixels)

    def name(self, own: str) -> str | None:
        """Returns PyTorch's name of a weight of Convolt's, or None if no rule fits."""
        for pattern, replacement in self.rules:
            match = re.fullmatch(pattern, own)
            if match:
                return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        return None

    def table(self, model: Model) -> dict[str, str | None]:
        """Returns Convolt's name → PyTorch's name for each weight."""
        return {own: self.name(own) for own in model.state_dict()}


def find(who: str, name: str, weights: Any, include_top: bool) -> Path:
    """Returns the file that an argument `weights` means: a path, or the name of weights that lie in a folder.

    Args:
        who: the architecture, for messages.
        name: the architecture's name.
        weights: a path, or a name such as "imagenet".
        include_top: which of Keras's two files is looked for.

    Raises:
        ArgumentError: there is no such file; the message says which names were looked for and where.
    """
    if isinstance(weights, Path) or (isinstance(weights, str) and (weights.endswith(SUFFIXES) or "/" in weights)):
        path = Path(weights).expanduser()
        inside = [folder / path for folder in weight_folders() if not path.is_absolute() and (folder / path).is_file()]
        if not path.is_file() and not inside:
            raise ArgumentError(explain(f"{who}(weights)", f"{str(weights)!r}, which does not exist", "a file with weights"))
        return path if path.is_file() else inside[0]
    if not isinstance(weights, str):
        raise ArgumentError(explain(f"{who}(weights)", repr(weights), "None, a file's path, or the name of weights"))
    part = "" if include_top else "_notop"
    published = [f"{name}_weights_tf_dim_ordering_tf_kernels{part}.h5"] if weights == "imagenet" else []
    candidates = [f"{name}_{weights}{p}{suffix}" for p in dict.fromkeys((part, "")) for suffix in SUFFIXES]
    candidates += [f"{name}{part}.h5"] if weights == "imagenet" else []
    folders = weight_folders()
    for folder in folders:
        for candidate in [*published, *candidates]:
            if (folder / candidate).is_file():
                return folder / candidate
    raise ArgumentError(explain(f"{who}(weights)", f"{weights!r}, of which there is no file {few([*published, *candidates], 2)}",
                                f"a file's path, or such a file in {' or '.join(map(str, folders))}",
                                "Nothing is downloaded: get the file and give weights='FILE', or set CONVOLT_WEIGHTS to its folder."))


def published(name: str) -> tuple[str, str]:
    """Returns what Keras calls its files of ImageNet since EfficientNet, with and without the classifier."""
    return f"{name}.h5", f"{name}_notop.h5"


def load(model: Model, path: Path, torch_names: TorchNames | None, *, include_top: bool) -> None:
    """Reads weights into an architecture, from a file of Keras, Convolt or PyTorch.

    Raises:
        ModelFileError: the file is damaged, or of another architecture; the message lists what does not fit.
    """
    kind = expect_kind(path, "safetensors", "hdf5", "keras").name
    try:
        if kind == "safetensors" and torch_names is not None and _has_torch_names(model, path, torch_names):
            _load_torch(model, path, torch_names, include_top)
        else:
            model.load_weights(path)
    except ModelFileError as error:
        if not (include_top and re.search(CLASSIFIER, str(error))):
            raise
        raise ModelFileError(f"{error} If they were trained on other classes: include_top=False, and a classifier of your own.") from error


def origin(model: Model, path: Path, torch_names: TorchNames | None) -> str:
    """Returns whose file of weights it is: "keras", "pytorch" or "convolt"."""
    if expect_kind(path, "safetensors", "hdf5", "keras").name != "safetensors":
        return "keras"
    return "pytorch" if torch_names is not None and _has_torch_names(model, path, torch_names) else "convolt"


def _has_torch_names(model: Model, path: Path, names: TorchNames) -> bool:
    """Whether more of the names in a file are PyTorch's than Convolt's; single ones, such as "conv1.weight", may be both."""
    there = {name for name in read_header(path).tensors if not name.endswith(COUNTER)}
    table = names.table(model)
    return len(there & set(table.values())) > len(there & set(table))


def _load_torch(model: Model, path: Path, names: TorchNames, include_top: bool) -> None:
    there, _ = safetensors.read(path)
    there = {name: tensor for name, tensor in there.items() if not name.endswith(COUNTER)}
    if not include_top:
        there = {name: tensor for name, tensor in there.items() if not re.fullmatch(names.head, name)}
    if names.prepare is not None:
        there = names.prepare(there, model)
    table = {own: theirs for own, theirs in names.table(model).items() if not own.endswith(COUNTER)}
    _compare(model, path, names, table, there)
    own = model.state_dict()
    for name, theirs in table.items():
        value = there[str(theirs)]
        if tuple(value.shape) != tuple(own[name].shape):
            raise ModelFileError(explain(f"{path}: {theirs}", f"shape {tuple(value.shape)}", f"{tuple(own[name].shape)} for {name!r}"))
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelFileError(explain(f"{path}: {theirs}", "values that are NaN or infinite", "finite weights"))
    for name, theirs in table.items():
        own[name].copy_(there[str(theirs)])


def _compare(model: Model, path: Path, names: TorchNames, table: Mapping[str, str | None], there: Tensors) -> None:
    missing = [str(theirs) for theirs in table.values() if theirs not in there]
    unknown = [name for name in there if name not in set(table.values())]
    if missing or unknown:
        raise ModelFileError(explain(f"{path}: weights", f"missing {few(missing)}, unknown {few(unknown)}",
                                     f"the {len(table)} weights of {model.name!r} under the names of {names.title}", names.fix))
