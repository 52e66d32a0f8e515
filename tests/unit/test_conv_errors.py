"""Messages of convolution, pooling and spatial layers: each names the layer, what it got, what it wants, and a way out."""

import re

import numpy as np
import pytest
import torch

from convolt import layers
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError

BAD_ARGUMENTS = [
    (lambda: layers.Conv2D(0, 3), "Conv2D(filters): got 0; expected a whole number from 1"),
    (lambda: layers.Conv2D(2.5, 3), "Conv2D(filters): got 2.5; expected a whole number from 1"),
    (lambda: layers.Conv2D(2, 0), "Conv2D(kernel_size): got 0; expected a whole number from 1"),
    (lambda: layers.Conv2D(2, (3, 3, 3)), "Conv2D(kernel_size): got (3, 3, 3); expected a whole number or 2 of them"),
    (lambda: layers.Conv3D(2, 3, strides=(1, 2)), "Conv3D(strides): got (1, 2); expected a whole number or 3 of them"),
    (lambda: layers.Conv1D(2, 3, dilation_rate=-1), "Conv1D(dilation_rate): got -1; expected a whole number from 1"),
    (lambda: layers.Conv2D(2, 3, strides=2, dilation_rate=2), "got (2, 2) and (2, 2); expected at most one of them above 1"),
    (lambda: layers.Conv2D(2, 3, padding="samee"),
     "Conv2D(padding): got 'samee'; expected one of ['valid', 'same']. Did you mean 'same'?"),
    (lambda: layers.Conv2D(2, 3, padding="causal"), "Conv2D(padding): got 'causal'; expected one of ['valid', 'same']"),
    (lambda: layers.Conv2D(6, 3, groups=4),
     "got 6 filters in 4 groups; expected a number of filters that the number of groups divides"),
    (lambda: layers.Conv2D(6, 3, groups=0), "Conv2D(groups): got 0; expected a whole number from 1"),
    (lambda: layers.Conv2D(2, 3, data_format="channels_first"),
     "Conv2D(data_format): got 'channels_first'; expected None or 'channels_last'"),
    (lambda: layers.Conv2D(2, 3, activation="rellu"), "Did you mean 'relu'?"),
    (lambda: layers.Conv2DTranspose(2, 3, strides=2, output_padding=2),
     "(output_padding): got (2, 2); expected less than strides=(2, 2)"),
    (lambda: layers.Conv2DTranspose(2, 3, output_padding=-1), "(output_padding): got -1; expected a whole number from 0"),
    (lambda: layers.DepthwiseConv2D(3, depth_multiplier=0), "DepthwiseConv2D(depth_multiplier): got 0"),
    (lambda: layers.SeparableConv2D(2, 3, padding="full"), "SeparableConv2D(padding): got 'full'"),
    (lambda: layers.MaxPooling2D(0), "MaxPooling2D(pool_size): got 0"),
    (lambda: layers.MaxPooling2D(2, strides=0), "MaxPooling2D(strides): got 0"),
    (lambda: layers.AveragePooling3D(2, padding="causal"), "AveragePooling3D(padding): got 'causal'"),
    (lambda: layers.GlobalMaxPooling1D(data_format="channels_first"), "GlobalMaxPooling1D(data_format): got 'channels_first'"),
    (lambda: layers.ZeroPadding2D(-1), "ZeroPadding2D(padding): got -1; expected a whole number from 0"),
    (lambda: layers.ZeroPadding2D((1, 2, 3)),
     "ZeroPadding2D(padding): got (1, 2, 3); expected a number, (vertical, horizontal) or"),
    (lambda: layers.Cropping2D("1"), "Cropping2D(cropping): got '1'; expected a number, (vertical, horizontal) or"),
    (lambda: layers.Cropping2D(((1, 2), (3, 4, 5))), "Cropping2D(cropping): got (3, 4, 5); expected a whole number or 2 of them"),
    (lambda: layers.UpSampling2D(0), "UpSampling2D(size): got 0"),
    (lambda: layers.UpSampling2D(2, interpolation="bilinaer"), "Did you mean 'bilinear'?"),
]


