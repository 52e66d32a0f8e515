"""Transfer learning: freezing parts of a model, fine-tuning it, and taking features from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from convolt.errors import ArgumentError, StateError, did_you_mean, explain
from convolt.layers.base import Layer
from convolt.models.parts import BACKBONE, Part, chosen, head_start, parts_of, rate_groups

if TYPE_CHECKING:
    from convolt.training.callbacks import History
    from convolt.training.lr_find import RateSearch

NORMALIZATIONS = (nn.modules.batchnorm._NormBase,)


class Transfer:
    """What a model has for training on from what it knows already."""

    name: str

    # -- freezing --------------------------------------------------------------------------------------------------

    def freeze(self, what: Any = None, *, until: Any = None) -> Self:
        """Keeps weights and statistics of layers as they are in the trainings that follow.

        Batch normalizations in what is frozen work in inference mode, as in Keras, and dropout does not. The optimizer begins anew
        when training starts with other weights than before.

        Args:
            what: which layers: "backbone" (everything before the head); a name, a path ("vgg16.block1_conv1") or a pattern
                ("block[12]_*"), also of models inside; the number of one of `model.layers`; a layer; or a list of these.
            until: the layer at which learning begins: everything before it is frozen. Meant like `what`. With neither,
                the backbone is frozen.

        Returns:
            The model.

        Raises:
            ArgumentError: no layer fits; the message has the nearest name.

        Keras counterpart: `layer.trainable = False`, which is the same for one layer. fastai: `Learner.freeze_to`.
        """
        parts = parts_of(_module(self))
        if what is None and until is None:
            what = BACKBONE
        places = set() if what is None else set(chosen(self, parts, what, "freeze(what)"))
        if until is not None:
            found = chosen(self, parts, until, "freeze(until)")
            places |= set(range(len(found) if until == BACKBONE else found[0]))
        return self._set_trainable(parts, sorted(places), False)

    def unfreeze(self, what: Any = None, *, since: Any = None, batch_normalization: bool = True) -> Self:
        """Lets layers learn again.

        Args:
            what: which layers, as in `freeze`.
            since: the first layer that learns; everything after it does, too. With neither, all layers learn.
            batch_normalization: False leaves batch normalizations as they are: frozen, they keep the statistics of the data that
                they were trained on, which small batches would spoil.

        Returns:
            The model.
        """
        parts = parts_of(_module(self))
        places = set(range(len(parts))) if what is None and since is None else set()
        if what is not None:
            places |= set(chosen(self, parts, what, "unfreeze(what)"))
        if since is not None:
            places |= set(range(chosen(self, parts, since, "unfreeze(since)")[0], len(parts)))
        kept = [i for i in sorted(places) if batch_normalization or not _has_statistics(parts[i].module)]
        return self._set_trainable(parts, kept, True)

    def _set_trainable(self, parts: Sequence[Part], places: Sequence[int], value: bool) -> Self:
        for part in (parts[i] for i in places):
            if not part.stateful:
                continue
            if isinstance(part.module, Layer):
                part.module.trainable = value
            else:
                part.module.requires_grad_(value)
                part.module.keeps_statistics = not value  # type: ignore[assignment]
        _settle(_module(self))
        return self

    # -- training --------------------------------------------------------------------------------------------------

    def fine_tune(self, x: Any = None, y: Any = None, epochs: int = 1, *, freeze_epochs: int = 1, learning_rate: float | None = None,
                  rate_ratio: float = 100.0, groups: Sequence[Any] | None = None, until: Any = None, batch_normalization: bool = True,
                  checkpoint: Any = None, **arguments: Any) -> History:
        """Trains the head alone first, then all layers, the first ones with lower rates.

        The recipe of fastai: with the backbone frozen, the rate rises to `learning_rate`; then half of it is the peak of one cycle for the
        head, and the first layers have `rate_ratio` times less, those between by equal factors. The settings are those of the
        optimizer that `compile` was given; that optimizer is the model's again afterwards, and begins anew.

        Args:
            x, y: as in `fit`.
            epochs: with all layers, after those of the head.
            freeze_epochs: of the head alone.
            learning_rate: the highest; None: the optimizer's own.
            rate_ratio: rate of the head over that of the first layers.
            groups: layers of one rate each, from the input to the output, as in `freeze`; the rest has the full rate. None:
                the stages of the backbone, by the size of their maps, and the head.
            until: what stays frozen for good is everything before this layer; None: nothing.
            batch_normalization: False keeps the backbone's batch normalizations frozen for good.
            checkpoint: folder, as in `fit`; the two trainings have one each inside: `head` and `all`.
            **arguments: others of `fit`.

        Returns:
            The history of all epochs, those of the head first.

        fastai counterpart: `Learner.fine_tune`. Paper: Howard & Ruder, arXiv 1801.06146.
        """
        from convolt import schedules
        from convolt.optimizers import LayerwiseDecay
        from convolt.training.checkpoint import Checkpoint

        for name in ("initial_epoch", "resume_allow"):
            if name in arguments:
                raise ArgumentError(explain(f"fine_tune({name})", repr(arguments[name]), "no such argument", "fit takes it."))
        options, model = Checkpoint.of(checkpoint), _module(self)
        trainer = model.trainer
        compiled = trainer.optimizer
        rate = float(compiled.default_learning_rate() if compiled.schedule else compiled.lr) if learning_rate is None else learning_rate
        self._build_like(x)
        self.freeze(BACKBONE)
        histories = []
        with _scheduled(trainer, compiled, schedules.OneCycle(rate, pct_start=0.99)):
            histories.append(model.fit(x, y, epochs=freeze_epochs, checkpoint=_inside(options, "head"), **arguments))
        self.unfreeze(since=until, batch_normalization=batch_normalization)
        patterns, decay = self._discriminative(groups, rate_ratio)
        wrapped = compiled if _decays(compiled) else LayerwiseDecay(compiled, decay=decay, groups=patterns)
        with _scheduled(trainer, wrapped, schedules.OneCycle(rate / 2, pct_start=0.3, div_factor=5.0)):
            histories.append(model.fit(x, y, epochs=epochs, checkpoint=_inside(options, "all"), **arguments))
        trainer.history = _joined(histories)
        return trainer.history  # type: ignore[no-any-return]

    def _discriminative(self, groups: Sequence[Any] | None, ratio: float) -> tuple[list[str], float]:
        """Returns patterns of parameters' names, group by group without the last, and the factor from one group to the one before."""
        if not ratio >= 1:
            raise ArgumentError(explain("fine_tune(rate_ratio)", repr(ratio), "a number from 1"))
        parts = parts_of(_module(self))
        if groups is None:
            paths = [group for group in rate_groups(parts, head_start(self, parts)) if group][:-1]
        else:
            paths = [[parts[i].path for i in chosen(self, parts, group, "fine_tune(groups)")] for group in groups]
        patterns = [rf"^(?:{'|'.join(map(re.escape, group))})\." for group in paths]
        return patterns, float(ratio ** (-1 / len(patterns))) if patterns else 1.0

    def _build_like(self, x: Any) -> None:
        """Makes the parameters of a model that has none yet, as `fit` would, so that its parts are known."""
        model = _module(self)
        if all(getattr(module, "built", True) for module in model.modules()):
            return
        if not hasattr(x, "shape"):
            raise StateError(explain(f"fine_tune of {self.name!r}", "a model that is not built, and no array", "a built model",
                                     "Start it with Input(shape), or call build((None, height, width, channels))."))
        model.build((None, *x.shape[1:]))

    def lr_find(self, x: Any = None, y: Any = None, *, batch_size: int | None = None, start: float = 1e-7, end: float = 10.0,
                steps: int = 100, sample_weight: Any = None, class_weight: Any = None, augment: Any = None, sampler: Any = None,
                seed: int = 0) -> RateSearch:
        """Tries learning rates from `start` to `end`, one for each step, and says which is a good one; the training is untouched.

        The model trains for `steps` batches in the form in which `fit` would run it, while the rate grows exponentially; then
        weights, optimizer, metrics and random generators are put back, bit for bit. It ends early when the loss explodes.

        Args:
            x, y, batch_size, sample_weight, class_weight, augment, sampler: as in `fit`. A generator cannot be put back, and is refused.
            start, end: the first and the last rate.
            steps: batches at the most.
            seed: of the order of samples.

        Returns:
            The rates with their losses, a suggestion, and `plot(path)`.

        fastai and Lightning counterparts: `Learner.lr_find`, `Tuner.lr_find`. Paper: Smith, arXiv 1506.01186.
        """
        from convolt.training.lr_find import find_rate

        return find_rate(_module(self).trainer, x, y, batch_size=batch_size, start=start, end=end, steps=steps, sample_weight=sample_weight,
                         class_weight=class_weight, augment=augment, sampler=sampler, seed=seed)

    # -- features --------------------------------------------------------------------------------------------------

    def features(self, x: Any, layer: Any = None, *, batch_size: int | None = None, verbose: int | str = 0) -> Any:
        """Returns what a layer in the model gives for `x`, as arrays (channels last); nothing after it is computed.

        Args:
            x: as in `predict`.
            layer: a name or path, also of models inside; a number in `model.layers`; or a layer. None: what the head is given,
                which for a model without a head is its output. A layer that is called several times counts at its first call.
            batch_size, verbose: as in `predict`.

        Raises:
            ArgumentError: there is no such layer; the message has the nearest name.
        """
        from convolt.training.features import tapped
        from convolt.training.predict import predict

        model = _module(self)
        if layer is not None:
            with tapped(model, self._find_one(layer)) as tap:
                return predict(tap, x, batch_size=batch_size, verbose=verbose)
        parts = parts_of(model)
        head = [part.module for part in parts[head_start(self, parts) :] if part.weighted]
        if not head:
            return predict(model, x, batch_size=batch_size, verbose=verbose)
        with tapped(model, head[0], before=True) as tap:
            return predict(tap, x, batch_size=batch_size, verbose=verbose)

    def _find_one(self, layer: Any) -> nn.Module:
        model = _module(self)
        if isinstance(layer, int) and not isinstance(layer, bool):
            return self.get_layer(index=layer)  # type: ignore[attr-defined, no-any-return]
        if isinstance(layer, nn.Module):
            if not any(module is layer for module in model.modules()):
                raise ArgumentError(explain("features(layer)", f"the layer {getattr(layer, 'name', type(layer).__name__)!r}",
                                            f"a layer of {self.name!r}"))
            return layer
        named: dict[str, nn.Module] = {}
        for path, module in model.named_modules():
            for label in (path, getattr(module, "name", ""), path.removeprefix("module.")):
                if label and module is not model:
                    named.setdefault(label, module)
        if layer not in named:
            raise ArgumentError(explain("features(layer)", repr(layer), "the name of a layer", did_you_mean(str(layer), named)))
        return named[layer]


