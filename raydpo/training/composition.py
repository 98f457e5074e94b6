"""Choose the groups that a step trains on, and divide them among the workers.

From the sizes of all groups, the seed and the step, every rank gets its micro-batches as lists of
group numbers. All of it is a pure function of (seed, epoch, step) and the sizes. So every rank
knows without asking what the others do, and a resumed run does the same as an uninterrupted one.
The groups of a step do not depend on the number of ranks or on the token budget.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raydpo.training.groups import GroupSizes

#: Integers indexed by number, such as a group's.
Integers = Sequence[int] | npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The length and order of a training.

    Attributes:
        groups: N, the number of groups.
        global_batch_groups: groups of one step; the last step of an epoch may have fewer.
        epochs: passes over the groups.
        max_steps: upper limit of steps, or None.
        seed: the seed of the order.
    """

    groups: int
    global_batch_groups: int
    epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in one pass."""
        return -(-self.groups // self.global_batch_groups)

    @property
    def total_steps(self) -> int:
        """Number of steps in the whole training."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step_groups(self, step: int) -> list[int]:
        """Return the numbers of a step's groups; steps count from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.seed, epoch, self.groups)
        start = within * self.global_batch_groups
        return order[start : start + self.global_batch_groups].tolist()


@functools.lru_cache(maxsize=1)
def _epoch_order(seed: int, epoch: int, groups: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(groups)


def rank_shares(groups: list[int], tokens: Integers, world_size: int) -> list[list[int]]:
    """Divide a step's groups among ranks so that each computes a similar number of tokens.

    The longest group goes first, each to the rank with the fewest tokens so far.

    Args:
        groups: numbers of the groups.
        tokens: the cost of each group in tokens, by number.
        world_size: number of ranks.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for group in sorted(groups, key=lambda g: (-int(tokens[g]), g)):
        rank = loads.index(min(loads))
        shares[rank].append(group)
        loads[rank] += int(tokens[group])
    return shares


def padded_micro_batches(
    groups: list[int], sequences: Integers, longest: Integers, max_tokens: int
) -> list[list[int]]:
    """Cut groups into micro-batches of at most `max_tokens` padded tokens.

    Groups of similar length go together. A group is never cut, since its pairs need all its
    completions: one that is larger than the budget forms a micro-batch alone.

    Args:
        groups: numbers of the groups.
        sequences: completions of each group, by number.
        longest: tokens of each group's longest sequence, by number.
        max_tokens: the budget.
    """
    batches: list[list[int]] = []
    rows = width = 0
    for group in sorted(groups, key=lambda g: (-int(longest[g]), g)):
        if not batches or (rows + int(sequences[group])) * width > max_tokens:
            batches.append([])
            rows, width = 0, int(longest[group])
        batches[-1].append(group)
        rows += int(sequences[group])
    return batches


def shared_micro_batches(groups: list[int], flat: Integers, max_tokens: int) -> list[list[int]]:
    """Pack groups into micro-batches of at most `max_tokens` tokens, prompts counted once.

    The largest group goes first, each into the first micro-batch with room. A group is never cut.

    Args:
        groups: numbers of the groups.
        flat: tokens of each group, by number.
        max_tokens: the budget.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for group in sorted(groups, key=lambda g: (-int(flat[g]), g)):
        size = int(flat[group])
        number = next((n for n, left in enumerate(room) if left >= size), len(batches))
        if number == len(batches):
            batches.append([])
            room.append(max_tokens)
        batches[number].append(group)
        room[number] -= size
    return batches


def rank_micro_batches(
    groups: list[int],
    sizes: GroupSizes,
    world_size: int,
    rank: int,
    max_tokens: int,
    shared: bool,
) -> list[tuple[list[int], bool]]:
    """Return as many micro-batches as any rank has: (group numbers, whether the batch counts).

    Sharded training gathers parameters in every forward pass, so all ranks must make equally many.
    Passes whose loss counts nothing make up the difference.

    Args:
        groups: numbers of the step's groups.
        sizes: the sizes of all groups.
        world_size: number of ranks.
        rank: the number of this rank.
        max_tokens: the budget of a micro-batch.
        shared: whether prompts are computed once per group (the layout).
    """
    cost = sizes.flat if shared else sizes.tokens
    shares = [
        shared_micro_batches(share, sizes.flat, max_tokens)
        if shared
        else padded_micro_batches(share, sizes.sequences, sizes.longest, max_tokens)
        for share in rank_shares(groups, cost, world_size)
    ]
    most = max(len(share) for share in shares)
    filler = [min(groups, key=lambda g: int(cost[g]))]
    own = [(batch, True) for batch in shares[rank]]
    return own + [(filler, False)] * (most - len(own))
