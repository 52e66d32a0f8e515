"""A CNN as a subclass of Model, on MNIST or CIFAR-10: fit, evaluate, predict.

    python examples/subclassed_cnn.py --data mnist --epochs 3
"""

import argparse

import torch

import convolt
from convolt import datasets, layers


class CNN(convolt.Model):
    """Conv 32, pool, conv 64, pool, dense 64, dense 10."""

    def __init__(self) -> None:
        super().__init__()
        self.rescale = layers.Rescaling(1 / 255)
        self.conv1 = layers.Conv2D(32, 3, activation="relu")
        self.pool1 = layers.MaxPooling2D()
        self.conv2 = layers.Conv2D(64, 3, activation="relu")
        self.pool2 = layers.MaxPooling2D()
        self.flatten = layers.Flatten()
        self.dense = layers.Dense(64, activation="relu")
        self.classes = layers.Dense(10, activation="softmax")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.conv1(self.rescale(x)))
        x = self.pool2(self.conv2(x))
        return self.classes(self.dense(self.flatten(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=["mnist", "cifar10"], default="mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=None, help="train, and test, on the first so many pictures")
    options = parser.parse_args()

    convolt.utils.set_random_seed(0)
    (x_train, y_train), (x_test, y_test) = getattr(datasets, options.data).load_data()
    if x_train.ndim == 3:  # grey pictures: (N, 28, 28) → (N, 28, 28, 1)
        x_train, x_test = x_train[..., None], x_test[..., None]
    n = options.samples
    x_train, y_train, x_test, y_test = x_train[:n], y_train[:n], x_test[:n], y_test[:n]

    model = CNN()
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x_train, y_train, batch_size=64, epochs=options.epochs)
    model.summary()
    _, accuracy = model.evaluate(x_test, y_test)
    print("first ten predictions:", model.predict(x_test[:10], verbose=0).argmax(1), "labels:", y_test[:10].ravel())
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
