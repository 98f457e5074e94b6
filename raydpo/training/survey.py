"""Run a pass over the global batch without gradients, for objectives that must know it first.

From a step's micro-batches on every rank, every rank gets the policy's log-prob of every
completion of the global batch that the objective asks for. That costs one forward pass over these
completions per step, and only for objectives that ask (KTO, AOT).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn

from raydpo.training.batch import build_micro_batch
from raydpo.training.groups import Group, GroupDataset
from raydpo.training.logps import token_logps
from raydpo.training.measures.values import GlobalBatch
from raydpo.training.objectives import Objective
from raydpo.training.sharding import World


def at_global_batch(
    objective: Objective,
    step: int,
    module: nn.Module,
    shared: bool,
    data: GroupDataset,
    groups: list[int],
    micro_batches: Callable[[], Iterable[tuple[list[int], bool]]],
    world: World,
) -> Objective:
    """Return the objective with what it must know of the whole global batch, by a survey if need be.

    Every rank calls this with the number of the step. The other arguments are those of
    `survey_logps`; `micro_batches` is called only if there is a survey.
    """
    known = GlobalBatch(step, groups, data.sizes)
    if objective.surveyed(data[groups[0]]):
        surveyed = objective.surveyed
        logps = survey_logps(module, shared, data, groups, micro_batches(), surveyed, world)
        known = replace(known, groups=[data[g] for g in groups], logps=logps)
    return objective.at_step(known)


@torch.no_grad()
def survey_logps(
    module: nn.Module,
    shared: bool,
    data: GroupDataset,
    groups: list[int],
    micro_batches: Iterable[tuple[list[int], bool]],
    surveyed: Callable[[Group], list[int]],
    world: World,
) -> dict[int, list[float]]:
    """Return the log-prob of each completion, summed over its tokens, by group number.

    Args:
        module: the policy.
        shared: whether the policy takes the shared layout.
        data: all groups.
        groups: numbers of the global batch's groups.
        micro_batches: this rank's micro-batches, as `composition.rank_micro_batches` gives them.
        surveyed: returns the completions of a group to evaluate; the others get 0.
        world: the ranks, all of which call this.
    """
    sizes = [int(data.sizes.sequences[group]) for group in groups]
    starts = dict(zip(groups, itertools.accumulate(sizes, initial=0), strict=False))
    values = [0.0] * sum(sizes)
    for numbers, counts in micro_batches:
        wanted = [surveyed(data[number]) for number in numbers]
        shown = [data[n].only(indexes) for n, indexes in zip(numbers, wanted, strict=True)]
        batch = build_micro_batch(shown, shared).to(world.device)
        sums = batch.sequence_sums(token_logps(module, batch)).tolist()
        places = [starts[n] + i for n, all_ in zip(numbers, wanted, strict=True) for i in all_]
        for place, value in zip(places, sums, strict=True) if counts else ():
            values[place] = value
    totals = world.sum(values)
    return {
        group: totals[starts[group] : starts[group] + size]
        for group, size in zip(groups, sizes, strict=True)
    }
