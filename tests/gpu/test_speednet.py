"""The speed net on a CUDA device: it learns with its recipe in a captured step, and flips are those of the CPU."""

import numpy as np
import pytest
import torch

import convolt
from convolt import applications, losses
from convolt.applications.speednet import RECIPE
from convolt.training.augmenting import Augmenter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_it_learns_with_its_recipe() -> None:
    generator = np.random.default_rng(1)
    y = generator.integers(0, 10, 2000)
    x = generator.normal(127, 40, (2000, 32, 32, 3))
    for i in range(3):
        x[np.arange(2000), 3 * y + i, :, y % 3] += 100  # a bar whose height and colour tell the class
    x = x.clip(0, 255).astype("uint8")
    convolt.utils.set_random_seed(0)
    model = applications.get("speednet").make((32, 32, 3), 10)
    muon = convolt.optimizers.Muon(RECIPE.learning_rate, **RECIPE.optimizer_arguments)
    model.compile(convolt.optimizers.SWA(muon, start=1 - RECIPE.average_epochs / 6, every=1),
                  losses.Crossentropy(label_smoothing=RECIPE.label_smoothing), ["accuracy"], device="cuda", precision="bfloat16")
    model.fit(x, y, batch_size=250, epochs=6, verbose=0, seed=0, augment="alternate_flip")
    assert model.plan.execution == "graph", model.plan.describe()
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] > 0.9


def test_flips_are_those_of_the_cpu() -> None:
    augmenter, ids = Augmenter("alternate_flip", seed=0), torch.arange(500)
    x = torch.randint(0, 256, (500, 8, 8, 3), dtype=torch.uint8)
    for epoch in (0, 1):
        keys = augmenter.keys(epoch, ids)
        here = augmenter.augmentation.apply(x, None, keys).images
        there = augmenter.augmentation.apply(x.cuda(), None, keys.cuda()).images
        assert torch.equal(here, there.cpu())
