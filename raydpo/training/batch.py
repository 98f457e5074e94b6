"""Micro-batches as tensors: the layout of preference groups.

What comes in: groups. What goes out: right-padded sequences `prompt + completion`, and
for every completion token where its prediction stands. Each completion is there once,
however many pairs it is in. With causal attention and padding on the right no real token
ever sees a padded one, so no attention mask is needed.

Shapes: G groups, R sequences, T tokens of the longest, N completion tokens, P pairs, Q rankings
of at most K completions, J judged completions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydpo.training.groups import Group
from raydpo.training.preference_tensors import preference_tensors


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of some groups.

    Attributes:
        input_ids: [R, T] int64, padded with 0.
        predictors: [N] int64, which of the R*T hidden states predicts the token.
        targets: [N] int64, the completion tokens, sequence after sequence.
        sequences: [N] int64, the sequence (completion) that a token belongs to.
        sequence_lengths: [R] int64, completion tokens of each sequence.
        sequence_groups: [R] int64, the group of the micro-batch that a sequence belongs to.
        pairs: [P, 2] int64, sequence numbers of chosen and rejected.
        pair_weights: [P] float32.
        pair_probabilities: [P] float32, that chosen wins; 1 where only the label is known.
        rankings: [Q, K] int64, sequence numbers, best first, padded with -1.
        judged: [J] int64, sequence numbers of completions judged by themselves.
        desirable: [J] bool, whether they are good ones.
        group_numbers: [G] int64, the groups' places in the data.
        reference_token_logps: [N] float32, or None.
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    sequences: Tensor
    sequence_lengths: Tensor
    sequence_groups: Tensor
    pairs: Tensor
    pair_weights: Tensor
    pair_probabilities: Tensor
    rankings: Tensor
    judged: Tensor
    desirable: Tensor
    group_numbers: Tensor
    reference_token_logps: Tensor | None

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if value is not None else None
            for name, value in self.__dict__.items()
        }
        return MicroBatch(**moved)

    def sequence_sums(self, token_values: Tensor) -> Tensor:
        """Sum values of completion tokens by sequence: [N] -> [R] float32."""
        sums = torch.zeros(len(self.sequence_lengths), device=token_values.device)
        return sums.index_add(0, self.sequences, token_values.float())


def build_micro_batch(groups: list[Group]) -> MicroBatch:
    """Lay groups out as tensors on the CPU."""
    sequences = [(g.prompt_ids, completion) for g in groups for completion in g.completions]
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    predictors: list[int] = []
    for row, (prompt, completion) in enumerate(sequences):
        assert prompt, "a completion needs at least one token before it"
        assert completion, "a completion has at least one token"
        ids = prompt + completion
        input_ids[row, : len(ids)] = torch.tensor(ids)
        first = row * longest + len(prompt) - 1
        predictors += range(first, first + len(completion))
    lengths = torch.tensor([len(completion) for _, completion in sequences])
    counts = torch.tensor([len(group.completions) for group in groups])
    return MicroBatch(
        input_ids=input_ids,
        predictors=torch.tensor(predictors),
        targets=torch.tensor([token for _, completion in sequences for token in completion]),
        sequences=torch.arange(len(lengths)).repeat_interleave(lengths),
        sequence_lengths=lengths,
        sequence_groups=torch.arange(len(counts)).repeat_interleave(counts),
        **preference_tensors(groups),
        reference_token_logps=_reference(groups),
    )


def split_by_sequence(token_values: list[float], batch: MicroBatch) -> list[list[float]]:
    """Undo the flattening: [N] values -> one list for each of the R sequences."""
    values = iter(token_values)
    return [list(itertools.islice(values, n)) for n in batch.sequence_lengths.tolist()]


def _reference(groups: list[Group]) -> Tensor | None:
    if any(group.reference_token_logps is None for group in groups):
        return None
    flat = [v for g in groups for values in g.reference_token_logps or [] for v in values]
    return torch.tensor(flat, dtype=torch.float32)
