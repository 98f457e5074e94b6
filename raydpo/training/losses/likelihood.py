"""Losses on likelihoods alone: the baselines of arXiv:2305.18290 that know no reference.

From log-probabilities of chosen and rejected completions, each function computes the loss of each
pair.
"""

from __future__ import annotations

from torch import Tensor


def preferred_sft_loss(chosen_logps: Tensor) -> Tensor:
    """Compute -log pi(y_w|x), Preferred-FT: arXiv:2305.18290 section 6.

    The rejected completion does not count.

    Args:
        chosen_logps: [P] float, log pi(y_w|x), nats, the sum over tokens or their mean.

    Returns:
        [P], nats.
    """
    return -chosen_logps


def unlikelihood_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, alpha: float) -> Tensor:
    """Compute -log pi(y_w|x) + alpha log pi(y_l|x), Unlikelihood of arXiv:2305.18290 section 6.

    It falls without bound as the rejected completion loses its likelihood, and no text is left in
    the end: the paper's samples are meaningless (table 3), and it leaves the method out of two of
    its tasks for that. Welleck et al. (arXiv:1908.04319) take -log(1 - p) of single tokens, which
    is bounded; this is the form that the DPO paper compares with.

    Args:
        chosen_logps: [P] float, log pi(y_w|x), nats, the sum over tokens or their mean.
        rejected_logps: [P] float, the same of y_l.
        alpha: 0 <= alpha <= 1; 0 is `preferred_sft_loss`.

    Returns:
        [P], nats.
    """
    return alpha * rejected_logps - chosen_logps
