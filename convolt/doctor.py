"""What is installed, which devices there are, where data lies, and what is wrong: the content of `convolt doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from convolt import __version__, devices
from convolt.data import datasets, files
from convolt.errors import ConvoltError

State = Literal["ok", "info", "missing", "problem"]
LOW_DISK_BYTES = 2**30

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?P<bounds>[^;]*)"
                          r"(?:;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"])?")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9][0-9.]*)")


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        section: "packages", "devices", "features", "folders" or "data".
        name: what the line is about.
        value: what was found.
        state: "ok"; "info"; "missing" (optional and not there); "problem" (something will not work as wanted).
        fix: what to do about a missing thing or a problem.
    """

    section: str
    name: str
    value: str
    state: State = "ok"
    fix: str = ""


def report() -> list[Row]:
    """Returns everything that `convolt doctor` shows, sorted by section. Nothing is changed, installed or downloaded."""
    return [*_packages(), *_devices(), *_features(), *_folders(), *_data()]


def problems(rows: list[Row]) -> list[Row]:
    """Returns the rows that tell of a problem."""
    return [row for row in rows if row.state == "problem"]


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Returns the rows as JSON values."""
    return [asdict(row) for row in rows]


# -- packages ----------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[Row]:
    yield Row("packages", "convolt", __version__)
    yield Row("packages", "python", f"{platform.python_version()} ({sys.executable})")
    yield Row("packages", "system", platform.platform(), "info")
    try:
        requirements = importlib.metadata.requires("convolt") or []
    except importlib.metadata.PackageNotFoundError:
        yield Row("packages", "requirements", "unknown: convolt is not installed as a package", "problem", "pip install -e .")
        return
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match and match["extra"] != "dev":
            yield _package_row(match["name"], match["bounds"].strip().strip("()"), match["extra"])


def _package_row(name: str, bounds: str, extra: str | None) -> Row:
    label = f"{name} [{extra}]" if extra else name
    command = f"pip install 'convolt[{extra}]'" if extra else f"pip install '{name}{bounds}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Row("packages", label, "not installed", "missing" if extra else "problem", command)
    if not version_fits(version, bounds):
        return Row("packages", label, f"{version}, but {bounds} is needed", "problem", command)
    return Row("packages", label, version)


def version_fits(version: str, bounds: str) -> bool:
    """Returns whether a version ("2.13.0+cpu") keeps the bounds of a requirement (">=2.11,<2.14"), by its numbers alone.

    >>> version_fits("2.13.0+cpu", ">=2.11,<2.14"), version_fits("2.14.0", ">=2.11,<2.14")
    (True, False)
    """
    def numbers(text: str) -> tuple[int, ...]:
        found = [int(part) for part in re.match(r"[0-9]+(\.[0-9]+)*", text)[0].split(".")]  # type: ignore[index]
        return tuple(found + [0] * (6 - len(found)))

    have = numbers(version)
    for sign, bound in _BOUND.findall(bounds):
        limit = numbers(bound.rstrip("."))
        fits = {">=": have >= limit, "<=": have <= limit, "==": have == limit, "!=": have != limit, "<": have < limit,
                ">": have > limit}[sign]
        if not fits:
            return False
    return True


# -- devices and features ----------------------------------------------------------------------------------------------


def _devices() -> Iterator[Row]:
    yield Row("devices", "build", devices.what_was_found(), "info")
    for kind in devices.ACCELERATORS:
        for index in range(devices.device_count(kind)):
            yield Row("devices", kind, str(devices.describe(torch.device(kind, index))))
    yield Row("devices", "cpu", str(devices.describe("cpu")))
    if devices.device_count("cuda") == 0 and devices.has_nvidia_driver():
        if not devices.has_cuda_build():
            yield Row("devices", "cuda", "the machine has an NVIDIA driver, but PyTorch is built for the CPU only", "problem",
                      "Install a CUDA build of PyTorch: https://pytorch.org/get-started/locally")
        elif not devices.hides_all_devices():
            yield Row("devices", "cuda", "the machine has an NVIDIA driver, but PyTorch finds no device", "problem",
                      "Compare the driver's version (nvidia-smi) with the CUDA version that PyTorch is built for.")
    if devices.hides_all_devices():
        yield Row("devices", "CUDA_VISIBLE_DEVICES", "hides every device", "info", "Unset it to use a GPU.")
    yield Row("devices", "auto takes", str(devices.resolve("auto")))


def _features() -> Iterator[Row]:
    flags = devices.cpu_flags()
    wanted = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
    yield Row("features", "cpu flags", ", ".join(flag for flag in wanted if flag in flags) or "not known", "info")
    if flags and "avx2" not in flags and "asimd" not in flags:
        yield Row("features", "vector instructions", "no AVX2", "problem", "Training is slow here; use another machine or a GPU.")
    cores, threads = devices.usable_cores(), torch.get_num_threads()
    if threads < cores and "OMP_NUM_THREADS" in os.environ:
        yield Row("features", "threads", f"{threads} of {cores} cores (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})", "info",
                  "Unset OMP_NUM_THREADS to use every core.")
    else:
        yield Row("features", "threads", f"{threads} of {cores} cores")
    fast_bf16 = flags & {"avx512_bf16", "amx_bf16", "bf16"}
    yield Row("features", "bf16 on cpu", "fast" if fast_bf16 else "works, but is emulated", "info")
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    yield Row("features", "oneDNN", "yes" if has_onednn else "no", "info")
    if devices.device_count("cuda"):
        yield Row("features", "bf16 on cuda", "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no", "info")
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        yield Row("features", "cuDNN", str(cudnn) if cudnn else "not found", "ok" if cudnn else "problem",
                  "" if cudnn else "Install PyTorch anew: its GPU builds bring cuDNN.")
    for package, use in (("triton", "fused GPU kernels"), ("numba", "fused CPU kernels")):
        yield _kernel_row(package, use)


def _kernel_row(package: str, use: str) -> Row:
    try:
        return Row("features", package, f"{importlib.metadata.version(package)} ({use})")
    except importlib.metadata.PackageNotFoundError:
        needed = package == "triton" and devices.device_count("cuda") > 0
        return Row("features", package, f"not installed ({use})", "problem" if needed else "missing",
                   f"pip install {package}" if package != "triton" else "It comes with PyTorch's GPU builds for Linux.")


# -- folders and data --------------------------------------------------------------------------------------------------


def _folders() -> Iterator[Row]:
    try:
        own = files.data_folder()
        yield Row("folders", "CONVOLT_DATA", str(own) if own else "not set", "info")
    except ConvoltError as error:
        yield Row("folders", "CONVOLT_DATA", str(error), "problem", "Correct or unset CONVOLT_DATA.")
    yield _writable_row("cache", files.cache_folder(), "Set CONVOLT_CACHE to a folder that can be written.")
    yield _writable_row("current folder", Path.cwd(), "Run folders are made here: change to a folder that can be written.")


def _writable_row(name: str, folder: Path, fix: str) -> Row:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Row("folders", name, f"{folder} cannot be written", "problem", fix)
    free = shutil.disk_usage(existing).free
    value = f"{folder} ({free / 2**30:.1f} GiB free{'' if folder.exists() else ', made on first use'})"
    if free < LOW_DISK_BYTES:
        return Row("folders", name, value, "problem", "Make room on this disk.")
    return Row("folders", name, value)


def _data() -> Iterator[Row]:
    forms = {"mnist": (datasets.MNIST.name,),
             "cifar10": (datasets.CIFAR10.name, datasets.CIFAR10_JPEG, *datasets.CIFAR10_FOLDERS)}
    for name, candidates in forms.items():
        try:
            path = next((found for candidate in candidates if (found := files.find(candidate))), None)
        except ConvoltError:
            yield Row("data", name, "not looked for: CONVOLT_DATA is wrong (see folders)", "info")
            continue
        if path is not None:
            yield Row("data", name, str(path))
        else:
            yield Row("data", name, "no copy here; it is downloaded on first use", "missing",
                      f"Without a network put {candidates[0]} into {files.download_folder()}.")
