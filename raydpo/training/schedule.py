"""The learning rate over the steps."""

from __future__ import annotations

import math


def learning_rate(
    step: int, total_steps: int, peak: float, schedule: str, warmup_fraction: float
) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then the schedule.

    Args:
        step: which step.
        total_steps: steps of the whole training.
        peak: the highest learning rate.
        schedule: "constant", "linear" or "cosine"; the last two end at 0.
        warmup_fraction: share of the steps in which the rate rises.
    """
    warmup_steps = round(warmup_fraction * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
