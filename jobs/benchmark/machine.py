"""How busy the machine was with other work while something was measured, and how much memory it took.

A thread looks at /proc every few seconds: at the load, at the time that the host took away
(steal), and at the processes of the measured tree. What the processors did beyond the tree is
other work. On machines without /proc nothing is known, and the numbers are None.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
#: Places of user, nice, system, idle, iowait, irq, softirq, steal in the first line of /proc/stat.
_IDLE, _STEAL = (3, 4), 7


@dataclass(frozen=True)
class Noise:
    """The machine while something was measured.

    Attributes:
        seconds: of wall time.
        cpus: processors of the machine.
        load: mean of the load average over one minute.
        load_before: the same when the measurement began.
        own_share: processor time of the measured processes over all there was.
        others_share: the same of all other processes.
        steal_share: the same of what the host gave to others.
        peak_bytes: largest sum over the processes of proportional set sizes (PSS), in which
            shared pages count once; None if it was not asked for.
        looking_seconds: processor time that the watch itself took.
        own_cpu_seconds: processor time of the measured processes; other work stretches it less
            than the wall time.
        cpu_seconds: the same by the titles of the processes, the largest first.
    """

    seconds: float
    cpus: int
    load: float | None = None
    load_before: float | None = None
    own_share: float | None = None
    others_share: float | None = None
    steal_share: float | None = None
    peak_bytes: int | None = None
    looking_seconds: float | None = None
    own_cpu_seconds: float | None = None
    cpu_seconds: dict[str, float] = field(default_factory=lambda: {})

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.load is None:
            return "the machine's load is unknown"
        return (
            f"load {self.load:.1f}, other processes {_percent(self.others_share)}, "
            f"steal {_percent(self.steal_share)}"
        )


class Watch:
    """Watches the machine, and one tree of processes, for as long as the block lasts.

    Args:
        root: the process whose descendants count as measured, with itself; by default this one.
        memory: whether to add up the tree's memory too.
        every_seconds: between two looks.
    """

    def __init__(
        self, root: int | None = None, memory: bool = False, every_seconds: float = 1.0
    ) -> None:
        self._root = os.getpid() if root is None else root
        self._memory = memory
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._loads: list[float] = []
        self._peak_bytes = 0
        self._looking_seconds = 0.0
        self._ticks: dict[tuple[int, int], int] = {}
        self._by_title: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._before = _machine_ticks()
        self._ticks |= {process.key: process.ticks for process in _tree(self._root, set())}
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self._seconds = time.perf_counter() - self._started
        self._after = _machine_ticks()

    def noise(self) -> Noise:
        """What was seen, after the block."""
        cpus = os.cpu_count() or 1
        if self._before is None or self._after is None:
            return Noise(self._seconds, cpus)
        spent = [b - a for a, b in zip(self._before, self._after, strict=True)]
        total = max(1, sum(spent))
        idle, steal = sum(spent[i] for i in _IDLE), spent[_STEAL]
        own = self._by_title.total()
        others = max(0, total - idle - steal - own)
        return Noise(
            seconds=self._seconds,
            cpus=cpus,
            load=statistics.fmean(self._loads),
            load_before=self._loads[0],
            own_share=own / total,
            others_share=others / total,
            steal_share=steal / total,
            peak_bytes=self._peak_bytes if self._memory else None,
            looking_seconds=self._looking_seconds,
            own_cpu_seconds=own / _TICKS,
            cpu_seconds={name: ticks / _TICKS for name, ticks in self._by_title.most_common()},
        )

    def _look_on(self) -> None:
        self._look()
        while not self._ended.wait(self._every_seconds):
            self._look()

    def _look(self) -> None:
        started = time.thread_time()
        with contextlib.suppress(OSError):
            self._loads.append(os.getloadavg()[0])
        processes = _tree(self._root, set(self._ticks))
        for process in processes:
            spent = process.ticks - self._ticks.get(process.key, 0)
            self._ticks[process.key] = process.ticks
            if spent:
                self._by_title[_title(process.id)] += spent
        if self._memory:
            self._peak_bytes = max(self._peak_bytes, sum(_pss_bytes(p.id) for p in processes))
        self._looking_seconds += time.thread_time() - started


@dataclass(frozen=True)
class _Process:
    """One line of the process table; a number that is used again begins at another time."""

    id: int
    parent: int
    started: int
    ticks: int

    @property
    def key(self) -> tuple[int, int]:
        return self.id, self.started


def _tree(root: int, known: set[tuple[int, int]]) -> list[_Process]:
    """The root, its descendants, and those that were descendants before their parent ended."""
    found = _process_table()
    children: dict[int, list[_Process]] = {}
    for process in found:
        children.setdefault(process.parent, []).append(process)
    inside = {p.id: p for p in found if p.id == root or p.key in known}
    waiting = list(inside)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child.id not in inside:
                inside[child.id] = child
                waiting.append(child.id)
    return list(inside.values())


def _process_table() -> list[_Process]:
    found: list[_Process] = []
    if not (_PROC / "stat").exists():
        return found
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended meanwhile
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            # The name before the parenthesis may hold anything.
            values = text[text.rindex(")") + 2 :].split()
            ticks = int(values[11]) + int(values[12])
            found.append(_Process(int(folder.name), int(values[1]), int(values[19]), ticks))
    return found


def _title(process: int) -> str:
    """What a process calls itself: `ray::Engine`, or the name of its script or program."""
    try:
        words = (_PROC / str(process) / "cmdline").read_text("utf-8", "replace").split("\0")
    except OSError:
        return "ended"
    if words[0].startswith("ray::"):
        return words[0].split(":", 2)[2].split("(")[0].split(".")[0].strip() + " (Ray)"
    modules = [word for flag, word in itertools.pairwise(words) if flag == "-m"]
    scripts = [word for word in words[1:] if word.endswith(".py")]
    return Path([*modules, *scripts, words[0]][0]).name or "?"


def _machine_ticks() -> list[int] | None:
    """Ticks of all processors since the start, by what they did."""
    try:
        first = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    return [int(value) for value in first.split()[1:9]]


def _pss_bytes(process: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / str(process) / "smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def said_of(noises: Sequence[Noise]) -> str:
    """One line on the machine during several measurements, for a table's foot."""
    loads = [n.load for n in noises if n.load is not None]
    others = [n.others_share for n in noises if n.others_share is not None]
    steals = [n.steal_share for n in noises if n.steal_share is not None]
    if not loads or not others or not steals:
        return "the machine's load is unknown"
    return (
        f"the machine meanwhile ({noises[0].cpus} CPUs): load {min(loads):.1f} to {max(loads):.1f}, "
        f"other processes took {_percent(min(others))} to {_percent(max(others))} of the CPU time, "
        f"steal {_percent(min(steals))} to {_percent(max(steals))}"
    )


def processor() -> str:
    """The processor's name, as the kernel calls it."""
    try:
        lines = (_PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"
