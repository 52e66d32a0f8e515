"""Cases of `convolt/layers/positional.py`, `drop.py`, `scale.py` and `spectral.py`; what Keras lacks is written here."""

from typing import Any

from tests.parity.cases import LayerCase

DRAWN = "random, and not in Keras"


def position_embedding(keras: Any, sequence_length: int) -> Any:
    """`keras_hub.layers.PositionEmbedding` in short."""

    class PositionEmbedding(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(sequence_length, shape[-1]))

        def call(self, x):
            return keras.ops.broadcast_to(self.table[:x.shape[-2]], x.shape)

        def compute_output_shape(self, shape):
            return shape

    return PositionEmbedding()


def sine_position_encoding(keras: Any, max_wavelength: float) -> Any:
    """`keras_hub.layers.SinePositionEncoding`, formula by formula."""

    class SinePositionEncoding(keras.layers.Layer):
        def call(self, x):
            ops, (steps, features) = keras.ops, x.shape[-2:]
            position, place = ops.arange(steps, dtype="float32"), ops.arange(features)
            scales = ops.power(1 / max_wavelength, ops.cast(2 * (place // 2), "float32") / features)
            angles = ops.expand_dims(position, 1) * ops.expand_dims(scales, 0)
            cosine = ops.cast(place % 2, "float32")
            return ops.broadcast_to(ops.sin(angles) * (1 - cosine) + ops.cos(angles) * cosine, x.shape)

        def compute_output_shape(self, shape):
            return shape

    return SinePositionEncoding()


def class_token(keras: Any) -> Any:
    """A vector in front."""

    class ClassToken(keras.layers.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            token = keras.ops.broadcast_to(self.token, (x.shape[0], 1, x.shape[-1]))
            return keras.ops.concatenate([token, x], axis=1)

        def compute_output_shape(self, shape):
            return (shape[0], shape[1] + 1, shape[2])

    return ClassToken()


def layer_scale(keras: Any, init_values: float) -> Any:
    """The layer that `keras.applications.convnext` has for itself."""
    from keras.src.applications.convnext import LayerScale

    class WithShape(LayerScale):
        def compute_output_shape(self, shape):
            return shape

    return WithShape(init_values, 3)


def spectral(name: str, kwargs: dict[str, Any], shape: tuple[int, ...], training: bool = True, **options: Any) -> LayerCase:
    return LayerCase(
        "SpectralNormalization", {"layer": {"class_name": name, "config": kwargs}, **options}, [shape], training=training,
        tolerance=1e-4 if training else 1e-5, no_gradcheck="a call in training changes the kernel" if training else "",
        make_keras=lambda keras: keras.layers.SpectralNormalization(getattr(keras.layers, name)(**kwargs), **options))


CASES = [
    LayerCase("PositionEmbedding", {"sequence_length": 6}, [(2, 4, 3)], make_keras=lambda k: position_embedding(k, 6)),
    LayerCase("PositionEmbedding", {"sequence_length": 4}, [(2, 3, 4, 5)], make_keras=lambda k: position_embedding(k, 4)),
    LayerCase("SinePositionEncoding", {}, [(2, 4, 5)], make_keras=lambda k: sine_position_encoding(k, 10000)),
    LayerCase("SinePositionEncoding", {"max_wavelength": 50}, [(2, 3, 40, 6)], make_keras=lambda k: sine_position_encoding(k, 50)),
    LayerCase("ClassToken", {"initializer": "ones"}, [(2, 4, 3)], make_keras=class_token),
    *[LayerCase("LayerScale", {"init_values": v}, [shape], make_keras=lambda k, v=v: layer_scale(k, v))
      for v, shape in ((1e-6, (2, 4, 5, 3)), (0.5, (4, 3)), (1.0, (2, 4, 3)))],
    LayerCase("StochasticDepth", {"rate": 0.5}, [(3, 4, 2)], keras_layer="Dropout"),
    LayerCase("StochasticDepth", {"rate": 0.5, "seed": 2}, [(3, 4, 4, 2)], training=True, random=DRAWN, keras_layer="Dropout"),
    LayerCase("DropBlock2D", {"rate": 0.3, "block_size": 2}, [(2, 4, 5, 3)], make_keras=lambda k: k.layers.Dropout(0.3)),
    LayerCase("DropBlock2D", {"rate": 0.3, "seed": 2}, [(2, 4, 5, 3)], training=True, random=DRAWN,
              make_keras=lambda k: k.layers.Dropout(0.3)),
    spectral("Dense", {"units": 3}, (2, 4)),
    spectral("Dense", {"units": 3, "use_bias": False}, (2, 4), training=False),
    spectral("Dense", {"units": 3}, (2, 4), power_iterations=3),
    spectral("Conv2D", {"filters": 3, "kernel_size": 2}, (2, 4, 5, 2)),
    spectral("DepthwiseConv2D", {"kernel_size": 2, "depth_multiplier": 2}, (2, 4, 5, 2), training=False),
    spectral("Conv2DTranspose", {"filters": 3, "kernel_size": 2}, (2, 3, 4, 2)),
]
