"""Best-of-N's estimates, against all subsets, exact values of enumerable worlds, and by hand."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raydpo.core.errors import DataError
from raydpo.evaluation.best_of import best_of_kl, best_of_weights, kl_bound, measure_best_of
from raydpo.evaluation.samples import Sample
from tests.unit.jobs.job_modules import modules_of

with modules_of("enumerable", ["world"]) as enumerable:
    random_world = enumerable.world.random_world

Floats = NDArray[np.float64]


def sample(prompt: str, candidate: int, score: float, ids: tuple[int, ...] = ()) -> Sample:
    tokens = ids or (candidate, 7)
    return Sample(prompt, candidate, prompt, "x", tokens, "stop", score, {"judge": score})


def exact_best_of(probabilities: Floats, rewards: Floats, n: int) -> Floats:
    """Best-of-N's probability of each completion: ties are drawn uniformly among the N samples."""
    below = np.array([probabilities[rewards < r].sum() for r in rewards])
    same = np.array([probabilities[rewards == r].sum() for r in rewards])
    return probabilities * ((below + same) ** n - below**n) / same


def exact_kl(probabilities: Floats, rewards: Floats, n: int) -> float:
    best = exact_best_of(probabilities, rewards, n)
    some = best > 0  # of the worst, nothing is left in float64
    return float((best[some] * np.log(best[some] / probabilities[some])).sum())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_weights_are_the_share_of_subsets_in_which_a_sample_is_the_best(n: int) -> None:
    rewards = [0.3, -1.0, 2.0, 2.0, 0.3, 0.3]
    wins = np.zeros(6)
    subsets = list(combinations(range(6), n))
    for subset in subsets:
        best = [i for i in subset if rewards[i] == max(rewards[j] for j in subset)]
        wins[best] += 1 / len(best)
    assert best_of_weights(rewards, n) == pytest.approx(wins / len(subsets), abs=1e-12)


def test_weights_of_many_samples_neither_overflow_nor_lose_their_sum() -> None:
    for n in (1, 64, 128, 4096):
        weights = best_of_weights(np.arange(4096.0).tolist(), n)
        assert weights.sum() == pytest.approx(1.0, abs=1e-9)
        assert weights[-1] == pytest.approx(n / 4096)


def test_exact_best_of_is_what_all_draws_give() -> None:
    """The reference values of the other tests, from the enumeration of every draw of three."""
    probabilities, rewards = np.array([0.5, 0.2, 0.3]), np.array([1.0, 2.0, 1.0])
    found = np.zeros(3)
    for draw in np.ndindex(3, 3, 3):
        best = [i for i in draw if rewards[i] == max(rewards[list(draw)])]
        for i in best:
            found[i] += probabilities[list(draw)].prod() / len(best)
    assert exact_best_of(probabilities, rewards, 3) == pytest.approx(found)


@pytest.mark.parametrize("n", [2, 8, 128])
def test_score_of_the_best_is_unbiased_on_an_enumerable_world(n: int) -> None:
    world = random_world(prompts=1, completions=6, seed=3, reward_scale=1.0)
    rewards = np.round(world.rewards[0].numpy())  # with ties
    probabilities = world.reference_logps[0].exp().numpy()
    scores = np.array([0.1, 0.9, 0.4, 0.6, 0.2, 0.5])
    rng = np.random.default_rng(n)
    estimates: list[float] = []
    for _ in range(1000):
        drawn = rng.choice(6, 128, p=probabilities)
        estimates.append(float(best_of_weights(rewards[drawn].tolist(), n) @ scores[drawn]))
    exact = float(exact_best_of(probabilities, rewards, n) @ scores)
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - exact) < 3.5 * error + 1e-6


