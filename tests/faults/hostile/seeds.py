"""The whole files that mutants are made of: small models of Convolt and of Keras, pictures, archives."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.hostile.mutate import tar_of


def safetensors(folder: Path) -> list[bytes]:
    from convolt import layers
    from convolt.models import Model, Sequential

    stack = Sequential([layers.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, kernel_regularizer="l2", activation="relu"),
                        layers.BatchNormalization(), layers.MaxPooling2D(), layers.Dropout(0.5), layers.Flatten(),
                        layers.Dense(3, activation="softmax", kernel_initializer="orthogonal")])
    stack.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    stack.class_names = ["a", "b", "c"]
    image = layers.Input((8, 8, 1), name="image")
    shared = layers.Conv2D(2, 3, padding="same")
    joined = layers.Concatenate()([shared(image), layers.ZeroPadding2D(1)(layers.DepthwiseConv2D(3, depth_multiplier=2)(image))])
    inner = Sequential([layers.Input((8, 8, 4)), layers.SeparableConv2D(3, 3), layers.UpSampling2D(2), layers.GlobalAveragePooling2D()])
    branched = Model({"image": image}, {"kind": layers.Dense(2)(layers.Reshape((3,))(inner(joined)) * 0.5)})
    branched.compile("sgd", {"kind": "mse"}, device="cpu")
    flat = Sequential([layers.Input((4,)), layers.Dense(3), layers.LayerNormalization(), layers.PReLU(), layers.Dense(1)])
    return [_saved(model, folder / f"{i}.safetensors") for i, model in enumerate((stack, branched, flat, *_one_of_each_layer()))]


def _one_of_each_layer() -> Iterator[Any]:
    """Yields a model for each layer that can be in a file, with the arguments of its case in the parity tests."""
    from convolt import layers
    from convolt.models import Model
    from tests.parity.cases import all_cases

    cases = {case.layer: case for case in all_cases()}  # the last of each
    for name, case in cases.items():
        dtype = "int64" if case.integers else "float32"
        inputs = [layers.Input(shape[1:], dtype=dtype, name=f"x{i}") for i, shape in enumerate(case.shapes)]
        output = layers.registry.find(name)(**case.kwargs)(*case.arguments(inputs))
        yield Model(inputs if len(inputs) > 1 else inputs[0], output)


def _saved(model: object, path: Path) -> bytes:
    model.save(path)
    return path.read_bytes()


def _keras_files(folder: Path, suffix: str) -> list[bytes]:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras calls its own .h5 old
        import keras

        keras.utils.set_random_seed(0)
        stack = keras.Sequential([
            keras.layers.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(), keras.layers.MaxPooling2D(), keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax")])
        stack.compile("adam", "sparse_categorical_crossentropy")
        image = keras.layers.Input((8, 8, 1))
        joined = keras.layers.Add()([keras.layers.Conv2D(2, 3, padding="same")(image), keras.layers.Conv2D(2, 1)(image)])
        branched = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(joined)))
        return [_saved(model, folder / f"{i}{suffix}") for i, model in enumerate((stack, branched))]


def h5(folder: Path) -> list[bytes]:
    """Keras's own files, and one in the oldest layout of HDF5 with compressed chunks."""
    import h5py

    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=("earliest", "v110")) as file:
        file.attrs["layer_names"] = [b"dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        group.create_dataset("dense/kernel:0", data=np.ones((4, 3), "float32"), chunks=(2, 3), compression="gzip", shuffle=True)
        group.create_dataset("dense/bias:0", data=np.ones(3, ">f4"))
    return [*_keras_files(folder, ".h5"), memory.getvalue()]


def keras(folder: Path) -> list[bytes]:
    return _keras_files(folder, ".keras")


def images(folder: Path) -> list[bytes]:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype("uint8")
    picture, found = Image.fromarray(pixels), []
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (("JPEG", {"exif": exif}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {}),
                          ("WEBP", {"lossless": True})):
        memory = io.BytesIO()
        picture.save(memory, kind, **options)
        found.append(memory.getvalue())
    for mode in ("P", "L", "RGBA", "1", "I;16"):
        memory = io.BytesIO()
        other = Image.fromarray(pixels[:, :, 0].astype("uint16") * 200) if mode == "I;16" else picture.convert(mode)
        other.save(memory, "PNG")
        found.append(memory.getvalue())
    memory = io.BytesIO()
    picture.convert("CMYK").save(memory, "JPEG")
    return [*found, memory.getvalue()]


def pickles(folder: Path) -> list[bytes]:
    import pickle

    import torch

    found = [pickle.dumps({"a": [1, 2.5, torch.float32, b"x", "y" * 300, (1, None)], "b": Path("x")}, protocol) for protocol in range(6)]
    for new in (True, False):
        memory = io.BytesIO()
        torch.save(torch.nn.Linear(2, 2).state_dict(), memory, _use_new_zipfile_serialization=new)
        found.append(memory.getvalue())
    return found


def archives(folder: Path) -> list[bytes]:
    memory = io.BytesIO()
    np.savez(memory, x_train=np.zeros((3, 4, 4), "uint8"), y_train=np.arange(3), class_names=np.array(["a", "b"]))
    packed = io.BytesIO()
    np.savez_compressed(packed, x=np.zeros((30, 4), "float32"), y=np.arange(30))
    members = {"cifar/test/cat/1.jpg": b"x" * 700, "cifar/train/dog/2.jpg": b"y" * 100, "cifar/labels.txt": b"cat\ndog\n"}
    return [tar_of(members, "w:gz"), tar_of(members, "w:xz"), memory.getvalue(), packed.getvalue()]
