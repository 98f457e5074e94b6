"""Run one contender in this process, without others to take turns with.

Given a scenario, a contender and a duration, it makes the same runs as contenders in processes of
their own. If a GPU is available only for minutes, starting a process for each setting would take
most of them.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
from typing import Any

import torch

from .flops import peak_flops
from .gate import EndOfScenario, Gate
from .processes import Runs, Turns
from .spec import Contender, Scenario
from .worker import run


def run_alone(
    scenario: Scenario, contender: Contender, turns: Turns, profiled: int = 0
) -> tuple[Runs, dict[str, Any] | None]:
    """Measure a contender.

    Args:
        scenario: the model and the data.
        contender: who.
        turns: how long.
        profiled: steps under the profiler, after those that are timed.

    Returns:
        What was measured, and where the profiled steps' time went: see `kernels`.
    """
    peak = peak_flops(scenario.precision, scenario.device, turns.peak_size)
    release(scenario.device)
    commands = [{"do": "steps", "count": turns.warm_up}]
    commands += [{"do": "steps", "count": turns.count}] * turns.repeats
    commands += [{"do": "profile", "count": profiled}] * bool(profiled)
    answers = io.StringIO()
    asked = io.StringIO("".join(json.dumps(command) + "\n" for command in commands))
    try:
        with contextlib.suppress(EndOfScenario):
            run(scenario, contender, Gate(asked, answers, scenario.device))
    finally:
        if contender.compile:
            torch.compiler.reset()
        release(scenario.device)
    return _read(contender, answers.getvalue(), turns, peak)


def _read(
    contender: Contender, answers: str, turns: Turns, peak: float
) -> tuple[Runs, dict[str, Any] | None]:
    ready, warm, *timed = [json.loads(line) for line in answers.splitlines()]
    runs = Runs(contender, ready["parameters"])
    runs.add(warm)
    runs.seconds.clear()
    for answer in timed[: turns.repeats]:
        runs.add(answer)
        runs.peak_flops.append(peak)
    rest = timed[turns.repeats :]
    return runs, rest[0]["kernels"] if rest else None


def release(device: str) -> None:
    """Give back what a contender held, so that the next one starts as in a new process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
