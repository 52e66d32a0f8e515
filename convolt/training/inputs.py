"""From what the user hands to `fit`, `evaluate` and `predict` to batches."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.data.batch_spec import spec_of
from convolt.data.batches import HostBatch, Order, Resident, Streamed, draw_ids, epoch_generator, fits_on, stream_arrays
from convolt.data.decode import CHANNELS
from convolt.data.pictures import Pictures
from convolt.data.stream import SampleStream
from convolt.errors import ArgumentError, ArgumentTypeError, DataError, explain
from convolt.training import checks
from convolt.training.picture_inputs import PictureBatch, PictureStream
from convolt.training.sampling import Drawing

Batches = Resident | Streamed
Names = Sequence[str]
IN_ORDER = Drawing()


def is_array(value: Any) -> bool:
    """Whether `value` is one array of samples: NumPy array, tensor, nested list of numbers, or anything like an array."""
    if isinstance(value, (np.ndarray, Tensor)) or hasattr(value, "__array__"):
        return True
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], (int, float, list, np.number))


def channels_of(x: Any) -> int:
    """Returns the channels of pictures where they can be told from an array's shape, else 3."""
    spec = spec_of(x)
    samples = x if spec is None else spec.x
    if isinstance(samples, Pictures):  # whose shape may have to be read
        return CHANNELS[samples.color_mode]
    shape: Any = getattr(samples, "shape", ())
    return int(shape[3]) if len(shape) == 4 else 3


