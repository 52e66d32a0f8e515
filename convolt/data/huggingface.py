"""Hugging Face `datasets` objects as pictures: their encoded bytes go through the same guarded decoder as files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convolt.data.decode import check_decoding
from convolt.data.folder import read_file
from convolt.data.label_modes import LabelMode
from convolt.data.pictures import Pictures
from convolt.data.reader import default_workers
from convolt.data.stream import Sample, SampleStream
from convolt.errors import ArgumentError, DataError, MissingPackageError, did_you_mean, explain

IMAGE_COLUMNS = ("image", "img", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


BUFFER = 1000
"""Samples of a stream among which the next one is drawn."""

_KINDS = {"datasets.arrow_dataset": "Dataset", "datasets.iterable_dataset": "IterableDataset", "datasets.dataset_dict": "DatasetDict"}


def is_huggingface(value: Any) -> bool:
    """Whether `value` is a set of the package `datasets`, which is not imported: whoever has one has imported it."""
    kinds = [getattr(sys.modules[home], kind) for home, kind in _KINDS.items() if home in sys.modules]
    return isinstance(value, tuple(kinds))


def from_huggingface(dataset: Any, image_column: str | None = None, label_column: str | None = None, *,
                     image_size: tuple[int, int] | None = None, color_mode: str = "rgb", interpolation: str = "bilinear",
                     fit: str = "stretch", workers: int | None = None, label_mode: LabelMode = "int") -> Pictures | HuggingFaceStream:
    """Returns the pictures of a `datasets.Dataset`, such as `datasets.load_dataset("beans", split="train")`.

    The names of a `ClassLabel` column are kept; a column of lists of labels becomes one of zeros and ones. A `datasets.IterableDataset`
    (`streaming=True`) becomes a stream of batches, in an order that `fit` draws anew for each epoch within a buffer of 1,000 pictures.

    Args:
        dataset: with a column of the type `Image`; one split.
        image_column: None: the only column of that type.
        label_column: None: the only column of the type `ClassLabel` (or a list of such), else "label", "labels", "class" or "target",
            or no labels if there is none.
        image_size, color_mode, interpolation, fit, workers: see `ImageFolder`; a stream needs `image_size`.
        label_mode: the form in which `fit` gets the labels; see `ImageFolder`.

    Raises:
        ArgumentError: it is not such a dataset, has no such column, or a transform of its own, which would not be run.
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
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise ArgumentError(explain("from_huggingface(dataset)", f"a {type(dataset).__name__}",
                                    "a datasets.Dataset or datasets.IterableDataset"))
    check_decoding(color_mode, image_size, interpolation, fit)
    features = _features(dataset)
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    picture_column = _column(image_column, images, IMAGE_COLUMNS, features, "image_column")
    if picture_column not in images:
        raise ArgumentError(explain("from_huggingface(image_column)", f"{picture_column!r}, of the type {features[str(picture_column)]}",
                                    "a column of the type Image"))
    classes = [name for name, feature in features.items() if isinstance(_inner(feature), datasets.ClassLabel)]
    wanted = _column(label_column, classes, LABEL_COLUMNS, features, "label_column", needed=False)
    dataset = dataset.with_format(None)
    columns = [str(picture_column)] if wanted is None else [str(picture_column), wanted]
    raw = dataset.select_columns(columns).cast_column(picture_column, datasets.Image(decode=False))
    if isinstance(dataset, datasets.IterableDataset):
        if image_size is None:
            raise ArgumentError(explain("from_huggingface(image_size)", "None with a stream", "(height, width)",
                                        "The size of all pictures cannot be known before they come: image_size=(224, 224)."))
        decoding = {"color_mode": color_mode, "image_size": image_size, "interpolation": interpolation, "fit": fit}
        return HuggingFaceStream(raw, columns, features, decoding, default_workers(workers), label_mode)
    labels, names = _labels(dataset, wanted, features)
    found = HuggingFacePictures(raw.select_columns(columns[:1]), columns[0], labels, names, image_size, color_mode, interpolation, fit,
                                workers)
    found.named, found.label_mode = wanted is not None and bool(_names(features[wanted])), label_mode
    return found


