"""What is in a set of pictures, and what is wrong with it: sizes, broken files, duplicates, leaks between training and validation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from convolt.data.decode import decode_image
from convolt.data.left_out import BadFile
from convolt.data.pictures import Pictures
from convolt.data.reader import ahead
from convolt.errors import DataError

SIDE = 8
BYTES = 2 * SIDE * SIDE // 8
NEAR = 6
"""Bits of 128 in which the hashes of copies may differ."""

MOST_COMPARED = 2000
"""Rows that one is compared with in each piece: a bound on the time that thousands of nearly flat pictures take."""

FLAT = 2
"""Pixels within which a picture is one colour, whose hash says nothing."""


@dataclass
class PartSurvey:
    """One part of a set.

    Attributes:
        pictures: number of files.
        classes: pictures of each class.
        sizes: (height, width) as "H×W" → number of pictures, the commonest first.
        broken: files that cannot be decoded, with the reason.
        ignored: links that are not followed, and why.
        duplicates: groups of files with the same picture; `conflicts` are those whose labels differ.
    """

    pictures: int
    classes: dict[str, int]
    sizes: dict[str, int]
    broken: list[BadFile]
    ignored: list[BadFile]
    duplicates: list[list[str]]
    conflicts: list[list[str]]


@dataclass
class Survey:
    """What `convolt data check` finds.

    Attributes:
        parts: by name.
        leaks: (file of training, file of another part) with the same picture, as "PART/FILE".
        empty_classes: (part, class) without pictures in it.
    """

    parts: dict[str, PartSurvey]
    leaks: list[tuple[str, str]]
    empty_classes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """Number of findings that harm a training: broken files, conflicting labels, leaks, empty classes."""
        return sum(len(part.broken) + len(part.conflicts) for part in self.parts.values()) + len(self.leaks) + len(self.empty_classes)

    def as_json(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {**asdict(self), "faults": self.faults}


@dataclass(frozen=True)
class Look:
    """What one picture is: its size, and a hash that copies share also when they were resized or encoded anew."""

    size: tuple[int, int]
    hash: np.ndarray


def survey(parts: Mapping[str, Pictures]) -> Survey:
    """Decodes every picture of every part once.

    Two pictures count as the same if their perceptual hashes differ in at most `NEAR` of 128 bits: 64 bits that say where brightness
    rises from one of 8 × 9 fields to the next (difference hash, N. Krawetz 2013) and 64 that say the same downwards. Pictures of one
    colour have none.
    """
    found: dict[str, PartSurvey] = {}
    where: list[tuple[str, int]] = []
    codes: list[np.ndarray] = []
    seen: dict[str, list[Look | BadFile]] = {}
    for name, pictures in parts.items():
        looks = list(ahead(lambda index, pictures=pictures: _look(pictures, index), range(len(pictures)),  # type: ignore[misc]
                           pictures.workers, 64))
        seen[name] = looks
        for index, look in enumerate(looks):
            if isinstance(look, Look) and look.hash.any():
                where.append((name, index))
                codes.append(look.hash)
    groups = [[where[i] for i in group] for group in alike(np.asarray(codes, np.uint8).reshape(-1, BYTES))]
    for name, pictures in parts.items():
        own = [[index for part, index in group if part == name] for group in groups]
        found[name] = _part(pictures, seen[name], [group for group in own if len(group) > 1])
    leaks = [(f"train/{parts['train'].files[a]}", f"{name}/{parts[name].files[b]}") for group in groups
             for first, a in group if first == "train" for name, b in group if name != "train"]
    empty = [(name, label) for name, part in found.items() for label, count in part.classes.items() if not count]
    return Survey(found, sorted(leaks), empty)


def _part(pictures: Pictures, looks: list[Look | BadFile], groups: list[list[int]]) -> PartSurvey:
    sizes = Counter(f"{look.size[0]}×{look.size[1]}" for look in looks if isinstance(look, Look))
    labels = pictures.labels
    conflicts = [g for g in groups if labels is not None and len(np.unique(labels[g], axis=0)) > 1]
    counts: np.ndarray = np.zeros(len(pictures.class_names), int)
    if labels is not None:
        counts = np.bincount(labels, minlength=len(counts)) if labels.ndim == 1 else labels.sum(axis=0).astype(int)

    def names(group: list[int]) -> list[str]:
        return [pictures.files[i] for i in group]

    return PartSurvey(len(pictures), dict(zip(pictures.class_names, counts.tolist(), strict=True)), dict(sizes.most_common()),
                      [look for look in looks if isinstance(look, BadFile)], list(pictures.ignored),
                      sorted(map(names, groups)), sorted(map(names, conflicts)))


def _look(pictures: Pictures, index: int) -> Look | BadFile:
    try:
        content = pictures.content(index)
        grey = decode_image(content, "grayscale")
        return Look((grey.shape[0], grey.shape[1]), perceptual_hash(grey[:, :, 0]))
    except (DataError, OSError) as error:
        return BadFile(pictures.files[index], str(error))


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """Returns 16 bytes that copies of a picture nearly share; zeros for a picture of one colour.

    Args:
        grey: uint8 (H, W).
    """
    from PIL import Image

    if int(grey.max()) - int(grey.min()) <= FLAT:
        return np.zeros(BYTES, np.uint8)
    image = Image.fromarray(grey)
    across, down = (np.asarray(image.resize(size, Image.Resampling.BOX)).astype(int) for size in ((SIDE + 1, SIDE), (SIDE, SIDE + 1)))
    return np.packbits(np.concatenate([(np.diff(across, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()]))


def alike(codes: np.ndarray) -> list[list[int]]:
    """Returns groups of rows that differ in at most `NEAR` bits, by way of others too; rows like no other are left out.

    Rows that differ in so few bits agree in at least one of eight pieces of 16 bits, so only rows that share a piece are compared.

    Args:
        codes: uint8 (N, 16).
    """
    leader = np.arange(len(codes))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = int(leader[row])
        return row

    for piece in np.ascontiguousarray(codes).view("<u2").T:
        order = np.argsort(piece, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(piece[order]) != 0]) if len(order) else order
        for group in np.split(order, starts[1:]):
            for place, row in enumerate(group[:-1]):
                others = group[place + 1 : place + 1 + MOST_COMPARED]
                near = np.bitwise_count(codes[others] ^ codes[row]).sum(axis=1) <= NEAR
                for other in others[near]:
                    leader[max(find(int(row)), find(int(other)))] = min(find(int(row)), find(int(other)))
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(codes)):
        groups[find(row)].append(row)
    return [group for group in groups.values() if len(group) > 1]
