"""Seal this process, then run a program in it: `python -I sealed_child.py JOB_FD RESULT_FD`.

The job is JSON; `sandbox.py` writes it. Before the program's first line, the process gives up what
it could do to the machine, for good: capabilities, files outside its folder (Landlock), new
processes, sockets and signals to others (seccomp), memory, time and large files (resource limits).
Landlock and seccomp need no root. The file imports nothing of raydpo, so that it starts quickly.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types
from typing import Any, Final

#: Written to the result before the program runs: what follows is the program's doing.
SEALED: Final = b"sealed\n"
#: Status of a process that could not be sealed; the result has the reason.
NOT_SEALED: Final = 97

_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_SIGKILL: Final = 9
_OPEN_FILES: Final = 64

# Landlock, from linux/landlock.h: rights on files and folders, by bit.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_FOLDER, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
_TRUNCATE = 1 << 14
#: The number of rights that each version of Landlock knows; versions from 5 on know 16.
_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_RIGHTS: Final = 16

# Filters of system calls, from linux/bpf_common.h and linux/seccomp.h.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_X86_64: Final = 0xC000003E
_X32: Final = 0x40000000
_SECCOMP: Final = 317
_CLONE, _CLONE3, _KILL_CALL, _TGKILL, _PRLIMIT = 56, 435, 62, 234, 302
_CLONE_THREAD: Final = 0x10000
_EPERM, _ENOSYS = 1, 38

#: System calls of x86_64 that are refused whatever their arguments are, by what they would do.
_REFUSED: Final = {
    "start processes or programs": (57, 58, 59, 322),
    "reach the network or other processes' sockets": (41, 425, 426, 427),
    "signal, trace or slow down other processes": (
        *(101, 129, 200, 297, 310, 311, 312, 424, 434, 438, 440, 448),
        *(141, 142, 144, 203, 251, 314, 256, 279, 237, 238),
    ),
    "raise limits or change how this process ends": (157, 160, 317, 135),
    "change files that Landlock does not watch: modes, owners, times, attributes": (
        *(76, 90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280),
        *(188, 189, 190, 197, 198, 199, 463, 466, 469),
    ),
    "hold memory that no limit counts, or that outlives the process": (
        *(319, 447, 29, 30, 31, 64, 68, 240, 248, 249, 250),
    ),
    "change mounts, names, clocks or the kernel": (
        *(155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442, 467),
        *(153, 154, 159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 180),
        *(212, 227, 246, 305, 313, 320, 321, 443),
    ),
    "watch the machine": (103, 253, 254, 294, 298, 300, 301, 303, 304, 323),
}

_libc: Final = ctypes.CDLL(None, use_errno=True)


def seal(job: dict[str, Any]) -> None:
    """Give up rights for good, as the job says.

    Raises:
        OSError: the kernel lacks what this needs, or refuses it.
    """
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise OSError(f"this is {platform.machine()} and {sys.platform}, not x86_64 and linux")
    _call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    _drop_capabilities()
    limits = {
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_CPU: job["cpu_seconds"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _restrict_files(job["folder"], job["readable"])
    _filter_system_calls()


def _drop_capabilities() -> None:
    """Give up what root may do; others have nothing to give up."""
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for those that do not exist
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))


def _restrict_files(folder: str, readable: list[str]) -> None:
    """Let this process write below `folder` alone, and read there and below `readable`."""
    version = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise OSError("this kernel has no Landlock (Linux 5.13 or newer, in its list of LSMs)")
    every = (1 << _RIGHTS.get(version, _MOST_RIGHTS)) - 1
    network = [3] if version >= 4 else []  # TCP: bind and connect
    scoped = [3] if version >= 6 else []  # abstract sockets, signals
    attributes = struct.pack(f"{1 + len(network) + len(scoped)}Q", every, *network, *scoped)
    rules = _system_call(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    device = _READ_FILE | _WRITE_FILE | (_TRUNCATE & every)
    allowed = [(path, _READ_FILE | _READ_FOLDER) for path in readable]
    for path, rights in [*allowed, ("/dev/null", device), (folder, every)]:
        _allow(rules, path, rights)
    _system_call(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # it is not on this machine
        return
    if not os.path.isdir(path):  # noqa: PTH112 - pathlib takes long to import
        rights &= ~_READ_FOLDER
    _system_call(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, opened), 0)
    os.close(opened)


def _filter_system_calls() -> None:
    refused = sorted(number for numbers in _REFUSED.values() for number in numbers)
    program = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_IF_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_IF_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE | _ENOSYS),
        # glibc then starts threads with `clone`, whose flags can be read here.
        (_IF_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _REFUSE | _ENOSYS),
        *(step for n in refused for step in ((_IF_EQUAL, 0, 1, n), (_RETURN, 0, 0, _REFUSE | _EPERM))),
        *_if_argument(_CLONE, 0, (_IF_SET, _CLONE_THREAD)),
        *_if_argument(_KILL_CALL, 0, (_IF_EQUAL, os.getpid())),
        *_if_argument(_TGKILL, 0, (_IF_EQUAL, os.getpid())),
        *_if_argument(_PRLIMIT, 2, (_IF_EQUAL, 0)),
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filters = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _system_call(_SECCOMP, 1, 1, filters)


def _if_argument(call: int, argument: int, test: tuple[int, int]) -> list[tuple[int, ...]]:
    """Allow a system call if the lower half of an argument passes the test and refuse it otherwise.

    The upper half has to be 0 where the argument is a pointer; of flags and ids the kernel reads
    the lower half alone.
    """
    lower = 16 + 8 * argument
    pointer = call == _PRLIMIT
    upper = [(_LOAD, 0, 0, lower + 4), (_IF_EQUAL, 0, 3, 0)] if pointer else []
    return [
        (_IF_EQUAL, 0, 4 + len(upper), call),
        *upper,
        (_LOAD, 0, 0, lower),
        (test[0], 0, 1, test[1]),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE | _EPERM),
    ]


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _system_call(number: int, *arguments: Any) -> int:
    returned = _libc.syscall(number, *arguments)
    if returned < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return returned


def _run(job: dict[str, Any], result: int) -> None:
    """Run the program, and its tests after it; write the token if all of them came to their end."""
    name = "completion" if job["tests"] is not None else "__main__"
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv = ["completion.py"]
    exec(compile(job["program"], "completion.py", "exec"), module.__dict__)  # noqa: S102
    if job["tests"] is not None:
        exec(compile(job["tests"], "tests.py", "exec"), module.__dict__)  # noqa: S102
    os.write(result, job["token"].encode())


def _main() -> None:
    source, result = map(int, sys.argv[1:3])
    with open(source, "rb") as pipe:
        job = json.load(pipe)
    try:
        seal(job)
    except OSError as error:
        os.write(result, str(error).encode())
        os._exit(NOT_SEALED)
    os.write(result, SEALED)
    _run(job, result)


if __name__ == "__main__":
    _main()
