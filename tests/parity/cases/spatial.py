"""Cases of layers that add, drop or repeat pixels."""

from itertools import product

from tests.parity.cases import LayerCase

CASES = [
    LayerCase("ZeroPadding2D", {}, [(2, 3, 4, 2)]),
    *[LayerCase("ZeroPadding2D", {"padding": p}, [(2, 3, 2, 1)]) for p in (0, 2, (1, 2), ((1, 0), (2, 3)))],
    LayerCase("Cropping1D", {}, [(2, 5, 3)]),
    *[LayerCase("Cropping1D", {"cropping": c}, [(2, 6, 3)]) for c in (0, 2, (0, 5), (3, 1))],
    LayerCase("Cropping2D", {}, [(2, 3, 4, 2)]),
    *[LayerCase("Cropping2D", {"cropping": c}, [(2, 5, 7, 2)]) for c in (1, 2, (0, 3), ((1, 2), (0, 3)))],
    LayerCase("UpSampling2D", {}, [(2, 3, 4, 2)]),
    *[LayerCase("UpSampling2D", {"size": s, "interpolation": i}, [(2, 3, 2, 2)])
      for s, i in product((1, 2, 3, (2, 3)), ("nearest", "bilinear"))],
    LayerCase("UpSampling2D", {"size": (4, 1), "interpolation": "bilinear"}, [(1, 1, 1, 1)]),
]
