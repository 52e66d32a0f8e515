"""The common ground of the architectures: Keras's arguments, their checks, the top, and the list of all.

An architecture is written as the function that computes features from a `Frame`:

>>> @architecture("tiny", family="Tiny", pixels="tf", source="an example")
... def Tiny(frame, *, width=8):
...     x = layers.Conv2D(width, 3, activation="relu", name="conv1")(frame.x)
...     return frame.top(x)
>>> Tiny(classes=10, input_shape=(32, 32, 3), width=4).outputs[0].shape
(None, 10)

The decorator gives it Keras's signature: `Tiny(include_top=True, weights=None, input_tensor=None, input_shape=None, pooling=None,
classes=1000, classifier_activation="softmax", name="tiny", width=8)`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convolt import activations, layers
from convolt.applications import weights as weight_files
from convolt.applications.imagenet_utils import PIXELS
from convolt.applications.recipes import TrainingRecipe
from convolt.errors import ArgumentError, ArgumentTypeError, ModelFileError, ShapeError, did_you_mean, explain
from convolt.layers.arguments import check_positive
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Functional, Model

Shape = tuple[int | None, ...]
Body = Callable[..., SymbolicTensor]

STANDARD: dict[str, Any] = {"include_top": True, "weights": None, "input_tensor": None, "input_shape": None, "pooling": None,
                            "classes": 1000, "classifier_activation": "softmax", "name": None}
"""Keras's arguments in their usual order, with defaults; `weights` is None, since nothing is downloaded."""

POOLINGS = (None, "avg", "max")
PIXEL_LAYER = "pixels"
"""Name of the layer at the front of models that take pixels 0 … 255."""

SMALL_SIDE = 64
"""Pictures with a shorter side below this get the small stem where `stem="auto"`."""

PATCHES = 8
"""Patches along the shorter side of small pictures."""


@dataclass(frozen=True)
class Frame:
    """What an architecture's function gets: its input, and how it shall end.

    Attributes:
        x: the pictures, a symbolic tensor (batch, height, width, channels).
        include_top: whether the classifier is part of the model.
        pooling: what follows the features without a classifier: None, "avg" or "max".
        classes, activation: of the classifier.
        published: whether the weights will be those of ImageNet in Keras's own file.
    """

    x: SymbolicTensor
    include_top: bool = True
    pooling: str | None = None
    classes: int = 1000
    activation: Any = "softmax"
    published: bool = False

    @property
    def small(self) -> bool:
        """Whether the pictures are so small that a stem for 224×224 would leave too little of them."""
        sides = [side for side in self.x.shape[1:3] if side is not None]
        return bool(sides) and min(sides) < SMALL_SIDE

    def is_small(self, who: str, stem: str) -> bool:
        """Whether an argument `stem` ("large", "small" or "auto") means the small stem here.

        Raises:
            ArgumentError: it is none of these.
        """
        if stem not in ("large", "small", "auto"):
            raise ArgumentError(explain(f"{who}(stem)", repr(stem), "'large', 'small' or 'auto'"))
        return stem == "small" or (stem == "auto" and self.small)

    def top(self, x: SymbolicTensor, *, pool_names: tuple[str, str] = ("avg_pool", "max_pool"), dropout: float = 0.0,
            dropout_name: str = "top_dropout", name: str = "predictions") -> SymbolicTensor:
        """Returns the usual end: the mean over all positions and a classifier, or the pooled features, or the features."""
        if not self.include_top:
            return self.pooled(x, pool_names)
        x = layers.GlobalAveragePooling2D(name=pool_names[0])(x)
        if dropout > 0:
            x = layers.Dropout(dropout, name=dropout_name)(x)
        return self.classify(x, name)

    def classify(self, x: SymbolicTensor, name: str = "predictions", **options: Any) -> SymbolicTensor:
        """Returns the classifier, a `Dense`, on features (batch, features)."""
        return layers.Dense(self.classes, activation=self.activation, name=name, **options)(x)  # type: ignore[no-any-return]

    def pooled(self, x: SymbolicTensor, names: tuple[str | None, str | None] = ("avg_pool", "max_pool")) -> SymbolicTensor:
        """Returns the features as `pooling` says."""
        if self.pooling == "avg":
            return layers.GlobalAveragePooling2D(name=names[0])(x)  # type: ignore[no-any-return]
        if self.pooling == "max":
            return layers.GlobalMaxPooling2D(name=names[1])(x)  # type: ignore[no-any-return]
        return x


