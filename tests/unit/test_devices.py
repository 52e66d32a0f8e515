"""Devices by name, on machines that have them and machines that do not; the doctor's report."""

import importlib.metadata
import json
from types import SimpleNamespace

import pytest
import torch

from convolt import devices, doctor
from convolt.errors import ArgumentTypeError, DeviceError


@pytest.fixture
def machine(monkeypatch):
    """Makes PyTorch look as on a machine with some devices; their computations run on the CPU."""
    def set_up(cuda=0, xpu=0, mps=0, build="12.8", broken=(), hip=None):
        for kind, count in (("cuda", cuda), ("xpu", xpu)):
            module = getattr(torch, kind)
            monkeypatch.setattr(module, "is_available", lambda count=count: count > 0)
            monkeypatch.setattr(module, "device_count", lambda count=count: count)
            monkeypatch.setattr(module, "current_device", lambda: 0)
            monkeypatch.setattr(module, "get_device_properties", lambda device, kind=kind: SimpleNamespace(
                name=f"{kind.upper()} card {device.index}", total_memory=8 * 2**30, major=9, minor=0, gcnArchName="gfx942"))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps > 0)
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.version, "hip", hip)
        ones = torch.ones

        def fake_ones(*size, device=None, **options):
            if device is not None and torch.device(device).type in broken:
                raise RuntimeError("no kernel image is available")
            return ones(*size, **options)

        monkeypatch.setattr(torch, "ones", fake_ones)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return set_up


@pytest.mark.parametrize(("there", "expected"), [
    ({}, "cpu"), ({"mps": 1}, "mps"), ({"mps": 1, "xpu": 1}, "xpu:0"), ({"mps": 1, "xpu": 2, "cuda": 2}, "cuda:0"),
])
def test_auto_takes_the_first_that_is_there(machine, there, expected):
    machine(**there)
    assert str(devices.resolve("auto")) == expected
    assert str(devices.resolve(None)) == expected
    if there:
        assert str(devices.resolve("gpu")) == expected


def test_auto_passes_over_a_device_that_fails_and_says_so(machine):
    machine(cuda=1, broken=("cuda",))
    with pytest.warns(UserWarning, match="device cuda:0 is there but cannot be used: no kernel image"):
        assert str(devices.resolve("auto")) == "cpu"
    with pytest.warns(UserWarning, match="no kernel image"), pytest.raises(DeviceError, match="none that works"):
        devices.resolve("gpu")


@pytest.mark.parametrize(("asked", "expected"), [
    ("cpu", "cpu"), ("CPU", "cpu"), ("cpu:0", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), (" cuda:1 ", "cuda:1"),
    ("xpu:0", "xpu:0"), ("mps", "mps"), (torch.device("cuda", 1), "cuda:1"), (torch.device("cpu"), "cpu"),
])
def test_named_devices(machine, asked, expected):
    machine(cuda=2, xpu=1, mps=1)
    assert str(devices.resolve(asked)) == expected


