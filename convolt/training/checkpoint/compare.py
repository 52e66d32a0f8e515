"""What two checkpoints have in common: sums over the parts that a resumed training must have bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from convolt.training.checkpoint import format
from convolt.training.checkpoint.store import Store

PARTS = ("weights", "optimizer", "random state", "place", "history")
_PREFIXES = {"weights": "model/", "optimizer": "optimizer/", "random state": "random/"}


def digest(run: Path) -> dict[str, str]:
    """Returns a SHA-256 for each of `PARTS` of the newest checkpoint in a run folder.

    Raises:
        CheckpointError: there is none that is whole.
    """
    found = Store(run / "checkpoints").load(lambda text: None)
    if found is None:
        return {}
    sums = dict(format.sums(found.tensors, _PREFIXES))
    state = found.state
    for part, entries in (("optimizer", ("optimizer",)), ("place", ("cursor", "order_seed", "stop_training")), ("history", ("callbacks",))):
        text = json.dumps([sums.get(part), *(state.get(name) for name in entries)], sort_keys=True)
        sums[part] = hashlib.sha256(text.encode()).hexdigest()
    return {part: sums[part] for part in PARTS}
