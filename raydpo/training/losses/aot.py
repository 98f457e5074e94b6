"""Alignment by optimal transport: distributions of margins, not single pairs (arXiv:2406.05882).

What comes in: values of ALL pairs of the global batch. What goes out: for each the value of
the same rank, which the loss of the pair, `dpo.conservative_loss`, takes as its second argument.

Paired, these are the policy's margins u = log pi(y_w|x) - log pi(y_l|x) and the
reference's; unpaired, the log-ratios of chosen and of rejected completions, which need not be of the
same prompts. Matched on a part of the batch it is another loss: whoever cuts a step into
micro-batches or over workers finds the ranks in a first pass without gradient.
"""

from __future__ import annotations

from torch import Tensor


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
