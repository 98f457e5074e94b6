"""The win rate at equal length: planted data in which length decides, and in which it does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raydpo.evaluation.length_control import (
    PRIOR,
    Comparisons,
    Outcome,
    fit,
    length_comparisons,
    length_controlled_win_rate,
)
from raydpo.evaluation.metrics import win_rate

PROMPTS = [f"p{number}" for number in range(80)]


def model(
    seed: int, tokens: float, quality: float = 0.0, per_token: float = 0.0, noise: float = 1.0
) -> Outcome:
    """Four completions a prompt, of about `tokens` tokens; a token is worth `per_token` of score."""
    rng = np.random.default_rng(seed)
    lengths = rng.normal(tokens, 10, 4 * len(PROMPTS)).round().astype(int)
    scores = quality + per_token * lengths + rng.normal(0, noise, len(lengths))
    return scores.tolist(), lengths.tolist(), [p for p in PROMPTS for _ in range(4)]


def plain(first: Outcome, second: Outcome) -> float:
    return win_rate(first[0], first[2], second[0], second[2]).mean


def controlled(first: Outcome, second: Outcome, resamples: int = 300) -> dict[str, float]:
    found = length_comparisons(first, second, PROMPTS)
    return length_controlled_win_rate(found, resamples, seed=0)


def test_a_gain_by_length_alone_goes_to_half() -> None:
    longer, reference = model(1, 52, per_token=0.2), model(2, 40, per_token=0.2)
    assert plain(longer, reference) > 0.7
    found = controlled(longer, reference)
    assert found["mean"] == pytest.approx(0.5, abs=0.03)
    low, high = found["ci95"]
    assert low < 0.5 < high
    assert found["length_log_odds"] > 1


def test_a_score_that_is_the_length_itself_goes_to_half() -> None:
    longer = model(1, 52, per_token=1.0, noise=0.0)
    reference = model(2, 40, per_token=1.0, noise=0.0)
    assert plain(longer, reference) > 0.75
    assert controlled(longer, reference)["mean"] == pytest.approx(0.5, abs=0.05)


def test_a_gain_that_has_nothing_to_do_with_length_stays() -> None:
    better, reference = model(1, 52, quality=1.0), model(2, 40)
    found = controlled(better, reference)
    assert found["mean"] == pytest.approx(plain(better, reference), abs=0.03)
    low, high = found["ci95"]
    assert 0.5 < low < found["mean"] < high
    assert abs(found["length_log_odds"]) < 0.6


def test_a_shorter_policy_that_is_better_wins_more_at_equal_length() -> None:
    better = model(1, 34, quality=1.0, per_token=0.1)
    reference = model(2, 40, per_token=0.1)
    # At equal length the scores differ by 1, with a standard deviation of sqrt(2).
    expected = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))
    assert controlled(better, reference)["mean"] == pytest.approx(expected, abs=0.07)
    assert plain(better, reference) < expected - 0.1


def test_exchanging_the_models_exchanges_the_rates() -> None:
    one, other = model(1, 52, quality=0.5, per_token=0.1), model(2, 40, per_token=0.1)
    rates = [controlled(one, other)["mean"], controlled(other, one)["mean"]]
    assert sum(rates) == pytest.approx(1.0)


def test_without_any_difference_of_length_it_is_the_win_rate() -> None:
    scores = [1.0, 0.0, 1.0, 1.0], [0.0, 0.5, 1.0, 0.0]
    prompts = ["a", "a", "b", "b"]
    found = length_comparisons(
        (scores[0], [5] * 4, prompts), (scores[1], [5] * 4, prompts), ["a", "b"]
    )
    rate = length_controlled_win_rate(found, 50, seed=0)
    expected = win_rate(scores[0], prompts, scores[1], prompts).mean
    # The prior pulls eight comparisons a little towards one half.
    assert rate["mean"] == pytest.approx(expected, abs=0.005)
    assert (rate["length_log_odds"], rate["length_scale_tokens"]) == (0.0, 0.0)


def test_the_fit_is_where_the_likelihood_is_largest() -> None:
    found = length_comparisons(model(1, 45, 0.4, 0.1), model(2, 40, 0.0, 0.1), PROMPTS)

    def loss(theta: float, phi: float) -> float:
        logits = theta + phi * found.covariate
        of_one = found.wins * np.logaddexp(0, -logits)
        of_other = (found.meetings - found.wins) * np.logaddexp(0, logits)
        return float((of_one + of_other).sum()) + (theta**2 + phi**2) / (2 * PRIOR**2)

    [[theta, phi]] = fit(found, np.ones((1, len(PROMPTS))))
    best = loss(theta, phi)
    for step in (-0.01, 0.01):
        assert loss(theta + step, phi) > best
        assert loss(theta, phi + step) > best


def test_a_policy_that_always_wins_has_a_finite_fit() -> None:
    always = Comparisons(np.full((5, 1), 4.0), np.full((5, 1), 4.0), np.zeros(1), 0.0)
    found = length_controlled_win_rate(always, 50, seed=0)
    assert 0.95 < found["mean"] < 1
    assert found["ci95"][1] < 1


def test_resamples_draw_whole_prompts() -> None:
    """With one prompt twice, the standard error is that of two prompts, not of 32 comparisons."""
    prompts = ["a"] * 4 + ["b"] * 4
    ones, zeros = [1.0] * 4, [0.0] * 4
    first, second = (ones + zeros, [5] * 8, prompts), (zeros + ones, [5] * 8, prompts)
    found = length_controlled_win_rate(length_comparisons(first, second, ["a", "b"]), 2000, 0)
    assert found["standard_error"] > 0.3
    alone = length_controlled_win_rate(length_comparisons(first, second, ["a"]), 50, 0)
    assert (alone["standard_error"], alone["ci95"]) == (None, None)
