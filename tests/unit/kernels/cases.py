"""What the sweep runs for each row of the table of kernels. A row without a case fails the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Op = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One use of one op.

    `make(dtype)` returns the inputs; `call(op, inputs, dtype)` returns the results, of which the first is differentiated
    if `gradients` is set. Inputs and dtype are float64 for the true result. The next `states` results are running
    statistics, whose slack is relative to their size. An error may be `times` that of eager PyTorch.
    Where `spreads` is set, NaN may come out in more places than there.
    """

    kernel: str
    name: str
    make: Callable[[torch.dtype], list[Tensor]]
    call: Callable[[Op, list[Tensor], torch.dtype], list[Tensor]]
    gradients: bool = True
    states: int = 0
    times: float = 2.0
    spreads: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}-{self.name}"


def random(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    return torch.randn(shape) * scale + offset


POOL_SHAPES = {
    "even": ((2, 8, 6, 6), (2, 2)),
    "odd": ((3, 5, 7, 9), (2, 2)),
    "one_channel": ((2, 1, 6, 5), (2, 2)),
    "many_channels": ((2, 33, 4, 5), (2, 2)),
    "one_window": ((2, 3, 2, 3), (2, 2)),
    "flat": ((1, 3, 1, 9), (1, 2)),
    "tall_windows": ((2, 4, 11, 7), (3, 2)),
    "no_windows": ((2, 6, 3, 3), (1, 1)),
    "threads": ((4, 32, 40, 40), (2, 2)),
}


def pool_cases() -> list[Case]:
    found = []
    for name, (shape, pool) in POOL_SHAPES.items():
        for scale in (1.0, 1e4) if name == "odd" else (1.0,):
            label = name if scale == 1.0 else "large_values"
            found.append(Case("relu_max_pool", label, lambda dtype, s=shape, k=scale: [random(*s, scale=k).to(dtype)],
                              lambda op, x, dtype, p=pool: [op(*x, p)]))
            found.append(Case("bias_relu_max_pool", label,
                              lambda dtype, s=shape, k=scale: [random(*s, scale=k).to(dtype), random(s[1], scale=k)],
                              lambda op, x, dtype, p=pool: [op(*x, p)]))
    return found


MAX_POOLS = {  # shape of x, window, strides, padding, and whether windows reach over the end
    "halves": ((2, 16, 6, 8), (2, 2), None, (0, 0), False), "odd": ((3, 48, 7, 9), (2, 2), None, (0, 0), False),
    "overlapping": ((2, 32, 9, 11), (3, 3), (2, 2), (1, 1), False), "over_the_end": ((2, 16, 8, 7), (3, 3), (2, 2), (0, 0), True),
    "padded_over_the_end": ((2, 16, 7, 10), (3, 2), (2, 3), (1, 1), True), "every_place": ((1, 16, 5, 6), (3, 3), (1, 1), (1, 1), False),
    "large": ((2, 16, 13, 12), (5, 5), (2, 2), (2, 2), False), "one_window": ((2, 16, 3, 4), (3, 4), None, (0, 0), False),
    "flat": ((1, 16, 1, 9), (1, 3), (1, 2), (0, 1), False), "gaps": ((2, 16, 9, 9), (2, 2), (4, 3), (0, 0), True),
    "smaller_than_a_window": ((2, 16, 1, 2), (2, 3), (2, 2), (0, 0), True),
    "few_channels": ((2, 5, 6, 6), (2, 2), None, (0, 0), False), "threads": ((4, 64, 40, 40), (3, 3), (2, 2), (1, 1), False),
}


def max_pool_cases() -> list[Case]:
    return [Case("max_pool", name, lambda dtype, s=shape: [random(*s).to(dtype)],
                 lambda op, x, dtype, g=given, c=ceil: [op(*x, *g, ceil_mode=c)], gradients=False)
            for name, (shape, *given, ceil) in MAX_POOLS.items()]


def bias_cases() -> list[Case]:
    """The kernel writes over its input, which therefore is no leaf."""
    return [Case("bias_relu", name, lambda dtype, s=shape, k=scale: [random(*s, scale=k).to(dtype), random(s[1], scale=k)],
                 lambda op, x, dtype: [op(x[0] * 1.0, x[1])])
            for name, shape, scale in (("small", (4, 5, 7, 9), 1.0), ("odd", (3, 33, 5, 3), 1.0), ("one_channel", (2, 1, 6, 5), 1.0),
                                       ("places_1", (9, 12, 1, 1), 1.0), ("large_values", (2, 9, 6, 5), 1e4),
                                       ("threads", (8, 64, 20, 20), 1.0))]


CONV_SHAPES = {  # shape of x, filters, padding
    "even": ((2, 1, 8, 8), 16, (0, 0)), "odd": ((3, 3, 9, 11), 33, (0, 0)), "mixed": ((2, 4, 7, 10), 5, (0, 0)),
    "one_window": ((2, 2, 4, 5), 3, (0, 0)), "padded": ((2, 3, 6, 7), 8, (1, 1)), "padded_one_way": ((2, 1, 2, 9), 7, (1, 0)),
    "one_filter": ((2, 1, 6, 6), 1, (0, 0)), "many_rows": ((5, 1, 28, 28), 32, (0, 0)), "threads": ((9, 3, 42, 42), 32, (0, 0)),
}


def conv_cases() -> list[Case]:
    """The images need no gradient, as in a first layer."""
    found = []
    for name, (shape, filters, padding) in CONV_SHAPES.items():
        for bias in (True, False) if name in ("odd", "even") else (True,):
            for scale in (1.0, 1e3) if name == "odd" and bias else (1.0,):
                label = ("large_values" if scale != 1.0 else name) if bias else f"{name}_no_bias"
                found.append(Case(
                    "conv_relu_max_pool", label,
                    lambda dtype, s=shape, f=filters, k=scale, b=bias: [random(*s, scale=k).to(dtype), random(f, s[1], 3, 3),
                                                                        *([random(f, scale=k)] if b else [])],
                    lambda op, x, dtype, p=padding: [op(x[0].detach(), *x[1:], padding=p)]))
    return found


POOLED_SHAPES = {  # shape of x, weights' (filters, height, width), pool, padding
    "odd": ((3, 5, 9, 11), (33, 3, 3), (2, 2), (0, 0)), "even": ((2, 8, 6, 6), (16, 3, 3), (2, 2), (1, 1)),
    "one_by_one": ((2, 7, 6, 4), (9, 1, 1), (2, 2), (0, 0)), "wide_window": ((2, 3, 9, 8), (4, 5, 2), (1, 3), (2, 0)),
    "one_pixel_pool": ((2, 3, 5, 5), (4, 3, 3), (1, 1), (0, 0)), "one_window": ((1, 2, 4, 4), (3, 3, 3), (2, 2), (0, 0)),
    "threads": ((9, 32, 13, 13), (64, 3, 3), (2, 2), (0, 0)),
}


def pooled_cases() -> list[Case]:
    """Weights are scaled as those of layers are."""
    found = []
    for name, (shape, (filters, rows, columns), pool, padding) in POOLED_SHAPES.items():
        for bias in (True, False) if name == "odd" else (True,):
            found.append(Case(
                "pooled_conv", name if bias else f"{name}_no_bias",
                lambda dtype, s=shape, w=(filters, shape[1], rows, columns), b=bias: [
                    random(*s).to(dtype), random(*w, scale=(w[1] * w[2] * w[3]) ** -0.5), *([random(w[0])] if b else [])],
                lambda op, x, dtype, p=pool, q=padding: [op(*(x if len(x) == 3 else [*x, None]), p, padding=q)]))
    return found


TILED_SHAPES = {  # shape of x, filters, padding
    "whole_tiles": ((2, 16, 8, 8), 16, (1, 1)), "cut_tiles": ((3, 32, 9, 11), 48, (1, 1)), "inside": ((2, 16, 7, 6), 32, (0, 0)),
    "wide_border": ((1, 16, 3, 4), 16, (2, 2)), "one_way": ((2, 144, 5, 4), 160, (1, 0)), "threads": ((8, 64, 20, 20), 48, (1, 1)),
    "by_chunks": ((5, 144, 9, 7), 160, (1, 1)), "chunk_by_chunk": ((17, 160, 13, 15), 144, (0, 1)),
    "other_channels": ((2, 5, 9, 11), 33, (1, 1)),
}


def tiled_cases() -> list[Case]:
    """Sums of 36 inputs are rounded: errors are up to thirty times those of the plain sum."""
    return [Case("tiled_conv", name if bias else f"{name}_no_bias",
                 lambda dtype, s=shape, f=filters, b=bias: [
                     random(*s).to(dtype), random(f, s[1], 3, 3, scale=(9 * s[1]) ** -0.5), *([random(f)] if b else [])],
                 lambda op, x, dtype, p=padding: [op(*x, padding=p)], times=40.0)
            for name, (shape, filters, padding) in TILED_SHAPES.items() for bias in ((True, False) if name == "cut_tiles" else (True,))]


WINOGRAD_SHAPES = {  # shape of x, filters, padding
    "one_window": ((1, 32, 4, 4), 32, (0, 0)), "one_tile": ((3, 32, 2, 2), 64, (1, 1)), "rectangle": ((2, 64, 6, 10), 32, (1, 1)),
    "padded_one_way": ((2, 32, 6, 4), 32, (0, 1)), "threads": ((7, 32, 16, 16), 64, (1, 1)), "left_over": ((5, 32, 13, 15), 64, (0, 0)),
    "large": ((1, 32, 64, 66), 32, (1, 1)), "other_channels": ((2, 8, 6, 6), 5, (1, 1)),
}


def _winograd_inputs(dtype: torch.dtype, shape: tuple[int, ...], filters: int, bias: bool, pooled: bool) -> list[Tensor]:
    """In bfloat16 before pooling, small whole numbers, so that no rounding moves a maximum and equal ones are many."""
    if pooled and dtype == torch.bfloat16:
        drawn = [torch.randint(-2, 3, shape), torch.randint(-1, 2, (filters, shape[1], 3, 3)), torch.randint(-9, 10, (filters,))]
        return [t.to(kind) for t, kind in zip(drawn[: 2 + bias], (dtype, torch.float32, torch.float32), strict=False)]
    return [random(*shape).to(dtype), random(filters, shape[1], 3, 3, scale=(9 * shape[1]) ** -0.5), *([random(filters)] if bias else [])]


def winograd_cases() -> list[Case]:
    """Weights are scaled as those of layers are; the transforms round once more than a plain product does."""
    found = []
    for name, (shape, filters, padding) in WINOGRAD_SHAPES.items():
        for bias in (True, False) if name == "rectangle" else (True,):
            for kernel, relu in (("winograd_conv", False), ("winograd_max_pool", True), ("winograd_max_pool", False)):
                label = f"{name}{'' if bias else '_no_bias'}{'' if relu or kernel == 'winograd_conv' else '_no_relu'}"
                settings = {"padding": padding} if kernel == "winograd_conv" else {"padding": padding, "relu": relu}
                found.append(Case(
                    kernel, label,
                    lambda dtype, s=shape, f=filters, b=bias, p=kernel == "winograd_max_pool": _winograd_inputs(dtype, s, f, b, p),
                    lambda op, x, dtype, settings=settings: [op(*x, **settings)], times=4.0, spreads=True))
    return found


DEPTHWISE_SHAPES = {  # shape of x, window, strides, padding
    "same": ((2, 16, 7, 6), (5, 5), (1, 1), (2, 2)), "wide": ((3, 24, 9, 11), (3, 7), (1, 1), (0, 3)),
    "strides": ((2, 33, 9, 8), (5, 5), (2, 2), (2, 2)), "other_strides": ((2, 16, 8, 9), (3, 3), (1, 2), (1, 0)),
    "one_place": ((3, 17, 7, 7), (7, 7), (1, 1), (0, 0)), "few_channels": ((2, 5, 6, 6), (5, 5), (1, 1), (2, 2)),
    "threads": ((4, 96, 24, 24), (7, 7), (1, 1), (3, 3)),
}


def depthwise_cases() -> list[Case]:
    return [Case("depthwise_conv", name if bias else f"{name}_no_bias",
                 lambda dtype, s=shape, w=window, b=bias: [random(*s).to(dtype), random(s[1], 1, *w, scale=(w[0] * w[1]) ** -0.5),
                                                           *([random(s[1])] if b else [])],
                 lambda op, x, dtype, s=strides, p=padding: [op(*x, strides=s, padding=p)])
            for name, (shape, window, strides, padding) in DEPTHWISE_SHAPES.items()
            for bias in ((True, False) if name == "same" else (True,))]


NORM_SHAPES = {
    "small": (4, 5, 7, 9), "one_channel": (3, 1, 5, 5), "even": (2, 16, 8, 8), "odd_channels": (2, 33, 4, 3), "places_1": (9, 12, 1, 1),
    "features": (8, 3), "sequence": (4, 6, 11), "volume": (2, 4, 3, 2, 3), "threads": (8, 64, 20, 20),
}


def _norm(op: Op, x: list[Tensor], affine: bool = True, **settings: Any) -> list[Tensor]:
    """The last four inputs are weight, bias and the running statistics."""
    mean, var = x[-2].detach().clone(), x[-1].detach().clone().abs() + 0.5
    weight, bias = (x[-4], x[-3]) if affine else (None, None)
    if isinstance(settings.get("momentum"), str):  # a share that lies on the device
        settings["momentum"] = torch.tensor(float(settings["momentum"]), device=mean.device)
    out = op(*x[:-4], weight, bias, mean, var, **settings)
    return [out, mean, var]


def norm_cases() -> list[Case]:
    found = []
    for kernel in ("bn", "bn_relu", "bn_add", "bn_add_relu"):
        def add(name: str, shape: tuple[int, ...], scale: float = 1.0, offset: float = 0.0, gradients: bool = True, kernel: str = kernel,
                **settings: Any) -> None:
            def make(dtype: torch.dtype) -> list[Tensor]:
                large = [random(*shape, scale=scale, offset=offset).to(dtype)]
                large += [random(*shape).to(dtype)] if "add" in kernel else []
                return [*large, *(random(shape[1]) + 1.0 for _ in range(4))]

            found.append(Case(kernel, name, make, lambda op, x, dtype: _norm(op, x, **settings), gradients, states=2))

        for name, shape in NORM_SHAPES.items():
            add(name, shape, training=True, momentum=0.1)
        add("unbiased", (4, 5, 3, 2), training=True, momentum=0.3, unbiased=True, eps=1e-5)
        add("share_on_the_device", (4, 5, 3, 2), training=True, momentum="0.7")
        add("no_affine", (4, 5, 3, 2), training=True, affine=False)
        add("large_mean", (4, 9, 6, 5), offset=300.0, training=True)
        add("large_values", (4, 9, 6, 5), scale=1e4, training=True)
        add("inference", (3, 7, 5, 4), gradients=False, training=False)
        add("inference_no_affine", (3, 1, 5, 4), gradients=False, training=False, affine=False)
        add("frozen", (3, 7, 5, 4), training=False)
    for activation in ("linear", "relu", "relu6", "silu", "hard_silu"):
        for name, shape, scale, training in (("small", (4, 5, 7, 9), 1.0, True), ("odd_channels", (2, 33, 4, 3), 1.0, True),
                                             ("large_values", (4, 9, 6, 5), 1e4, True), ("inference", (3, 7, 5, 4), 3.0, False)):
            found.append(Case(
                "bn_activation", f"{activation}_{name}",
                lambda dtype, s=shape, k=scale: [random(*s, scale=k).to(dtype), *(3 * random(s[1]) + 1.0 for _ in range(4))],
                lambda op, x, dtype, a=activation, t=training: _norm(op, x, activation=a, training=t), training, states=2))
    return found


NORM_POOLS = {  # shape of x, size, strides and padding of the windows
    "even": ((2, 8, 6, 6), (2, 2), None, (0, 0)), "odd": ((3, 33, 7, 9), (2, 2), None, (0, 0)),
    "stem": ((2, 5, 12, 9), (3, 3), (2, 2), (1, 1)), "overlapping": ((2, 3, 8, 7), (3, 2), (2, 1), (0, 1)),
    "tall_windows": ((2, 4, 11, 7), (3, 2), None, (0, 0)), "gaps": ((2, 1, 9, 8), (1, 2), (3, 3), (0, 0)),
    "threads": ((8, 32, 40, 40), (2, 2), None, (0, 0)),
}


def norm_pool_cases() -> list[Case]:
    found = []

    def add(name: str, window: str, scale: float = 1.0, training: bool = True, **settings: Any) -> None:
        shape, size, strides, padding = NORM_POOLS[window]
        settings |= {"pool_size": size, "strides": strides, "padding": padding, "training": training}
        found.append(Case("bn_relu_max_pool", name, lambda dtype: [random(*shape, scale=scale).to(dtype), *(
            random(shape[1]) + 1.0 for _ in range(4))], lambda op, x, dtype: _norm(op, x, **settings), training, states=2))

    for name in NORM_POOLS:
        add(name, name, momentum=0.1)
    add("share_on_the_device", "odd", momentum="0.7", unbiased=True)
    add("no_affine", "stem", affine=False)
    add("large_values", "stem", scale=1e4)
    add("inference", "odd", training=False)
    add("inference_stem", "stem", training=False)
    return found


def crossentropy_cases() -> list[Case]:
    found = []
    for name, count, classes, scale, smoothing, dense in (
            ("ten", 7, 10, 1.0, 0.0, False), ("smoothed", 5, 33, 1.0, 0.1, False), ("two", 1, 2, 1.0, 0.0, False),
            ("large", 6, 17, 300.0, 0.0, False), ("dense", 4, 12, 2.0, 0.0, True), ("dense_smoothed", 4, 12, 2.0, 0.2, True)):
        labels = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(1))
        if dense:
            labels = torch.softmax(torch.randn(count, classes, generator=torch.Generator().manual_seed(1)), 1)
        found.append(Case("softmax_crossentropy", name, lambda dtype, s=(count, classes), k=scale: [random(*s, scale=k).to(dtype)],
                          lambda op, x, dtype, t=labels, e=smoothing: [op(*x, t.to(x[0].device), e)]))
    return found


