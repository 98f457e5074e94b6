"""Run a Python program that nobody has read, in a process with limits that hold without root.

A program and its limits go in; whether it came to its end, and what it printed, come out.
`sealed_child.py` sets the limits; this module starts the process, watches it and removes what it
leaves. docs/rewards.md says what is guaranteed, and what is not.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from raydpo.core.errors import ConfigError
from raydpo.labeling.verifiers.sealed_child import NOT_SEALED, SEALED

_CHILD: Final = Path(__file__).with_name("sealed_child.py")
_MIB: Final = 1 << 20
_SECONDS_BETWEEN_LOOKS: Final = 0.02
#: Files and folders that a program may leave below its own folder.
_MOST_FILES: Final = 1000
#: What Python and installed packages read beside their own folders.
_READABLE: Final = (
    *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    Attributes:
        timeout_seconds: time until it has to end.
        cpu_seconds: time that it may compute, a whole number.
        memory_mib: address space of its process.
        files_mib: size of each file that it writes, and of all of them together.
    """

    timeout_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_mib: int = 1024
    files_mib: int = 64

    def __post_init__(self) -> None:
        if min(self.timeout_seconds, self.cpu_seconds, self.memory_mib, self.files_mib) <= 0:
            raise ValueError(f"limits are positive: {self}")
        if any(n != int(n) for n in (self.cpu_seconds, self.memory_mib, self.files_mib)):
            raise ValueError(f"cpu_seconds, memory_mib and files_mib are whole numbers: {self}")


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes:
        finished: whether it, and its tests, came to the end of their last line.
        status: the exit status of its process; negative for a signal.
        output: what it printed.
    """

    finished: bool
    status: int
    output: str


def run_python(program: str, limits: Limits, tests: str | None = None, text: str = "") -> Ran:
    """Run a program in a new process and folder, and wait for its end.

    Args:
        program: Python source.
        limits: what it may take.
        tests: Python source that runs in the program's namespace after it. With tests, the
            program's `__name__` is `completion`, and else `__main__`.
        text: what it reads from its standard input.

    Raises:
        ConfigError: this machine cannot limit the program; nothing of it ran.
    """
    folder = Path(tempfile.mkdtemp(prefix="raydpo-program-"))
    try:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
            given.write(text.encode(errors="replace"))
            given.seek(0)
            return _run(program, tests, limits, folder, given, printed)
    finally:
        _remove(folder)


def _run(
    program: str,
    tests: str | None,
    limits: Limits,
    folder: Path,
    given: IO[bytes],
    printed: IO[bytes],
) -> Ran:
    job_end, job_begin = os.pipe()
    result_end, result_begin = os.pipe()
    process = subprocess.Popen(  # noqa: S603 - this Python, and a file of ours
        [sys.executable, "-I", str(_CHILD), str(job_end), str(result_begin)],
        stdin=given,
        stdout=printed,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=_environment(folder),
        pass_fds=(job_end, result_begin),
        start_new_session=True,
    )
    os.close(job_end)
    os.close(result_begin)
    token = secrets.token_hex(16)
    job = _job(program, tests, limits, folder, token)
    with open(result_end, "rb") as result:
        try:
            with suppress(BrokenPipeError), open(job_begin, "wb") as pipe:
                pipe.write(json.dumps(job).encode())
            status = _ended(process, limits, folder)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = result.read()
    _refuse_unsealed(status, said)
    printed.seek(0)
    return Ran(said == SEALED + token.encode(), status, printed.read().decode(errors="replace"))


def _job(
    program: str, tests: str | None, limits: Limits, folder: Path, token: str
) -> dict[str, object]:
    return {
        "program": program,
        "tests": tests,
        "token": token,
        "folder": str(folder),
        "readable": sorted({sys.prefix, sys.base_prefix, *_READABLE}),
        "cpu_seconds": int(limits.cpu_seconds),
        "memory_bytes": int(limits.memory_mib) * _MIB,
        "file_bytes": int(limits.files_mib) * _MIB,
    }


def _environment(folder: Path) -> dict[str, str]:
    """Return the variables of the program, none of which is of this process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    places = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    python = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", **python, **places, **threads}


def _ended(process: subprocess.Popen[bytes], limits: Limits, folder: Path) -> int:
    """Wait for the process, and kill it at its limits; return its status."""
    given_up = time.monotonic() + limits.timeout_seconds
    while True:
        try:
            return process.wait(_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            if time.monotonic() > given_up or _holds_too_much(folder, limits.files_mib * _MIB):
                process.kill()
                return process.wait()


def _holds_too_much(folder: Path, most_bytes: int) -> bool:
    files = size = 0
    waiting = [str(folder)]
    with suppress(OSError):  # the program may remove it meanwhile
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if files > _MOST_FILES or size > most_bytes:
                        return True
    return False


def _refuse_unsealed(status: int, said: bytes) -> None:
    if said.startswith(SEALED):
        return
    why = (
        said.decode(errors="replace") if status == NOT_SEALED else f"it ended with status {status}"
    )
    raise ConfigError(
        f"the process for programs of completions could not be limited: {why}",
        "raydpo runs such programs only where it can limit their files, processes and network: "
        "Linux 5.13 or newer on x86_64, with Landlock and seccomp",
        "run the workers on such machines, or score with a service of your own (`http`)",
    )


def _remove(folder: Path) -> None:
    """Remove a program's folder, whatever it made there: deep folders, or some without rights."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, str(folder)], check=False, capture_output=True)  # noqa: S603
