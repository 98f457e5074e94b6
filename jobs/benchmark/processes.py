"""The contenders' processes, and the turns that they take.

For each contender on a scenario, the module returns the seconds of its runs. All contenders take
the same steps of the same data in turn (A B C A B C ...), so that other load and the machine's
temperature affect all alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydpo.core.environment import CPU_ENVIRONMENT, worker_environment
from raydpo.core.errors import RaydpoError

from .children import offline_environment, send
from .flops import peak_flops
from .spec import Contender, Scenario


class BenchmarkError(RaydpoError):
    """A contender's process died, or contenders compute different things."""


@dataclass
class Runs:
    """What was measured of one contender in one scenario.

    Attributes:
        contender: who.
        parameters: of its model.
        seconds: of each run of `count` steps.
        losses: of all steps from the first, warm-up included.
        growth_bytes: peak memory since the model was built.
        peak_bytes: peak memory, the model included.
        peak_flops: of a matrix product after each run; ours only.
    """

    contender: Contender
    parameters: int
    seconds: list[float] = field(default_factory=lambda: [])
    losses: list[float] = field(default_factory=lambda: [])
    growth_bytes: int = 0
    peak_flops: list[float] = field(default_factory=lambda: [])
    peak_bytes: int = 0

    def add(self, answer: dict[str, Any]) -> None:
        """Take in a gate's answer to `steps`."""
        self.seconds.append(answer["seconds"])
        self.losses += answer["losses"]
        self.growth_bytes = answer["growth_bytes"]
        self.peak_bytes = answer["peak_bytes"]


class Worker:
    """One contender's process."""

    def __init__(self, contender: Contender, threads: int, logs: Path, device: str) -> None:
        self.contender = contender
        self._log = logs / f"{contender.name}.log"
        self._process = subprocess.Popen(  # noqa: S603
            [
                sys.executable,
                "-m",
                "benchmark.worker",
                json.dumps(contender.as_json()),
                str(threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self._log, "a"),  # noqa: SIM115  (the process's, as long as it lives)
            text=True,
            env=environment(contender, threads, device),
        )

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            BenchmarkError: the process died.
        """
        self.tell(command)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(
                f"the process of {self.contender.name} ended with {self._process.wait()}:\n"
                + "\n".join(self._log.read_text(errors="replace").splitlines()[-25:]),
                "a contender answers every command",
                f"its whole output is in {self._log}",
            )
        return json.loads(line)

    def tell(self, command: dict[str, Any]) -> None:
        """Send a command that has no answer."""
        send(self._process, command)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def environment(contender: Contender, threads: int, device: str) -> dict[str, str]:
    """Environment of a contender's process: threads, allocators, one GPU, no network."""
    tuned = dict(CPU_ENVIRONMENT if device == "cpu" else worker_environment(True, threads))
    inherited = {name: value for name, value in os.environ.items() if name not in tuned}
    if device == "cuda":  # TRL's trainer would spread its batches over all that it sees
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        inherited["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    return {
        **offline_environment(inherited),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **(tuned if contender.malloc else {}),
    }


@contextmanager
def workers(
    contenders: list[Contender], threads: int, logs: Path, device: str
) -> Generator[list[Worker]]:
    """Processes of these contenders, for as long as the block lasts."""
    with ExitStack() as stack:
        started: list[Worker] = []
        for contender in contenders:
            worker = Worker(contender, threads, logs, device)
            stack.callback(worker.close)
            started.append(worker)
        yield started


@dataclass(frozen=True)
class Turns:
    """How long a scenario is measured.

    Attributes:
        warm_up: steps of each contender before anything is timed.
        repeats: timed turns of each contender.
        count: steps of one turn.
        peak_size: rows of the matrices whose product says what the hardware can do.
    """

    warm_up: int = 2
    repeats: int = 5
    count: int = 2
    peak_size: int = 2048


def take_turns(scenario: Scenario, started: list[Worker], turns: Turns) -> list[Runs]:
    """Measure all contenders on a scenario, in turn."""
    runs: list[Runs] = []
    for worker in started:
        worker_runs = Runs(worker.contender, worker.ask(scenario.as_json())["parameters"])
        _steps(worker, worker_runs, turns.warm_up)
        worker_runs.seconds.clear()
        runs.append(worker_runs)
    for _ in range(turns.repeats):
        for worker, worker_runs in zip(started, runs, strict=True):
            _steps(worker, worker_runs, turns.count)
            if worker.contender.kind in ("raydpo", "score_raydpo"):
                # here, and not in its process, whose memory is measured
                peak = peak_flops(scenario.precision, scenario.device, turns.peak_size)
                worker_runs.peak_flops.append(peak)
    for worker in started:
        worker.tell({"do": "end"})
    return runs


def profile(scenario: Scenario, worker: Worker, warm_up: int, count: int) -> str:
    """Where the time of `count` steps goes, as the profiler's table."""
    worker.ask(scenario.as_json())
    worker.ask({"do": "steps", "count": warm_up})
    text = worker.ask({"do": "profile", "count": count})["profile"]
    worker.tell({"do": "end"})
    return text


def _steps(worker: Worker, runs: Runs, count: int) -> None:
    runs.add(worker.ask({"do": "steps", "count": count}))
