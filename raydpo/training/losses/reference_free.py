"""Objectives without a reference model: SimPO and ORPO.

The functions take log-probabilities as MEANS over completion tokens (`per_token_means` of
`length.py`), and return the loss of each pair.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def simpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, beta: float, gamma: float
) -> Tensor:
    """Compute -log sigmoid(beta [m_w - m_l] - gamma), arXiv:2405.14734 eq. 6.

    The option is gamma itself, the paper's target reward margin, outside of beta. The authors' code
    takes gamma/beta instead; multiply that value by beta.

    Args:
        chosen_mean_logps: [P] float, log pi(y_w|x) / |y_w|, nats per token.
        rejected_mean_logps: [P] float, the same of y_l.
        beta: scale of the implicit reward beta m, > 0 (2.0 to 10 in the paper).
        gamma: the target margin of rewards, >= 0 (0.3 to 1.6 in the paper).

    Returns:
        [P]. There is no reference, so its first value depends on the policy.
    """
    return -F.logsigmoid(beta * (chosen_mean_logps - rejected_mean_logps) - gamma)


def orpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, odds_weight: float
) -> Tensor:
    """Compute CE(y_w)/|y_w| - lambda log sigmoid(log odds(y_w) - log odds(y_l)).

    arXiv:2403.07691 eq. 6 and 7, odds = p/(1-p) with p the geometric mean of the token
    probabilities. The cross-entropy covers the completion only; the authors' code, and trainers
    based on it, include the prompt's tokens.

    Args:
        chosen_mean_logps: [P] float, log pi(y_w|x) / |y_w|, nats per token, <= 0.
        rejected_mean_logps: [P] float, the same of y_l.
        odds_weight: lambda, >= 0 (0.1 to 0.2 in the paper; trainers call it beta).

    Returns:
        [P].
    """
    log_odds_ratios = log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps)
    return -chosen_mean_logps - odds_weight * F.logsigmoid(log_odds_ratios)


def log_odds(logps: Tensor) -> Tensor:
    """Compute log[p / (1-p)] from log p, for any log p <= 0.

    If p is 1 within rounding, the odds and their slope are those of the nearest p below it.

    Args:
        logps: any shape, nats.

    Returns:
        The same shape.
    """
    nearest = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    # The gradient also passes if the value is clamped. Otherwise a rejected completion that the
    # policy is sure of would never be pushed down.
    held = logps + (nearest - logps).detach()
    # Each form of log(1-p) is used where it is accurate; both forms and their slopes are finite.
    near_one = torch.log(-torch.expm1(held))
    near_zero = torch.log1p(-torch.exp(held))
    return held - torch.where(held > -math.log(2), near_one, near_zero)
