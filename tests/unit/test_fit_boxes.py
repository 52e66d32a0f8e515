"""`fit(augment=Augmentation(…, boxes=…))`: targets that are boxes move with their pictures, however the data come."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import convolt
from convolt import layers
from convolt.data.augment import Augmentation, MixUp, ProgressiveResizing, RandomCrop, RandomFlip, RandomTranslation
from convolt.errors import ArgumentError, ShapeError
from convolt.training import inputs
from convolt.training.heads import Head
from convolt.training.sampling import make_drawing

CPU = torch.device("cpu")
HEIGHT, WIDTH = 16, 20
RNG = np.random.default_rng(0)
TOP, LEFT = RNG.integers(3, 8, 80), RNG.integers(4, 10, 80)
BOXES = np.stack([LEFT, TOP, LEFT + 6, TOP + 5], 1).astype("float32")
X = np.zeros((80, HEIGHT, WIDTH, 1), "uint8")
for picture, (left, top, right, bottom) in zip(X, BOXES.astype(int), strict=True):
    picture[top:bottom, left:right] = 250
KINDS = RNG.integers(0, 3, 80)
SHARES = BOXES / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], "float32")
MOVES = [RandomFlip(), RandomTranslation(0.15, 0.15, whole_pixels=True, fill_mode="constant")]


def model() -> Any:
    convolt.utils.set_random_seed(0)
    x = layers.Input((HEIGHT, WIDTH, 1))
    flat = layers.Flatten()(layers.Rescaling(1 / 255)(x))
    kind = layers.Dense(3, activation="softmax", name="kind")(flat)
    place = layers.Dense(4, name="place")(flat)
    made = convolt.Model(x, {"kind": kind, "place": place})
    made.compile(convolt.optimizers.Adam(0.003), {"kind": "sparse_categorical_crossentropy", "place": "mse"},
                 loss_weights={"kind": 0.1, "place": 1.0}, device="cpu", fusions="none", precision="float32")
    return made


def labels(boxes: np.ndarray) -> dict[str, np.ndarray]:
    return {"kind": KINDS, "place": boxes}


class Pairs(Dataset):
    def __init__(self, boxes: np.ndarray) -> None:
        self.boxes = boxes

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(X[index]), (int(KINDS[index]), torch.from_numpy(self.boxes[index]))


def extent(picture: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom of what is bright."""
    rows, columns = torch.nonzero(picture[..., 0] > 125, as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


# -- what the model gets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["arrays", "dataset"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("name", ["place", 1])
def test_boxes_lie_where_their_things_are(stream: bool, several: bool, name: str | int) -> None:
    nothing = np.full_like(BOXES, -1)
    boxes = np.stack([nothing, BOXES], 1) if several else BOXES
    drawing = make_drawing(5, True, None, Augmentation([*MOVES, RandomCrop(14, 18)], least_visible=0.0, boxes=name))
    assert drawing.augment is not None
    drawing.augment.prepare([Head("kind", None), Head("place", None)], {})
    data: Any
    if stream:
        data = inputs.from_stream(Pairs(boxes), CPU, 16, None, ["x"], ["kind", "place"], drawing)
    else:
        data = inputs.from_arrays(([torch.from_numpy(X)], [torch.from_numpy(KINDS), torch.from_numpy(boxes)], []), 16, CPU, drawing)
    seen = 0
    for batch in data.epoch(1):
        ready = batch.ready()
        kinds, place = ready.y
        assert ready.x[0].shape[1:3] == (14, 18) and place.shape == (ready.size, *boxes.shape[1:])
        if several:
            assert bool((place[:, 0] == -1).all())
        for picture, box in zip(ready.x[0], place[:, 1] if several else place, strict=True):
            assert torch.equal(extent(picture), box)
            seen += 1
        assert kinds.shape == (ready.size,)
    assert seen == 80


def test_fractions_follow_pictures_that_grow() -> None:
    drawing = make_drawing(5, True, None, Augmentation([RandomFlip(), ProgressiveResizing(32, 64, 2)], boxes=0, box_format="rel_xyxy"))
    assert drawing.augment is not None
    drawing.augment.prepare([Head("place", None)], {})
    data = inputs.from_arrays(([torch.from_numpy(X)], [torch.from_numpy(SHARES)], []), 40, CPU, drawing)
    for epoch, side in ((0, 32), (1, 64)):
        for batch in data.epoch(epoch):
            ready = batch.ready()
            for picture, box in zip(ready.x[0], ready.y[0], strict=True):
                assert picture.shape[:2] == (side, side)
                assert float((extent(picture) - box * side).abs().max()) <= 1.01


# -- fit -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["arrays", "dataset"])
def test_a_model_learns_places_from_boxes_that_move(stream: bool) -> None:
    made = model()
    data = (Pairs(SHARES), None) if stream else (X, labels(SHARES))
    made.fit(*data, batch_size=16, epochs=60, seed=1, verbose=0, augment=Augmentation(MOVES, boxes="place", box_format="rel_xyxy"))
    found = made.predict(X, verbose=0)["place"]
    assert np.abs(found - SHARES).mean() < 0.03, "boxes that stay behind teach the mean of all places"
    behind = model()
    behind.fit(*data, batch_size=16, epochs=60, seed=1, verbose=0, augment=MOVES)
    assert np.abs(behind.predict(X, verbose=0)["place"] - SHARES).mean() > 0.05


# -- messages --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_told() -> None:
    with pytest.raises(ArgumentError, match=r"Augmentation\(boxes\): got 'plaice'; expected an output .* Did you mean 'place'"):
        model().fit(X, labels(SHARES), verbose=0, augment=Augmentation(MOVES, boxes="plaice"))
    with pytest.raises(ArgumentError, match=r"Augmentation\(boxes\): got 2"):
        model().fit(X, labels(SHARES), verbose=0, augment=Augmentation(MOVES, boxes=2))
    with pytest.raises(ShapeError, match=r"augment \(boxes\): got shape \(32,\); expected \(samples, boxes, 4\), or \(samples, 4\)"):
        model().fit(X, labels(SHARES), verbose=0, augment=Augmentation(MOVES, boxes="kind"))
    with pytest.raises(ArgumentError, match="mixed pictures with 2 outputs"):
        model().fit(X, labels(SHARES), verbose=0, augment=Augmentation([MixUp()], boxes="place"))
