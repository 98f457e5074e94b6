"""Which groups a step has, and how ranks and micro-batches share them."""

import numpy as np
import pytest

from raydpo.training.composition import (
    Plan,
    padded_micro_batches,
    rank_micro_batches,
    rank_shares,
    shared_micro_batches,
)
from raydpo.training.groups import GroupSizes


def sizes_of(count: int, seed: int = 0) -> GroupSizes:
    rng = np.random.default_rng(seed)
    sequences = rng.integers(2, 6, count).astype(np.int32)
    longest = rng.integers(5, 200, count).astype(np.int32)
    tokens = (sequences * longest).astype(np.int64)
    none = np.zeros(count, np.int64)
    flat, targets = tokens // 2, tokens // 3
    ones, zeros = np.ones(count), np.zeros(count)
    return GroupSizes(
        sequences,
        longest,
        tokens,
        flat,
        targets,
        ones,
        none,
        none,
        rewards=zeros,
        sampler_logratios=zeros,
    )


def test_every_epoch_has_every_group_once_in_another_order() -> None:
    plan = Plan(groups=23, global_batch_groups=5, epochs=2, max_steps=None, seed=7)
    assert plan.total_steps == 10
    epochs = [[g for s in range(e * 5, e * 5 + 5) for g in plan.step_groups(s)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23))
    assert epochs[0] != epochs[1]


def test_step_is_a_function_of_seed_and_step_alone() -> None:
    plan = Plan(100, 8, 3, None, seed=1)
    backwards = {step: plan.step_groups(step) for step in reversed(range(plan.total_steps))}
    again = Plan(100, 8, 3, None, seed=1)
    assert all(again.step_groups(step) == groups for step, groups in backwards.items())
    assert Plan(100, 8, 3, None, seed=2).step_groups(0) != plan.step_groups(0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_all_groups_and_make_equally_many_passes(world_size: int, shared: bool) -> None:
    sizes = sizes_of(13)
    groups = list(range(13))
    ranks = [
        rank_micro_batches(groups, sizes, world_size, rank, 900, shared)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    counted = [g for batches in ranks for batch, counts in batches if counts for g in batch]
    assert sorted(counted) == groups


def test_more_ranks_than_groups_still_gives_every_rank_a_pass() -> None:
    ranks = [rank_micro_batches([4, 5], sizes_of(8), 4, rank, 10_000, True) for rank in range(4)]
    assert all(len(batches) == 1 for batches in ranks)
    assert sum(counts for batches in ranks for _, counts in batches) == 2


def test_shares_are_balanced_by_tokens() -> None:
    sizes = sizes_of(64)
    loads = [sizes.tokens[share].sum() for share in rank_shares(list(range(64)), sizes.tokens, 4)]
    assert max(loads) / min(loads) < 1.05


def test_padded_micro_batches_stay_under_the_budget_and_never_cut_a_group() -> None:
    sizes = sizes_of(50)
    batches = padded_micro_batches(list(range(50)), sizes.sequences, sizes.longest, 1500)
    assert sorted(g for batch in batches for g in batch) == list(range(50))
    for batch in batches:
        padded = sizes.sequences[batch].sum() * sizes.longest[batch].max()
        assert padded <= 1500 or len(batch) == 1


def test_shared_micro_batches_stay_under_the_budget_and_never_cut_a_group() -> None:
    flat = sizes_of(50).flat
    batches = shared_micro_batches(list(range(50)), flat, 600)
    assert sorted(g for batch in batches for g in batch) == list(range(50))
    assert all(flat[batch].sum() <= 600 or len(batch) == 1 for batch in batches)
    assert len(batches) <= 1.15 * flat.sum() / 600 + 1


def test_what_ranks_compute_is_balanced_in_the_shared_layout() -> None:
    sizes = sizes_of(64)
    ranks = [rank_micro_batches(list(range(64)), sizes, 4, rank, 10**9, True) for rank in range(4)]
    loads = [sum(int(sizes.flat[batch].sum()) for batch, _ in batches) for batches in ranks]
    assert max(loads) / min(loads) < 1.05
