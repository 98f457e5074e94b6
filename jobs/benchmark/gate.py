"""Pause a contender between two measurements, from inside its own loop.

The gate reads commands, one JSON object per line, and writes answers likewise. The contender's
own loop (our loop's hook, TRL's callback) calls it after each step. It returns at once until the
requested steps are done; then it answers with their time and waits. So it times the contender's
whole loop, and contenders take turns without a new start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

from torch.profiler import ProfilerActivity, profile

from . import memory
from .flops import synchronize
from .kernels import kernel_times

#: The most operations that a profile names.
_PROFILE_ROWS = 30


class EndOfScenario(Exception):
    """The parent wants no more steps of this scenario."""


class Gate:
    """Counts steps, measures them, and waits for commands in between."""

    def __init__(self, commands: IO[str], answers: IO[str], device: str) -> None:
        self._commands = commands
        self._answers = answers
        self._device = device
        self._left = 0
        self._started = 0.0
        self._losses: list[Callable[[], float]] = []
        self._growth = memory.MemoryGrowth(device, 0)
        self._profile: profile | None = None

    def ready(self, **facts: Any) -> None:
        """Tell the parent that everything is built; return when the first steps are wanted."""
        self._growth = memory.reset(self._device)
        self.answer(**facts)
        self._wait()

    def step_done(self, loss: Callable[[], float]) -> None:
        """A step has ended; `loss` is asked for its value when nothing is timed."""
        self._losses.append(loss)
        self._left -= 1
        if self._left > 0:
            return
        synchronize(self._device)
        seconds = time.perf_counter() - self._started
        found = self._end_profile()
        losses = [value() for value in self._losses]
        self._losses = []
        self.answer(
            seconds=seconds,
            losses=losses,
            growth_bytes=self._growth.bytes(),
            peak_bytes=self._growth.peak_bytes(),
            **found,
        )
        self._wait()

    def answer(self, **values: Any) -> None:
        """Send one answer."""
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        """Wait until steps are wanted.

        Raises:
            EndOfScenario: the scenario is over, or the parent is gone.
        """
        command = json.loads(self._commands.readline() or '{"do": "end"}')
        if command["do"] == "end":
            raise EndOfScenario
        self._left = command["count"]
        if command["do"] == "profile":
            self._start_profile()
        self._started = time.perf_counter()

    def _start_profile(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, record_shapes=False)
        self._profile.start()

    def _end_profile(self) -> dict[str, Any]:
        """The table of the costliest operations, and the time of each family of kernels."""
        if self._profile is None:
            return {}
        self._profile.stop()
        order = "self_cuda_time_total" if self._device == "cuda" else "self_cpu_time_total"
        text = self._profile.key_averages().table(
            sort_by=order, row_limit=_PROFILE_ROWS, max_name_column_width=60
        )
        times = kernel_times(self._profile.events() or [])
        self._profile = None
        return {"profile": text, "kernels": asdict(times)}
