"""One CNN with two outputs on MNIST: which digit it is, and how thick it is written. Each has a loss, a weight and metrics.

    python examples/two_headed_cnn.py --epochs 3
"""

import argparse

import numpy as np

import convolt
from convolt import datasets, layers


def thickness(pictures: np.ndarray) -> np.ndarray:
    """Returns the ink of each picture over the length of its outline: about half the width of the pen, in pixels."""
    ink = pictures[..., 0].astype("float32") / 255
    edges = np.abs(np.diff(ink, axis=1)).sum((1, 2)) + np.abs(np.diff(ink, axis=2)).sum((1, 2))
    return (ink.sum((1, 2)) / np.maximum(edges, 1.0))[:, None]


def build() -> convolt.Model:
    image = layers.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255)(image)
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D()(layers.ReLU()(x))
    shared = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    digit = layers.Dense(10, activation="softmax", name="digit")(shared)
    width = layers.Dense(1, name="thickness")(shared)
    return convolt.Model(image, [digit, width])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=None, help="train, and test, on the first so many pictures")
    options = parser.parse_args()

    convolt.utils.set_random_seed(0)
    (x_train, y_train), (x_test, y_test) = datasets.mnist.load_data()
    n = options.samples
    x_train, y_train, x_test, y_test = x_train[:n, ..., None], y_train[:n], x_test[:n, ..., None], y_test[:n]
    train_labels = {"digit": y_train, "thickness": thickness(x_train)}
    test_labels = {"digit": y_test, "thickness": thickness(x_test)}

    model = build()
    model.compile(
        "adam",
        loss={"digit": "sparse_categorical_crossentropy", "thickness": "mse"},
        loss_weights={"digit": 1.0, "thickness": 5.0},
        metrics={"digit": ["accuracy"], "thickness": ["mae"]},
    )
    model.fit(x_train, train_labels, batch_size=64, epochs=options.epochs)
    results = model.evaluate(x_test, test_labels, return_dict=True)
    spread = float(test_labels["thickness"].std())
    print("results:", {name: round(value, 4) for name, value in results.items()})
    print(f"test accuracy: {results['digit_accuracy']:.4f}")
    print(f"error of the thickness: {results['thickness_mae']:.3f} pixels, where the pictures differ by {spread:.3f}")


if __name__ == "__main__":
    main()
