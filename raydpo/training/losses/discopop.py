"""DiscoPOP: a loss found by a language model (arXiv:2406.08414)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discopop_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, temperature: float
) -> Tensor:
    """Compute the log-ratio modulated loss (1-g) log(1 + e^-x) + g e^-x, arXiv:2406.08414 eq. 5.

    x = beta D, g = sigmoid(x/tau). It is not convex: a pair far on the wrong side has the logistic
    loss, and a pair on the right side has the exponential loss.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.
        temperature: tau, 0 < tau < 1 (0.05 in the paper).

    Returns:
        [P]. (log 2 + 1)/2 if policy and reference are equal.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    logistic = -F.logsigmoid(logits) * torch.sigmoid(-logits / temperature)
    # g e^-x is one exponential: as a product it would be 0 times infinity for x far below 0.
    exponential = torch.exp(F.logsigmoid(logits / temperature) - logits)
    return logistic + exponential
