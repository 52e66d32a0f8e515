"""A model as other programs see it: channels-last arrays in, channels-last arrays out, any batch size."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from convolt.errors import ArgumentError, ShapeError, StateError, explain
from convolt.layout import to_inside, to_outside

INPUT_DTYPES = ("float32", "uint8")
EXAMPLES = 2  # samples of the example; one would be taken for a batch size that never changes


class Exported(nn.Module):
    """A model in inference mode with the layout and dtype of its inputs and outputs fixed.

    Args:
        model: built; its parameters are shared, so make no step while it is written.
        input_dtype: "float32", or "uint8" to take the bytes of pictures as they are (the cast is part of the model).

    Raises:
        StateError: the shapes of the inputs are not known.
        ArgumentError: the dtype is no possible one.
    """

    def __init__(self, model: Any, input_dtype: str = "float32") -> None:
        super().__init__()
        if input_dtype not in INPUT_DTYPES:
            raise ArgumentError(explain("export(input_dtype)", repr(input_dtype), f"one of {list(INPUT_DTYPES)}"))
        if not model.input_shapes:
            raise StateError(explain(f"export of {model.name!r}", "a model whose input shapes are not known", "a built model",
                                     "Call model.build(input_shape), or predict once."))
        self.model = model
        self.channels_last = model.data_format == "channels_last"
        self.input_names = [_plain(name) for name in model.input_names]
        declared = model.input_dtypes or ["float32"] * len(self.input_names)
        self.dtypes = [input_dtype if dtype == "float32" else dtype for dtype in declared]
        self.entered = declared

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs as a flat tuple."""
        given = [x.to(getattr(torch, dtype)) for x, dtype in zip(inputs, self.entered, strict=True)]
        outputs = self.model(*(to_inside(x) if self.channels_last else x for x in given))
        flat = [outputs] if isinstance(outputs, Tensor) else list(outputs.values() if isinstance(outputs, dict) else outputs)
        return tuple((to_outside(y) if self.channels_last else y).float() for y in flat)

    def examples(self, samples: int = EXAMPLES, seed: int = 0) -> tuple[Tensor, ...]:
        """Returns random inputs: bytes for uint8 and small whole numbers for other integers, else uniform from 0 to 1."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_random((samples, *shape[1:]), dtype, generator) for shape, dtype in zip(self._shapes(), self.dtypes, strict=True))

    def output_names(self) -> list[str]:
        """Returns a name for each output: the model's own where it has them."""
        names = [_plain(name) for name in self.model.output_names]
        with torch.no_grad():
            count = len(self(*self.examples(1)))
        fitting = names if len(names) == count else ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
        return [f"{name}_output" if name in self.input_names else name for name in fitting]

    def _shapes(self) -> list[tuple[int, ...]]:
        shapes = []
        for name, shape in zip(self.input_names, self.model.input_shapes, strict=True):
            if any(size is None for size in shape[1:]):
                raise ShapeError(explain(f"export: input {name!r}", f"the shape {shape}", "known sizes of all axes but the batch",
                                         "Build the model for one size: the file is for that size."))
            shapes.append(tuple(shape))
        return shapes

    def metadata(self) -> dict[str, str]:
        """Returns what a program needs to feed pictures and to name results, as texts."""
        from convolt import __version__

        facts: dict[str, Any] = {
            "convolt_version": __version__,
            "layout": "channels_last" if self.channels_last else "channels_first",
            "inputs": [{"name": n, "shape": [None, *s[1:]], "dtype": d}
                       for n, s, d in zip(self.input_names, self._shapes(), self.dtypes, strict=True)],
            "preprocessing": self._preprocessing(),
            "class_names": list(self.model.class_names) if self.model.class_names else None,
        }
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items() if value is not None}

    def _preprocessing(self) -> dict[str, Any] | None:
        """Returns what a picture needs before it goes in; scaling is done inside, by the model's own layers."""
        shape = self._shapes()[0]
        if len(shape) != 4:
            return None
        height, width, channels = shape[1:] if self.channels_last else (*shape[2:], shape[1])
        color = {1: "grayscale", 4: "rgba"}.get(channels, "rgb")
        return {"resize": [height, width], "interpolation": "bilinear", "color": color,
                "values": "as in training; layers in the file rescale"}


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def _random(shape: tuple[int, ...], dtype: str, generator: torch.Generator) -> Tensor:
    kind = getattr(torch, dtype)
    if kind == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=kind)
    if not kind.is_floating_point:
        return torch.randint(0, 2, shape, generator=generator, dtype=kind)
    return torch.rand(shape, generator=generator, dtype=kind)
