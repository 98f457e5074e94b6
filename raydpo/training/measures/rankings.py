"""Rankings: the likelihood of a whole order of K completions, or of the best of them.

The section of an objective that learns from rankings gives its `Measure`, which computes the loss
of each ranking. Every ranking has weight 1.

Shapes: Q rankings of at most K completions, N completion tokens, R sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from raydpo.config import objectives as sections
from raydpo.config.objective_base import LengthDesensitized
from raydpo.training.batch import MicroBatch
from raydpo.training.head import TokenOutputs
from raydpo.training.losses.ranking import best_of_k_loss, plackett_luce_loss
from raydpo.training.measures.values import Measure, Values, sequence_values, token_logratios


def ranking_measure(settings: sections.RankingObjective) -> Measure:
    """Build the measure of an objective on rankings."""
    plackett_luce = isinstance(settings, sections.PlackettLuceObjective)
    loss = plackett_luce_loss if plackett_luce else best_of_k_loss
    return partial(_measure, settings, partial(loss, beta=settings.beta))


def _measure(
    settings: sections.RankingObjective,
    loss: Callable[[Tensor, Tensor], Tensor],
    outputs: TokenOutputs,
    batch: MicroBatch,
) -> Values:
    mask = batch.rankings >= 0
    numbers = batch.rankings.clamp(min=0)
    values = token_logratios(outputs, batch)
    length = settings.length
    if isinstance(length, LengthDesensitized):
        values, length = values * _token_weights(batch, length.ld_alpha), "sum"
    logratios = sequence_values(values, batch, length)[numbers]  # [Q, K]
    metrics = _metrics(settings.beta * logratios.detach(), mask, outputs, batch)
    weights = logratios.new_ones(len(numbers))
    return Values(loss(logratios, mask), weights, batch.rankings[:, 0], metrics)


def _token_weights(batch: MicroBatch, alpha: float) -> Tensor:
    """Return [N] weights: 1 up to the length of the ranking's shortest completion, then alpha."""
    shared = batch.sequence_lengths.clone()
    mask = batch.rankings >= 0
    lengths = batch.sequence_lengths[batch.rankings.clamp(min=0)]
    shortest = lengths.masked_fill(~mask, int(batch.sequence_lengths.max())).amin(1)
    shared[batch.rankings[mask]] = shortest[:, None].expand(mask.shape)[mask]
    inside = batch.token_positions < shared[batch.sequences]
    return torch.where(inside, 1.0, alpha)


def _metrics(
    rewards: Tensor, mask: Tensor, outputs: TokenOutputs, batch: MicroBatch
) -> dict[str, Tensor]:
    """Compute metrics under TRL's names: chosen is a ranking's best, rejected its last."""
    last = mask.sum(1) - 1
    rows = torch.arange(len(rewards), device=rewards.device)
    logps = batch.sequence_sums(outputs.logps.detach())[batch.rankings.clamp(min=0)]
    best, worst = rewards[:, 0], rewards[rows, last]
    return {
        "rewards/chosen": best,
        "rewards/rejected": worst,
        "rewards/margins": best - worst,
        "rewards/accuracies": share_in_order(rewards, mask),
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[rows, last],
    }


def share_in_order(rewards: Tensor, mask: Tensor) -> Tensor:
    """Return the share of a ranking's pairs whose better completion has the higher reward: [Q]."""
    both = (mask[:, :, None] & mask[:, None, :]).triu(1)
    right = (rewards[:, :, None] > rewards[:, None, :]) & both
    return right.sum((1, 2)) / both.sum((1, 2))
