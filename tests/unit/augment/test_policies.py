"""TrivialAugment and RandAugment: Pillow's operations, torchvision's strengths, each drawn alike, each sample by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from convolt.data import augment as A
from convolt.data.augment.draft import Parameters
from convolt.data.augment.effects import with_effects
from convolt.data.augment.keys import uniform
from convolt.data.augment.policies import OPERATIONS
from convolt.data.augment.words import parse
from convolt.errors import ArgumentError, ShapeError
from tests.unit.augment.common import bytes_of, changed, keys, smooth_pictures

GEOMETRIC, COLOURS = OPERATIONS[1:6], OPERATIONS[6:9]


def uneven(count: int, channels: int = 3, size: int = 20) -> np.ndarray:
    """Bytes from a range of their own in each picture; the first has one value alone, the second two."""
    generator = np.random.default_rng(0)
    low = generator.integers(0, 150, (count, 1, 1, 1))
    pictures = generator.integers(low, low + generator.integers(1, 106, low.shape), (count, size, size + 3, channels)).astype("uint8")
    pictures[0], pictures[1] = 77, pictures[1] // 128 * 200
    return pictures


def with_pillow(operation: Callable[[Image.Image], Image.Image], pictures: np.ndarray) -> np.ndarray:
    flat = pictures[..., 0] if pictures.shape[3] == 1 else pictures
    return np.stack([np.asarray(operation(Image.fromarray(p))) for p in flat]).reshape(pictures.shape)


def effect(pictures: Tensor, limits: tuple[float, float] = (0.0, 255.0), **chosen: Tensor) -> Tensor:
    return with_effects(pictures, Parameters(tuple(pictures.shape[1:3]), **chosen), keys(len(pictures)), limits)  # type: ignore[arg-type]


# -- the effects are Pillow's ------------------------------------------------------------------------------------------------

STEPS: list[Any] = [
    ("autocontrast", True, ImageOps.autocontrast), ("equalize", True, ImageOps.equalize),
    *[("solarize", t, lambda p, t=t: ImageOps.solarize(p, t)) for t in (0, 1, 100, 128, 255, 256)],
    *[("bits", b, lambda p, b=b: ImageOps.posterize(p, b)) for b in range(1, 9)]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "value", "operation"), STEPS, ids=lambda v: "" if callable(v) else str(v))
def test_steps_in_the_values_are_pillows_to_the_byte(name: str, value: Any, operation: Any, channels: int) -> None:
    pictures = uneven(40, channels)
    expected = torch.from_numpy(with_pillow(operation, pictures)).float()
    assert torch.equal(effect(torch.from_numpy(pictures).float(), **{name: torch.tensor([value] * 40)}), expected)
    floats = effect(torch.from_numpy(pictures) / 255, (0.0, 1.0), **{name: torch.tensor([value] * 40)})
    torch.testing.assert_close(floats, expected / 255, atol=1e-6, rtol=0)
    signed = effect(torch.from_numpy(pictures) / 127.5 - 1, (-1.0, 1.0), **{name: torch.tensor([value] * 40)})
    torch.testing.assert_close(signed, expected / 127.5 - 1, atol=1e-6, rtol=0)


def test_all_steps_of_a_picture_are_done_in_the_order_that_is_told() -> None:
    pictures = uneven(40)
    yes = torch.ones(40, dtype=torch.bool)
    got = effect(torch.from_numpy(pictures).float(), autocontrast=yes, equalize=yes, solarize=torch.full((40,), 90.0), bits=yes * 3)
    expected = with_pillow(lambda p: ImageOps.posterize(ImageOps.solarize(ImageOps.equalize(ImageOps.autocontrast(p)), 90), 3), pictures)
    assert torch.equal(got, torch.from_numpy(expected).float())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.0, 0.01, 0.6, 1.0, 1.4, 1.99])
def test_sharpness_is_pillows_but_for_its_rounding(factor: float, channels: int) -> None:
    pictures = uneven(40, channels)
    got = effect(torch.from_numpy(pictures).float(), sharpness=torch.full((40,), factor - 1))
    expected = torch.from_numpy(with_pillow(lambda p: ImageEnhance.Sharpness(p).enhance(factor), pictures)).float()
    # Pillow rounds the smoothed picture (by up to 1/2, times the distance from factor 1) and cuts off what is behind the comma.
    off = got - expected
    assert -0.5 * abs(1 - factor) - 1e-3 <= float(off.min()) and float(off.max()) <= 1 + 0.5 * abs(1 - factor) + 1e-3
    if factor == 1.0:
        assert torch.equal(got, expected)


def test_samples_without_an_effect_stay_as_they_are() -> None:
    pictures = torch.rand(6, 9, 11, 3)  # values between the levels
    no, some = torch.zeros(6, dtype=torch.bool), torch.tensor([True, False] * 3)
    still = effect(pictures, (0.0, 1.0), sharpness=torch.zeros(6), autocontrast=no, equalize=no, solarize=torch.full((6,), math.inf),
                   bits=torch.full((6,), 8.0))
    assert torch.equal(still, pictures)
    half = effect(pictures, (0.0, 1.0), autocontrast=some, bits=torch.tensor([8.0, 8, 8, 2, 8, 8]))
    assert [torch.equal(a, b) for a, b in zip(half, pictures, strict=True)] == [False, True, False, False, False, True]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 1), (3, 3)])
def test_small_pictures(size: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype="uint8")
    x, yes = torch.from_numpy(pictures).float(), torch.ones(5, dtype=torch.bool)
    assert torch.equal(effect(x, equalize=yes), torch.from_numpy(with_pillow(ImageOps.equalize, pictures)).float())
    sharp = torch.from_numpy(with_pillow(lambda p: ImageEnhance.Sharpness(p).enhance(1.5), pictures)).float()
    assert float((effect(x, sharpness=torch.full((5,), 0.5)) - sharp).abs().max()) <= 1.25


# -- what a sample draws is what happens to it -----------------------------------------------------------------------------------


def drawn(policy: Any, count: int) -> list[list[tuple[str, float, int]]]:
    """(operation, level, sign) of each sample's operations."""
    u = uniform(keys(count), torch.arange(policy.draws))
    if isinstance(policy, A.TrivialAugment):
        return [[(OPERATIONS[int(14 * a)], int(31 * c), -1 if b < 0.5 else 1)] for a, b, c in u.tolist()]
    pairs = u.view(count, policy.count, 2).tolist()
    return [[(OPERATIONS[int(14 * a)], policy.magnitude, -1 if b < 0.5 else 1) for a, b in row] for row in pairs]


