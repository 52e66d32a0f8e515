"""Architectures for round trips through files, each written once for Convolt and for Keras: `build(api)` with either module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

ZOO: dict[str, Callable[[Any], Any]] = {}
"""Name → function of a module with `Input`, `Model`, `Sequential` and `layers`."""


def architecture(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    ZOO[build.__name__] = build
    return build


@architecture
def plain_cnn(api: Any) -> Any:
    L = api.layers
    return api.Sequential([api.Input((8, 8, 3)), L.Rescaling(1 / 255), L.Conv2D(4, 3, activation="relu"), L.MaxPooling2D(), L.Dropout(0.3),
                           L.Flatten(), L.Dense(5, activation="relu"), L.Dense(3, activation="softmax")])


@architecture
def batch_norm_blocks(api: Any) -> Any:
    L = api.layers
    layers: list[Any] = [api.Input((9, 7, 1))]
    for filters in (4, 6):
        layers += [L.Conv2D(filters, 3, padding="same", strides=2, use_bias=False), L.BatchNormalization(), L.ReLU(6.0)]
    return api.Sequential([*layers, L.GlobalAveragePooling2D(), L.Dense(2)])


@architecture
def residual_net(api: Any) -> Any:
    L = api.layers
    x = inputs = api.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, padding="same", name="stem")(x)
    for i, filters in enumerate((4, 8)):
        short = x if i == 0 else L.Conv2D(filters, 1, strides=2, name=f"short_{i}")(x)
        y = L.Conv2D(filters, 3, strides=i + 1, padding="same", name=f"a_{i}")(x)
        y = L.ReLU(name=f"relu_{i}")(L.BatchNormalization(name=f"bn_a_{i}")(y))
        y = L.BatchNormalization(name=f"bn_b_{i}")(L.Conv2D(filters, 3, padding="same", name=f"b_{i}")(y))
        x = L.Activation("relu", name=f"out_{i}")(L.Add(name=f"add_{i}")([short, y]))
    return api.Model(inputs, L.Dense(5, activation="softmax", name="outputs")(L.GlobalMaxPooling2D(name="pool")(x)), name="residual")


@architecture
def inception_branches(api: Any) -> Any:
    """Branches of different depth, so that Keras's order of layers differs from the order of their calls."""
    L = api.layers
    inputs = api.Input((6, 6, 2))
    one = L.Conv2D(3, 1, activation="relu")(inputs)
    two = L.Conv2D(4, 3, padding="same", activation="relu")(L.Conv2D(2, 1)(inputs))
    three = inputs
    for filters in (2, 3, 3):
        three = L.Conv2D(filters, 3, padding="same", activation="relu")(three)
    four = L.Conv2D(2, 1)(L.AveragePooling2D(3, strides=1, padding="same")(inputs))
    joined = L.Concatenate()([four, three, one, two])
    return api.Model(inputs, L.Dense(4)(L.Flatten()(joined)))


@architecture
def unet(api: Any) -> Any:
    L = api.layers
    inputs = api.Input((8, 8, 1))
    down = L.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    deep = L.Conv2D(5, 3, padding="same", activation="elu")(L.MaxPooling2D()(down))
    up = L.Conv2DTranspose(3, 3, strides=2, padding="same")(deep)
    up = L.Concatenate()([up, down])
    small = L.UpSampling2D(2, interpolation="bilinear")(L.Cropping2D(1)(L.ZeroPadding2D(1)(deep)))
    return api.Model(inputs, L.Conv2D(2, 1, activation="sigmoid")(L.Concatenate()([up, small])))


@architecture
def separable_net(api: Any) -> Any:
    L = api.layers
    return api.Sequential([api.Input((10, 10, 3)), L.SeparableConv2D(6, 3, depth_multiplier=2, padding="same"), L.PReLU(shared_axes=[1, 2]),
                           L.DepthwiseConv2D(3, strides=2, padding="same"), L.LeakyReLU(0.1), L.GroupNormalization(3),
                           L.SpatialDropout2D(0.2), L.GlobalAveragePooling2D(keepdims=True), L.Reshape((6,)), L.Dense(2)])


@architecture
def siamese(api: Any) -> Any:
    """One model shared by two inputs."""
    L = api.layers
    tower = api.Sequential([api.Input((6, 6, 1)), L.Conv2D(3, 3), L.BatchNormalization(), L.Flatten(), L.Dense(4)], name="tower")
    left, right = api.Input((6, 6, 1), name="left"), api.Input((6, 6, 1), name="right")
    return api.Model([left, right], L.Dot(1, normalize=True)([tower(left), tower(right)]))


@architecture
def shared_dense(api: Any) -> Any:
    """Layers called several times, at several depths."""
    L = api.layers
    inputs = api.Input((5,))
    dense, norm = L.Dense(5, activation="tanh"), L.LayerNormalization()
    x = norm(dense(inputs))
    y = norm(dense(dense(x)))
    return api.Model(inputs, L.Subtract()([dense(y), L.Multiply()([x, y])]))


