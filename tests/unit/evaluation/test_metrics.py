"""Estimates against closed forms, brute force, the bootstrap and an enumerable language model."""

from __future__ import annotations

import itertools
import json
import math
from statistics import fmean, stdev

import numpy as np
import pytest

from raydpo.evaluation import metrics
from raydpo.evaluation.metrics import Estimate


def unequal_clusters(seed: int, prompts: int = 40) -> tuple[list[float], list[str]]:
    """Values with a large effect of the prompt, 1 to 6 completions a prompt."""
    rng = np.random.default_rng(seed)
    values: list[float] = []
    names: list[str] = []
    for prompt in range(prompts):
        size = int(rng.integers(1, 7))
        values += list(rng.normal(rng.normal(0, 2), 1, size))
        names += [f"p{prompt}"] * size
    return values, names


def test_equal_clusters_give_the_standard_error_of_prompt_means():
    values = [1.0, 3.0, 2.0, 8.0, 5.0, 5.0]
    prompts = ["a", "a", "b", "b", "c", "c"]
    estimate = metrics.clustered_mean(values, prompts)
    assert estimate.mean == pytest.approx(4)
    assert estimate.standard_error == pytest.approx(stdev([2.0, 5.0, 5.0]) / math.sqrt(3))
    assert (estimate.prompts, estimate.observations) == (3, 6)


def test_order_of_rows_changes_nothing():
    values, prompts = unequal_clusters(1)
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = metrics.clustered_mean([values[i] for i in order], [prompts[i] for i in order])
    estimate = metrics.clustered_mean(values, prompts)
    assert shuffled.mean == pytest.approx(estimate.mean)
    assert shuffled.standard_error == pytest.approx(estimate.standard_error)


def test_repeating_each_completion_makes_nothing_more_certain():
    """What a standard error that took completions for independent would get wrong."""
    values, prompts = unequal_clusters(2)
    once = metrics.clustered_mean(values, prompts)
    twice = metrics.clustered_mean(values * 2, prompts * 2)
    assert twice.standard_error == pytest.approx(once.standard_error)


def test_clustered_standard_error_agrees_with_a_bootstrap_over_prompts():
    values, prompts = unequal_clusters(3, prompts=120)
    groups = [
        [v for v, _ in group]
        for _, group in itertools.groupby(zip(values, prompts, strict=True), key=lambda x: x[1])
    ]
    rng = np.random.default_rng(0)
    means = [
        fmean(v for g in rng.integers(0, len(groups), len(groups)) for v in groups[g])
        for _ in range(3000)
    ]
    estimate = metrics.clustered_mean(values, prompts)
    assert estimate.standard_error == pytest.approx(stdev(means), rel=0.08)


def test_paired_difference_agrees_with_a_bootstrap_over_prompts():
    rng = np.random.default_rng(4)
    effects = rng.normal(0, 3, 100)
    reference = [list(e + rng.normal(0, 1, rng.integers(1, 5))) for e in effects]
    policy = [list(e + 0.5 + rng.normal(0, 1, rng.integers(1, 5))) for e in effects]
    means = []
    for _ in range(3000):
        chosen = rng.integers(0, 100, 100)
        means.append(
            fmean(v for g in chosen for v in policy[g])
            - fmean(v for g in chosen for v in reference[g])
        )
    estimate = metrics.paired_difference(*flat(policy), *flat(reference))
    assert estimate.standard_error == pytest.approx(stdev(means), rel=0.08)


def flat(groups: list[list[float]]) -> tuple[list[float], list[str]]:
    return (
        [value for group in groups for value in group],
        [f"p{i}" for i, group in enumerate(groups) for _ in group],
    )


def test_paired_difference_with_equal_clusters_is_that_of_prompt_differences():
    policy, reference = [[3.0, 5.0], [1.0, 1.0], [9.0, 7.0]], [[2.0, 2.0], [0.0, 2.0], [1.0, 3.0]]
    differences = [fmean(p) - fmean(r) for p, r in zip(policy, reference, strict=True)]
    estimate = metrics.paired_difference(*flat(policy), *flat(reference))
    assert estimate.mean == pytest.approx(fmean(differences))
    assert estimate.standard_error == pytest.approx(stdev(differences) / math.sqrt(3))
    assert estimate.z == pytest.approx(estimate.mean / (estimate.standard_error or 0))