@pytest.mark.parametrize(("make", "message"), BAD_ARGUMENTS, ids=[message[:50] for _, message in BAD_ARGUMENTS])
def test_bad_argument(make, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        make()


def test_unknown_argument_has_a_suggestion():
    with pytest.raises(ArgumentTypeError, match=r"Conv2D.*'kernel_sizes'.*Did you mean 'kernel_size'\?"):
        layers.Conv2D(2, 3, kernel_sizes=3)


def zeros(*shape):
    return np.zeros(shape, "float32")


BAD_INPUTS = [
    (lambda: layers.Conv2D(2, 3, name="c")(zeros(8, 28, 28)),
     "Conv2D 'c': got input of shape (None, 28, 28); expected 4 axes (batch, height, width, channels). Images without"),
    (lambda: layers.Conv1D(2, 3, name="c")(zeros(2, 5)), "Conv1D 'c': got input of shape (None, 5); expected 3 axes"),
    (lambda: layers.Conv2D(2, 5, name="c")(zeros(1, 4, 6, 1)),
     "Conv2D 'c': got input of shape (None, 4, 6, 1); expected height and width of at least (5, 5), the window's extent"),
    (lambda: layers.Conv1D(2, 3, dilation_rate=3, name="c")(zeros(1, 6, 1)),
     "expected a length of at least (7,), the window's extent, under"),
    (lambda: layers.SeparableConv2D(2, 5, name="c")(zeros(1, 4, 6, 1)),
     "SeparableConv2D 'c': got input of shape (None, 4, 6, 1)"),
    (lambda: layers.MaxPooling2D(4, name="p")(zeros(1, 3, 8, 2)),
     "MaxPooling2D 'p': got input of shape (None, 3, 8, 2); expected height and width of at least (4, 4)"),
    (lambda: layers.Conv2D(4, 3, groups=2, name="c")(zeros(1, 8, 8, 3)),
     "Conv2D 'c': got input of shape (None, 8, 8, 3) with 3 channels; expected a number of channels that groups=2 divides"),
    (lambda: layers.GlobalAveragePooling2D(name="g")(zeros(2, 5)), "GlobalAveragePooling2D 'g': got input of shape (None, 5)"),
    (lambda: layers.Cropping2D(2, name="k")(zeros(1, 4, 9, 1)),
     "Cropping2D 'k': got input of shape (None, 4, 9, 1); expected an image larger than cropping=((2, 2), (2, 2)) takes away"),
    (lambda: layers.UpSampling2D(name="u")(zeros(2, 5, 5)), "UpSampling2D 'u': got input of shape (None, 5, 5)"),
    (lambda: layers.Conv2D(2, 3, name="c")(layers.Input((8, 8, None))),
     "Conv2D 'c': got input of shape (None, 8, 8, None); expected a known number of channels"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS, ids=[message[:40] for _, message in BAD_INPUTS])
def test_bad_input(call, message):
    with pytest.raises(ShapeError, match=re.escape(message)):
        call()


AFTER_BUILD = [layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Conv2DTranspose, layers.SeparableConv2D]


@pytest.mark.parametrize("cls", AFTER_BUILD)
def test_other_channels_after_build(cls):
    layer, space = cls(2, 2, name="c"), (4,) * cls.rank
    layer(zeros(1, *space, 3))
    with pytest.raises(ShapeError, match=rf"{cls.__name__} 'c': got input of shape .* with 5 channels; expected 3 channels"):
        layer(zeros(1, *space, 5))


def test_channels_first_array_is_recognised():
    layer = layers.DepthwiseConv2D(2, name="c")
    layer(zeros(1, 8, 8, 3))
    message = ("input of shape (1, 3, 8, 8) with 8 channels; expected 3 channels, with which it was built. "
               "Arrays are channels-last: is this one (batch, channels, …)?")
    with pytest.raises(ShapeError, match=re.escape(message)):
        layer(zeros(1, 3, 8, 8))


WITHOUT_WEIGHTS = [layers.MaxPooling2D, layers.GlobalMaxPooling2D, layers.ZeroPadding2D, layers.Cropping2D, layers.UpSampling2D]


@pytest.mark.parametrize("cls", WITHOUT_WEIGHTS)
def test_other_rank_after_build(cls):
    layer = cls(name="x")
    layer(zeros(1, 4, 4, 2))
    with pytest.raises(ShapeError, match=rf"{cls.__name__} 'x': got input of shape \(1, 4, 2\); expected 4 axes"):
        layer(zeros(1, 4, 2))


@pytest.mark.parametrize("make", [lambda: layers.Conv2D(2, 3, name="x"), lambda: layers.MaxPooling2D(3, name="x")])
def test_smaller_image_after_build(make):
    layer = make()
    layer(zeros(1, 5, 5, 2))
    with pytest.raises(ShapeError, match=r"'x': got input of shape \(1, 2, 5, 2\); expected height and width of at least \(3"):
        layer(zeros(1, 2, 5, 2))


def test_smaller_crop_after_build():
    layer = layers.Cropping2D(1, name="x")
    layer(zeros(1, 5, 5, 2))
    with pytest.raises(ShapeError, match=r"'x': got input of shape \(1, 2, 5, 2\); expected an image larger"):
        layer(zeros(1, 2, 5, 2))


# -- what the sweep against Keras does not see ---------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "expected"), [
    (layers.Conv2D(6, 3, strides=2, padding="same"), (None, None, 5, 6)),
    (layers.Conv2DTranspose(6, 3, strides=2, padding="same"), (None, None, 18, 6)),
    (layers.DepthwiseConv2D(3, depth_multiplier=2), (None, None, 7, 8)),
    (layers.MaxPooling2D(), (None, None, 4, 4)),
    (layers.GlobalAveragePooling2D(keepdims=True), (None, 1, 1, 4)),
    (layers.ZeroPadding2D(1), (None, None, 11, 4)),
    (layers.Cropping2D(1), (None, None, 7, 4)),
    (layers.UpSampling2D(3), (None, None, 27, 4)),
], ids=lambda value: type(value).__name__)
def test_unknown_height(layer, expected):
    assert layer.compute_output_shape((None, None, 9, 4)) == expected
    assert layer(layers.Input((None, 9, 4))).shape == expected


