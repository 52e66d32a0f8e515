"""Splitting and ordering samples, the same on every machine and with every version of NumPy."""

from __future__ import annotations

import numpy as np

from convolt.errors import ArgumentError, DataError, explain


def fixed_permutation(count: int, seed: int = 0) -> np.ndarray:
    """Returns the numbers below `count` in an order that depends on the seed alone.

    `RandomState` is used because NumPy promises that its streams never change.
    """
    return np.random.RandomState(seed).permutation(count)


def stratified_split(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples in two so that each class is split alike.

    Args:
        labels: class of each sample, shape (N,).
        fraction: share of the second part, between 0 and 1.
        seed: decides which samples go where.

    Returns:
        Indices of the first and of the second part, each in ascending order. Of a class with two samples or more
        each part gets at least one.

    Raises:
        ArgumentError: `fraction` is not between 0 and 1.
        DataError: one of the parts would be empty.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ArgumentError(explain("validation_split", fraction, "a number between 0 and 1", "Try 0.1."))
    order = fixed_permutation(len(labels), seed)
    second: list[np.ndarray] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = round(len(members) * fraction)
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        second.append(members[:count])
    chosen = np.zeros(len(labels), bool)
    chosen[np.concatenate(second)] = True
    if chosen.all() or not chosen.any():
        raise DataError(explain("validation_split", f"{fraction} of {len(labels)} samples", "samples in both parts"))
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
