"""The papers' formulas once more, for numbers of any precision: the other side of the checks.

From mpmath numbers of one pair (or one group) and settings, each function computes the loss. The
formulas are written from the papers, with nothing of raydpo, as literally as possible. Nothing
here needs to be stable, since it is computed with 320 digits and unbounded exponents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpmath import mp

Number = Any  # mpmath has no types

mp.dps = 320


def sigma(x: Number) -> Number:
    return 1 / (1 + mp.exp(-x))


def log_sigma(x: Number) -> Number:
    return -mp.log1p(mp.exp(-x))


def sigmoid(c: Number, r: Number, beta: Number) -> Number:
    return -log_sigma(beta * c - beta * r)


def conservative(c: Number, r: Number, beta: Number, label_smoothing: Number) -> Number:
    swapped = sigmoid(r, c, beta)
    return (1 - label_smoothing) * sigmoid(c, r, beta) + label_smoothing * swapped


def robust(c: Number, r: Number, beta: Number, flip_rate: Number) -> Number:
    swapped = sigmoid(r, c, beta)
    unbiased = (1 - flip_rate) * sigmoid(c, r, beta) - flip_rate * swapped
    return unbiased / (1 - 2 * flip_rate)


def outlier_mixture(c: Number, r: Number, beta: Number, outlier_rate: Number) -> Number:
    careful, careless = sigma(beta * (c - r)), mp.mpf(1) / 2
    return -mp.log((1 - outlier_rate) * careful + outlier_rate * careless)


def soft_label(c: Number, r: Number, p: Number, beta: Number) -> Number:
    return p * sigmoid(c, r, beta) + (1 - p) * sigmoid(r, c, beta)


def ipo(c: Number, r: Number, tau: Number) -> Number:
    return (c - r - 1 / tau / 2) ** 2


def sppo(c: Number, r: Number, q_c: Number, q_r: Number, beta: Number) -> Number:
    eta, half = 1 / beta, mp.mpf(1) / 2
    return (c - eta * (q_c - half)) ** 2 + (r - eta * (q_r - half)) ** 2


def hinge(c: Number, r: Number, beta: Number) -> Number:
    return max(mp.mpf(0), 1 - (beta * c - beta * r))


def beyond(exponent: Number) -> Number:
    """e^x, on its tangent beyond x = 40, as f_divergence.py says."""
    if exponent > 40:
        return mp.exp(40) * (1 + exponent - 40)
    return mp.exp(exponent)


def reverse_kl(h: Number) -> Number:
    """f'(u) - f'(1) with f(u) = u log u."""
    u = mp.exp(h)
    return (mp.log(u) + 1) - 1


def forward_kl(h: Number) -> Number:
    """f'(u) - f'(1) with f(u) = -log u, f' = -1/u."""
    return -beyond(-h) + 1


def jensen_shannon(h: Number) -> Number:
    """f'(u), and f'(1) = 0, with f(u) = u log u - (u+1) log((u+1)/2)."""
    u = mp.exp(h)
    return mp.log(2 * u / (1 + u))


def alpha_divergence(h: Number, alpha: Number) -> Number:
    """f'(u) = (1 - u^-alpha)/alpha, and f'(1) = 0."""
    return (1 - beyond(-alpha * h)) / alpha


def plackett_luce(h: Sequence[Number], beta: Number) -> Number:
    """Minus the log-probability of picking the completions one by one in this order."""
    weights = [mp.exp(beta * value) for value in h]
    probability = mp.mpf(1)
    for k in range(len(h)):
        probability *= weights[k] / sum(weights[k:])
    return -mp.log(probability)


def best_of_k(h: Sequence[Number], beta: Number) -> Number:
    weights = [mp.exp(beta * value) for value in h]
    return -mp.log(weights[0] / sum(weights))


def cringe_token(target: Number, alternative: Number) -> Number:
    return -mp.log(mp.exp(alternative) / (mp.exp(alternative) + mp.exp(target)))


def binary_cringe(positive: Number, cringe: Number, alpha: Number) -> Number:
    return -positive + alpha * cringe


def gate(c: Number, r: Number, gate_bias: Number, gate_temperature: Number) -> Number:
    return sigma((gate_bias - (c - r)) / gate_temperature)


def pairwise_cringe(
    c: Number,
    r: Number,
    cringe: Number,
    alpha: Number,
    gate_bias: Number,
    gate_temperature: Number,
    gate_passes_gradient: bool,
) -> Number:
    return gate(c, r, gate_bias, gate_temperature) * binary_cringe(c, cringe, alpha)


def pairwise_cringe_gradient(
    c: Number,
    r: Number,
    cringe: Number,
    alpha: Number,
    gate_bias: Number,
    gate_temperature: Number,
    gate_passes_gradient: bool,
) -> list[Number]:
    """With the gate as a constant."""
    constant = gate(c, r, gate_bias, gate_temperature)
    return [-constant, mp.mpf(0), alpha * constant]


def tdpo1(c: Number, r: Number, k_c: Number, k_r: Number, beta: Number) -> Number:
    u = beta * c - beta * r
    delta = beta * k_r - beta * k_c
    return -log_sigma(u - delta)


def tdpo2(c: Number, r: Number, k_c: Number, k_r: Number, beta: Number, alpha: Number) -> Number:
    u = beta * c - beta * r
    delta = beta * k_r - beta * k_c
    return -log_sigma(u - alpha * delta)


def simpo(m_c: Number, m_r: Number, beta: Number, gamma: Number) -> Number:
    return -log_sigma(beta * m_c - beta * m_r - gamma)


