"""Policy gradient: the loss of each sampled completion.

The section of the objective and the step give its `Measure`. Rewards, the sampler's log-probs and
the reference's are data; only the policy's log-probs have a gradient. Every completion is a unit.

Shapes: R completions (sequences), N completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import assert_never

import torch
from torch import Tensor

from raydpo.config.objectives import PolicyGradientObjective
from raydpo.training.batch import MicroBatch
from raydpo.training.head import TokenOutputs
from raydpo.training.losses.policy_gradient import (
    clipped_ratio_losses,
    clipped_tokens,
    group_normalized_advantages,
    kl_estimates,
    leave_one_out_advantages,
)
from raydpo.training.measures.values import GlobalBatch, Measure, Values, sequence_values


@dataclass(frozen=True)
class _Totals:
    """Sums over the global batch: completions, their tokens, and rewards with the KL in them."""

    completions: float
    tokens: float
    rewards: float


def policy_gradient_measure(settings: PolicyGradientObjective, known: GlobalBatch) -> Measure:
    """Build the measure in one step.

    The mean that `batch_mean` compares with is that of the step's whole global batch. A moving
    mean over steps would be lost with the process; this one depends on the step's data alone, so
    a run that is resumed, or divided in another way, is the same run.
    """
    sizes, numbers = known.sizes, known.numbers
    rewards = float(sizes.rewards[numbers].sum())
    if settings.kl == "reward":
        rewards -= settings.beta * float(sizes.sampler_logratios[numbers].sum())
    completions = float(sizes.sequences[numbers].sum())
    totals = _Totals(completions, float(sizes.targets[numbers].sum()), rewards)
    return partial(_measure, settings, totals)


def _measure(
    settings: PolicyGradientObjective, totals: _Totals, outputs: TokenOutputs, batch: MicroBatch
) -> Values:
    policy, sampler = outputs.logps, batch.sampler_token_logps
    assert sampler is not None, "policy gradient needs the sampler's log-probs"
    assert batch.rewards is not None, "policy gradient needs rewards"
    assert batch.reference_token_logps is not None or not settings.beta, "KL needs a reference"
    advantages = _advantages(settings, totals, batch).float()[batch.sequences]
    limits = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
    losses = clipped_ratio_losses(policy, sampler, advantages, **limits)
    detached = policy.detach()
    ratios = (detached - sampler).exp()
    clipped = clipped_tokens(detached, sampler, advantages, **limits)
    by_token = {"ratio/mean": ratios, "ratio/clipped": clipped, "entropy": -detached}
    by_completion = {"rewards/mean": batch.rewards.float()}
    if batch.reference_token_logps is not None:
        kl = kl_estimates(policy, batch.reference_token_logps)
        by_completion["kl"] = batch.sequence_sums(kl.detach())
        losses = losses + settings.beta * _kl_term(settings, kl, policy, sampler)
    weights = _weights(settings, batch)
    # The loop divides sums by the sum of the weights; these are means over tokens or completions.
    shares = (totals.tokens if settings.loss_per == "token" else totals.completions) / weights
    metrics = {n: batch.sequence_sums(v) * shares / totals.tokens for n, v in by_token.items()}
    metrics |= {name: v * shares / totals.completions for name, v in by_completion.items()}
    values = sequence_values(losses, batch, "sum" if settings.loss_per == "completion" else "mean")
    nothing = torch.full_like(batch.sequence_lengths, -1)
    return Values(values, weights, nothing, metrics)


def _advantages(settings: PolicyGradientObjective, totals: _Totals, batch: MicroBatch) -> Tensor:
    """Return the advantage of each completion: [R] float64."""
    rewards = batch.rewards
    assert rewards is not None
    if settings.kl == "reward" and batch.reference_token_logps is not None:
        rewards = rewards - settings.beta * _sampler_logratios(batch)
    match settings.advantages:
        case "leave_one_out":
            return leave_one_out_advantages(rewards, batch.sequence_groups)
        case "group_normalized":
            return group_normalized_advantages(rewards, batch.sequence_groups)
        case "batch_mean":
            return rewards - totals.rewards / totals.completions
        case _:
            assert_never(settings.advantages)


def _sampler_logratios(batch: MicroBatch) -> Tensor:
    """Return log mu(y|x) - log pi_ref(y|x), mu being the policy that sampled: [R] float64."""
    assert batch.sampler_token_logps is not None
    assert batch.reference_token_logps is not None
    return batch.sequence_sums(batch.sampler_token_logps - batch.reference_token_logps).double()


def _kl_term(
    settings: PolicyGradientObjective, kl: Tensor, policy: Tensor, sampler: Tensor
) -> Tensor:
    """Return the term of each token whose weight is beta: [N]."""
    match settings.kl:
        case "reward":
            return torch.zeros_like(policy)
        case "loss":
            return kl
        case "weighted_loss":
            return (policy - sampler).exp() * kl
        case _:
            assert_never(settings.kl)


def _weights(settings: PolicyGradientObjective, batch: MicroBatch) -> Tensor:
    """Return each completion's share in the mean: [R]."""
    lengths = batch.sequence_lengths.float()
    return lengths if settings.loss_per == "token" else torch.ones_like(lengths)
