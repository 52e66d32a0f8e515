"""Ctrl-C and SIGTERM while checkpoints are kept.

The first is noted, so that the step in hand is finished and a checkpoint written; the second stops the program where it is.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopAtOnce(KeyboardInterrupt):
    """A second Ctrl-C: nothing more is saved."""


class Signals:
    """Notes Ctrl-C and SIGTERM between `watch` and `restore`.

    Attributes:
        received: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._passed_on = False
        self._process = os.getpid()

    @property
    def pending(self) -> bool:
        """Whether a signal has come and has not been passed on."""
        return self.received is not None and not self._passed_on

    def watch(self) -> None:
        """Sets the handlers, in the main thread; Python allows it in no other, where this does nothing."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, forked with this handler: Ctrl-C is its parent's affair
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            raise StopAtOnce
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def restore(self) -> None:
        """Gives the handlers from before back; may be called twice."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def pass_on(self) -> None:
        """Gives the noted signal to the handler from before: SIGTERM ends the program, Ctrl-C raises `KeyboardInterrupt`."""
        number = self.received
        self._passed_on = True
        self.restore()
        if number is not None:
            signal.raise_signal(number)
        raise KeyboardInterrupt  # where a handler of the user's own only took note
