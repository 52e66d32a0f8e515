"""`get_weights` of models with branches: Keras's order, so that lists of arrays can go from one to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convolt import Input, Model, applications, layers
from convolt.layout import to_inside

NETWORKS = [("ResNet50", 32, False), ("InceptionV3", 75, False), ("MobileNetV3Small", 32, True), ("MobileNetV2", 32, False),
            ("MobileNet", 32, False)]
OTHERS = [("EfficientNetB0", 32, True), ("MobileNetV3Large", 32, True), ("EfficientNetV2B0", 32, True), ("DenseNet121", 32, False),
          ("ResNet50V2", 32, False), ("ConvNeXtTiny", 32, True), ("VGG16", 32, False), ("Xception", 71, False),
          ("InceptionResNetV2", 75, False)]


def computed(model: Model, x: np.ndarray) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(to_inside(torch.from_numpy(x))).numpy()


@pytest.mark.parametrize(("name", "side", "pixels"), [*NETWORKS, *[pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS]])
def test_weights_of_keras_fit_as_they_are(keras: Any, name: str, side: int, pixels: bool) -> None:
    arguments: dict[str, Any] = {"weights": None, "classes": 5, "input_shape": (side, side, 3), "classifier_activation": None}
    keras.utils.clear_session()  # its layers are numbered through a whole process
    keras.utils.set_random_seed(0)
    theirs, ours = getattr(keras.applications, name)(**arguments), getattr(applications, name)(**arguments)
    assert [layer.name for layer in ours.layers if layer.get_weights()] == [layer.name for layer in theirs.layers if layer.weights]
    values = [variable.value.detach().numpy() for variable in theirs.weights]  # what get_weights gives, without NumPy's warning
    ours.set_weights(values)
    for own, other in zip(ours.get_weights(), values, strict=True):
        np.testing.assert_array_equal(own, other)
    x = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3)).astype("float32") * (127 if pixels else 1) + (128 if pixels else 0)
    with torch.no_grad():
        expected = theirs(x, training=False).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(computed(ours, x), expected, atol=1e-4 * np.abs(expected).max())


def branches() -> Model:
    """Calls are recorded depth first; by depth the shortcut comes later than the first convolution of the long branch."""
    start = Input((8, 8, 3))
    short = layers.Conv2D(4, 1, name="short")(start)
    long = layers.Conv2D(4, 3, padding="same", name="long_2")(layers.Conv2D(4, 3, padding="same", name="long_1")(start))
    inner = Model(start, layers.Add()([short, long]), name="inner")
    outer = Input((8, 8, 3))
    return Model(outer, layers.Concatenate()([layers.Conv2D(2, 1, name="side")(outer), inner(outer)]))


def test_models_inside_models_too() -> None:
    model = branches()
    assert [layer.name for layer in model.get_layer("inner").layers] == ["long_1", "short", "long_2", "add"]
    first = {name for name, _ in model.keras_weights()}
    assert first == set(model.state_dict())
    inner = [name for name, _ in model.get_layer("inner").keras_weights()]
    assert inner[:4] == ["long_1.weight", "long_1.bias", "short.weight", "short.bias"]


@pytest.mark.parametrize("suffix", [".safetensors", ".keras", ".h5", ".weights.h5"])
def test_files_hold_weights_by_name(suffix: str, tmp_path: Path) -> None:
    """Nothing in a file goes by the order of `layers`: those written before models had Keras's order are read as ever."""
    model, again = branches(), branches()
    model.save_weights(tmp_path / f"model{suffix}") if suffix == ".weights.h5" else model.save(tmp_path / f"model{suffix}")
    loaded = again.load_weights(tmp_path / f"model{suffix}")
    assert list(loaded.state_dict()) == list(model.state_dict()), "the order of the state dict is that of the calls, as before"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


def test_automatic_names_stay_those_of_the_calls() -> None:
    """Names are the keys of saved weights; they must not follow the order of `layers`."""
    start = Input((8, 8, 3))
    short = layers.Conv2D(4, 1)(start)
    long = layers.Conv2D(5, 1)(layers.Conv2D(6, 1)(start))
    model = Model(start, layers.Concatenate()([short, long]))
    assert {key: tensor.shape[0] for key, tensor in model.state_dict().items() if key.endswith("bias")} == \
        {"conv2d.bias": 4, "conv2d_1.bias": 6, "conv2d_2.bias": 5}
    assert [layer.name for layer in model.layers] == ["conv2d_1", "conv2d", "conv2d_2", "concatenate"]
