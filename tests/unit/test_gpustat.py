"""`GpuStat`: this process as it is, and a GPU by a stand-in of its driver's library."""

import csv
import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.cli.main import main, normalized
from convolt.errors import ArgumentError
from convolt.profiler import GpuStat
from convolt.profiler.gpustat import NvmlSource, ProcessSource, Sample, open_nvml
from convolt.training.progress import Progress


class NVMLError(Exception):
    """As in pynvml."""


class Nvml:
    """The functions of pynvml that are used; NVML numbers the GPUs other than PyTorch does."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *, lacks: tuple[str, ...] = (), there: bool = True) -> None:
        self.lacks, self.there, self.open = lacks, there, 0

    def nvmlInit(self) -> None:
        if not self.there:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1234":
            raise NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"NVIDIA Test"

    def _tell(self, what: str, value: Any) -> Any:
        if what in self.lacks:
            raise NVMLError("Not Supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return self._tell("utilization", SimpleNamespace(gpu=87, memory=40))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return self._tell("memory", SimpleNamespace(total=24 * 2**30, free=20 * 2**30, used=4 * 2**30))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._tell("power", 212_500)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self._tell("temperature", 64)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="1234" if index == 1 else "5678"))
    return torch.device("cuda", 1)


def net() -> convolt.Sequential:
    model = convolt.Sequential([layers.Input((6, 6, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    return model


X, Y = np.random.default_rng(0).random((64, 6, 6, 1)).astype("float32"), np.arange(64) % 3


# -- this process ----------------------------------------------------------------------------------------------------------


def test_processor_time_is_that_of_this_process() -> None:
    source = ProcessSource()
    busy = time.perf_counter()
    while time.process_time() < 0 or time.perf_counter() - busy < 0.2:
        sum(range(1000))
    worked = source.read()
    time.sleep(0.2)
    idle = source.read()
    assert worked["cpu"] > idle["cpu"] + 5 and worked["ram"] > 2**20


def test_fit_is_watched_and_written(tmp_path: Path) -> None:
    watch = GpuStat(tmp_path, interval=0.02)
    threads = threading.active_count()
    net().fit(X, Y, epochs=3, verbose=0, callbacks=[watch])
    assert threading.active_count() == threads
    assert watch.samples and watch.source == "this process" and watch.reason == "the training is on cpu"
    rows = list(csv.DictReader((tmp_path / "gpustat.csv").read_text().splitlines()))
    assert len(rows) == len(watch.samples) and float(rows[-1]["ram"]) > 0 and rows[0]["watts"] == ""
    assert [float(row["seconds"]) for row in rows] == sorted(float(row["seconds"]) for row in rows)
    summary = watch.summary()
    assert summary["ram_max"] >= summary["ram_mean"] > 0 and "gpu_mean" not in summary and json.dumps(summary)
    assert "of one core" in watch.describe() and "no GPU, for the training is on cpu" in watch.describe()


def test_each_training_begins_anew_and_an_error_ends_it_by_close() -> None:
    class Fails(convolt.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise RuntimeError("now")

    watch, threads = GpuStat(interval=0.02), threading.active_count()
    with pytest.raises(RuntimeError, match="now"):
        net().fit(X, Y, verbose=0, callbacks=[watch, Fails()])
    watch.close()
    watch.close()
    assert threading.active_count() == threads and watch.samples
    net().fit(X, Y, verbose=0, callbacks=[watch])
    assert watch.samples[0].seconds < 1 and threading.active_count() == threads


def test_the_line_of_an_epoch_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(convolt.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            time.sleep(0.15)

    net().fit(X, Y, epochs=2, callbacks=[Slow(), GpuStat(interval=0.02)], verbose=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert all("  CPU " in line and line.endswith("%") for line in lines)


def test_texts_of_others_stand_on_the_progress_line() -> None:
    out = io.StringIO()
    progress = Progress(1, 2, 2, stream=out)
    progress.more = lambda done: ["mean" if done else "now"]
    progress.epoch_begin(0)
    assert progress._live_fields(1, 2, {})[-1] == "now"
    progress.epoch_end({}, 5)
    assert out.getvalue().rstrip().endswith("mean")


def test_watching_is_no_setting_of_a_training(tmp_path: Path) -> None:
    model = net()
    model.fit(X, Y, epochs=1, seed=1, checkpoint=tmp_path, callbacks=[GpuStat(interval=0.02)], verbose=0)
    history = model.fit(X, Y, epochs=1, seed=1, checkpoint=tmp_path, verbose=0)
    assert history.epoch == [0], "resumed without it"


def test_an_interval_that_is_none() -> None:
    with pytest.raises(ArgumentError, match=r"GpuStat\(interval\)"):
        GpuStat(interval=0)


# -- a GPU -----------------------------------------------------------------------------------------------------------------


def test_the_gpu_is_found_by_its_own_id_and_told(one_gpu: torch.device) -> None:
    nvml = Nvml()
    source = NvmlSource(nvml, one_gpu)
    assert source.name == "NVIDIA Test"
    values = source.read()
    assert values == {"gpu": 87.0, "gpu_memory": 4 * 2**30, "gpu_memory_total": 24 * 2**30, "watts": 212.5, "celsius": 64.0}
    assert Sample(1.0, **values).describe() == "GPU 87%  4.0 GiB of GPU  212 W  64 °C"
    source.close()
    assert nvml.open == 0


@pytest.mark.parametrize(("lacks", "shown"), [
    (("power",), "GPU 87%  4.0 GiB of GPU  64 °C"), (("utilization", "temperature"), "4.0 GiB of GPU  212 W"),
    (("utilization", "memory", "power", "temperature"), ""),
])  # fmt: skip
def test_what_a_gpu_does_not_tell_is_left_out(one_gpu: torch.device, lacks: tuple[str, ...], shown: str) -> None:
    assert Sample(1.0, **NvmlSource(Nvml(lacks=lacks), one_gpu).read()).describe() == shown


def test_without_driver_gpu_or_package_there_is_a_reason(one_gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_nvml(torch.device("cpu"), Nvml()) == (None, "the training is on cpu")
    assert open_nvml(one_gpu, Nvml(there=False)) == (None, "the driver does not tell (Driver Not Loaded)")
    nvml = Nvml()
    assert open_nvml(torch.device("cuda", 0), nvml) == (None, "the driver does not tell (Not Found)")
    assert nvml.open == 0, "given back"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml(one_gpu) == (None, "the package nvidia-ml-py is missing (pip install 'convolt[gpu]')")


def test_a_training_on_a_gpu_is_summed_up(one_gpu: torch.device, tmp_path: Path) -> None:
    """The callback's own hooks, as the loop calls them, with a model whose trainer says that it trains on the GPU."""
    nvml = Nvml()
    watch = GpuStat(tmp_path, interval=0.01, nvml=nvml)
    watch.set_model(SimpleNamespace(_trainer=SimpleNamespace(device=one_gpu)))
    watch.on_train_begin()
    watch.on_epoch_begin(0)
    time.sleep(0.1)
    assert watch.progress_text(False).startswith("GPU 87%") and watch.progress_text(True) == "GPU 87%  4.0 GiB of GPU  212 W  64 °C"
    watch.on_train_end()
    assert nvml.open == 0 and watch.source == "NVIDIA Test"
    power = "212 W on average (212 W at most)"
    assert watch.describe() == f"NVIDIA Test busy 87% on average (87% at most), 4.0 of 24 GiB, {power}, 64 °C at most"
    assert watch.summary()["watts_mean"] == 212.5 and watch.summary()["gpu_memory_total"] == 24 * 2**30


