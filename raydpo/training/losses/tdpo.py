"""Token-level DPO: the sigmoid loss with the KL along each completion (arXiv:2404.11999).

K(y) = sum_t KL(pi_ref(.|x, y_<t) || pi_theta(.|x, y_<t)), over the whole vocabulary
(`HeadRequest.reference_kl`): the forward KL, with the reference first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def tdpo1_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Compute -log sigmoid(beta [D - (K_l - K_w)]), L_TDPO1 of arXiv:2404.11999.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        chosen_kl: [P] float, K(y_w) >= 0, nats, sums over tokens.
        rejected_kl: [P] float, K(y_l).
        beta: strength of the KL constraint, > 0.

    Returns:
        [P]. log 2 if policy and reference are equal.
    """
    margins = chosen_logratios - rejected_logratios
    return -F.logsigmoid(beta * (margins - (rejected_kl - chosen_kl)))


def tdpo2_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float,
    alpha: float,
) -> Tensor:
    """Compute -log sigmoid(beta [D - alpha (K_l - sg K_w)]), L_TDPO2 of arXiv:2404.11999.

    The gradient stops at K_w, so that training does not push the chosen path's KL up.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        chosen_kl: [P] float, K(y_w) >= 0, nats, sums over tokens.
        rejected_kl: [P] float, K(y_l).
        beta: strength of the KL constraint, > 0.
        alpha: weight of the paths' KL, >= 0.

    Returns:
        [P]. log 2 if policy and reference are equal.
    """
    margins = chosen_logratios - rejected_logratios
    return -F.logsigmoid(beta * (margins - alpha * (rejected_kl - chosen_kl.detach())))