def resize_cases() -> list[Case]:
    found = []
    for name, shape, size in (("shrunk", (40, 50, 3), (17, 22)), ("grown", (5, 7, 3), (12, 9)), ("grey", (21, 1, 1), (6, 4)),
                              ("point", (1, 1, 3), (3, 2)), ("four_channels", (9, 30, 4), (9, 7)), ("five_channels", (9, 8, 5), (4, 4))):
        picture = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
        found.append(Case("resize", name, lambda dtype: [], lambda op, x, dtype, p=picture, s=size: [op(p, s)], gradients=False))
    return found


# Matrices of few bits, so that coordinates are exact in each type and no rounding moves a sample to other pixels.
WARPS = {
    "straight": [[1, 0, 0], [0, 1, 0]], "flipped": [[-1, 0, 8], [0, 1, 0]], "moved": [[1, 0, -2], [0, -1, 9]],
    "turned": [[0.75, -0.5, 1.25], [0.5, 0.875, -1.5]], "far": [[2.5, 1.25, -30], [-1.75, 3, 25]],
    "shrunk": [[2.25, 0.125, 0.5], [0, 2.5, 0.25]], "seen_from_the_side": [[0.75, 0.125, 1], [0, 0.875, 0.5], [0.03125, 0.0625, 1]],
}


