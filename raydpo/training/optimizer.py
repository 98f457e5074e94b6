"""Create AdamW with its state in memory before the first step.

From a module and settings, the function makes the optimizer of its trainable parameters. The
moments live as long as the run. torch would create them in the first step, among that step's
activations. The activations of all later steps would then have to fit around them: on CPUs this
increased memory by the size of the moments once more.
"""

from __future__ import annotations

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
