"""`predict`: outputs for arrays, streams, pictures and folders of pictures."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.compiler.host import computing, keep_freed_memory
from convolt.compiler.inference import Runner, weights_of
from convolt.data.batches import Batch, Streamed
from convolt.data.decode import decode_image
from convolt.data.folder import ImageFolder, read_file
from convolt.data.pictures import Pictures
from convolt.errors import DataError, explain
from convolt.modes import evaluating
from convolt.training import checks, given, inputs
from convolt.training.hooks import CallbackList
from convolt.training.memory import Room
from convolt.training.picture_inputs import open_pictures
from convolt.training.progress import Progress
from convolt.training.step import enter, flat_outputs, leave

FLUSH_BYTES = 256 * 2**20
"""Outputs wait on a GPU up to this size, so that the host seldom waits for it."""


def predict(model: Any, x: Any, *, batch_size: int | None = None, verbose: int | str = "auto", steps: int | None = None,
            callbacks: Any = None) -> Any:
    """Returns the outputs of `model` for `x` as NumPy arrays, channels last; one array, or one for each output."""
    x, note = _opened(model, x)
    trainer = getattr(model, "_trainer", None)
    device = next((p.device for p in model.parameters()), torch.device("cpu")) if trainer is None else trainer.device
    keep_freed_memory()
    data = _batches(model, x, batch_size or 32, steps, device)
    progress = Progress(1, data.steps, verbose, label="predict")
    if note:
        progress.note(note)
    hooks = CallbackList(callbacks, model, {"epochs": 1, "steps": data.steps, "verbose": verbose})
    samples = data.samples if data.samples is not None or data.steps is None else data.steps * _batch_size_of(x, batch_size)
    half = trainer is not None and trainer.precision == "bfloat16"
    exact = trainer is not None and trainer.precision == "float32"
    with evaluating(model) as parts:
        if trainer is not None and any(weight.device != device for weight in weights_of(parts)):
            model.to(device)
        hooks.on_predict_begin()
        progress.epoch_begin(0)
        try:
            with computing(device, exact), torch.no_grad(), inputs.lost_workers_explained(x):
                runner = Runner(model, samples, torch.bfloat16 if half else torch.float32, progress.note)
                structure, collected = _run(model, runner, data, steps, hooks, progress)
            progress.epoch_end({}, len(collected[0]))
        finally:
            progress.close()
    hooks.on_predict_end()
    if isinstance(structure, dict):
        return dict(zip(structure, collected, strict=True))
    return collected[0] if isinstance(structure, Tensor) else collected


def _opened(model: Any, x: Any) -> tuple[Any, str]:
    """Returns (`x`, as pictures or a stream of such where it stands for these; a sentence about it, or "")."""
    if isinstance(x, (str, Path)):
        x = read_pictures(x, model)
    return given.as_pictures("predict", x, model.input_shapes)


def _batch_size_of(x: Any, batch_size: int | None) -> int:
    """Returns the samples of a batch as far as they are known: a loader's or flow's own, or what was asked for."""
    own = getattr(x, "batch_size", None)
    return own if isinstance(own, int) else batch_size or 32


def _batches(model: Any, x: Any, batch_size: int, steps: int | None, device: torch.device) -> inputs.Batches:
    if isinstance(x, Pictures):
        x = open_pictures("predict", x, None, 0.0, device, labelled=False)[0].x
    if inputs.is_stream(x):
        return inputs.from_stream(x, device, batch_size, steps, model.input_names, model.output_names)
    xs = [checks.as_tensor(a) for a in inputs.arrays_of(x, model.input_names, "x")]
    checks.check_inputs(xs, inputs.accepted_shapes(model), what="predict")
    return inputs.from_arrays((xs, [], []), batch_size, device, steps=steps)


def _run(model: Any, runner: Runner, data: inputs.Batches, steps: int | None, hooks: CallbackList,
         progress: Progress) -> tuple[Any, list[np.ndarray]]:
    """Runs the batches; returns (an example of the model's output, each output of all samples)."""
    waiting: list[list[Tensor]] = []
    done: list[_Rows] = []
    structure: Any = None
    seen = 0
    room = Room("prediction")
    batch_hooks = hooks.listens("on_predict_batch_begin", "on_predict_batch_end")
    for index, batch in enumerate(itertools.islice(data.epoch(), steps)):
        if not index and isinstance(data, Streamed):
            checks.check_inputs(batch.x, inputs.accepted_shapes(model), what="predict")
        if batch_hooks:
            hooks.on_predict_batch_begin(index)
        structure, outputs = room.attempt(partial(_outputs, model, runner, batch, room), batch.size)
        waiting.append(outputs)
        done = done or [_Rows(data.samples) for _ in outputs]
        seen += batch.size
        if batch_hooks:
            hooks.on_predict_batch_end(index, {"outputs": outputs})
        if progress.wants_update():
            progress.update(index + 1, seen, {})
        if len(waiting) * sum(o.nbytes for o in outputs) > (FLUSH_BYTES if outputs[0].is_cuda else 0):
            _flush(waiting, done)
    if not seen:
        raise DataError(explain("predict(x)", "no samples", "at least one"))
    _flush(waiting, done)
    return structure, [rows.array() for rows in done]


def _outputs(model: Any, runner: Runner, batch: Batch, room: Room) -> tuple[Any, list[Tensor]]:
    """Returns (what the model gives for a batch, or for a part of it; its outputs for all of it, channels last)."""
    dtypes = model.input_dtypes or [None] * len(batch.x)
    structure: Any = None
    found = []
    for piece in room.pieces(batch):
        structure = runner(*(enter(x, dtype, model.data_format) for x, dtype in zip(piece.x, dtypes, strict=True)))
        found.append([leave(output) for output in flat_outputs(structure)])
    return structure, found[0] if len(found) == 1 else [torch.cat(parts) for parts in zip(*found, strict=True)]


def _flush(waiting: list[list[Tensor]], done: list[_Rows]) -> None:
    """Moves the waiting outputs to the host. SYNC."""
    for i, parts in enumerate(zip(*waiting, strict=True)):
        done[i].add(parts[0] if len(parts) == 1 else torch.cat(parts))
    waiting.clear()


class _Rows:
    """One output of all samples, on the host, in few large blocks.

    What is kept of each batch by itself would lie in the memory that the batch has freed, and the next batch would not fit in there.

    Args:
        samples: how many are to come; None if unknown.
    """

    def __init__(self, samples: int | None) -> None:
        self._samples, self._count, self._free = samples or 0, 0, 0
        self._blocks: list[Tensor] = []

    def add(self, part: Tensor) -> None:
        """Copies the outputs of the next samples."""
        if self._blocks and part.shape[1:] != self._blocks[0].shape[1:]:
            raise DataError(explain("predict(x)", f"outputs of shapes {tuple(self._blocks[0].shape[1:])} and {tuple(part.shape[1:])}",
                                    "one shape", "Give inputs of one size, or predict them in several calls."))
        while len(part):
            if not self._free:
                self._free = max(len(part), self._samples - self._count, self._count)
                self._blocks.append(torch.empty((self._free, *part.shape[1:]), dtype=part.dtype))
            taken = min(len(part), self._free)
            start = len(self._blocks[-1]) - self._free
            self._blocks[-1][start : start + taken].copy_(part[:taken])
            part, self._free, self._count = part[taken:], self._free - taken, self._count + taken

    def array(self) -> np.ndarray:
        """Returns the outputs as one array."""
        blocks = [block.numpy() for block in self._blocks]
        blocks[-1] = blocks[-1][: len(blocks[-1]) - self._free]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_pictures(path: str | Path, model: Any) -> np.ndarray | ImageFolder:
    """Returns the picture at `path` (uint8 NHWC), or all pictures in and below that folder by name, in the model's size and colours."""
    path = Path(path).expanduser()
    size, colours = given.read_as(model.input_shapes)
    if path.is_dir():
        return ImageFolder(path, size, colours, labels=None)
    try:
        return decode_image(read_file(path), colours, size)[None]
    except (OSError, DataError) as error:
        raise DataError(explain(str(path), str(error), "a picture")) from error
