"""Losses that compare each completion with a distribution: EXO, NCA and BCO, on pairs.

Logratios are summed over completion tokens; each function returns the loss of each pair.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def exo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Compute EXO on pairs: KL(p_theta || p_label), arXiv:2402.00856 eq. 16.

    EXO stands for efficient exact optimization. p_theta = (q, 1-q) with q = sigmoid(beta D), and
    p_label = (1-e, e). DPO is the opposite KL with e = 0; here e must be above 0.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.
        label_smoothing: e, 0 < e < 0.5 (1e-3 in the paper).

    Returns:
        [P]. -log 2 - log(e (1-e)) / 2 if policy and reference are equal.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    right = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    wrong = (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return right + wrong


def nca_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Compute noise contrastive alignment: L_NCA of arXiv:2402.05369 on pairs.

    The loss is -log sigmoid(r_w) - log sigmoid(-r_w)/2 - log sigmoid(-r_l)/2, r = beta h. Unlike
    DPO it depends on each reward and not only on their difference, which keeps the chosen
    likelihood up.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P]. 2 log 2 if policy and reference are equal.
    """
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    noise = F.logsigmoid(-chosen) + F.logsigmoid(-rejected)
    return -F.logsigmoid(chosen) - noise / 2


def bco_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    reward_shift: Tensor | float,
    *,
    beta: float,
) -> Tensor:
    """Compute BCO: -log sigmoid(r_w - d) - log sigmoid(-(r_l - d)).

    BCO is binary classifier optimization, arXiv:2404.04656; r = beta h. d is the mean of the
    rewards of chosen and of rejected completions, without gradient (a running one in the paper).
    TRL's "bco_pair" has d = 0.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        reward_shift: d, without gradient.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P]. 2 log 2 if policy and reference are equal and d = 0.
    """
    chosen = F.logsigmoid(beta * chosen_logratios - reward_shift)
    rejected = F.logsigmoid(reward_shift - beta * rejected_logratios)
    return -chosen - rejected