def arrays_of(value: Any, names: Names, what: str) -> list[Any]:
    """Returns the arrays in `value` (one, a list, or a mapping by name), in the order of `names`."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        missing = [name for name in names if name not in value]
        if missing:
            raise DataError(explain(what, f"a mapping with {list(value)}", f"an entry for each of {list(names)}"))
        return [value[name] for name in names]
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (np.ndarray, Tensor)) or hasattr(v, "__array__") for v in value):
        return list(value)
    return [value]


def is_stream(x: Any) -> bool:
    """Whether `x` gives batches by itself: a `Dataset`, a loader, a generator, a Keras-like sequence of batches."""
    return not is_array(x) and not isinstance(x, (list, tuple, Mapping)) and (
        hasattr(x, "__iter__") or hasattr(x, "__next__") or (hasattr(x, "__getitem__") and hasattr(x, "__len__")))


def has_samples(x: Any) -> bool:
    """Whether `x`, which `is_stream`, gives samples, of which batches of any size can be made, and not batches of its own."""
    from torch.utils.data import Dataset

    return isinstance(x, (Dataset, SampleStream))  # a `PictureStream` is a `Dataset`


def count_of(x: Any, drawing: Drawing) -> int | None:
    """Returns the samples of an epoch of what `is_stream`; None where only the end tells."""
    return _count(x, _order_of(x, drawing))


def from_arrays(arrays: Sequence[Sequence[Tensor]], batch_size: int, device: torch.device, drawing: Drawing = IN_ORDER,
                steps: int | None = None) -> Batches:
    """Returns batches of arrays (inputs, labels, weights): resident where they fit on the device, streamed otherwise.

    Args:
        arrays: with the samples along axis 0.
        batch_size: samples per batch.
        device: where the batches are needed.
        drawing: the order, and what becomes of the pictures.
        steps: most batches of an epoch.
    """
    x, y, weights = arrays
    make = Resident if fits_on(device, [*x, *y, *weights]) else stream_arrays
    order = drawing.order(len(x[0]), lambda: y[0] if y else None)
    return make(x, y, weights, batch_size, device, order=order, steps=steps, augment=drawing.augment)


def from_stream(x: Any, device: torch.device, batch_size: int | None, steps: int | None, input_names: Names, output_names: Names,
                drawing: Drawing = IN_ORDER, class_weight: Callable[[HostBatch], HostBatch] | None = None) -> Streamed:
    """Returns batches of anything that `is_stream`."""
    order = _order_of(x, drawing)
    size, count = batch_size or 32, _count(x, order)
    open_epoch, length = _opener(x, size, drawing.seed, order, drawing.shuffle)
    if isinstance(length, int) and steps is not None:
        length = min(length, steps)
    samples = None if count is None or length is None else min(count, length * size)
    repeatable = not (inspect.isgenerator(x) or (hasattr(x, "__next__") and not hasattr(x, "__len__")))
    running: Iterator[Any] | None = None  # a generator goes on from epoch to epoch

    def source(epoch: int, first: int) -> Iterator[HostBatch]:
        nonlocal running
        if repeatable:
            items = open_epoch(epoch, first)
        else:
            running = running if running is not None else iter(x)
            items = running
        numbers = None if ids is None else ids(epoch)
        return (prepare(item, numbers) for item in (items if steps is None else islice(items, max(0, steps - first))))

    def prepare(item: Any, numbers: Tensor | None) -> Any:
        batch = host_batch(item, input_names, output_names)
        batch = class_weight(batch) if class_weight else batch
        if not isinstance(item, PictureBatch):
            return batch
        return (*batch, item.places if numbers is None else numbers[item.places])  # bad files move the numbers of no other

    ids = None if order is None else lambda epoch: draw_ids(order(epoch), len(x))
    return Streamed(source, device, steps if length is None else length, samples, repeatable, _generators_of(x),
                    augment=drawing.augment, ids=ids, ahead=isinstance(x, PictureStream), batch_size=size if has_samples(x) else None,
                    why=x.why if isinstance(x, PictureStream) else f"what a {type(x).__name__} gives")


def _order_of(x: Any, drawing: Drawing) -> Order | None:
    """Returns the order in which the samples of a `Dataset` are asked for; None where `x` has an order of its own.

    Raises:
        DataError: a sampler is asked for, and `x` decides by itself what comes.
    """
    from torch.utils.data import Dataset, IterableDataset

    if isinstance(x, Dataset) and not isinstance(x, IterableDataset):
        return drawing.order(len(x), lambda: _labels_of(x))  # type: ignore[arg-type]
    if drawing.sampler is not None:
        raise DataError(explain("fit(sampler)", f"a {type(x).__name__}, which decides itself what comes", "arrays or a Dataset",
                                "Give a DataLoader its own sampler, such as torch.utils.data.WeightedRandomSampler."))
    return None


def _labels_of(dataset: Any) -> Tensor | None:
    """Returns the labels that a `Dataset` has beside its samples, as those of torchvision do."""
    found = next((value for name in ("targets", "labels") if (value := getattr(dataset, name, None)) is not None), None)
    return None if found is None else checks.as_tensor(found, "the dataset's labels")


def _count(x: Any, order: Order | None) -> int | None:
    """Returns the samples of an epoch of a `Dataset`; None where only the end tells."""
    from torch.utils.data import Dataset, IterableDataset

    if not isinstance(x, Dataset) or isinstance(x, IterableDataset):
        return None
    return len(x) if order is None else len(order(0))  # type: ignore[arg-type]


def _opener(x: Any, batch_size: int, seed: int | None = None, order: Order | None = None,
            shuffle: bool = False) -> tuple[Callable[[int, int], Iterator[Any]], int | None]:
    """Returns ((epoch, first batch) → iterator over raw batches, number of batches if known).

    What can be asked for by number starts at the first batch without reading those before it; what can only be
    iterated is read and thrown away up to there, before the iterator is returned.
    """
    from torch.utils.data import DataLoader, IterableDataset

    if isinstance(x, PictureStream):
        return x.opener(batch_size, order)
    if isinstance(x, SampleStream):
        mixed = (seed or 0) if shuffle else None
        return (lambda epoch, first: x.open_epoch(epoch, first, batch_size, mixed)), None
    if isinstance(x, IterableDataset):
        # A loader without a generator draws from PyTorch's global one.
        return (lambda epoch, first: _behind(DataLoader(x, batch_size, generator=epoch_generator(seed or 0, epoch)), first)), None
    if (count := _count(x, order)) is not None:

        def load(epoch: int, first: int) -> Iterator[Any]:
            rows = range(count) if order is None else order(epoch).tolist()
            return iter(DataLoader(x, batch_size, sampler=rows[first * batch_size :], generator=epoch_generator(seed or 0, epoch)))

        return load, -(-count // batch_size)
    if hasattr(x, "of_epoch"):  # an iterator without end that can be asked for any epoch
        return x.of_epoch, len(x)
    length = len(x) if hasattr(x, "__len__") else None
    if hasattr(x, "__iter__"):
        return (lambda epoch, first: _behind(x, first)), length
    return (lambda epoch, first: (x[i] for i in range(first, len(x)))), length


def _behind(items: Iterable[Any], first: int) -> Iterator[Any]:
    """Returns an iterator whose first `first` items have been read."""
    iterator = iter(items)
    next(islice(iterator, first, first), None)
    return iterator


SIGNAL_SECONDS = 1.0
"""In which the system tells of a process that has ended, after its connections were broken."""


@contextmanager
def lost_workers_explained(*sources: Any) -> Iterator[None]:
    """Tells what may have happened where the worker of a loader is gone; PyTorch raises that from a signal handler, so anywhere.

    What comes first is a matter of chance: the signal, or a broken connection to the worker. The words are the same.

    Args:
        sources: data that may be loaders with workers.

    Raises:
        DataError: a worker was killed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        told = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
        broken = not isinstance(error, RuntimeError) and any(getattr(source, "num_workers", 0) for source in sources)
        if not (told or broken):
            raise
        if broken:  # the signal is still to come, and would raise in whatever runs then
            with suppress(RuntimeError):
                time.sleep(SIGNAL_SECONDS)
        raise DataError(explain("the loader", "the end of a worker process, killed or crashed", "workers that live on",
                                "A system short of memory kills processes: try fewer workers or smaller batches. "
                                "num_workers=0 reads in this process, where an error shows.")) from error


