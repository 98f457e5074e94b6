"""Preferences among K completions of one prompt: full rankings, or the best one.

The functions take logratios [G, K] of G groups, with the best completion first and padding at the
end. They return the loss of each group.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plackett_luce_loss(logratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Compute -sum_k [beta h_(k) - logsumexp_{j>=k} beta h_(j)], arXiv:2305.18290 app. A.3 eq. 20.

    It is the negative log-likelihood of a whole ranking: the best is chosen among all, the second
    among the rest, and so on. With K = 2 it is DPO. With beta = 1 and rewards in place of logratios
    it fits a reward model to rankings (eq. 18).

    Args:
        logratios: [G, K] float, nats, sums over tokens, ranked best first.
        mask: [G, K] bool, true for completions, false for padding, which is at the end.
        beta: strength of the KL constraint, > 0.

    Returns:
        [G]. log K! if policy and reference are equal; 0 if a group has one completion.
    """
    rewards = beta * logratios
    places = torch.arange(logratios.shape[1], device=logratios.device)
    left = (places[None, :] >= places[:, None]) & mask[:, None, :]  # [G, K, K]
    # Differences come first, because sums of large rewards would cancel to noise.
    behind = rewards[:, None, :] - rewards[:, :, None]
    return _masked(behind, left).logsumexp(-1).masked_fill(~mask, 0.0).sum(-1)


def best_of_k_loss(logratios: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Compute -beta h_best + logsumexp_j beta h_j: one choice of the best among K.

    This is the loss of Ziegler et al. 2019, arXiv:1909.08593 eq. 1, with implicit rewards, and also
    softmax-DPO (arXiv:2406.09215). With K = 2 it is DPO.

    Args:
        logratios: [G, K] float, nats, sums over tokens, the best one first.
        mask: [G, K] bool, true for completions, false for padding, which is at the end.
        beta: strength of the KL constraint, > 0.

    Returns:
        [G]. log K if policy and reference are equal.
    """
    behind = beta * (logratios - logratios[:, :1])
    return _masked(behind, mask).logsumexp(-1)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """Replace values with ones that vanish in any sum of exponentials if the mask is false.

    The replacement is finite, so a row that is all padding has a gradient of 0 and not NaN.
    """
    return values.masked_fill(~mask, torch.finfo(values.dtype).min)
