"""Squared losses with a finite target margin: IPO and SPPO.

Logratios are summed over completion tokens. Each function returns the loss of each pair.
"""

from __future__ import annotations

from torch import Tensor


def ipo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, tau: float) -> Tensor:
    """Compute identity preference optimization: (D - 1/(2 tau))^2, arXiv:2310.12036 eq. 17.

    tau is the strength of the KL constraint and occurs only in the target: D is not multiplied by
        it. In the paper, D sums over the tokens of whole completions. Some trainers take per-token
        means instead, which is another loss; `per_token_means` of `length.py` makes it available as
        an option.

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats.
        rejected_logratios: [P] float, the same of y_l.
        tau: > 0.

    Returns:
        [P]. 1/(4 tau^2) if policy and reference are equal.
    """
    return (chosen_logratios - rejected_logratios - 1 / (2 * tau)) ** 2


def sppo_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    chosen_win_rates: Tensor,
    rejected_win_rates: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Compute SPPO, the regression of each logratio on its win rate.

    Self-play preference optimization is (h_w - (q_w - 1/2)/beta)^2 + (h_l - (q_l - 1/2)/beta)^2,
    arXiv:2405.00675 eq. 4.7 with eta = 1/beta. q(y) is the probability that y beats a completion of
    the sampling policy. With q_w = 1 and q_l = 0 it is the paper's "hard" form. It is for on-policy
    completions: the reference is the policy that sampled them.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        chosen_win_rates: [P] float, q of the chosen completions, in [0, 1].
        rejected_win_rates: [P] float, q of the rejected ones.
        beta: 1/eta, > 0.

    Returns:
        [P]. 1/(2 beta^2) in the hard form if policy and reference are equal.
    """
    chosen_errors = chosen_logratios - (chosen_win_rates - 0.5) / beta
    rejected_errors = rejected_logratios - (rejected_win_rates - 0.5) / beta
    return chosen_errors**2 + rejected_errors**2
