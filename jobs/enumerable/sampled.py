"""Policy gradient on an enumerable world: all groups that a sampler could draw, as often as it would.

From a `TabularWorld`, the section of the objective and a sampler, the module computes the expected
loss of a policy without sampling. A completion is one token here.

Shapes: X prompts, K completions of each; G = K^SAMPLES groups of SAMPLES completions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Final

import torch
from torch import Tensor

from enumerable.world import TabularWorld
from raydpo.config.objectives import PolicyGradientObjective
from raydpo.training.losses.policy_gradient import (
    clipped_ratio_losses,
    group_normalized_advantages,
    kl_estimates,
    leave_one_out_advantages,
)

#: Completions that a group samples, which may be equal.
SAMPLES: Final = 3
#: Advantages [R] from rewards [R] and group numbers [R].
Advantages = Callable[[Tensor, Tensor], Tensor]


def expected_sampled_loss(
    world: TabularWorld, logits: Tensor, sampler_logps: Tensor, section: PolicyGradientObjective
) -> Tensor:
    """The expected loss over all groups that the sampler draws.

    Args:
        world: rewards and reference.
        logits: [X, K], the policy.
        sampler_logps: [X, K], log-probabilities of the policy that samples, without gradient.
        section: the objective, other than with `batch_mean`: a step's batch is no group.

    Returns:
        Scalar, the mean over prompts and the completions of a group.
    """
    prompts, completions = world.rewards.shape
    drawn = torch.tensor(list(product(range(completions), repeat=SAMPLES)))  # [G, SAMPLES]
    sampler, reference = sampler_logps[:, drawn], world.reference_logps[:, drawn]
    policy = logits.log_softmax(-1)[:, drawn]  # [X, G, SAMPLES]
    rewards = world.rewards[:, drawn]
    if section.kl == "reward":
        rewards = rewards - section.beta * (sampler - reference)
    numbers = torch.arange(prompts * len(drawn)).repeat_interleave(SAMPLES)
    advantages = _advantages(section)(rewards.flatten(), numbers).view(policy.shape)
    limits = {"clip_low": section.clip_low, "clip_high": section.clip_high}
    losses = clipped_ratio_losses(policy, sampler, advantages, **limits)
    if section.kl != "reward":
        kl = kl_estimates(policy, reference)
        weighted = section.kl == "weighted_loss"
        losses = losses + section.beta * ((policy - sampler).exp() * kl if weighted else kl)
    return (sampler.sum(-1).exp() * losses.mean(-1)).sum(-1).mean()


def on_policy(
    world: TabularWorld, section: PolicyGradientObjective, steps: int, rate: float = 0.5
) -> list[Tensor]:
    """Follow the expected gradient, every step on samples of the policy that it begins with.

    The steps are natural ones (Kakade 2001): the gradient, by the inverse Fisher matrix of the
    table, times rate / beta. Plain steps lead to the same place, only more slowly.

    Args:
        world: where to start: at the reference.
        section: the objective; its beta is above 0.
        steps: how many.
        rate: 1 goes all the way to the optimum where the KL is KL(policy || reference).

    Returns:
        Log-probabilities [X, K] at the start and after every step.
    """
    logps = world.reference_logps
    trajectory = [logps]
    for _ in range(steps):
        leaf = logps.clone().requires_grad_()
        loss = expected_sampled_loss(world, leaf, logps, section)
        (gradient,) = torch.autograd.grad(loss * len(logps), leaf)
        probabilities = logps.exp()
        fisher = probabilities.diag_embed() - probabilities[:, :, None] * probabilities[:, None, :]
        step = (torch.linalg.pinv(fisher) @ gradient[:, :, None]).squeeze(-1)
        logps = (logps - rate / section.beta * step).log_softmax(-1)
        trajectory.append(logps)
    return trajectory


def _advantages(section: PolicyGradientObjective) -> Advantages:
    match section.advantages:
        case "leave_one_out":
            return leave_one_out_advantages
        case "group_normalized":
            return group_normalized_advantages
        case "batch_mean":
            raise ValueError("a world of single prompts has no global batch")
