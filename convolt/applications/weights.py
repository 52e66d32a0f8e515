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
from convolt.layers import BatchNormalization, ZeroPadding2D
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
        synonyms: (pattern, replacement) pairs that make the first publisher's names of those of others; `prepare`, `head` and
            `rules` see only the first's.
        strict: whether those others' names alone are taken, since the first publisher's networks compute something else.
        variant: the value of `variant` with which a model for these weights is made, where not any will do; one with Keras's padding or
            without scales is refused, but for "tf", which has them.
        pixels: mode of `imagenet_utils.PIXELS` of the networks in these files.
        pixels_by_name: name of a weight → mode of the files that have it, where there are several publishers.
    """

    rules: Rules
    prepare: Callable[[Tensors, Model], Tensors] | None = None
    title: str = "torchvision"
    head: str = r"(fc|classifier|head)\..*"
    synonyms: Rules = ()
    strict: bool = False
    variant: str = ""
    pixels: str = "torch"
    pixels_by_name: Mapping[str, str] = field(default_factory=dict)

    def pixels_of(self, path: Path) -> str:
        """Returns the mode of pixels of the network whose weights are in a file."""
        there = read_header(path).tensors
        return next((mode for name, mode in self.pixels_by_name.items() if name in there), self.pixels)

    @property
    def fix(self) -> str:
        """What to do where the names do not fit, for messages."""
        return f'Weights of {self.title} need variant="{self.variant}".' if self.variant else ""

    def name(self, own: str) -> str | None:
        """Returns PyTorch's name of a weight of Convolt's, or None if no rule fits."""
        return _renamed(own, self.rules)

    def first(self, theirs: str) -> str:
        """Returns what the first publisher calls a weight of any."""
        return _renamed(theirs, self.synonyms) or (f"another publisher's {theirs}" if self.strict else theirs)

    def table(self, model: Model) -> dict[str, str | None]:
        """Returns Convolt's name → PyTorch's name for each weight."""
        return {own: self.name(own) for own in model.state_dict()}

    def prepared(self, tensors: Tensors, model: Model, include_top: bool = True) -> Tensors:
        """Returns a state dict whose tensors fit one by one, under the first publisher's names and without counters.

        Raises:
            ModelFileError: the weights are of networks that pad as PyTorch does, and the model is another.
        """
        if self.variant not in ("", "tf") and (layer := _as_in_keras_alone(model)):
            raise ModelFileError(explain(f"weights of {self.title}", f"a model as Keras has it, for example in {layer!r}",
                                         "one that pads and normalizes as theirs do", self.fix))
        tensors = {self.first(name): tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
        if not include_top:
            tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(self.head, name)}
        return tensors if self.prepare is None else self.prepare(tensors, model)


def as_convolutions(tensors: Tensors, model: Model) -> Tensors:
    """Makes convolutions 1×1 of the classifier's dense layers."""
    return {name: tensor[:, :, None, None] if name.startswith("classifier.") and tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()}


def as_dense(tensors: Tensors, model: Model) -> Tensors:
    """Makes a dense layer of a classifier that is a convolution 1×1."""
    return {name: tensor.flatten(1) if name.endswith("fc.weight") and tensor.ndim == 4 else tensor for name, tensor in tensors.items()}


def _renamed(name: str, rules: Rules) -> str | None:
    """Returns what the first rule that matches the whole of a name makes of it; None: none does."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    return None


def _as_in_keras_alone(model: Model) -> str:
    """Returns the name of a layer that may pad one side more than the other, or normalizes without a scale; "": there is none."""
    for layer in model.layers:
        if isinstance(layer, ZeroPadding2D):
            found = any(before != after for before, after in layer.padding)
        elif isinstance(layer, BatchNormalization):
            found = not layer.scale
        else:
            sizes = getattr(layer, "kernel_size", getattr(layer, "pool_size", (1,)))
            found = getattr(layer, "padding", "valid") == "same" and max(sizes) > 1 and max(layer.strides) > 1
        if found:
            return str(layer.name)
    return ""


def find(who: str, name: str, weights: Any, include_top: bool, files: Sequence[str] | None = None) -> Path:
    """Returns the file that an argument `weights` means: a path, or the name of weights that lie in a folder.

    Args:
        who: the architecture, for messages.
        name: the architecture's name.
        weights: a path, or a name such as "imagenet".
        include_top: which of Keras's two files is looked for.
        files: names of Keras's file of ImageNet; None: those that most have.

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
    candidates = [f"{name}_{weights}{p}{suffix}" for p in dict.fromkeys((part, "")) for suffix in SUFFIXES]
    if weights == "imagenet":
        usual = [f"{name}_weights_tf_dim_ordering_tf_kernels{part}.h5"]
        candidates = [*(usual if files is None else files), *candidates, f"{name}{part}.h5"]
    folders = weight_folders()
    for folder in folders:
        for candidate in candidates:
            if (folder / candidate).is_file():
                return folder / candidate
    raise ArgumentError(explain(f"{who}(weights)", f"{weights!r}, of which there is no file {few(candidates, 2)}",
                                f"a file's path, or such a file in {' or '.join(map(str, folders))}",
                                "Nothing is downloaded: get the file and give weights='FILE', or set CONVOLT_WEIGHTS to its folder."))


def known_side(sides: Sequence[int | None], known: Sequence[int]) -> int:
    """Returns the side of the pictures that Keras's weights for pictures of (height, width) were trained on, as Keras chooses it."""
    return next((side for side in known if tuple(sides) == (side, side)), 224)


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
        if kind == "safetensors" and torch_names is not None and has_torch_names(model, path, torch_names):
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
    return "pytorch" if torch_names is not None and has_torch_names(model, path, torch_names) else "convolt"


def has_torch_names(model: Model, path: Path, names: TorchNames) -> bool:
    """Whether more of the names in a file are PyTorch's than Convolt's; single ones, such as "conv1.weight", may be both."""
    there = {name for name in read_header(path).tensors if not name.endswith(COUNTER)}
    table = names.table(model)
    return len({names.first(name) for name in there} & set(table.values())) > len(there & set(table))


def _load_torch(model: Model, path: Path, names: TorchNames, include_top: bool) -> None:
    there = names.prepared(safetensors.read(path)[0], model, include_top)
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
