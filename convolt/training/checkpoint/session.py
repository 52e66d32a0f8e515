"""The checkpoints of one call of `fit`: its folder, locked, and what was found in it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from convolt import __version__
from convolt.compiler import Plan
from convolt.errors import ArgumentError, CheckpointError, ConvoltWarning, explain
from convolt.training.checkpoint.capture import Cursor, Live
from convolt.training.checkpoint.format import FORMAT_VERSION
from convolt.training.checkpoint.keeper import CheckpointKeeper
from convolt.training.checkpoint.lock import FolderLock
from convolt.training.checkpoint.options import Checkpoint
from convolt.training.checkpoint.settings import plain, require_same
from convolt.training.checkpoint.store import Saved, Store
from convolt.training.checkpoint.writer import Writer


class CheckpointWarning(ConvoltWarning):
    """A checkpoint is damaged, and an earlier one takes its place."""


class Session:
    """Opens the folder of a run for one `fit`; `close` gives it back.

    Args:
        options: the folder, and when to save.
        resume: "auto", True or False.
        allowed: settings that may differ from the saved ones.

    Attributes:
        saved: the checkpoint to go on from, or None.

    Raises:
        CheckpointError: the folder cannot be written, another training uses it, or there is nothing whole to go on from.
    """

    def __init__(self, options: Checkpoint, resume: str | bool, allowed: Sequence[str] = ()) -> None:
        if isinstance(allowed, str):
            raise ArgumentError(explain("fit(resume_allow)", repr(allowed), "a list of names", f"Write [{allowed!r}]."))
        self.options = options
        self.allowed = tuple(allowed) + (("length of schedule",) if "epochs" in allowed else ())
        self.store = Store(options.path, options.keep)
        self.saved: Saved | None = None
        self._keeper: CheckpointKeeper | None = None
        self._threads: int | None = None
        self._closed = False
        self.store.make()
        self._lock = FolderLock(options.path)
        self._lock.acquire()
        try:
            self.store.clean()
            self._find(resume)
        except BaseException:
            self._lock.release()
            raise

    def _find(self, resume: str | bool) -> None:
        if resume is False:
            self.store.replace_all()
            return
        self.saved = self.store.load(lambda text: warnings.warn(text, CheckpointWarning, stacklevel=6))
        if self.saved is None and resume is True:
            raise CheckpointError(explain(f"checkpoints in {os.fspath(self.options.path)!r}", "none", "one to resume from",
                                          "resume='auto' starts from the beginning then."))

    # -- what a resumed training takes from the checkpoint -----------------------------------------------------------

    @property
    def cursor(self) -> Cursor | None:
        """The place of the checkpoint, or None."""
        return None if self.saved is None else Cursor.from_json(self.saved.state.get("cursor"))

    @property
    def batch_size(self) -> int | None:
        """The batch size of the saved training, or None."""
        size = None if self.saved is None else dict(self.saved.state.get("settings") or {}).get("batch_size")
        return size if type(size) is int and size > 0 else None

    def order_seed(self, drawn: int | None, given: bool) -> int | None:
        """Returns the seed of the order of samples: the saved one, unless the user gave one."""
        if self.saved is None or given:
            return drawn
        seed = self.saved.state.get("order_seed")
        if seed is not None and (type(seed) is not int or seed < 0):
            raise CheckpointError(explain(f"{self.saved.path}: order_seed", repr(seed), "a whole number from 0, or null"))
        return seed

    @property
    def plan(self) -> Plan | None:
        """The saved plan; None where there is none, or where it had not been made yet."""
        plan = self.saved_plan
        return None if plan is None or plan.provisional else plan

    @property
    def saved_plan(self) -> Plan | None:
        """The saved plan, also that of the first step alone; None without a checkpoint."""
        if self.saved is None:
            return None
        try:
            return Plan.from_json(dict(self.saved.state["plan"]))
        except (KeyError, TypeError, ValueError) as error:
            got = f"{type(error).__name__}: {error}"
            raise CheckpointError(explain(f"{self.saved.path}: plan", got, "a plan of this version")) from error

    def describe(self, epochs: int) -> str:
        """Returns in a line what the training goes on from."""
        assert self.saved is not None
        cursor, state = Cursor.from_json(self.saved.state.get("cursor")), self.saved.state
        written = str(state.get("written", ""))[:19].replace("T", " ")
        if cursor.epoch >= epochs:
            return (f"Finished before: {cursor.epoch} of {epochs} epochs are in {self.saved.path}, and nothing is left to train. "
                    "More epochs go on from there; resume=False starts anew.")
        if state.get("stop_training"):
            return (f"Finished before: a callback stopped the training after epoch {cursor.epoch} ({self.saved.path}). "
                    "resume=False starts anew.")
        version = state.get("versions")
        changed = "" if version == versions() else f" It was written by {_text(version)}; with {_text(versions())} last bits may differ."
        return f"Resuming after {cursor.words()}, saved {written} in {self.saved.path}.{changed}"

    # -- the keeper ----------------------------------------------------------------------------------------------------

    def keeper(self, live: Live, settings: Mapping[str, Any], plan: Plan, order_seed: int | None, repeatable: bool) -> CheckpointKeeper:
        """Returns what the loop talks to.

        Args:
            live: the objects whose state is saved.
            settings: what decides the result of this training.
            plan: how the step runs.
            order_seed: of the order of samples.
            repeatable: whether the data can be read again from the start of an epoch.

        Raises:
            CheckpointError: the saved training had other settings, or its data cannot be brought to where it stood.
        """
        now: dict[str, Any] = plain(settings)
        if self.saved is not None:
            self._require_fit(now, live, repeatable)
        elif not repeatable:
            warnings.warn("the data come from a generator, which cannot be wound to where a training stopped: the checkpoints keep the "
                          "weights, but fit cannot resume from them. Give fit arrays, a Dataset, a DataLoader, or an object whose "
                          "__iter__ starts an epoch.", ConvoltWarning, stacklevel=4)
        common = {
            "format": FORMAT_VERSION, "settings": now, "order_seed": order_seed, "versions": versions(),
        }  # fmt: skip
        writer = Writer(self.store)
        self._keeper = CheckpointKeeper(self.options, self.store, writer, live, common, plan, self.saved, self.allowed)
        return self._keeper

    def _require_fit(self, settings: dict[str, Any], live: Live, repeatable: bool) -> None:
        assert self.saved is not None
        before = self.saved.state.get("settings")
        if not isinstance(before, dict):
            raise CheckpointError(explain(f"{self.saved.path}: settings", type(before).__name__, "names and values"))
        rate = dict(self.saved.state.get("optimizer") or {}).get("learning_rate")
        key = "optimizer.learning_rate"
        if rate is not None and settings.get(key) == rate:  # a callback of this very training has lowered it
            before = {**before, key: rate}
        if _same_rates(live.optimizer, before.get("length of schedule")):
            before = {**before, "length of schedule": settings.get("length of schedule")}
        require_same(self.saved.path, before, settings, self.allowed)
        if not repeatable:
            raise CheckpointError(explain("fit(resume)", "a generator", "data that can be read again from the start of an epoch",
                                          "A generator cannot be wound to where the training stopped. Give fit arrays, a Dataset, a "
                                          "DataLoader, or an object whose __iter__ starts an epoch."))

    def use_threads(self, plan: Plan) -> str:
        """Computes with as many threads as the saved training until `close`, since sums depend on it; returns what to say."""
        own = torch.get_num_threads()
        if plan.threads == own or "threads" in self.allowed:
            return ""
        self._threads = own
        torch.set_num_threads(plan.threads)
        return f"Computing with {plan.threads} threads, as before, in place of {own}."

    def close(self, wait: bool = True) -> None:
        """Ends the writing and gives the folder back; without `wait`, the folder when a save that is under way has ended."""
        if self._keeper is None and not self._closed:
            self._lock.release()
        elif self._keeper is not None:
            keeper, self._keeper = self._keeper, None  # a second call finds nothing to wait for
            keeper.close(self._lock.release, wait)
        self._closed = True
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None


def _same_rates(optimizer: Any, length: Any) -> bool:
    """Whether a schedule gives the same rates for a training of `length` steps as for this one, as one with a length of its own does."""
    schedule, own = optimizer.schedule, getattr(optimizer.schedule, "resolved_steps", None)
    if schedule is None or own is None or type(length) is not int or length < 1:
        return False
    steps = [length * i // 16 for i in range(16)]
    now = [schedule(step) for step in steps]
    schedule.resolve(length)
    before = [schedule(step) for step in steps]
    schedule.resolve(own)
    return bool(now == before)


def versions() -> dict[str, str]:
    """Returns the versions on which last bits depend."""
    return {"convolt": __version__, "torch": torch.__version__}


def _text(version: Any) -> str:
    return " and ".join(f"{name} {value}" for name, value in version.items()) if isinstance(version, dict) else "another version"
