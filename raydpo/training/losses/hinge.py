"""Hinge loss on the implicit margin (SLiC, RSO)."""

from __future__ import annotations

from torch import Tensor


def hinge_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Compute max(0, 1 - beta D): RSO's hinge-norm, arXiv:2309.06657.

    With log-probabilities in place of logratios and beta = 1/delta it equals the calibration loss
    of SLiC-HF (arXiv:2305.10425 eq. 1) up to a factor delta. A pair that has reached its margin has
    no gradient.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: the required margin is 1/beta nats, > 0.

    Returns:
        [P]. 1 if policy and reference are equal.
    """
    return (1 - beta * (chosen_logratios - rejected_logratios)).relu()
