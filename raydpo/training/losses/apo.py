"""Anchored preference optimization, which fixes the direction of each likelihood
(arXiv:2408.06266).

Logratios are summed over completion tokens. The losses, one per pair, are those of the paper. Some
trainers add 1, which does not change the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def apo_zero_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Compute -sigmoid(r_w) + sigmoid(r_l), r = beta h; arXiv:2408.06266 eq. 7.

    It raises chosen and lowers rejected: for chosen completions better than the model's own.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P], in [-1, 1]. 0 if policy and reference are equal.
    """
    return torch.sigmoid(beta * rejected_logratios) - torch.sigmoid(beta * chosen_logratios)


def apo_down_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Compute sigmoid(r_w) - sigmoid(r_w - r_l), r = beta h; arXiv:2408.06266 eq. 8.

    It lowers both, rejected more: for chosen completions worse than the model's own.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P], in [-1, 1]. 0 if policy and reference are equal.
    """
    margins = beta * (chosen_logratios - rejected_logratios)
    return torch.sigmoid(beta * chosen_logratios) - torch.sigmoid(margins)
