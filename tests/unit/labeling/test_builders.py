"""The package's pair builders against hand computation and the formulas of their sources."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from raydpo.config.job import LabelingConfig, PairsConfig
from raydpo.labeling.builders import Draws, Scored, accept, merged, similarity
from raydpo.labeling.pairs import Pairs, build_pairs


def scored(*rewards: float) -> list[Scored]:
    return [Scored(i, (100 + i,), reward) for i, reward in enumerate(rewards)]


def build(candidates: list[Scored], prompt_id: str = "p", **config: Any) -> Pairs:
    return build_pairs(candidates, PairsConfig(**config), Draws(0, 0, prompt_id))


def test_adjacent_ranks_pair_each_candidate_with_the_next_lower_one() -> None:
    built = build(scored(0.1, 0.9, -0.3, 0.5), builder="adjacent_ranks")
    assert built.pairs == [(1, 3), (3, 0), (0, 2)]


def test_adjacent_ranks_with_equal_rewards_are_ties() -> None:
    built = build(scored(1.0, 2.0, 1.0), builder="adjacent_ranks")
    assert (built.pairs, built.counts["ties"]) == ([(1, 0)], 1)


@pytest.mark.parametrize(
    ("top", "bottom", "expected"),
    [
        (0.25, 0.25, {(7, 0), (7, 1), (6, 0), (6, 1)}),
        (0.125, 0.375, {(7, 0), (7, 1), (7, 2)}),
        (0.05, 0.05, {(7, 0)}),
    ],
)
def test_top_fraction_wins_over_bottom_fraction(
    top: float, bottom: float, expected: set[tuple[int, int]]
) -> None:
    rewards = [float(i) for i in range(8)]
    fractions = {"top_fraction": top, "bottom_fraction": bottom}
    assert set(build(scored(*rewards), builder="top_bottom", **fractions).pairs) == expected


@pytest.mark.parametrize("count", range(2, 12))
def test_top_and_bottom_never_meet_where_they_are_all_candidates(count: int) -> None:
    rewards = [float(i) for i in range(count)]
    for top in (0.01, 0.3, 0.5, 0.9, 0.99):
        config = {"top_fraction": top, "bottom_fraction": 1 - top}
        pairs = build(scored(*rewards), builder="top_bottom", **config).pairs
        assert pairs
        assert max(r for _, r in pairs) < min(c for c, _ in pairs)


def test_best_of_n_wins_over_each_other() -> None:
    built = build(scored(0.1, 0.9, -0.3, 0.5), builder="best_of_n", weighting="group")
    assert built.pairs == [(1, 3), (0, 1)[::-1], (1, 2)]
    assert built.weights == pytest.approx([1 / 3] * 3)


def test_a_wrong_candidate_loses_to_the_correct_one_most_similar_to_it() -> None:
    candidates = [
        Scored(0, (1, 2, 3, 4, 5), 1.0),
        Scored(1, (9, 8, 7, 6, 5), 1.0),
        Scored(2, (9, 8, 7, 6, 4), 0.0),
        Scored(3, (1, 2, 3, 4, 6), 0.0),
    ]
    assert build(candidates, builder="correction").pairs == [(1, 2), (0, 3)]
    assert build(candidates, builder="correction", correct_above=1.0).pairs == []
    assert build(scored(1.0, 1.0), builder="correction").pairs == []


def accepted_sets(rewards: list[float], most: int, beta: float, count: int) -> dict[Any, float]:
    """How often each set of candidates is accepted."""
    candidates = scored(*rewards)
    found = Counter(
        frozenset(one.candidate for one in accept(candidates, most, beta, Draws(0, 0, f"p{i}")))
        for i in range(count)
    )
    return {names: times / count for names, times in found.items()}


def test_rejection_sampling_accepts_with_the_probabilities_of_its_formula() -> None:
    """RSO, arXiv:2309.06657: exp((reward - highest) / beta), pass after pass."""
    beta, count = 0.5, 4000
    rewards = [0.2, 0.5, 1.0]
    first, second = (math.exp((reward - 1.0) / beta) for reward in rewards[:2])
    one = {
        frozenset({0}): first,
        frozenset({1}): (1 - first) * second,
        frozenset({2}): (1 - first) * (1 - second),
    }
    neither, again = (1 - first) * (1 - second), math.exp((0.2 - 0.5) / beta)
    two = {
        frozenset({0, 1}): first * second,
        frozenset({0, 2}): first * (1 - second) + neither * again,
        frozenset({1, 2}): (1 - first) * second + neither * (1 - again),
    }
    for most, expected in ((1, one), (2, two)):
        assert sum(expected.values()) == pytest.approx(1.0)
        found = accepted_sets(rewards, most, beta, count)
        for names, probability in expected.items():
            within = 4 * math.sqrt(probability * (1 - probability) / count)
            assert found[names] == pytest.approx(probability, abs=within)


def test_rejection_sampling_accepts_at_most_what_is_there() -> None:
    assert [one.candidate for one in accept(scored(1.0, 1.0, 1.0), 8, 0.5, Draws(0, 0, "p"))] == [
        0,
        1,
        2,
    ]
    assert accept(scored(0.0, -1e9), 1, 0.5, Draws(0, 0, "p"))[0].candidate == 0


def test_rejection_sampling_pairs_each_accepted_candidate_once() -> None:
    rewards = [i / 16 for i in range(16)]
    for i in range(20):
        built = build(scored(*rewards), f"p{i}", builder="rejection_sampling", accepted=4)
        assert len(built.pairs) == 2
        assert len({name for pair in built.pairs for name in pair}) == 4
        assert all(rewards[chosen] > rewards[rejected] for chosen, rejected in built.pairs)


def test_similarity_is_the_jaccard_index_of_token_trigrams() -> None:
    a, b = Scored(0, (1, 2, 3, 4, 5), 0.0), Scored(1, (1, 2, 3, 4, 6), 0.0)
    assert similarity(a, b) == 2 / 4  # 123, 234 of 123, 234, 345, 346
    assert similarity(a, a) == 1.0
    assert similarity(Scored(0, (1,), 0.0), Scored(1, (1, 2), 0.0)) == 0.0


def test_near_candidates_merge_into_the_lowest_number_whatever_the_rewards() -> None:
    candidates = [
        Scored(0, (1, 2, 3, 4, 5), 0.0),
        Scored(1, (1, 2, 3, 4, 6), 5.0),
        Scored(2, (7, 8, 9), 1.0),
    ]
    assert [one.candidate for one in merged(candidates, 0.5)] == [0, 2]
    assert [one.candidate for one in merged(candidates, 0.51)] == [0, 1, 2]
    built = build(candidates, builder="all_pairs", merge_similarity=0.5)
    assert (built.pairs, built.ranking, built.counts["merged"]) == ([(2, 0)], [2, 0], 1)
    assert "merged" not in build(candidates).counts


def test_a_cap_keeps_pairs_by_draw_and_counts_the_others() -> None:
    rewards = [0.1, 0.9, -0.3, 0.5]
    whole = build(scored(*rewards), builder="all_pairs").pairs
    found: Counter[tuple[int, int]] = Counter()
    for i in range(1200):
        built = build(scored(*rewards), f"p{i}", builder="all_pairs", max_per_prompt=2)
        assert len(built.pairs) == len(built.probabilities) == len(built.weights) == 2
        assert built.counts["above_max_per_prompt"] == 4
        assert built.pairs == [pair for pair in whole if pair in built.pairs]
        found.update(built.pairs)
        again = build(scored(*rewards), f"p{i}", builder="all_pairs", max_per_prompt=2)
        assert again == built
    assert all(found[pair] / 1200 == pytest.approx(1 / 3, abs=0.06) for pair in whole)
    few = build(scored(*rewards), builder="all_pairs", max_per_prompt=9)
    assert (few.pairs, few.counts["above_max_per_prompt"]) == (whole, 0)


def test_weights_by_margin_and_confidence_are_those_of_hand_computation() -> None:
    candidates = scored(0.0, 2.0, 0.5)
    config = {"builder": "all_pairs", "temperature": 2.0}
    assert build(candidates, **config).weights == [1.0, 1.0, 1.0]
    assert build(candidates, **config, weight_by="margin").weights == [2.0, 0.5, 1.5]
    built = build(candidates, **config, weight_by="confidence")
    by_hand = [2 / (1 + math.exp(-d / 2.0)) - 1 for d in (2.0, 0.5, 1.5)]
    assert built.weights == pytest.approx(by_hand, rel=1e-12)
    assert built.weights == pytest.approx([2 * p - 1 for p in built.probabilities], rel=1e-12)
    grouped = build(candidates, **config, weight_by="margin", weighting="group")
    assert grouped.weights == [2.0 / 4, 0.5 / 4, 1.5 / 4]


def test_weights_by_agreement_are_shares_of_scorers_that_differ() -> None:
    def of(candidate: int, *terms: float) -> Scored:
        return Scored(candidate, (candidate,), sum(terms), terms)

    candidates = [of(0, 3.0, 0.0, -1.0), of(1, 0.0, 0.5, -1.0)]
    built = build(candidates, weight_by="agreement")
    assert (built.pairs, built.weights) == ([(0, 1)], [0.5])  # the third scorer sees no difference
    candidates = [of(0, 1.0, 1.0, 0.0), of(1, 0.0, 0.5, 1.0)]
    assert build(candidates, weight_by="agreement").weights == [pytest.approx(2 / 3)]


def test_reversed_labels_keep_the_weight_of_the_label_that_was_meant() -> None:
    built = build(scored(0.0, 2.0), weight_by="margin", flip_rate=1.0)
    assert (built.pairs, built.weights) == ([(0, 1)], [2.0])


@pytest.mark.parametrize(
    "builder", ["adjacent_ranks", "top_bottom", "best_of_n", "rejection_sampling", "correction"]
)
def test_fewer_than_two_candidates_make_no_pair(builder: str) -> None:
    assert build([], builder=builder).pairs == []
    assert build(scored(1.0), builder=builder).pairs == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"top_fraction": 0.1}, "`top_fraction` is for `builder: top_bottom`"),
        ({"builder": "top_bottom", "accepted": 4}, "`accepted` is for"),
        ({"acceptance_beta": 0.1}, "`acceptance_beta` is for `builder: rejection_sampling`"),
        ({"correct_above": 0.0}, "`correct_above` is for `builder: correction`"),
        ({"chosen_column": "good"}, "`chosen_column` is for `builder: data_chosen`"),
        ({"builder": "data_chosen", "min_margin": 0.1}, "`min_margin` compares the rewards"),
        ({"builder": "data_chosen", "weight_by": "margin"}, "`weight_by` compares the rewards"),
        ({"builder": "top_bottom", "top_fraction": 0.8}, "their sum is at most 1"),
    ],
)
def test_a_setting_that_the_builder_does_not_read_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        PairsConfig.model_validate(config)


def test_agreement_of_one_scorer_with_itself_is_refused() -> None:
    values = {"reward": {"function": "a:b"}, "pairs": {"weight_by": "agreement"}}
    with pytest.raises(ValidationError, match="give `reward` a list"):
        LabelingConfig.model_validate(values)
    LabelingConfig.model_validate(
        {**values, "reward": [{"function": "a:b"}, {"function": "a:c", "name": "c"}]}
    )
