"""Scores of completions from comparisons, by the Bradley-Terry model with a prior.

In the model, i beats j with probability sigmoid(theta_i - theta_j). A tie is half a win for each.
Without a prior, a completion that won all its comparisons has an infinite score. So each also has
`prior` wins and `prior` losses against a completion of score 0; this is the log-density of `prior`
times that of the logistic distribution, and makes the maximum finite and unique.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]

#: Half the width of a 95 % interval of a normal distribution, in standard deviations.
_NORMAL_95: Final = 1.959963984540054
_MOST_ITERATIONS: Final = 100_000
_TOLERANCE: Final = 1e-13
#: Equal records give equal scores, whatever the order of additions: what is beyond is rounding.
_DECIMALS: Final = 9


@dataclass(frozen=True)
class Strength:
    """The score of a completion, in log-odds, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def bradley_terry(wins: Any, prior: float, anchor: int | None = None) -> list[Strength]:
    """Return the scores that maximize the posterior, with intervals.

    The maximum is found by the MM algorithm of D. R. Hunter, "MM algorithms for generalized
    Bradley-Terry models", Annals of Statistics 32 (2004), equation 3, with the prior's wins and
    losses among the comparisons. The intervals are those of the normal approximation at the
    maximum: the inverse of the negative Hessian.

    Args:
        wins: (n, n); `wins[i, j]` is how often i beat j, a tie as half a win for each.
        prior: wins, and as many losses, of each completion against one of score 0; positive.
        anchor: a completion whose score is 0, without an interval; None for no such completion.
    """
    won = np.asarray(wins, dtype=np.float64)
    count = len(won)
    free = [index for index in range(count) if index != anchor]
    strengths = _strengths(won, prior, free)
    # Zero is added because a rounded score may be a negative zero.
    theta: _Floats = np.asarray(np.round(np.log(strengths), _DECIMALS) + 0.0, dtype=np.float64)
    deviations = np.zeros(count)
    if free:
        information = _information(won + won.T, prior, theta)[np.ix_(free, free)]
        deviations[free] = np.sqrt(np.diag(np.linalg.inv(information)))
    margins = _NORMAL_95 * deviations
    return [
        Strength(float(value), float(value - margin), float(value + margin))
        for value, margin in zip(theta, margins, strict=True)
    ]


def _strengths(won: _Floats, prior: float, free: list[int]) -> _Floats:
    """Iterate exp(theta) until none changes; shape (n,)."""
    met, total = won + won.T, won.sum(axis=1) + prior
    strengths = np.ones(len(won))
    for _ in range(_MOST_ITERATIONS):
        against = met / (strengths[:, None] + strengths[None, :])
        new = total / (against.sum(axis=1) + 2 * prior / (strengths + 1))
        change = 0.0
        for index in free:
            change = max(change, abs(float(np.log(new[index] / strengths[index]))))
            strengths[index] = new[index]
        if change < _TOLERANCE:
            break
    return strengths


def _information(met: _Floats, prior: float, theta: _Floats) -> _Floats:
    """Return the negative Hessian of the log-posterior; shape (n, n)."""
    beats = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
    curvature = met * beats * (1 - beats)
    alone = 1 / (1 + np.exp(-theta))
    return np.diag(curvature.sum(axis=1) + 2 * prior * alone * (1 - alone)) - curvature
