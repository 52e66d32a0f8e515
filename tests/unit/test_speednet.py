"""The speed net: whitening, flips, recipe, and a short training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import applications, layers, losses
from convolt.applications.speednet import RECIPE
from convolt.data.augment import AlternatingFlip
from convolt.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError
from convolt.training.augmenting import Augmenter

WIDTHS = (8, 16, 16)


def pictures(count: int = 64, side: int = 16) -> np.ndarray:
    """Correlated values: each pixel is like its neighbours, and channels are like each other."""
    generator = np.random.default_rng(0)
    coarse = generator.normal(size=(count, side // 4, side // 4, 1)).repeat(4, 1).repeat(4, 2)
    return (0.5 + coarse + 0.3 * generator.normal(size=(count, side, side, 3))).astype("float32")


@pytest.mark.parametrize("size", [2, 3])
def test_whitened_patches_have_the_identity_as_covariance(size: int) -> None:
    layer = layers.PatchWhitening(size, epsilon=0.0)
    x = pictures()
    layer.adapt(x)
    with torch.no_grad():
        y = layer(torch.from_numpy(x).movedim(-1, 1))
    half = y.shape[1] // 2
    rows = y[:, :half].movedim(1, -1).reshape(-1, half).double()
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(half, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(y[:, half:], -y[:, :half])


def test_rare_directions_are_bounded_by_epsilon() -> None:
    gray = np.repeat(pictures()[..., :1], 3, axis=-1)  # of the 12 directions of a patch 8 do not vary
    layer = layers.PatchWhitening(2, epsilon=0.01)
    layer.adapt(gray)
    assert layer.kernel.isfinite().all()
    assert layer.kernel.flatten(1).norm(dim=1).max() <= 0.01**-0.5 * 1.001


def test_whitening_is_the_same_from_batches_and_from_one_array() -> None:
    x = pictures()
    whole, parts = layers.PatchWhitening(), layers.PatchWhitening()
    whole.adapt(x)
    parts.adapt([x[:10], torch.from_numpy(x[10:]).movedim(-1, 1)])
    torch.testing.assert_close(whole.kernel.abs(), parts.kernel.abs(), rtol=1e-3, atol=1e-4)


def test_what_whitening_cannot_learn_from_is_explained() -> None:
    layer = layers.PatchWhitening()
    layer.ensure_built((None, 16, 16, 3))
    with pytest.raises(ShapeError, match="pictures with 3 channels"):
        layer.adapt(pictures()[..., :2])
    with pytest.raises(DataError, match="no data"):
        layer.adapt([])
    with pytest.raises(DataError, match="NaN or infinity"):
        layer.adapt(pictures() * np.inf)
    with pytest.raises(ArgumentTypeError, match="an array, a tensor"):
        layer.adapt("cifar10")
    with pytest.raises(ShapeError, match="at least 2×2"):
        layers.PatchWhitening(2).ensure_built((None, 1, 16, 3))


def test_alternating_flips_show_each_picture_both_ways_in_two_epochs() -> None:
    ids = torch.arange(1000)
    augmenter = Augmenter([AlternatingFlip()], seed=3)
    first, second, third = (augmenter.keys(epoch, ids) & 1 for epoch in range(3))
    assert 400 < first.sum() < 600
    assert torch.equal(second, 1 - first) and torch.equal(third, first)
    assert not torch.equal(first, Augmenter([AlternatingFlip()], seed=4).keys(0, ids) & 1), "which half comes first is up to the seed"
    assert torch.equal(augmenter.keys(1, ids[500:]), augmenter.keys(1, ids)[500:]), "a sample's key does not depend on the batch"


def test_alternating_flips_move_pixels() -> None:
    augmenter = Augmenter("alternate_flip", seed=0)
    x = torch.from_numpy(pictures(40))
    for epoch in (0, 1):
        keys = augmenter.keys(epoch, torch.arange(40))
        made = augmenter.augmentation.apply(x, None, keys).images
        expected = torch.where((keys & 1).bool()[:, None, None, None], x.flip(2), x)
        assert torch.equal(made, expected)


def small(**arguments: Any) -> convolt.Model:
    convolt.utils.set_random_seed(0)
    return applications.SpeedNet(classes=5, input_shape=(16, 16, 3), widths=WIDTHS, **arguments)


def test_a_picture_and_its_mirror_image_get_the_same_answer() -> None:
    x = pictures(6)
    mirrored = np.ascontiguousarray(x[:, :, ::-1])
    flips, plain = small(classifier_activation=None), small(classifier_activation=None, test_time_flip=False)
    names = {name for name, _ in flips.named_parameters()}
    assert names == {name for name, _ in plain.named_parameters()}
    answers, one, other = flips.predict(x, verbose=0), plain.predict(x, verbose=0), plain.predict(mirrored, verbose=0)
    np.testing.assert_allclose(answers, flips.predict(mirrored, verbose=0), atol=1e-6)
    np.testing.assert_allclose(answers, (one + other) / 2, atol=1e-6)
    assert np.abs(one - other).max() > 1e-4
    assert answers.shape == (6, 5)


def test_flips_are_for_inference_alone() -> None:
    model = small().train()
    assert model(torch.from_numpy(pictures(4)).movedim(-1, 1)).shape == (4, 5)
    batch = layers.MirrorBatch()
    batch.ensure_built((None, 4, 4, 3))
    x = torch.rand(2, 3, 4, 4)
    assert batch.train()(x) is x
    assert torch.equal(batch.eval()(x)[2:], x.flip(-1))
    with pytest.raises(ShapeError, match="height, width, channels"):
        layers.MirrorBatch().ensure_built((None, 3))
    with pytest.raises(ShapeError, match="a batch of 3; expected pictures and as many mirror images"):
        layers.MirrorMean().eval()(torch.rand(3, 5))


class InPyTorch(torch.nn.Module):
    """The same network on PyTorch's own modules."""

    def __init__(self, widths: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        nn = torch.nn
        self.whitening = nn.Conv2d(3, 24, 2)
        inputs = 24
        self.parts = nn.ModuleDict()
        for i, width in enumerate(widths, start=1):
            for j in (1, 2):
                self.parts[f"block{i}_{j}_conv"] = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                self.parts[f"block{i}_{j}_bn"] = nn.BatchNorm2d(width)
                inputs = width
        self.parts["predictions"] = nn.Linear(inputs, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.whitening(x).relu()
        for name, part in self.parts.items():
            if name == "predictions":
                x = x.amax((2, 3))
            x = part(x)
            if name.endswith("1_conv"):
                x = torch.nn.functional.max_pool2d(x, 2)
            x = x.relu() if name.endswith("bn") else x
        return x / 9


def test_it_computes_what_the_same_network_in_pytorch_does() -> None:
    ours, theirs = small(classifier_activation=None, test_time_flip=False), InPyTorch(WIDTHS, 5).eval()
    with torch.no_grad():
        theirs.whitening.weight.copy_(ours.get_layer("whitening").kernel)
        theirs.whitening.bias.copy_(ours.get_layer("whitening").bias.uniform_(-0.2, 0.2))
        for name, part in theirs.parts.items():
            state = {key: value for key, value in ours.get_layer(name).state_dict().items() if key in part.state_dict()}
            if name.endswith("bn"):
                for value in state.values():
                    value.copy_(torch.rand_like(value, dtype=torch.float32) + 0.5)
            part.load_state_dict(state, strict=not name.endswith("bn"))
        x = torch.rand(3, 3, 16, 16)
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_widths_are_checked() -> None:
    with pytest.raises(ArgumentError, match="three whole numbers"):
        applications.SpeedNet(widths=(64, 256))


@pytest.mark.parametrize("labels", ["whole numbers", "one-hot"])
def test_smoothed_labels_of_the_crossentropy_are_those_of_pytorch(labels: str) -> None:
    scores, classes = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
    y = classes if labels == "whole numbers" else torch.nn.functional.one_hot(classes, 5).float()
    ours = losses.Crossentropy(from_logits=True, label_smoothing=0.2)(y, scores)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(scores, classes, label_smoothing=0.2))


def test_it_learns_with_its_recipe_and_comes_back_from_its_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    y = generator.integers(0, 5, 300)
    x = generator.normal(127, 40, (300, 16, 16, 3))
    x[np.arange(300), 3 * y, :, y % 3] += 120  # a line whose height and colour tell the class
    x = x.clip(0, 255).astype("uint8")
    model = applications.get("speednet").make((16, 16, 3), 5, widths=WIDTHS)
    mean = convolt.optimizers.SWA(convolt.optimizers.Muon(0.1, **RECIPE.optimizer_arguments), start=1 - RECIPE.average_epochs / 6, every=1)
    model.compile(mean, losses.Crossentropy(label_smoothing=RECIPE.label_smoothing), ["accuracy"],
                  device="cpu", precision="float32")
    before = model.get_layer("whitening").kernel.clone()
    model.fit(x, y, batch_size=50, epochs=6, verbose=0, seed=0, augment="alternate_flip")
    whitening = model.get_layer("whitening")
    assert not torch.equal(whitening.kernel, before) and not whitening.wants_data, "fit shows the layer its first pictures"
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] > 0.9
    assert mean.averaged in (3, 4), "half of the six steps of an epoch, rounded"
    learned = whitening.kernel.clone()
    model.fit(x, y, batch_size=50, epochs=1, verbose=0, seed=0)
    assert torch.equal(whitening.kernel, learned), "once is enough"
    model.save(tmp_path / "speed.safetensors")
    again = convolt.load_model(tmp_path / "speed.safetensors", device="cpu")
    np.testing.assert_allclose(again.predict(x[:20], verbose=0), model.predict(x[:20], verbose=0), atol=1e-6)
    assert not again.get_layer("whitening").wants_data


def test_data_that_come_once_cannot_be_whitened() -> None:
    model = small()
    model.compile("sgd", "sparse_categorical_crossentropy", device="cpu", precision="float32")
    batches = ((pictures(8), np.zeros(8, int)) for _ in range(2))
    with pytest.raises(DataError, match="adapt"):
        model.fit(batches, steps_per_epoch=2, epochs=1, verbose=0)
