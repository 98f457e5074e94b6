"""A reward function in a process of its own, which may end or hang without the worker.

What comes in: the function's import path, prompts and completions. What goes out: rewards and
refusals, or how the process ended: with which signal or status, at which line of the user's, or
because it took too long or too much memory. It is started when it is first needed, lives on
from one call to the next, and starts anew after its end.
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
from typing import IO, Any, Final

import raydpo
from raydpo import errors
from raydpo.labeling.own_frames import own_line_in_dump
from raydpo.labeling.reward_child import DUMP_SIGNAL, LENGTH, frame
from raydpo.labeling.rewards import Judged, Refusal
from raydpo.notices import tell

#: How often the process is looked at while it works.
_SECONDS_BETWEEN_LOOKS: Final = 0.1
#: A wait of this long is told, and told again each time it has passed once more.
_SECONDS_BETWEEN_LINES: Final = 60.0
#: How long faulthandler may take to write where the process is.
_DUMP_SECONDS: Final = 1.0
#: How long a process whose channel is closed may take to end.
_END_SECONDS: Final = 5.0
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Ended:
    """The process is gone, and there is no answer.

    Attributes:
        how: what happened, as the rest of a sentence that begins with the function.
        too_slow: it was ended because it did not answer in time.
    """

    how: str
    too_slow: bool = False


@dataclass(frozen=True)
class Look:
    """A function as its process found it.

    Attributes:
        call: what it is called with, in words.
        file: of its module; None where that has none.
    """

    call: str
    file: Path | None


@dataclass
class RewardProcess:
    """The process of one function; whoever holds this is the only one who asks it.

    Args:
        path: `package.module:name`.
        import_seconds: how long importing it may take.
        max_memory_gib: of memory that the process and those that it starts may hold together;
            None sets no limit.
        search: folders to look for modules in, before this process's own.
        environment: variables of the process, beside this one's.
        output: where what the function prints goes; None is where this process's errors go.
    """

    path: str
    import_seconds: float
    max_memory_gib: float | None = None
    search: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    output: IO[bytes] | None = None

    def __post_init__(self) -> None:
        self._running: _Running | None = None
        self._look: Look | None = None

    def look(self) -> Look | Ended:
        """Import the function, where it is not yet.

        Raises:
            ConfigError: it cannot be imported, or not be called with prompts and completions.
        """
        if self._running is None or self._look is None:
            self.close()
            self._running = _Running.start(self.environment, self.output, self.max_memory_gib)
            search = [*filter(None, self.search), *sys.path]
            place = {"path": self.path, "search": list(dict.fromkeys(search))}
            answer = self._ask(place, self.import_seconds, f"the import of {self.path!r}")
            if isinstance(answer, Ended):
                return answer
            self._look = Look(answer["call"], Path(answer["file"]) if answer["file"] else None)
        return self._look

    def judge(
        self, prompts: list[str], completions: list[str], seconds: float, some_of_many: bool = False
    ) -> Judged | Ended:
        """What the function gives; `some_of_many` as in `judge_with_function`.

        Raises:
            ConfigError, DataError: what `judge_with_function` raises there.
        """
        look = self.look()
        if isinstance(look, Ended):
            return look
        question = {
            "prompts": prompts,
            "completions": completions,
            "some_of_many": some_of_many,
        }
        what = f"{self.path!r} on {len(completions)} completions"
        answer = self._ask(question, seconds, what)
        if isinstance(answer, Ended):
            return answer
        self._restart_if_large()
        pairs = zip(answer["values"], answer["reasons"], strict=True)
        return Judged([value if reason is None else Refusal(reason) for value, reason in pairs])

    def close(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.end()
        self._running = self._look = None

    def _ask(self, question: dict[str, Any], seconds: float, what: str) -> dict[str, Any] | Ended:
        assert self._running is not None
        answer = self._running.ask(question, seconds, what)
        if isinstance(answer, Ended):
            self.close()
            return answer
        if "error" in answer:
            if self._look is None:
                self.close()
            raise getattr(errors, answer["error"])(*answer["words"])
        return answer

    def _restart_if_large(self) -> None:
        """Between two calls, no completion is to blame for what was never given back."""
        running = self._running
        if running is not None and running.holds_too_much():
            held = f"it holds {running.held_gib:.2f} GiB (max_memory_gib {self.max_memory_gib:g})"
            tell(f"reward function {self.path!r} is started anew: {held}")
            self.close()


@dataclass
class _Running:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    dump: IO[bytes]
    max_memory_gib: float | None

    def __post_init__(self) -> None:
        # Whoever forgets the worker's judge ends its process with it.
        self._finalizer = weakref.finalize(self, _kill, self.process, self.channel, self.dump)
        self.held_gib = 0.0

    @classmethod
    def start(
        cls,
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
                [sys.executable, "-m", "raydpo.labeling.reward_child", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": search, **dict(environment)},
                start_new_session=True,  # so that those that it starts end with it
            )
        return cls(process, ours, dump, max_memory_gib)

    def ask(self, question: dict[str, Any], seconds: float, what: str) -> dict[str, Any] | Ended:
        """Send a question and wait for its answer, while the process is looked at."""
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
        """Whether the process and those that it started hold more memory than they may."""
        if self.max_memory_gib is None:
            return False
        self.held_gib = _resident_bytes(self.process.pid) / (1 << 30)
        return self.held_gib > self.max_memory_gib

    def end(self) -> None:
        """End the process and those that it started."""
        self._finalizer()

    def _ended_or_to_end(self, wait: _Wait) -> Ended | None:
        """What there is to say of a process that has not answered yet; None if it may go on."""
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
        """Where the process is: its own faulthandler says it."""
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
    """A wait that is told each minute, and ends."""

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
            tell(f"waits for reward function {self.what} since {waited:.0f} s; {limit}")
        return waited > self.seconds


def _whole(received: bytearray) -> dict[str, Any] | None:
    """The value of a frame that has come in whole."""
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
    """Memory that a process and those that it started hold (RSS; Linux)."""
    total = 0
    waiting = [pid]
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        with suppress(OSError):  # it may end meanwhile
            total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for thread in (folder / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
    return total