def test_current_cuda_device_is_respected(machine, monkeypatch):
    machine(cuda=2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert str(devices.resolve("cuda")) == "cuda:1"
    assert str(devices.resolve("auto")) == "cuda:1"


def test_cuda_where_there_is_none_says_what_was_found(machine, monkeypatch):
    machine(build=None)
    with pytest.raises(DeviceError) as caught:
        devices.resolve("cuda")
    text = str(caught.value)
    assert "no CUDA device" in text
    assert f"PyTorch {torch.__version__} built for CPU only" in text
    assert "CUDA_VISIBLE_DEVICES not set" in text
    assert "0 cuda, 0 xpu, 0 mps" in text
    assert "Install a CUDA build of PyTorch" in text
    machine(build="12.8")
    with pytest.raises(DeviceError, match=r"built for CUDA 12\.8.*nvidia-smi"):
        devices.resolve("cuda:0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match=r"CUDA_VISIBLE_DEVICES ''.*Unset CUDA_VISIBLE_DEVICES"):
        devices.resolve("cuda")


@pytest.mark.parametrize("name", ["mps", "xpu", "xpu:1", "gpu"])
def test_other_accelerators_that_are_not_there(machine, name):
    machine()
    with pytest.raises(DeviceError, match=f"device '{name}'"):
        devices.resolve(name)


def test_index_out_of_range_names_the_devices(machine):
    machine(cuda=2)
    with pytest.raises(DeviceError, match=r"index 2; expected an index from 0 to 1.*CUDA card 0, 8\.0 GiB.*CUDA card 1"):
        devices.resolve("cuda:2")


@pytest.mark.parametrize(("name", "message"), [
    ("cud", "Did you mean 'cuda'"), ("cuda:x", "index such as 'cuda:1'"), ("cuda:", "index"), ("cuda:-1", "index"),
    ("auto:1", "index"), ("tpu", "expected one of"), ("", "expected one of"), ("meta", "expected one of"),
])
def test_unknown_names(machine, name, message):
    machine(cuda=1)
    with pytest.raises(DeviceError, match=message):
        devices.resolve(name)


@pytest.mark.parametrize("value", [0, 1.5, ["cuda"]])
def test_unknown_types(value):
    with pytest.raises(ArgumentTypeError, match="device"):
        devices.resolve(value)


def test_descriptions(machine):
    machine(cuda=1, xpu=1)
    assert devices.describe("cuda") == devices.DeviceInfo("cuda:0", "CUDA card 0", 8 * 2**30, "compute capability 9.0")
    assert str(devices.describe("cuda")) == "cuda:0: CUDA card 0, 8.0 GiB, compute capability 9.0"
    assert devices.describe("xpu").name == "XPU card 0"
    cpu = devices.describe(torch.device("cpu"))
    assert cpu.name
    assert cpu.memory_bytes is None or cpu.memory_bytes > 2**28
    machine(cuda=1, build=None, hip="6.4")
    assert devices.describe("cuda").capability == "gfx942"
    assert "built for ROCm 6.4" in devices.what_was_found()


# -- doctor ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def healthy(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path))
    monkeypatch.setattr(devices, "has_nvidia_driver", lambda: False)
    monkeypatch.chdir(tmp_path)


def row(name, section=None):
    found = [r for r in doctor.report() if r.name == name and section in (None, r.section)]
    assert len(found) == 1, name
    return found[0]


def test_report_covers_everything_and_is_json(healthy):
    rows = doctor.report()
    assert {r.section for r in rows} == {"packages", "devices", "features", "folders", "data"}
    names = {r.name for r in rows}
    assert {"convolt", "python", "torch", "numpy", "pillow", "cpu", "auto takes", "threads", "cache", "mnist", "cifar10"} <= names
    assert json.loads(json.dumps(doctor.as_json(rows)))[0]["section"] == "packages"
    assert all(r.fix for r in rows if r.state in ("missing", "problem"))
    assert row("torch").value == importlib.metadata.version("torch")


def test_missing_extra_names_its_command(healthy, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", without("scikit-learn", "pillow"))
    demo = row("scikit-learn [demo]")
    assert (demo.state, demo.fix) == ("missing", "pip install 'convolt[demo]'")
    core = row("pillow")
    assert core.state == "problem"
    assert core.fix.startswith("pip install 'pillow>=")
    assert doctor.problems(doctor.report()) == [core]


def without(*missing):
    real = importlib.metadata.version

    def version(name):
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    return version


def test_version_out_of_bounds_is_a_problem(healthy, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.0" if name == "torch" else real(name))
    assert row("torch").state == "problem"
    assert "9.0, but " in row("torch").value


@pytest.mark.parametrize(("version", "bounds", "fits"), [
    ("2.11", ">=2.11,<2.14", True), ("2.13.0+cpu", "<2.14,>=2.11", True), ("2.10.9", ">=2.11,<2.14", False),
    ("2.14.0", ">=2.11,<2.14", False), ("1.0rc1", ">=1", True), ("3.0", "", True), ("3", "!=3.0", False), ("3.1", "<=3.1", True),
    ("3.1.1", ">3.1", True), ("3.1", "==3.2", False),
])
def test_bounds(version, bounds, fits):
    assert doctor.version_fits(version, bounds) is fits


def test_driver_without_a_usable_build_is_a_problem(healthy, machine, monkeypatch):
    monkeypatch.setattr(devices, "has_nvidia_driver", lambda: True)
    machine(build=None)
    assert row("cuda").state == "problem"
    assert "Install a CUDA build" in row("cuda").fix
    machine(build="12.8")
    assert "nvidia-smi" in row("cuda").fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert row("CUDA_VISIBLE_DEVICES").fix == "Unset it to use a GPU."


def test_cuda_machine(healthy, machine, monkeypatch):
    machine(cuda=2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(importlib.metadata, "version", without("triton"))
    rows = doctor.report()
    assert [r.value for r in rows if r.section == "devices" and r.name == "cuda"] == [
        f"cuda:{i}: CUDA card {i}, 8.0 GiB, compute capability 9.0" for i in range(2)]
    assert row("cuDNN").value == "91000"
    assert row("bf16 on cuda").value == "yes"
    assert row("triton").state == "problem"
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    assert row("cuDNN").state == "problem"


def test_wrong_folders_are_problems(healthy, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "file" / "cache"))
    assert row("CONVOLT_DATA").state == "problem"
    assert row("cache").state == "problem"
    assert "cannot be written" in row("cache").value
    assert row("mnist").state == "info"


def test_full_disk_is_a_problem(healthy, monkeypatch):
    monkeypatch.setattr("convolt.doctor.shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert row("cache").state == "problem"


def test_data_is_found_where_it_lies(healthy, tmp_path):
    assert row("mnist").state == "missing"
    (tmp_path / "mnist.npz").write_bytes(b"")
    (tmp_path / "cifar10").mkdir()
    assert row("mnist").value == str(tmp_path / "mnist.npz")
    assert row("cifar10").value == str(tmp_path / "cifar10")


# -- cores ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def eight_cpus(tmp_path, monkeypatch):
    """A machine of four cores with two threads each, of which this process may use the CPUs of `allowed`."""
    for cpu in range(8):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    allowed = set(range(8))
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 8)

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return SimpleNamespace(root=tmp_path, allowed=allowed, write=write)


def test_threads_of_one_core_count_once(eight_cpus):
    assert devices.usable_cores(eight_cpus.root) == 4
    assert devices.default_threads(eight_cpus.root) == {4, 8}
    eight_cpus.allowed.difference_update({0, 1, 2, 6, 7})  # 3, 4 and 5 are left, on three cores
    assert devices.usable_cores(eight_cpus.root) == 3
    assert devices.default_threads(eight_cpus.root) == {3, 4, 8}


def test_without_a_topology_each_cpu_is_a_core(eight_cpus, tmp_path):
    assert devices.usable_cores(tmp_path / "nothing") == 8


@pytest.mark.parametrize(("text", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("800000 100000", 4), ("", 4)])
def test_a_control_group_limits_the_cores(eight_cpus, text, cores):
    eight_cpus.write("proc/self/cgroup", "0::/\n")
    eight_cpus.write("sys/fs/cgroup/cpu.max", text)
    assert devices.usable_cores(eight_cpus.root) == cores


def test_the_strictest_of_the_groups_above_counts(eight_cpus):
    eight_cpus.write("proc/self/cgroup", "0::/jobs/mine\n")
    eight_cpus.write("sys/fs/cgroup/jobs/mine/cpu.max", "300000 100000\n")
    assert devices.usable_cores(eight_cpus.root) == 3
    eight_cpus.write("sys/fs/cgroup/jobs/cpu.max", "200000 100000\n")
    assert devices.usable_cores(eight_cpus.root) == 2


@pytest.mark.parametrize(("quota", "cores"), [("-1", 4), ("300000", 3)])
def test_control_groups_of_the_first_version(eight_cpus, quota, cores):
    eight_cpus.write("proc/self/cgroup", "12:memory:/host/path\n4:cpu,cpuacct:/host/path\n")  # of the host, not to be seen in a container
    eight_cpus.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", f"{quota}\n")
    eight_cpus.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert devices.usable_cores(eight_cpus.root) == cores
