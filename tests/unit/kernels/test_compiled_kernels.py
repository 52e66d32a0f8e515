"""Kernels' machine code: compiled in another process, kept on disk, loaded without LLVM, and what becomes of each failure."""

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convolt.kernels import builder, compiled, machine_code, pool_numba
from convolt.kernels.compiled import Compiled

LOADS = pytest.mark.skipif(not machine_code.loads_here(), reason="LLVM loads kernels on this system")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def adding(step: int) -> Compiled:
    def add(total: Any, first: Any, last: Any) -> None:
        for row in range(first, last):
            total[row] += step
    return Compiled(add)


def added(kernel: Compiled) -> list[int]:
    total = np.zeros(5, np.int64)
    kernel.over_rows((total,), 5, 1)
    return [int(value) for value in total]


def pooled() -> torch.Tensor:
    """What a kernel of the package finds that no call before has loaded."""
    kernel = Compiled(pool_numba._forward.function)
    module = pytest.MonkeyPatch()
    with module.context() as patch:
        patch.setattr(pool_numba, "_forward", kernel)
        x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        return pool_numba.forward(x, None, (2, 2), False)[0]


EXPECTED = torch.nn.functional.max_pool2d(torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4), 2)


@LOADS
def test_neither_numba_nor_llvm_is_loaded(folder: Path) -> None:
    code = ("import sys, torch; from convolt import kernels; x = torch.randn(2, 32, 8, 8, requires_grad=True)\n"
            "kernels.relu_max_pool(x, backend='numba').sum().backward()\n"
            "print(sorted({m.split('.')[0] for m in sys.modules} & {'numba', 'llvmlite', 'scipy'}))")
    for _ in range(2):  # compiled by another process, then found on disk
        run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "[]" and not run.stderr
        assert len(list(folder.glob("*.kernel"))) == 2


def test_all_that_a_kernels_code_is_made_from_has_its_part_in_the_name() -> None:
    """Constants are read when a kernel is compiled, from whatever module has them."""
    package = Path(builder.__file__).parent
    named = {node.module.rsplit(".", 1)[1] for file in package.glob("*_numba.py") for node in ast.walk(ast.parse(file.read_text()))
             if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("convolt.kernels.")
             and any(name.name.isupper() for name in node.names)}
    assert {"jit", "warp_reference", "resize_reference"} <= named
    assert {package / f"{name}.py" for name in named} <= set(compiled.source_files(pool_numba.__file__))


