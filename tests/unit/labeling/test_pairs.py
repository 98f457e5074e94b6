"""Which candidates are paired, which one wins, and that random draws depend only on their names."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from raydpo.config.job import PairsConfig
from raydpo.core.rankings import preference_probability
from raydpo.labeling.pairs import Draws, Scored, build_pairs


def scored(*rewards: float) -> list[Scored]:
    return [Scored(i, (100 + i,), reward) for i, reward in enumerate(rewards)]


def draws(prompt_id: str = "p", seed: int = 0, round_index: int = 0) -> Draws:
    return Draws(seed, round_index, prompt_id)


def build(candidates, prompt_id="p", seed=0, **config):
    return build_pairs(candidates, PairsConfig(**config), draws(prompt_id, seed))


def test_best_against_worst():
    assert build(scored(0.1, 0.9, -0.3, 0.5)).pairs == [(1, 2)]


def test_all_pairs_has_every_pair_once_with_the_higher_reward_chosen():
    rewards = (0.1, 0.9, -0.3, 0.5)
    pairs = build(scored(*rewards), builder="all_pairs").pairs
    assert {frozenset(pair) for pair in pairs} == {
        frozenset(pair) for pair in itertools.combinations(range(4), 2)
    }
    assert len(pairs) == 6
    assert all(rewards[chosen] > rewards[rejected] for chosen, rejected in pairs)


def test_first_two_looks_at_no_other():
    assert build(scored(0.1, 0.2, 9.0), builder="first_two").pairs == [(1, 0)]


def test_best_against_random_draws_every_other_about_as_often():
    candidates = scored(0.1, 0.9, -0.3, 0.5)
    found = [build(candidates, f"p{i}", builder="best_random").pairs for i in range(3000)]
    assert all(len(pairs) == 1 and pairs[0][0] == 1 for pairs in found)
    for other in (0, 2, 3):
        share = sum(pairs[0][1] == other for pairs in found) / 3000
        assert share == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / 3000))


def test_best_against_random_does_not_take_a_copy_of_the_best():
    candidates = [Scored(0, (5,), 1.0), Scored(1, (5,), 1.0), Scored(2, (6,), 0.0)]
    for i in range(20):
        assert build(candidates, f"p{i}", builder="best_random").pairs == [(0, 2)]


def test_margin_must_be_exceeded():
    candidates = scored(0.0, 0.25, 1.0)
    built = build(candidates, builder="all_pairs", min_margin=0.25)
    assert built.pairs == [(2, 0), (2, 1)]
    assert built.counts["below_margin"] == 1


def test_ties_are_dropped_and_counted_even_without_a_margin():
    for labels in ("argmax", "bradley_terry"):
        built = build(scored(1.0, 1.0, 2.0), builder="all_pairs", labels=labels)
        assert built.counts["ties"] == 1
        assert {frozenset(pair) for pair in built.pairs} == {frozenset((0, 2)), frozenset((1, 2))}
    assert build(scored(1.0, 1.0, 1.0)).pairs == []


def test_identical_completions_never_pair_whatever_their_rewards():
    candidates = [Scored(0, (5, 6), 0.0), Scored(1, (5, 6), 1.0), Scored(2, (7,), 2.0)]
    built = build(candidates, builder="all_pairs")
    assert built.counts["identical"] == 1
    assert built.pairs == [(2, 0), (2, 1)]


@pytest.mark.parametrize("candidates", [[], scored(1.0)])
@pytest.mark.parametrize("builder", ["best_worst", "all_pairs", "first_two", "best_random"])
def test_fewer_than_two_candidates_make_no_pair(candidates, builder):
    assert build(candidates, builder=builder).pairs == []


def test_preference_probability_is_the_sigmoid_and_never_overflows():
    assert preference_probability(0.3, 0.3) == 0.5
    assert preference_probability(2.0, 0.5) == pytest.approx(1 / (1 + math.exp(-1.5)), rel=1e-15)
    assert preference_probability(2.0, 0.5, temperature=3.0) == pytest.approx(
        1 / (1 + math.exp(-0.5)), rel=1e-15
    )
    assert preference_probability(1e6, -1e6) == 1.0
    assert preference_probability(-1e6, 1e6) == 0.0
    for difference in (0.1, 1.0, 30.0):
        total = preference_probability(difference, 0) + preference_probability(0, difference)
        assert total == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(("first", "second", "temperature"), [(1.0, 0.0, 1.0), (0.2, 0.9, 0.5)])
def test_bradley_terry_labels_win_as_often_as_they_should(first, second, temperature):
    n = 4000
    wins = sum(
        build(scored(first, second), f"p{i}", labels="bradley_terry", temperature=temperature).pairs
        == [(0, 1)]
        for i in range(n)
    )
    p = preference_probability(first, second, temperature)
    assert wins / n == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_the_flip_rate_is_the_share_of_labels_turned_round(rate):
    n = 4000
    found = [build(scored(1.0, 0.0), f"p{i}", flip_rate=rate) for i in range(n)]
    flipped = sum(built.pairs == [(1, 0)] for built in found)
    assert flipped / n == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / n) + 1e-12)
    assert sum(built.counts["flipped"] for built in found) == flipped


def test_flips_are_drawn_apart_from_labels():
    """One draw for both would flip just the labels that it made."""
    n = 4000
    noise = {"labels": "bradley_terry", "flip_rate": 0.5}
    wins = sum(build(scored(0.0, 1e-9), f"p{i}", **noise).pairs == [(0, 1)] for i in range(n))
    assert wins / n == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / n))


def test_draws_do_not_depend_on_the_order_or_on_who_else_is_there():
    config = {"builder": "all_pairs", "labels": "bradley_terry", "flip_rate": 0.3}
    for i in range(50):
        candidates = scored(0.1, 0.4, 0.3, 0.2)
        whole = build(candidates, f"p{i}", **config).pairs
        shuffled = random.Random(i).sample(candidates, 4)
        assert build(shuffled, f"p{i}", **config).pairs == whole
        without = build([c for c in candidates if c.candidate != 2], f"p{i}", **config).pairs
        assert without == [pair for pair in whole if 2 not in pair]


def test_draws_differ_between_seeds_rounds_prompts_and_purposes():
    values = {
        Draws(seed, round_index, prompt).uniform(purpose, 0, 1)
        for seed, round_index, prompt, purpose in itertools.product(
            (0, 1), (0, 1), ("p", "q"), ("label", "flip")
        )
    }
    assert len(values) == 16
    assert all(0 <= value < 1 for value in values)


def test_uniform_draws_are_uniform():
    values = [draws(f"p{i}").uniform("label", 0, 1) for i in range(5000)]
    for i in range(10):
        share = sum(i / 10 <= value < (i + 1) / 10 for value in values) / 5000
        assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 5000))


def test_soft_labels_are_bradley_terry_probabilities_that_chosen_wins():
    built = build(scored(0.0, 2.0, 1.0), builder="all_pairs", temperature=2.0)
    assert built.pairs == [(1, 0), (2, 0), (1, 2)]
    expected = [preference_probability(d, 0.0, 2.0) for d in (2.0, 1.0, 1.0)]
    assert built.probabilities == expected


def test_a_flipped_label_keeps_the_probability_of_the_label_that_was_meant():
    built = build(scored(0.0, 2.0), flip_rate=1.0)
    assert built.pairs == [(0, 1)]
    assert built.probabilities == [preference_probability(2.0, 0.0)]


def test_rankings_are_counted_and_ties_follow_the_rule():
    assert build(scored(0.0, 2.0, 1.0)).ranking == [1, 2, 0]
    dropped = build(scored(0.0, 2.0, 0.0))
    assert (dropped.ranking, dropped.counts["rankings_with_ties"]) == (None, 1)
    broken = build(scored(0.0, 2.0, 0.0), ranking_ties="by_candidate")
    assert (broken.ranking, broken.counts["rankings_with_ties"]) == ([1, 0, 2], 1)
    assert (dropped.counts["rankings"], broken.counts["rankings"]) == (0, 1)


def test_rankings_are_turned_round_at_the_flip_rate():
    found = [build(scored(0.0, 2.0, 1.0), f"p{i}", flip_rate=0.3).ranking for i in range(2000)]
    assert {tuple(r) for r in found} == {(1, 2, 0), (0, 2, 1)}
    assert sum(r == [0, 2, 1] for r in found) / 2000 == pytest.approx(0.3, abs=0.04)


def test_noisy_rankings_are_drawn_from_plackett_luce():
    rewards, n = (0.0, 1.0, 0.5), 4000
    noise = {"labels": "bradley_terry", "temperature": 0.5}
    found = [tuple(build(scored(*rewards), f"p{i}", **noise).ranking) for i in range(n)]
    weights = [math.exp(r / 0.5) for r in rewards]
    for order in itertools.permutations(range(3)):
        left = [weights[i] for i in order]
        expected = left[0] / sum(left) * left[1] / sum(left[1:])
        assert found.count(order) / n == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("setting", ["builder", "labels", "ranking_ties"])
def test_a_choice_that_nobody_knows_is_no_other_choice(setting):
    unknown = PairsConfig().model_copy(update={setting: "of_a_later_version"})
    with pytest.raises(AssertionError, match="of_a_later_version"):
        build_pairs(scored(0.1, 0.9, -0.3), unknown, draws())
