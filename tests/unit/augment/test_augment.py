"""The engine: each transform does what it says, whole-pixel moves lose nothing, and keys decide everything."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from convolt.data import augment as A
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError
from tests.unit.augment.common import EVERY, SIZE, bytes_of, changed, keys


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_a_sample_is_the_same_in_any_batch(transform: A.Transform) -> None:
    x, k, labels = bytes_of(), keys(), torch.arange(6)
    engine = A.Augmentation([transform])
    rows = torch.tensor([4, 0, 5, 1, 2, 3])
    whole = engine.apply(x, rows, k[rows], labels, classes=6)
    for part in (rows[:1], rows[1:4], rows[4:]):
        again = engine.apply(x, part, k[part], labels, classes=6)
        places = [rows.tolist().index(r) for r in part.tolist()]
        assert torch.equal(again.images, whole.images[places]) and torch.equal(again.labels, whole.labels[places])  # type: ignore[index]
    assert tuple(whole.images.shape[1:3]) == engine.output_size(SIZE, SIZE + 2)
    assert whole.images.is_contiguous() and whole.images.dtype == torch.float32


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_configurations_make_it_again(transform: A.Transform) -> None:
    engine = A.Augmentation([transform], fill_mode="wrap", value_range=(0, 200))
    config = json.loads(json.dumps(engine.get_config()))
    twin = A.Augmentation.from_config(config)
    assert twin.get_config() == engine.get_config() and type(twin.transforms[0]) is type(transform)
    x = bytes_of()
    labels = torch.eye(6)
    assert torch.equal(engine.apply(x, None, keys(), labels).images, twin.apply(x, None, keys(), labels).images)


def test_every_transform_is_swept() -> None:
    assert {type(t).__name__ for t in EVERY} >= set(A.registry)


def test_keys_are_those_of_the_sample_alone() -> None:
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    whole = A.keys(7, 3, ids)
    assert torch.equal(torch.cat([A.keys(7, 3, part) for part in ids.split(33)]), whole)
    assert torch.equal(A.keys(7, torch.tensor(3), ids), whole)
    everything = torch.cat([A.keys(seed, epoch, ids) for seed in range(3) for epoch in range(4)])
    assert len(everything.unique()) == len(everything)


def test_keys_do_not_change_between_versions() -> None:
    assert A.keys(1, 2, torch.arange(2)).tolist() == [-6578398108894399377, -6721322951270973951]


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    from convolt.data.augment.keys import uniform

    u = uniform(A.keys(0, 0, torch.arange(20_000)), torch.arange(8))
    assert bool(((u >= 0) & (u < 1)).all())
    counts = (u * 10).floor().long().flatten().bincount(minlength=10) / u.numel()
    assert float((counts - 0.1).abs().max()) < 0.002
    correlations = torch.corrcoef(torch.cat([u.T, u.roll(1, 0).T])) - torch.eye(16)
    assert float(correlations.abs().max()) < 0.035


def test_another_place_in_the_list_has_other_numbers_and_those_before_change_nothing() -> None:
    x = bytes_of(40)
    first, second = changed([A.RandomFlip("horizontal")], x), changed([A.RandomBrightness((0, 0)), A.RandomFlip("horizontal")], x)
    flipped = [(y != x.float()).flatten(1).any(1) for y in (first, second)]
    assert not torch.equal(*flipped) and all(8 < int(f.sum()) < 32 for f in flipped)


# -- geometry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_identity_is_bit_exact(dtype: torch.dtype) -> None:
    x = bytes_of() if dtype == torch.uint8 else torch.randn(5, 9, 11, 4)
    still: list[Any] = [A.RandomRotation((0, 0)), A.RandomZoom((0, 0)), A.RandomShear(0, 0), A.RandomTranslation(0, 0),
                        A.RandomPerspective(0.0)]
    assert torch.equal(changed([], x), x.float()) and torch.equal(changed(still[:-1], x), x.float())
    torch.testing.assert_close(changed(still, x), x.float(), atol=1e-3, rtol=1e-5)


def test_flips_and_crops_are_exact() -> None:
    x = bytes_of(30)
    for mode, axes in (("horizontal", [(), (1,)]), ("vertical", [(), (0,)]), ("horizontal_and_vertical", [(), (0,), (1,), (0, 1)])):
        out = A.Augmentation([A.RandomFlip(mode)]).apply(x, None, keys(30), dtype=torch.uint8).images
        seen = {axis for a, b in zip(out, x, strict=True) for axis in axes if torch.equal(a, b.flip(axis) if axis else b)}
        assert seen == set(axes)
        assert all(any(torch.equal(a, b.flip(axis) if axis else b) for axis in axes) for a, b in zip(out, x, strict=True))
    out = A.Augmentation([A.RandomCrop(20, 18), A.RandomFlip("horizontal")]).apply(x, None, keys(30), dtype=torch.uint8).images
    windows = x.unfold(1, 20, 1).unfold(2, 18, 1).permute(0, 1, 2, 4, 5, 3)
    for a, b in zip(out, windows, strict=True):
        assert any(bool((b == c).flatten(2).all(2).any()) for c in (a, a.flip(1)))


def test_padded_crops_show_the_fill() -> None:
    x = bytes_of(40) // 2 + 100
    out = changed([A.RandomCrop(SIZE, SIZE + 2, padding=3, fill_mode="constant")], x)
    padded = torch.nn.functional.pad(x.movedim(-1, 1), (3, 3, 3, 3)).movedim(1, -1).float()
    windows = padded.unfold(1, SIZE, 1).unfold(2, SIZE + 2, 1).permute(0, 1, 2, 4, 5, 3)
    starts = [torch.nonzero((w == o).flatten(2).all(2)) for o, w in zip(out, windows, strict=True)]
    assert all(len(s) == 1 for s in starts)
    assert {int(v) for s in starts for v in s[0]} == set(range(7))


@pytest.mark.parametrize("size", [SIZE, 17])
def test_quarter_turns_are_exact_and_counter_clockwise(size: int) -> None:
    x = torch.rand(2, size, size, 3)
    for turns in (1, 2, 3):
        out = changed([A.RandomRotation((90.0 * turns, 90.0 * turns))], x)
        torch.testing.assert_close(out, x.rot90(turns, (1, 2)), atol=2e-6, rtol=0)


def test_smoothed_shrinking_is_the_mean_of_blocks() -> None:
    x = bytes_of(3, 32)[:, :, :32]
    out = changed([A.Resize(8)], x)
    torch.testing.assert_close(out, x.float().view(3, 8, 4, 8, 4, 3).mean((2, 4)), atol=1e-3, rtol=0)
    whole = changed([A.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(1.0, 1.0))], x)
    torch.testing.assert_close(whole, out, atol=1e-3, rtol=0)


def test_resized_crops_lie_inside_and_vary() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    places = torch.stack([y, x], -1).expand(200, -1, -1, -1).contiguous()
    out = A.Augmentation([A.RandomResizedCrop(10, scale=(0.1, 1.0))], value_range=(0, 60)).apply(places, None, keys(200)).images
    assert float(out[..., 0].max()) <= 39 and float(out[..., 1].max()) <= 59 and float(out.min()) >= 0
    heights, widths = (out[:, -1, 0, 0] - out[:, 0, 0, 0]) / 0.9, (out[:, 0, -1, 1] - out[:, 0, 0, 1]) / 0.9
    share = heights * widths / 2400
    assert float(share.min()) < 0.2 and float(share.max()) > 0.7 and float(share.max()) < 1.05


# -- colour --------------------------------------------------------------------------------------------------------------


def test_colours_are_the_formulas() -> None:
    x = torch.rand(2, 6, 6, 3) * 0.4 + 0.3
    gray = (x * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
    for transform, expected in (
            (A.RandomBrightness((0.1, 0.1)), x + 0.1), (A.RandomLightness((0.8, 0.8)), x * 0.8),
            (A.RandomContrast((1.2, 1.2)), (x - x.mean((1, 2), keepdim=True)) * 1.2 + x.mean((1, 2), keepdim=True)),
            (A.RandomSaturation((0.5, 0.5)), (x + gray) / 2), (A.RandomGrayscale(1.0), gray.expand(-1, -1, -1, 3)),
            (A.RandomInvert(1.0), 1 - x), (A.RandomHue((0, 0)), x), (A.Rescale(2.0, -1.0), 2 * x - 1),
            (A.Normalize((0.1, 0.2, 0.3), (1, 2, 4)), (x - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([1.0, 2.0, 4.0]))):
        wanted = expected if isinstance(transform, (A.Rescale, A.Normalize)) else expected.clamp(0, 1)
        torch.testing.assert_close(changed([transform], x), wanted, atol=2e-6, rtol=0)


def test_hue_turns_and_keeps_lightness() -> None:
    x = torch.rand(1, 5, 5, 3) * 0.2 + 0.4
    weights = torch.tensor([0.299, 0.587, 0.114])
    third = changed([A.RandomHue((1 / 3, 1 / 3))], x)
    torch.testing.assert_close((third * weights).sum(-1), (x * weights).sum(-1), atol=1e-5, rtol=0)
    assert float((third - x).abs().max()) > 0.02
    whole = changed([A.RandomHue((1 / 3, 1 / 3))] * 6, x)
    torch.testing.assert_close(whole, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(channels: int) -> None:
    x = bytes_of(channels=channels)
    out = changed([A.RandomRotation(20), A.RandomContrast(0.2), A.RandomSaturation(0.2), A.RandomHue(0.2), A.RandomGrayscale(),
                   A.Cutout()], x)
    assert out.shape == x.shape and float(out.min()) >= 0 and float(out.max()) <= 255
    if channels == 4:
        alpha = changed([A.RandomSaturation(0.9), A.RandomHue(0.5), A.RandomGrayscale(1.0)], x)[..., 3]
        torch.testing.assert_close(alpha, x[..., 3].float(), atol=1e-3, rtol=0)


# -- the rest ------------------------------------------------------------------------------------------------------------


def test_cutout_and_erasing_paint_what_they_say() -> None:
    x = torch.full((200, 20, 20, 3), 200, dtype=torch.uint8)
    out = changed([A.Cutout(6, fill_value=(1, 2, 3))], x, keys(200))
    painted = (out == torch.tensor([1.0, 2.0, 3.0])).all(-1)
    assert int(painted.sum((1, 2)).max()) == 36 and bool((painted.sum((1, 2)) >= 9).all()) and bool(((out == 200).all(-1) | painted).all())
    out = changed([A.RandomErasing(probability=0.5, scale=(0.1, 0.3), fill_value=0)], x, keys(200))
    share = (out == 0).all(-1).float().mean((1, 2))
    assert 60 < int((share > 0).sum()) < 140 and float(share.max()) < 0.34 and float(share[share > 0].min()) > 0.08


def test_noise_and_blur() -> None:
    flat = torch.full((4, 64, 64, 3), 0.5)
    noise = changed([A.RandomNoise((0.1, 0.1))], flat) - 0.5
    assert abs(float(noise.std()) - 0.1) < 0.002 and abs(float(noise.mean())) < 0.002
    assert float(torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max()) < 0.04
    point = torch.zeros(2, 31, 31, 1)
    point[:, 15, 15] = 1
    out = changed([A.RandomBlur((2.0, 2.0))], point)[..., 0]
    assert abs(float(out[0].sum()) - 1) < 1e-5
    spread = (out[0].sum(0) * (torch.arange(31) - 15).square()).sum().sqrt()
    assert abs(float(spread) - 2) < 0.05
    assert torch.equal(changed([A.RandomBlur(2.0, probability=0.0)], point), point)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("mix", [[A.MixUp(0.4)], [A.CutMix()], [A.MixUp(0.4, probability=0.5), A.CutMix()]], ids=str)
def test_mixed_labels_are_the_shares_of_the_pictures(mix: list[A.Transform], resident: bool) -> None:
    count = 50
    x = (torch.arange(count) * 5).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 20, 20, 3).contiguous()
    index = torch.arange(0, count, 2) if resident else None
    k = keys(count) if index is None else keys(count)[index]
    batch = A.Augmentation(mix).apply(x, index, k, torch.arange(count), classes=count)
    assert batch.labels is not None
    torch.testing.assert_close(batch.labels.sum(1), torch.ones(len(k)))
    expected = (batch.labels * torch.arange(count) * 5).sum(1)
    torch.testing.assert_close(batch.images.mean((1, 2, 3)), expected, atol=1e-2, rtol=1e-4)
    partners = batch.labels.argmax(1) != (torch.arange(count) if index is None else index)
    assert bool(partners.any())


def test_shares_follow_beta() -> None:
    stats = pytest.importorskip("scipy.stats")
    from convolt.data.augment.mixing import beta

    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for alpha in (0.1, 0.2, 0.4, 1.0, 2.0, 8.0):
        assert float((beta(u, alpha) - torch.from_numpy(stats.beta.ppf(u.numpy(), alpha, alpha))).abs().max()) < 0.02


def test_boxes_move_along() -> None:
    x = torch.zeros(40, 20, 30, 1, dtype=torch.uint8)
    x[:, 4:9, 6:16] = 255
    boxes = torch.tensor([[[6, 4, 16, 9], [-1, -1, -1, -1]]], dtype=torch.float32).expand(40, -1, -1)
    for transforms, slack in (([A.RandomFlip(), A.RandomTranslation(0.1, 0.1, whole_pixels=True)], 0.0), ([A.RandomCrop(14, 20)], 0.0),
                              ([A.RandomZoom(0.2), A.RandomPerspective(0.3), A.RandomRotation((180, 180))], 1.01)):
        batch = A.Augmentation(transforms, fill_mode="constant", least_visible=0.5).apply(x, None, keys(40), boxes=boxes)
        assert batch.boxes is not None and bool((batch.boxes[:, 1] == -1).all())
        seen = 0
        for picture, box in zip(batch.images[..., 0], batch.boxes[:, 0], strict=True):
            rows, columns = torch.nonzero(picture >= 127.5, as_tuple=True)
            if bool((box == -1).all()):
                assert len(rows) < 0.6 * 50
                continue
            seen += 1
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert float((found - box).abs().max()) <= slack, (found, box)
        assert seen > 20


def test_boxes_may_be_fractions_and_one_for_each_picture() -> None:
    pixels = torch.tensor([[3, 2, 9, 7], [-1, -1, -1, -1], [0, 0, 26, 24], [20, 20, 26, 24], [5, 1, 6, 20], [1, 1, 2, 2]])
    whole = torch.tensor([SIZE + 2, SIZE, SIZE + 2, SIZE])
    transforms = [A.RandomFlip(), A.RandomCrop(20, 16), A.RandomZoom(0.2), A.Resize(30, 10)]
    several = A.Augmentation(transforms).apply(bytes_of(), None, keys(), boxes=pixels[:, None]).boxes
    one = A.Augmentation(transforms).apply(bytes_of(), None, keys(), boxes=pixels).boxes
    engine = A.Augmentation(transforms, box_format="rel_xyxy")
    shares = engine.apply(bytes_of(), None, keys(), boxes=pixels / whole).boxes
    assert several is not None and one is not None and shares is not None and torch.equal(several[:, 0], one)
    gone = (one == -1).all(1)
    assert bool(gone[1]) and not bool(gone.all()) and torch.equal(gone, (shares == -1).all(1))
    torch.testing.assert_close(shares[~gone] * torch.tensor([10, 30, 10, 30]), one[~gone], atol=1e-4, rtol=0)
    assert A.Augmentation.from_config(engine.get_config()).box_format == "rel_xyxy"


def test_boxes_of_turned_pictures_hold_the_whole() -> None:
    boxes = torch.tensor([[[8, 8, 16, 16]]], dtype=torch.float32)
    out = A.Augmentation([A.RandomRotation((45, 45))]).apply(torch.zeros(1, 24, 24, 3), None, keys(1), boxes=boxes).boxes
    assert out is not None
    half = 4 * 2**0.5
    torch.testing.assert_close(out[0, 0], torch.tensor([12 - half, 12 - half, 12 + half, 12 + half]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_masks_move_along_without_blending(dtype: torch.dtype) -> None:
    classes = torch.randint(0, 2 if dtype == torch.bool else 5, (6, SIZE, SIZE + 2), generator=torch.Generator().manual_seed(0))
    engine = A.Augmentation([A.RandomFlip(), A.RandomCrop(16)])
    x = (classes * 50).to(torch.uint8)[..., None]
    batch = engine.apply(x, None, keys(), masks=classes.to(dtype))
    assert batch.masks is not None and batch.masks.dtype == dtype and torch.equal(batch.masks.long() * 50, batch.images[..., 0].long())
    turned = A.Augmentation([A.RandomRotation(40)]).apply(x, None, keys(), masks=classes.to(dtype)).masks
    assert turned is not None and set(turned.unique().tolist()) <= set(classes.unique().tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_types(dtype: torch.dtype) -> None:
    x = bytes_of()
    exact = changed([A.RandomRotation(20), A.RandomBrightness(0.2)], x)
    out = A.Augmentation([A.RandomRotation(20), A.RandomBrightness(0.2)]).apply(x, None, keys(), dtype=dtype).images
    allowed = 0.5 if dtype == torch.uint8 else 255 * torch.finfo(dtype).eps
    assert out.dtype == dtype and float((out.float() - exact).abs().max()) <= allowed


def test_labels_of_a_chosen_few() -> None:
    batch = A.Augmentation([A.RandomFlip()]).apply(bytes_of(), torch.tensor([4, 2]), keys(2), torch.arange(6))
    assert batch.labels is not None and batch.labels.tolist() == [4, 2]


def test_messages() -> None:
    x = bytes_of()
    for make, words in (
            (lambda: A.RandomFlip("sideways"), "mode"), (lambda: A.RandomRotation("ten"), "degrees"),
            (lambda: A.RandomBrightness(3), "factor"),
            (lambda: A.RandomShear(10), r"from -4 to 4\. It is a tangent: 0\.2 slants by 11°"),
            (lambda: A.RandomZoom((-2, 0)), "height_factor"),
            (lambda: A.RandomCrop(0), "height, width"), (lambda: A.RandomErasing(2.0), "probability"),
            (lambda: A.Cutout(1.5), "size"), (lambda: A.MixUp(0), "alpha"), (lambda: A.RandomRotation(1, fill_mode="mirror"), "fill_mode"),
            (lambda: A.Augmentation(["random_flop"]), "Did you mean"), (lambda: A.Normalize(0, 0), "std"),
            (lambda: A.Augmentation([], box_format="xywh"), "box_format"),
            (lambda: A.Augmentation([A.RandomRotation(1, fill_mode="wrap"), A.RandomZoom(0.1, fill_mode="nearest")]), "one for all"),
            (lambda: A.Augmentation([A.MixUp()]).apply(x, None, keys(), torch.arange(6)), "classes="),
            (lambda: A.Augmentation([A.MixUp()]).apply(x, None, keys(), masks=x[..., 0]), "MixUp"),
            (lambda: A.Augmentation([A.Normalize((1, 2), 1)]).apply(x, None, keys()), "3 channels")):
        with pytest.raises(ArgumentError, match=words):
            make()
    with pytest.raises(ArgumentTypeError, match="transform"):
        A.Augmentation([3])
    with pytest.raises(ArgumentTypeError, match=r"augment\.keys"):
        A.Augmentation([]).apply(x, None, torch.zeros(6))
    for call in (lambda: A.Augmentation([A.RandomCrop(99)]).apply(x, None, keys()), lambda: A.Augmentation([]).apply(x[0], None, keys()),
                 lambda: A.Augmentation([]).apply(x, None, keys(), boxes=x),
                 lambda: A.Augmentation([]).apply(x, None, keys(), masks=x[0, 0]),
                 lambda: A.Augmentation([A.RandomHue(0.1)]).apply(bytes_of(channels=2), None, keys())):
        with pytest.raises(ShapeError):
            call()


def test_an_empty_batch_passes() -> None:
    batch = A.Augmentation(EVERY[:6]).apply(bytes_of(), torch.zeros(0, dtype=torch.int64), keys(0))
    assert batch.images.shape == (0, SIZE, SIZE + 2, 3)