def preferred_sft(m_c: Number) -> Number:
    return -m_c


def unlikelihood(m_c: Number, m_r: Number, alpha: Number) -> Number:
    return -m_c + alpha * m_r


def odds(m: Number) -> Number:
    return mp.exp(m) / (1 - mp.exp(m))


def orpo(m_c: Number, m_r: Number, odds_weight: Number) -> Number:
    return -m_c - odds_weight * log_sigma(mp.log(odds(m_c) / odds(m_r)))


def kto(
    h: Number,
    desirable: Number,
    z0: Number,
    beta: Number,
    desirable_weight: Number,
    undesirable_weight: Number,
) -> Number:
    if desirable:
        return desirable_weight - desirable_weight * sigma(beta * (h - z0))
    return undesirable_weight - undesirable_weight * sigma(beta * (z0 - h))


def exo(c: Number, r: Number, beta: Number, label_smoothing: Number) -> Number:
    """KL of the policy's choice from the smoothed label's."""
    rewards = [mp.exp(beta * c), mp.exp(beta * r)]
    policy = [reward / sum(rewards) for reward in rewards]
    label = [1 - label_smoothing, label_smoothing]
    return sum(p * mp.log(p / q) for p, q in zip(policy, label, strict=True))


def nca(c: Number, r: Number, beta: Number) -> Number:
    noise = mp.mpf(1) / 2
    data = -log_sigma(beta * c)
    return data - noise * log_sigma(-beta * c) - noise * log_sigma(-beta * r)


def bco(c: Number, r: Number, shift: Number, beta: Number) -> Number:
    return -log_sigma(beta * c - shift) - log_sigma(-(beta * r - shift))


def apo_zero(c: Number, r: Number, beta: Number) -> Number:
    return -sigma(beta * c) + sigma(beta * r)


def apo_down(c: Number, r: Number, beta: Number) -> Number:
    return sigma(beta * c) - sigma(beta * c - beta * r)


def aot(c: Sequence[Number], r: Sequence[Number], beta: Number, label_smoothing: Number) -> Number:
    """Sum over the batch: the i-th smallest against the i-th smallest."""
    ordered = zip(sorted(c), sorted(r), strict=True)
    return sum(conservative(u, v, beta, label_smoothing) for u, v in ordered)


def discopop(c: Number, r: Number, beta: Number, temperature: Number) -> Number:
    x = beta * (c - r)
    mixture = sigma(x / temperature)
    return (1 - mixture) * mp.log1p(mp.exp(-x)) + mixture * mp.exp(-x)


def sft(c: Number, length: Number) -> Number:
    return -c / length


def dpop(c: Number, r: Number, beta: Number, penalty: Number) -> Number:
    return -log_sigma(beta * (c - r - penalty * max(mp.mpf(0), -c)))


def mean(total: Number, length: Number) -> Number:
    return total / length


def length_desensitized(c: Sequence[Number], r: Sequence[Number], alpha: Number) -> Number:
    """Chosen minus twice rejected, of three tokens and of five."""
    return sum(c[:3]) - 2 * (sum(r[:3]) + alpha * sum(r[3:]))


def clipped_ratio(
    logp: Number, sampler: Number, advantage: Number, clip_low: Any, clip_high: Any
) -> Number:
    """PPO's loss of a token."""
    p = mp.exp(logp) / mp.exp(sampler)
    limited = p
    if clip_low is not None:
        limited = max(limited, 1 - clip_low)
    if clip_high is not None:
        limited = min(limited, 1 + clip_high)
    return -min(p * advantage, limited * advantage)


def kl_estimate(logp: Number, reference: Number) -> Number:
    u = mp.exp(reference) / mp.exp(logp)
    return u - mp.log(u) - 1


def leave_one_out(rewards: Sequence[Number]) -> list[Number]:
    """Each reward minus the mean of the others; nothing where there are none."""
    others = [[*rewards[:i], *rewards[i + 1 :]] for i in range(len(rewards))]
    return [
        r - sum(rest) / len(rest) if rest else mp.mpf(0)
        for r, rest in zip(rewards, others, strict=True)
    ]


def group_normalized(rewards: Sequence[Number]) -> list[Number]:
    """In standard deviations of a sample, to which TRL adds 1e-4."""
    average = sum(rewards) / len(rewards)
    squares = sum((r - average) ** 2 for r in rewards)
    deviation = mp.sqrt(squares / (len(rewards) - 1)) if len(rewards) > 1 else mp.mpf(0)
    return [(r - average) / (deviation + mp.mpf(10) ** -4) for r in rewards]


def weighed(advantages: Callable[..., list[Number]], *rewards: Number) -> Number:
    """The advantages of a group in one number, in which each has a factor of its own."""
    return sum((k + 1) * value for k, value in enumerate(advantages(*rewards)))


def bradley_terry(r_c: Number, r_r: Number) -> Number:
    """Minus the log of P(y_w > y_l) = exp(r_c) / (exp(r_c) + exp(r_r))."""
    return -mp.log(mp.exp(r_c) / (mp.exp(r_c) + mp.exp(r_r)))


def centering(r_c: Number, r_r: Number) -> Number:
    """The square of the sum of a pair's rewards."""
    return (r_c + r_r) ** 2


def centered_bradley_terry(r_c: Number, r_r: Number, centering_weight: Number) -> Number:
    """What a reward model that is kept near 0 is trained by."""
    return bradley_terry(r_c, r_r) + centering_weight * centering(r_c, r_r)
