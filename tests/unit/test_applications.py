"""Arguments and files of the architectures: what is refused, and in which words; the list; pixels and names of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convolt
from convolt import applications
from convolt.applications import LeNet5, ResNet18, SqueezeNet1_1, UNet, figures, imagenet_utils
from convolt.cli.starting import load_start
from convolt.errors import ArgumentError, ArgumentTypeError, DataError, ModelFileError, ShapeError
from convolt.models.summary import human

SMALL = {"input_shape": (32, 32, 1), "classes": 3}


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ({"poolin": "avg"}, ArgumentTypeError, r"LeNet5\(\.\.\.\): got the unknown argument 'poolin'.*Did you mean 'pooling'\?"),
    ({"pooling": "mean"}, ArgumentError, r"LeNet5\(pooling\): got 'mean'; expected None, 'avg' or 'max'"),
    ({"classes": 0}, ArgumentError, r"LeNet5\(classes\): got 0; expected a whole number from 1"),
    ({"input_shape": (32, 32)}, ShapeError, r"LeNet5\(input_shape\): got \(32, 32\); expected \(height, width, channels\)"),
    ({"input_shape": (16, 32, 1)}, ShapeError, r"LeNet5\(input_shape\): got \(16, 32, 1\); expected pictures of at least 28×28"),
    ({"input_shape": (None, None, 1)}, ShapeError, r"a known height and width, which the classifier needs. Or take include_top=False"),
    ({"input_tensor": np.zeros((1, 32, 32, 1))}, ArgumentTypeError, r"LeNet5\(input_tensor\): got ndarray; expected a symbolic tensor"),
    ({"weights": 3}, ArgumentError, r"LeNet5\(weights\): got 3; expected None, a file's path, or the name of weights"),
    ({"weights": "none.h5"}, ArgumentError, r"LeNet5\(weights\): got 'none.h5', which does not exist"),
    ({"weights": "imagenet"}, ArgumentError, r"'imagenet', of which there is no file .*Nothing is downloaded: get the file"),
])
def test_arguments_that_cannot_be_used_are_explained(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LeNet5(**arguments)


def test_other_arguments_are_explained() -> None:
    with pytest.raises(ArgumentError, match=r"ResNet18\(stem\): got 'tiny'; expected 'large', 'small' or 'auto'"):
        ResNet18(stem="tiny")
    with pytest.raises(ArgumentError, match=r"ResNet50\(variant\): got 'tf'; expected 'keras' or 'torch'"):
        applications.ResNet50(variant="tf")
    with pytest.raises(ShapeError, match=r"UNet\(input_shape\): got \(40, 32, 3\); expected height and width that 16 divides"):
        UNet(input_shape=(40, 32, 3))
    with pytest.raises(ShapeError, match="one of them, or equal shapes"):
        LeNet5(input_shape=(28, 28, 1), input_tensor=convolt.Input((32, 32, 1)))
    with pytest.raises(ArgumentError, match=r"architecture: got 'resnet19'.*Did you mean 'resnet1"):
        applications.get("resnet19")


def test_the_list_finds_names_in_any_case() -> None:
    assert applications.get("LeNet5").function is LeNet5
    assert {"cnn", "vgg16", "resnet18", "lenet5", "unet"} <= set(applications.names())


def test_the_page_lists_all_with_their_figures() -> None:
    text = (Path(__file__).parents[2] / "docs/applications.md").read_text(encoding="utf-8").partition("## List")[2]
    found = [line for line in text.splitlines() if line.startswith("| `")]
    expected = []
    for name in applications.names():
        entry, (parameters, flops) = applications.get(name), figures.figures(name)
        picture = f"{entry.size}×{entry.size}×{entry.channels}"
        expected.append(f"| `{name}` | {entry.family} | {picture} | {parameters:,} | {human(flops)} | {entry.source} |")
    assert found == expected, "docs/applications.md has another list"


@pytest.mark.parametrize("name", ["cnn", "lenet5", "vgg16", "resnet18"])
def test_figures_are_those_of_the_networks(name: str) -> None:
    assert figures.figures(name) == figures.computed(name)


def test_every_network_has_its_figures() -> None:
    assert sorted(figures.FIGURES) == sorted(applications.names())


@pytest.mark.slow
def test_all_figures_are_those_of_the_networks() -> None:
    assert {name: figures.computed(name) for name in figures.FIGURES} == dict(figures.FIGURES)


def test_a_network_can_follow_other_layers() -> None:
    start = convolt.Input((32, 32, 1))
    model = LeNet5(classes=3, input_tensor=convolt.layers.Rescaling(0.5)(start))
    assert model.inputs == [start] and model.outputs[0].shape == (None, 3)


def test_small_pictures_get_a_stem_of_their_size() -> None:
    assert ResNet18(include_top=False, stem="auto", input_shape=(32, 32, 3)).outputs[0].shape == (None, 4, 4, 512)
    assert ResNet18(include_top=False, input_shape=(32, 32, 3)).outputs[0].shape == (None, 1, 1, 512)


def test_the_command_line_gets_a_model_for_raw_pixels() -> None:
    torch.manual_seed(0)
    model = applications.get("resnet18").make((32, 32, 3), 5)
    assert [layer.name for layer in model.layers][:2] == ["pixels", "conv1_conv"]
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    seen = model.get_layer("pixels")(x)
    np.testing.assert_allclose(seen, imagenet_utils.preprocess_input(x, mode="torch"), atol=1e-4)


def test_weights_come_back_from_a_file_under_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LeNet5(**SMALL)
    model.save_weights(tmp_path / "lenet5_digits.safetensors")
    monkeypatch.setenv("CONVOLT_WEIGHTS", str(tmp_path))
    for given in ("digits", "lenet5_digits.safetensors", tmp_path / "lenet5_digits.safetensors"):
        for own, other in zip(LeNet5(**SMALL, weights=given).get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(own, other)
    with pytest.raises(ModelFileError, match="If they were trained on other classes: include_top=False"):
        LeNet5(input_shape=(32, 32, 1), classes=4, weights="digits")
    with pytest.raises(ArgumentError, match=r"classifier_activation\): got 'relu'; expected 'softmax' or None where weights are loaded"):
        LeNet5(**SMALL, weights="digits", classifier_activation="relu")
    monkeypatch.setenv("CONVOLT_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match="environment variable CONVOLT_WEIGHTS"):
        LeNet5(**SMALL, weights="digits")


def test_a_state_dict_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match=r"missing features\.0\.bias.*under the names of torchvision"):
        SqueezeNet1_1(weights=tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2", "mobilenet_v3_small", "efficientnetb0", "xception",
                                  *(pytest.param(name, marks=pytest.mark.slow) for name in ("efficientnetv2-s", "inception_v3"))])
def test_weights_of_the_other_variant_are_refused(name: str, tmp_path: Path) -> None:
    entry = applications.get(name)
    arguments: dict[str, Any] = {"classes": 3, "input_shape": (entry.smallest, entry.smallest, 3)}
    theirs = entry.function(**arguments, variant="torch")
    own, table = theirs.state_dict(), entry.torch.table(theirs)
    save_file({str(table[key]): tensor.contiguous() for key, tensor in own.items()}, tmp_path / "torch.safetensors")
    again = entry.function(**arguments, variant="torch", weights=tmp_path / "torch.safetensors")
    assert all(torch.equal(tensor, own[key]) for key, tensor in again.state_dict().items())
    with pytest.raises(ModelFileError, match=r'a model as Keras has it.*Weights of (torchvision|timm).* need variant="torch"'):
        entry.function(**arguments, weights=tmp_path / "torch.safetensors")
    with pytest.raises(ModelFileError, match="a model as Keras has it"):
        load_start(entry.function(**arguments), name, str(tmp_path / "torch.safetensors"))


def test_weights_under_the_names_of_another_publisher_are_refused(tmp_path: Path) -> None:
    """The names say whose network it is; torchvision's MobileNet v3 has another epsilon than timm's, and pads otherwise than `tf_`."""
    arguments: dict[str, Any] = {"classes": 3, "input_shape": (32, 32, 3)}
    model = applications.MobileNetV3Small(**arguments, variant="torch")
    table = applications.get("mobilenet_v3_small").torch.table(model)
    save_file({str(table[key]): tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "torchvision.safetensors")
    for variant in ("timm", "tf"):
        with pytest.raises(ModelFileError, match="features"):
            applications.MobileNetV3Small(**arguments, variant=variant, weights=tmp_path / "torchvision.safetensors")
    with pytest.raises(ArgumentError, match=r"variant\): got 'tfa'; expected 'keras', 'torch', 'timm' or 'tf'"):
        applications.MobileNetV3Small(variant="tfa")
    with pytest.raises(ArgumentError, match=r"variant\): got 'timm'; expected 'keras', 'torch' or 'tf'"):
        applications.EfficientNetV2B0(variant="timm")


def test_weights_of_the_other_resnet_v2_are_refused(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"classes": 3, "input_shape": (32, 32, 3)}
    model = applications.ResNet50V2(**arguments, variant="torch")
    table = applications.get("resnet50v2").torch.table(model)
    save_file({str(table[key]): tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "timm.safetensors")
    with pytest.raises(ModelFileError, match=r'missing stem.conv.bias.*Weights of timm need variant="torch"'):
        applications.ResNet50V2(**arguments, weights=tmp_path / "timm.safetensors")


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_pixels_become_what_keras_makes_of_them(mode: str) -> None:
    x = np.random.default_rng(1).uniform(0, 255, (2, 4, 5, 3)).astype("float32")
    before = x.copy()
    mean, deviation = {"caffe": ([103.939, 116.779, 123.68], 1), "tf": (127.5, 127.5),
                       "torch": (np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255)}[mode]
    expected = ((x[..., ::-1] if mode == "caffe" else x) - mean) / deviation
    np.testing.assert_allclose(imagenet_utils.preprocess_input(x, mode=mode), expected, atol=1e-4)
    np.testing.assert_allclose(imagenet_utils.preprocess_input(torch.from_numpy(x), mode=mode).numpy(), expected, atol=1e-4)
    first = imagenet_utils.preprocess_input(np.moveaxis(x, -1, 1), "channels_first", mode)
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), expected, atol=1e-4)
    np.testing.assert_array_equal(x, before)
    pictures = convolt.Input((None, None, 3))
    model = convolt.Model(pictures, convolt.layers.Activation("linear")(imagenet_utils.preprocess_input(pictures, mode=mode)))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-4)
    assert not model.get_weights()


def test_pixels_that_cannot_be_used_are_explained() -> None:
    with pytest.raises(ArgumentError, match=r"preprocess_input\(mode\): got 'tensorflow'"):
        imagenet_utils.preprocess_input(np.zeros((2, 2, 3)), mode="tensorflow")
    with pytest.raises(ArgumentError, match=r"preprocess_input\(data_format\)"):
        imagenet_utils.preprocess_input(np.zeros((2, 2, 3)), "last")
    with pytest.raises(ShapeError, match="three channels, RGB"):
        applications.vgg16.preprocess_input(np.zeros((2, 2, 1)))
    with pytest.raises(ShapeError, match="three channels, RGB"):
        applications.vgg16.preprocess_input(convolt.Input((2, 2, 1)))
    with pytest.raises(ArgumentError, match="'channels_first' for a symbolic tensor"):
        applications.vgg16.preprocess_input(convolt.Input((3, 3, 2)), "channels_first")


def test_predictions_get_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([[0.1, 0.7, 0.2]])
    assert imagenet_utils.decode_predictions(scores, 2, ["a", "b", "c"]) == [[("b", "b", 0.7), ("c", "c", 0.2)]]
    monkeypatch.setenv("CONVOLT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="decode_predictions: got no file imagenet_class_index"):
        imagenet_utils.decode_predictions(scores)
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps({str(i): [f"n{i}", f"c{i}"] for i in range(3)}))
    assert applications.resnet50.decode_predictions(scores, top=1) == [[("n1", "c1", 0.7)]]
    with pytest.raises(ShapeError, match=r"shape \(1, 2\); expected \(batch, 3\)"):
        imagenet_utils.decode_predictions(scores[:, :2])
    (tmp_path / "imagenet_class_index.json").write_text("[1]")
    with pytest.raises(DataError, match="tench"):
        imagenet_utils.decode_predictions(scores)
