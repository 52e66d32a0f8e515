"""What a search found out about its candidates: a row for each, and the rounds of a measurement."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

NEAR = 1.1  # a single round within this factor of what is worth a change may be noise
SCATTER = 1.04  # on a busy machine the ratio of a form to itself scatters by so much, where three single runs of each are compared
WORTH = 1.03  # a form must usually be this much faster to be taken
WORTH_IN_SLICES = 1.01  # where both were measured in slices, which tell that
SCATTER_IN_SLICES = 0.02  # near this is doubt: a form to itself scatters by 0.012 in one round, in several less by the root of their number


@dataclass(frozen=True)
class Row:
    """One candidate and what became of it.

    Attributes:
        name: "layers", "bfloat16" (for float32), a rewrite that was added to the form so far, "compiled" (that form by `torch.compile`),
            "layers compiled" (no rewrites, but compiled), or "graph of the whole step".
        seconds: of forward and backward of one batch; None where it was not measured.
        images_per_second: the same as a rate.
        loss_error, gradient_error: relative, against float64; None where not measured.
        verdict: "chosen" or "refused".
        why: in one line.
        memory: bytes that the forward pass keeps for the backward pass; None where not measured.
        doubt: whether the verdict may be wrong: the rounds of its measurement disagree, or there was no time left to try it.
        again: the verdict of a later run that measured anew and found the contrary; "" where there is none.
    """

    name: str
    seconds: float | None
    images_per_second: float | None
    loss_error: float | None
    gradient_error: float | None
    verdict: str
    why: str
    memory: int | None = None
    doubt: bool = False
    again: str = ""


def plain_row(name: str, verdict: str, why: str, seconds: float | None = None, batch_size: int = 0, doubt: bool = False) -> Row:
    """Returns a row without errors and memory."""
    return Row(name, seconds, batch_size / seconds if seconds else None, None, None, verdict, why, doubt=doubt)


@dataclass(frozen=True)
class Timed:
    """What was measured.

    Attributes:
        rounds: seconds of a candidate, seconds of what it is compared with.
        single: whether these are of single runs, of which noise may meet one and not the other.
        sliced: whether both ran in slices in turn, so that noise met both.
        worth: how many times as fast the candidate must be.
    """

    rounds: list[tuple[float, float]]
    single: bool = False
    sliced: bool = False
    worth: float = WORTH

    @property
    def seconds(self) -> float:
        """Of the candidate."""
        return min(after for after, _ in self.rounds)

    @property
    def before(self) -> float:
        """Of what it is compared with."""
        return min(before for _, before in self.rounds)

    @property
    def _ratios(self) -> list[float]:
        """How many times as fast the candidate is, in each round, smallest first."""
        return sorted(before / after for after, before in self.rounds)

    @property
    def ratio(self) -> float:
        """How many times as fast the candidate is: the median of the rounds, in each of which both meet one noise; of two the lower.

        Of single runs the fastest of each tell. In a simulation where a third of the runs are slowed down by up to a half, a form that is
        8% faster is found to be 3% faster in 93 of 100 trials by three runs of each; by the median of their ratios it was in 64.
        """
        if self.single:
            return self.before / self.seconds
        return statistics.median_low(self._ratios)

    @property
    def doubt(self) -> bool:
        """Whether noise may have decided: what was measured is near, or rounds, of many the middle half, disagree on the verdict."""
        if self.sliced:
            near = 1 + SCATTER_IN_SLICES / math.sqrt(len(self.rounds))
            return self.worth / near < self.ratio < self.worth * near
        if self.single or len(self.rounds) == 1:
            near = NEAR if len(self.rounds) == 1 else SCATTER
            return self.worth / near < self.ratio < self.worth * near
        ratios, apart = self._ratios, len(self.rounds) // 4
        return ratios[apart] < self.worth <= ratios[-1 - apart]
