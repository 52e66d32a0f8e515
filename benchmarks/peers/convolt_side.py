"""Convolt through `compile` and `fit`, as a user calls it; the plan decides by itself, for a long run."""

import time

from common import SHAPES, START, arguments, data, report

options = arguments()

import convolt  # noqa: E402
from convolt import layers as L  # noqa: E402


def cnn() -> convolt.Model:
    return convolt.Sequential([
        L.Input(SHAPES["cnn"]), L.Conv2D(32, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(64, 3, activation="relu"), L.MaxPooling2D(),
        L.Flatten(), L.Dense(64, activation="relu"), L.Dropout(0.5), L.Dense(10, activation="softmax"),
    ])  # fmt: skip


def resnet18() -> convolt.Model:
    image = L.Input(SHAPES["resnet18"])
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(64, 3, padding="same", use_bias=False)(image)))
    for filters, strides in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)))
        y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        if strides != 1:
            x = L.BatchNormalization()(L.Conv2D(filters, 1, strides, use_bias=False)(x))
        x = L.ReLU()(L.Add()([x, y]))
    return convolt.Model(image, L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(x)))


class Watch(convolt.callbacks.Callback):
    """Notes when the first step and each epoch end, and stops the run when its time is up."""

    def __init__(self) -> None:
        self.first_step = 0.0
        self.rates: list[float] = []
        self.start = self.last = 0.0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if not self.first_step:
            self.first_step = time.perf_counter() - START

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        now = time.perf_counter()
        if epoch == 1:
            self.start = now
        elif epoch > 1:
            self.rates.append(len(x) / (now - self.last))
            self.model.stop_training = now - self.start > options.seconds and len(self.rates) >= 3
        self.last = now


model = {"cnn": cnn, "resnet18": resnet18}[options.workload]()
model.compile("adam", "sparse_categorical_crossentropy", device=options.device, precision=options.precision,
              fusions=options.variant or "auto")
x, y = data(options.workload, options.batch * (8 if options.workload == "cnn" else 2))
watch = Watch()
model.fit(x, y, batch_size=options.batch, epochs=100_000, verbose=0, callbacks=[watch])
name = "convolt" + (f" (fusions={options.variant})" if options.variant else "")
report(name, options, watch.rates, watch.first_step, plan=model.plan.describe())
