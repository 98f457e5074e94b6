"""Fitting a reward model to preferences: Bradley-Terry maximum likelihood.

For rankings of K completions, use `ranking.plackett_luce_loss` with beta = 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Compute -log sigmoid(r_w - r_l), arXiv:2305.18290 eq. 2.

    P(y_1 > y_2) = sigmoid(r_1 - r_2). Some sources print the opposite difference, with which a
    model would learn the opposite preference.

    Args:
        chosen_rewards: [P] float, r(x, y_w), dimensionless.
        rejected_rewards: [P] float, r(x, y_l).

    Returns:
        [P]. log 2 if both are equal.
    """
    return -F.logsigmoid(chosen_rewards - rejected_rewards)


def centering_term(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Compute (r_w + r_l)^2, which is added with a weight (Eisenstein et al. 2023, arXiv:2312.09244).

    Preferences fix rewards only up to a function of the prompt. Among all rewards with the same
    differences the term prefers those whose pairs have the mean 0.

    Args:
        chosen_rewards: [P] float, r(x, y_w), dimensionless.
        rejected_rewards: [P] float, r(x, y_l).

    Returns:
        [P]. Not negative.
    """
    return (chosen_rewards + rejected_rewards).square()
