"""Penalties are terms of a sum: 0 where a completion is as it should be, and less elsewhere."""

from __future__ import annotations

import pytest

from raydpo.config.job import RewardConfig
from raydpo.labeling.penalties import missing_eos, soft_overlong, tokens_beyond
from raydpo.labeling.preferences import combined_rewards
from raydpo.labeling.stage import make_judge, score_part


def ids(*lengths: int) -> list[list[int]]:
    return [[5] * length for length in lengths]


def test_the_soft_overlong_punishment_is_that_of_the_paper() -> None:
    """Equation 13 with L_max 20 and L_cache 4, by hand."""
    lengths = ids(0, 16, 17, 18, 20, 21, 99)
    values = soft_overlong([""] * 7, lengths, max_tokens=20, cache_tokens=4)
    assert values == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]


def test_tokens_beyond_a_limit_and_a_missing_end_cost() -> None:
    assert tokens_beyond([""] * 3, ids(3, 10, 12), limit_tokens=10) == [0.0, 0.0, -2.0]
    assert missing_eos(["", ""], ["stop", "length"]) == [0.0, -1.0]


def test_limits_that_mean_nothing_are_refused() -> None:
    for cache in (0, 21, -1):
        with pytest.raises(ValueError, match="cache_tokens is positive"):
            soft_overlong([""], ids(3), max_tokens=20, cache_tokens=cache)
    with pytest.raises(ValueError, match="a limit is 0 or more"):
        tokens_beyond([""], ids(3), limit_tokens=-1)


@pytest.mark.thorough
def test_penalties_are_terms_of_the_sum_through_the_configuration(make_candidate) -> None:
    module = "raydpo.labeling.penalties"
    rewards = [
        RewardConfig(function=f"{module}:missing_eos", weight=0.5),
        RewardConfig(function=f"{module}:tokens_beyond", weight=0.1, options={"limit_tokens": 1}),
    ]
    candidates = [make_candidate("p", 0), make_candidate("p", 1, finish_reason="length")]
    scores = score_part({r.scorer: make_judge(r) for r in rewards}, candidates)
    weights = {r.scorer: r.weight for r in rewards}
    assert combined_rewards(scores.rows, weights) == {("p", 0): -0.1, ("p", 1): -0.6}
