"""Checkpoints of a training, and its exact continuation.

`options.py` is what a user gives `fit`; `keeper.py` is what the loop calls; `capture.py` copies the state of a training and
puts it back; `writer.py` writes copies in the background; `store.py` is the folder; `format.py` is one file; `lock.py`
keeps a second run out of the folder; `signals.py` turns Ctrl-C and SIGTERM into a checkpoint; `settings.py` says in what
two trainings differ.
"""

from convolt.training.checkpoint.options import Checkpoint

__all__ = ["Checkpoint"]
