"""The parts of a model in their order: what can be frozen alone, how it is named, and where the head begins."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from convolt.errors import ArgumentError, ArgumentTypeError, StateError, did_you_mean, explain
from convolt.layers.base import Layer

BACKBONE = "backbone"
"""The word for everything before the head."""

_ENDS = frozenset({"Activation", "Softmax"})  # layers without weights that may follow the head's last one


@dataclass(frozen=True)
class Part:
    """A layer, or a PyTorch module without modules inside, that is frozen as a whole.

    Attributes:
        path: its name in the model's state dict, "vgg16.block1_conv1".
        labels: all by which it can be meant: its name and path, and those of the models that it lies in.
        module: itself.
    """

    path: str
    labels: tuple[str, ...]
    module: nn.Module

    @property
    def weighted(self) -> bool:
        """Whether it has weights, or may have some once it is built."""
        return not getattr(self.module, "built", True) or next(self.module.parameters(), None) is not None

    @property
    def stateful(self) -> bool:
        """Whether it has weights or statistics, or may have some once it is built."""
        return self.weighted or next(self.module.buffers(), None) is not None

    @property
    def size(self) -> tuple[int | None, ...] | None:
        """Height and width (or length) of what the layer was built for; () for plain features, None where it is not known."""
        shapes: Any = getattr(self.module, "build_shapes", ())
        shape = shapes[0] if shapes else None
        while isinstance(shape, list) and shape:
            shape = shape[0]
        if shape is None:
            return () if isinstance(self.module, nn.Linear) else None
        return tuple(shape[1:-1])

    @property
    def on_features(self) -> bool:
        """Whether the layer works on features without place: a vector, or a map of 1×1."""
        return self.size is not None and all(side == 1 for side in self.size)

    @property
    def ends_places(self) -> bool:
        """Whether the layer makes one vector of a map: pools all of it, or flattens it."""
        name = type(self.module).__name__
        return name == "Flatten" or name.startswith("Global")


def parts_of(model: nn.Module) -> list[Part]:
    """Returns the parts of a model in the order in which they are called (of a subclass: in which they were made), each once."""
    seen: set[int] = set()
    return [part for part in _walk(model, "", ()) if not (id(part.module) in seen or seen.add(id(part.module)))]  # type: ignore[func-returns-value]


def _walk(module: nn.Module, path: str, outer: tuple[str, ...], inner: str = "") -> Iterator[Part]:
    for key, child in module.named_children():
        full, short = f"{path}{key}", f"{inner}{key}"
        if key == "module" and not getattr(module, "is_leaf", True):  # what wraps a PyTorch module adds nothing to its names
            short = inner.rstrip(".")
        labels = tuple(dict.fromkeys(label for label in (*outer, short, full, getattr(child, "name", "")) if label))
        if _is_unit(child):
            yield Part(full, labels, child)
        else:
            yield from _walk(child, f"{full}.", labels, f"{short}." if short else "")


def _is_unit(module: nn.Module) -> bool:
    if isinstance(module, Layer):
        return module.is_leaf
    return next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None


def chosen(model: Any, parts: list[Part], what: Any, argument: str) -> list[int]:
    """Returns the places of the parts that `what` means.

    Args:
        model: the parts' model.
        parts: of `parts_of`.
        what: "backbone"; a name, a path or a pattern with `*` and `?`; the number of one of `model.layers`; a layer or module;
            or several of these.
        argument: name of the argument, for messages.

    Raises:
        ArgumentError: nothing in the model fits; the nearest name is in the message.
    """
    if isinstance(what, str):
        if what == BACKBONE:
            return list(range(head_start(model, parts)))
        found = [i for i, part in enumerate(parts) if any(fnmatch.fnmatchcase(label, what) for label in part.labels)]
        if not found:
            known = list(dict.fromkeys([BACKBONE, *(label for part in parts for label in reversed(part.labels))]))
            raise ArgumentError(explain(argument, repr(what), "'backbone', or the name or pattern of layers of this model",
                                        did_you_mean(what, known)))
        return found
    if isinstance(what, nn.Module):
        inside = {id(module) for module in what.modules()}
        found = [i for i, part in enumerate(parts) if id(part.module) in inside]
        if not found:
            name = getattr(what, "name", type(what).__name__)
            raise ArgumentError(explain(argument, f"the layer {name!r}", f"a layer of {model.name!r}"))
        return found
    if isinstance(what, int) and not isinstance(what, bool):
        return chosen(model, parts, model.get_layer(index=what), argument)
    if isinstance(what, Iterable):
        return sorted({i for entry in what for i in chosen(model, parts, entry, argument)})
    raise ArgumentTypeError(explain(argument, repr(what), "'backbone', names, patterns, numbers of layers, or layers"))


def head_start(model: Any, parts: list[Part]) -> int:
    """Returns the place of the first part of the head; the number of parts where a model has none.

    A model that has models inside has its head after the last of them. In others the head is what has weights and works on
    features without place, after the last pooling or flattening; where there is no such layer, it is the last layer with
    weights, if a softmax or another activation follows. A model without a head (`include_top=False`) is a backbone as a whole.

    Raises:
        StateError: the shapes in the model are not known yet.
    """
    inside = [layer for layer in model.layers if not _is_unit(layer) and next(layer.parameters(), None) is not None]
    if inside:
        members = {id(module) for module in inside[-1].modules()}
        places = [i for i, part in enumerate(parts) if id(part.module) in members]
        after = places[-1] + 1
        if any(part.weighted for part in parts[after:]):
            return after
        own = parts_of(inside[-1])
        begin = head_start(_Inside(inside[-1]), own)
        return next((i for i in places if begin < len(own) and parts[i].module is own[begin].module), after)
    weighted = [i for i, part in enumerate(parts) if part.weighted]
    if any(not getattr(parts[i].module, "built", True) for i in weighted):
        raise StateError(explain(f"backbone of {model.name!r}", "layers that are not built", "known shapes",
                                 "Start the model with Input(shape), call build((None, height, width, channels)), or name the layers."))
    head: list[int] = []
    for i in reversed(weighted):
        if not parts[i].on_features:
            break
        head.insert(0, i)
    without_place = [i for i in range(len(parts)) if parts[i].ends_places and any(k > i for k in head)]
    if without_place:  # small pictures end as maps of 1×1 long before the pooling
        head = [i for i in head if i > without_place[-1]]
    if head and (len(head) < len(weighted) or len(head) == 1):
        return head[0]
    if weighted and (head or type(parts[-1].module).__name__ in _ENDS):
        return weighted[-1]
    return len(parts)


class _Inside:
    """A model inside another, or a wrapped module, with what `head_start` asks for."""

    def __init__(self, module: nn.Module) -> None:
        inner = getattr(module, "module", module)
        self.layers = list(inner.children()) if isinstance(inner, nn.Module) else []
        self.name = getattr(module, "name", type(module).__name__)


def rate_groups(parts: list[Part], head: int) -> list[list[str]]:
    """Returns paths of parts with weights, in groups from the input to the output; the head is the last group.

    A group of the backbone is a stage: the layers that see maps of one size. Where the size never changes or is not known, the
    groups are the first and the second half.
    """
    groups: list[list[str]] = []
    least = float("inf")
    for part in (part for part in parts[:head] if part.weighted):
        known = [side for side in part.size or () if side is not None]
        area = 1
        for side in known:
            area *= side
        if not groups or (1 < area < least and least != float("inf")):
            groups.append([])
        least = min(least, area) if area > 1 else least
        groups[-1].append(part.path)
    if len(groups) == 1 and len(groups[0]) > 3:
        middle = len(groups[0]) // 2
        groups = [groups[0][:middle], groups[0][middle:]]
    return [*groups, [part.path for part in parts[head:] if part.weighted]]
