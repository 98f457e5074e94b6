"""Terms that keep the likelihood of chosen completions from falling.

From log-probabilities or logratios of chosen completions, each function computes a term per pair,
which a loss adds to itself or to its margin.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sft_term(chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Compute CE(y_w)/|y_w|, to be added with a weight (RPO, arXiv:2404.19733 eq. 1).

    Each pair counts alike. Trainers that take the mean over all chosen tokens of a batch give long
    completions more weight, and micro-batches weight by their number of tokens.

    Args:
        chosen_logps: [P] float, log pi(y_w|x), nats, sums over tokens.
        chosen_lengths: [P], completion tokens of y_w, EOS included.

    Returns:
        [P], nats per token.
    """
    return -chosen_logps / chosen_lengths


def dpop_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, penalty: float
) -> Tensor:
    """Compute DPO-Positive: -log sigmoid(beta [D - lambda max(0, -h_w)]), arXiv:2402.13228.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.
        penalty: lambda, >= 0: the cost of a chosen completion that fell below the reference.

    Returns:
        [P]. log 2 if policy and reference are equal.
    """
    fallen = penalty * (-chosen_logratios).relu()
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios - fallen))
