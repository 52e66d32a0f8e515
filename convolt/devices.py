"""Which device computes, and what it is.

`auto` takes the first of CUDA, XPU and MPS that works, and else the CPU. A device that is asked for by name is used
or refused with what was found: there is no silent fallback. ROCm is called "cuda", as in PyTorch.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from convolt.errors import ArgumentTypeError, DeviceError, did_you_mean, explain

ACCELERATORS = ("cuda", "xpu", "mps")
NAMES = ("auto", "cpu", "gpu", *ACCELERATORS)


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is.

    Attributes:
        device: as PyTorch writes it, "cuda:0".
        name: of the product.
        memory_bytes: its memory; None where PyTorch cannot tell.
        capability: CUDA's compute capability ("9.0"), ROCm's architecture, or the CPU's vector instructions ("AVX512").
    """

    device: str
    name: str
    memory_bytes: int | None
    capability: str

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else ""
        return f"{self.device}: {self.name}{memory}{', ' + self.capability if self.capability else ''}"


def multiplies_in_tiles() -> bool:
    """Whether the CPU has units for matrices of bfloat16 (AMX), several times as fast as its vectors."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@functools.cache
def has_slow_mkl() -> bool:
    """Whether oneDNN's products of float32 matrices may be faster than PyTorch's, which are MKL's, made for Intel's own processors."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(both and _cpuinfo("vendor_id") not in ("", "GenuineIntel"))


def multiplies_at_half_rate() -> bool:
    """Whether PyTorch's products of float32 matrices take half of the CPU's rate: MKL leaves AVX-512 to Intel's own processors."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and has_slow_mkl()


def onednn_takes_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this CPU, which takes AVX-512 or newer; elsewhere PyTorch's own loops do, or nothing does."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def lacks_bfloat16(x: torch.Tensor) -> bool:
    """Whether an operation on `x` would compute in bfloat16, by its type or autocast's, on a CPU on which oneDNN does not."""
    if x.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.bfloat16 and not onednn_takes_bfloat16()


def resolve(device: str | torch.device | None = "auto") -> torch.device:
    """Returns the device that is meant.

    Args:
        device: "auto" (or None), "cpu", "gpu" (any accelerator), "cuda", "cuda:1", "xpu", "xpu:1", "mps", or a
            `torch.device`.

    Returns:
        A device that works; accelerators of which there can be several carry an index.

    Raises:
        ArgumentTypeError: `device` is none of these types.
        DeviceError: the name is unknown, or there is no such device; the message says what was found.
    """
    if device is not None and not isinstance(device, (str, torch.device)):
        raise ArgumentTypeError(explain("device", repr(device), f"one of {list(NAMES)}, with an index such as 'cuda:1', or None"))
    text = "auto" if device is None else str(device).strip().lower()
    if text in ("auto", "gpu"):
        return _first_working(text)
    kind, _, number = text.partition(":")
    if kind not in NAMES or kind in ("auto", "gpu") or (":" in text and not number.isdecimal()):
        raise DeviceError(explain("device", repr(text), f"one of {list(NAMES)}, or with an index such as 'cuda:1'",
                                  did_you_mean(kind, NAMES)))
    if kind == "cpu":
        return torch.device("cpu")
    count = device_count(kind)
    if count == 0:
        raise DeviceError(explain(f"device {text!r}", f"no {kind.upper()} device ({what_was_found()})", "a device that is there",
                                  _advice(kind)))
    if kind == "mps":
        return torch.device("mps")
    index = int(number) if number else _module(kind).current_device()
    if index >= count:
        raise DeviceError(explain(f"device {text!r}", f"index {index}", f"an index from 0 to {count - 1}",
                                  f"There are: {'; '.join(str(describe(torch.device(kind, i))) for i in range(count))}."))
    return torch.device(kind, index)


def require_bfloat16(device: torch.device) -> None:
    """Checks that a device computes in bfloat16 by itself; where it is emulated, it is slower than float32 and partly missing.

    Raises:
        DeviceError: it does not.
    """
    if device.type in ("cuda", "xpu"):
        supported = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else torch.xpu.is_bf16_supported()
        if not supported:
            raise DeviceError(explain("precision 'bfloat16'", str(describe(device)), "a device that computes in bfloat16",
                                      "Use precision='float32'."))


