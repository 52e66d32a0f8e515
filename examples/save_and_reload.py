"""The same CNN as Sequential and as functional model, with Dropout and softmax, saved and loaded again.

    python examples/save_and_reload.py --epochs 3
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import convolt
from convolt import datasets, layers


def sequential(input_shape: tuple[int, ...]) -> convolt.Model:
    return convolt.Sequential([
        layers.Input(input_shape),
        layers.Rescaling(1 / 255),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    ])


def functional(input_shape: tuple[int, ...]) -> convolt.Model:
    image = layers.Input(input_shape)
    x = layers.Rescaling(1 / 255)(image)
    for filters in (32, 64):
        x = layers.MaxPooling2D()(layers.Conv2D(filters, 3, activation="relu")(x))
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    return convolt.Model(image, layers.Dense(10, activation="softmax")(layers.Dropout(0.5)(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=None, help="train, and test, on the first so many pictures")
    options = parser.parse_args()

    (x_train, y_train), (x_test, y_test) = datasets.mnist.load_data()
    n = options.samples
    x_train, y_train, x_test, y_test = x_train[:n, ..., None], y_train[:n], x_test[:n, ..., None], y_test[:n]
    for make in (sequential, functional):
        convolt.utils.set_random_seed(0)
        model = make((28, 28, 1))
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        model.fit(x_train, y_train, batch_size=64, epochs=options.epochs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cnn.safetensors"
            model.save(path)
            again = convolt.load_model(path)
            same = np.array_equal(model.predict(x_test, verbose=0), again.predict(x_test, verbose=0))
        _, accuracy = again.evaluate(x_test, y_test)
        print(f"{make.__name__}: test accuracy {accuracy:.4f}, predictions after reloading {'equal' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
