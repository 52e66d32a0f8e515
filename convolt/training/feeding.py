"""From what the user hands to a trainer to checked batches, with the model built on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convolt import losses
from convolt.data.batch_spec import BatchSpec, spec_of
from convolt.data.batches import Resident, Streamed
from convolt.data.pictures import Pictures
from convolt.data.stream import SampleStream
from convolt.errors import ArgumentError, explain
from convolt.training import checks, given, inputs
from convolt.training.augmenting import Augmenter
from convolt.training.batch_size import AUTO, LARGEST, find_batch_size
from convolt.training.heads import Head
from convolt.training.picture_inputs import PictureStream, check_label_form, open_pictures
from convolt.training.sampling import Drawing, drawing_of
from convolt.training.step import Step


class Feeding:
    """The part of `Trainer` that makes batches: of arrays, of pictures that lie somewhere, of what gives batches by itself."""

    model: Any
    device: torch.device
    _heads: list[Head]
    _notes: list[str]
    _output_shapes: dict[str, tuple[int, ...]]
    spec: dict[str, Any]

    def _prepare_model(self, xs: Sequence[Tensor]) -> None:
        """Makes the parameters and finds out about the outputs, once."""
        raise NotImplementedError

    def _ready_step(self, bind: bool = False) -> Step:
        """Returns the step, whose optimizer has the parameters."""
        raise NotImplementedError

    def _given(self, what: str, x: Any) -> Any:
        """Returns what stands for pictures as such, anything else as it is, and notes how it is read."""
        found, note = given.as_pictures(what, x, self.model.input_shapes)
        if note:
            self._notes.append(note)
        return found

    def _data(self, what: str, x: Any, y: Any, sample_weight: Any, batch_size: int | str | None, steps: int | None,
              drawing: Drawing = inputs.IN_ORDER, class_weight: Mapping[int, float] | None = None, split: float = 0.0) -> tuple[Any, Any]:
        """Returns (batches, batches held out by `split` or None) of whatever the user gave."""
        if isinstance(x, Pictures):
            return self._pictures(what, x, y, sample_weight, batch_size, steps, drawing, class_weight, split)
        if y is None and not split and (spec := spec_of(x)) is not None and (own := drawing_of(spec, drawing)) is not None:
            return self._specified(what, spec, own, steps, class_weight)
        if inputs.is_stream(x):
            return self._stream(what, x, y, batch_size, steps, drawing, class_weight, split), None
        arrays: Any = self._arrays(what, x, y, sample_weight, class_weight, drawing)
        held_out = later = None
        if split:
            arrays, later = inputs.split_validation(arrays, split)
        size = self._find_size(arrays, drawing, len(arrays[0][0])) if batch_size == AUTO else int(batch_size or 32)
        if later is not None:
            held_out = inputs.from_arrays(later, size, self.device)
        data = inputs.from_arrays(arrays, size, self.device, drawing, steps)
        if drawing.augment is not None:
            self._note_augmentation(what, drawing.augment, isinstance(data, Resident))
        return data, held_out

    def _note_augmentation(self, what: str, augment: Augmenter, resident: bool) -> None:
        """Notes what becomes of the pictures of a training."""
        if what == "fit":
            self._notes.append(augment.describe(self.device, resident))

    def _specified(self, what: str, spec: BatchSpec, drawing: Drawing, steps: int | None,
                   class_weight: Mapping[int, float] | None) -> tuple[Any, Any]:
        """Returns what `_data` does, of what batches are made of."""
        if isinstance(spec.x, Pictures):
            pictures = self._given(what, spec.x)
            return self._pictures(what, pictures, None, None, spec.batch_size, steps, drawing, class_weight, 0.0, not spec.reconstructs)
        return self._data(what, spec.x, spec.y, spec.weights, spec.batch_size, steps, drawing, class_weight)

    def _pictures(self, what: str, x: Pictures, y: Any, sample_weight: Any, batch_size: int | str | None, steps: int | None,
                  drawing: Drawing, class_weight: Mapping[int, float] | None, split: float,
                  labelled: bool = True) -> tuple[Any, Any]:
        """Returns what `_data` does, of pictures: in memory where they fit."""
        check_label_form(x, self.spec["loss"])
        train, later = open_pictures(what, x, y, split, self.device, labelled)
        data, _ = self._data(what, train.x, train.y, sample_weight, batch_size, steps, drawing, class_weight)
        data.why += f", from {x.origin}" if x.origin else ""
        if later is None:
            return data, None
        notes, size = self._notes, data.batch_size if batch_size == AUTO else batch_size
        held_out, _ = self._data(what, later.x, later.y, None, size, None)
        self._notes = notes
        return data, held_out

    def _find_size(self, arrays: Sequence[Sequence[Tensor]], drawing: Drawing, samples: int | None, most: int = LARGEST) -> int:
        """Returns the batch size that `batch_size="auto"` means, and notes why; see `find_batch_size`."""
        found = find_batch_size(arrays, drawing, self._ready_step(bind=True), self.model, self.device, samples, most)
        self._notes.append(found.why)
        return found.size

    def _arrays(self, what: str, x: Any, y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None,
                drawing: Drawing = inputs.IN_ORDER) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Returns checked tensors of inputs, labels and weights; builds the model on the way."""
        augment = drawing.augment
        shapes = inputs.accepted_shapes(self.model, augment is not None and augment.resizes)
        xs = checks.check_inputs(inputs.arrays_of(x, self.model.input_names, f"{what}: x"), shapes, what=what)
        if what == "fit" and not checks.rescales(self.model) and (augment is None or not augment.rescales):
            checks.check_pixels(xs, what=what)
        self._prepare_model(xs if augment is None else augment.example(xs, self.model))
        names = [head.name for head in self._heads]
        ys = [checks.as_tensor(a, f"{what}: y") for a in inputs.arrays_of(y, names, f"{what}: y")]
        weights = inputs.spread_weights(sample_weight, ys, names)
        checks.check_lengths(xs, ys, weights, what=what)
        for head, label in zip(self._heads, ys, strict=False):
            checks.check_labels(label, loss=head.loss, output_shape=self._output_shapes[head.name], what=what)
        if class_weight is not None:
            weights = self._with_class_weight((tuple(xs), tuple(ys), tuple(weights)), class_weight)[2]
        if augment is not None:
            augment.prepare(self._heads, self._output_shapes)
        return xs, ys, weights

    def _stream(self, what: str, x: Any, y: Any, batch_size: int | str | None, steps: int | None, drawing: Drawing,
                class_weight: Mapping[int, float] | None, split: float) -> Streamed:
        if y is not None:
            raise ArgumentError(explain(f"{what}(y)", "labels beside a dataset or generator", "None: x brings the labels"))
        if split:
            raise ArgumentError(explain(f"{what}(validation_split)", "a dataset or generator", "arrays", "Give validation_data instead."))
        if batch_size == AUTO and not inputs.has_samples(x):
            raise ArgumentError(explain(f"{what}(batch_size)", f"'auto' with a {type(x).__name__}, which gives batches of its own",
                                        "arrays, pictures or a Dataset, or no batch_size"))
        weigh = None if class_weight is None else lambda batch: self._with_class_weight(batch, class_weight)
        first, x = inputs.peek(x, int(batch_size or 32) if batch_size != AUTO else 32)
        xs, ys, weights = inputs.host_batch(first, self.model.input_names, self.model.output_names)
        augment = drawing.augment
        checks.check_inputs(list(xs), inputs.accepted_shapes(self.model, augment is not None and augment.resizes), what=what)
        self._prepare_model(xs if augment is None else augment.example(xs, self.model))
        known = x.example_targets() if isinstance(x, PictureStream) else ys[0] if ys and isinstance(x, SampleStream) else None
        for head in self._heads if known is not None else ():
            checks.check_labels(known, loss=head.loss, output_shape=self._output_shapes[head.name], what=what)
        if augment is not None:
            augment.prepare(self._heads, self._output_shapes)
            self._note_augmentation(what, augment, resident=False)
        if batch_size == AUTO:
            most = x.largest_batch() if isinstance(x, PictureStream) else LARGEST
            batch_size = self._find_size((xs, ys, weights), drawing, inputs.count_of(x, drawing), most)
        size = None if batch_size is None else int(batch_size)
        return inputs.from_stream(x, self.device, size, steps, self.model.input_names, [h.name for h in self._heads], drawing, weigh)

    @staticmethod
    def _with_class_weight(batch: Any, class_weight: Mapping[int, float]) -> Any:
        xs, ys, weights = batch
        if len(ys) != 1:
            raise ArgumentError(explain("fit(class_weight)", f"a model with {len(ys)} outputs", "one output", "Use sample_weight."))
        by_class = losses.class_weights_to_sample_weights(ys[0], dict(class_weight))
        return xs, ys, (by_class * weights[0] if weights else by_class,)
