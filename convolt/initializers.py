"""Initial values of weights, with Keras's names, arguments and defaults.

An initializer is called with a shape in Keras's order of axes (kernels: space, input, output) and returns a tensor of
the default floating type on the current default device. Without `seed`, random ones draw from PyTorch's global
generator, so that one seed decides all; with a seed, each call gives the same values, on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from convolt.configurable import Configurable, Registry, to_json
from convolt.errors import ArgumentError, ShapeError, did_you_mean, explain
from convolt.missing import explain_missing_names

registry: Registry[type[Initializer]] = Registry("initializer")

TRUNCATED_STDDEV = 0.87962566103423978
"""Standard deviation of a standard normal distribution that is cut off at ±2."""


class Initializer(Configurable):
    """Base of initializers: define `__call__(shape)`."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Returns a new tensor of this shape (Keras's order of axes)."""
        raise TypeError(f"{type(self).__name__} defines no __call__(shape)")


# -- constants ---------------------------------------------------------------------------------------------------------


@registry.register("zero")
class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape))


@registry.register("one")
class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.ones(tuple(shape))


@registry.register()
class Constant(Initializer):
    """All `value`, a number or an array that is broadcast to the shape.

    Raises:
        ShapeError: (when called) the array does not fit the shape.
    """

    def __init__(self, value: Any = 0.0) -> None:
        self.value = value

    def __call__(self, shape: Sequence[int]) -> Tensor:
        values = torch.as_tensor(self.value, dtype=torch.get_default_dtype(), device=torch.get_default_device())
        try:
            return values.expand(tuple(shape)).clone(memory_format=torch.contiguous_format)
        except RuntimeError as error:
            raise ShapeError(explain("Constant(value)", f"an array of shape {tuple(values.shape)}",
                                     f"one that can be broadcast to the weight's shape {tuple(shape)}")) from error