def why_not_bfloat16(device: torch.device) -> str | None:
    """Returns why bfloat16 is no candidate for speed on a device; None where hardware multiplies it faster than float32."""
    if device.type == "cuda":
        return None if torch.cuda.get_device_capability(device) >= (8, 0) else "this GPU has no matrix units for bfloat16"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        fast = has.get("avx512_bf16") or has.get("amx_bf16") or has.get("arm_bf16") or has.get("bf16")
        return None if fast else "this processor has neither AVX-512-bf16 nor AMX"
    return f"not known to be faster on {device.type}"


def _float32_operations(kind: str) -> dict[str, Any]:
    """Returns PyTorch's switches of what a device may compute float32 in, by the operations that they are for."""
    backends: Any = torch.backends
    if kind == "cuda":
        return {"convolutions": backends.cudnn.conv, "recurrent layers": backends.cudnn.rnn, "matrix products": backends.cuda.matmul}
    onednn = backends.mkldnn
    return {"convolutions": onednn.conv, "recurrent layers": onednn.rnn, "matrix products": onednn.matmul} if kind == "cpu" else {}


@contextmanager
def float32_as_said(device: torch.device) -> Iterator[None]:
    """Inside, float32 is computed in float32 and nothing shorter: no TF32 on CUDA, no bfloat16 in oneDNN. Afterwards all is as before.

    By default PyTorch lets cuDNN's convolutions compute in TF32, which has bfloat16's precision and a half. Inside, PyTorch's older
    switch `torch.backends.cudnn.allow_tf32` cannot be read; `torch.backends.cudnn.conv.fp32_precision` can.
    """
    operations = _float32_operations(device.type).values()
    before = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "ieee"
        yield
    finally:
        for operation, value in zip(operations, before, strict=True):
            operation.fp32_precision = value


def tf32_in_use(device: torch.device) -> str:
    """Returns which operations on float32 a GPU computes in TF32 now, as words; empty where it has no TF32, or none may."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return ""
    return ", ".join(name for name, operation in _float32_operations("cuda").items() if operation.fp32_precision == "tf32")


def device_count(kind: str) -> int:
    """Returns how many devices of a kind ("cuda", "xpu", "mps") PyTorch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = _module(kind)
    return int(module.device_count()) if module.is_available() else 0


def _module(kind: str) -> ModuleType:
    return {"cuda": torch.cuda, "xpu": torch.xpu}[kind]


def _first_working(wanted: str) -> torch.device:
    """Returns the first accelerator on which a small computation succeeds; a failing one is named in a warning."""
    for kind in ACCELERATORS:
        if device_count(kind) == 0:
            continue
        device = torch.device("mps") if kind == "mps" else torch.device(kind, _module(kind).current_device())
        try:
            torch.ones(1, device=device).add_(1)
        except RuntimeError as error:  # a card that this build has no kernels for, or one that is full
            warnings.warn(f"device {device} is there but cannot be used: {error}", stacklevel=3)
            continue
        return device
    if wanted == "gpu":
        raise DeviceError(explain("device 'gpu'", f"none that works ({what_was_found()})", "a CUDA, XPU or MPS device",
                                  _advice("cuda")))
    return torch.device("cpu")


def what_was_found() -> str:
    """Returns PyTorch's build, the variable that hides devices, and the number of devices, as words of a message."""
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    elif torch.version.cuda:
        build = f"CUDA {torch.version.cuda}"
    else:
        build = "CPU only"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "not set" if visible is None else repr(visible)
    counts = ", ".join(f"{device_count(kind)} {kind}" for kind in ACCELERATORS)
    return f"PyTorch {torch.__version__} built for {build}; CUDA_VISIBLE_DEVICES {shown}; devices: {counts}"


def has_cuda_build() -> bool:
    """Whether this PyTorch was built with CUDA or ROCm."""
    return torch.version.cuda is not None or torch.version.hip is not None