# -- on the command line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "meant"), [
    (["--gpustat=on"], ["--gpustat=on"]), (["--gpustat", "off"], ["--gpustat", "off"]), (["--gpustat"], ["--gpustat=on"]),
    (["--gpustat", "--epochs", "2"], ["--gpustat=on", "--epochs", "2"]), (["--num_epochs=10"], ["--num-epochs=10"]),
])  # fmt: skip
def test_how_it_may_be_typed(typed: list[str], meant: list[str]) -> None:
    assert normalized(typed) == meant


def test_a_saved_model_trains_as_users_type_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --data: digits, whose pictures and classes the model takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    head = layers.Dense(10, activation="softmax")
    model = convolt.Sequential([layers.Input((8, 8, 1)), layers.Rescaling(1 / 16), layers.Flatten(), head])
    model.save("your_model.h5")
    arguments = ["train", "your_model.h5", "--gpustat=on", "--batch_size=64", "--num_epochs=2", "--device=cpu"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "No --data: taking digits" in printed and "Epoch 2/2" in printed and "gpustat  " in printed
    config = json.loads(Path("runs/your_model-digits/config.json").read_text())
    assert config["gpustat"]["source"] == "this process" and config["options"]["gpustat"] == "on"
    assert Path("runs/your_model-digits/gpustat.csv").is_file()
    command = Path("runs/your_model-digits/command.txt").read_text()
    assert "--data digits" in command and "--gpustat on" in command
    assert main([*arguments, "--epochs=3"]) == 2, "one option under two names"
    convolt.Sequential([layers.Input((9, 8, 1)), layers.Flatten(), layers.Dense(10)]).save("other.keras")
    assert main(["train", "other.keras"]) == 2
    message = capsys.readouterr().err
    assert "--data: got nothing; expected data for this model, which takes samples of shape (9, 8, 1) and has 10 outputs" in message
    assert main(["train", "cnn"]) == 2
    assert "'--data': It is missing. Give mnist, cifar10, digits" in capsys.readouterr().err.replace("\n", " ")


def test_pynvml_is_not_imported_with_the_package() -> None:
    code = "import sys, convolt.profiler; print('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