@pytest.mark.parametrize("variable", ["NUMBA_CPU_NAME", "NUMBA_OPT"])
def test_what_numba_is_told_has_its_part_in_the_name(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled._system.cache_clear()
    before = compiled._system()
    monkeypatch.setenv(variable, "1")
    compiled._system.cache_clear()
    assert compiled._system() != before
    compiled._system.cache_clear()


def test_other_processors_than_those_of_linux_are_told_by_llvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/cpuinfo has other words on ARM, and is nowhere else; code for one processor must not be found by another."""
    from llvmlite import binding

    monkeypatch.setattr(machine_code, "loads_here", lambda: False)
    found = []
    for name in ("apple-m1", "apple-m4"):
        monkeypatch.setattr(binding, "get_host_cpu_name", lambda name=name: name)
        compiled._system.cache_clear()
        found.append(compiled._system())
    compiled._system.cache_clear()
    assert found[0] != found[1]


def test_a_user_without_a_home_has_kernels_beside_the_source_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(self: Path) -> Path:
        if str(self).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return self

    for name in ("NUMBA_CACHE_DIR", "CONVOLT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    file = compiled.cache_file("f")
    assert file is not None and file.parent.name == "__pycache__"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert compiled.cache_file("f") is None


def test_kernels_of_a_package_that_cannot_be_written_are_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "__pycache__")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    monkeypatch.delenv("CONVOLT_CACHE")
    assert compiled.cache_file("f") == tmp_path / "users" / "convolt" / "kernels" / "f.kernel"
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "ours"))
    assert compiled.cache_file("f") == tmp_path / "ours" / "kernels" / "f.kernel"


def test_kernels_of_one_kind_are_kept_apart(folder: Path) -> None:
    for _ in range(2):  # the second time from the cache
        for step in (2, 3):
            assert added(adding(step)) == [step] * 5
    assert len(list(folder.glob("*.kernel"))) == 2


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, None])
def test_a_damaged_file_is_made_anew(folder: Path, damage: bytes | None) -> None:
    added(adding(4))
    (file,) = folder.glob("*.kernel")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    assert added(adding(4)) == [4] * 5
    assert compiled._read(file) is not None and len(list(folder.iterdir())) == 1


def test_kernels_that_were_not_loaded_for_long_are_removed(folder: Path) -> None:
    added(adding(6))
    (used,) = folder.glob("*.kernel")
    long_ago = time.time() - (compiled.UNUSED_DAYS + 1) * 86_400
    unused, other = folder / "add_of_an_older_version.kernel", folder / "notes.txt"
    for file in (used, unused, other):
        file.touch()
        os.utime(file, (long_ago, long_ago))
    assert added(adding(6)) == [6] * 5, "loaded from the file, which is new by that"
    compiled._remove_unused.cache_clear()
    added(adding(7))
    assert used.exists() and other.exists() and not unused.exists()


@pytest.mark.skipif(compiled.fcntl is None, reason="no locks of files")
def test_a_kernel_that_another_process_compiles_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert added(adding(8)) == [8] * 5
    (file,) = folder.glob("*.kernel")
    code = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(Compiled, "_compile", lambda *arguments: pytest.fail("compiled twice"))
    with file.with_name(f".{file.name}.lock").open("w") as other:
        compiled.fcntl.flock(other, compiled.fcntl.LOCK_EX)
        timer = threading.Timer(0.2, lambda: file.write_bytes(code))
        timer.start()
        assert added(adding(8)) == [8] * 5
        timer.join()


@pytest.mark.skipif(compiled.fcntl is None, reason="no locks of files")
def test_one_that_never_ends_is_not_waited_for_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LONGEST_WAIT", 0.1)
    assert added(adding(9)) == [9] * 5
    (file,) = folder.glob("*.kernel")
    file.unlink()
    with (lock := file.with_name(f".{file.name}.lock")).open("w") as other:
        compiled.fcntl.flock(other, compiled.fcntl.LOCK_EX)
        assert added(adding(9)) == [9] * 5
        assert file.exists() and lock.exists(), "the other's lock is left alone"
    assert added(adding(9)) == [9] * 5


@pytest.mark.parametrize("what", ["no folder", "disk full"])
def test_a_kernel_is_compiled_without_a_cache_where_there_is_none(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "no folder":
        folder.write_text("a file")
    else:
        def full(self: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    assert added(adding(5)) == [5] * 5
    assert folder.is_file() or not list(folder.iterdir())


@LOADS
@pytest.mark.parametrize("missing", ["machine_code.loads_here = lambda: False", "machine_code._ADDRESS = -1"])
def test_llvm_loads_the_same_files(folder: Path, missing: str) -> None:
    """On other systems, and where a file has what our loader does not know."""
    assert torch.equal(pooled(), EXPECTED)
    (file,) = folder.glob("*.kernel")
    code = ("import torch; from convolt.kernels import builder, compiled, machine_code, pool_numba\n"
            f"compiled._system(); {missing}; builder.compile_elsewhere = None\n"
            "x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)\n"
            "print(float(pool_numba.forward(x, None, (2, 2), False)[0].sum()))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) == float(EXPECTED.sum()) and list(folder.glob("*.kernel")) == [file]


@LOADS
@pytest.mark.parametrize("code", [b"\0" * 200, b"\x7fELF\x01\x01" + b"\0" * 200])
def test_other_files_are_not_loaded(code: bytes) -> None:
    with pytest.raises(machine_code.CannotLoadError, match="not an ELF file"):
        machine_code.load("f", code)


def test_another_process_compiles_the_kernels_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from convolt.kernels import team_numba

    monkeypatch.setattr(team_numba, "object_code", None)
    assert torch.equal(pooled(), EXPECTED)


def test_a_process_that_has_ended_is_started_anew() -> None:
    pooled()
    process = builder._process
    assert process is not None
    process.kill()
    process.wait()
    request = Compiled(pool_numba._forward.function)._request((True, "<i4/1"))
    with pytest.raises(builder.CompilationError, match=r"TypingError|TypeError"):  # an answer, though not of code
        builder.compile_elsewhere(request)
    assert builder._process is not None and builder._process.pid != process.pid


def test_an_answer_that_was_not_read_is_not_taken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(line: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder.json, "loads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pooled()
    assert builder._process is None
    assert torch.equal(pooled(), EXPECTED)


def test_a_process_that_is_idle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from convolt.kernels import builder; builder.IDLE_SECONDS = 0.1\n"
            "builder.serve(sys.stdout.buffer)")
    with subprocess.Popen([sys.executable, "-c", code, str(Path(builder.__file__).parents[2])], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b'{"name": "f", "module": "convolt.kernels.nothing"}\n')
        process.stdin.flush()
        assert b"error" in process.stdout.readline()
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("executable", ["/nowhere/python", "", None, "/bin/cat", "waits"])
def test_this_process_compiles_where_no_other_can_be_started(executable: str | None, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.executable` is empty, or names another program, where Python is embedded in one."""
    builder._end()
    if executable == "waits":
        program = tmp_path / executable
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o755)
        executable = str(program)
        monkeypatch.setattr(builder, "START_SECONDS", 0.2)
    monkeypatch.setattr(builder, "_impossible", False)
    monkeypatch.setattr(sys, "executable", executable)
    assert torch.equal(pooled(), EXPECTED)
    assert builder._process is None


