"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, label_smoothing: float
) -> Tensor:
    """Loss of each pair: -(1-e) log sigmoid(beta D) - e log sigmoid(-beta D).

    D is the logratio of chosen minus that of rejected, e the label smoothing. With e = 0 it
    is eq. 7 of arXiv:2305.18290; with e > 0 it is conservative DPO (Mitchell, "A note on
    DPO with noisy preferences", eq. 3), which takes a share e of the labels to be wrong.

    Args:
        chosen_logratios: [P] float32, log pi(y_w|x) - log pi_ref(y_w|x), nats.
        rejected_logratios: [P] float32, the same of y_l.
        beta: strength of the KL constraint, > 0.
        label_smoothing: e, 0 <= e < 0.5.

    Returns:
        [P] float32. log 2 where policy and reference are equal.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    wrong = label_smoothing * F.logsigmoid(-logits)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - wrong
