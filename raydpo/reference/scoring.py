"""Compute per-token log-probabilities of groups under one module, within a token budget.

The groups are in memory, and no Ray is needed. The module reads the results after it has submitted
all batches, so that a device never waits for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydpo.training.batch import MicroBatch, build_micro_batch, split_by_sequence
from raydpo.training.composition import padded_micro_batches, shared_micro_batches
from raydpo.training.groups import Group
from raydpo.training.logps import TokenLogps, token_logps


@torch.no_grad()
def score_groups(
    module: TokenLogps, groups: list[Group], max_tokens: int, device: torch.device
) -> list[list[list[float]]]:
    """Compute log-probs of groups' completions in nats: by group, completion and token.

    Args:
        module: the module, on the device and in evaluation mode.
        groups: the groups in any order; their pairs and reference are ignored.
        max_tokens: tokens of one forward pass, as `reference.max_tokens_per_batch`.
        device: where the module is.
    """
    asked: list[tuple[list[int], MicroBatch, Tensor]] = []
    for numbers in _batches(groups, max_tokens, module.shared):
        batch = build_micro_batch([groups[number] for number in numbers], module.shared)
        asked.append((numbers, batch, token_logps(module, batch.to(device))))
    scored: dict[int, list[list[float]]] = {}
    for numbers, batch, logps in asked:
        sequences = iter(split_by_sequence(logps.tolist(), batch))
        for number in numbers:
            scored[number] = [next(sequences) for _ in groups[number].completions]
    return [scored[number] for number in range(len(groups))]


def _batches(groups: list[Group], max_tokens: int, shared: bool) -> list[list[int]]:
    numbers = list(range(len(groups)))
    if shared:
        return shared_micro_batches(numbers, [group.flat for group in groups], max_tokens)
    sequences = [len(group.completions) for group in groups]
    longest = [group.longest for group in groups]
    return padded_micro_batches(numbers, sequences, longest, max_tokens)
