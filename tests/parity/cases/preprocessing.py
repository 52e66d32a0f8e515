"""Cases of the layers in `convolt/layers/preprocessing.py`."""

from tests.parity.cases import LayerCase

CASES = [
    LayerCase("Rescaling", {"scale": 0.25}, [(2, 3)]),
    LayerCase("Rescaling", {"scale": 1 / 127.5, "offset": -1.0}, [(2, 3, 2, 3)], integers=256),
    LayerCase("Rescaling", {"scale": [0.5, 2.0, 1.5], "offset": [1.0, 2.0, 3.0]}, [(2, 3, 2, 3)]),
    LayerCase("Rescaling", {"scale": [0.5, 2.0, 1.5]}, [(2, 4, 3)]),
    LayerCase("Normalization", {}, [(3, 4)]),
    LayerCase("Normalization", {}, [(2, 3, 2, 4)]),
    LayerCase("Normalization", {"axis": None}, [(2, 3, 4)]),
    LayerCase("Normalization", {"axis": (1, 3)}, [(2, 3, 2, 4)]),
    LayerCase("Normalization", {"invert": True}, [(2, 3, 4)]),
    LayerCase("Normalization", {"mean": 1.5, "variance": 4.0}, [(2, 3, 2, 4)]),
    LayerCase("Normalization", {"mean": [0.1, 0.2, 0.3], "variance": [1.0, 2.0, 0.0]}, [(2, 4, 3)], tolerance=1e-4),
    LayerCase("Normalization", {"mean": [0.1, 0.2, 0.3], "variance": [1.0, 2.0, 3.0], "axis": (1, 3)}, [(2, 4, 2, 3)]),
    LayerCase("Normalization", {"mean": [1.0, 2.0], "variance": [4.0, 0.5], "invert": True}, [(3, 2)]),
]