def _generators_of(x: Any) -> list[torch.Generator]:
    """Returns the random generators that a loader was given, which decide its order."""
    sampler = getattr(x, "sampler", None)
    inner = getattr(getattr(x, "batch_sampler", None), "sampler", None)
    found = {id(g): g for owner in (x, sampler, inner) if isinstance(g := getattr(owner, "generator", None), torch.Generator)}
    return list(found.values())


def peek(x: Any, batch_size: int) -> tuple[Any, Any]:
    """Returns the first batch of `x` and an `x` that still has it."""
    if hasattr(x, "__next__") and not hasattr(x, "of_epoch"):
        first = next(iter(x), None)
        if first is None:
            raise DataError(explain("the generator", "no batches", "at least one"))
        return first, chain([first], x)
    opened, _ = _opener(x, batch_size)
    first = next(opened(0, 0), None)
    if first is None:
        raise DataError(explain("the dataset", "no batches", "at least one"))
    return first, x


def host_batch(item: Any, input_names: Names, output_names: Names) -> HostBatch:
    """Returns one raw batch, `x`, `(x, y)` or `(x, y, sample_weight)`, as tensors.

    Raises:
        DataError: it is none of these.
    """
    parts = tuple(item) if isinstance(item, (tuple, list)) and not is_array(item) else (item,)
    if not 1 <= len(parts) <= 3:
        raise DataError(explain("a batch", f"{len(parts)} parts", "x, (x, y) or (x, y, sample_weight)"))
    x, y, weight = (*parts, None, None)[:3]
    xs, ys = (tuple(checks.as_tensor(a) for a in arrays_of(v, n, w)) for v, n, w in ((x, input_names, "x"), (y, output_names, "y")))
    if not xs or len(xs[0]) == 0:
        raise DataError(explain("a batch", "no samples", "at least one"))
    return xs, ys, spread_weights(weight, ys, output_names)


def spread_weights(weight: Any, ys: Sequence[Tensor], output_names: Names) -> tuple[Tensor, ...]:
    """Returns sample weights for each output: one array stands for all of them."""
    found = [checks.as_tensor(w).float() for w in arrays_of(weight, output_names, "sample_weight")]
    if not found:
        return ()
    if len(found) == 1:
        found = found * max(1, len(ys))
    if len(found) != len(ys):
        raise DataError(explain("sample_weight", f"{len(found)} arrays", f"one, or one for each of {len(ys)} outputs"))
    return tuple(found)


def accepted_shapes(model: Any, any_size: bool = False) -> list[Any]:
    """Returns the input shapes that fit; where code alone decides, pictures of another size than the first may fit too.

    Args:
        model: with `input_shapes` and `flexible_input`.
        any_size: whether pictures get the right size in the step.
    """
    if not model.flexible_input and not any_size:
        return list(model.input_shapes)
    return [(*(None for _ in shape[:-1]), shape[-1]) for shape in model.input_shapes]


def split_validation(parts: Sequence[Sequence[Tensor]], fraction: float) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Returns (training part, validation part): the last `fraction` of the samples is for validation, as in Keras."""
    if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ArgumentError(explain("fit(validation_split)", fraction, "a number between 0 and 1", "For example 0.1."))
    count = len(parts[0][0])
    cut = int(count * (1 - fraction))
    if cut in (0, count):
        raise DataError(explain("fit(validation_split)", f"{fraction} of {count} samples", "at least one sample on either side"))
    return [[t[:cut] for t in part] for part in parts], [[t[cut:] for t in part] for part in parts]


def unpack_validation(data: Any) -> tuple[Any, Any, Any]:
    """Returns (x, y, sample_weight) of `validation_data`."""
    if isinstance(data, (tuple, list)):
        if not 2 <= len(data) <= 3:
            raise ArgumentTypeError(explain("validation_data", f"{len(data)} parts", "(x, y) or (x, y, sample_weight)"))
        return (*data, None)[:3]
    return data, None, None
