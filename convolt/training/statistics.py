"""Statistics of batch normalization, computed anew for weights that no batch was normalized with, such as averaged ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from convolt.data.batches import Batch
from convolt.errors import ConvoltWarning
from convolt.layout import inside_axis


class StatisticsWarning(ConvoltWarning):
    """Running statistics belong to other weights than the model has."""


def normalizations(model: nn.Module) -> dict[str, Any]:
    """Returns the layers that normalize by running statistics and follow them in training, by name."""
    return {name: module for name, module in model.named_modules()
            if isinstance(getattr(module, "running_mean", None), Tensor) and isinstance(getattr(module, "running_var", None), Tensor)
            and getattr(module, "trainable", True)}


def update_statistics(model: Any, step: Any, data: Any, epoch: int = 0) -> None:
    """Sets the running mean and variance of each batch normalization to the mean of those of the batches of an epoch.

    Runs the forward of all batches once, in training mode; weights and random state stay. `fit` calls it after
    averaging weights (`optimizers.SWA`). PyTorch counterpart: `torch.optim.swa_utils.update_bn`.

    Args:
        model: built, on its device.
        step: of its training; makes inputs of batches, and knows how many fit at once.
        data: with `epoch(number)`, which gives the batches.
        epoch: whose batches are taken.
    """
    layers = normalizations(model)
    if not layers:
        return
    statistics = {name: _Statistics(module) for name, module in layers.items()}
    hooks = [module.register_forward_pre_hook(statistics[name].see) for name, module in layers.items()]
    modes = {module: module.training for module in model.modules()}
    device = next(iter(layers.values())).running_mean.device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model.train()
            seen = _run(model, step, data.epoch(epoch))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if not seen:
        warnings.warn("statistics of batch normalization could not be computed anew for the averaged weights, since the training data "
                      "cannot be read again: give fit arrays or a dataset that can", StatisticsWarning, stacklevel=4)
        return
    for found in statistics.values():
        found.write()


def _run(model: Any, step: Any, batches: Iterable[Batch]) -> int:
    """Runs the batches, in the parts that training used; returns how many there were."""
    kept = step.kept
    kept.keep()
    count = 0
    for batch in batches:
        for piece in step.room.pieces(batch.ready()):
            model(*step.inputs(piece))
            model.penalties()
        count += 1
    kept.put_back()  # the forwards have moved the running statistics, too
    return count


class _Statistics:
    """Sums of the means and variances that a layer's inputs had."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.count = 0
        self.mean = torch.zeros_like(layer.running_mean)
        self.variance = torch.zeros_like(layer.running_var)

    def see(self, layer: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        axis = inside_axis(layer.axis, x.ndim) if hasattr(layer, "axis") else 1
        unbiased = isinstance(layer, nn.modules.batchnorm._BatchNorm)  # PyTorch keeps the unbiased variance, Keras the biased
        variance, mean = torch.var_mean(x.float(), dim=[i for i in range(x.ndim) if i != axis], correction=int(unbiased))
        self.mean.add_(mean)
        self.variance.add_(variance)
        self.count += 1

    @torch.no_grad()
    def write(self) -> None:
        if self.count:
            self.layer.running_mean.copy_(self.mean / self.count)
            self.layer.running_var.copy_(self.variance / self.count)