def test_an_application_that_brings_its_own_python_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    builder._end()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert builder.compile_elsewhere({}) is None and builder._process is None


def ran(code: str, *flags: str, **environment: str) -> str:
    """Returns what a Python prints that pools by a kernel; no warning is allowed."""
    pool = ("import torch; from convolt import kernels\nx = torch.arange(96.0).view(2, 3, 4, 4)\n"
            "print(float(kernels.relu_max_pool(x, backend='numba').sum()), 'numba' in sys.modules)")
    run = subprocess.run([sys.executable, *flags, "-c", f"import sys\n{code}\n{pool}"], capture_output=True, text=True,
                         env=os.environ | environment)
    assert run.returncode == 0 and not run.stderr, run.stderr
    return run.stdout


@LOADS
def test_what_is_printed_when_python_starts_is_no_answer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    assert ran("", PYTHONPATH=path) == f"hello\n{float(EXPECTED.sum())} False\n"


@LOADS
@pytest.mark.parametrize("flags", [("-I",), ("-S",), pytest.param(("-E", "-s"), marks=pytest.mark.slow)])
def test_the_other_process_finds_modules_where_this_one_does(flags: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Not by PYTHONPATH, and not in the folder that is current, where another `random` may lie."""
    (tmp_path / "random.py").write_text("raise ImportError('not the one that was meant')")
    assert ran(f"import os; os.chdir({str(tmp_path)!r}); sys.path[:0] = {sys.path!r}", *flags, PYTHONPATH=str(tmp_path)).split() == [
        str(float(EXPECTED.sum())), "False"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_process_that_is_forked_while_a_thread_compiles_does_not_wait_for_it() -> None:
    with builder._lock, compiled._lock:
        child = os.fork()
        if not child:
            os._exit(0 if not builder._lock.locked() and not compiled._lock.locked() and builder._process is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("argument", "message"), [("text", "a kernel was given a str"), (np.zeros((4, 4))[:, ::2], "not contiguous")])
def test_other_arguments_are_refused(argument: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        adding(1).over_rows((argument,), 5, 1)


def listing(out: Any) -> None:
    """Needs Numba's runtime."""
    numbers = [out[i] for i in range(len(out))]
    numbers.append(out[0])
    out[0] = len(numbers)


def test_a_kernel_that_needs_numbas_runtime_is_refused() -> None:
    with pytest.raises(TypeError, match="kernel listing: NRT_"):
        Compiled(listing)(np.zeros(3))


def everything(numbers: Any, arrays: Any, out: Any) -> None:
    """Takes every kind of argument."""
    (whole, wide, narrow), (truth, inner) = numbers
    out[0], out[1], out[2], out[3] = whole, wide, narrow, inner[1]
    out[4] = arrays[0][1, 2] if truth else 0
    out[5] = arrays[1].shape[1]


def test_every_kind_of_argument_arrives() -> None:
    out = np.zeros(6)
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    Compiled(everything)(((-3, 0.1, np.float32(0.3)), (True, (1, -(2**40)))), (square, np.zeros((2, 7, 1), np.uint8)), out)
    assert out.tolist() == [-3, 0.1, float(np.float32(0.3)), -(2.0**40), 6, 7]
