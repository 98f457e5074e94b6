"""Fitting a reward model to preferences: Bradley-Terry maximum likelihood.

For rankings of K completions it is `ranking.plackett_luce_loss` with beta = 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """-log sigmoid(r_w - r_l), arXiv:2305.18290 eq. 2.

    P(y_1 > y_2) = sigmoid(r_1 - r_2). With the difference the other way round, as it is printed
    in places, the opposite preference is learnt.

    Args:
        chosen_rewards: [P] float, r(x, y_w), dimensionless.
        rejected_rewards: [P] float, r(x, y_l).

    Returns:
        [P]. log 2 where both are equal.
    """
    return -F.logsigmoid(chosen_rewards - rejected_rewards)
