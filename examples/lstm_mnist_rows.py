"""An LSTM that reads the digits of MNIST row by row, from the top to the bottom.

    python examples/lstm_mnist_rows.py --epochs 5
"""

import argparse

import convolt
from convolt import datasets, layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--samples", type=int, default=None, help="train, and test, on the first so many pictures")
    options = parser.parse_args()

    convolt.utils.set_random_seed(0)
    (x_train, y_train), (x_test, y_test) = datasets.mnist.load_data()  # (N, 28, 28): a sequence of 28 rows of 28 pixels
    n = options.samples
    x_train, y_train, x_test, y_test = x_train[:n], y_train[:n], x_test[:n], y_test[:n]

    model = convolt.Sequential([
        layers.Input((28, 28)), layers.Rescaling(1 / 255),
        layers.LSTM(options.units),
        layers.Dense(10, activation="softmax"),
    ])
    rate = convolt.optimizers.schedules.CosineDecay(0.004)  # over all steps of the training, to 0
    model.compile(convolt.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x_train, y_train, batch_size=128, epochs=options.epochs, validation_split=0.1)
    model.summary()
    _, accuracy = model.evaluate(x_test, y_test)
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
