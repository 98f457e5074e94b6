"""The paired bootstrap and the swap test agree with closed forms and with every resample."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from raydpo.evaluation.metrics import paired_difference
from raydpo.evaluation.paired import (
    Clusters,
    clusters,
    holm,
    percentile_interval,
    resampled_means,
    swap_p_value,
    win_clusters,
)


def simulated(seed: int, prompts: int, gain: float = 0.0) -> tuple[Clusters, Clusters]:
    """Two runs of 1 to 4 completions a prompt, whose scores share the prompt's own effect."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(0, 1, prompts)
    sides = []
    for shift in (gain, 0.0):
        sizes = rng.integers(1, 5, prompts).astype(float)
        sums = sizes * (effect + shift) + rng.normal(0, 1, prompts) * np.sqrt(sizes)
        sides.append(Clusters(sums, sizes))
    return sides[0], sides[1]


def drawn_difference(one: Clusters, other: Clusters, resamples: int, seed: int = 0) -> np.ndarray:
    drawn = resampled_means([one, other], resamples, seed)
    return drawn[:, 0] - drawn[:, 1]


def test_the_bootstrap_has_the_standard_error_of_a_paired_mean():
    rng = np.random.default_rng(3)
    effect = rng.normal(0, 2, 200)
    one, other = effect + rng.normal(0.3, 1, 200), effect + rng.normal(0, 1, 200)
    ones = np.ones(200)
    drawn = drawn_difference(Clusters(one, ones), Clusters(other, ones), 20_000)
    gaps = one - other
    assert drawn.std() == pytest.approx(gaps.std() / math.sqrt(200), rel=0.02)
    assert drawn.mean() == pytest.approx(gaps.mean(), abs=0.003)
    low, high = percentile_interval(drawn)
    half = 1.96 * gaps.std() / math.sqrt(200)
    assert (low, high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.012)


def test_the_bootstrap_agrees_with_the_linearised_error_where_sizes_differ():
    one, other = simulated(5, prompts=300, gain=0.2)
    values, prompts = [], []
    for side in (one, other):
        sizes = side.sizes.astype(int)
        values.append([s / n for s, n in zip(side.sums, sizes, strict=True) for _ in range(n)])
        prompts.append([f"p{i}" for i, n in enumerate(sizes) for _ in range(n)])
    found = paired_difference(values[0], prompts[0], values[1], prompts[1])
    drawn = drawn_difference(one, other, 10_000)
    assert one.mean - other.mean == pytest.approx(found.mean)
    assert drawn.std() == pytest.approx(found.standard_error, rel=0.04)


def test_the_bootstrap_has_the_distribution_of_all_resamples_of_a_tiny_set():
    one = Clusters(np.array([1.0, 0.0, 5.0]), np.array([1.0, 2.0, 2.0]))
    other = Clusters(np.array([0.5, 1.0, 1.0]), np.array([1.0, 1.0, 3.0]))
    every = []
    for draw in itertools.product(range(3), repeat=3):
        index = list(draw)
        ours = one.sums[index].sum() / one.sizes[index].sum()
        every.append(ours - other.sums[index].sum() / other.sizes[index].sum())
    drawn = drawn_difference(one, other, 40_000)
    for value in sorted(set(np.round(every, 9))):
        exact = np.mean(np.array(every) <= value + 1e-9)
        assert np.mean(drawn <= value + 1e-9) == pytest.approx(exact, abs=0.01)


def test_intervals_cover_the_true_difference_about_as_often_as_they_say():
    covered = 0
    for seed in range(400):
        low, high = percentile_interval(drawn_difference(*simulated(seed, 60, gain=0.5), 500))
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / 400 <= 0.975


def test_resamples_depend_on_the_seed_alone_and_not_on_their_chunks(monkeypatch):
    one, other = simulated(1, prompts=10)
    whole = drawn_difference(one, other, 1000, seed=4)
    assert (whole == drawn_difference(one, other, 1000, seed=4)).all()
    assert (whole != drawn_difference(one, other, 1000, seed=5)).any()
    monkeypatch.setattr("raydpo.evaluation.paired._MOST_WEIGHTS", 70)
    assert (whole == drawn_difference(one, other, 1000, seed=4)).all()


def test_the_swap_test_of_few_prompts_makes_every_exchange():
    gaps = np.array([0.5, 0.2, -0.1, 0.7])
    one, other = Clusters(gaps, np.ones(4)), Clusters(np.zeros(4), np.ones(4))
    signs = itertools.product((1, -1), repeat=4)
    larger = [abs(np.mean(gaps * np.array(s))) >= abs(gaps.mean()) - 1e-12 for s in signs]
    assert swap_p_value(one, other, 16, seed=0) == np.mean(larger) == 4 / 16
    # Random exchanges of the same set come near it.
    assert swap_p_value(one, other, 15, seed=0) == pytest.approx(0.25, abs=0.25)


def test_the_swap_test_exchanges_sums_and_numbers_of_completions():
    one = Clusters(np.array([3.0, 0.5, 4.0]), np.array([4.0, 1.0, 2.0]))
    other = Clusters(np.array([1.0, 0.2, 0.3]), np.array([1.0, 3.0, 1.0]))
    gaps = []
    for swap in itertools.product((False, True), repeat=3):
        mean_of_one, mean_of_other = (
            np.where(swap, b.sums, a.sums).sum() / np.where(swap, b.sizes, a.sizes).sum()
            for a, b in ((one, other), (other, one))
        )
        gaps.append(abs(mean_of_one - mean_of_other))
    exact = np.mean(np.array(gaps) >= gaps[0] - 1e-12)
    assert 0 < exact < 1
    assert swap_p_value(one, other, 8, seed=0) == exact


def test_the_swap_test_rejects_equal_policies_as_often_as_it_says():
    few = [swap_p_value(*simulated(seed, 8), 256, seed) for seed in range(600)]
    assert np.mean(np.array(few) <= 0.05) == pytest.approx(0.05, abs=0.025)
    many = [swap_p_value(*simulated(seed, 40), 400, seed) for seed in range(400)]
    assert np.mean(np.array(many) <= 0.05) == pytest.approx(0.05, abs=0.03)
    real = [swap_p_value(*simulated(seed, 40, gain=1.5), 400, seed) for seed in range(20)]
    assert max(real) < 0.05


def test_a_run_and_its_copy_differ_by_nothing():
    one, _ = simulated(2, prompts=30)
    assert percentile_interval(drawn_difference(one, one, 200)) == (0.0, 0.0)
    assert swap_p_value(one, one, 200, seed=0) == 1.0
    scores, prompts = [0.1, 0.9, 0.9, 0.2], ["a", "a", "b", "b"]
    assert win_clusters(scores, prompts, scores, prompts, ["a", "b"]).mean == 0.5


def test_ties_count_half_and_other_prompts_do_not_count():
    wins = win_clusters([1.0, 2.0, 9.0], ["a", "a", "x"], [1.0, 3.0], ["a", "b"], ["a"])
    assert (wins.sums.tolist(), wins.sizes.tolist()) == ([1.5], [2.0])
    found = clusters([1.0, 2.0, 9.0], ["b", "b", "x"], ["a", "b"])
    assert (found.sums.tolist(), found.sizes.tolist()) == ([0.0, 3.0], [0.0, 2.0])


def test_holm_multiplies_step_by_step_and_never_falls():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
