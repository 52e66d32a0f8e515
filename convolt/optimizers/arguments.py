"""Checks of what an optimizer is given to train."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from convolt.errors import ArgumentError, ArgumentTypeError, DeviceError, did_you_mean, explain


def checked_parameters(optimizer: str, named_parameters: Iterable[tuple[str, nn.Parameter]], excluded: set[str]) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by name.

    Args:
        optimizer: its name, for messages.
        named_parameters: what `model.named_parameters()` gives.
        excluded: names of parameters without weight decay.

    Raises:
        ArgumentTypeError: these are no (name, parameter) pairs.
        ArgumentError: nothing can be trained, or an excluded name is unknown.
        DeviceError: the parameters lie on several devices.
    """
    pairs = list(named_parameters)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], Tensor)):
            raise ArgumentTypeError(explain(f"{optimizer}.bind", type(pair).__name__, "(name, parameter) pairs",
                                            "Give model.named_parameters()."))
    trained = {name: p for name, p in pairs if p.requires_grad}
    if not trained:
        raise ArgumentError(explain(f"{optimizer}.bind", "no trainable parameters", "at least one",
                                    "Build the model, and unfreeze a layer."))
    devices = sorted({str(p.device) for p in trained.values()})
    if len(devices) > 1:
        raise DeviceError(explain(f"{optimizer}.bind", f"parameters on {', '.join(devices)}", "parameters on one device"))
    names = [name for name, _ in pairs]
    for name in sorted(excluded - set(names)):
        raise ArgumentError(explain(f"{optimizer}.bind(exclude_from_weight_decay)", repr(name), "names of parameters",
                                    did_you_mean(name, names)))
    return trained
