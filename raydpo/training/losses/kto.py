"""Kahneman-Tversky optimization: completions judged good or bad one by one (arXiv:2402.01306)."""

from __future__ import annotations

import torch
from torch import Tensor


def kto_reference_point(mismatched_logratios: Tensor) -> Tensor:
    """Compute z0 = max(0, mean of h over mismatched pairs), detached; arXiv:2402.01306 sec. 4.

    It estimates KL(pi || pi_ref) from completions placed after prompts that are not theirs. It
    belongs to the whole global batch: compute it once per step over all workers, or loss and
    gradient will depend on how the batch is divided.

    Args:
        mismatched_logratios: [M] float, h of (x_i, y_j), j not i, nats, sums over tokens.

    Returns:
        Scalar, nats.
    """
    return mismatched_logratios.detach().mean().clamp(min=0)


def kto_loss(
    logratios: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Compute lambda_D (1 - sigmoid(beta (h - z0))), or lambda_U (1 - sigmoid(beta (z0 - h))).

    arXiv:2402.01306 sec. 4. The weights should balance the data: the ratio of lambda_D n_D to
    lambda_U n_U should lie between 1 and 3/2 (the paper, sec. 4).

    Args:
        logratios: [R] float, log pi(y|x) - log pi_ref(y|x), nats, sums over tokens.
        desirable: [R] bool, true if the completion was judged good.
        reference_point: z0, nats, without gradient; from `kto_reference_point`.
        beta: strength of the KL constraint, > 0.
        desirable_weight: lambda_D, >= 0.
        undesirable_weight: lambda_U, >= 0.

    Returns:
        [R]. Half the weight if policy and reference are equal.
    """
    values = beta * (logratios - reference_point)
    signed = torch.where(desirable, values, -values)
    # sigmoid(-v) equals 1 - sigmoid(v), but keeps its digits if the result is small.
    losses = torch.sigmoid(-signed)
    return torch.where(desirable, desirable_weight * losses, undesirable_weight * losses)
