"""A small vision transformer on CIFAR-10: patches, a class token, learned positions, and blocks of attention.

    python examples/vit_cifar10.py --epochs 5 --samples 5000
    python examples/vit_cifar10.py --epochs 40 --samples 50000 --width 128 --depth 6

The first line takes a minute or two on a CPU and ends clearly above chance (10%); the second wants a GPU.
"""

import argparse

import torch

import convolt
from convolt import datasets, layers


class FirstStep(layers.Layer):
    """The class token, which has seen all patches. Inside, features come before steps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0]


def block(x, width: int, heads: int, drop: float):
    """Attention, then a network of two layers for each step; both on normalized input, and added to what was there."""
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.MultiHeadAttention(heads, width // heads)(y, y)
    x = x + layers.StochasticDepth(drop)(y)
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.Dense(2 * width, activation="gelu")(y)
    y = layers.Dense(width)(y)
    return x + layers.StochasticDepth(drop)(y)


def build(patch: int = 4, width: int = 64, depth: int = 4, heads: int = 4, drop: float = 0.1) -> convolt.Model:
    """Returns the model; blocks are dropped the more often the deeper they lie, up to `drop`."""
    image = layers.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(x)
    x = layers.Reshape(((32 // patch) ** 2, width))(x)
    x = layers.ClassToken()(x)
    x = x + layers.PositionEmbedding((32 // patch) ** 2 + 1, initializer=convolt.initializers.RandomNormal(stddev=0.02))(x)
    for i in range(depth):
        x = block(x, width, heads, drop * i / max(1, depth - 1))
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return convolt.Model(image, layers.Dense(10, activation="softmax")(FirstStep()(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=5000, help="train on the first so many pictures, test on a fifth of that")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--patch", type=int, default=4)
    options = parser.parse_args()

    convolt.utils.set_random_seed(0)
    (x_train, y_train), (x_test, y_test) = datasets.cifar10.load_data()
    x_train, y_train = x_train[:options.samples], y_train[:options.samples]
    x_test, y_test = x_test[:max(1, options.samples // 5)], y_test[:max(1, options.samples // 5)]

    model = build(options.patch, options.width, options.depth)
    model.compile(convolt.optimizers.AdamW("cosine", weight_decay=0.02), "sparse_categorical_crossentropy", ["accuracy"])
    model.summary()
    model.fit(x_train, y_train, batch_size=64, epochs=options.epochs)
    _, accuracy = model.evaluate(x_test, y_test)
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
