"""Which groups a step trains on, and how the workers share them.

What comes in: sizes of all groups, the seed, the step. What goes out: for every rank
its micro-batches, as lists of group numbers. All of it is a pure function of (seed,
epoch, step) and the sizes, so every rank knows what the others do without asking, and a
resumed run does what an uninterrupted one would have done. The groups of a step do not
depend on the number of ranks or on the token budget.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raydpo.training.groups import GroupSizes

#: Integers by number.
Integers = Sequence[int] | npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How long training is.

    Attributes:
        groups: number of groups N.
        global_batch_groups: groups of one step; the last step of an epoch may have fewer.
        epochs: passes over the groups.
        max_steps: upper limit of steps, or None.
        seed: of the order.
    """

    groups: int
    global_batch_groups: int
    epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass."""
        return -(-self.groups // self.global_batch_groups)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step_groups(self, step: int) -> list[int]:
        """Numbers of the groups of a step (counted from 0 over all epochs)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.seed, epoch, self.groups)
        start = within * self.global_batch_groups
        return order[start : start + self.global_batch_groups].tolist()


@functools.lru_cache(maxsize=1)
def _epoch_order(seed: int, epoch: int, groups: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(groups)


def rank_shares(groups: list[int], tokens: Integers, world_size: int) -> list[list[int]]:
    """Share a step's groups among ranks so that the tokens they compute are close.

    Longest first, each to the rank with the fewest tokens so far.

    Args:
        groups: numbers of the groups.
        tokens: what each group costs, by number.
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

    Groups of like length go together. A group is never cut, since its pairs need all its
    completions: one that is larger than the budget makes a micro-batch of its own.

    Args:
        groups: numbers of the groups.
        sequences: completions of each group, by number.
        longest: tokens of its longest sequence, by number.
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

    Largest first, each into the first micro-batch with room. A group is never cut.

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
    """A rank's micro-batches, as many as any rank has: (group numbers, does it count).

    Sharded training gathers parameters in every forward pass, so all ranks must make
    equally many. What is missing is filled up with passes whose loss counts nothing.

    Args:
        groups: numbers of the step's groups.
        sizes: of all groups.
        world_size: number of ranks.
        rank: this one.
        max_tokens: budget of a micro-batch.
        shared: whether prompts are computed once a group (the layout).
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
