"""`GpuStat`: how busy the hardware is while a model trains.

Where the model trains on an NVIDIA GPU, its driver is asked through NVML (the package nvidia-ml-py, extra `gpu`): utilization,
memory, power and temperature. Elsewhere it is the processor time and the memory of this process. A thread asks about once a second; the
training does not wait for it.
"""

from __future__ import annotations

import csv
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from convolt.errors import ArgumentError, explain
from convolt.training.hooks import Callback, Logs
from convolt.training.progress import memory_in_use

GIB = 2**30


@dataclass(frozen=True)
class Sample:
    """What was measured at one moment; None where the system does not tell.

    Attributes:
        seconds: since the training began.
        cpu: processor time of this process, in percent of one core.
        ram: memory of this process, bytes.
        gpu: share of the time in which the GPU computed, in percent.
        gpu_memory, gpu_memory_total: of the GPU, bytes: used by all processes, and there is.
        watts: power that the GPU takes.
        celsius: its temperature.
    """

    seconds: float
    cpu: float | None = None
    ram: int | None = None
    gpu: float | None = None
    gpu_memory: int | None = None
    gpu_memory_total: int | None = None
    watts: float | None = None
    celsius: float | None = None

    def describe(self) -> str:
        """Returns the sample for the progress line: that of the GPU if there is one, else that of the process."""
        if self.gpu is None and self.gpu_memory is None:
            return "  ".join(_known(("CPU {:.0f}%", self.cpu)))
        memory = None if self.gpu_memory is None else self.gpu_memory / GIB
        return "  ".join(_known(("GPU {:.0f}%", self.gpu), ("{:.1f} GiB of GPU", memory), ("{:.0f} W", self.watts),
                                ("{:.0f} °C", self.celsius)))


def _known(*entries: tuple[str, float | None]) -> list[str]:
    return [form.format(value) for form, value in entries if value is not None]


# -- where the figures come from ---------------------------------------------------------------------------------------


class ProcessSource:
    """Processor time and memory of this process; works on every system that Python runs on.

    Args:
        clock: returns seconds.
    """

    name = "this process"

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._before = (clock(), _processor_seconds())

    def read(self) -> dict[str, Any]:
        """Returns the values since the last call, by their names in `Sample`."""
        now, used = self._clock(), _processor_seconds()
        then, used_then = self._before
        cpu = None if now <= then else 100 * (used - used_then) / (now - then)
        self._before = (now, used)
        return {"cpu": cpu, "ram": memory_in_use(torch.device("cpu"))}

    def close(self) -> None:
        """Nothing is held."""


def _processor_seconds() -> float:
    """Returns the processor time of this process, all threads, in and out of the kernel."""
    times = os.times()
    return times.user + times.system


class NvmlSource:
    """One GPU, as its driver sees it.

    Args:
        nvml: the module `pynvml`, or what has its functions.
        device: which GPU, as PyTorch counts them.

    What a GPU does not tell (a partition has no utilization, some boards no power) is None.
    """

    def __init__(self, nvml: Any, device: torch.device) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        try:
            self._handle = self._find(device)
            name = nvml.nvmlDeviceGetName(self._handle)
        except BaseException:
            nvml.nvmlShutdown()
            raise
        self.name = name.decode() if isinstance(name, bytes) else str(name)

    def _find(self, device: torch.device) -> Any:
        """Returns NVML's handle; by the GPU's own id, for PyTorch may see other GPUs, in another order, than the driver."""
        index = device.index if device.index is not None else torch.cuda.current_device()
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")

    def read(self) -> dict[str, Any]:
        """Returns the values by their names in `Sample`."""
        nvml, handle = self._nvml, self._handle
        rates = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        celsius = self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        return {"gpu": None if rates is None else float(rates), "gpu_memory": None if memory is None else int(memory.used),
                "gpu_memory_total": None if memory is None else int(memory.total),
                "watts": None if milliwatts is None else milliwatts / 1000, "celsius": None if celsius is None else float(celsius)}

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._nvml.NVMLError:  # not supported here
            return None

    def close(self) -> None:
        """Gives the library back."""
        self._nvml.nvmlShutdown()


def open_nvml(device: torch.device, nvml: Any = None) -> tuple[NvmlSource | None, str]:
    """Returns (the source for a device, ""), or (None, why there is none).

    Args:
        device: where the model trains.
        nvml: in place of the package `pynvml`.
    """
    if device.type != "cuda":
        return None, f"the training is on {device.type}"
    if nvml is None:
        try:
            import pynvml as nvml  # type: ignore[no-redef]
        except ImportError:
            return None, "the package nvidia-ml-py is missing (pip install 'convolt[gpu]')"
    try:
        return NvmlSource(nvml, device), ""
    except nvml.NVMLError as error:
        return None, f"the driver does not tell ({error})"


# -- the callback ------------------------------------------------------------------------------------------------------


