"""A loader's worker that is killed: the broken connection and PyTorch's signal come in either order, and what is told is the same."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from convolt.errors import DataError
from convolt.training.inputs import lost_workers_explained

LOADER = SimpleNamespace(num_workers=1)


@pytest.fixture
def signal_to_come() -> Iterator[None]:
    """A signal in a tenth of a second, whose handler raises what PyTorch's raises."""
    def handler(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_after_the_broken_connection_is_not_raised_later(signal_to_come: None) -> None:
    with pytest.raises(DataError, match="killed or crashed"), lost_workers_explained(LOADER):
        raise ConnectionResetError
    time.sleep(0.3)  # where it would be raised


def test_a_signal_before_it_is_told_alike(signal_to_come: None) -> None:
    with pytest.raises(DataError, match="killed or crashed"), lost_workers_explained(LOADER):
        time.sleep(5)


def test_other_broken_connections_are_left_as_they_are() -> None:
    with pytest.raises(ConnectionResetError), lost_workers_explained([1, 2]):
        raise ConnectionResetError
