"""Policy gradient on sampled completions: advantages, PPO's clipped ratio, and an estimate of KL.

The objective is J = E[r(x, y)] - beta KL(pi || pi_ref), y drawn from the policy (arXiv:2305.18290
eq. 3). Its gradient is E[A grad log pi(y|x)] for any advantage A that is a reward minus a number
that does not depend on y (Williams 1992).

Shapes: R completions, N completion tokens. `groups` [R] int64 numbers the prompt of each
completion, from 0; the completions of a prompt are all there.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: Added to a group's standard deviation, in units of the reward, as in TRL 1.16.
_LEAST_DEVIATION: Final = 1e-4


def leave_one_out_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """Compute A_i = r_i - mean of the others in its group, RLOO: arXiv:2402.14740 section 3.2.

    Written as K/(K-1) (r_i - mean of the group), for groups of K. The baseline of a completion
    does not depend on it, so the gradient is unbiased. A completion without others has no
    baseline, and its advantage is 0.

    Args:
        rewards: [R] float, in any unit.
        groups: [R] int64.

    Returns:
        [R] in the dtype of the rewards.
    """
    counts = _group_sums(torch.ones_like(rewards), groups)
    return _centred(rewards, groups) * (counts / (counts - 1).clamp(min=1))[groups]


def group_normalized_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """Compute A_i = (r_i - mean) / std over its group, GRPO: arXiv:2402.03300 section 4.1.2.

    The standard deviation is that of a sample, over K - 1, plus 1e-4, as in TRL 1.16. Dividing by
    it weighs prompts by how alike their rewards are: the optimum is no longer that of E[r]
    (arXiv:2503.20783 section 3.1).

    Args:
        rewards: [R] float, in any unit.
        groups: [R] int64.

    Returns:
        [R] in the dtype of the rewards. 0 if all rewards of a group are equal.
    """
    counts = _group_sums(torch.ones_like(rewards), groups)
    centred = _centred(rewards, groups)
    variance = _group_sums(centred.square(), groups) / (counts - 1).clamp(min=1)
    return centred / (variance.sqrt() + _LEAST_DEVIATION)[groups]


def clipped_ratio_losses(
    token_logps: Tensor,
    sampler_token_logps: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
) -> Tensor:
    """Compute -min(p A, clip(p, 1 - clip_low, 1 + clip_high) A), PPO: arXiv:1707.06347 eq. 7.

    p = pi(y_t | x, y_<t) / mu(y_t | x, y_<t) of each token, mu being the policy that sampled it.
    Where p = 1, the gradient is that of -A log pi(y_t | x, y_<t).

    Args:
        token_logps: [N] float, log pi, nats.
        sampler_token_logps: [N] float, log mu, nats, without gradient.
        advantages: [N] float, of the completion that a token belongs to, without gradient.
        clip_low: 0 < clip_low <= 1, or None for no limit below.
        clip_high: > 0, or None for no limit above.

    Returns:
        [N]. -A if policy and sampler are equal.
    """
    ratios = (token_logps - sampler_token_logps).exp()
    clipped = _clipped(ratios, clip_low, clip_high)
    return -torch.minimum(ratios * advantages, clipped * advantages)


def clipped_tokens(
    token_logps: Tensor,
    sampler_token_logps: Tensor,
    advantages: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
) -> Tensor:
    """Return where the limits hold, so that the token has no gradient: [N] bool; arguments as above."""
    ratios = (token_logps - sampler_token_logps).exp()
    return _clipped(ratios, clip_low, clip_high) * advantages < ratios * advantages


def kl_estimates(token_logps: Tensor, reference_token_logps: Tensor) -> Tensor:
    """Compute u - 1 - log u with u = pi_ref / pi, the low-variance estimate of KL(pi || pi_ref).

    J. Schulman, "Approximating KL divergence" (2020), k3; arXiv:2402.03300 eq. 4. Over samples of
    pi its mean is the KL, and no estimate is negative. The mean of its gradient is another: that
    of the opposite KL(pi_ref || pi) (arXiv:2506.09477). Times the ratio p of
    `clipped_ratio_losses`, the mean of the gradient is that of KL(pi || pi_ref) for each token.

    Args:
        token_logps: [N] float, log pi of sampled tokens, nats.
        reference_token_logps: [N] float, log pi_ref of the same.

    Returns:
        [N], nats. 0 if policy and reference are equal.
    """
    logratios = reference_token_logps - token_logps
    return logratios.exp() - logratios - 1


def _clipped(ratios: Tensor, clip_low: float | None, clip_high: float | None) -> Tensor:
    if clip_low is not None:
        ratios = ratios.clamp(min=1 - clip_low)
    if clip_high is not None:
        ratios = ratios.clamp(max=1 + clip_high)
    return ratios


def _centred(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return rewards minus the mean of their group: [R]."""
    counts = _group_sums(torch.ones_like(rewards), groups)
    return rewards - (_group_sums(rewards, groups) / counts)[groups]


def _group_sums(values: Tensor, groups: Tensor) -> Tensor:
    """Sum values of completions by group: [R] -> [R], of which the first G are used.

    There are no more groups than completions; to count them, a device would be waited for.
    """
    return torch.zeros_like(values).index_add(0, groups, values)
