"""Hugging Face `datasets` objects as pictures: their encoded bytes go through the same guarded decoder as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convolt.data.folder import read_file
from convolt.data.pictures import Pictures
from convolt.errors import ArgumentError, DataError, MissingPackageError, did_you_mean, explain

IMAGE_COLUMNS = ("image", "img", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def from_huggingface(dataset: Any, image_column: str | None = None, label_column: str | None = None, *,
                     image_size: tuple[int, int] | None = None, color_mode: str = "rgb", interpolation: str = "bilinear",
                     fit: str = "stretch", workers: int | None = None) -> Pictures:
    """Returns the pictures of a `datasets.Dataset`, such as `datasets.load_dataset("beans", split="train")`.

    The names of a `ClassLabel` column are kept; a column of lists of labels becomes one of zeros and ones.

    Args:
        dataset: with a column of the type `Image`; one split, and not a stream.
        image_column: None: the only column of that type.
        label_column: None: the only column of the type `ClassLabel` (or a list of such), else "label", "labels", "class" or "target",
            or no labels if there is none.
        image_size, color_mode, interpolation, fit, workers: see `ImageFolder`.

    Raises:
        ArgumentError: it is not such a dataset, or has no such column.
        DataError: labels are missing or no whole numbers.
        MissingPackageError: the package `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(explain("from_huggingface", "no datasets", "the package datasets",
                                          "Install it: pip install 'convolt[huggingface]'.")) from error
    if isinstance(dataset, dict):
        raise ArgumentError(explain("from_huggingface(dataset)", f"the splits {list(dataset)}", "one split",
                                    f"Pass dataset[{next(iter(dataset), 'train')!r}]."))
    if not isinstance(dataset, datasets.Dataset):
        raise ArgumentError(explain("from_huggingface(dataset)", f"a {type(dataset).__name__}", "a datasets.Dataset",
                                    "A stream (IterableDataset) gives no random order: load it without streaming=True."))
    features = dict(dataset.features)
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    picture_column = _column(image_column, images, IMAGE_COLUMNS, features, "image_column")
    if picture_column not in images:
        raise ArgumentError(explain("from_huggingface(image_column)", f"{picture_column!r}, of the type {features[str(picture_column)]}",
                                    "a column of the type Image"))
    classes = [name for name, feature in features.items() if isinstance(_inner(feature), datasets.ClassLabel)]
    wanted = _column(label_column, classes, LABEL_COLUMNS, features, "label_column", needed=False)
    labels, names = _labels(dataset, wanted, features)
    raw = dataset.select_columns([picture_column]).cast_column(picture_column, datasets.Image(decode=False))
    return HuggingFacePictures(raw, str(picture_column), labels, names, image_size, color_mode, interpolation, fit, workers)


def _inner(feature: Any) -> Any:
    """Returns the type of a list's entries, or the type itself."""
    return getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)


def _column(given: str | None, typed: list[str], usual: tuple[str, ...], features: dict[str, Any], argument: str,
            needed: bool = True) -> str | None:
    if given is not None:
        if given not in features:
            raise ArgumentError(explain(f"from_huggingface({argument})", repr(given), f"one of the columns {list(features)}",
                                        did_you_mean(given, features)))
        return given
    if len(typed) == 1:
        return typed[0]
    if (found := next((name for name in usual if name in (typed or features)), None)) is not None:
        return found
    if typed or needed:
        raise ArgumentError(explain(f"from_huggingface({argument})", f"the columns {typed or list(features)}", "one that is named",
                                    f"Pass {argument}=…."))
    return None


def _labels(dataset: Any, column: str | None, features: dict[str, Any]) -> tuple[np.ndarray | None, list[str]]:
    if column is None:
        return None, []
    values = list(dataset[column])
    names = list(getattr(_inner(features[column]), "names", None) or [])
    if values and isinstance(values[0], (list, tuple)):
        count = len(names) or 1 + max((int(n) for row in values for n in row), default=0)
        several = np.zeros((len(values), count), np.float32)
        for row, found in enumerate(values):
            if any(not 0 <= int(n) < count for n in found):
                raise DataError(explain(f"dataset, row {row}", f"the labels {found}", f"labels from 0 to {count - 1}"))
            several[row, [int(n) for n in found]] = 1
        return several, names or [str(n) for n in range(count)]
    wrong = next((row for row, n in enumerate(values) if isinstance(n, bool) or not isinstance(n, int) or n < 0), None)
    if wrong is not None:
        raise DataError(explain(f"dataset, row {wrong}", f"the label {values[wrong]!r}", "a whole number from 0",
                                "Texts become classes with dataset.class_encode_column(name); rows without labels go with filter."))
    count = len(names) or max(values, default=0) + 1
    if max(values, default=0) >= count:
        raise DataError(explain("dataset: labels", f"the label {max(values)}", f"labels from 0 to {count - 1}"))
    return np.asarray(values, np.int64), names or [str(n) for n in range(count)]


class HuggingFacePictures(Pictures):
    """The pictures of a `datasets.Dataset`; see `from_huggingface`."""

    def __init__(self, dataset: Any, column: str, labels: np.ndarray | None, class_names: list[str], image_size: tuple[int, int] | None,
                 color_mode: str, interpolation: str, fit: str, workers: int | None) -> None:
        title = f"dataset {dataset.info.dataset_name or dataset._fingerprint}"
        super().__init__(title, [f"row {n}" for n in range(len(dataset))], labels, class_names, image_size, color_mode, interpolation,
                         fit, workers)
        self._dataset, self._column = dataset, column

    def fingerprint(self) -> str:
        """Returns what tells this set from others, with the dataset's own fingerprint."""
        return f"{super().fingerprint()} {self._dataset._fingerprint}"

    def content(self, index: int) -> bytes:
        """Returns the encoded picture: its bytes in the table, or the local file that the table names."""
        cell = self._dataset[int(self._rows[index])][self._column]
        if cell is None:
            raise DataError(explain(self.files[index], "no picture", "one"))
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        path = str(cell.get("path") or "")
        if "://" in path or "::" in path:
            raise DataError(explain(self.files[index], f"the address {path!r}", "bytes, or a local file"))
        return read_file(Path(path))
