"""Cases of the layers in `convolt/layers/regularization.py`; what is random in training is in `test_regularization.py`."""

from tests.parity.cases import LayerCase

DRAWN = "another random generator than Keras's"

CASES = [
    LayerCase("Dropout", {"rate": 0.5}, [(3, 4)]),
    LayerCase("Dropout", {"rate": 0.0}, [(3, 4)], training=True),
    LayerCase("Dropout", {"rate": 0.4}, [(2, 3, 3, 2)], training=True, random=DRAWN),
    LayerCase("Dropout", {"rate": 0.4, "seed": 5}, [(2, 3, 3, 2)], training=True, random=DRAWN),
    LayerCase("Dropout", {"rate": 0.4, "noise_shape": (None, 1, 1, 2)}, [(2, 3, 3, 2)], training=True, random=DRAWN),
    LayerCase("SpatialDropout1D", {"rate": 0.5}, [(2, 4, 3)]),
    LayerCase("SpatialDropout1D", {"rate": 0.5, "seed": 2}, [(2, 4, 3)], training=True, random=DRAWN),
    LayerCase("SpatialDropout2D", {"rate": 0.5}, [(2, 3, 2, 3)]),
    LayerCase("SpatialDropout2D", {"rate": 0.5}, [(2, 3, 2, 3)], training=True, random=DRAWN),
    LayerCase("SpatialDropout3D", {"rate": 0.5}, [(2, 3, 2, 2, 3)]),
    LayerCase("SpatialDropout3D", {"rate": 0.5}, [(2, 3, 2, 2, 3)], training=True, random=DRAWN),
    LayerCase("GaussianNoise", {"stddev": 0.3}, [(2, 3)]),
    LayerCase("GaussianNoise", {"stddev": 0.3, "seed": 1}, [(2, 3, 3, 2)], training=True, random=DRAWN),
]
