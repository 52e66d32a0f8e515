"""Where NaN and infinite values began: the first layer, by a replay from the last finite checkpoint where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convolt.compiler.compiled import form_of
from convolt.data.batches import Batch, Resident, Streamed
from convolt.training.checkpoint.capture import Cursor
from convolt.training.checkpoint.keeper import CheckpointKeeper
from convolt.training.checkpoint.store import Saved
from convolt.training.checkpoint.writer import all_finite
from convolt.training.step import Step


class Watch:
    """Looks at what each layer gives and at each gradient, and remembers the first that is not finite.

    Args:
        module: what runs in a step: the model, or what a plan made of it.

    Attributes:
        first: what was not finite first, in words; None as long as all is.
    """

    def __init__(self, module: nn.Module) -> None:
        self.first: str | None = None
        self._module = module
        self._output = 0.0

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hooks on the layers and weights inside of this `with`. Each look waits for the device."""
        hooks = [module.register_forward_hook(self._forward(name)) for name, module in self._module.named_modules()
                 if next(module.children(), None) is None]
        hooks += [p.register_post_accumulate_grad_hook(self._gradient(name))  # type: ignore[no-untyped-call]
                  for name, p in self._module.named_parameters() if p.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _forward(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.first is not None:
                return
            outputs = list(_tensors(output))
            if all(all_finite(t) for t in outputs):
                self._output = max((_largest(t) for t in outputs), default=0.0)
                return
            bad = [key for key, weight in module.named_parameters() if not all_finite(weight)]
            given = max((_largest(t) for t in _tensors(inputs)), default=0.0)
            cause = f"its {bad[0]} is not finite" if bad else f"its inputs are finite, up to {given:.2g}"
            self.first = f"the output of layer {name!r} ({type(module).__name__}; {cause})"

        return look

    def _gradient(self, name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if self.first is None and parameter.grad is not None and not all_finite(parameter.grad):
                self.first = f"the gradient of {name!r} (all outputs and the loss are finite)"

        return look

    def after_step(self, loss: float) -> None:
        """Looks at the loss and at the weights once a step is done.

        Args:
            loss: sum of the losses of the epoch so far.
        """
        infinite_loss = loss != loss or loss in (float("inf"), float("-inf"))
        if infinite_loss and (self.first is None or self.first.startswith("the gradient")):
            self.first = f"the loss (the model's outputs are finite, up to {self._output:.2g})"
        if self.first is None:
            bad = next((name for name, p in self._module.named_parameters() if not all_finite(p)), None)
            if bad is not None:
                self.first = f"the weight {bad!r} after its update (its gradient is finite)"


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values.detach()
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() and tensor.is_floating_point() else 0.0


def replay(keeper: CheckpointKeeper, saved: Saved, step: Step, data: Resident | Streamed) -> str:
    """Returns where values became infinite, found by the same steps once more from a finite checkpoint; it is put back at the end.

    Args:
        keeper: of this training, which knows how far it came; puts the checkpoint back.
        saved: the last finite checkpoint.
        step: the step, not captured in a graph.
        data: batches of the training.
    """
    until, model = keeper.reached, keeper.live.model
    keeper.restore_from(saved)
    at = Cursor.from_json(saved.state["cursor"])
    chosen, step.module = step.module, form_of(step.module)  # layers in compiled code cannot be watched
    watch = Watch(step.module)
    found = None
    model.train()
    with watch.looking():
        while found is None and (at.epoch, at.batch) <= (until.epoch, until.batch):
            if not at.within:
                step.train_totals.reset()
            for index, batch in enumerate(keeper.batches(data, at), at.batch):
                step.train(batch)
                watch.after_step(float(step.train_totals.tensors()["sums"][0]))
                if watch.first is not None:
                    found = f"In epoch {at.epoch + 1}, step {index + 1}, {watch.first} is the first that is not finite."
                    break
            at = Cursor(at.epoch + 1)
    step.module = chosen
    keeper.restore_from(saved)
    model.eval()
    advice = "Try a lower learning rate, or clipnorm in the optimizer."
    place = Cursor.from_json(saved.state["cursor"]).words()
    kept = f"The model has the weights of the last finite checkpoint again, from {place}: {saved.path}."
    finite = "A replay from the last checkpoint stayed finite: something outside of the steps, such as a callback, had a part in it."
    return f"{found or finite} {advice}\n{kept}"


@torch.no_grad()
def look(step: Step, batch: Batch | None) -> str:
    """Returns what can be said without a checkpoint: which weights are not finite now, and which layer's output on a batch."""
    weights = [name for name, p in step.module.named_parameters() if not all_finite(p)]
    count = len(list(step.module.parameters()))
    advice = "Try a lower learning rate, or clipnorm in the optimizer."
    if weights:
        return (f"{len(weights)} of {count} weights are not finite by now, {weights[0]!r} the first in order; where it began can no longer "
                f"be told. fit(checkpoint=folder) would replay the steps and name the layer. {advice}")
    if batch is None:
        return f"All weights are still finite. {advice}"
    form = form_of(step.module)
    watch = Watch(form)
    with watch.looking():
        step.compute(batch.ready(), form, step.precision)
    where = f"{watch.first} is not finite" if watch.first else "the outputs of all layers are finite"
    return f"All weights are still finite; on the first batch {where}. {advice}"
