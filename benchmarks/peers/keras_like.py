"""The networks in the API that Keras and Convolt share; `api` is either."""

from __future__ import annotations

import math
from typing import Any


def cnn(api: Any) -> Any:
    """The classic CNN: two convolutions with pooling, a dense layer, dropout, ten classes."""
    L = api.layers
    return api.Sequential([
        L.Input((28, 28, 1)), L.Conv2D(32, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(64, 3, activation="relu"), L.MaxPooling2D(),
        L.Flatten(), L.Dense(64, activation="relu"), L.Dropout(0.5), L.Dense(10, activation="softmax"),
    ])  # fmt: skip


def resnet18(api: Any) -> Any:
    """ResNet-18 for 32×32 pixels: a 3×3 stem without pooling (He et al. 2016, as CIFAR's networks have it)."""
    L = api.layers
    image = L.Input((32, 32, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(64, 3, padding="same", use_bias=False)(image)))
    for filters, strides in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)))
        y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        if strides != 1:
            x = L.BatchNormalization()(L.Conv2D(filters, 1, strides, use_bias=False)(x))
        x = L.ReLU()(L.Add()([x, y]))
    return api.Model(image, L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(x)))


def resnet50(api: Any) -> Any:
    """ResNet-50 as `keras.applications` has it."""
    return api.applications.ResNet50(weights=None)


def vgg16(api: Any) -> Any:
    """VGG16 as `keras.applications` has it."""
    return api.applications.VGG16(weights=None)


NETWORKS = {"cnn": cnn, "resnet18": resnet18, "resnet50": resnet50, "vgg16": vgg16}


def build(api: Any, work: Any) -> Any:
    """Returns a workload's network, not yet compiled.

    Raises:
        AttributeError: `api.applications` has no function of that name.
    """
    return getattr(api.applications, work.network)(weights=None, input_shape=work.shape) if work.zoo else NETWORKS[work.network](api)


class FitPeer:
    """Trains and predicts through `fit` and `predict`.

    Args:
        api: the module `keras` or `convolt`.
        model: compiled.
        batch: pictures of a batch; None: whatever `fit` takes by itself.
        first_alone: whether the first step is a `fit` of its own, since a hook after every batch would slow the rest down.
    """

    def __init__(self, api: Any, model: Any, batch: int | None, first_alone: bool) -> None:
        self.api, self.model, self.first_alone = api, model, first_alone
        self.size = {"batch_size": batch} if batch else {}

    def train(self, x: Any, y: Any, test: Any, watch: Any) -> None:
        model = self.model

        class Tell(self.api.callbacks.Callback):  # type: ignore[name-defined,misc]
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                model.stop_training = watch.epoch(logs["val_accuracy"] if test else None)

        class TellFirst(Tell):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                watch.step()

        if self.first_alone:
            count = self.size.get("batch_size", 32)
            model.fit(x[:count], y[:count], verbose=0, **self.size)
            watch.step()
        callback = Tell() if self.first_alone else TellFirst()
        model.fit(x, y, epochs=watch.epochs or 100_000, verbose=0, validation_data=test, callbacks=[callback], **self.size)

    def predict(self, x: Any) -> Any:
        return self.model.predict(x, verbose=0, **self.size)

    def parameters(self) -> int:
        return sum(math.prod(weight.shape) for weight in self.model.trainable_weights)
