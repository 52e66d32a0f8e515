"""What a search tries, in which order and together with what, and how much faster it must be."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from convolt.compiler.fuse import REWRITES, is_legal
from convolt.compiler.rows import WORTH, WORTH_IN_SLICES, Timed
from convolt.devices import multiplies_in_tiles

BFLOAT16 = "bfloat16"
REWRITE_NAMES = frozenset(rewrite.name for rewrite in REWRITES)
FIRST = ("onednn", "gemm", "winograd", "depthwise", "separable")
"""What wins most, by the first word of the name; products of patches where units for them are."""


def candidates_for(traced: fx.GraphModule | None, lower: bool) -> list[tuple[str, ...]]:
    """Returns what is tried at once, in turn.

    Args:
        traced: the model's graph; None where there is none, or nothing to rewrite.
        lower: whether bfloat16 is a candidate.
    """
    candidates = [BFLOAT16] * lower
    if traced is not None:
        in_turn = [*(r for r in reversed(REWRITES) if not r.leftover), *(r for r in REWRITES if r.leftover)]
        first = _first()
        in_turn.sort(key=lambda rewrite: first.index(word) if (word := rewrite.name.split()[0]) in first else len(first))
        candidates += [rewrite.name for rewrite in in_turn if rewrite.pays() and is_legal(traced, rewrite)]
    return _together(candidates)


def _together(candidates: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns what is tried at once, in turn: each by itself, but those of batch normalization with what follows it first all at once.

    A network has several of them, which win or lose for the same reasons; one after the other they take most of a search.
    """
    alone: list[tuple[str, ...]] = [(name,) for name in candidates]
    norms = tuple(name for name in candidates if name.startswith("bn+"))
    if len(norms) < 2:
        return alone
    first = sum(name.split()[0] in (BFLOAT16, *_first()) for name in candidates)
    return [*alone[:first], norms, *alone[first:]]


def worth_of(name: str, timed: Timed) -> float:
    """Returns how many times as fast a change must be.

    Batch normalization with what follows it makes fewer tensors: as fast is enough. ResNet-18's step, batch 128, float32, takes 1,160 MiB
    with it, 1,360 without. So it is for all rewrites where several single runs were compared, which scatter by more than what is worth a
    change: most of them win, and to refuse what was found to be 1% slower would lose more than to take it. What was measured in slices is
    known to about 1%.
    """
    names = name.split(", ")
    several = timed.single and len(timed.rounds) > 1
    if all(each.startswith("bn+") or (several and each in REWRITE_NAMES) for each in names):
        return 1.0
    return WORTH_IN_SLICES if timed.sliced and REWRITE_NAMES.issuperset(names) else WORTH


def _first() -> tuple[str, ...]:
    """Returns the first words of what is tried first on this machine."""
    return FIRST if multiplies_in_tiles() else tuple(word for word in FIRST if word != "gemm")
