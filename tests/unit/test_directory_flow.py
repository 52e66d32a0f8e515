"""`ImageDataGenerator.flow_from_directory`: batches of a folder, keyed by (seed, epoch, sample), which `fit` can take up anywhere."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convolt.errors import ArgumentError
from convolt.preprocessing.image import ImageDataGenerator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for kind, count in (("cat", 7), ("dog", 5)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (14, 12, 3), dtype="uint8")).save(tmp_path / kind / f"{number}.png")
    return tmp_path


def test_batches_have_keras_s_forms(folder: Path) -> None:
    flow = ImageDataGenerator(rescale=1 / 255).flow_from_directory(folder, (8, 6), batch_size=5, shuffle=False)
    assert (len(flow), flow.samples, flow.class_indices, flow.num_classes) == (3, 12, {"cat": 0, "dog": 1}, 2)
    x, y = next(flow)
    assert x.shape == (5, 8, 6, 3) and x.dtype == np.float32 and 0 <= x.min() < x.max() <= 1
    assert y.tolist() == [[1, 0]] * 5
    sizes = [len(next(flow)[0]) for _ in range(3)]
    assert sizes == [5, 2, 5] and flow.epoch == 1
    for mode, wanted in (("binary", [0.0] * 5), ("sparse", [0] * 5)):
        flow = ImageDataGenerator().flow_from_directory(folder, (8, 6), class_mode=mode, batch_size=5, shuffle=False)
        assert flow[0][1].tolist() == wanted


def test_an_epoch_goes_on_anywhere_with_the_same_pictures(folder: Path) -> None:
    changed = ImageDataGenerator(rotation_range=30, zoom_range=0.2, horizontal_flip=True)
    flows = [changed.flow_from_directory(folder, (8, 8), batch_size=size, seed=3) for size in (12, 5)]
    whole = next(flows[0].of_epoch(2))
    parts = list(flows[1].of_epoch(2))
    assert np.array_equal(np.concatenate([x for x, _ in parts]), whole[0])
    assert np.array_equal(next(flows[1].of_epoch(2, 1))[0], parts[1][0])
    assert not np.array_equal(next(flows[0].of_epoch(3))[0], whole[0])


def test_subsets_share_each_class(folder: Path) -> None:
    generator = ImageDataGenerator(validation_split=0.4)
    parts = [generator.flow_from_directory(folder, (8, 8), subset=subset, shuffle=False) for subset in ("training", "validation")]
    assert [part.samples for part in parts] == [8, 4] and not set(parts[0].filenames) & set(parts[1].filenames)
    with pytest.raises(ArgumentError, match=r"flow_from_directory\(subset\)"):
        ImageDataGenerator().flow_from_directory(folder, (8, 8), subset="training")
    with pytest.raises(ArgumentError, match=r"class_mode.*Did you mean 'sparse'"):
        generator.flow_from_directory(folder, (8, 8), class_mode="sparce")
