"""The parent's side of a worker: send a task with a time limit, and report how it ended.

The caller gets the task's result, or how its process ended: by a signal, an exit, or silence.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmark.children import offline_environment, send
from raydpo.core.environment import CPU_ENVIRONMENT, worker_environment
from raydpo.core.errors import RaydpoError

#: Lines of a process's output that a result keeps.
_LAST_LINES = 40
#: Imports of torch and transformers on a cold disk.
_START_SECONDS = 180.0


class WorkerError(RaydpoError):
    """The worker process does not start."""


class Worker:
    """A process that runs tasks; it is gone after a task that crashed or took too long."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "acceptance.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),  # noqa: SIM115  (the process's, as long as it lives)
            text=True,
            env=environment(),
            start_new_session=True,  # so that what a task started ends with it
        )
        hello = self._read(_START_SECONDS)
        if hello is None:
            self.end()
            raise WorkerError(
                "the worker process does not start:\n" + "\n".join(self.last_lines()),
                "it imports torch, transformers and raydpo.training",
                "see above; `--wheels` says what to bring",
            )
        self.facts: dict[str, Any] = hello["facts"]
        self.tasks: list[tuple[str, str, float]] = [(n, g, s) for n, g, s in hello["tasks"]]

    @property
    def alive(self) -> bool:
        """Whether it takes another task."""
        return self._process.poll() is None

    def run(self, task: str, context: dict[str, Any], limit_seconds: float) -> dict[str, Any]:
        """Run one task; the process is gone where that went wrong."""
        started = time.perf_counter()
        send(self._process, {"task": task, "context": context})
        answer = self._read(limit_seconds)
        if answer is not None:
            if answer["status"] == "crashed":
                answer["last_lines"] = self.last_lines()
                self.end()
            return answer
        return self._ended(time.perf_counter() - started, limit_seconds)

    def last_lines(self) -> list[str]:
        """The end of what the process printed."""
        return self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:]

    def end(self) -> None:
        """End the process and what it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _ended(self, seconds: float, limit_seconds: float) -> dict[str, Any]:
        if seconds < limit_seconds:  # its output was closed
            code = self._process.wait(timeout=10)
            status, reason = "crashed", f"the process ended with {code}"
        else:
            self._process.send_signal(signal.SIGUSR1)  # prints the frames of all threads
            time.sleep(0.5)
            status, reason = "timed out", f"no answer within {limit_seconds:.0f} s"
            os.killpg(self._process.pid, signal.SIGKILL)
        self.end()
        lines = self.last_lines()
        return {"status": status, "seconds": seconds, "reason": reason, "last_lines": lines}

    def _read(self, limit_seconds: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_seconds)
        line = self._process.stdout.readline() if ready else ""
        return json.loads(line) if line else None


def environment() -> dict[str, str]:
    """Of a worker: no network, both source roots, glibc's malloc as in production."""
    tuned = {**dict(CPU_ENVIRONMENT), **dict(worker_environment(cuda=True, cpus=0))}
    return {
        **offline_environment({**os.environ, **tuned}),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic algorithms need it
    }
