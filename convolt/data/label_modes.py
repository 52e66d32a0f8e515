"""The forms in which labels are given to a loss: Keras's `label_mode`, and one for several labels of each picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from convolt.errors import ArgumentError, did_you_mean, explain

LabelMode = Literal["int", "categorical", "binary", "multi_label"] | None
LABEL_MODES = ("int", "categorical", "binary", "multi_label", None)


def check_label_mode(mode: str | None, labels: np.ndarray | None, class_names: Sequence[str]) -> None:
    """Raises `ArgumentError` unless there is such a mode and these labels can be given in it.

    Args:
        mode: one of `LABEL_MODES`.
        labels: int64 (N,), float32 (N, classes) of zeros and ones, or None.
        class_names: name of each label.
    """
    if mode not in LABEL_MODES:
        raise ArgumentError(explain("label_mode", mode, f"one of {list(LABEL_MODES)}",
                                    did_you_mean(str(mode), [known for known in LABEL_MODES if known])))
    if mode in ("categorical", "binary") and labels is not None and labels.ndim == 2:
        raise ArgumentError(explain(f'label_mode="{mode}"', "pictures with several labels each", "one label for each picture",
                                    'Rows of zeros and ones are given with label_mode="multi_label".'))
    if mode == "binary" and labels is not None and len(class_names) != 2:
        raise ArgumentError(explain('label_mode="binary"', f"the classes {list(class_names)}", "exactly two classes"))


def targets_of(labels: np.ndarray | None, mode: str | None, classes: int) -> np.ndarray | None:
    """Returns what a loss is given.

    Args:
        labels: int64 (N,), or float32 (N, classes) where a picture may have several, or None.
        mode: "int" gives them as they are, "categorical" and "multi_label" float32 (N, classes), "binary" float32 (N, 1), None nothing.
        classes: number of classes.
    """
    if labels is None or mode is None:
        return None
    if mode == "categorical" or (mode == "multi_label" and labels.ndim == 1):
        one_hot = np.zeros((len(labels), classes), np.float32)
        one_hot[np.arange(len(labels)), labels] = 1
        return one_hot
    return labels[:, None].astype(np.float32) if mode == "binary" else labels
