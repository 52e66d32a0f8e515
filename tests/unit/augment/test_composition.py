"""What a list of transforms adds up to is what they do one after the other: one resample, one colour matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from convolt.data import augment as A
from tests.unit.augment.common import changed, smooth_pictures

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
THOROUGH = settings(max_examples=150, deadline=None, derandomize=True)
STRENGTH = st.floats(-1, 1)
SLOPES = (1 / 40, 1 / 30)


def chained(transforms: list[A.Transform], x: Tensor, **arguments: Any) -> Tensor:
    """Each transform by itself, on what the one before it made; it keeps its place in the list, and so its random numbers."""
    for place, transform in enumerate(transforms):
        x = changed([*[A.Rescale(1.0)] * place, transform], x, **arguments)
    return x


def ramps(count: int, height: int, width: int) -> Tensor:
    """Pictures of which two channels tell the place, and the third is 1: (N, H, W, 3), from 0 to 1.

    Interpolation of them is exact, and where the third is still 1, nothing from beyond the border has come in.
    """
    y, x = torch.meshgrid(torch.arange(float(height)) * SLOPES[0], torch.arange(float(width)) * SLOPES[1], indexing="ij")
    return torch.stack([y, x, torch.ones_like(x)], -1).expand(count, -1, -1, -1).contiguous()


Make = Callable[[float, int, int], A.Transform]

WHOLE: list[Make] = [
    lambda s, h, w: A.RandomCrop(max(8, h - round(3 * abs(s))), max(8, w - 2)),
    lambda s, h, w: A.RandomCrop(h + 1, w, padding=round(abs(s)) + 1),
    lambda s, h, w: A.CenterCrop(max(8, h - 1), max(8, w - round(3 * abs(s)))),
    lambda s, h, w: A.RandomFlip("horizontal_and_vertical"), lambda s, h, w: A.AlternatingFlip(),
    lambda s, h, w: A.RandomTranslation(0.1 * abs(s), 0.1, whole_pixels=True)]

AFFINE: list[Make] = [
    *WHOLE, lambda s, h, w: A.RandomRotation(15 * abs(s)), lambda s, h, w: A.RandomShear(0.2 * abs(s), 0.1),
    lambda s, h, w: A.RandomZoom((-0.2 * abs(s), 0.0)), lambda s, h, w: A.RandomTranslation(0.1 * abs(s), 0.1),
    lambda s, h, w: A.Resize(h + round(6 * s) if h > 14 else h + 1, w + 3 if s < 0 and w < 40 else max(8, w - 3)),
    lambda s, h, w: A.RandomResizedCrop(max(8, h - 4), max(8, w + round(5 * s)), scale=(0.5, 1.0))]


def listed(chosen: list[tuple[Make, float]], height: int, width: int) -> list[A.Transform]:
    """The transforms, each made for the size that those before it leave."""
    made = []
    for make, s in chosen:
        made.append(make(s, height, width))
        height, width = made[-1].output_size(height, width)
    return made


@THOROUGH
@given(st.lists(st.tuples(st.sampled_from(WHOLE), STRENGTH), min_size=2, max_size=5))
def test_crops_flips_and_whole_pixels_add_up_to_the_last_bit(chosen: list[Any]) -> None:
    transforms = listed(chosen, 24, 27)
    x = torch.randint(0, 256, (4, 24, 27, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    once, chain = (way(transforms, x.float(), fill_mode="constant", value_range=(0, 255)) for way in (changed, chained))
    inside = chained(transforms, torch.ones(4, 24, 27, 1), fill_mode="constant")[..., 0] == 1
    assert int(inside.sum()) > 100 and once.shape == chain.shape and torch.equal(once[inside], chain[inside])
    assert torch.equal(once, changed(transforms, x, fill_mode="constant"))


@THOROUGH
@given(st.lists(st.tuples(st.sampled_from(AFFINE), STRENGTH), min_size=2, max_size=5))
def test_one_resample_is_the_chain_of_single_ones_with_crops_and_sizes(chosen: list[Any]) -> None:
    transforms, x = listed(chosen, 24, 27), ramps(4, 24, 27)
    once, chain = changed(transforms, x, fill_mode="constant"), chained(transforms, x, fill_mode="constant")
    inside = chain[..., 2] > 1 - 1e-5
    assume(int(inside.sum()) > 50)
    assert once.shape == chain.shape and float((once - chain)[inside].abs().max()) < 2e-5


GEOMETRY = st.sampled_from([
    lambda s: A.RandomRotation((20 * s, 20 * s)), lambda s: A.RandomShear((0.2 * s, 0.2 * s)),
    lambda s: A.RandomShear(0, (0.2 * s, 0.2 * s)), lambda s: A.RandomZoom((0.2 * s, 0.2 * s)),
    lambda s: A.RandomTranslation((0.1 * s, 0.1 * s), (-0.1 * s, -0.1 * s)),
    lambda s: A.RandomFlip("horizontal", probability=float(s > 0)), lambda s: A.RandomPerspective(0.2 * abs(s))])


@QUICK
@given(st.lists(st.tuples(GEOMETRY, st.floats(-1, 1)), min_size=2, max_size=5))
def test_one_resample_is_sharper_than_the_chain_and_else_the_same(chosen: list[Any]) -> None:
    x = smooth_pictures(2)
    transforms = [make(s) for make, s in chosen]
    once = changed(transforms, x, fill_mode="constant")
    chain = chained(transforms, x, fill_mode="constant")
    # Each further resample blurs: by up to an eighth of the second difference of the picture, along two axes.
    second = max(float(x.diff(n=2, dim=d).abs().max()) for d in (1, 2))
    assert float((once - chain).abs().max()) <= 0.4 * second * len(transforms) + 1e-4


@QUICK
@given(st.floats(-180, 180), st.floats(-0.3, 0.3), st.floats(-0.15, 0.15))
def test_inverses_bring_the_picture_back(degrees: float, zoom: float, shift: float) -> None:
    x = smooth_pictures(2)
    there = [A.RandomRotation((degrees, degrees)), A.RandomZoom((zoom, zoom)), A.RandomTranslation((shift, shift), (shift, shift))]
    back = [A.RandomTranslation((-shift, -shift), (-shift, -shift)), A.RandomZoom((1 / (1 + zoom) - 1,) * 2),
            A.RandomRotation((-degrees, -degrees))]
    torch.testing.assert_close(changed([*there, *back], x), x, atol=1e-4, rtol=0)


COLOURS: list[Callable[[float], A.Transform]] = [
    lambda s: A.RandomBrightness(0.02 * abs(s)), lambda s: A.RandomLightness(0.4 * abs(s)), lambda s: A.RandomContrast(0.5 * abs(s)),
    lambda s: A.RandomSaturation((0.0, 1 + abs(s))), lambda s: A.RandomHue(s), lambda s: A.RandomChannelShift(0.02, same=s > 0),
    lambda s: A.RandomGrayscale(abs(s)), lambda s: A.RandomInvert(abs(s))]


@THOROUGH
@given(st.lists(st.tuples(st.sampled_from(COLOURS), STRENGTH), min_size=2, max_size=6), st.sampled_from([1, 3, 4]))
def test_one_colour_matrix_is_the_chain_of_single_ones(chosen: list[Any], channels: int) -> None:
    transforms = [make(s) for make, s in chosen]
    x = torch.rand(6, 7, 9, channels, generator=torch.Generator().manual_seed(0)) * 2 - 1
    once, chain = (way(transforms, x, value_range=(-100, 100)) for way in (changed, chained))
    assert float(chain.abs().max()) < 99, "nothing is cut to the range, which happens once in the end"
    torch.testing.assert_close(once, chain, atol=2e-4, rtol=1e-5)


@THOROUGH
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99), STRENGTH), min_size=2, max_size=6))
def test_moves_and_colours_add_up_in_any_order(chosen: list[Any]) -> None:
    colours = [make for make in COLOURS if not isinstance(make(0.5), A.RandomContrast)]  # whose mean is that of the unmoved picture
    makes: list[Any] = [(AFFINE[i % len(AFFINE)] if moves else lambda s, h, w, i=i: colours[i % len(colours)](s), s)
                        for moves, i, s in chosen]
    transforms, x = listed(makes, 24, 27), ramps(4, 24, 27)
    once, chain = (way(transforms, x, fill_mode="constant", value_range=(-100, 100)) for way in (changed, chained))
    only_moves = [A.Rescale(1.0) if moved is False else t for t, (moved, *_) in zip(transforms, chosen, strict=True)]
    inside = chained(only_moves, x, fill_mode="constant")[..., 2] > 1 - 1e-5
    assume(int(inside.sum()) > 50)
    torch.testing.assert_close(once[inside], chain[inside], atol=2e-4, rtol=1e-5)