@registry.register("IdentityInitializer")
class Identity(Initializer):
    """`gain` on the diagonal of a matrix, zero elsewhere.

    Raises:
        ShapeError: (when called) the shape is not that of a matrix.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def __call__(self, shape: Sequence[int]) -> Tensor:
        if len(shape) != 2:
            raise ShapeError(explain("Identity", f"the shape {tuple(shape)}", "that of a matrix, with two axes"))
        return self.gain * torch.eye(*shape)


# -- random numbers ----------------------------------------------------------------------------------------------------


class RandomInitializer(Initializer):
    """Base of random initializers: define `draw(values, generator)`.

    Args:
        seed: None draws from PyTorch's global generator; with a whole number each call gives the same values.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer))):
            raise ArgumentError(explain(f"{type(self).__name__}(seed)", seed, "a whole number, or None for the global generator"))
        self.seed = None if seed is None else int(seed)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        device = torch.get_default_device()
        if self.seed is None or device.type == "meta":
            return self.draw(torch.empty(tuple(shape)), None)
        generator = torch.Generator("cpu").manual_seed(self.seed)  # the CPU's numbers, to be the same on every device
        with torch.device("cpu"):
            values = self.draw(torch.empty(tuple(shape)), generator)
        return values.to(device)

    def draw(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        """Fills `values` (or returns a new tensor of its shape) with random numbers of the generator."""
        raise TypeError(f"{type(self).__name__} defines no draw(values, generator)")


@registry.register("normal")
class RandomNormal(RandomInitializer):
    """Normal distribution.

    Args:
        mean, stddev: of the distribution.
        seed: see `RandomInitializer`.
    """

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean = mean
        self.stddev = stddev

    def draw(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        return values.normal_(self.mean, self.stddev, generator=generator)


@registry.register("uniform")
class RandomUniform(RandomInitializer):
    """Uniform distribution in [minval, maxval).

    Args:
        minval, maxval: limits.
        seed: see `RandomInitializer`.
    """

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        if minval > maxval:
            raise ArgumentError(explain("RandomUniform", f"minval={minval} above maxval={maxval}", "minval up to maxval"))
        self.minval = minval
        self.maxval = maxval

    def draw(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        return values.uniform_(self.minval, self.maxval, generator=generator)


@registry.register()
class TruncatedNormal(RandomInitializer):
    """Normal distribution cut off at two standard deviations on either side.

    Args:
        mean, stddev: of the normal distribution before the cut; what comes out has 0.8796 · stddev.
        seed: see `RandomInitializer`.
    """

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean = mean
        self.stddev = stddev

    def draw(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        return fill_truncated_normal(values, self.mean, self.stddev, generator)


def fill_truncated_normal(values: Tensor, mean: float, stddev: float, generator: torch.Generator | None) -> Tensor:
    """Fills `values` from a normal distribution that is cut off at `mean` ± 2 · `stddev`."""
    return nn.init.trunc_normal_(values, mean, stddev, mean - 2 * stddev, mean + 2 * stddev, generator=generator)


# -- scaled by the size of the kernel ----------------------------------------------------------------------------------


def fans(shape: Sequence[int], input_axes: Sequence[int] | None = None,
         output_axes: Sequence[int] | None = None) -> tuple[float, float]:
    """Returns (fan in, fan out) of a kernel of shape (space…, input, output), or over the axes that are named."""
    if input_axes is not None and output_axes is not None:
        return float(math.prod(shape[a] for a in input_axes)), float(math.prod(shape[a] for a in output_axes))
    if len(shape) < 2:
        size = float(shape[0]) if shape else 1.0
        return size, size
    receptive = math.prod(shape[:-2])
    return float(shape[-2] * receptive), float(shape[-1] * receptive)


MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")


@registry.register()
class VarianceScaling(RandomInitializer):
    """Random numbers of mean 0 and variance `scale / n`, where n is the kernel's fan in, fan out, or their average.

    Args:
        scale: positive factor.
        mode: "fan_in", "fan_out" or "fan_avg".
        distribution: "truncated_normal" (or "normal": cut off at two standard deviations, and widened so that the
            variance holds after the cut), "untruncated_normal" or "uniform" (in ±sqrt(3 · scale / n)).
        seed: see `RandomInitializer`.
        input_axes, output_axes: axes of the shape that make the fans; None for those of a kernel.

    Raises:
        ArgumentError: an argument has another value.
    """

    def __init__(self, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal",
                 seed: int | None = None, input_axes: Sequence[int] | None = None,
                 output_axes: Sequence[int] | None = None) -> None:
        super().__init__(seed)
        if scale <= 0.0:
            raise ArgumentError(explain("VarianceScaling(scale)", scale, "a number above 0"))
        if mode not in MODES:
            raise ArgumentError(explain("VarianceScaling(mode)", mode, f"one of {list(MODES)}", did_you_mean(mode, MODES)))
        distribution = "truncated_normal" if distribution.lower() == "normal" else distribution.lower()
        if distribution not in DISTRIBUTIONS:
            raise ArgumentError(explain("VarianceScaling(distribution)", distribution, f"one of {list(DISTRIBUTIONS)}",
                                        did_you_mean(distribution, DISTRIBUTIONS)))
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.input_axes = input_axes
        self.output_axes = output_axes

    def draw(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        fan_in, fan_out = fans(values.shape, self.input_axes, self.output_axes)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}[self.mode]
        variance = self.scale / max(1.0, n)
        if self.distribution == "truncated_normal":
            return fill_truncated_normal(values, 0.0, math.sqrt(variance) / TRUNCATED_STDDEV, generator)
        if self.distribution == "untruncated_normal":
            return values.normal_(0.0, math.sqrt(variance), generator=generator)
        limit = math.sqrt(3.0 * variance)
        return values.uniform_(-limit, limit, generator=generator)


class _Scaled(VarianceScaling):
    """A `VarianceScaling` with a name: (scale, mode, distribution) is fixed by the class."""

    recipe: ClassVar[tuple[float, str, str]]

    def __init__(self, seed: int | None = None, input_axes: Sequence[int] | None = None,
                 output_axes: Sequence[int] | None = None) -> None:
        super().__init__(*self.recipe, seed, input_axes, output_axes)


@registry.register()
class GlorotUniform(_Scaled):
    """Uniform in ±sqrt(6 / (fan in + fan out)) (Glorot & Bengio 2010)."""

    recipe = (1.0, "fan_avg", "uniform")


@registry.register()
class GlorotNormal(_Scaled):
    """Truncated normal with variance 2 / (fan in + fan out) (Glorot & Bengio 2010)."""

    recipe = (1.0, "fan_avg", "truncated_normal")


@registry.register()
class HeUniform(_Scaled):
    """Uniform in ±sqrt(6 / fan in) (He et al. 2015)."""

    recipe = (2.0, "fan_in", "uniform")


@registry.register()
class HeNormal(_Scaled):
    """Truncated normal with variance 2 / fan in (He et al. 2015)."""

    recipe = (2.0, "fan_in", "truncated_normal")


@registry.register()
class LecunUniform(_Scaled):
    """Uniform in ±sqrt(3 / fan in) (LeCun et al. 1998)."""

    recipe = (1.0, "fan_in", "uniform")


@registry.register()
class LecunNormal(_Scaled):
    """Truncated normal with variance 1 / fan in (Klambauer et al. 2017)."""

    recipe = (1.0, "fan_in", "truncated_normal")


@registry.register("OrthogonalInitializer")
class Orthogonal(RandomInitializer):
    """`gain` times a matrix with orthonormal columns (or rows, where there are fewer) (Saxe et al. 2014).

    A kernel with more axes is seen as the matrix (all axes but the last, last axis).

    Args:
        gain: factor.
        seed: see `RandomInitializer`.

    Raises:
        ShapeError: (when called) the shape has fewer than two axes.
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        super().__init__(seed)
        self.gain = gain

    def draw(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        if values.ndim < 2:
            raise ShapeError(explain("Orthogonal", f"the shape {tuple(values.shape)}", "two axes or more"))
        rows, columns = math.prod(values.shape[:-1]), values.shape[-1]
        tall = values.new_empty(max(rows, columns), min(rows, columns)).normal_(generator=generator)
        q, r = torch.linalg.qr(tall)
        q_uniform: Tensor = q * r.diagonal().sign()  # makes the distribution uniform over all such matrices
        return self.gain * (q_uniform if rows >= columns else q_uniform.T).reshape(values.shape)


# -- values that come later --------------------------------------------------------------------------------------------

_later: ContextVar[bool] = ContextVar("later", default=False)


@contextmanager
def later() -> Iterator[None]:
    """In this context random initial values are not drawn, since those of a file take their place: zeros stand for them."""
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


def values_of(identifier: Any, shape: Sequence[int]) -> Tensor:
    """Returns the initial values of a weight (Keras's order of axes)."""
    initializer = get(identifier)
    if _later.get() and isinstance(initializer, RandomInitializer):
        return torch.zeros(tuple(shape))
    return initializer(tuple(shape))


# -- finding -----------------------------------------------------------------------------------------------------------


class FromFunction(Initializer):
    """Wraps the user's `function(shape)` or `function(shape, dtype=None)`; cannot be made again from a configuration."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, shape: Sequence[int]) -> Tensor:
        values: Tensor = torch.as_tensor(self.function(tuple(shape)), device=torch.get_default_device())
        return values


def get(identifier: Any) -> Initializer:
    """Returns an initializer from a name, a configuration, a class, an object, an array of values or a function of the shape."""
    if isinstance(identifier, (np.ndarray, Tensor)):
        return Constant(identifier)
    is_function = callable(identifier) and not isinstance(identifier, (type, Initializer))
    made: Initializer = FromFunction(identifier) if is_function else registry.make(identifier, Initializer)
    return made


deserialize = get
serialize = to_json

# Keras's other spelling of each class, as in `initializers.he_normal(seed=1)`.
zeros, ones, constant, identity = Zeros, Ones, Constant, Identity
random_normal, random_uniform, truncated_normal, variance_scaling = RandomNormal, RandomUniform, TruncatedNormal, VarianceScaling
glorot_uniform, glorot_normal, he_uniform, he_normal = GlorotUniform, GlorotNormal, HeUniform, HeNormal
lecun_uniform, lecun_normal, orthogonal = LecunUniform, LecunNormal, Orthogonal


explain_missing_names(__name__)