def warp_cases() -> list[Case]:
    found = []
    random_index = torch.tensor([9, 0, 3, 3, 7])

    def add(name: str, matrices: list[str], channels: int = 3, integers: bool = True, coloured: bool = True, boxes: bool = False,
            samples: bool = False, index: bool = True, shape: tuple[int, int] = (7, 9), **settings: Any) -> None:
        count = 5 if index else 10
        pictures = torch.randint(0, 256, (10, *shape, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        square = any(len(WARPS[m]) == 3 for m in matrices)
        matrix = torch.tensor([WARPS[matrices[i % len(matrices)]] + ([[0, 0, 1]] if square and len(WARPS[matrices[i % len(matrices)]]) == 2
                                                                     else []) for i in range(count)], dtype=torch.float32)

        def make(dtype: torch.dtype) -> list[Tensor]:
            return [random(count, channels, channels + 1, scale=0.5), torch.rand(channels) / 64, random(channels)]

        def call(op: Op, x: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
            device = x[0].device
            given = pictures.to(device) if integers else (pictures.to(device) / 16).to(x[0].dtype)
            extra: dict[str, Any] = dict(settings)
            if coloured:
                extra |= {"colour": x[0], "limits": (-64.0, 200.0)}
            if boxes:
                places = torch.tensor([[1, 2, 4, 5], [0, -3, 2, 40], [3, 3, 3, 9]], device=device).expand(count, -1, -1).to(torch.int32)
                extra |= {"boxes": places, "values": torch.arange(3.0 * channels, device=device).view(1, 3, channels).expand(count, -1, -1)}
            if samples:
                extra |= {"samples": torch.tensor([[1, 4], [2, 1], [4, 2]], device=device)[torch.arange(count, device=device) % 3],
                          "most_samples": 4}
            placed = matrix.to(device).to(x[0].dtype if dtype == torch.float64 else torch.float32)
            return [op(given, placed, index=random_index.to(device) if index else None, scale=x[1], shift=x[2], dtype=dtype, **extra)]

        found.append(Case("warp", name, make, call, gradients=False))

    for fill in ("constant", "nearest", "reflect", "wrap", "outside"):
        add(f"all_{fill}", list(WARPS)[:-1], fill_mode=fill, fill_value=7.0)
    add("perspective", list(WARPS), fill_mode="constant", size=(6, 5))
    add("one_channel", ["turned", "flipped"], channels=1, boxes=True)
    add("four_channels", ["turned", "moved"], channels=4, boxes=True, fill_mode="constant")
    add("five_channels", ["turned", "straight"], channels=5)
    add("floats", ["turned", "flipped", "shrunk"], integers=False, coloured=False, boxes=True)
    add("pad", ["turned", "moved"], size=(12, 10), index=False, boxes=True, fill_mode="wrap")
    add("odd_samples", ["shrunk", "turned", "seen_from_the_side"], samples=True, size=(3, 4))
    add("nearest", ["turned", "far", "seen_from_the_side"], interpolation="nearest", boxes=True)
    add("one_pixel", ["turned"], shape=(1, 1), size=(4, 5))
    add("threads", ["turned", "flipped", "shrunk"], shape=(40, 50), size=(101, 130))
    found.append(Case("picture_means", "floats", lambda dtype: [torch.randint(0, 256, (6, 9, 7, 3)) / 256],
                      lambda op, x, dtype: [op(x[0].to(torch.float64 if dtype == torch.float64 else torch.float32),
                                               torch.tensor([5, 0, 5], device=x[0].device))], gradients=False))
    found.append(Case("picture_means", "bytes", lambda dtype: [torch.zeros(1)],
                      lambda op, x, dtype: [op((torch.arange(6 * 9 * 70 * 4, device=x[0].device) % 251).view(6, 9, 70, 4).to(torch.uint8))],
                      gradients=False))
    return found


CASES = [*pool_cases(), *bias_cases(), *conv_cases(), *pooled_cases(), *winograd_cases(), *tiled_cases(), *depthwise_cases(), *norm_cases(),
         *norm_pool_cases(), *crossentropy_cases(), *resize_cases(), *warp_cases(), *max_pool_cases()]