@dataclass(frozen=True)
class Architecture:
    """An entry of the list of architectures.

    Attributes:
        name: as the command line takes it, and of the model: "vgg16".
        family: its family's title: "VGG".
        source: paper, and the implementation whose weights fit.
        function: with Keras's signature.
        size: side of the pictures if `input_shape` is None.
        smallest: least side.
        channels: of the pictures if `input_shape` is None.
        pixels: mode of `preprocess_input`, see `imagenet_utils.PIXELS`; "none" where the model takes 0 … 255.
        flattens: whether the top has a `Flatten`, which needs a known size.
        sized: whether the size must be known without a top, too; it is `size` if `input_shape` is None.
        classes: default number of classes.
        torch: names of PyTorch's state dicts, see `convolt.applications.weights.TorchNames`; None where there is no such map.
        others: further values of `variant` → names of PyTorch's state dicts under it.
        options: the function's own arguments with their defaults.
        plain: whether the function takes (input_shape, classes) alone and pixels 0 … 255.
        files: (options, height and width, whether with the classifier) → names of Keras's file of ImageNet, where it is not called as
            most are.
        recipe: how `convolt train` trains it where nothing else is said; None: as all others.
    """

    name: str
    family: str
    source: str
    function: Callable[..., Model]
    size: int = 224
    smallest: int = 32
    channels: int = 3
    pixels: str = "torch"
    flattens: bool = False
    sized: bool = False
    classes: int = 1000
    torch: weight_files.TorchNames | None = None
    others: Mapping[str, weight_files.TorchNames] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    files: Callable[[Mapping[str, Any], Shape, bool], Sequence[str]] | None = None
    recipe: TrainingRecipe | None = None

    def make(self, input_shape: Sequence[int], classes: int, **arguments: Any) -> Model:
        """Returns the model for pictures with values 0 … 255 as they are: the command line's way.

        The pixels are brought into the range of the architecture by a layer at the front, and small pictures get a stem or patches of
        their size (`fitted`).

        Args:
            input_shape: (height, width, channels).
            classes: number of classes.
            **arguments: others of the function, such as `weights`.
        """
        if self.plain:
            return self.function(tuple(input_shape), classes, **arguments)
        arguments = self.fitted(input_shape) | arguments
        x = layers.Input(tuple(input_shape))
        if self.pixels == "none" or "include_preprocessing" in self.options:
            return self.function(classes=classes, input_tensor=x, **arguments)
        scale, offset = _line(self.pixels, int(input_shape[-1]))
        if arguments.get("weights") is not None:
            arguments["weights"] = self.find(arguments["weights"], arguments, x.shape[1:3])
        model = self.function(classes=classes, input_tensor=layers.Rescaling(scale, offset, name=PIXEL_LAYER)(x), **arguments)
        if arguments.get("weights") is not None:
            self.match_pixels(model, arguments["weights"], arguments.get("variant"))
        return model

    def torch_names(self, variant: str | None) -> weight_files.TorchNames | None:
        """Returns how PyTorch's state dicts name the weights under a value of `variant`; None: there are no such names."""
        return self.others.get(variant or "", self.torch)

    def find(self, weights: Any, arguments: Mapping[str, Any], sides: Shape) -> Path:
        """Returns the file that `weights` means for the function's arguments and pictures of (height, width).

        Raises:
            ArgumentError: there is no such file; the message says which names were looked for and where.
        """
        top = bool(arguments.get("include_top", True))
        published = None if self.files is None else self.files({**self.options, **arguments}, sides, top)
        return weight_files.find(self.function.__name__, self.name, weights, top, published)

    def fitted(self, input_shape: Sequence[int]) -> dict[str, Any]:
        """Returns the options that `make` chooses by the size of the pictures, (height, width, channels); none for large ones.

        Below 64 pixels the small stem, and up to 64 pixels patches of an eighth of the shorter side, where an architecture has these.
        """
        side = min(int(side) for side in input_shape[:2])
        found: dict[str, Any] = {}
        if "stem" in self.options and side < SMALL_SIDE:
            found["stem"] = "small"
        if "patch_size" in self.options and side <= SMALL_SIDE:
            found["patch_size"] = max(1, side // PATCHES)
        return found

    def match_pixels(self, model: Model, path: Path, variant: str | None = None) -> None:
        """Makes a model of `make` see pixels as the network did whose weights it was given.

        Published files of one architecture differ: Keras's of VGG and ResNet are for BGR less a mean, which becomes RGB by a reversed
        first kernel; PyTorch's are for mean 0 and deviation 1 of ImageNet, or what `torch.pixels` says. Convolt's own are as `make` is.

        Args:
            model: made by `make`, with the weights.
            path: the file that the weights came from.
            variant: the argument with which the model was made.
        """
        front = next((layer for layer in model.layers if layer.name == PIXEL_LAYER and isinstance(layer, layers.Rescaling)), None)
        if front is None:
            return
        names = self.torch_names(variant)
        origin = weight_files.origin(model, path, names)
        channels = int(model.input_shapes[0][-1])  # type: ignore[arg-type]
        if origin == "pytorch" and names is not None:
            front.scale, front.offset = _line(names.pixels_of(path), channels, each=True)
            front.build(model.input_shapes[0])
        elif origin == "keras" and PIXELS[self.pixels][2] and channels == 3:
            first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
            kernel: Tensor = first.weight.detach()
            kernel.copy_(kernel.flip(1))


def _line(mode: str, channels: int, each: bool = False) -> tuple[Any, Any]:
    """Returns (scale, offset) by which RGB pixels 0 … 255 become those of a mode; of the channels' mean where there are not three.

    Args:
        mode: of `PIXELS`.
        channels: of the pictures.
        each: whether they are lists for each channel also where all are equal.
    """
    mean, deviation, reverse = PIXELS[mode] if len(PIXELS[mode][0]) in (1, channels) else PIXELS["tf"]
    count = channels if each else len(mean)
    mean, deviation = (mean[::-1] if reverse else mean) * (count // len(mean)), deviation * (count // len(deviation))
    scale, offset = [1 / d for d in deviation], [-m / d for m, d in zip(mean, deviation, strict=True)]
    return (scale[0], offset[0]) if count == 1 and not each else (scale, offset)


_entries: dict[str, Architecture] = {}


def names() -> list[str]:
    """Returns the names of all architectures, as the command line takes them, family by family."""
    return sorted(_entries, key=lambda name: _entries[name].family)


def add(entry: Architecture) -> None:
    """Puts an architecture on the list."""
    assert entry.name not in _entries, f"{entry.name} is listed twice"
    _entries[entry.name] = entry


def get(name: str) -> Architecture:
    """Returns the entry of an architecture by its name, in any case.

    Raises:
        ArgumentError: there is none; the nearest is named.
    """
    key = str(name).lower()
    if key not in _entries:
        raise ArgumentError(explain("architecture", repr(name), "the name of a known architecture", did_you_mean(key, _entries)))
    return _entries[key]


def architecture(name: str, *, family: str, source: str, arguments: str = "", **facts: Any) -> Callable[[Body], Callable[..., Model]]:
    """Decorator that makes an architecture of a function of a `Frame`, and lists it.

    Args:
        name: of the model and in the list.
        family: title of the family.
        source: paper and implementation.
        arguments: order of the arguments, by names, where Keras's is another than that of `STANDARD` and then the function's own.
        **facts: others of `Architecture`.
    """

    def decorate(body: Body) -> Callable[..., Model]:
        own = [p for p in inspect.signature(body).parameters.values() if p.kind is p.KEYWORD_ONLY]
        defaults = STANDARD | {"name": name, "classes": facts.get("classes", 1000)} | {p.name: p.default for p in own}
        order = arguments.split() or list(defaults)
        assert sorted(order) == sorted(defaults), f"{name}: arguments are {sorted(defaults)}"
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(key, kind, default=defaults[key]) for key in order])

        @functools.wraps(body)
        def make(*args: Any, **kwargs: Any) -> Model:
            for key in kwargs:
                if key not in defaults:
                    raise ArgumentTypeError(explain(f"{body.__name__}(...)", f"the unknown argument {key!r}",
                                                    f"an argument of {body.__name__}", did_you_mean(key, defaults)))
            given = signature.bind(*args, **kwargs).arguments
            return _build(entry, body, {**defaults, **given})

        make.__signature__ = signature  # type: ignore[attr-defined]
        make.__annotations__ = {"return": Model}
        entry = Architecture(name, family, source, make, options={p.name: p.default for p in own}, **facts)
        add(entry)
        return make

    return decorate


