"""Turn judgements of completions into tensors: pairs, rankings, labels of single completions.

Groups become the fields of `MicroBatch` that objectives read. The fields refer to sequences, which
are the completions of all groups in order, in every layout.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from raydpo.training.groups import Group, Pair


def preference_tensors(groups: list[Group]) -> dict[str, Tensor]:
    """Return fields of `MicroBatch` by name; that class documents their shapes."""
    counts = [len(group.completions) for group in groups]
    firsts = [0, *itertools.accumulate(counts)]
    known = list(zip(firsts, groups, strict=False))
    pairs = [(first, Pair(*pair)) for first, group in known for pair in group.pairs]
    judged = [
        (first + index, desirable)
        for first, group in known
        for index, desirable in enumerate(group.desirable or ())
        if desirable is not None
    ]
    numbers = [(first + pair.chosen, first + pair.rejected) for first, pair in pairs]
    return {
        "pairs": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 2),
        "pair_weights": torch.tensor([pair.weight for _, pair in pairs]),
        "pair_probabilities": torch.tensor([pair.probability for _, pair in pairs]),
        "rankings": _rankings(known),
        "judged": torch.tensor([sequence for sequence, _ in judged], dtype=torch.int64),
        "desirable": torch.tensor([desirable for _, desirable in judged], dtype=torch.bool),
        "group_numbers": torch.tensor([group.number for group in groups]),
    }


def _rankings(known: list[tuple[int, Group]]) -> Tensor:
    rows = [[first + i for i in group.ranking] for first, group in known if group.ranking]
    longest = max(map(len, rows), default=0)
    padded = [row + [-1] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest)