@pytest.mark.parametrize("completions", [3, 6, 30, 300, 3000])
@pytest.mark.parametrize("samples", [16, 128])
@pytest.mark.parametrize("seed", [1, 2])
def test_kl_is_near_that_of_an_enumerable_world(completions: int, samples: int, seed: int) -> None:
    """The bias that the docstring of `best_of_kl` states."""
    world = random_world(prompts=1, completions=completions, seed=seed, reward_scale=1.0)
    probabilities, rewards = world.reference_logps[0].exp().numpy(), world.rewards[0].numpy()
    rng = np.random.default_rng(0)
    draws = [rewards[rng.choice(completions, samples, p=probabilities)] for _ in range(300)]
    for n, low, high in (
        (samples // 4, -0.07, 0.03),
        (samples, {16: -0.35, 128: -0.12}[samples], 0.05),
    ):
        estimate = float(np.mean([best_of_kl(drawn.tolist(), n) for drawn in draws]))
        assert low < estimate - exact_kl(probabilities, rewards, n) < high


def test_kl_of_ties_is_below_the_bound_and_reaches_it_without() -> None:
    distinct = np.random.default_rng(0).normal(size=64).tolist()
    for n in (1, 2, 64, 1000):
        assert best_of_kl(distinct, n) == pytest.approx(kl_bound(n), abs=1e-9)
        assert best_of_kl([*distinct[:32], *distinct[:32]], n) <= kl_bound(n) + 1e-9
    assert best_of_kl([1.0] * 64, 64) == 0.0
    assert best_of_kl([0.0, 1.0] * 32, 8) == pytest.approx(
        exact_kl(np.array([0.5, 0.5]), np.array([0.0, 1.0]), 8)
    )


def measured(sizes: list[int], **changes: Any) -> list[dict[str, Any]]:
    """Two prompts of four samples, whose rewards order them as their candidate numbers do."""
    samples = [sample(p, k, 0.1 * k) for p in "ab" for k in range(4)]
    values: dict[str, Any] = {
        "samples": samples,
        "rewards": {(s.prompt_id, s.candidate): float(s.candidate) for s in samples},
        "reference": [sample(p, 9, 0.2) for p in "ab"],
        "sizes": sizes,
        "shares": True,
        **changes,
    }
    return measure_best_of(**values)


def test_scores_win_rates_and_ties_by_hand() -> None:
    one, two, four = measured([1, 2, 4])
    assert one["score"]["mean"] == pytest.approx(0.15)
    assert two["score"]["mean"] == pytest.approx((0 * 0 + 1 * 0.1 + 2 * 0.2 + 3 * 0.3) / 6)
    assert four["score"]["mean"] == pytest.approx(0.3)
    assert [row["reward"]["mean"] for row in (one, two, four)] == pytest.approx([1.5, 14 / 6, 3.0])
    # Against 0.2: candidates 0 and 1 lose, 2 ties, 3 wins.
    assert [row["win_rate"]["mean"] for row in (one, two, four)] == pytest.approx([0.375, 4 / 6, 1])
    assert [row["tied_share"]["mean"] for row in (one, two, four)] == pytest.approx(
        [0.25, 2 / 6, 0]
    )
    assert four["kl_nats_per_completion"]["mean"] == pytest.approx(math.log(4) - 3 / 4)
    assert (four["score"]["prompts"], four["score"]["observations"]) == (2, 8)


def test_prompts_are_the_units_of_intervals() -> None:
    """Prompts that differ widen the interval; more samples of the same prompts do not narrow it."""
    samples = [
        sample(p, k, 0.5 + offset) for p, offset in (("a", 0.2), ("b", -0.2)) for k in range(8)
    ]
    rewards = {(s.prompt_id, s.candidate): float(s.candidate) for s in samples}
    [row] = measured([8], samples=samples, rewards=rewards)
    assert row["score"]["standard_error"] == pytest.approx(0.2)


def test_equal_completions_have_one_reward_whatever_rounding_says() -> None:
    samples = [sample("a", k, 0.5, ids=(1, 2)) for k in range(4)]
    rewards = {("a", k): 1.0 + 1e-7 * k for k in range(4)}
    [row] = measured([4], samples=samples, rewards=rewards)
    assert row["kl_nats_per_completion"]["mean"] == 0.0


def test_prompts_with_fewer_samples_or_without_rewards_are_left_out_at_this_n() -> None:
    samples = [sample("a", k, 0.1) for k in range(4)] + [sample("b", k, 0.9) for k in range(4)]
    rewards = {(s.prompt_id, s.candidate): 0.0 for s in samples if s.candidate < 2 or s.score < 0.5}
    two, four = measured([2, 4], samples=samples, rewards=rewards)
    assert (two["score"]["prompts"], four["score"]["prompts"]) == (2, 1)
    assert four["score"]["mean"] == pytest.approx(0.1)
    with pytest.raises(DataError, match="no held-out prompt has 5 samples"):
        measured([5], samples=samples, rewards=rewards)