def _build(entry: Architecture, body: Body, values: dict[str, Any]) -> Model:
    """Checks Keras's arguments, calls the function and loads the weights."""
    who = body.__name__
    options = {key: value for key, value in values.items() if key not in STANDARD}
    activation, weights = values["classifier_activation"], values["weights"]
    if values["pooling"] not in POOLINGS:
        raise ArgumentError(explain(f"{who}(pooling)", repr(values["pooling"]), "None, 'avg' or 'max'"))
    classes = check_positive(who, "classes", values["classes"])
    x, path = _input(entry, who, values["input_shape"], values["input_tensor"], bool(values["include_top"])), None
    if weights is not None:
        path = entry.find(weights, values, x.shape[1:3])
        if values["include_top"] and activations.get(activation) not in (activations.softmax, activations.linear):
            raise ArgumentError(explain(f"{who}(classifier_activation)", repr(activation), "'softmax' or None where weights are loaded"))
    published = path is not None and path.name in weight_files.published(entry.name)
    output = body(Frame(x, bool(values["include_top"]), values["pooling"], classes, activation, published), **options)
    sources = [x] if values["input_tensor"] is None else _sources(x)
    model = Functional(sources[0] if len(sources) == 1 else sources, output, name=values["name"])
    if path is not None:
        _load(model, entry, path, values)
    return model