def _features(dataset: Any) -> dict[str, Any]:
    """Returns the types of the columns."""
    if dataset.features is None:
        raise ArgumentError(explain("from_huggingface(dataset)", "a stream whose columns have no types yet", "columns with types",
                                    "Name them: dataset.cast(datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(…)))."))
    if getattr(dataset, "format", {}).get("type") == "custom":
        raise ArgumentError(explain("from_huggingface(dataset)", "a set with a transform of its own", "the pictures themselves",
                                    "dataset.with_format(None) leaves the transform out, and fit(augment=…) changes pictures on the "
                                    "device; or give fit a DataLoader, which runs the transform."))
    return dict(dataset.features)


def _names(feature: Any) -> list[str]:
    return list(getattr(_inner(feature), "names", None) or [])


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
    names = _names(features[column])
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
        return _content(self.files[index], self._dataset[int(self._rows[index])][self._column])


def _content(name: str, cell: Any) -> bytes:
    """Returns the encoded picture of a cell: its bytes, or the local file that it names."""
    if cell is None:
        raise DataError(explain(name, "no picture", "one"))
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    path = str(cell.get("path") or "")
    if "://" in path or "::" in path:
        raise DataError(explain(name, f"the address {path!r}", "bytes, or a local file"))
    return read_file(Path(path))


class HuggingFaceStream(SampleStream):
    """The pictures of a `datasets.IterableDataset` as a stream of batches; see `from_huggingface`."""

    def __init__(self, dataset: Any, columns: list[str], features: dict[str, Any], decoding: dict[str, Any], workers: int,
                 label_mode: LabelMode) -> None:
        feature = features[columns[1]] if len(columns) > 1 else None
        names = _names(feature)
        several = feature is not None and _inner(feature) is not feature
        if several and not names:
            raise ArgumentError(explain("from_huggingface(dataset)", f"a stream with lists of numbers as labels ({columns[1]!r})",
                                        "lists of the type ClassLabel", "How many classes there are is not known before all have come."))
        super().__init__(decoding, len(names) or None, names, several, BUFFER, workers, label_mode)
        self._dataset, self._columns = dataset, columns

    def __repr__(self) -> str:
        return f"HuggingFaceStream({self._dataset.info.dataset_name or 'of ' + ', '.join(self._columns)})"

    def fingerprint(self) -> str:
        """Returns what tells this stream from others, as far as it can be known."""
        return f"{self!r} {self._dataset.info.version} {self._dataset.split} {self._columns} {self.class_names} {self._form()}"

    def samples(self, epoch: int, seed: int | None) -> Iterator[Sample]:
        """Yields the samples of an epoch, mixed by the set itself: its shards, and within a buffer."""
        dataset = self._dataset if seed is None else self._dataset.shuffle(seed=seed, buffer_size=self.shuffle)
        dataset.set_epoch(epoch)
        for row, cells in enumerate(dataset):
            cell = cells[self._columns[0]]
            name = (cell or {}).get("path") or f"row {row} of epoch {epoch + 1}"
            yield name, _reader(name, cell), None if len(self._columns) == 1 else _label_of(name, cells[self._columns[1]])


def _reader(name: str, cell: Any) -> Callable[[], bytes]:
    return lambda: _content(name, cell)


def _label_of(name: str, value: Any) -> tuple[int, ...]:
    labels = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in labels):
        raise DataError(explain(f"dataset, {name}", f"the label {value!r}", "a whole number from 0",
                                "Texts become classes with dataset.cast_column(name, datasets.ClassLabel(names=…)); rows without labels go "
                                "with filter."))
    return labels
