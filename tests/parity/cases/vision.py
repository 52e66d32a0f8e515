"""Cases of `convolt/layers/whitening.py` and `mirror.py`, which Keras does not have; mirroring in inference is in test_speednet.py."""

from typing import Any

from tests.parity.cases import LayerCase


def patch_whitening(keras: Any, size: int, use_bias: bool) -> Any:
    """A convolution with a kernel that is not trained, and the other weights of ours."""

    class PatchWhitening(keras.layers.Layer):
        def build(self, shape):
            filters = 2 * size**2 * shape[-1]
            self.kernel = self.add_weight(shape=(filters, shape[-1], size, size), trainable=False, name="kernel")
            self.adapted = self.add_weight(shape=(), trainable=False, name="adapted")
            self.bias = self.add_weight(shape=(filters,), name="bias") if use_bias else None

        def call(self, x):
            y = keras.ops.conv(x, keras.ops.transpose(self.kernel, (2, 3, 1, 0)), padding="valid")
            return y + self.bias if use_bias else y

        def compute_output_shape(self, shape):
            return (shape[0], shape[1] - size + 1, shape[2] - size + 1, 2 * size**2 * shape[3])

    return PatchWhitening()


CASES = [
    *[LayerCase("PatchWhitening", {"kernel_size": size, "use_bias": bias}, [(2, 4, 5, 2)],
                make_keras=lambda k, size=size, bias=bias: patch_whitening(k, size, bias))
      for size, bias in ((2, True), (3, True), (2, False))],
    LayerCase("MirrorBatch", {}, [(2, 4, 5, 3)], training=True, make_keras=lambda k: k.layers.Identity()),
    LayerCase("MirrorMean", {}, [(2, 3)], training=True, make_keras=lambda k: k.layers.Identity()),
]