def hides_all_devices() -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` is set so that no device is visible."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1", "none", "NoDevFiles")


def has_nvidia_driver() -> bool:
    """Whether the machine has a running NVIDIA driver, whatever PyTorch was built for."""
    return Path("/proc/driver/nvidia/version").exists()


def _advice(kind: str) -> str:
    if kind == "cuda" and not has_cuda_build():
        return "Install a CUDA build of PyTorch (https://pytorch.org/get-started/locally), or use device='auto' or 'cpu'."
    if kind == "cuda" and hides_all_devices():
        return "Unset CUDA_VISIBLE_DEVICES or name a device in it, or use device='auto' or 'cpu'."
    if kind == "cuda":
        return "Look at the output of nvidia-smi: the driver may be missing or too old. Or use device='auto' or 'cpu'."
    return "Use device='auto' or 'cpu'."


def describe(device: str | torch.device) -> DeviceInfo:
    """Returns name, memory and capability of a device.

    Raises:
        DeviceError: there is no such device.
    """
    resolved = device if isinstance(device, torch.device) and device.index is not None else resolve(device)
    return _READERS[resolved.type](resolved)


def _describe_cuda(device: torch.device) -> DeviceInfo:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return DeviceInfo(str(device), properties.name, properties.total_memory, str(properties.gcnArchName))
    capability = f"compute capability {properties.major}.{properties.minor}"
    return DeviceInfo(str(device), properties.name, properties.total_memory, capability)


def _describe_xpu(device: torch.device) -> DeviceInfo:
    properties = torch.xpu.get_device_properties(device)
    return DeviceInfo(str(device), properties.name, properties.total_memory, "")


def _describe_mps(device: torch.device) -> DeviceInfo:
    return DeviceInfo(str(device), f"Apple {platform.machine()} GPU", torch.mps.recommended_max_memory(), "")


def _describe_cpu(device: torch.device) -> DeviceInfo:
    return DeviceInfo(str(device), cpu_name(), _physical_memory(), torch.backends.cpu.get_cpu_capability())


_READERS: dict[str, Callable[[torch.device], DeviceInfo]] = {
    "cpu": _describe_cpu, "cuda": _describe_cuda, "xpu": _describe_xpu, "mps": _describe_mps}


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return (describe(device).memory_bytes or 8 * 2**30) // 2


def cpu_name() -> str:
    """Returns the processor's product name, or its architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Returns the instruction sets that Linux lists for the processor; empty on other systems."""
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def usable_cores(root: Path = Path("/")) -> int:
    """Returns how many physical cores this process may keep busy: those of its CPU set, and no more than its control groups' share of time.

    Args:
        root: of the file system in which Linux's `/proc` and `/sys` lie. Elsewhere each CPU counts as a core.
    """
    return max(1, int(min(_cores(_allowed(), root), _share_of_time(root))))


def default_threads(root: Path = Path("/")) -> set[int]:
    """Returns the numbers of threads that PyTorch may have taken by itself: all CPUs, or cores, of the machine or of the CPU set."""
    everything = set(range(os.cpu_count() or 1))
    return {count for cpus in (everything, _allowed()) for count in (len(cpus), _cores(cpus, root))}


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _cores(cpus: set[int], root: Path) -> int:
    """Returns on how many physical cores CPUs lie; each by itself where the system does not tell."""
    return len({_siblings(cpu, root) or cpu for cpu in cpus})


@functools.cache
def _siblings(cpu: int, root: Path) -> str:
    """Returns which CPUs share a core with one, which stays as it is; empty where the system does not tell."""
    return _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")


def _share_of_time(root: Path) -> float:
    """Returns how many CPUs' time the control groups of this process may use, those above it included; infinity for no limit."""
    shares = [float("inf")]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            base = root / "sys/fs/cgroup/cpu"
        else:
            continue
        group = base / path.lstrip("/")
        for place in (group, *group.parents):
            if place.is_relative_to(base):
                words = _text(place / "cpu.max") or f"{_text(place / 'cpu.cfs_quota_us')} {_text(place / 'cpu.cfs_period_us')}"
                quota, _, period = words.partition(" ")
                if quota.isdecimal() and period.strip().isdecimal() and int(period):
                    shares.append(int(quota) / int(period))
    return min(shares)


def _text(path: Path) -> str:
    """Returns what a small file of the system says, without white space around it; empty where there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    lines = path.read_text(errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _physical_memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