def test_names_of_keras_are_the_same_classes():
    assert layers.Convolution2D is layers.Conv2D
    assert layers.MaxPool2D is layers.MaxPooling2D
    assert layers.registry.find("AvgPool1D") is layers.AveragePooling1D
    assert layers.registry.find("GlobalAvgPool3D") is layers.GlobalAveragePooling3D
    assert layers.registry.find("SeparableConvolution2D") is layers.SeparableConv2D


@pytest.mark.parametrize(("layer", "module"), [
    (layers.Conv2D(6, 3, groups=3), torch.nn.Conv2d(3, 6, 3, groups=3)),
    (layers.Conv2DTranspose(6, 3, strides=2), torch.nn.ConvTranspose2d(3, 6, 3, stride=2)),
    (layers.DepthwiseConv2D(3, depth_multiplier=2), torch.nn.Conv2d(3, 6, 3, groups=3)),
    (layers.Conv1D(6, 3), torch.nn.Conv1d(3, 6, 3)),
], ids=lambda value: type(value).__name__)
def test_state_dict_fits_the_module_of_pytorch(layer, module):
    x = torch.randn(2, 3, *[7] * (module.weight.ndim - 2))
    y = layer(x)
    module.load_state_dict(layer.state_dict())
    torch.testing.assert_close(module(x), y)


def test_memory_stays_channels_last():
    x = torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last)
    for layer in (layers.Conv2D(8, 3, padding="same", strides=2), layers.Conv2D(8, 2, padding="same"), layers.DepthwiseConv2D(3),
                  layers.SeparableConv2D(8, 3), layers.MaxPooling2D(3, 2, padding="same"), layers.AveragePooling2D(2),
                  layers.ZeroPadding2D(1), layers.UpSampling2D(2)):
        assert layer(x).is_contiguous(memory_format=torch.channels_last), type(layer).__name__


def test_symmetric_padding_copies_no_input(monkeypatch):
    def pad(*_):
        raise AssertionError("the input was padded by a copy")

    layer = layers.Conv2D(4, 3, padding="same")
    layer(zeros(1, 6, 6, 2))
    monkeypatch.setattr("torch.nn.functional.pad", pad)
    assert layer(zeros(1, 7, 6, 2)).shape == (1, 7, 6, 4)
    with pytest.raises(AssertionError, match="padded by a copy"):
        layers.Conv2D(4, 3, strides=2, padding="same")(zeros(1, 6, 6, 2))


def test_largest_of_negative_values_is_not_the_padding():
    x = -np.arange(1, 10, dtype="float32").reshape(1, 3, 3, 1)
    y = layers.MaxPooling2D(2, 1, padding="same")(x)
    assert y.max() < 0
    assert y[0, 2, 2, 0] == -9


def test_mean_does_not_count_the_padding():
    y = layers.AveragePooling2D(2, 2, padding="same")(np.full((1, 3, 3, 1), 7, "float32"))
    np.testing.assert_array_equal(y, np.full((1, 2, 2, 1), 7, "float32"))
