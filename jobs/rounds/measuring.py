"""Run a command of one side: its wall time, its memory, the machine meanwhile, its log."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.children import offline_environment
from benchmark.machine import Watch
from raydpo.core.errors import RaydpoError

#: Lines of a failed command's log that the error shows.
_SHOWN_LINES = 25
#: How long a command that is interrupted may take to end.
_ENDS_WITHIN_SECONDS = 30.0


class SideError(RaydpoError):
    """The command of one side failed."""


@dataclass(frozen=True)
class Timed:
    """One command from its start to its end.

    Attributes:
        started: in seconds since the epoch.
        seconds: of wall time.
        noise: see `benchmark.machine.Noise`, as plain values.
    """

    started: float
    seconds: float
    noise: dict[str, Any]


def run(
    command: Sequence[str], log: Path, root: Path, more: Mapping[str, str] | None = None
) -> Timed:
    """Run a command from the repository's root, with `more` variables, and watch it.

    Raises:
        SideError: it failed; with the end of its log.
    """
    with open(log, "w", encoding="utf-8") as output:
        began, started = time.time(), time.perf_counter()
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=root,
            env={**environment(), **(more or {})},
            start_new_session=True,  # so that a signal reaches the processes of a script, too
        )
        try:
            with Watch(process.pid, memory=True, every_seconds=2.0) as watch:
                code = process.wait()
                seconds = time.perf_counter() - started
        finally:
            if process.poll() is None:  # interrupted: the same command goes on later
                _end(process)
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise SideError(
            f"`{' '.join(command[:4])} ...` ended with {code}:\n"
            + "\n".join(lines[-_SHOWN_LINES:]),
            "both sides run to the end",
            f"its whole output is in {log}",
        )
    return Timed(began, seconds, watch.noise().as_json())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those of its session, the hard way if they take too long."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_ENDS_WITHIN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment() -> dict[str, str]:
    """The variables of both sides: a checkout is enough, and nothing is fetched."""
    return {**offline_environment(os.environ), "PYTHONUNBUFFERED": "1"}
