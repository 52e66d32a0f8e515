"""Keras 3 through `compile` and `fit`; the backend is `--variant torch|tensorflow|jax`, with `+jit` for jit_compile=True."""

import os
import time

from common import SHAPES, START, arguments, data, report, timed_rounds

options = arguments()
backend, _, jit = (options.variant or "torch").partition("+")
os.environ["KERAS_BACKEND"] = backend
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras  # noqa: E402
from keras import layers as L  # noqa: E402

if options.precision == "bfloat16":
    keras.mixed_precision.set_global_policy("mixed_bfloat16")


def cnn() -> keras.Model:
    return keras.Sequential([
        L.Input(SHAPES["cnn"]), L.Conv2D(32, 3, activation="relu"), L.MaxPooling2D(), L.Conv2D(64, 3, activation="relu"), L.MaxPooling2D(),
        L.Flatten(), L.Dense(64, activation="relu"), L.Dropout(0.5), L.Dense(10, activation="softmax"),
    ])  # fmt: skip


def resnet18() -> keras.Model:
    image = L.Input(SHAPES["resnet18"])
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(64, 3, padding="same", use_bias=False)(image)))
    for filters, strides in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)))
        y = L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        if strides != 1:
            x = L.BatchNormalization()(L.Conv2D(filters, 1, strides, use_bias=False)(x))
        x = L.ReLU()(L.Add()([x, y]))
    return keras.Model(image, L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(x)))


model = {"cnn": cnn, "resnet18": resnet18}[options.workload]()
model.compile("adam", "sparse_categorical_crossentropy", **({"jit_compile": True} if jit else {}))
x, y = data(options.workload, options.batch * (8 if options.workload == "cnn" else 2))
model.fit(x[: options.batch], y[: options.batch], batch_size=options.batch, verbose=0)
first = time.perf_counter() - START


def epochs() -> int:
    model.fit(x, y, batch_size=options.batch, epochs=2, verbose=0)
    return 2 * len(x)


epochs()
report(f"keras {options.variant or 'torch'}", options, timed_rounds(epochs, options.seconds), first)
