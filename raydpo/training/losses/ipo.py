"""Squared losses, which ask for a finite margin: IPO and SPPO.

What comes in: logratios, summed over completion tokens. What goes out: the loss of each pair.
"""

from __future__ import annotations

from torch import Tensor


def ipo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, tau: float) -> Tensor:
    """Identity preference optimization: (D - 1/(2 tau))^2, arXiv:2310.12036 eq. 17.

    tau is the strength of the KL constraint and stands in the target only: D is not
    multiplied by it. The paper's D is of whole completions, sums over tokens; some trainers
    take per-token means instead, which is another loss (with `per_token_means` of
    `length.py` it is available, as a choice).

    Args:
        chosen_logratios: [P] float, log pi(y_w|x) - log pi_ref(y_w|x), nats.
        rejected_logratios: [P] float, the same of y_l.
        tau: > 0.

    Returns:
        [P]. 1/(4 tau^2) where policy and reference are equal.
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
    """Self-play preference optimization: each logratio regressed on its win rate.

    (h_w - (q_w - 1/2)/beta)^2 + (h_l - (q_l - 1/2)/beta)^2, arXiv:2405.00675 eq. 4.7 with
    eta = 1/beta, where q(y) is the probability that y beats a completion of the sampling
    policy. With q_w = 1 and q_l = 0 it is the paper's "hard" form. It is for on-policy
    completions: the reference is the policy that sampled them.

    Args:
        chosen_logratios: [P] float, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        chosen_win_rates: [P] float, q of the chosen completions, in [0, 1].
        rejected_win_rates: [P] float, q of the rejected ones.
        beta: 1/eta, > 0.

    Returns:
        [P]. 1/(2 beta^2) in the hard form where policy and reference are equal.
    """
    chosen_errors = chosen_logratios - (chosen_win_rates - 0.5) / beta
    rejected_errors = rejected_logratios - (rejected_win_rates - 0.5) / beta
    return chosen_errors**2 + rejected_errors**2