def test_pairing_removes_what_prompts_do_to_both_models():
    effects = [0.0, 10.0, 20.0, 30.0]
    policy = [[e + 1.0, e + 1.2] for e in effects]
    reference = [[e, e + 0.1] for e in effects]
    estimate = metrics.paired_difference(*flat(policy), *flat(reference))
    assert estimate.mean == pytest.approx(1.05)
    assert (estimate.standard_error or 0) < 1e-9


def test_paired_difference_leaves_out_prompts_that_one_model_lacks():
    estimate = metrics.paired_difference(
        [1.0, 2.0, 100.0], ["a", "b", "only policy"], [0.0, -50.0, 0.0], ["b", "only ref", "a"]
    )
    assert (estimate.mean, estimate.prompts, estimate.observations) == (1.5, 2, 4)


def test_difference_of_means_and_separation_agree_with_a_bootstrap_over_prompts():
    """Prompts have completions of both kinds, of one, and of different number."""
    rng = np.random.default_rng(5)
    effects = rng.normal(0, 2, 100)
    good = [list(e + 1 + rng.normal(0, 1, rng.integers(0, 4))) for e in effects]
    bad = [list(e + rng.normal(0, 1, rng.integers(0, 3))) for e in effects]
    differences, areas = [], []
    for _ in range(600):
        chosen = rng.integers(0, 100, 100)
        ours = np.array([v for g in chosen for v in good[g]])
        theirs = np.array([v for g in chosen for v in bad[g]])
        differences.append(ours.mean() - theirs.mean())
        areas.append((ours[:, None] > theirs).mean())
    difference = metrics.difference_of_means(*flat(good), *flat(bad))
    area = metrics.separation(*flat(good), *flat(bad))
    every = np.array(flat(good)[0]), np.array(flat(bad)[0])
    assert difference.mean == pytest.approx(every[0].mean() - every[1].mean())
    assert area.mean == pytest.approx((every[0][:, None] > every[1]).mean())
    assert difference.standard_error == pytest.approx(stdev(differences), rel=0.15)
    assert area.standard_error == pytest.approx(stdev(areas), rel=0.15)


def test_separation_counts_ties_half():
    values = metrics.separation([1.0, 2.0], ["a", "b"], [1.0, 1.0], ["c", "d"])
    assert (values.mean, values.prompts, values.observations) == (0.75, 4, 4)


# A language model with two tokens and an end, at most two tokens long: enumerable.
_VOCABULARY = (0, 1, 2)  # 2 ends a completion
_POLICY = {(): (0.5, 0.3, 0.2), (0,): (0.1, 0.6, 0.3), (1,): (0.25, 0.25, 0.5)}
_REFERENCE = {(): (0.2, 0.4, 0.4), (0,): (0.3, 0.3, 0.4), (1,): (0.7, 0.2, 0.1)}


def toy_logps(model: dict[tuple[int, ...], tuple[float, ...]], ids: tuple[int, ...]) -> list[float]:
    return [math.log(model[ids[:t]][ids[t]]) for t in range(len(ids))]


def toy_completions() -> list[tuple[int, ...]]:
    return [(2,)] + [(first, second) for first in (0, 1) for second in _VOCABULARY]


