"""`ImageDataGenerator` against Keras's on fixed parameters, and what it promises itself."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from convolt.data.image_generator import ImageDataGenerator
from convolt.errors import ArgumentError, ConvoltWarning, ShapeError, StateError

os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.fixture(scope="module")
def keras_image() -> Any:
    return pytest.importorskip("keras.src.legacy.preprocessing.image")


def pictures(count: int = 1, size: int = 12, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, (count, size, size, channels)).astype("float32")


GEOMETRY = [{"theta": 25.0}, {"tx": 2.5}, {"ty": -3.25}, {"shear": 15.0}, {"zx": 0.7, "zy": 1.4}, {"flip_horizontal": True},
            {"flip_vertical": True}, {"theta": -100.0, "tx": 1.5, "ty": 0.5, "shear": -9.0, "zx": 1.2, "zy": 0.8, "flip_horizontal": True},
            {"zx": 0.9, "zy": 0.9, "flip_vertical": True, "theta": 3.0}]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fill", ["nearest", "constant", "reflect"])
@pytest.mark.parametrize("parameters", GEOMETRY, ids=str)
def test_geometry_is_keras_on_fixed_parameters(keras_image: Any, parameters: dict[str, Any], fill: str) -> None:
    x = pictures()[0]
    mine = ImageDataGenerator(fill_mode=fill, cval=17.0).apply_transform(x, parameters)
    theirs = keras_image.ImageDataGenerator(fill_mode=fill, cval=17.0).apply_transform(x, parameters)
    # SciPy's float64 and float32 coordinates may fall on either side of the last pixel's centre, where a constant border begins.
    differing = np.abs(mine - theirs).max(-1) > 0.02
    assert differing.mean() <= (0.02 if fill == "constant" else 0.0), np.abs(mine - theirs).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_first_and_other_channels(keras_image: Any, channels: int, order: int) -> None:
    x = np.moveaxis(pictures(channels=channels)[0], -1, 0)
    settings = {"data_format": "channels_first", "interpolation_order": order}
    parameters = {"theta": 11.0, "zx": 0.9, "zy": 1.1}
    mine = ImageDataGenerator(**settings).apply_transform(x, parameters)
    np.testing.assert_allclose(mine, keras_image.ImageDataGenerator(**settings).apply_transform(x, parameters), atol=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_colours_are_keras_on_fixed_parameters(keras_image: Any) -> None:
    x = pictures()[0]
    ours, theirs = ImageDataGenerator(), keras_image.ImageDataGenerator()
    bright = {"brightness": 0.7}
    assert np.abs(ours.apply_transform(x, bright) - theirs.apply_transform(x, bright)).max() <= 1.0  # Keras goes through bytes
    x[0, 0], x[-1, -1] = 0, 255  # so that Keras's own limits are the picture's
    shift = {"channel_shift_intensity": 31.0}
    np.testing.assert_allclose(ours.apply_transform(x, shift), theirs.apply_transform(x, shift), atol=1e-4)


def test_shifts_move_heights_up_and_down() -> None:
    x = pictures()[0]
    moved = ImageDataGenerator(height_shift_range=[3]).random_transform(x, seed=1)
    assert np.array_equal(moved[3:], x[:-3]) or np.array_equal(moved[:-3], x[3:])


@pytest.mark.parametrize("settings", [
    {"rotation_range": 20, "zoom_range": 0.2}, {"width_shift_range": 0.2, "height_shift_range": 2.0}, {"width_shift_range": 3},
    {"shear_range": 9.0, "brightness_range": (0.5, 1.5), "channel_shift_range": 9.0, "horizontal_flip": True, "vertical_flip": True}])
def test_parameters_lie_in_their_ranges_and_repeat(settings: dict[str, Any]) -> None:
    generator = ImageDataGenerator(**settings)
    drawn = [generator.get_random_transform((20, 30, 3), seed) for seed in range(200)]
    assert drawn[3] == generator.get_random_transform((20, 30, 3), 3)
    limits = {"theta": settings.get("rotation_range", 0), "shear": settings.get("shear_range", 0),
              "tx": {0.2: 6, 3: 2}.get(settings.get("width_shift_range", 0), 0), "ty": settings.get("height_shift_range", 0)}
    for name, limit in limits.items():
        values = [abs(d[name]) for d in drawn]
        assert max(values) <= limit and (limit == 0 or max(values) > 0.9 * limit)
    assert 0.35 < np.mean([d["flip_horizontal"] for d in drawn]) < 0.65 or not settings.get("horizontal_flip")


def test_statistics_are_keras(keras_image: Any) -> None:
    x = pictures(20, 4)
    for settings in ({"featurewise_center": True}, {"featurewise_std_normalization": True, "featurewise_center": True, "rescale": 0.1},
                     {"samplewise_center": True}, {"samplewise_std_normalization": True, "samplewise_center": True},
                     {"zca_whitening": True, "featurewise_center": True, "zca_epsilon": 0.1}):
        mine, theirs = ImageDataGenerator(**settings), keras_image.ImageDataGenerator(**settings)
        mine.fit(x)
        theirs.fit(x)
        np.testing.assert_allclose(mine.standardize(x[0]), theirs.standardize(x[0].copy()), rtol=2e-3, atol=2e-3)


def test_flow_gives_each_sample_once_and_the_same_pictures_whatever_the_batch() -> None:
    x, y = pictures(10).astype("uint8"), np.arange(10)
    generator = ImageDataGenerator(rotation_range=30, horizontal_flip=True, rescale=1 / 255)
    found = []
    for size in (3, 10):
        flow = generator.flow(x, y, batch_size=size, seed=5)
        batches = [next(flow) for _ in range(len(flow))]
        labels = np.concatenate([b[1] for b in batches])
        assert sorted(labels) == list(range(10)) and flow.epoch == 1
        found.append(np.concatenate([b[0] for b in batches])[np.argsort(labels)])
    assert np.array_equal(*found) and found[0].dtype == np.float32 and found[0].max() <= 1.0
    second = np.concatenate([next(flow)[0]])
    assert not np.array_equal(np.sort(second, axis=None), np.sort(found[0], axis=None))


def test_flow_standardizes_as_standardize_does() -> None:
    x = pictures(6, 5)
    settings = {"featurewise_std_normalization": True, "rescale": 0.5}
    fused, by_hand = ImageDataGenerator(**settings), ImageDataGenerator(**settings, preprocessing_function=lambda picture: picture)
    for generator in (fused, by_hand):
        generator.fit(x)
    a, b = (g.flow(x, shuffle=False)[0] for g in (fused, by_hand))
    np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(a, fused.standardize(x), atol=1e-4)


def test_subsets_are_keras() -> None:
    x, y = pictures(10), np.arange(10)
    generator = ImageDataGenerator(validation_split=0.3)
    assert list(generator.flow(x, y, shuffle=False, subset="validation")[0][1]) == [0, 1, 2]
    assert generator.flow(x, y, subset="training").n == 7


def test_messages() -> None:
    for settings, thing in (({"fill_mode": "mirror"}, "fill_mode"), ({"zoom_range": (1, 2, 3)}, "zoom_range"),
                            ({"validation_split": 1.0}, "validation_split"), ({"data_format": "HWC"}, "data_format")):
        with pytest.raises(ArgumentError, match=thing):
            ImageDataGenerator(**settings)
    with pytest.raises(ArgumentError, match="validation_split"):
        ImageDataGenerator().flow(pictures(2), subset="training")
    with pytest.raises(ArgumentError, match="batch_size"):
        ImageDataGenerator().flow(pictures(2), batch_size=0)
    with pytest.raises(ShapeError, match="the same number"):
        ImageDataGenerator().flow(pictures(2), np.arange(3))
    with pytest.raises(ShapeError, match="samples, height"):
        ImageDataGenerator().flow(pictures(2)[0])
    with pytest.raises(StateError, match=r"fit\(pictures\)"):
        ImageDataGenerator(featurewise_center=True).flow(pictures(2))
    with pytest.warns(ConvoltWarning, match=r"fit\(pictures\)"):
        ImageDataGenerator(featurewise_center=True).standardize(pictures()[0])
