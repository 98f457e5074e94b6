"""Bradley-Terry scores: the maximum of the posterior, finite, with intervals that cover."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from raydpo.core.position_bias import PositionBias, kind_of, position_bias, position_lines
from raydpo.labeling.judges.bradley_terry import bradley_terry
from raydpo.labeling.judges.schedules import Schedule, played


def log_posterior(theta: np.ndarray, wins: np.ndarray, prior: float) -> float:
    """Written down from the model alone."""
    likelihood = sum(
        wins[i, j] * -np.log1p(np.exp(theta[j] - theta[i]))
        for i, j in itertools.permutations(range(len(theta)), 2)
    )
    return likelihood + prior * sum(-np.log1p(np.exp(-t)) - np.log1p(np.exp(t)) for t in theta)


def test_the_scores_are_the_maximum_of_the_posterior_and_the_interval_its_curvature() -> None:
    wins = np.array([[0, 3, 2.5, 1], [1, 0, 2, 1], [0.5, 1, 0, 4], [0, 1, 0, 0]])
    found = bradley_terry(wins, 0.7)
    theta = np.array([strength.value for strength in found])
    step = 1e-4
    identity = np.eye(4) * step

    def at(*moves: np.ndarray) -> float:
        return log_posterior(theta + sum(moves), wins, 0.7)

    for move in identity:
        assert at(move) - at(-move) == pytest.approx(0, abs=1e-7)
    hessian = [
        [(at(a, b) - at(a, -b) - at(-a, b) + at(-a, -b)) / (4 * step**2) for b in identity]
        for a in identity
    ]
    deviations = np.sqrt(np.diag(np.linalg.inv(-np.array(hessian))))
    widths = [(strength.high - strength.low) / 2 for strength in found]
    assert widths == pytest.approx(1.959964 * deviations, rel=1e-4)


def test_two_with_one_win_have_the_closed_form() -> None:
    # At prior 1 and theta = (t, -t): sigmoid(-2t) = tanh(t / 2).
    better, worse = bradley_terry([[0, 1], [0, 0]], 1.0)
    t = better.value
    assert worse.value == -t
    assert 1 / (1 + np.exp(2 * t)) == pytest.approx(np.tanh(t / 2), abs=1e-8)


def test_an_unbeaten_one_is_finite_and_equal_records_are_exactly_equal() -> None:
    wins = np.array([[0, 1, 1, 1], [0, 0, 0.5, 1], [0, 0.5, 0, 1], [0, 0, 0, 0]])
    values = [strength.value for strength in bradley_terry(wins, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[1] == values[2]
    assert values[0] == -values[3]
    assert bradley_terry(wins, 4.0)[0].value < values[0], "a stronger prior shrinks"


def test_an_anchor_has_score_0_and_the_others_depend_on_their_own_comparisons_alone() -> None:
    alone = bradley_terry([[0, 0], [1, 0]], 1.0, anchor=0)
    with_others = bradley_terry([[0, 0, 3], [1, 0, 0], [0, 0, 0]], 1.0, anchor=0)
    assert (alone[0].value, alone[0].low, alone[0].high) == (0, 0, 0)
    assert alone[1] == with_others[1]
    assert with_others[2].value < 0


def test_intervals_cover_the_planted_scores() -> None:
    random = np.random.default_rng(5)
    planted = np.array([0.9, 0.3, -0.3, -0.9])
    covered = []
    for _ in range(100):
        wins = np.zeros((4, 4))
        for i, j in itertools.combinations(range(4), 2):
            won = random.binomial(40, 1 / (1 + np.exp(planted[j] - planted[i])))
            wins[i, j], wins[j, i] = won, 40 - won
        covered += [
            s.low <= t <= s.high for s, t in zip(bradley_terry(wins, 1.0), planted, strict=True)
        ]
    # The prior is wider than these scores, so the intervals are slightly conservative.
    assert 0.92 <= np.mean(covered) <= 1


@dataclass(frozen=True)
class _Game:
    a: int
    b: int
    share: float | None


def games(schedule: Schedule, values: list[float], failing: tuple[int, ...] = ()) -> list[_Game]:
    async def play(a: int, b: int) -> _Game:
        if a in failing or b in failing:
            return _Game(a, b, None)
        return _Game(a, b, float(values[a] > values[b]) + 0.5 * (values[a] == values[b]))

    return asyncio.run(played(schedule, len(values), play))


def test_schedules_compare_each_pair_once() -> None:
    assert len(games("round_robin", [1, 2, 3, 4])) == 6
    assert [(g.a, g.b) for g in games("against_baseline", [1, 2, 3])] == [(0, 1), (0, 2)]
    rounds = [(g.a, g.b) for g in games("knockout", [1, 2, 5, 4, 3])]
    assert rounds == [(0, 1), (2, 3), (1, 2), (2, 4)]
    assert games("round_robin", [1]) == games("knockout", [1]) == []


def test_in_a_knockout_a_tie_lets_the_lower_number_go_on_and_a_failure_neither() -> None:
    assert [(g.a, g.b) for g in games("knockout", [1, 1, 1])] == [(0, 1), (0, 2)]
    assert [(g.a, g.b) for g in games("knockout", [1, 2, 3, 4, 5], failing=(0,))] == [
        (0, 1),
        (2, 3),
        (3, 4),
    ]


def test_the_position_bias_is_that_of_its_counts() -> None:
    kinds = (
        [("first", "second")] * 6 + [("first", "first")] * 2 + [("tie", "first"), ("tie", "tie")]
    )
    counts: dict[str, int] = {}
    for kind in kinds:
        name = f"{kind_of(*kind)}j"
        counts[name] = counts.get(name, 0) + 1
    bias = position_bias(counts, "j")
    assert bias is not None
    leanings = [0] * 6 + [1.0] * 2 + [0.5, 0]
    error = 1.959964 * np.std(leanings, ddof=1) / 10**0.5
    assert bias == PositionBias(
        pytest.approx(0.25), pytest.approx(0.25 - error), pytest.approx(0.25 + error), 10, 3
    )
    [line] = position_lines({**counts, "output": 4})
    assert line.startswith("j: position bias +0.250 (95 % interval ")
    assert "30.0% of 10 comparisons inconsistent" in line