@architecture
def many_ends(api: Any) -> Any:
    """Two inputs and outputs by name, the names not in alphabetical order."""
    L = api.layers
    image, numbers = api.Input((6, 6, 2), name="zebra"), api.Input((3,), name="apple")
    a = L.Dense(4, activation="relu")(L.Flatten()(image))
    b = L.Dense(4, activation="relu")(numbers)
    both = L.Average()([a, b])
    outputs = {"x": L.Dense(2)(both), "b": L.Dense(3, activation="softmax")(b), "m": L.Dense(1)(a)}
    return api.Model({"zebra": image, "apple": numbers}, outputs)


@architecture
def nested_models(api: Any) -> Any:
    """A functional model with branches inside a sequential one inside a functional one, with frozen parts."""
    L = api.layers
    inner_in = api.Input((4, 4, 2))
    p, q = L.Conv2D(3, 1)(inner_in), L.Conv2D(3, 3, padding="same")(L.Conv2D(2, 1)(inner_in))
    inner = api.Model(inner_in, L.BatchNormalization()(L.Add()([p, q])), name="inner")
    body = api.Sequential([api.Input((4, 4, 2)), inner, L.BatchNormalization(trainable=False), L.Flatten(), L.Dense(3)], name="body")
    outer = api.Input((4, 4, 2))
    x = body(outer)
    head_in = api.Input((3,))
    head = api.Model(head_in, L.Dense(3, activation="relu", trainable=False)(head_in), name="head")
    return api.Model(outer, head(head(x)))


@architecture
def numbers_and_operators(api: Any) -> Any:
    L = api.layers
    inputs = api.Input((4,))
    x = L.Dense(4)(inputs)
    return api.Model(inputs, L.Dense(2)((2.0 - x * 3.0 + inputs) / 4.0 - 1.0))


@architecture
def sequence_convolutions(api: Any) -> Any:
    L = api.layers
    return api.Sequential([api.Input((12, 3)), L.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="gelu"), L.MaxPooling1D(2),
                           L.Conv1D(4, 3, strides=2, padding="same"), L.SpatialDropout1D(0.1), L.LayerNormalization(),
                           L.GlobalAveragePooling1D(), L.Dense(2)])


@architecture
def volume(api: Any) -> Any:
    L = api.layers
    return api.Sequential([api.Input((5, 6, 4, 2)), L.Conv3D(3, 2, activation="selu"), L.AveragePooling3D((1, 2, 1)),
                           L.Permute((3, 1, 2, 4)), L.GlobalMaxPooling3D(), L.GaussianNoise(0.1), L.Dense(2, activation="softplus")])


@architecture
def squeeze_and_excite(api: Any) -> Any:
    L = api.layers
    inputs = api.Input((6, 6, 4))
    x = L.Conv2D(4, 3, padding="same", groups=2, activation="silu")(inputs)
    s = L.Dense(4, activation="sigmoid")(L.Dense(2, activation="relu")(L.GlobalAveragePooling2D()(x)))
    x = L.Multiply()([x, L.Reshape((1, 1, 4))(s)])
    return api.Model(inputs, L.Softmax()(L.Dense(3)(L.Flatten()(L.Maximum()([x, inputs])))))


@architecture
def regularized(api: Any) -> Any:
    L = api.layers
    return api.Sequential([api.Input((6,)), L.Normalization(), L.Dense(4, kernel_regularizer="l2", bias_regularizer="l1",
                           activity_regularizer="l2", kernel_initializer="he_normal", kernel_constraint="max_norm"),
                           L.ELU(0.5), L.Dropout(0.5, seed=3), L.Dense(1)])


@architecture
def recurrent(api: Any) -> Any:
    L = api.layers
    words = api.Input((7,), dtype="int32", name="words")
    x = L.Embedding(11, 4)(words)
    x = L.Bidirectional(L.LSTM(3, return_sequences=True))(x)
    x = L.GRU(4, return_sequences=True)(x)
    x = L.TimeDistributed(L.Dense(3, activation="relu"))(x)
    return api.Model(words, L.Dense(2)(L.SimpleRNN(3)(x)))


@architecture
def masked_recurrent(api: Any) -> Any:
    """A mask that Keras writes as an operation of its own."""
    L = api.layers
    words = api.Input((7,), dtype="int32", name="words")
    x = L.Embedding(11, 4, mask_zero=True)(words)
    x = L.LSTM(3, return_sequences=True)(x)
    return api.Model(words, L.Dense(2)(L.Bidirectional(L.GRU(3))(x)))


@architecture
def attention(api: Any) -> Any:
    L = api.layers
    inputs = api.Input((6, 4))
    x = L.LayerNormalization()(inputs)
    x = L.Add()([inputs, L.MultiHeadAttention(2, 3)(x, x)])
    y = L.Dense(4)(L.Dense(8, activation="gelu")(L.LayerNormalization()(x)))
    return api.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(L.Add()([x, y]))))


NEEDS = {"recurrent": ("Embedding", "Bidirectional", "LSTM", "GRU", "TimeDistributed", "SimpleRNN"),
         "masked_recurrent": ("Embedding", "LSTM", "GRU", "Bidirectional"), "attention": ("MultiHeadAttention",)}
"""Architectures → layers that they need beside the oldest ones."""


def available(registry: Any) -> Iterator[str]:
    """Yields the names of the architectures whose layers are in the registry."""
    yield from (name for name in ZOO if all(layer in registry for layer in NEEDS.get(name, ())))
