"""One attempt of a run: a driver in a separate process, and the faults that it meets.

For a command and faults, the attempt reports how it ended and which faults occurred. It signals
only processes that it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from .faults import VICTIMS, Fault

#: What a save is known by, for each that has begun so far.
Saves = Callable[[], set[str]]
#: Processes that outlive their driver this long are ended, and counted.
_LEFT_OVER_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        status: the driver's exit status; negative where a signal ended it.
        shown: faults that happened.
        left_over: processes that outlived the driver.
        log: its whole output.
        lives: how many seconds each victim that was there lived, by its name.
        hung: whether it took more than the time that it had, and was killed for that.
    """

    status: int
    shown: list[Fault]
    left_over: list[str]
    log: str
    lives: Mapping[str, float]
    hung: bool = False


@dataclass
class _Watched:
    """The driver and what was seen below it; when each victim was first and last seen, by its name.

    `commands` are those of the last look: Ray gives its processes other names as they work.
    """

    process: psutil.Process
    seen: dict[int, psutil.Process] = field(default_factory=lambda: {})
    commands: dict[int, str] = field(default_factory=lambda: {})
    since: dict[str, float] = field(default_factory=lambda: {})
    last: dict[str, float] = field(default_factory=lambda: {})

    def look(self) -> None:
        """See which processes are there."""
        try:
            for child in self.process.children(recursive=True):
                self.seen[child.pid] = child
        except psutil.NoSuchProcess:
            return
        self.commands = {number: _command(child) for number, child in self.seen.items()}
        for victim in VICTIMS:
            if any(process.is_running() for process in self.living(victim)):
                self.since.setdefault(victim, time.monotonic())
                self.last[victim] = time.monotonic()

    def living(self, victim: str) -> list[psutil.Process]:
        """The processes of a victim's name."""
        if victim in ("", "driver"):
            return [self.process]
        title = VICTIMS[victim]
        return [self.seen[number] for number, said in self.commands.items() if title in said]


def attempt(
    command: list[str],
    log: Path,
    faults: list[Fault],
    saves: Saves,
    begin: Callable[[Fault], Callable[[], None]],
    lives: Mapping[str, float],
    told: Callable[[Fault], None],
    most_seconds: float,
) -> Ended:
    """Run a command to its end.

    Args:
        command: the driver's.
        log: where its output goes.
        faults: what is to happen.
        saves: the checkpoints that the run has begun so far.
        begin: starts a fault of the storage; returns what ends it.
        lives: how many seconds each victim lives in the undisturbed run.
        told: is called with each fault that has happened.
        most_seconds: a command that takes longer is killed.
    """
    with open(log, "w") as output:
        driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
        watched = _Watched(psutil.Process(driver.pid))
        started, before, seen = time.monotonic(), saves(), set[str]()
        waiting, shown = list(faults), []
        passing: list[tuple[float, Callable[[], None]]] = []
        hung = False
        try:
            while driver.poll() is None:
                watched.look()
                seen |= saves() - before
                due = [f for f in waiting if _is_due(f, watched, started, len(seen), lives)]
                for fault in due:
                    end = _show(fault, watched, begin)
                    if end is not None:
                        waiting.remove(fault)
                        shown.append(fault)
                        told(fault)
                        passing.append((time.monotonic() + fault.seconds, end))
                passing = [entry for entry in passing if not _passed(*entry)]
                if not hung and time.monotonic() - started > most_seconds:
                    hung = True
                    driver.kill()
                time.sleep(_TICK_SECONDS)
        finally:
            driver.kill()  # no more than a soak that is ended itself
            driver.wait()
            for _, end in passing:
                end()
            left_over = _end_left_overs(watched)
    lived = {name: watched.last[name] - since for name, since in watched.since.items()}
    return Ended(driver.returncode, shown, left_over, log.read_text(), lived, hung)


def _is_due(
    fault: Fault, watched: _Watched, started: float, saves: int, lives: Mapping[str, float]
) -> bool:
    if fault.save:
        return saves >= fault.save
    victim = fault.victim or "driver"
    since = started if victim == "driver" else watched.since.get(victim)
    return since is not None and time.monotonic() - since >= fault.moment * lives.get(victim, 0.0)


def _show(
    fault: Fault, watched: _Watched, begin: Callable[[Fault], Callable[[], None]]
) -> Callable[[], None] | None:
    """Begin a fault; returns what ends it, or None where its victim is not there now."""
    if not fault.victim:
        return begin(fault)
    victims = [process for process in watched.living(fault.victim) if process.is_running()]
    if not victims:
        return None
    victim = victims[-1]
    _send(victim, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
    return lambda: _send(victim, signal.SIGCONT)


def _passed(until: float, end: Callable[[], None]) -> bool:
    if time.monotonic() < until:
        return False
    end()
    return True


def _send(process: psutil.Process, what: signal.Signals) -> None:
    """Signal a process, unless it has ended."""
    if process.is_running():  # so no other one has its number now
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, what)


def _end_left_overs(watched: _Watched) -> list[str]:
    """Wait for the attempt's processes to end by themselves, and end those that do not."""
    for process in watched.seen.values():
        _send(process, signal.SIGCONT)
    _, alive = psutil.wait_procs(list(watched.seen.values()), timeout=_LEFT_OVER_SECONDS)
    names = [_command(process)[:60] for process in alive]
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=10)
    return names


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return ""
