"""f-DPO: other divergences than the reverse KL (arXiv:2309.16240).

What comes in: logratios h = log u, u = pi/pi_ref. What goes out: scores f'(u), to be put where
DPO has logratios: -log sigmoid(beta [f'(u_w) - f'(u_l)]). Any loss that reads differences
within one prompt only may take them (sigmoid and its noisy forms, IPO, hinge, EXO, DiscoPOP,
rankings); for the others the term beta log Z(x) does not cancel.

All scores are shifted to f'(1) = 0, which no difference sees, so that implicit rewards are 0
where policy and reference are equal. Everything is computed from h: u itself overflows float32 at
h = 88.7. RLHF's KL(pi || pi_ref) is the reverse KL; the forward KL is KL(pi_ref || pi).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Where e^x stops growing as such and goes on along its tangent. Such scores and slopes
#: (2e17) cannot be trained on in any sense but their direction; beyond this the square of
#: a gradient, which clipping and Adam take, would overflow float32 and freeze the weights.
LARGEST_EXPONENT = 40.0


def reverse_kl_scores(logratios: Tensor) -> Tensor:
    """h, of f(u) = u log u with f' = log u + 1: DPO itself.

    Args:
        logratios: h of any shape, nats, sums over tokens.

    Returns:
        The same shape. 0 at h = 0.
    """
    return logratios


def forward_kl_scores(logratios: Tensor) -> Tensor:
    """1 - e^-h, of f(u) = -log u with f' = -1/u; KL(pi_ref || pi).

    Exact for h >= -40, on the tangent below (`LARGEST_EXPONENT`).

    Args:
        logratios: h of any shape, nats, sums over tokens.

    Returns:
        The same shape, below 1. 0 at h = 0.
    """
    return -_expm1(-logratios)


def js_scores(logratios: Tensor) -> Tensor:
    """log(2u/(1+u)) = log 2 + log sigmoid(h): the Jensen-Shannon divergence.

    f(u) = u log u - (u+1) log((u+1)/2).

    Args:
        logratios: h of any shape, nats, sums over tokens.

    Returns:
        The same shape, below log 2. 0 at h = 0.
    """
    return math.log(2) + F.logsigmoid(logratios)


def alpha_scores(logratios: Tensor, *, alpha: float) -> Tensor:
    """(1 - e^(-alpha h)) / alpha: the alpha-divergence.

    f(u) = (u^(1-alpha) - (1-alpha) u - alpha) / (alpha (alpha-1)). It tends to the reverse
    KL as alpha goes to 0, and to the forward KL as alpha goes to 1. Exact for alpha h >= -40,
    on the tangent below. (Beware of code that writes 1 - alpha where the paper has alpha.)

    Args:
        logratios: h of any shape, nats, sums over tokens.
        alpha: 0 < alpha < 1.

    Returns:
        The same shape, below 1/alpha. 0 at h = 0.
    """
    return -_expm1(-alpha * logratios) / alpha


def _expm1(exponents: Tensor) -> Tensor:
    """e^x - 1, and its tangent at `LARGEST_EXPONENT` beyond it."""
    held = exponents.clamp(max=LARGEST_EXPONENT)
    # The value of expm1 is exact near 0, but autograd takes its slope as the value + 1, which
    # has no digits left where e^x is small.
    bounded = torch.where(exponents > -1, torch.expm1(held), torch.exp(held) - 1)
    beyond = (exponents - LARGEST_EXPONENT).relu()
    return bounded + math.exp(LARGEST_EXPONENT) * beyond