class GpuStat(Callback):
    """Watches the hardware while a model trains: on the progress line, in a summary, and in a file.

    Args:
        folder: where `gpustat.csv` is written when the training ends; None: nowhere.
        interval: seconds between two samples.
        nvml: in place of the package `pynvml`.

    Attributes:
        samples: all that were taken.
        source: name of the GPU, or "this process".
        reason: why no GPU is watched; "" where one is.

    >>> watch = GpuStat()
    >>> # model.fit(x, y, callbacks=[watch]); watch.summary()
    """

    is_setting = False  # watching changes no result, so that a training may be resumed with and without

    def __init__(self, folder: str | os.PathLike[str] | None = None, interval: float = 1.0, nvml: Any = None) -> None:
        if not 0.01 <= interval <= 3600:
            raise ArgumentError(explain("GpuStat(interval)", repr(interval), "a number of seconds from 0.01"))
        self.folder = None if folder is None else Path(folder)
        self.interval = interval
        self.samples: list[Sample] = []
        self.source, self.reason = "this process", ""
        self._nvml = nvml
        self._epoch_began = 0
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Starts the thread."""
        self.close()
        trainer = getattr(self.model, "_trainer", None)
        gpu, self.reason = open_nvml(torch.device("cpu") if trainer is None else trainer.device, self._nvml)
        self.source = ProcessSource.name if gpu is None else gpu.name
        self.samples, self._epoch_began = [], 0
        self._stop = threading.Event()
        sources = [ProcessSource(), *([] if gpu is None else [gpu])]
        self._thread = threading.Thread(target=self._watch, args=(sources, self._stop), name="gpustat", daemon=True)
        self._thread.start()

    def _watch(self, sources: list[Any], stop: threading.Event) -> None:
        began = time.perf_counter()
        try:
            ended = False
            while not ended:
                ended = stop.wait(self.interval if self.samples else min(self.interval, 0.1))
                values = {name: value for source in sources for name, value in source.read().items()}
                self.samples.append(Sample(time.perf_counter() - began, **values))
        finally:
            for source in sources:
                source.close()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Marks where the samples of the epoch begin."""
        self._epoch_began = len(self.samples)

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Ends the thread and writes the file."""
        self.close()

    def close(self) -> None:
        """Ends the thread, with a last sample, and writes the file; may be called twice, and must be called after an error."""
        if self._stop is None or self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._stop = self._thread = None
        if self.folder is not None:
            self.write(self.folder / "gpustat.csv")

    # -- what is shown ---------------------------------------------------------------------------------------------

    def progress_text(self, done: bool) -> str:
        """Returns the last sample for the live line, or the means of the epoch for its own line."""
        samples = self.samples[:]
        if not samples:
            return ""
        return _mean(samples[self._epoch_began :] or samples[-1:]).describe() if done else samples[-1].describe()

    def summary(self) -> dict[str, Any]:
        """Returns means and highest values of the training by name, with the source, as JSON values."""
        found: dict[str, Any] = {"source": self.source, "samples": len(self.samples)}
        for name in _NAMES[1:]:
            values = [value for sample in self.samples if (value := getattr(sample, name)) is not None]
            if name == "gpu_memory_total" and values:
                found[name] = values[-1]
            elif values:
                found |= {f"{name}_mean": sum(values) / len(values), f"{name}_max": max(values)}
        return found

    def describe(self) -> str:
        """Returns the summary in a sentence."""
        found = self.summary()

        def span(name: str, unit: str, scale: float = 1.0, digits: int = 0) -> list[str]:
            if f"{name}_mean" not in found:
                return []
            mean, most = found[f"{name}_mean"] / scale, found[f"{name}_max"] / scale
            return [f"{mean:.{digits}f}{unit} on average ({most:.{digits}f}{unit} at most)"]

        if self.source == ProcessSource.name:
            parts = [f"processor {text} of one core" for text in span("cpu", "%")]
            parts += [f"memory {found['ram_max'] / GIB:.2f} GiB at most"] if "ram_max" in found else []
            return "; ".join([", ".join(parts) or "no sample", *([f"no GPU, for {self.reason}"] if self.reason else [])])
        total = f" of {found['gpu_memory_total'] / GIB:.0f}" if "gpu_memory_total" in found else ""
        memory = [f"{found['gpu_memory_max'] / GIB:.1f}{total} GiB"] if "gpu_memory_max" in found else []
        hottest = [f"{found['celsius_max']:.0f} °C at most"] if "celsius_max" in found else []
        return ", ".join([*(f"{self.source} busy {text}" for text in span("gpu", "%")), *memory, *span("watts", " W"), *hottest])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the samples as CSV; what was not told is an empty cell."""
        target = Path(path)
        temporary = target.with_name(target.name + ".part")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(_NAMES)
            for sample in self.samples:
                values = [getattr(sample, name) for name in _NAMES]
                table.writerow(["" if v is None else round(v, 3) if isinstance(v, float) else v for v in values])
        os.replace(temporary, target)


_NAMES = [field.name for field in fields(Sample)]


def _mean(samples: list[Sample]) -> Sample:
    known = {name: [value for sample in samples if (value := getattr(sample, name)) is not None] for name in _NAMES}
    means: Mapping[str, Any] = {name: sum(values) / len(values) if values else None for name, values in known.items()}
    return Sample(**means)
