"""f-DPO: other divergences than the reverse KL (arXiv:2309.16240).

From logratios h = log u, u = pi/pi_ref, the module computes scores f'(u), which replace DPO's
logratios: -log sigmoid(beta [f'(u_w) - f'(u_l)]). Any loss that reads only differences within one
prompt may use them (sigmoid and its noisy forms, IPO, hinge, EXO, DiscoPOP, rankings). In the
other losses the term beta log Z(x) does not cancel.

All scores are shifted to f'(1) = 0, which changes no difference, so that implicit rewards are 0 if
policy and reference are equal. Everything is computed from h, because u itself overflows float32 at
h = 88.7. RLHF's KL(pi || pi_ref) is the reverse KL; the forward KL is KL(pi_ref || pi).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Beyond this exponent, e^x continues along its tangent. Scores and slopes of this size (2e17) are
#: useful for their direction only. Without the limit, the square of a gradient, which clipping and
#: Adam compute, would overflow float32 and freeze the weights.
LARGEST_EXPONENT = 40.0


def reverse_kl_scores(logratios: Tensor) -> Tensor:
    """Return h, the score of f(u) = u log u with f' = log u + 1: DPO itself.

    Args:
        logratios: h of any shape, nats, sums over tokens.

    Returns:
        The same shape. 0 at h = 0.
    """
    return logratios


def forward_kl_scores(logratios: Tensor) -> Tensor:
    """Return 1 - e^-h, the score of f(u) = -log u with f' = -1/u; KL(pi_ref || pi).

    The score is exact for h >= -40, and below that on the tangent (`LARGEST_EXPONENT`).

    Args:
        logratios: h of any shape, nats, sums over tokens.

    Returns:
        The same shape, below 1. 0 at h = 0.
    """
    return -_expm1(-logratios)


def js_scores(logratios: Tensor) -> Tensor:
    """Return log(2u/(1+u)) = log 2 + log sigmoid(h): the Jensen-Shannon divergence.

    f(u) = u log u - (u+1) log((u+1)/2).

    Args:
        logratios: h of any shape, nats, sums over tokens.

    Returns:
        The same shape, below log 2. 0 at h = 0.
    """
    return math.log(2) + F.logsigmoid(logratios)


def alpha_scores(logratios: Tensor, *, alpha: float) -> Tensor:
    """Return (1 - e^(-alpha h)) / alpha: the alpha-divergence.

    f(u) = (u^(1-alpha) - (1-alpha) u - alpha) / (alpha (alpha-1)). It tends to the reverse KL as
    alpha goes to 0, and to the forward KL as alpha goes to 1. The score is exact for alpha h >=
    -40, and below that on the tangent. (Beware of code that writes 1 - alpha where the paper has
    alpha.)

    Args:
        logratios: h of any shape, nats, sums over tokens.
        alpha: 0 < alpha < 1.

    Returns:
        The same shape, below 1/alpha. 0 at h = 0.
    """
    return -_expm1(-alpha * logratios) / alpha


def _expm1(exponents: Tensor) -> Tensor:
    """Return e^x - 1, and beyond `LARGEST_EXPONENT` its tangent there."""
    held = exponents.clamp(max=LARGEST_EXPONENT)
    # The value of expm1 is exact near 0, but autograd computes its slope as the value + 1, which
    # loses all digits if e^x is small.
    bounded = torch.where(exponents > -1, torch.expm1(held), torch.exp(held) - 1)
    beyond = (exponents - LARGEST_EXPONENT).relu()
    return bounded + math.exp(LARGEST_EXPONENT) * beyond
