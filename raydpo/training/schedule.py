"""Compute the learning rate over the steps."""

from __future__ import annotations

import math
from typing import Literal, assert_never

#: The course of the learning rate after the warm-up.
Schedule = Literal["cosine", "linear", "constant"]


def learning_rate(
    step: int, total_steps: int, peak: float, schedule: Schedule, warmup_fraction: float
) -> float:
    """Return the learning rate of a step (counted from 0): linear warm-up, then the schedule.

    Args:
        step: the number of the step.
        total_steps: number of steps in the whole training.
        peak: the highest learning rate.
        schedule: "constant", "linear" or "cosine"; the last two end at 0.
        warmup_fraction: share of the steps in which the rate rises.
    """
    warmup_steps = round(warmup_fraction * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * (0.5 * (1 + math.cos(math.pi * done)))
        case _:
            assert_never(schedule)