def test_kl_of_an_enumerable_model_is_the_exact_one():
    """By the chain rule: KL of the first token plus the expected KL of the second."""

    def kl(p: tuple[float, ...], q: tuple[float, ...]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    exact = kl(_POLICY[()], _REFERENCE[()]) + sum(
        _POLICY[()][t] * kl(_POLICY[(t,)], _REFERENCE[(t,)]) for t in (0, 1)
    )
    # Each completion as often as the policy says, in 1000: 0.5 * 0.1 = 50, and so on.
    samples = [
        ids
        for ids in toy_completions()
        for _ in range(round(1000 * math.exp(sum(toy_logps(_POLICY, ids)))))
    ]
    assert len(samples) == 1000
    ours = [toy_logps(_POLICY, ids) for ids in samples]
    theirs = [toy_logps(_REFERENCE, ids) for ids in samples]
    prompts = [f"p{i % 50}" for i in range(1000)]
    assert metrics.kl_per_completion(ours, theirs, prompts).mean == pytest.approx(exact, abs=1e-12)
    tokens = fmean(len(ids) for ids in samples)
    per_token = metrics.kl_per_token(ours, theirs, prompts)
    assert per_token.mean == pytest.approx(exact / tokens, abs=1e-12)


def test_kl_of_samples_lies_within_its_interval():
    rng = np.random.default_rng(5)
    completions = toy_completions()
    weights = [math.exp(sum(toy_logps(_POLICY, ids))) for ids in completions]
    samples = [completions[i] for i in rng.choice(len(completions), 4000, p=weights)]
    ours = [toy_logps(_POLICY, ids) for ids in samples]
    theirs = [toy_logps(_REFERENCE, ids) for ids in samples]
    prompts = [f"p{i % 500}" for i in range(4000)]
    estimate = metrics.kl_per_completion(ours, theirs, prompts)
    exact = sum(
        w * (sum(toy_logps(_POLICY, i)) - sum(toy_logps(_REFERENCE, i)))
        for w, i in zip(weights, completions, strict=True)
    )
    assert abs(estimate.mean - exact) < 4 * (estimate.standard_error or 0)


def test_kl_of_a_model_with_itself_is_exactly_zero():
    logps = [[-0.1, -2.3], [-7.0]]
    estimate = metrics.kl_per_completion(logps, logps, ["a", "b"])
    assert (estimate.mean, estimate.standard_error, estimate.z) == (0.0, 0.0, None)


def test_kl_refuses_lists_of_different_length():
    """Padding on one side only must never be counted."""
    with pytest.raises(ValueError, match="zip"):
        metrics.kl_per_completion([[-1.0, -1.0]], [[-1.0]], ["a"])


def test_win_rate_against_brute_force():
    policy = {"a": [1.0, 3.0, 3.0], "b": [0.0], "alone": [9.0]}
    reference = {"a": [2.0, 3.0], "b": [0.0, 0.0, 5.0]}
    results = [
        1.0 if p > r else 0.5 if p == r else 0.0
        for prompt in reference
        for p in policy[prompt]
        for r in reference[prompt]
    ]
    estimate = metrics.win_rate(
        [v for vs in policy.values() for v in vs],
        [name for name, vs in policy.items() for _ in vs],
        [v for vs in reference.values() for v in vs],
        [name for name, vs in reference.items() for _ in vs],
    )
    assert estimate.mean == pytest.approx(fmean(results))
    assert (estimate.prompts, estimate.observations) == (2, len(results))


def test_win_rate_of_the_same_samples_is_one_half():
    scores, prompts = unequal_clusters(6)
    estimate = metrics.win_rate(scores, prompts, scores, prompts)
    assert (estimate.mean, estimate.standard_error) == (0.5, 0.0)


def test_win_rate_keeps_to_the_prompt():
    """Above every reference of another prompt, below those of its own."""
    estimate = metrics.win_rate([1.0, 11.0], ["a", "b"], [2.0, 12.0], ["a", "b"])
    assert estimate.mean == 0.0


def test_pair_accuracy_is_weighted_and_counts_ties_half():
    estimate = metrics.pair_accuracy([2.0, -1.0, 0.0], [1.0, 2.0, 1.0], ["a", "b", "b"])
    assert estimate.mean == pytest.approx((1 + 0 + 0.5) / 4)
    assert estimate.prompts == 2


def test_weighted_mean_takes_weights_for_multiplicities():
    weighted = metrics.weighted_mean([1.0, 5.0, 2.0], [2.0, 1.0, 3.0], ["a", "a", "b"])
    repeated = metrics.clustered_mean([1.0, 1.0, 5.0, 2.0, 2.0, 2.0], ["a"] * 3 + ["b"] * 3)
    assert weighted.mean == pytest.approx(repeated.mean)
    assert weighted.standard_error == pytest.approx(repeated.standard_error)


def test_one_prompt_leaves_the_standard_error_unknown_and_json_without_nan():
    estimate = metrics.clustered_mean([1.0, 2.0], ["a", "a"])
    assert (estimate.standard_error, estimate.ci95, estimate.z) == (None, None, None)
    assert json.loads(json.dumps(estimate.as_json(), allow_nan=False))["ci95"] is None


def test_interval_is_1_96_standard_errors_on_each_side():
    low, high = Estimate(10.0, 2.0, 5, 5).ci95 or (0, 0)
    assert (low, high) == pytest.approx((10 - 3.92, 10 + 3.92), abs=1e-3)


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [(0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0), (9, 10, 0.596, 0.982), (5, 10, 0.237, 0.763)],
)
def test_a_share_of_independent_draws_has_wilsons_interval(wins, count, low, high):
    """Values of Newcombe (1998) and of any table of Wilson's interval."""
    values = [1.0] * wins + [0.0] * (count - wins)
    prompts = [f"p{i}" for i in range(count)]
    share = metrics.pair_accuracy([v - 0.5 for v in values], [1.0] * count, prompts)
    # The clustered error divides by G - 1, the binomial one by G: at ten prompts a little wider.
    assert share.ci95 == pytest.approx((low, high), abs=0.02)
    assert share.standard_error == metrics.clustered_mean(values, prompts).standard_error


