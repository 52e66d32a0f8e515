"""Samples that are read as they come, for sets that no disk holds: shards through the `webdataset` library, and what else is a stream."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from convolt.data.decode import check_decoding, decode_image, warn
from convolt.data.index import EXTENSIONS
from convolt.data.label_modes import LabelMode, check_label_mode, targets_of
from convolt.data.left_out import MAX_BAD_SHARE, BadFile, SkippedFilesWarning, write_skipped
from convolt.data.pictures import PIECE
from convolt.data.reader import ahead, default_workers
from convolt.data.shards import expand, label_of
from convolt.errors import ArgumentError, DataError, MissingPackageError, explain

FEW = 1000
"""Samples before which a share of bad ones says nothing."""

Sample = tuple[str, bytes | Callable[[], bytes], tuple[int, ...] | None]
Decoded = tuple[np.ndarray | BadFile, np.ndarray | None]


def from_webdataset(shards: str | Sequence[str], image_size: tuple[int, int], *, classes: int | None = None,
                    class_names: Sequence[str] | None = None, shuffle: int = 1000, color_mode: str = "rgb",
                    interpolation: str = "bilinear", fit: str = "stretch", workers: int | None = None,
                    label_mode: LabelMode = "int") -> ShardStream:
    """Returns shards as a stream of batches for `fit`, without storing them: from a disk, or from addresses that `webdataset` opens.

    Shards on a disk are better read by `from_tar`, which gives every order, a number of steps and a validation split.

    Args:
        shards: names, or a pattern such as "https://host/shards-{000..999}.tar". `pipe:` names, which run commands, are refused.
        image_size: (height, width) of all pictures.
        classes, class_names: number of classes, or their names; one of them where labels become rows.
        shuffle: samples among which the next one is drawn; 0 keeps the order. The order of the shards changes with each epoch as well.
        color_mode, interpolation, fit, workers: see `ImageFolder`.
        label_mode: the form in which `fit` gets the labels; see `ImageFolder`. With "multi_label" a picture may have several.

    Raises:
        ArgumentError: an argument is out of range, or a name runs a command.
        MissingPackageError: the package `webdataset` is not installed.
    """
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(explain("from_webdataset", "no webdataset", "the package webdataset",
                                          "Install it: pip install 'convolt[webdataset]'.")) from error
    check_decoding(color_mode, image_size, interpolation, fit)
    names = [name for given in ([shards] if isinstance(shards, str) else shards) for name in expand(str(given))]
    for name in names:
        if name.startswith("pipe:") or "|" in name:
            raise ArgumentError(explain("from_webdataset(shards)", repr(name), "names of files or addresses",
                                        "What runs a command is not opened."))
    if isinstance(shuffle, bool) or not isinstance(shuffle, int) or shuffle < 0:
        raise ArgumentError(explain("from_webdataset(shuffle)", shuffle, "a whole number from 0"))
    decoding = {"color_mode": color_mode, "image_size": image_size, "interpolation": interpolation, "fit": fit}
    count = len(class_names) if class_names is not None else classes
    return ShardStream(names, decoding, count, list(class_names or []), shuffle, default_workers(workers), label_mode)


class SampleStream(ABC):
    """Batches of pictures that come one after the other, decoded by several threads; a subclass says where they come from.

    Attributes:
        class_names: name of each label, as far as known.
        label_mode: the form of the labels; see `ImageFolder`.
        bad: what was met and left out so far, with the reason.
    """

    def __init__(self, decoding: dict[str, Any], classes: int | None, class_names: list[str], several: bool, shuffle: int,
                 workers: int, label_mode: LabelMode = "int") -> None:
        if label_mode in ("categorical", "binary", "multi_label") and classes is None:
            raise ArgumentError(explain(f'label_mode="{label_mode}"', "a stream whose number of classes is not known",
                                        "the number of classes", "Pass classes=… or class_names=…."))
        names = class_names or [str(n) for n in range(classes or 0)]
        check_label_mode(label_mode, np.zeros((0, len(names)) if several else 0), names)
        self.class_names, self.shuffle, self.workers, self.label_mode = class_names, shuffle, workers, label_mode
        self._decoding, self._classes, self._several = decoding, classes, several
        self._bad: dict[str, BadFile] = {}
        self._met = 0

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns what tells this stream from others."""

    @abstractmethod
    def samples(self, epoch: int, seed: int | None) -> Iterator[Sample]:
        """Yields (name, encoded picture or what reads it, labels or None), in an order that depends on (seed, epoch) alone.

        Args:
            epoch: number of the epoch, from 0.
            seed: None keeps the order of the source.
        """

    def _form(self) -> str:
        """Returns how pictures and labels are given, for fingerprints."""
        return f"{self._decoding}" + ("" if self.label_mode == "int" else f" {self.label_mode}")

    @property
    def bad(self) -> list[BadFile]:
        """What was met and left out so far, sorted by name."""
        return [self._bad[name] for name in sorted(self._bad)]

    @property
    def left_out(self) -> list[BadFile]:
        """The same; what is listed where a run is kept."""
        return self.bad

    def write_skipped(self, path: Path) -> None:
        """Writes what was left out as a table with the columns `path` and `reason`, whole or not at all."""
        write_skipped(path, self.bad)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        return self.open_epoch(0, 0, 32, None)

    def open_epoch(self, epoch: int, first: int, batch_size: int, seed: int | None) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields the batches of an epoch from batch number `first` on, in an order that depends on (seed, epoch) alone.

        Args:
            epoch: number of the epoch, from 0.
            first: number of the first batch that is wanted; those before it are read and thrown away.
            batch_size: pictures of a batch; the last may be smaller.
            seed: None keeps the order of the source.

        Yields:
            `(x, y)`, or `(x,)` without labels: uint8 (N, H, W, C), and int64 (N,) or float32 (N, classes).

        Raises:
            DataError: more than 1% cannot be used, a class has only bad pictures (known at the end), or a label is out of range.
        """
        return islice(self._batches(epoch, batch_size, seed), first, None)

    def _batches(self, epoch: int, batch_size: int, seed: int | None) -> Iterator[tuple[np.ndarray, ...]]:
        samples = self.samples(epoch, seed)
        pieces = iter(lambda: list(islice(samples, PIECE)), [])
        decoded = ahead(lambda piece: [self._decode(sample) for sample in piece], pieces, self.workers,
                        self.workers + 3 * -(-batch_size // PIECE))
        found = _Labels()
        good = ((picture, label) for results in decoded for picture, label in results
                if self._note(picture, label, found) and not isinstance(picture, BadFile))
        while batch := list(islice(good, batch_size)):
            x = np.stack([picture for picture, _ in batch])
            labels = [label for _, label in batch if label is not None]
            if labels and len(labels) < len(batch):
                raise DataError(explain(f"{self!r}", "pictures with and without labels", "KEY.cls beside each KEY.jpg, or beside none"))
            y = targets_of(np.stack(labels) if labels else None, self.label_mode, int(self._classes or 0))
            yield (x,) if y is None else (x, y)
        for label in sorted(found.bad - found.good):
            name = self.class_names[label] if label < len(self.class_names) else str(label)
            raise DataError(explain(f"{self!r}", f"only bad files in the class {name!r}", "at least one picture that can be read",
                                    f"{len(self._bad)} left out: " + "; ".join(f"{bad.path}: {bad.reason}" for bad in self.bad[:10])))

    def _decode(self, sample: Sample) -> Decoded:
        name, content, label = sample
        target = self._label(name, label)
        try:
            return decode_image(content() if callable(content) else content, **self._decoding), target
        except (DataError, OSError) as error:
            return BadFile(name, str(error)), target

    def _label(self, name: str, label: tuple[int, ...] | None) -> np.ndarray | None:
        if label is None:
            return None
        if self._classes is not None and any(not 0 <= n < self._classes for n in label):
            raise DataError(explain(name, f"the labels {label}", f"labels from 0 to {self._classes - 1}"))
        if not self._several:
            if len(label) != 1:
                raise DataError(explain(name, f"{len(label)} labels", "one", 'Pass label_mode="multi_label" for more.'))
            return np.asarray(label[0], np.int64)
        row = np.zeros(int(self._classes or 0), np.float32)
        row[list(label)] = 1
        return row

    def _note(self, picture: np.ndarray | BadFile, label: np.ndarray | None, found: _Labels) -> bool:
        """Counts a sample; returns whether it can be used."""
        self._met += 1
        if label is not None and label.ndim == 0:
            (found.bad if isinstance(picture, BadFile) else found.good).add(int(label))
        if not isinstance(picture, BadFile):
            return True
        if picture.path not in self._bad:
            self._bad[picture.path] = picture
            warn(f"{self!r}: left out {picture.path}: {picture.reason}", SkippedFilesWarning)
        if self._met >= FEW and len(self._bad) > MAX_BAD_SHARE * self._met:
            raise DataError(explain(f"{self!r}", f"more than {MAX_BAD_SHARE:.0%} bad samples ({len(self._bad)} of {self._met})",
                                    "pictures that can be read", f"The last: {picture.path}: {picture.reason}"))
        return False


class _Labels:
    """The classes of the good and of the bad pictures of a pass."""

    def __init__(self) -> None:
        self.good: set[int] = set()
        self.bad: set[int] = set()


class ShardStream(SampleStream):
    """Tar shards as a stream of batches; see `from_webdataset`."""

    def __init__(self, shards: list[str], decoding: dict[str, Any], classes: int | None, class_names: list[str], shuffle: int,
                 workers: int, label_mode: LabelMode) -> None:
        super().__init__(decoding, classes, class_names, label_mode == "multi_label", shuffle, workers, label_mode)
        self.shards = shards

    def __repr__(self) -> str:
        return f"ShardStream({len(self.shards)} shards)"

    def fingerprint(self) -> str:
        """Returns what tells this stream from others."""
        return f"{self.shards} {self._form()} {self.shuffle}"

    def samples(self, epoch: int, seed: int | None) -> Iterator[Sample]:
        """Yields the samples of an epoch: the shards in an order of their own, and the samples mixed within a buffer."""
        names = list(self.shards)
        if seed is None:
            yield from self._raw(names)
            return
        chance = np.random.Generator(np.random.PCG64([seed, epoch]))
        names = [names[i] for i in chance.permutation(len(names))]
        buffer: list[Sample] = []
        for sample in self._raw(names):
            if len(buffer) < self.shuffle:
                buffer.append(sample)
                continue
            place = int(chance.integers(len(buffer))) if buffer else 0
            if buffer:
                sample, buffer[place] = buffer[place], sample
            yield sample
        yield from (buffer[i] for i in chance.permutation(len(buffer)))

    def _raw(self, names: list[str]) -> Iterator[Sample]:
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander

        name = ""
        try:
            for name in names:
                with closing(gopen(name)) as stream:
                    for fields in group_by_keys(tar_file_expander([{"url": name, "stream": stream}])):
                        yield from _samples_of(fields)
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(explain(f"shard {name}", f"a stream that broke ({type(error).__name__}: {error})", "whole tar shards",
                                    "Look at the network, or fetch the shard again.")) from error


def _samples_of(fields: Mapping[str, Any]) -> Iterator[Sample]:
    """Yields the sample in the members of one key, if there is a picture among them."""
    key = str(fields.get("__key__"))
    picture = next((ending for ending in EXTENSIONS if ending[1:] in fields), None)
    if picture is not None:
        found = next((ending for ending in (".cls", ".json") if ending[1:] in fields), None)
        label = None if found is None else label_of(f"{key}{found}", fields[found[1:]], found)
        yield f"{key}{picture}", fields[picture[1:]], label
