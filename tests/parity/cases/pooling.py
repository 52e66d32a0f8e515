"""Cases of pooling: windows and strides, odd and even sizes, both paddings, axes of size one."""

from itertools import product

import torch
from torch import Tensor

from tests.parity.cases import LayerCase

SIZES = {1: (7,), 2: (5, 6), 3: (3, 4, 5)}
WHY = "Keras's PyTorch backend repeats the border where `same` is asymmetric; on TensorFlow and JAX the padding is not counted"


def mean_of_windows(x: Tensor, *, pool_size, strides=None, padding) -> Tensor:
    """Average pooling under "same" as TensorFlow documents it: the mean of those values of a window that exist."""
    assert padding == "same"
    rank = x.ndim - 2
    window = (pool_size,) * rank if isinstance(pool_size, int) else pool_size
    steps = window if strides is None else (strides,) * rank if isinstance(strides, int) else strides
    for axis, (width, step) in enumerate(zip(window, steps, strict=True), start=1):
        size = x.shape[axis]
        count = (size + step - 1) // step
        before = max((count - 1) * step + width - size, 0) // 2
        starts = [i * step - before for i in range(count)]
        # The windows are boxes, so the mean over a box is the mean over one axis after the other.
        means = [x.narrow(axis, max(a, 0), min(a + width, size) - max(a, 0)).mean(axis) for a in starts]
        x = torch.stack(means, axis)
    return x


def is_symmetric(size, window: int, stride: int) -> bool:
    return all(max((-(-n // stride) - 1) * stride + window - n, 0) % 2 == 0 for n in size)


def average(rank: int, size: tuple[int, ...], window: int, stride: int | None) -> LayerCase:
    own = {} if is_symmetric(size, window, stride or window) else {"reference": mean_of_windows, "reference_reason": WHY}
    kwargs = {"pool_size": window, "strides": stride, "padding": "same"}
    return LayerCase(f"AveragePooling{rank}D", kwargs, [(2, *size, 2)], **own)


WINDOWED = [
    *[LayerCase(f"MaxPooling{rank}D", {"pool_size": k, "strides": s, "padding": p}, [(2, *SIZES[rank], 2)])
      for rank, k, s, p in product((1, 2, 3), (2, 3), (None, 1, 2), ("valid", "same"))],
    *[LayerCase(f"AveragePooling{rank}D", {"pool_size": k, "strides": s}, [(2, *SIZES[rank], 2)])
      for rank, k, s in product((1, 2, 3), (2, 3), (None, 1, 2))],
    *[average(rank, SIZES[rank], k, s) for rank, k, s in product((1, 2, 3), (2, 3), (None, 1, 2))],
    *[average(2, size, k, s) for size, k, s in product([(4, 4), (1, 7)], (1, 4, 5), (1, 2, 3))],
    *[LayerCase("MaxPooling2D", {"pool_size": k, "strides": s, "padding": "same"}, [(1, 6, 7, 1)])
      for k, s in product((1, 4, 5), (1, 2, 3))],
    *[LayerCase(f"MaxPooling{rank}D", {}, [(1, *[2] * rank, 1)]) for rank in (1, 2, 3)],
    LayerCase("MaxPooling2D", {"pool_size": (1, 3), "strides": (2, 1), "padding": "SAME"}, [(2, 5, 4, 3)],
              keras_kwargs={"pool_size": (1, 3), "strides": (2, 1), "padding": "same"}),
    LayerCase("MaxPooling2D", {"pool_size": (2, 4), "strides": (1, 3), "padding": "same"}, [(2, 5, 5, 1)]),
    LayerCase("AveragePooling2D", {"pool_size": (2, 4), "strides": (1, 3), "padding": "same"}, [(2, 5, 5, 1)],
              reference=mean_of_windows, reference_reason=WHY),
    LayerCase("MaxPooling2D", {"pool_size": 1, "data_format": "channels_last"}, [(1, 1, 1, 1)]),
]

GLOBAL = [LayerCase(f"Global{kind}Pooling{rank}D", kwargs, [shape])
          for kind, rank, kwargs in product(("Max", "Average"), (1, 2, 3), ({}, {"keepdims": True}))
          for shape in ((2, *SIZES[rank], 3), (1, *[1] * rank, 1))]

CASES = [*WINDOWED, *GLOBAL]
