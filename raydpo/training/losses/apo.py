"""Anchored preference optimization: which way each likelihood goes is fixed (arXiv:2408.06266).

What comes in: logratios, summed over completion tokens. What goes out: the loss of each
pair, as the paper writes it; some trainers add 1, which no gradient sees.
"""

from __future__ import annotations

import torch
from torch import Tensor


def apo_zero_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """-sigmoid(r_w) + sigmoid(r_l), r = beta h; arXiv:2408.06266 eq. 7.

    Chosen up, rejected down: for chosen completions better than what the model writes.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P], in [-1, 1]. 0 where policy and reference are equal.
    """
    return torch.sigmoid(beta * rejected_logratios) - torch.sigmoid(beta * chosen_logratios)


def apo_down_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """sigmoid(r_w) - sigmoid(r_w - r_l), r = beta h; arXiv:2408.06266 eq. 8.

    Both down, rejected more: for chosen completions worse than what the model writes.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P], in [-1, 1]. 0 where policy and reference are equal.
    """
    margins = beta * (chosen_logratios - rejected_logratios)
    return torch.sigmoid(beta * chosen_logratios) - torch.sigmoid(margins)
