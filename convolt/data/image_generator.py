"""Keras's `ImageDataGenerator`, as a door to the engine of `convolt.data.augment`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.data.array_flow import ArrayFlow
from convolt.data.augment.base import Transform
from convolt.data.augment.colour import RandomChannelShift, RandomLightness
from convolt.data.augment.draft import Draft
from convolt.data.augment.engine import Augmentation
from convolt.data.augment.keys import keys as make_keys
from convolt.data.augment.scaling import Normalize, Rescale
from convolt.data.directory_flow import DirectoryFlow
from convolt.data.folder import ImageFolder
from convolt.data.generator_transforms import FixedGeometry, GeneratorGeometry, affine_rows, drawn_shift
from convolt.errors import ArgumentError, ConvoltWarning, ShapeError, StateError, explain

FILLS = {"nearest": "nearest", "constant": "outside", "reflect": "reflect", "wrap": "wrap"}
SMALL = 1e-6
Array = np.ndarray[Any, Any]


class ImageDataGenerator:
    """Random changes of pictures, and batches of changed pictures.

    Pictures have values from 0 to 255. Geometry is one resample, on the engine of `convolt.data.augment`; each picture of each epoch has
    random numbers of its own, keyed by (seed, epoch, sample), whatever the batch size.

    Args:
        featurewise_center, featurewise_std_normalization: bring the data set's mean to 0 and standard deviation to 1, channel by
            channel; `fit` learns them.
        samplewise_center, samplewise_std_normalization: the same for each picture.
        zca_whitening, zca_epsilon: decorrelate the values of small pictures; `fit` learns how.
        rotation_range: degrees d: -d … d.
        width_shift_range, height_shift_range: fractions of the size (below 1), pixels (floats from 1), whole pixels (an int n for less
            than n), or a list to choose from.
        brightness_range: (low, high), factors.
        shear_range: degrees.
        zoom_range: f for 1 - f … 1 + f, or (low, high); rows and columns by themselves; above 1 zooms out.
        channel_shift_range: in units of the pictures, the same for all channels.
        fill_mode, cval: what lies beyond the border: "nearest", "constant" (cval), "reflect" or "wrap".
        horizontal_flip, vertical_flip: mirror one picture in two.
        rescale: factor at the end.
        preprocessing_function: called with each changed picture, (height, width, channels), before `rescale`.
        data_format: "channels_last", or "channels_first" for arrays with the channels before rows and columns.
        validation_split: share of the samples, the first ones, that `subset="validation"` gives.
        interpolation_order: 1 (bilinear) or 0 (nearest).
        dtype: of the batches: "float32" alone.

    Keras counterpart: `keras.legacy.preprocessing.image.ImageDataGenerator`. Two things differ. Keras 3 moves pictures sideways where
    `height_shift_range` is given and the reverse, and turns pictures that are not square about a point beside their centre. Here
    heights are heights, and the centre is the centre. Channel shifts are cut to 0 … 255, not to the picture's own extremes.
    """

    def __init__(self, featurewise_center: bool = False, samplewise_center: bool = False, featurewise_std_normalization: bool = False,
                 samplewise_std_normalization: bool = False, zca_whitening: bool = False, zca_epsilon: float = 1e-6,
                 rotation_range: float = 0, width_shift_range: Any = 0.0, height_shift_range: Any = 0.0,
                 brightness_range: Sequence[float] | None = None, shear_range: float = 0.0, zoom_range: float | Sequence[float] = 0.0,
                 channel_shift_range: float = 0.0, fill_mode: str = "nearest", cval: float = 0.0, horizontal_flip: bool = False,
                 vertical_flip: bool = False, rescale: float | None = None,
                 preprocessing_function: Callable[[Array], Array] | None = None, data_format: str | None = None,
                 validation_split: float = 0.0, interpolation_order: int = 1, dtype: str | None = None) -> None:
        self.featurewise_center = featurewise_center or featurewise_std_normalization or zca_whitening
        self.featurewise_std_normalization = featurewise_std_normalization and not zca_whitening
        self.samplewise_center = samplewise_center or samplewise_std_normalization
        self.samplewise_std_normalization = samplewise_std_normalization
        self.zca_whitening, self.zca_epsilon = zca_whitening, zca_epsilon
        self.rotation_range, self.shear_range = rotation_range, shear_range
        self.width_shift_range, self.height_shift_range = width_shift_range, height_shift_range
        self.channel_shift_range, self.brightness_range = channel_shift_range, brightness_range
        self.fill_mode, self.cval, self.interpolation_order = fill_mode, cval, interpolation_order
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip
        self.rescale, self.preprocessing_function = rescale, preprocessing_function
        self.data_format, self.validation_split = data_format or "channels_last", validation_split
        self.dtype = dtype or "float32"
        self.mean: Array | None = None
        self.std: Array | None = None
        self.zca_whitening_matrix: Array | None = None
        self.zoom_range = [1 - zoom_range, 1 + zoom_range] if isinstance(zoom_range, (int, float)) else list(zoom_range)
        self._check()

    def _check(self) -> None:
        for what, value, known in (("fill_mode", self.fill_mode, tuple(FILLS)), ("interpolation_order", self.interpolation_order, (0, 1)),
                                   ("data_format", self.data_format, ("channels_last", "channels_first")),
                                   ("dtype", self.dtype, ("float32",))):
            if value not in known:
                raise ArgumentError(explain(f"ImageDataGenerator({what})", repr(value), f"one of {', '.join(map(repr, known))}"))
        if not 0 <= self.validation_split < 1:
            raise ArgumentError(explain("ImageDataGenerator(validation_split)", self.validation_split, "a number from 0 to 1, without 1"))
        for what, pair in (("zoom_range", self.zoom_range), ("brightness_range", self.brightness_range)):
            if pair is not None and not (isinstance(pair, (list, tuple)) and len(pair) == 2):
                raise ArgumentError(explain(f"ImageDataGenerator({what})", repr(pair), "(low, high)"))

    # -- transforms ---------------------------------------------------------------------------------------------------------

    def transforms(self) -> list[Transform]:
        """Returns what happens to a picture at random, for `Augmentation` or `fit(augment=...)`, in the order of the changes."""
        found: list[Transform] = [GeneratorGeometry(self.rotation_range, self.width_shift_range, self.height_shift_range, self.shear_range,
                                                    self.zoom_range, self.horizontal_flip, self.vertical_flip)]
        if self.channel_shift_range:
            found.append(RandomChannelShift(self.channel_shift_range / 255, same=True))
        if self.brightness_range is not None:
            found.append(RandomLightness(tuple(self.brightness_range)))
        return found

    def scalings(self) -> list[Transform]:
        """Returns `rescale` and the normalization that `fit` learnt."""
        found: list[Transform] = [Rescale(self.rescale)] if self.rescale else []
        if self.featurewise_center and self.mean is not None:
            mean = self.mean.reshape(-1).tolist()
            found.append(Normalize(mean, [1.0] * len(mean) if self.std is None else (self.std.reshape(-1) + SMALL).tolist()))
        return found

    def augmentation(self, scaled: bool = True) -> Augmentation:
        """Returns all this as one `Augmentation`, with what comes at the end or without."""
        return self._engine([*self.transforms(), *(self.scalings() if scaled else [])])

    def _engine(self, transforms: Sequence[Transform]) -> Augmentation:
        interpolation = "bilinear" if self.interpolation_order else "nearest"
        return Augmentation(transforms, FILLS[self.fill_mode], self.cval, interpolation, (0.0, 255.0))

    def get_random_transform(self, img_shape: Sequence[int], seed: int | None = None) -> dict[str, Any]:
        """Returns random parameters for a picture of this shape, under Keras's names.

        Args:
            img_shape: of one picture.
            seed: the same seed gives the same parameters; None draws others at each call.
        """
        u = np.random.default_rng(seed).random(12)
        height, width = img_shape[:2] if self.data_format == "channels_last" else img_shape[1:]
        numbers = [torch.tensor([n]) for n in u]

        def between(n: float, low: float, high: float) -> float:
            return float(low + n * (high - low))

        zooms = (1, 1) if list(self.zoom_range) == [1, 1] else tuple(between(n, *self.zoom_range) for n in u[4:6])
        shift, light = self.channel_shift_range, self.brightness_range
        return {"theta": between(u[0], -self.rotation_range, self.rotation_range) if self.rotation_range else 0,
                "tx": float(drawn_shift(self.width_shift_range, width, numbers[1], numbers[10])),
                "ty": float(drawn_shift(self.height_shift_range, height, numbers[2], numbers[11])),
                "shear": between(u[3], -self.shear_range, self.shear_range) if self.shear_range else 0, "zx": zooms[0], "zy": zooms[1],
                "flip_horizontal": bool(self.horizontal_flip and u[6] < 0.5), "flip_vertical": bool(self.vertical_flip and u[7] < 0.5),
                "channel_shift_intensity": between(u[8], -shift, shift) if shift else None,
                "brightness": None if light is None else between(u[9], *light)}

    def apply_transform(self, x: Array, transform_parameters: dict[str, Any]) -> Array:
        """Returns a picture (height, width, channels) changed by parameters under Keras's names, float32.

        Args:
            x: one picture; it is left as it is.
            transform_parameters: "theta", "shear" (degrees), "tx", "ty" (pixels to the left and up), "zx", "zy", "flip_horizontal",
                "flip_vertical", "channel_shift_intensity", "brightness"; each may be absent.
        """
        said = {k: v for k, v in transform_parameters.items() if v is not None}
        flips = {name: -1.0 if said.get(key) else 1.0 for name, key in (("across", "flip_horizontal"), ("down", "flip_vertical"))}
        numbers = {k: float(said[k]) for k in ("theta", "tx", "ty", "shear", "zx", "zy") if k in said}
        steps: list[Transform] = [FixedGeometry(affine_rows(**numbers, **flips))]
        if "channel_shift_intensity" in said:
            steps.append(_Shifted(float(said["channel_shift_intensity"])))
        if "brightness" in said:
            steps.append(RandomLightness((said["brightness"], said["brightness"])))
        pictures = self._outside(np.asarray(x)[None])
        out = self._engine(steps).apply(pictures, None, torch.zeros(1, dtype=torch.int64)).images
        picture: Array = self._returned(out)[0]
        return picture

    def random_transform(self, x: Array, seed: int | None = None) -> Array:
        """Returns a picture changed at random."""
        return self.apply_transform(x, self.get_random_transform(np.shape(x), seed))

    def _outside(self, x: Array) -> Tensor:
        """Returns arrays as channels-last tensors of bytes or float32."""
        if x.ndim != 4:
            raise ShapeError(explain("ImageDataGenerator", f"pictures of shape {x.shape}", "(samples, height, width, channels)"))
        x = x if self.data_format == "channels_last" else np.moveaxis(x, 1, -1)
        return torch.from_numpy(np.array(x if x.dtype == np.uint8 else x.astype(np.float32), order="C"))

    def _returned(self, images: Tensor) -> Array:
        found = images.numpy()
        return found if self.data_format == "channels_last" else np.moveaxis(found, -1, 1)

    # -- statistics ---------------------------------------------------------------------------------------------------------

    def fit(self, x: Array, augment: bool = False, rounds: int = 1, seed: int | None = None) -> None:
        """Learns the statistics of `featurewise_center`, `featurewise_std_normalization` and `zca_whitening`.

        Args:
            x: pictures, (samples, height, width, channels).
            augment: learn from changed pictures.
            rounds: how often each is changed.
            seed: of the changes.
        """
        pictures = self._outside(np.asarray(x))
        data = pictures.to(torch.float32)
        if augment:
            rows = torch.arange(len(pictures))
            engine = self.augmentation(scaled=False)
            data = torch.cat([engine.apply(pictures, None, make_keys(seed or 0, turn, rows)).images for turn in range(rounds)])
        values = data.numpy().astype(np.float64) * (self.rescale or 1.0)
        axes = (1, 1, 1, -1) if self.data_format == "channels_last" else (1, -1, 1, 1)
        if self.featurewise_center:
            self.mean = values.mean(axis=(0, 1, 2)).astype(np.float32).reshape(axes[1:])
            values = values - values.mean(axis=(0, 1, 2))
        if self.featurewise_std_normalization:
            self.std = values.std(axis=(0, 1, 2)).astype(np.float32).reshape(axes[1:])
        if self.zca_whitening:
            flat = np.reshape(self._returned(torch.from_numpy(values)), (len(values), -1))
            u, s, _ = np.linalg.svd(flat.T, full_matrices=False)
            inverse = math.sqrt(len(flat)) / (s + self.zca_epsilon)
            self.zca_whitening_matrix = ((u * inverse) @ u.T).astype(np.float32)

    def standardize(self, x: Array) -> Array:
        """Returns pictures, one or a batch, after `preprocessing_function`, `rescale` and the normalizations, float32."""
        x = np.asarray(x, np.float32)
        if self.preprocessing_function is not None:
            x = np.asarray(self.preprocessing_function(x), np.float32)
        x = x * np.float32(self.rescale) if self.rescale else x
        axes = tuple(range(x.ndim - 3, x.ndim))
        if self.samplewise_center:
            x = x - x.mean(axis=axes, keepdims=True)
        if self.samplewise_std_normalization:
            x = x / (x.std(axis=axes, keepdims=True) + np.float32(SMALL))
        for wanted, learnt, what in ((self.featurewise_center, self.mean, "featurewise_center"),
                                     (self.featurewise_std_normalization, self.std, "featurewise_std_normalization"),
                                     (self.zca_whitening, self.zca_whitening_matrix, "zca_whitening")):
            if wanted and learnt is None:
                warnings.warn(explain(f"ImageDataGenerator({what})", "no statistics", "a call of fit(pictures) first"), ConvoltWarning,
                              stacklevel=2)
        x = x if self.mean is None else x - self.mean
        x = x if self.std is None else x / (self.std + np.float32(SMALL))
        if self.zca_whitening_matrix is not None:
            x = (x.reshape(-1, math.prod(x.shape[-3:])) @ self.zca_whitening_matrix).reshape(x.shape)
        return x

    # -- batches ------------------------------------------------------------------------------------------------------------

    def flow(self, x: Array, y: Array | None = None, batch_size: int = 32, shuffle: bool = True, sample_weight: Array | None = None,
             seed: int | None = None, subset: str | None = None) -> ArrayFlow:
        """Returns batches of changed pictures, epoch after epoch without end.

        Args:
            x: pictures, (samples, height, width, channels).
            y, sample_weight: in the same order; batches are (x, y, weights), as far as they are given.
            batch_size: samples per batch; the last of an epoch may be smaller.
            shuffle: another order in each epoch.
            seed: of order and changes; 0 if None.
            subset: "training" or "validation", where the generator has a validation_split.

        Raises:
            StateError: `featurewise_…` was asked for and `fit` not called.
            ShapeError: lengths differ.
        """
        if self.featurewise_center and self.mean is None:
            raise StateError(explain("ImageDataGenerator.flow", "featurewise statistics that nobody learnt",
                                     "a call of fit(pictures) first"))
        arrays = [None if a is None else np.asarray(a) for a in (x, y, sample_weight)]
        count = len(np.asarray(x))
        if any(a is not None and len(a) != count for a in arrays):
            lengths = ", ".join(str(len(a)) for a in arrays if a is not None)
            raise ShapeError(explain("ImageDataGenerator.flow", f"arrays of {lengths} samples", "the same number of each"))
        if subset is not None:
            if subset not in ("training", "validation") or not self.validation_split:
                raise ArgumentError(explain("ImageDataGenerator.flow(subset)", repr(subset),
                                            "'training' or 'validation', with ImageDataGenerator(validation_split=...)"))
            split = int(count * self.validation_split)
            arrays = [None if a is None else a[:split] if subset == "validation" else a[split:] for a in arrays]
        pictures = self._outside(arrays[0])  # type: ignore[arg-type]
        return ArrayFlow(self._changed, pictures, arrays[1], arrays[2], batch_size, shuffle, seed or 0, self._whole)

    def flow_from_directory(self, directory: str | Path, target_size: tuple[int, int] = (256, 256), color_mode: str = "rgb",
                            classes: Sequence[str] | None = None, class_mode: str | None = "categorical", batch_size: int = 32,
                            shuffle: bool = True, seed: int | None = None, follow_links: bool = False, subset: str | None = None,
                            interpolation: str = "nearest", keep_aspect_ratio: bool = False) -> DirectoryFlow:
        """Returns batches of changed pictures of a folder with one folder per class, epoch after epoch without end.

        Args:
            directory: the folder.
            target_size: (height, width) that all pictures get.
            color_mode: "rgb", "rgba" or "grayscale".
            classes: the class folders in the order of their numbers; None: sorted by name.
            class_mode: see `DirectoryFlow`.
            batch_size, shuffle, seed: as in `flow`.
            follow_links: follow links to folders.
            subset: "training" or "validation", where the generator has a validation_split: of each class its first pictures are
                for validation.
            interpolation: of the resizing.
            keep_aspect_ratio: cut pictures to the target's shape before they are resized.

        Raises:
            ArgumentError: an argument is out of range.
            DataError: no such folder, or no pictures.
        """
        if self.featurewise_center and self.mean is None:
            raise StateError(explain("ImageDataGenerator.flow_from_directory", "featurewise statistics that nobody learnt",
                                     "a call of fit(pictures) first"))
        folder = ImageFolder(directory, target_size, color_mode, "inferred", classes, interpolation,
                             "crop" if keep_aspect_ratio else "stretch", follow_links)
        if subset is not None:
            if subset not in ("training", "validation") or not self.validation_split:
                raise ArgumentError(explain("ImageDataGenerator.flow_from_directory(subset)", repr(subset),
                                            "'training' or 'validation', with ImageDataGenerator(validation_split=...)"))
            held_out = np.zeros(len(folder), bool)
            for number in range(len(folder.class_names)):
                own = np.flatnonzero(folder.labels == number)
                held_out[own[: int(len(own) * self.validation_split)]] = True
            folder = folder.subset(np.flatnonzero(held_out if subset == "validation" else ~held_out))
        print(f"Found {len(folder)} pictures of {len(folder.class_names)} classes in {directory}.")
        return DirectoryFlow(self._changed_outside, folder, class_mode, batch_size, shuffle, seed or 0, self._whole)

    def _changed_outside(self, pictures: Tensor, index: Tensor | None, keys: Tensor) -> Array:
        """Changes decoded pictures, whose channels come last."""
        return self._changed(pictures if pictures.is_floating_point() else pictures.to(torch.float32), index, keys)

    def _changed(self, pictures: Tensor, index: Tensor | None, keys: Tensor) -> Array:
        """Returns the rows `index` of pictures, changed and standardized."""
        out = self._returned(self.augmentation(scaled=not self._by_hand).apply(pictures, index, keys).images)
        if not self._by_hand:
            return out
        return np.stack([self.standardize(picture) for picture in out])

    @property
    def _by_hand(self) -> bool:
        """Whether something is done that no `Augmentation` does."""
        return self.preprocessing_function is not None or self.samplewise_center or self.zca_whitening

    def _whole(self) -> Augmentation | None:
        """Returns all that happens to a picture as one `Augmentation`, which a training step can do; None where that is not all of it."""
        return None if self._by_hand or self.data_format != "channels_last" else self.augmentation()


class _Shifted(Transform):
    """Adds a number to all values."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def add(self, draft: Draft, u: Tensor) -> None:
        draft.shift_colours(draft.full(self.amount, u)[:, None])
