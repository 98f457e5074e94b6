"""A pass over the global batch without gradients, for objectives that must know it first.

What comes in: a step's micro-batches on every rank. What goes out: the policy's log-prob
of every completion of the global batch, on every rank. It costs one forward pass a step,
and only objectives that ask for it (KTO, AOT) pay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import nn

from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import GroupDataset
from raydpo.training.logps import token_logps
from raydpo.training.sharding import World


@torch.no_grad()
def survey_logps(
    module: nn.Module,
    shared: bool,
    data: GroupDataset,
    groups: list[int],
    micro_batches: Iterable[tuple[list[int], bool]],
    world: World,
) -> dict[int, list[float]]:
    """Log-prob of each completion, summed over its tokens, by group number.

    Args:
        module: the policy.
        shared: the layout that it takes.
        data: all groups.
        groups: numbers of the global batch's groups.
        micro_batches: this rank's, as `composition.rank_micro_batches` gives them.
        world: the ranks, which all call this.
    """
    counts = [int(data.sizes.sequences[group]) for group in groups]
    starts = dict(zip(groups, itertools.accumulate(counts, initial=0), strict=False))
    values = [0.0] * sum(counts)
    for numbers, counts_here in micro_batches:
        batch = build_micro_batch([data[number] for number in numbers], shared)
        batch = batch.to(world.device)
        sums = iter(batch.sequence_sums(token_logps(module, batch)).tolist())
        for number in numbers if counts_here else ():
            size = int(data.sizes.sequences[number])
            values[starts[number] : starts[number] + size] = itertools.islice(sums, size)
    totals = world.sum(values)
    return {
        group: totals[starts[group] : starts[group] + count]
        for group, count in zip(groups, counts, strict=True)
    }