def _load(model: Model, entry: Architecture, path: Path, values: Mapping[str, Any]) -> None:
    try:
        weight_files.load(model, path, entry.torch_names(values.get("variant")), include_top=bool(values["include_top"]))
    except ModelFileError as error:
        first = next((layer.name for layer in model.layers if isinstance(layer, layers.Conv2D)), None)
        if values.get("stem", "large") == "large" or first is None or first not in str(error):
            raise
        raise ModelFileError(f'{error} Published weights are of the large stem: stem="large".') from error


def _input(entry: Architecture, who: str, shape: Any, tensor: Any, include_top: bool) -> SymbolicTensor:
    """Returns the symbolic input after checking its shape.

    Raises:
        ArgumentTypeError: `input_tensor` is no symbolic tensor.
        ShapeError: the shape is not that of pictures, too small, or unknown where a `Flatten` needs it.
    """
    if tensor is not None and not isinstance(tensor, SymbolicTensor):
        raise ArgumentTypeError(explain(f"{who}(input_tensor)", type(tensor).__name__, "a symbolic tensor",
                                        "Start with convolt.Input(shape)."))
    if tensor is not None:
        if shape is not None and tuple(shape) != tensor.shape[1:]:
            raise ShapeError(explain(f"{who}(input_shape, input_tensor)", f"{tuple(shape)} and a tensor of shape {tensor.shape}",
                                     "one of them, or equal shapes"))
        shape = tensor.shape[1:]
    if shape is None:
        side = entry.size if include_top or entry.sized else None
        shape = (side, side, entry.channels)
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    whole = all(size is None or (isinstance(size, int) and size > 0) for size in sizes)
    if len(sizes) != 3 or not whole or sizes[2] is None:
        raise ShapeError(explain(f"{who}(input_shape)", repr(shape), "(height, width, channels)",
                                 f"For example (224, 224, {entry.channels})."))
    if any(size is not None and size < entry.smallest for size in sizes[:2]):
        raise ShapeError(explain(f"{who}(input_shape)", repr(sizes), f"pictures of at least {entry.smallest}×{entry.smallest} pixels"))
    if entry.sized and None in sizes:
        raise ShapeError(explain(f"{who}(input_shape)", repr(sizes), "a known height and width, which the paddings follow",
                                 f"For example ({entry.size}, {entry.size}, {entry.channels})."))
    if include_top and entry.flattens and None in sizes:
        raise ShapeError(explain(f"{who}(input_shape)", repr(sizes), "a known height and width, which the classifier needs",
                                 "Or take include_top=False."))
    return layers.Input(sizes) if tensor is None else tensor


def _sources(tensor: SymbolicTensor) -> list[SymbolicTensor]:
    """Returns the inputs from which a symbolic tensor comes."""
    found: dict[int, SymbolicTensor] = {}
    seen, open_ends = set(), [tensor]
    while open_ends:
        end = open_ends.pop()
        if id(end) in seen:
            continue
        seen.add(id(end))
        if end.node is None:
            found[id(end)] = end
        else:
            open_ends += end.node.inputs
    return list(found.values())