@pytest.mark.parametrize("seed", range(20))
def test_intervals_of_shares_stay_between_0_and_1_and_hold_the_mean(seed):
    rng = np.random.default_rng(seed)
    prompts = [f"p{i // 3}" for i in range(15)]
    extreme = list(rng.choice([0.0, 1.0], 15, p=[0.07, 0.93]))
    reference = list(rng.choice([0.0, 1.0], 15, p=[0.93, 0.07]))
    shares = [
        metrics.win_rate(extreme, prompts, reference, prompts),
        metrics.pair_accuracy([v - 0.5 for v in extreme], [1.0] * 15, prompts),
        metrics.separation(extreme, prompts, reference, prompts),
        metrics.repetition_share([[1] * 9] * 14 + [[1, 2, 3]], prompts),
        metrics.as_share(metrics.clustered_mean(extreme, prompts)),
    ]
    for share in shares:
        assert share is not None
        low, high = share.ci95 or (math.nan, math.nan)
        assert 0 <= low <= share.mean <= high <= 1
        assert low < high


def test_a_share_that_each_prompt_has_alike_is_certain_and_one_of_0_or_1_is_not():
    ties = metrics.win_rate([1.0, 2.0], ["a", "b"], [1.0, 2.0], ["a", "b"])
    assert ties.ci95 == (0.5, 0.5)
    names = [f"p{i}" for i in range(30)]
    won = metrics.win_rate([1.0] * 30, names, [0.0] * 30, names)
    assert won.ci95 == pytest.approx((30 / (30 + 1.96**2), 1.0), abs=1e-3)


def test_wilsons_interval_of_many_prompts_is_the_usual_one():
    rng = np.random.default_rng(3)
    values = list(rng.choice([0.0, 1.0], 4000))
    mean = metrics.clustered_mean(values, [f"p{i // 4}" for i in range(4000)])
    assert metrics.as_share(mean).ci95 == pytest.approx(mean.ci95, abs=1e-3)


def test_distinct_2_sees_completions_that_are_all_alike():
    assert metrics.distinct_2([[1, 2, 3], [4, 5, 6]]) == 1.0
    assert metrics.distinct_2([[1, 2, 3]] * 4) == 0.25
    assert metrics.distinct_2([[1], []]) is None


def test_repetition_share_sees_a_loop_and_no_boundary_between_completions():
    looping = metrics.repetition_share([[1, 2, 1, 2, 1, 2], [1, 2]], ["a", "b"])
    assert looping is not None
    assert looping.mean == pytest.approx(3 / 6)
    assert metrics.repetition_share([[7]], ["a"]) is None
