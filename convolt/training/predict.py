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
from convolt.compiler.inference import Runner
from convolt.data.batches import Batch
from convolt.data.pictures import Pictures
from convolt.errors import DataError, explain
from convolt.training import checks, inputs
from convolt.training.hooks import CallbackList
from convolt.training.memory import Room
from convolt.training.picture_inputs import open_pictures
from convolt.training.progress import Progress
from convolt.training.step import enter, flat_outputs, leave

FLUSH_BYTES = 256 * 2**20  # outputs wait on the device up to this size, so that the host seldom waits for it


def predict(model: Any, x: Any, *, batch_size: int | None = None, verbose: int | str = "auto", steps: int | None = None,
            callbacks: Any = None) -> Any:
    """Returns the outputs of `model` for `x` as NumPy arrays, channels last; one array, or one for each output."""
    if isinstance(x, (str, Path)):
        x = read_pictures(x, model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    trainer = getattr(model, "_trainer", None)
    if trainer is not None:
        device = trainer.device
        model.to(device)
    keep_freed_memory()
    data = _batches(model, x, batch_size or 32, steps, device)
    progress = Progress(1, data.steps, verbose, label="predict")
    hooks = CallbackList(callbacks, model, {"epochs": 1, "steps": data.steps, "verbose": verbose})
    was_training = model.training
    model.eval()
    hooks.on_predict_begin()
    progress.epoch_begin(0)
    samples = data.samples if steps is None else steps * (batch_size or 32)
    half = trainer is not None and trainer.precision == "bfloat16"
    exact = trainer is not None and trainer.precision == "float32"
    try:
        with computing(device, exact), torch.no_grad():
            runner = Runner(model, samples, torch.bfloat16 if half else torch.float32, progress.note)
            structure, collected = _run(model, runner, data, steps, hooks, progress)
        progress.epoch_end({}, sum(len(part) for part in collected[0]))
    finally:
        progress.close()
        model.train(was_training)
    hooks.on_predict_end()
    arrays = [np.concatenate(parts) for parts in collected]
    if isinstance(structure, dict):
        return dict(zip(structure, arrays, strict=True))
    return arrays[0] if isinstance(structure, Tensor) else arrays


def _batches(model: Any, x: Any, batch_size: int, steps: int | None, device: torch.device) -> inputs.Batches:
    if isinstance(x, Pictures):
        x = open_pictures("predict", x, None, 0.0, device, labelled=False)[0].x
    if inputs.is_stream(x):
        return inputs.from_stream(x, device, batch_size, steps, model.input_names, model.output_names)
    xs = [checks.as_tensor(a) for a in inputs.arrays_of(x, model.input_names, "x")]
    checks.check_inputs(xs, inputs.accepted_shapes(model), what="predict")
    return inputs.from_arrays((xs, [], []), batch_size, device)


def _run(model: Any, runner: Runner, data: inputs.Batches, steps: int | None, hooks: CallbackList,
         progress: Progress) -> tuple[Any, list[list[np.ndarray]]]:
    """Runs the batches; returns (an example of the model's output, NumPy parts of each output)."""
    waiting: list[list[Tensor]] = []
    done: list[list[np.ndarray]] = []
    structure: Any = None
    seen = 0
    room = Room("prediction")
    batch_hooks = hooks.listens("on_predict_batch_begin", "on_predict_batch_end")
    for index, batch in enumerate(itertools.islice(data.epoch(), steps)):
        if batch_hooks:
            hooks.on_predict_batch_begin(index)
        structure, outputs = room.attempt(partial(_outputs, model, runner, batch, room), batch.size)
        waiting.append(outputs)
        done = done or [[] for _ in outputs]
        seen += batch.size
        if batch_hooks:
            hooks.on_predict_batch_end(index, {"outputs": outputs})
        if progress.wants_update():
            progress.update(index + 1, seen, {})
        if len(waiting) * sum(o.nbytes for o in outputs) > FLUSH_BYTES:
            _flush(waiting, done)
    if not seen:
        raise DataError(explain("predict(x)", "no samples", "at least one"))
    _flush(waiting, done)
    return structure, done


def _outputs(model: Any, runner: Runner, batch: Batch, room: Room) -> tuple[Any, list[Tensor]]:
    """Returns (what the model gives for a batch, or for a part of it; its outputs for all of it, channels last)."""
    dtypes = model.input_dtypes or [None] * len(batch.x)
    structure: Any = None
    found = []
    for piece in room.pieces(batch):
        structure = runner(*(enter(x, dtype, model.data_format) for x, dtype in zip(piece.x, dtypes, strict=True)))
        found.append([leave(output) for output in flat_outputs(structure)])
    return structure, found[0] if len(found) == 1 else [torch.cat(parts) for parts in zip(*found, strict=True)]


def _flush(waiting: list[list[Tensor]], done: list[list[np.ndarray]]) -> None:
    """Moves the waiting outputs to the host. SYNC."""
    for i, parts in enumerate(zip(*waiting, strict=True)):
        done[i].append(torch.cat(parts).cpu().numpy())
    waiting.clear()


def read_pictures(path: str | Path, model: Any) -> np.ndarray:
    """Returns the picture at `path`, or all pictures in that folder by name, resized to the model's input: uint8 NHWC."""
    path = Path(path)
    shape: Any = model.input_shapes[0] if model.input_shapes else (None, None, None, 3)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise DataError(explain(f"predict({str(path)!r})", "an empty folder", "a folder with pictures"))
    size = None if shape[1] is None else (shape[1], shape[2])
    color = "grayscale" if shape[-1] == 1 else "rgb"
    return np.stack([_read_picture(file, color, size) for file in files])


def _read_picture(file: Path, color: str, size: tuple[int, int] | None) -> np.ndarray:
    from convolt.data.decode import decode_image

    try:
        return decode_image(file.read_bytes(), color, size)
    except (OSError, DataError) as error:
        raise DataError(explain(str(file), str(error), "a picture")) from error