def _module(model: Any) -> Any:
    """The model, whose class has more than this mixin says."""
    return model


def _has_statistics(module: nn.Module) -> bool:
    return type(module).__name__ == "BatchNormalization" or (isinstance(module, NORMALIZATIONS) and module.track_running_stats)


def _settle(model: nn.Module) -> None:
    """Brings `trainable` of models in line with their parts: true where any of them learns, since loading reads it first."""
    for module in model.modules():
        if isinstance(module, Layer) and not module.is_leaf:
            parts = [part.module for part in parts_of(module) if part.stateful]
            if parts:
                module._trainable = any(part._trainable if isinstance(part, Layer) else _learns(part) for part in parts)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


@contextmanager
def _scheduled(trainer: Any, optimizer: Any, schedule: Any) -> Iterator[None]:
    """An optimizer has another schedule inside this `with`, and begins anew before and after it."""
    from convolt.training.optimizing import use

    inner = getattr(optimizer, "innermost", optimizer)
    before, compiled = inner._schedule, trainer.optimizer
    use(trainer, optimizer)
    inner._schedule = schedule
    try:
        yield
    finally:
        inner._schedule = before
        use(trainer, compiled)


def _decays(optimizer: Any) -> bool:
    """Whether the optimizer, or one inside it, has rates of its own for layers."""
    while optimizer is not None:
        if type(optimizer).__name__ == "LayerwiseDecay":
            return True
        optimizer = getattr(optimizer, "optimizer", None)
    return False


def _inside(options: Any, name: str) -> Any:
    return None if options is None else replace(options, folder=Path(options.folder) / name)


def _joined(histories: Sequence[Any]) -> Any:
    """Returns one history of several trainings, with epochs numbered through."""
    joined = histories[0]
    for history in histories[1:]:
        before = len(joined.epoch)
        joined.epoch += [before + epoch for epoch in history.epoch]
        for name, values in history.history.items():
            joined.history.setdefault(name, []).extend(values)
    return joined
