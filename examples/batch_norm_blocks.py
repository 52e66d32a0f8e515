"""Blocks of convolution, batch normalization and ReLU (64, 64, 128), a validation split, and a plot of the history.

    python examples/batch_norm_blocks.py --epochs 3 --plot history.png
"""

import argparse

import convolt
from convolt import datasets, layers
from convolt.training.plots import plot_history


def build(input_shape: tuple[int, ...]) -> convolt.Model:
    model = convolt.Sequential([layers.Input(input_shape), layers.Rescaling(1 / 255)])
    for filters in (64, 64, 128):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, activation="softmax"))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=None, help="train, and test, on the first so many pictures")
    parser.add_argument("--plot", default="history.png")
    options = parser.parse_args()

    convolt.utils.set_random_seed(0)
    (x_train, y_train), (x_test, y_test) = datasets.mnist.load_data()
    n = options.samples
    x_train, y_train, x_test, y_test = x_train[:n, ..., None], y_train[:n], x_test[:n, ..., None], y_test[:n]
    model = build((28, 28, 1))
    # A rate that falls to 0 lets the averages of batch normalization catch up with the weights.
    model.compile(convolt.optimizers.Adam("cosine"), "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(x_train, y_train, batch_size=128, epochs=options.epochs, validation_split=0.1)
    plot_history(history.history, options.plot)
    _, accuracy = model.evaluate(x_test, y_test)
    print(f"test accuracy: {accuracy:.4f}; history drawn to {options.plot}")


if __name__ == "__main__":
    main()
