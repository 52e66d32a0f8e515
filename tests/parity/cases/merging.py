"""Cases of the layers in `convolt/layers/merging.py`: inputs of different rank and size are broadcast in channels-last order."""

from tests.parity.cases import LayerCase

ELEMENTWISE = ["Add", "Average", "Maximum", "Minimum", "Multiply"]
SAME = [(2, 3), (2, 3), (2, 3)]

CASES = [
    *(LayerCase(name, {}, SAME) for name in ELEMENTWISE),
    *(LayerCase(name, {}, [(2, 3, 2, 4), (2, 4)]) for name in ELEMENTWISE),
    *(LayerCase(name, {}, [(2, 3), (2, 4, 3)]) for name in [*ELEMENTWISE, "Subtract"]),
    *(LayerCase(name, {}, [(2, 3, 2, 4), (2, 1, 1, 4)]) for name in [*ELEMENTWISE, "Subtract"]),
    LayerCase("Add", {}, [(2, 3, 2, 1), (2, 2, 4), (2, 4)]),
    LayerCase("Multiply", {}, [(2, 3, 4, 2, 3), (2, 4, 2, 1)]),
    LayerCase("Subtract", {}, [(2, 3), (2, 3)]),
    LayerCase("Subtract", {}, [(2, 3, 4), (2, 3, 4)]),
    LayerCase("Concatenate", {}, [(2, 3), (2, 1), (2, 2)]),
    LayerCase("Concatenate", {}, [(2, 3, 2, 4), (2, 3, 2, 1)]),
    LayerCase("Concatenate", {"axis": 1}, [(2, 3, 2, 4), (2, 1, 2, 4)]),
    LayerCase("Concatenate", {"axis": -2}, [(2, 3, 4), (2, 2, 4)]),
    LayerCase("Concatenate", {"axis": 3}, [(2, 2, 2, 3), (2, 2, 2, 2)]),
    LayerCase("Concatenate", {"axis": 2}, [(2, 2, 1, 2, 3), (2, 2, 3, 2, 3)]),
    LayerCase("Dot", {"axes": 1}, [(2, 4), (2, 4)]),
    LayerCase("Dot", {"axes": -1, "normalize": True}, [(2, 4), (2, 4)]),
    LayerCase("Dot", {"axes": (1, 2)}, [(2, 3, 5), (2, 4, 3)]),
    LayerCase("Dot", {"axes": (2, 1)}, [(2, 3, 5), (2, 5)]),
    LayerCase("Dot", {"axes": (1, 1), "normalize": True}, [(2, 5), (2, 5, 3)]),
    LayerCase("Dot", {"axes": (-1, -2)}, [(2, 3, 2, 4), (2, 4, 3)]),
]
