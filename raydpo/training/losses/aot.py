"""Alignment by optimal transport: distributions of margins, not single pairs (arXiv:2406.05882).

What comes in: values of ALL pairs of the global batch. What goes out: the loss of each
pair. Values are matched by rank, so the loss is one of the whole set: on a part of the batch it
is another loss. Whoever cuts a step into micro-batches or over workers must
either refuse to, or find the ranks in a first pass without gradient; then the loss of a pair is
`dpo.conservative_loss` with the matched value (`matched_by_rank`) as its second argument.
"""

from __future__ import annotations

from torch import Tensor

from raydpo.training.losses.dpo import conservative_loss


def matched_by_rank(values: Tensor, others: Tensor) -> Tensor:
    """For each value, the one of `others` that has the same rank.

    Args:
        values: [P] float.
        others: [P] float.

    Returns:
        [P], a permutation of `others`; equal values keep their order. Gradient flows into
        `others`.
    """
    ranks = values.argsort(stable=True).argsort()
    return others.sort(stable=True).values[ranks]


def aot_paired_loss(
    policy_margins: Tensor, reference_margins: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Policy margins to dominate reference margins, both sorted; arXiv:2406.05882.

    The logistic loss of beta (u_(i) - v_(i)), u = log pi(y_w|x) - log pi(y_l|x), v the same
    of the reference, (i) the i-th smallest of each. The loss of a pair stands at its own place,
    so that weights of pairs keep their meaning.

    Args:
        policy_margins: [P] float, u of all pairs of the global batch, nats, sums over tokens.
        reference_margins: [P] float, v, without gradient.
        beta: strength of the KL constraint, > 0.
        label_smoothing: as in conservative DPO, 0 <= e < 0.5; 0 in the paper.

    Returns:
        [P]. log 2 where policy and reference are equal.
    """
    matched = matched_by_rank(policy_margins, reference_margins)
    return conservative_loss(policy_margins, matched, beta=beta, label_smoothing=label_smoothing)


def aot_unpaired_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Chosen logratios to dominate rejected ones, both sorted; arXiv:2406.05882.

    Chosen and rejected completions need not be of the same prompts. The loss of a pair stands
    at the place of its chosen completion.

    Args:
        chosen_logratios: [P] float, of the whole global batch, nats, sums over tokens.
        rejected_logratios: [P] float, the same of y_l.
        beta: strength of the KL constraint, > 0.
        label_smoothing: as in conservative DPO, 0 <= e < 0.5; 0 in the paper.

    Returns:
        [P]. log 2 where policy and reference are equal.
    """
    matched = matched_by_rank(chosen_logratios, rejected_logratios)
    return conservative_loss(chosen_logratios, matched, beta=beta, label_smoothing=label_smoothing)
