"""Micro-batches as tensors: the layout of preference groups.

A micro-batch holds the token ids of its groups and, for every completion token, the position of its
prediction. Each completion occurs once, even if several pairs use it. The fields that objectives
read (pairs, rankings, labels) refer to the completions of all groups in order, in every layout.

Shared layout: one flat sequence `[prompt | y1 | ... | yK]` of all groups (see `layout.py`).
Padded layout: right-padded rows `prompt + completion`. Attention is causal and padding is on the
right, so no real token sees a padded one and no attention mask is needed.

Shapes: G groups, R sequences (completions), N completion tokens, P pairs, Q rankings of at most K
completions, J judged completions; B rows of T tokens. The shared layout has one row of all tokens;
the padded one has R rows as long as the longest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydpo.training.groups import Group, Pair
from raydpo.training.layout import PrefixLayout, prefix_layout
from raydpo.training.transfer import to_device


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


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of some groups.

    Attributes:
        input_ids: [B, T] int64, padded with 0.
        layout: places of the groups in the flat sequence; None in the padded layout.
        predictors: [N] int64, which of the B*T hidden states predicts each token.
        targets: [N] int64, the completion tokens, one sequence after another.
        sequences: [N] int64, the sequence (completion) that a token belongs to.
        sequence_lengths: [R] int64, completion tokens of each sequence.
        sequence_groups: [R] int64, the group of the micro-batch that a sequence belongs to.
        pairs: [P, 2] int64, sequence numbers of chosen and rejected.
        pair_weights: [P] float32.
        pair_probabilities: [P] float32, that chosen wins; 1 if only the label is known.
        rankings: [Q, K] int64, sequence numbers, best first, padded with -1.
        judged: [J] int64, sequence numbers of completions judged by themselves.
        desirable: [J] bool, whether these completions are good ones.
        group_numbers: [G] int64, the groups' places in the data.
        reference_token_logps: [N] float32, or None.
        sampler_token_logps: [N] float32, under the policy that sampled each completion, or None.
        rewards: [R] float64, or None.
    """

    input_ids: Tensor
    layout: PrefixLayout | None
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
    sampler_token_logps: Tensor | None = None
    rewards: Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """Move the batch to another device; copies to CUDA are queued (see `transfer`)."""
        moved: dict[str, Any] = {n: _moved(value, device) for n, value in self.__dict__.items()}
        return MicroBatch(**moved)

    @property
    def longest(self) -> int:
        """Number of tokens in the longest sequence, including padding."""
        return self.layout.longest if self.layout is not None else self.input_ids.shape[1]

    @property
    def token_positions(self) -> Tensor:
        """The place of each token in its completion, from 0: [N] int64."""
        starts = self.sequence_lengths.cumsum(0) - self.sequence_lengths
        return torch.arange(len(self.sequences), device=starts.device) - starts[self.sequences]

    def sequence_sums(self, token_values: Tensor) -> Tensor:
        """Sum values of completion tokens by sequence: [N] -> [R] float32."""
        sums = torch.zeros(len(self.sequence_lengths), device=token_values.device)
        return sums.index_add(0, self.sequences, token_values.float())


def _moved(
    value: Tensor | PrefixLayout | None, device: torch.device
) -> Tensor | PrefixLayout | None:
    return to_device(value, device) if isinstance(value, Tensor) else value and value.to(device)


def build_micro_batch(groups: list[Group], shared: bool = False) -> MicroBatch:
    """Build a micro-batch from groups, on the CPU, in the shared or in the padded layout."""
    for group in groups:
        assert group.prompt_ids, "a completion needs at least one token before it"
        assert all(group.completions), "a completion has at least one token"
    completions = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([len(completion) for completion in completions])
    counts = torch.tensor([len(group.completions) for group in groups])
    input_ids, predictors, layout = (_shared if shared else _padded)(groups)
    return MicroBatch(
        input_ids=input_ids,
        layout=layout,
        predictors=predictors,
        targets=torch.tensor([token for completion in completions for token in completion]),
        sequences=torch.arange(len(lengths)).repeat_interleave(lengths),
        sequence_lengths=lengths,
        sequence_groups=torch.arange(len(counts)).repeat_interleave(counts),
        **preference_tensors(groups),
        reference_token_logps=_token_logps([group.reference_token_logps for group in groups]),
        sampler_token_logps=_token_logps([group.sampler_token_logps for group in groups]),
        rewards=_rewards(groups),
    )


def split_by_sequence(token_values: list[float], batch: MicroBatch) -> list[list[float]]:
    """Split flat values by sequence: [N] values -> one list for each of the R sequences."""
    values = iter(token_values)
    return [list(itertools.islice(values, n)) for n in batch.sequence_lengths.tolist()]


def _shared(groups: list[Group]) -> tuple[Tensor, Tensor, PrefixLayout]:
    layout = prefix_layout(
        [len(group.prompt_ids) for group in groups],
        [[len(completion) for completion in group.completions] for group in groups],
    )
    parts = [part for group in groups for part in (group.prompt_ids, *group.completions)]
    tokens = [token for part in parts for token in part]
    ids = torch.tensor(tokens + [0] * (layout.tokens - len(tokens)))
    return ids[None], layout.tensor(layout.predictors()), layout


def _padded(groups: list[Group]) -> tuple[Tensor, Tensor, None]:
    sequences = [(g.prompt_ids, completion) for g in groups for completion in g.completions]
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    predictors: list[int] = []
    for row, (prompt, completion) in enumerate(sequences):
        ids = prompt + completion
        input_ids[row, : len(ids)] = torch.tensor(ids)
        first = row * longest + len(prompt) - 1
        predictors += range(first, first + len(completion))
    return input_ids, torch.tensor(predictors), None


def _token_logps(by_group: list[list[list[float]] | None]) -> Tensor | None:
    """Lay the groups' log-probs end to end; None if a group has none."""
    if any(logps is None for logps in by_group):
        return None
    flat = [value for logps in by_group for values in logps or [] for value in values]
    return torch.tensor(flat, dtype=torch.float32)


def _rewards(groups: list[Group]) -> Tensor | None:
    """Lay the groups' rewards end to end; None if a group has none."""
    if any(group.rewards is None for group in groups):
        return None
    flat = [reward for group in groups for reward in group.rewards or []]
    return torch.tensor(flat, dtype=torch.float64)
