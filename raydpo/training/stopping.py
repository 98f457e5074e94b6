"""Decide from measurements on held-out data which step is best, and when training stops.

The metrics of each measurement, which are equal on all ranks, give the same `Best` on all ranks.
Checkpoints contain it, so a resumed training decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydpo.config.job import EarlyStoppingConfig


@dataclass(frozen=True)
class Best:
    """The best measurement so far.

    Attributes:
        step: the step after which it was made; 0 if no trained step was measured yet.
        value: the metric there; infinitely bad if no trained step was measured yet.
        reference_value: the metric at the last improvement by more than `min_delta`, which the next
            one is compared with; at first the value before training.
        waited: measurements since then.
    """

    step: int
    value: float
    reference_value: float
    waited: int

    def after(self, step: int, value: float, settings: EarlyStoppingConfig) -> Best:
        """Return what is best once the measurement after `step` is known; the first of equals stays."""
        sign = 1.0 if settings.lower_is_better else -1.0
        best = self
        if sign * value < sign * self.value:
            best = replace(best, step=step, value=value)
        if sign * (self.reference_value - value) > settings.min_delta:
            return replace(best, reference_value=value, waited=0)
        return replace(best, waited=self.waited + 1)

    def stops(self, settings: EarlyStoppingConfig) -> bool:
        """Return whether training has waited for an improvement as long as it may."""
        return settings.patience is not None and self.waited >= settings.patience

    def as_tensor(self) -> Tensor:
        """Return the fields in their order, [4] float64, for a checkpoint."""
        fields = [float(self.step), self.value, self.reference_value, float(self.waited)]
        return torch.tensor(fields, dtype=torch.float64)


def before_training(value: float, settings: EarlyStoppingConfig) -> Best:
    """Return the start, where only the value before training is known."""
    return Best(0, math.inf if settings.lower_is_better else -math.inf, value, 0)


def best_of(tensor: Tensor) -> Best:
    """Return what `Best.as_tensor` gave."""
    step, value, reference_value, waited = tensor.tolist()
    return Best(int(step), value, reference_value, int(waited))
