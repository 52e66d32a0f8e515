"""Compiling kernels in a process of its own, which ends when nothing is asked of it for a while: LLVM's memory goes with it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

IDLE_SECONDS = 20.0
"""After which the process ends; the next kernel starts another."""

START_SECONDS = 60.0
"""In which Python must have started: the program that `sys.executable` names may be another one, which waits for something else."""

_READY = b"ready to compile kernels"
_START = f"""import os, sys
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # whatever prints meanwhile does not come between
answers.write(b"\\n{_READY.decode()}\\n")
answers.flush()
sys.path[:] = sys.argv[1:]
import convolt
del sys.path[0]  # where this convolt lies, which may be behind another one
from convolt.kernels.builder import serve
serve(answers)"""
_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_of_parents: list[Any] = []
_impossible = False


def _begin_anew() -> None:
    """A forked child has a builder of its own, and no thread that holds the lock."""
    global _lock, _process
    _lock = threading.Lock()
    _of_parents.append(_process)  # which would be waited for when it is forgotten
    _process = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


class CompilationError(Exception):
    """The kernel cannot be compiled; the message is the compiler's."""


class CannotStartError(Exception):
    """There is no process that could compile."""


def compile_elsewhere(request: dict[str, Any]) -> bytes | None:
    """Returns the object file of a kernel of `convolt.kernels`, or None where there is no process that could make it.

    Args:
        request: what `compile_here` takes.

    Raises:
        CompilationError: the compiler refused.
    """
    global _impossible
    with _lock:
        for _ in range(2):  # a process that was just about to end is started anew
            if _impossible or not sys.executable or getattr(sys, "frozen", False):  # within a program that is no Python
                return None
            answer = None
            try:
                answer = _ask(_running(), request)
            except (CannotStartError, OSError) as error:  # or it has ended
                _impossible = isinstance(error, CannotStartError)
            except BaseException:  # as of Ctrl-C: what is still to be read would be taken for the next answer
                _end()
                raise
            if answer is not None:
                told, code = answer
                if "error" in told:
                    raise CompilationError(told["error"])
                return code
            _end()
    return None


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> tuple[dict[str, Any], bytes] | None:
    """Returns the answer's line and the object file; None where the process ended before."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        return None
    told = json.loads(line)
    code = process.stdout.read(told["size"])
    return (told, code) if len(code) == told["size"] else None


def compile_here(name: str, module: str, function: str, made_by: list[Any] | None, kinds: list[Any], rows: bool,
                 fastmath: list[str]) -> bytes:
    """Returns the object file of a kernel, compiled in this process.

    Args:
        name: of the function in the file.
        module, function: where the kernel is found by name.
        made_by: None, or the arguments with which that function makes the kernel.
        kinds, rows, fastmath: see `team_numba.object_code`.
    """
    from convolt.kernels import team_numba

    found = getattr(importlib.import_module(module), function)
    if made_by is not None:
        found = found(*made_by)
    return team_numba.object_code(name, getattr(found, "function", found), kinds, rows, fastmath)


def _running() -> subprocess.Popen[bytes]:
    global _process
    if _process is None:
        try:
            _process = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)  # Ctrl-C is for the training alone
        except OSError as error:
            raise CannotStartError(str(error)) from error
        _wait_for(_process)
    return _process


def _command() -> list[str]:
    """Returns a command that starts Python as this process was, so that it finds the same modules."""
    flags = [flag for flag, given in (("-I", sys.flags.isolated), ("-E", sys.flags.ignore_environment), ("-S", sys.flags.no_site)) if given]
    return [sys.executable, *flags, "-c", _START, str(Path(__file__).parents[2]), *(part for part in sys.path if isinstance(part, str))]


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    """Returns when Python has started; what a `sitecustomize` prints before comes first."""
    assert process.stdout is not None
    late = threading.Timer(START_SECONDS, process.kill)
    late.daemon = True
    late.start()
    try:
        if not any(line.strip() == _READY for line in process.stdout):
            raise CannotStartError(f"{sys.executable} has not started as a Python")
    finally:
        late.cancel()


@atexit.register
def _end() -> None:
    global _process
    if _process is None:
        return
    process, _process = _process, None
    process.kill()  # first, for another thread may be reading
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has ended already, with a request unread
            pipe.close()
    process.wait()


def serve(answers: BinaryIO) -> None:
    """Answers requests, one a line on stdin, until there are none: a line of JSON, then the object file."""
    gc.set_threshold(200_000)  # Numba makes many small objects, and by default collecting them is a seventh of its time
    idle = threading.Timer(0, lambda: None)
    for line in sys.stdin.buffer:
        idle.cancel()
        try:
            code = compile_here(**json.loads(line))
            told: dict[str, Any] = {"size": len(code)}
        except Exception as error:  # the caller raises it
            code, told = b"", {"size": 0, "error": f"{type(error).__name__}: {error}"}
        try:
            answers.write(json.dumps(told).encode() + b"\n" + code)
            answers.flush()
        except BrokenPipeError:  # the training was killed
            os._exit(0)
        idle = threading.Timer(IDLE_SECONDS, os._exit, (0,))
        idle.daemon = True
        idle.start()
