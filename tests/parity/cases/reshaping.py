"""Cases of the layers in `convolt/layers/reshaping.py`: all act on channels-last axes, which is the trap."""

from tests.parity.cases import LayerCase

CASES = [
    LayerCase("Flatten", {}, [(2, 3)]),
    LayerCase("Flatten", {}, [(4,)]),
    LayerCase("Flatten", {}, [(2, 3, 4)]),
    LayerCase("Flatten", {}, [(2, 3, 4, 5)]),
    LayerCase("Flatten", {}, [(2, 3, 4, 1)]),
    LayerCase("Flatten", {"data_format": "channels_last"}, [(1, 2, 3, 2, 3)]),
    LayerCase("Reshape", {"target_shape": (3, 4)}, [(2, 12)]),
    LayerCase("Reshape", {"target_shape": (2, 3, 2)}, [(2, 12)]),
    LayerCase("Reshape", {"target_shape": (-1, 2)}, [(2, 3, 4)]),
    LayerCase("Reshape", {"target_shape": (6, 4)}, [(2, 2, 3, 4)]),
    LayerCase("Reshape", {"target_shape": (2, -1, 3)}, [(2, 3, 4)]),
    LayerCase("Reshape", {"target_shape": (-1,)}, [(2, 3, 2, 4)]),
    LayerCase("Reshape", {"target_shape": (2, 2, 2, 3)}, [(1, 4, 6)]),
    LayerCase("Permute", {"dims": (1,)}, [(2, 3)]),
    LayerCase("Permute", {"dims": (2, 1)}, [(2, 3, 4)]),
    LayerCase("Permute", {"dims": (3, 1, 2)}, [(2, 3, 4, 5)]),
    LayerCase("Permute", {"dims": (2, 1, 3)}, [(2, 3, 4, 5)]),
    LayerCase("Permute", {"dims": (4, 2, 1, 3)}, [(2, 3, 4, 2, 3)]),
]
