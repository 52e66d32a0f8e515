"""What the sweep over the architectures does not reach: files under Keras's names, features of transformers, pixels, signatures."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import convolt
from convolt import applications
from convolt.errors import ArgumentError, ShapeError

MODES = {"convnext": "none", "densenet": "torch", "efficientnet": "none", "efficientnet_v2": "none", "googlenet": "tf",
         "inception_resnet_v2": "tf", "inception_v3": "tf", "mobilenet": "tf", "mobilenet_v2": "tf", "mobilenet_v3": "none", "nasnet": "tf",
         "vit": "tf", "xception": "tf"}
PIXELS = np.full((1, 2, 2, 3), 255, "uint8")


@pytest.mark.parametrize(("module", "mode"), MODES.items(), ids=str)
def test_each_module_prepares_pixels_as_its_networks_want_them(module: str, mode: str) -> None:
    got = getattr(applications, module).preprocess_input(PIXELS)
    np.testing.assert_array_equal(got, applications.imagenet_utils.preprocess_input(PIXELS, mode=mode))
    assert callable(getattr(applications, module).decode_predictions)


def efficientnet(**arguments):
    return applications.EfficientNetB0(input_shape=(32, 32, 3), classes=3, classifier_activation=None, **arguments)


def test_the_deviations_in_the_published_files_of_efficientnet_are_made_up_for(tmp_path: Path) -> None:
    """Keras's files have deviations where variances belong; the same weights under another name are taken as they are."""
    model, deviation = efficientnet(), np.array([0.229, 0.224, 0.225], "float32")
    normalization = model.get_layer("normalization")
    normalization.set_weights([np.array([0.485, 0.456, 0.406], "float32"), deviation, np.zeros((), "int32")])
    for name in ("efficientnetb0.h5", "mine.h5"):
        model.save_weights(tmp_path / name)
    published, own = (efficientnet(weights=str(tmp_path / name)) for name in ("efficientnetb0.h5", "mine.h5"))
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    as_published, as_it_is = published.predict(x, verbose=0), own.predict(x, verbose=0)
    np.testing.assert_array_equal(as_it_is, model.predict(x, verbose=0))
    normalization.set_weights([np.array([0.485, 0.456, 0.406], "float32"), deviation**2, np.zeros((), "int32")])
    right = model.predict(x, verbose=0)
    np.testing.assert_allclose(as_published, right, atol=1e-5 * np.abs(right).max())
    assert np.abs(as_it_is - right).max() > 1e-5 * np.abs(right).max()


def test_imagenet_finds_files_under_the_names_that_keras_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLT_WEIGHTS", str(tmp_path))
    model = efficientnet()
    model.save_weights(tmp_path / "efficientnetb0.h5")
    loaded = efficientnet(weights="imagenet")
    assert torch.equal(loaded.get_layer("stem_conv").weight, model.get_layer("stem_conv").weight)


def test_a_transformer_without_a_top_gives_the_features_of_its_patches() -> None:
    features = applications.ViTTi16(include_top=False, input_shape=(32, 48, 3))
    means = applications.ViTTi16(include_top=False, input_shape=(32, 48, 3), pooling="avg")
    assert features.outputs[0].shape == (None, 2, 3, 192) and means.outputs[0].shape == (None, 192)
    means.set_weights(features.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("float32")
    np.testing.assert_allclose(means.predict(x, verbose=0), features.predict(x, verbose=0).mean((1, 2)), atol=1e-5)


def test_a_nasnet_needs_the_size_also_without_a_top() -> None:
    with torch.device("meta"):
        assert applications.NASNetMobile(include_top=False).outputs[0].shape == (None, 7, 7, 1056)
        assert applications.NASNetMobile(include_top=False, input_shape=(97, 64, 3), pooling="max").outputs[0].shape == (None, 1056)


def test_a_transformer_for_small_pictures() -> None:
    model = applications.ViTTi16(input_shape=(32, 32, 3), classes=10, patch_size=4, dropout=0.1)
    assert model.get_layer("positions").weight.shape == (65, 192) and model.outputs[0].shape == (None, 10)


@pytest.mark.parametrize(("work", "kind", "message"), [
    (lambda: applications.ViTS16(include_top=False), ShapeError, r"ViTS16\(input_shape\).*each place has its own vector"),
    (lambda: applications.ViTS16(input_shape=(32, 32, 3), patch_size=64), ArgumentError, r"ViTS16\(patch_size\): got 64; expected at most"),
    (lambda: applications.ViTS16(input_shape=(32, 32, 3), patch_size=0), ArgumentError, "patch_size"),
    (lambda: applications.NASNetMobile(include_top=False, input_shape=(None, None, 3)), ShapeError,
     r"NASNetMobile\(input_shape\).*a known height and width.*\(224, 224, 3\)"),
    (lambda: applications.Xception(input_shape=(64, 64, 3)), ShapeError, "at least 71×71"),
])
def test_errors(work, kind, message) -> None:
    with pytest.raises(kind, match=message), torch.device("meta"):
        work()


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2S", "ConvNeXtTiny"])
def test_options_change_the_network_as_their_names_say(name: str) -> None:
    function = getattr(applications, name)
    with torch.device("meta"):
        usual = function()
        for argument, value in {"alpha": 0.5, "include_preprocessing": False, "minimalistic": True, "depth_multiplier": 2}.items():
            if argument in inspect.signature(function).parameters:
                other = function(**{argument: value})
                assert isinstance(other, convolt.Model)
                fewer = len(other.layers) < len(usual.layers)
                assert fewer if argument in ("include_preprocessing", "minimalistic") else other.count_params() != usual.count_params()
