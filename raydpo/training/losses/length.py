"""Combine values of tokens into one value per completion: length options on log-ratios.

A loss uses the result in place of the sum over tokens. Methods that do not specify otherwise use
the sum: a mean rescales beta by the length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_token_means(sums: Tensor, lengths: Tensor) -> Tensor:
    """Divide sums by the number of completion tokens.

    With these means the sigmoid loss is length-normalised DPO (Lambert et al., Tulu 3,
    arXiv:2411.15124), which needs a beta of about 5.

    Args:
        sums: [R] float, sums over completion tokens.
        lengths: [R], completion tokens, EOS included.

    Returns:
        [R].
    """
    return sums / lengths


def length_desensitized_sums(
    token_values: Tensor, sequences: Tensor, lengths: Tensor, pairs: Tensor, *, alpha: float
) -> tuple[Tensor, Tensor]:
    """Compute LD-DPO sums, which weight tokens beyond a pair's shorter completion by alpha.

    The sum is sum_{t <= l} v_t + alpha sum_{t > l} v_t with l = min(|y_w|, |y_l|),
    arXiv:2409.06411. A completion that is in several pairs has a value in each.

    Args:
        token_values: [N] float, log-probabilities or logratios of completion tokens, nats.
        sequences: [N] int64, the completion of each token; the tokens of a completion are in order.
        lengths: [R] int64, tokens of each completion.
        pairs: [P, 2] int64, the chosen and the rejected completion.
        alpha: in [0, 1]; 1 is the plain sum, 0 cuts both to the same length.

    Returns:
        [P] of the chosen and [P] of the rejected completions.
    """
    firsts = lengths.cumsum(0) - lengths
    order = sequences.argsort(stable=True)
    places = torch.arange(len(sequences), device=sequences.device)
    positions = torch.empty_like(sequences)
    positions[order] = places - firsts[sequences[order]]  # [N], 0 for a completion's first token
    table = token_values.new_zeros(len(lengths), int(lengths.max()))  # [R, T]
    table = table.index_put((sequences, positions), token_values)
    shared = lengths[pairs].amin(1)  # [P]
    inside = torch.arange(table.shape[1], device=table.device) < shared[:, None]  # [P, T]
    weights = inside.to(table.dtype).masked_fill(~inside, alpha)
    chosen, rejected = pairs.unbind(1)
    return (weights * table[chosen]).sum(1), (weights * table[rejected]).sum(1)
