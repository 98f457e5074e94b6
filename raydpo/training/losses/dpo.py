"""Direct preference optimization and its variants for noisy labels.

Logratios of chosen and rejected completions are summed over completion tokens. Each function
returns the loss of each pair. D is the chosen logratio minus the rejected one.

Every function here also takes scores of any f-divergence (`f_divergence.py`) in place of logratios,
and log-probabilities for reference-free training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Compute DPO: -log sigmoid(beta D), arXiv:2305.18290 eq. 7.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P] in the dtype of the input. log 2 if policy and reference are equal.
    """
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios))


def conservative_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Compute conservative DPO: -(1-e) log sigmoid(beta D) - e log sigmoid(-beta D).

    E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO" (2023), eq. 3.
    Its minimum lies at a finite margin: beta D = log((1-e)/e).

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.
        label_smoothing: e, the share of labels assumed to be flipped, 0 <= e < 0.5.

    Returns:
        [P]. log 2 if policy and reference are equal.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    flipped = label_smoothing * F.logsigmoid(-logits)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - flipped


def robust_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, flip_rate: float
) -> Tensor:
    """Compute robust DPO: [-(1-e) log sigmoid(beta D) + e log sigmoid(-beta D)] / (1-2e).

    arXiv:2403.00409. Its mean over labels that are flipped with probability e is the DPO loss on
    clean labels. Note the sign of the second term: conservative DPO has a minus there. The loss
    falls without bound as D grows, so it may be negative.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.
        flip_rate: e, the share of labels that are flipped, 0 <= e < 0.5.

    Returns:
        [P]. log 2 if policy and reference are equal.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    flipped = flip_rate * F.logsigmoid(-logits)
    return (flipped - (1 - flip_rate) * F.logsigmoid(logits)) / (1 - 2 * flip_rate)


def outlier_mixture_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, outlier_rate: float
) -> Tensor:
    """Compute the mixture with random annotators: -log[(1-e) sigmoid(beta D) + e/2].

    The loss assumes that a share e of the labels is drawn uniformly (Christiano et al. 2017,
    arXiv:1706.03741, sec. 2.2.3). Unlike DPO it is bounded, by -log(e/2), so that a pair far on the
    wrong side loses its influence.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.
        outlier_rate: e, 0 <= e < 1.

    Returns:
        [P]. log 2 if policy and reference are equal.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    careful = math.log1p(-outlier_rate) + F.logsigmoid(logits)
    careless = torch.full_like(logits, outlier_rate / 2).log()
    return -torch.logaddexp(careful, careless)


def soft_label_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, labels: Tensor, *, beta: float
) -> Tensor:
    """Compute -p log sigmoid(beta D) - (1-p) log sigmoid(-beta D), the loss for soft labels.

    It is the cross-entropy with a soft label. p comes from votes, or from rewards as the
    Bradley-Terry probability sigmoid(r_w - r_l) (arXiv:2305.18290 eq. 1). The minimum lies at beta
    D = log(p/(1-p)).

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        labels: [P] float, p in [0, 1]: the probability that chosen is the better one.
        beta: strength of the KL constraint, > 0.

    Returns:
        [P]. log 2 if policy and reference are equal.
    """
    logits = beta * (chosen_logratios - rejected_logratios)
    return -labels * F.logsigmoid(logits) - (1 - labels) * F.logsigmoid(-logits)
