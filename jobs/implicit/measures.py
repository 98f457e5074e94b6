"""How well margins order held-out pairs, and whether sigmoid(margin) is a probability.

Scores of several seeds give accuracies, paired differences, and the expected calibration error
(ECE) before and after a temperature. Half of the held-out prompts fit the temperature, and the
other half measures the calibration.

Shapes: P pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from implicit.scores import Scores
from raydpo.evaluation.metrics import Estimate, as_share
from seeds.estimates import two_way_mean

Floats = NDArray[np.float64]
BINS: Final = 10
_RESAMPLES: Final = 1000
#: A fitted temperature makes the mean size of the margins no larger than this.
_LARGEST: Final = 20.0


@dataclass(frozen=True)
class Calibration:
    """Whether a judge's probabilities are right, on one half of the held-out prompts.

    Attributes:
        ece: expected calibration error, 0 to 1, over bins of equal numbers of pairs.
        ci95: percentile interval of the bootstrap over prompts.
        chance: the mean ECE of as many labels drawn from the probabilities themselves: what
            remains where the calibration is perfect.
        log_loss: -log of the probability of the chosen completion, nats; log 2 knows nothing.
        bins: for each bin the mean probability of the preferred completion, the share of pairs
            where it is the chosen one, and the number of pairs.
    """

    ece: float
    ci95: tuple[float, float]
    chance: float
    log_loss: float
    bins: list[tuple[float, float, int]]


def accuracy(scores: Sequence[Scores], judge: str) -> Estimate:
    """Share of held-out pairs in the right order; a tie counts one half."""
    return as_share(_over(scores, [_right(one.margins[judge]) for one in scores]))


def difference(scores: Sequence[Scores], judge: str, other: str) -> Estimate:
    """Accuracy of a judge less that of another one on the same pairs."""
    pairs = [(_right(one.margins[judge]), _right(one.margins[other])) for one in scores]
    return _over(scores, [[a - b for a, b in zip(*own, strict=True)] for own in pairs])


def temperature(margins: Sequence[float]) -> float:
    """The T that minimises the mean of -log sigmoid(margin / T); infinity if no T helps.

    The loss is convex in a = 1 / T, so the sign of its slope is enough:

        slope = -mean(margin * sigmoid(-a * margin))

    Where all margins are positive no T is the best one; then T makes the mean margin 20.
    """
    values = np.array(margins)
    scale = float(np.abs(values).mean())
    if values.mean() <= 0 or scale == 0:
        return math.inf
    low, high = 0.0, _LARGEST / scale
    for _ in range(100):
        middle = (low + high) / 2
        if float((values * _sigmoid(-middle * values)).mean()) > 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high)


def fitted_temperature(scores: Scores, judge: str) -> float:
    """The temperature of a judge on the half of the held-out prompts that fits it."""
    rows = zip(scores.margins[judge], scores.prompts, strict=True)
    return temperature([margin for margin, prompt in rows if fits_temperature(prompt)])


def calibration(scores: Sequence[Scores], judge: str, fitted: bool) -> Calibration:
    """Measure sigmoid(margin / T) on the half of the held-out prompts that fits no temperature.

    Args:
        scores: one of each seed.
        judge: whose margins.
        fitted: whether T is fitted, for each seed, on the other half; otherwise it is 1.
    """
    scaled: list[float] = []
    prompts: list[str] = []
    for one in scores:
        rows = zip(one.margins[judge], one.prompts, strict=True)
        measured = [(m, p) for m, p in rows if not fits_temperature(p)]
        divisor = fitted_temperature(one, judge) if fitted else 1.0
        scaled += [margin / divisor for margin, _ in measured]
        prompts += [prompt for _, prompt in measured]
    values = np.array(scaled)
    sure, right = _sigmoid(np.abs(values)), np.array(_right(scaled))
    log_loss = float(np.logaddexp(0, -values).mean())
    generator = np.random.default_rng(0)
    resampled = [
        _ece(sure[rows], right[rows]) for rows in _resamples(prompts, generator, _RESAMPLES)
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    drawn = [
        _ece(sure, (generator.random(len(sure)) < sure).astype(np.float64)) for _ in range(200)
    ]
    return Calibration(
        _ece(sure, right),
        (float(low), float(high)),
        float(np.mean(drawn)),
        log_loss,
        [(float(s.mean()), float(r.mean()), len(s)) for s, r in _bins(sure, right)],
    )


def fits_temperature(prompt: str) -> bool:
    """Return whether a held-out prompt is in the half that fits temperatures."""
    return hashlib.sha256(f"temperature/{prompt}".encode()).digest()[0] % 2 == 0


def _over(scores: Sequence[Scores], values: Sequence[list[float]]) -> Estimate:
    flat = [value for own in values for value in own]
    prompts = [prompt for one in scores for prompt in one.prompts]
    return two_way_mean(flat, prompts, [str(one.seed) for one in scores for _ in one.prompts])


def _right(margins: Sequence[float]) -> list[float]:
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]


def _ece(sure: Floats, right: Floats) -> float:
    gaps = [len(s) * abs(float(s.mean() - r.mean())) for s, r in _bins(sure, right)]
    return sum(gaps) / len(sure)


def _bins(sure: Floats, right: Floats) -> list[tuple[Floats, Floats]]:
    """Pairs in order of their probability, in bins of equal numbers."""
    order = np.argsort(sure, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    return [(sure[part], right[part]) for part in parts]


def _resamples(
    prompts: Sequence[str], generator: np.random.Generator, count: int
) -> list[NDArray[np.int64]]:
    """Rows of prompts that are drawn with replacement."""
    names, places = np.unique(np.array(prompts), return_inverse=True)
    rows = [np.flatnonzero(places == n) for n in range(len(names))]
    drawn = generator.integers(len(names), size=(count, len(names)))
    return [np.concatenate([rows[n] for n in own]) for own in drawn]


def _sigmoid(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -values))
