"""AdamW, with its state in memory before the first step, and the learning rate over the steps.

From a module and settings, `make_optimizer` makes the optimizer of its trainable parameters. The
moments live as long as the run. torch would create them in the first step, among that step's
activations. The activations of all later steps would then have to fit around them: on CPUs this
increased memory by the size of the moments once more.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
from torch import nn
from torch.optim import AdamW

from raydpo.config.job import TrainerConfig


def make_optimizer(module: nn.Module, settings: TrainerConfig) -> AdamW:
    """Build AdamW with one kernel per tensor; vectors (norms, biases) are not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        fused=True,
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


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