def strength(policy: Any, operation: str, level: float, width: int, height: int) -> float:
    """The tables of torchvision, at 31 levels."""
    wide = isinstance(policy, A.TrivialAugment)
    most = {"shear_x": (0.3, 0.99), "shear_y": (0.3, 0.99), "translate_x": (150 / 331 * width, 32), "rotate": (30, 135),
            "translate_y": (150 / 331 * height, 32), "posterize": (4, 6)}.get(operation, (0.9, 0.99))[wide]
    if operation == "solarize":
        return float(np.linspace(255, 0, 31)[int(level)])
    if operation == "posterize":
        return 8 - round(level / (30 / most))
    return int(np.linspace(0, most, 31)[int(level)]) if "translate" in operation else float(np.linspace(0, most, 31)[int(level)])


def coefficients(operation: str, value: float, width: int, height: int) -> np.ndarray:
    """3 × 3, output to input in pixels from the upper left corner, as Pillow's AFFINE takes them."""
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    x, y = width / 2, height / 2
    rows = {"shear_x": [[1, value, 0], [0, 1, 0]], "shear_y": [[1, 0, 0], [value, 1, 0]], "translate_x": [[1, 0, -value], [0, 1, 0]],
            "translate_y": [[1, 0, 0], [0, 1, -value]],
            "rotate": [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]}[operation]
    return np.array([*rows, [0, 0, 1]], dtype=float)


