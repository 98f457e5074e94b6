"""Reward models: Bradley-Terry on pairs, Plackett-Luce on rankings.

The objective's section gives its `Measure`. A completion's token values sum to its reward
(`training/reward.py`), which is in `TokenOutputs.logps`.

Shapes: P pairs, Q rankings of at most K completions, R sequences.
"""

from __future__ import annotations

from functools import partial
from typing import assert_never

import torch
from torch import Tensor

from raydpo.config import objectives as sections
from raydpo.training.batch import MicroBatch
from raydpo.training.head import TokenOutputs
from raydpo.training.losses.ranking import plackett_luce_loss
from raydpo.training.losses.reward_model import bradley_terry_loss, centering_term
from raydpo.training.measures.rankings import share_in_order
from raydpo.training.measures.values import Measure, Values


def reward_measure(settings: sections.RewardModelObjective) -> Measure:
    """Build the measure of a reward model."""
    match settings.learns_from:
        case "pairs":
            return partial(_measure_pairs, settings.centering_weight)
        case "rankings":
            return _measure_rankings
        case _:
            assert_never(settings.learns_from)


def _measure_pairs(centering_weight: float, outputs: TokenOutputs, batch: MicroBatch) -> Values:
    rewards = batch.sequence_sums(outputs.logps)
    chosen, rejected = (rewards[side] for side in batch.pairs.unbind(1))
    metrics = _metrics(chosen.detach(), rejected.detach())
    metrics["rewards/accuracies"] = (metrics["rewards/margins"] > 0).float()
    losses = bradley_terry_loss(chosen, rejected)
    if centering_weight:
        losses = losses + centering_weight * centering_term(chosen, rejected)
    return Values(losses, batch.pair_weights, batch.pairs[:, 0], metrics)


def _measure_rankings(outputs: TokenOutputs, batch: MicroBatch) -> Values:
    mask = batch.rankings >= 0
    rewards = batch.sequence_sums(outputs.logps)[batch.rankings.clamp(min=0)]  # [Q, K]
    rows = torch.arange(len(rewards), device=rewards.device)
    metrics = _metrics(rewards[:, 0].detach(), rewards[rows, mask.sum(1) - 1].detach())
    metrics["rewards/accuracies"] = share_in_order(rewards.detach(), mask)
    losses = plackett_luce_loss(rewards, mask, beta=1.0)
    return Values(losses, torch.ones_like(losses), batch.rankings[:, 0], metrics)


def _metrics(best: Tensor, worst: Tensor) -> dict[str, Tensor]:
    return {"rewards/chosen": best, "rewards/rejected": worst, "rewards/margins": best - worst}
