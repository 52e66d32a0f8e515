"""A network that knows five classes learns five others from few pictures: from scratch, on features, and by fine-tuning.

    python examples/transfer_learning.py --data digits
    python examples/transfer_learning.py --data cifar10 --backbone vgg16 --weights vgg16_notop.h5
"""

import argparse

import numpy as np

import convolt
from convolt import datasets, layers
from convolt.applications import VGG16

Pictures = tuple[np.ndarray, np.ndarray]


def small_backbone(input_shape: tuple[int, ...]) -> convolt.Model:
    model = convolt.Sequential([layers.Input(input_shape)], name="small")
    for filters in (32, 64, 128):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        if filters < 128:
            model.add(layers.MaxPooling2D())
    return model


def backbone(name: str, input_shape: tuple[int, ...], weights: str | None) -> convolt.Model:
    if name == "vgg16":
        return VGG16(include_top=False, weights=weights, input_shape=input_shape)
    return small_backbone(input_shape)


def with_head(base: convolt.Model, input_shape: tuple[int, ...], classes: int) -> convolt.Model:
    model = convolt.Sequential([
        layers.Input(input_shape),
        layers.Rescaling(1 / 255),
        base,
        layers.GlobalAveragePooling2D(),
        layers.Dense(classes, activation="softmax"),
    ])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    return model


def load(data: str) -> tuple[Pictures, Pictures]:
    (x_train, y_train), (x_test, y_test) = getattr(datasets, data).load_data()
    if x_train.ndim == 3:
        x_train, x_test = x_train[..., None], x_test[..., None]
    return (x_train, y_train.reshape(-1)), (x_test, y_test.reshape(-1))


def of_classes(pictures: Pictures, first: int, count: int, samples: int | None = None) -> Pictures:
    x, y = pictures
    chosen = (y >= first) & (y < first + count)
    return x[chosen][:samples], y[chosen][:samples] - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("digits", "mnist", "cifar10"), default="digits")
    parser.add_argument("--backbone", choices=("small", "vgg16"), default="small")
    parser.add_argument("--weights", help="of the backbone; without, it is trained on the first five classes")
    parser.add_argument("--samples", type=int, default=25, help="pictures of the new classes")
    parser.add_argument("--source-samples", type=int, default=None, help="pictures of the first five classes")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    convolt.utils.set_random_seed(0)
    train, test = load(options.data)
    shape = train[0].shape[1:]
    x_new, y_new = of_classes(train, 5, 5, options.samples)
    x_test, y_test = of_classes(test, 5, 5)

    base = backbone(options.backbone, shape, options.weights)
    if options.weights is None:
        print("The first five classes:")
        with_head(base, shape, 5).fit(*of_classes(train, 0, 5, options.source_samples), epochs=options.epochs, verbose=2)

    scratch = with_head(backbone(options.backbone, shape, None), shape, 5)
    scratch.fit(x_new, y_new, batch_size=16, epochs=options.epochs, verbose=0)
    print(f"from scratch:    test accuracy {scratch.evaluate(x_test, y_test, verbose=0)[1]:.4f}")

    model = with_head(base, shape, 5)
    features, test_features = model.features(x_new), model.features(x_test)  # what the head is given
    head = convolt.Sequential([layers.Input(features.shape[1:]), layers.Dense(5, activation="softmax")])
    head.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    head.optimizer.learning_rate = head.lr_find(features, y_new, batch_size=16).suggestion or 0.001
    head.fit(features, y_new, batch_size=16, epochs=options.epochs, verbose=0)
    print(f"on features:     test accuracy {head.evaluate(test_features, y_test, verbose=0)[1]:.4f}")

    model.fine_tune(x_new, y_new, batch_size=16, epochs=options.epochs, freeze_epochs=options.epochs, learning_rate=0.01, verbose=0)
    print(f"fine-tuned:      test accuracy {model.evaluate(x_test, y_test, verbose=0)[1]:.4f}")
    model.freeze().summary()


if __name__ == "__main__":
    main()