def pillow(picture: np.ndarray, operation: str, value: float, sign: int) -> np.ndarray:
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    height, width = picture.shape[:2]
    if operation in GEOMETRIC:
        data = coefficients(operation, sign * value, width, height)[:2].ravel().tolist()
        image = image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    elif operation in (*COLOURS, "sharpness"):
        image = getattr(ImageEnhance, operation.capitalize())(image).enhance(1 + sign * value)
    elif operation != "identity":
        image = getattr(ImageOps, operation)(image, *(() if operation in ("autocontrast", "equalize") else (value,)))
    return np.asarray(image).reshape(picture.shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", [A.TrivialAugment(), A.RandAugment(1, 9), A.RandAugment(1, 30), A.RandAugment(1, 0)], ids=repr)
def test_one_operation_is_pillows_at_torchvisions_strength(policy: Any, channels: int) -> None:
    count, size = 420, 24
    waves = (smooth_pictures(6, size, channels, margin=4.5) * 255).round().to(torch.uint8)[torch.arange(count) % 6]
    noise = torch.from_numpy(uneven(count, channels, size))[:, :, :size].contiguous()
    outs = [A.Augmentation([policy], fill_mode="constant").apply(x, None, keys(count), dtype=torch.uint8).images for x in (waves, noise)]
    seen = set()
    for i, [(operation, level, sign)] in enumerate(drawn(policy, count)):
        moved = operation in GEOMETRIC
        picture, got = (waves if moved else noise)[i].numpy(), outs[0 if moved else 1][i].numpy().astype(int)
        off = np.abs(got - pillow(picture, operation, strength(policy, operation, level, size, size), sign))
        # Pillow rounds grays and means, and cuts blends off to whole numbers.
        allowed = 2 if operation in COLOURS else 1 if moved or operation == "sharpness" else 0
        assert off.max() <= allowed, (operation, level, sign, off.max())
        seen.add(operation)
    assert seen == set(OPERATIONS)


def test_two_moves_are_one_matrix_in_the_order_of_the_draws() -> None:
    policy, count, width, height = A.RandAugment(2, 20), 600, 30, 20
    chosen = A.Augmentation([policy]).parameters(keys(count), height, width, 3)
    assert chosen.matrix is not None
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    checked = 0
    for matrix, operations in zip(chosen.matrix.numpy(), drawn(policy, count), strict=True):
        if all(name in GEOMETRIC for name, *_ in operations):
            first, second = (coefficients(name, sign * strength(policy, name, level, width, height), width, height)
                             for name, level, sign in operations)
            np.testing.assert_allclose(matrix, (np.linalg.inv(half) @ first @ second @ half)[:2], atol=1e-4)
            checked += 1
    assert checked > 40


def test_two_steps_in_the_values_are_pillows_in_the_engines_order() -> None:
    policy, count = A.RandAugment(2, 17), 1500
    pictures = uneven(count, size=8)
    out = A.Augmentation([policy]).apply(torch.from_numpy(pictures), None, keys(count), dtype=torch.uint8).images.numpy()
    order = ["identity", "autocontrast", "equalize", "solarize", "posterize"]
    pairs = set()
    for picture, got, operations in zip(pictures, out, drawn(policy, count), strict=True):
        names = [name for name, *_ in operations]
        if set(names) <= set(order):
            for name in sorted(set(names), key=order.index):  # what is drawn twice acts once
                picture = pillow(picture, name, strength(policy, name, 17, 11, 8), 1)
            assert np.array_equal(picture, got), names
            pairs.add(tuple(names))
    assert len(pairs) == 25


# -- how often ----------------------------------------------------------------------------------------------------------------------


def test_operations_strengths_and_directions_are_drawn_alike() -> None:
    count = 30_000
    ops, levels, signs = zip(*(row[0] for row in drawn(A.TrivialAugment(), count)), strict=True)
    for values, kinds in ((ops, 14), (levels, 31), (signs, 2), (list(zip(ops, signs, strict=True)), 28)):
        found = np.array(list(Counter(values).values())) / count
        assert len(found) == kinds
        assert np.abs(found - 1 / kinds).max() < 4.5 * math.sqrt((1 - 1 / kinds) / (kinds * count))
    twice = Counter(tuple(name for name, *_ in row) for row in drawn(A.RandAugment(), count))
    found = np.array(list(twice.values())) / count
    assert len(found) == 196 and np.abs(found - 1 / 196).max() < 4.5 * math.sqrt(1 / (196 * count))


def test_each_operation_reaches_its_share_of_the_pictures() -> None:
    count = 14_000
    chosen = A.Augmentation([A.TrivialAugment()]).parameters(keys(count), 32, 32, 3)
    assert chosen.autocontrast is not None and chosen.equalize is not None and chosen.solarize is not None and chosen.bits is not None
    assert chosen.sharpness is not None and chosen.matrix is not None and chosen.colour_of_mean is not None and chosen.colour is not None
    straight = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    moved, of_mean = (chosen.matrix != straight).flatten(1).any(1), chosen.colour_of_mean.flatten(1).ne(0).any(1)
    coloured = (chosen.colour[:, :, :3] != torch.eye(3)).flatten(1).any(1)
    shares = {"autocontrast": (chosen.autocontrast, 1), "equalize": (chosen.equalize, 1), "solarize": (chosen.solarize <= 255, 1),
              "posterize": (chosen.bits < 8, 28 / 31), "sharpness": (chosen.sharpness != 0, 30 / 31), "contrast": (of_mean, 30 / 31),
              "colours": (coloured, 3 * 30 / 31), "moves": (moved, 5 * 30 / 31)}
    for name, (samples, times) in shares.items():
        assert abs(float(samples.float().mean()) - times / 14) < 0.015, name
    together = torch.stack([s for n, (s, _) in shares.items() if n != "contrast"]).sum(0)
    assert int(together.max()) == 1, "one operation for each picture"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_magnitude_0_changes_nothing_where_that_can_be(kind: torch.dtype, channels: int) -> None:
    count = 200
    x = torch.from_numpy(uneven(count, channels))
    x[:, 0] = 255
    given = x if kind == torch.uint8 else x / 255
    policy = A.RandAugment(1, 0)
    out = changed([policy], given, keys(count)) * (1 if kind == torch.uint8 else 255)
    for got, picture, [(operation, *_)] in zip(out, x.float(), drawn(policy, count), strict=True):
        if operation == "solarize":
            picture = torch.where((picture == 255) & (torch.arange(channels) < 3), 0.0, picture)
        if operation not in ("autocontrast", "equalize"):
            torch.testing.assert_close(got, picture, atol=1e-3, rtol=0, msg=operation)


@pytest.mark.parametrize("policy", [A.TrivialAugment(), A.RandAugment(3, 20)], ids=repr)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floats_are_bytes_in_another_unit_and_alpha_is_only_moved(policy: A.Transform, channels: int) -> None:
    x = bytes_of(100, channels=channels)
    x[..., 3:] = 200
    whole = A.Augmentation([policy], fill_mode="nearest").apply(x, None, keys(100)).images
    floats = A.Augmentation([policy], fill_mode="nearest").apply(x / 255, None, keys(100)).images * 255
    # Where a value lies on the edge of two levels, its rounding may tell them apart.
    assert float(((whole - floats).abs() > 0.05).float().mean()) < 2e-3
    assert whole.shape == x.shape and float(whole.min()) >= 0 and float(whole.max()) <= 255
    torch.testing.assert_close(whole[..., 3:], x[..., 3:].float(), atol=1e-3, rtol=0)


# -- words and messages ----------------------------------------------------------------------------------------------------------------


def test_words() -> None:
    assert [repr(t) for t in parse("flip,trivial,randaugment,randaugment=3:15,progressive=6:8:2")] == [
        "RandomFlip(mode='horizontal')", "TrivialAugment()", "RandAugment()", "RandAugment(count=3, magnitude=15.0)",
        "ProgressiveResizing(start=6, end=8, epochs=2)"]
    for text, words in (("trivial=3", "trivial: got 1 values; expected the word alone"), ("randaugment=2:9:4", "randaugment=2:9"),
                        ("randaugment=2:31", r"RandAugment\(magnitude\): got 31"), ("randaugment=0", r"RandAugment\(count\): got 0")):
        with pytest.raises(ArgumentError, match=words):
            parse(text)


def test_messages() -> None:
    with pytest.raises(ShapeError, match="TrivialAugment: got pictures of 2 channels; expected 1, 3 or 4 channels"):
        changed([A.TrivialAugment()], bytes_of(channels=2))
    with pytest.raises(ArgumentError, match=r"RandAugment\(fill_mode\)"):
        A.RandAugment(fill_mode="black")
    with pytest.raises(ArgumentError, match=r"RandAugment\(count\): got True"):
        A.RandAugment(True)
