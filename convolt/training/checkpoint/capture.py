"""The state of a training: copied in one piece between two steps, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from convolt.configurable import to_json
from convolt.errors import CheckpointError, ConvoltError, explain
from convolt.training.checkpoint.randomness import random_state, set_random_state
from convolt.training.hooks import CallbackList

TRAINING, VALIDATION = "training", "validation"
_RATE = ("learning_rate", "total_steps")


@dataclass(frozen=True)
class Cursor:
    """A place in a training, between two steps.

    Attributes:
        epoch: number of the epoch, from 0; at the end of the last one, the number of epochs.
        batch: batches of this epoch that are done.
        seen: samples in them.
        phase: "training", or "validation" when only that is missing of the epoch.
        logs: results of the epoch's training, once it is done.
    """

    epoch: int
    batch: int = 0
    seen: int = 0
    phase: str = TRAINING
    logs: Mapping[str, Any] | None = None

    @property
    def within(self) -> bool:
        """Whether the epoch has begun."""
        return self.batch > 0

    def words(self) -> str:
        """Returns the place as words: "epoch 2, step 120", counted from 1 as the progress line does."""
        if not self.within:
            return "the start" if self.epoch == 0 else f"the end of epoch {self.epoch}"
        return f"epoch {self.epoch + 1}, step {self.batch}" + (", before validation" if self.phase == VALIDATION else "")

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes as JSON values."""
        return {**asdict(self), "logs": to_json(self.logs)}

    @staticmethod
    def from_json(values: Any) -> Cursor:
        """Returns the cursor of a checkpoint.

        Raises:
            CheckpointError: the values are none.
        """
        try:
            cursor = Cursor(**values)
            if all(type(n) is int and n >= 0 for n in (cursor.epoch, cursor.batch, cursor.seen)) and cursor.phase in (TRAINING, VALIDATION):
                return cursor
        except TypeError as error:
            raise CheckpointError(explain("checkpoint: cursor", str(error), "epoch, batch, seen, phase and logs")) from error
        raise CheckpointError(explain("checkpoint: cursor", repr(values), "numbers from 0 and a phase"))


@dataclass
class Live:
    """The objects whose state a checkpoint holds.

    Attributes:
        model: parameters and buffers, those included that `state_dict` leaves out.
        optimizer: with `state_dict` and `load_state_dict`.
        totals: the sums of the epoch so far.
        callbacks: with state and tensors.
        generators: random generators of the data's source.
    """

    model: Any
    optimizer: Any
    totals: Any
    callbacks: CallbackList
    generators: Sequence[torch.Generator] = ()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields parameters and buffers by name, each once."""
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    def random(self) -> dict[str, Tensor]:
        """Returns the state of all random generators."""
        return random_state(self.model, self.generators)

    def set_random(self, states: Mapping[str, Tensor]) -> None:
        """Sets all random generators."""
        set_random_state(states, self.model, self.generators)

    def capture(self, spare: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns (copies of all tensors but the random state's, where they are; all else as JSON values).

        On a GPU the copies are queued behind the step, and the host does not wait for them.

        Args:
            spare: earlier copies that nobody needs any more; their memory, which the system has given already, is used again.
        """
        optimizer = self.optimizer.state_dict()
        tensors = {f"model/{name}": tensor for name, tensor in self.weights()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer.items() if isinstance(value, Tensor)}
        tensors |= {f"totals/{name}": value for name, value in self.totals.tensors().items()}
        tensors |= {f"callbacks/{name}": value for name, value in self.callbacks.tensors().items()}
        spare = spare or {}
        copies = {name: _copy(tensor.detach(), spare.get(name)) for name, tensor in tensors.items()}
        state = {
            "optimizer": {name: value for name, value in optimizer.items() if not isinstance(value, Tensor)},
            "callbacks": to_json(self.callbacks.state_dict()),
            "stop_training": bool(self.model.stop_training),
        }
        return copies, state

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep_rate: bool = False,
                other_callbacks: bool = False) -> None:
        """Puts back what `capture` returned, in place; weights are checked by name, shape and type before one is changed.

        Args:
            tensors: of the checkpoint.
            state: of the checkpoint.
            keep_rate: whether the optimizer's own learning rate (or length of its schedule) stays.
            other_callbacks: whether callbacks that the checkpoint does not know start from nothing.

        Raises:
            CheckpointError: they do not fit.
        """
        own = dict(self.weights())
        _check_weights(own, _under(tensors, "model/"))
        try:
            numbers = dict(state["optimizer"])
            if keep_rate:
                current = self.optimizer.state_dict()
                numbers = {name: value for name, value in numbers.items() if name not in _RATE}
                numbers |= {name: current[name] for name in _RATE if name in current}
            self.optimizer.load_state_dict({**_under(tensors, "optimizer/"), **numbers})
            self.totals.load_tensors(_under(tensors, "totals/"))
            states = dict(state["callbacks"])
            if other_callbacks:
                states = {key: states.get(key, own_state) for key, own_state in self.callbacks.state_dict().items()}
            self.callbacks.load_state_dict(states)
            self.callbacks.load_tensors(_under(tensors, "callbacks/"))
            self.model.stop_training = bool(state["stop_training"])
        except ConvoltError as error:
            raise CheckpointError(f"checkpoint: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(explain("checkpoint", f"a state that does not fit ({type(error).__name__}: {error})",
                                          "what this training would have written")) from error
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[f"model/{name}"])


def _copy(tensor: Tensor, spare: Tensor | None) -> Tensor:
    """Returns a contiguous copy, on the tensor's device if there is memory for it, else on the host."""
    if spare is not None and (spare.shape, spare.dtype, spare.device) == (tensor.shape, tensor.dtype, tensor.device):
        return spare.copy_(tensor)
    try:
        return tensor.clone(memory_format=torch.contiguous_format)
    except torch.OutOfMemoryError:
        return tensor.cpu().contiguous()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name in sorted(own.keys() ^ given.keys()):
        got = "a weight that the model lacks" if name in given else "no such weight"
        raise CheckpointError(explain(f"checkpoint: {name}", got, f"the {len(own)} weights of this model"))
    for name, tensor in own.items():
        if given[name].shape != tensor.shape or given[name].dtype != tensor.dtype:
            raise CheckpointError(explain(f"checkpoint: {name}", f"{tuple(given[name].shape)} {given[name].dtype}",
                                          f"{tuple(tensor.shape)} {tensor.dtype}"))


def to_host(tensors: Mapping[str, Tensor], ready: Any) -> dict[str, Tensor]:
    """Returns tensors on the CPU, copied on a stream of their own once `ready` (a CUDA event, or None) has happened."""
    device = next((t.device for t in tensors.values() if t.device.type == "cuda"), None)
    if device is None or ready is None:
        return {name: tensor.cpu() for name, tensor in tensors.items()}
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        return {name: tensor.cpu() for name, tensor in tensors.items()}
