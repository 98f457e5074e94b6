"""Alignment by optimal transport: distributions of margins, not single pairs (arXiv:2406.05882).

From values of ALL pairs of the global batch, the module finds for each pair the value of the same
rank. The loss of the pair, `dpo.conservative_loss`, takes it as its second argument.

Paired, the values are the policy's margins u = log pi(y_w|x) - log pi(y_l|x) and the reference's.
Unpaired, they are the log-ratios of chosen and of rejected completions, which need not have the
same prompts. Matching within a part of the batch would give another loss. So a first pass without
gradient finds the ranks before a step is divided into micro-batches or among workers.
"""

from __future__ import annotations

from torch import Tensor


def matched_by_rank(values: Tensor, others: Tensor) -> Tensor:
    """Return for each value the one of `others` that has the same rank.

    Args:
        values: [P] float.
        others: [P] float.

    Returns:
        [P], a permutation of `others`; equal values keep their order. Gradient flows into
        `others`.
    """
    ranks = values.argsort(stable=True).argsort()
    return others.sort(stable=True).values[ranks]
