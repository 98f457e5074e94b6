"""Rankings with their rule for ties, probabilities and weights."""

import pytest

from raydpo.core.rankings import pair_weight, preference_probability, ranking_of

IDS = [[1], [2], [3], [4]]


def test_ranking_lists_the_best_first() -> None:
    assert ranking_of([0.5, 3.0, -1.0, 1.0], IDS, "drop") == ([1, 3, 0, 2], False)


def test_equal_values_leave_no_ranking_or_the_lower_number_comes_first() -> None:
    values = [1.0, 2.0, 1.0, 0.0]
    assert ranking_of(values, IDS, "drop") == (None, True)
    assert ranking_of(values, IDS, "by_candidate") == ([1, 0, 2, 3], True)


def test_a_completion_that_is_there_twice_is_ranked_once() -> None:
    twice = [[1], [2], [1], [3]]
    assert ranking_of([0.0, 2.0, 0.0, 1.0], twice, "drop") == ([1, 3, 0], False)
    assert ranking_of([0.0, 2.0, 5.0, 1.0], twice, "drop") == ([2, 1, 3], False)


@pytest.mark.parametrize("ties", ["drop", "by_candidate"])
def test_one_completion_is_no_ranking(ties) -> None:
    assert ranking_of([1.0], [[1]], ties) == (None, False)
    assert ranking_of([1.0, 2.0], [[1], [1]], ties) == (None, False)


def test_probability_is_that_of_bradley_and_terry() -> None:
    assert preference_probability(1.0, 1.0) == 0.5
    assert preference_probability(2.0, 0.0, 2.0) == pytest.approx(0.7310586)
    assert preference_probability(0.0, 1e6) == 0.0


def test_pairs_of_a_group_weigh_one_each_or_one_together() -> None:
    assert [pair_weight(6, w) * 6 for w in ("pair", "group")] == [6.0, 1.0]
