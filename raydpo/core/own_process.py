"""Run a function of the user's own in a separate process, which may end or hang without the worker.

A call returns the function's answer, or how the process ended: with which signal or status, at which
line of the user's code, or because it took too much time or memory. The process starts at the first
call, lives on between calls, and starts again after its end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Final

import raydpo
from raydpo.core import errors
from raydpo.core.notices import tell
from raydpo.core.own_child import DUMP_SIGNAL, LENGTH, frame
from raydpo.core.own_frames import own_line_in_dump

#: Interval between checks of the process while it works.
_SECONDS_BETWEEN_LOOKS: Final = 0.1
#: A wait of this length is logged, and again after each further such interval.
_SECONDS_BETWEEN_LINES: Final = 60.0
#: How long faulthandler may take to write the stacks of the process.
_DUMP_SECONDS: Final = 1.0
#: How long a process may take to end after its channel is closed.
_END_SECONDS: Final = 5.0
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Ended:
    """The outcome if the process is gone and there is no answer.

    Attributes:
        how: what happened, as the rest of a sentence whose subject is the function.
        too_slow: whether it was ended because it did not answer in time.
    """

    how: str
    too_slow: bool = False


@dataclass(frozen=True)
class Look:
    """A function as its process found it.

    Attributes:
        call: the arguments that it is called with, in words.
        file: the file of its module; None if the module has none.
        names: the names of what it is called with, where it is called by name.
        required: those of them that only the data can give.
    """

    call: str
    file: Path | None
    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


@dataclass
class OwnProcess:
    """The process of one function, used only by the holder of this object.

    Args:
        path: `package.module:name`.
        import_seconds: how long the import may take.
        max_memory_gib: memory that the process and the processes that it starts may hold together;
            None sets no limit.
        search: folders to look for modules in, before this process's own.
        environment: further variables of the process, in addition to this process's.
        output: where the function's printed output goes; None means this process's stderr.
        options: names of further arguments that the function is called with.
    """

    #: What the function is, for messages: "reward function".
    what: ClassVar[str]
    #: What such a function takes and returns, for messages.
    owed: ClassVar[str]
    #: The module that runs in the process; see `own_child.serve`.
    child: ClassVar[str]

    path: str
    import_seconds: float
    max_memory_gib: float | None = None
    search: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    output: IO[bytes] | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._running: _Running | None = None
        self._look: Look | None = None

    def look(self) -> Look | Ended:
        """Import the function if it is not imported yet.

        Raises:
            ConfigError: it cannot be imported, or cannot be called with what it would be given.
        """
        if self._running is None or self._look is None:
            self.close()
            self._running = _Running.start(
                self.child, self.environment, self.output, self.max_memory_gib
            )
            search = [*filter(None, self.search), *sys.path]
            place = {
                "path": self.path,
                "search": list(dict.fromkeys(search)),
                "options": self.options,
            }
            answer = self._ask(place, self.import_seconds, "(its import)")
            if isinstance(answer, Ended):
                return answer
            file = Path(answer["file"]) if answer["file"] else None
            names = (tuple(answer.get(key, ())) for key in ("names", "required"))
            self._look = Look(answer["call"], file, *names)
        return self._look

    def ask(self, question: dict[str, Any], seconds: float, what: str) -> dict[str, Any] | Ended:
        """Return the function's answer to a question; `what` it is asked for, in words.

        Raises:
            RaydpoError: what its process raised.
        """
        look = self.look()
        if isinstance(look, Ended):
            return look
        answer = self._ask(question, seconds, what)
        if not isinstance(answer, Ended):
            self._restart_if_large()
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.end()
        self._running = self._look = None

    def _ask(self, question: dict[str, Any], seconds: float, what: str) -> dict[str, Any] | Ended:
        assert self._running is not None
        answer = self._running.ask(question, seconds, f"{self._name} {what}")
        if isinstance(answer, Ended):
            self.close()
            return answer
        if "error" in answer:
            if self._look is None:
                self.close()
            raise getattr(errors, answer["error"])(*answer["words"])
        return answer

    def _restart_if_large(self) -> None:
        """Restart between calls; no row is to blame for memory that was never released."""
        running = self._running
        if running is not None and running.holds_too_much():
            held = f"it holds {running.held_gib:.2f} GiB (max_memory_gib {self.max_memory_gib:g})"
            tell(f"{self._name} is started again: {held}")
            self.close()

    @property
    def _name(self) -> str:
        return f"{self.what} {self.path!r}"


@dataclass
class _Running:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    dump: IO[bytes]
    max_memory_gib: float | None

    def __post_init__(self) -> None:
        # If the worker drops the object, the process ends too.
        self._finalizer = weakref.finalize(self, _kill, self.process, self.channel, self.dump)
        self.held_gib = 0.0

    @classmethod
    def start(
        cls,
        child: str,
        environment: tuple[tuple[str, str], ...],
        output: IO[bytes] | None,
        max_memory_gib: float | None,
    ) -> _Running:
        ours, theirs = socket.socketpair()
        dump = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        beside = str(Path(str(raydpo.__file__)).parents[1])
        search = os.pathsep.join(filter(None, [beside, os.environ.get("PYTHONPATH")]))
        descriptors = (theirs.fileno(), dump.fileno())
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - this package, in this Python
                [sys.executable, "-m", child, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": search, **dict(environment)},
                start_new_session=True,  # so that the processes that it starts end with it
            )
        return cls(process, ours, dump, max_memory_gib)

    def ask(self, question: dict[str, Any], seconds: float, what: str) -> dict[str, Any] | Ended:
        """Send a question and wait for its answer, checking the process meanwhile."""
        wait = _Wait(what, seconds)
        to_send = memoryview(frame(question))
        received = bytearray()
        self.channel.settimeout(_SECONDS_BETWEEN_LOOKS)
        while (answer := _whole(received)) is None:
            try:
                if to_send:
                    to_send = to_send[self.channel.send(to_send) :]
                    continue
                piece = self.channel.recv(_MIB)
                if not piece:
                    return Ended(self._how_it_ended())
                received += piece
            except TimeoutError:
                if (ended := self._ended_or_to_end(wait)) is not None:
                    return ended
            except OSError:
                return Ended(self._how_it_ended())
        return answer

    def holds_too_much(self) -> bool:
        """Return whether the process and those that it started exceed their memory limit."""
        if self.max_memory_gib is None:
            return False
        self.held_gib = _resident_bytes(self.process.pid) / (1 << 30)
        return self.held_gib > self.max_memory_gib

    def end(self) -> None:
        """End the process and the processes that it started."""
        self._finalizer()

    def _ended_or_to_end(self, wait: _Wait) -> Ended | None:
        """Describe a process that must end or has ended without an answer; None if it may go on."""
        if self.process.poll() is not None:
            return Ended(self._how_it_ended())
        if self.holds_too_much():
            held = f"took {self.held_gib:.2f} GiB of memory, more than max_memory_gib"
            return Ended(f"{held} ({self.max_memory_gib:g}){self._where()}")
        if wait.is_over():
            return Ended(f"did not answer in {wait.seconds:g} s{self._where()}", too_slow=True)
        return None

    def _how_it_ended(self) -> str:
        try:
            status = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed what it was to answer through"
        how = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            how += ", as the kernel does where memory is short"
        return f"ended its process with {how}{self._line_of_dump()}"

    def _where(self) -> str:
        """Return where the process is, according to its own faulthandler."""
        with suppress(ProcessLookupError):
            self.process.send_signal(DUMP_SIGNAL)
        given_up = time.monotonic() + _DUMP_SECONDS
        while not (line := self._line_of_dump()) and time.monotonic() < given_up:
            time.sleep(0.02)
        return line

    def _line_of_dump(self) -> str:
        self.dump.seek(0)
        line = own_line_in_dump(self.dump.read().decode(errors="replace"))
        return f" at {line}" if line else ""


@dataclass
class _Wait:
    """A wait that is logged every minute, and ends."""

    what: str
    seconds: float

    def __post_init__(self) -> None:
        self._begun = self._told = time.monotonic()

    def is_over(self) -> bool:
        now = time.monotonic()
        waited = now - self._begun
        if now - self._told > _SECONDS_BETWEEN_LINES:
            self._told = now
            limit = f"it is ended after {self.seconds:g} s (timeout_seconds)"
            tell(f"waits for {self.what} since {waited:.0f} s; {limit}")
        return waited > self.seconds


def _whole(received: bytearray) -> dict[str, Any] | None:
    """Return the value of a frame that has arrived completely."""
    if len(received) < LENGTH.size:
        return None
    end = LENGTH.size + LENGTH.unpack_from(received)[0]
    return json.loads(received[LENGTH.size : end]) if len(received) >= end else None


def _kill(process: subprocess.Popen[bytes], *open_files: socket.socket | IO[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for file in open_files:
        file.close()


def _resident_bytes(pid: int) -> int:
    """Return the memory that a process and those it started hold (RSS; Linux)."""
    total = 0
    waiting = [pid]
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        with suppress(OSError):  # the process may end meanwhile
            total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for thread in (folder / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
    return total


def cluster_environment() -> tuple[tuple[str, str], ...]:
    """Return variables that connect a function's calls to Ray to the cluster that it works for."""
    import ray  # here, because checks read this module and must refuse bad input before Ray is loaded

    if not ray.is_initialized():
        return ()
    return (("RAY_ADDRESS", ray.get_runtime_context().gcs_address),)
