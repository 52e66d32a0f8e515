"""A small convolutional network for small pictures: MNIST, CIFAR-10, 8×8 digits."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Architecture, add
from convolt.errors import ShapeError, explain
from convolt.layers.arguments import check_positive
from convolt.models import Sequential

FIRST_FILTERS, MOST_FILTERS = 32, 256
DROPOUT = 0.25
SMALLEST_MAP = 4
"""Stages are added while the shorter side of the map is at least this long; so the last map is 2×2 or 3×3."""


def cnn(input_shape: tuple[int, ...], classes: int, classifier_activation: str | None = "softmax") -> Sequential:
    """Returns a convolutional network that takes pictures with values 0 … 255 as they are (uint8).

    Stages of convolution 3×3, max pooling, batch normalization and ReLU, with 32 filters in the first and twice as many in
    each next one (256 at most) until the map is 2×2 or 3×3; then dropout and a classifier. The number of
    stages follows from the size of the pictures: 2 for 8×8, 3 for 28×28, 4 for 32×32, 6 for 224×224. Pooling comes before
    normalization because that quarters the work of the two elementwise layers, which a CPU feels.

    Args:
        input_shape: (height, width, channels).
        classes: number of classes.
        classifier_activation: of the last layer; "sigmoid" where a picture may have several of the classes.

    Raises:
        ShapeError: `input_shape` is not that of a picture of at least 4×4 pixels.
        ArgumentError: there are no classes.

    The batch normalization forgets faster (momentum 0.9) than Keras's default, so that its averages are right after an
    epoch of a few steps, too.
    """
    is_shape = len(input_shape) == 3 and all(isinstance(n, int) and n > 0 for n in input_shape)
    if not is_shape or min(input_shape[:2]) < SMALLEST_MAP:
        expected = f"(height, width, channels) with sides from {SMALLEST_MAP}"
        raise ShapeError(
            explain(
                "cnn(input_shape)",
                str(tuple(input_shape)),
                expected,
                "Other data need a model of your own: convolt train FILE.py:FUNCTION.",
            )
        )
    check_positive("cnn", "classes", classes)
    model = Sequential([layers.Input(input_shape), layers.Rescaling(1 / 255)], name="cnn")
    side, filters = min(input_shape[:2]), FIRST_FILTERS
    while side >= SMALLEST_MAP:
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.MaxPooling2D())
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        side, filters = side // 2, min(2 * filters, MOST_FILTERS)
    model.add(layers.Flatten())
    model.add(layers.Dropout(DROPOUT))
    model.add(layers.Dense(classes, activation=classifier_activation))
    return model


add(Architecture("cnn", "Convolt", "Convolt's own, for small pictures", cnn, size=32, smallest=SMALLEST_MAP, pixels="none", flattens=True,
                 classes=10, plain=True))
