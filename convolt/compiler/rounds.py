"""How a search compares two forms: in turn, in rounds that both meet, so that a busy second of the machine does not decide.

Recorded runs are done in slices of both in turn (`slices.py`). Of others, short ones have many rounds, of a long one single runs are
compared, and of a very long one what was measured is not measured again.
"""

from __future__ import annotations

from convolt.compiler.measure import Form, Probe
from convolt.compiler.rows import Timed

LONG_STEP = 0.2  # seconds; of longer ones single runs are compared, or single rounds in slices, and what cannot win is not measured
DECIDED = 1.07  # times as slow in a long step: another form that saves less of the same need not be measured
CLOSE = (0.9, 1.25)  # times as fast, between which two single runs are not enough
VERY_CLOSE = (0.95, 1.05)  # between which three are not, but five, of runs that take less than `FIVE_RUNS` seconds each
FIVE_RUNS = 0.5
HOPELESS = 1.5  # times as slow in a single run of a long step: that is not worth another one
VERY_LONG_STEP = 1.0  # seconds; without slices what is measured is one run, and what was measured is not measured again
ROUND_SECONDS = 0.06  # of a candidate, and of what it is compared with, in each round
ROUNDS_SECONDS = 2.0  # of all rounds of a candidate, at least three of those that are not in slices
MOST_ROUNDS = 15
SLICED_ROUND_SECONDS = 0.15  # of each form in a round in slices, or one run
SHORTEST_RUN = 0.001  # for which they are counted
CLOSE_IN_SLICES = (0.96, 1.06)  # times as fast, between which the fewest are not enough
FAR = 1.25  # times as fast, or as slow: if all rounds say so, two or more of them decide
FAR_SECONDS = (0.1, 0.6)  # that they take together, for a faster and a slower form: two short ones are over within one busy moment

Rounds = list[tuple[float, float]]
"""Seconds of a candidate, and of what it is compared with."""


def step_seconds(probe: Probe, form: Form, halve: bool) -> float:
    """Returns the seconds of a step; where it may halve and the step is long, no run takes more than half of a batch, now and later."""
    if halve and probe.halve() and probe.seconds(*form, budget=0.0, least=1) < 2 * LONG_STEP:
        probe.whole()
    return probe.seconds(*form, budget=0.3, least=1)


def in_turn(probe: Probe, candidate: Form, best: Form, seconds: float, known: float | None = None) -> Timed:
    """Measures a candidate and the best form so far.

    Args:
        probe: runs them.
        candidate, best: what is compared.
        seconds: that a step takes, about.
        known: of the best form, where that was measured; very long steps are not measured twice.
    """
    run = seconds / probe.parts
    sliced = _in_slices(probe, candidate, best, run)
    if sliced:
        return Timed(sliced, sliced=True)
    if run >= VERY_LONG_STEP:
        return Timed([(_once(probe, candidate), known or _once(probe, best))], single=True)
    if run >= LONG_STEP:
        return Timed(_single_runs(probe, candidate, best, 5 if run < FIVE_RUNS else 3), single=True)
    return Timed(_many_rounds(probe, candidate, best))


def _once(probe: Probe, form: Form) -> float:
    return probe.seconds(*form, budget=0.0, least=1)


def _single_runs(probe: Probe, candidate: Form, best: Form, most: int) -> Rounds:
    """Single runs of both in turn, two of each, three if they are close, `most` if they are very close."""
    times: Rounds = []
    while len(times) < min(most, _wanted(times)):
        times.append((_once(probe, candidate), _once(probe, best)))
        if times[-1][0] > HOPELESS * times[-1][1]:
            break
    return times


def _wanted(times: Rounds) -> int:
    """Returns how many single runs there are to be, by those that were made."""
    if len(times) < 2:
        return 2
    ratio = Timed(times, single=True).ratio
    return 5 if len(times) > 2 and VERY_CLOSE[0] < ratio < VERY_CLOSE[1] else 3 if CLOSE[0] < ratio < CLOSE[1] else 2


def _in_slices(probe: Probe, candidate: Form, best: Form, run: float) -> Rounds:
    """Rounds in slices, in each of which both meet the same noise; one of a long run if it is not close; none without slices."""
    runs = max(1, round(SLICED_ROUND_SECONDS / max(run, SHORTEST_RUN)))
    times: Rounds = []
    while len(times) < (1 if run >= LONG_STEP else 2) or (_are_close(times) and runs * sum(map(sum, times)) < ROUNDS_SECONDS * probe.parts):
        found = probe.in_slices(candidate, best, runs, HOPELESS)
        if found is None:
            return []
        times.append(found)
    return times


def _are_close(times: Rounds) -> bool:
    return CLOSE_IN_SLICES[0] < Timed(times, sliced=True).ratio < CLOSE_IN_SLICES[1]


def _many_rounds(probe: Probe, candidate: Form, best: Form) -> Rounds:
    """Up to `MOST_ROUNDS`, fewer where all say that the candidate is far faster, or slower."""
    times: Rounds = []
    began = probe.clock()
    while len(times) < 3 or (len(times) < MOST_ROUNDS and probe.clock() - began < ROUNDS_SECONDS):
        seconds = probe.seconds(*candidate, budget=ROUND_SECONDS)
        times.append((seconds, probe.seconds(*best, budget=ROUND_SECONDS)))
        told = len(times) > 1 and probe.clock() - began >= FAR_SECONDS[times[-1][0] > times[-1][1]]
        if told and not any(1 / FAR < before / after < FAR for after, before in times):
            break
    return times
