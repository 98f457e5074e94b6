"""Estimate the win rate that a policy would have if its completions were as long as the other's.

Judges often prefer longer texts, so a policy can win by length alone. As in AlpacaEval 2 (Dubois et
al. 2024, arXiv:2404.04475), a logistic regression explains who wins by the length difference, and
is read where that difference is 0. With y the outcome of a comparison (1, 0, or 1/2 for a tie), D
its difference in tokens and s the standard deviation of D over all comparisons:

    P(win) = sigmoid( theta + phi * tanh(D / s) ),    length-controlled win rate = sigmoid(theta)

Their model also has a term for the difficulty of each prompt, which the comparisons of many models
identify; two models do not. Theta and phi maximize the likelihood of all comparisons, each completion
of one model against each of the other for the same prompt. A normal prior of standard deviation
`PRIOR` around 0 on both keeps them finite where one side always wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from raydpo.evaluation.metrics import Floats
from raydpo.evaluation.paired import draws, percentile_interval

#: Standard deviation of the prior on theta and phi: sigmoid(10) is 0.99995.
PRIOR: Final = 10.0
#: The covariate tanh(D / s) is rounded to such steps; so each prompt needs a fixed number of counts.
_STEP: Final = 0.005
_MOST_ITERATIONS: Final = 100
_LARGEST_MOVE: Final = 2.0

Outcome = tuple[Sequence[float], Sequence[int], Sequence[str]]


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of two models, counted by prompt and by step of the covariate.

    Args:
        wins: float64 [prompts, steps], those that the first model wins; a tie counts one half.
        meetings: float64 [prompts, steps], all of them.
        covariate: float64 [steps], tanh(D / s).
        scale_tokens: s; 0 if all completions are equally long.
    """

    wins: Floats
    meetings: Floats
    covariate: Floats
    scale_tokens: float


def length_comparisons(first: Outcome, second: Outcome, order: Sequence[str]) -> Comparisons:
    """Compare all completions of a prompt with all of the other model's.

    Args:
        first: scores, lengths in tokens and prompts of one model's completions; lists of n.
        second: the same of the other model.
        order: the prompts that count; each has completions of both models.
    """
    ours, theirs = _by_prompt(first, order), _by_prompt(second, order)
    pairs = [
        (
            np.subtract.outer(ours[prompt][:, 1], theirs[prompt][:, 1]).ravel(),
            (np.sign(np.subtract.outer(ours[prompt][:, 0], theirs[prompt][:, 0])).ravel() + 1) / 2,
        )
        for prompt in order
    ]
    scale = float(np.std(np.concatenate([differences for differences, _ in pairs])))
    steps = round(1 / _STEP)
    shape = len(order), 2 * steps + 1
    wins, meetings = np.zeros(shape), np.zeros(shape)
    for row, (differences, outcomes) in enumerate(pairs):
        scaled = np.tanh(differences / scale) if scale else np.zeros(len(differences))
        places = np.rint(scaled / _STEP).astype(int) + steps
        np.add.at(wins[row], places, outcomes)
        np.add.at(meetings[row], places, 1.0)
    used = meetings.any(axis=0)
    covariate: Floats = _STEP * np.arange(-steps, steps + 1, dtype=np.float64)
    return Comparisons(wins[:, used], meetings[:, used], covariate[used], scale)


def fit(found: Comparisons, weights: Floats) -> Floats:
    """Fit theta and phi by Newton's method.

    Args:
        found: the comparisons.
        weights: [fits, prompts], how often each prompt counts in each fit.

    Returns:
        float64 [fits, 2]: theta and phi, in log-odds.
    """
    wins, meetings, x = weights @ found.wins, weights @ found.meetings, found.covariate
    coefficients = np.zeros((len(weights), 2))
    for _ in range(_MOST_ITERATIONS):
        logits = coefficients[:, :1] + coefficients[:, 1:] * x
        probabilities = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        missed = wins - meetings * probabilities
        slope = np.stack([missed.sum(1), missed @ x], axis=1) - coefficients / PRIOR**2
        spread = meetings * probabilities * (1 - probabilities)
        diagonal = spread.sum(1) + PRIOR**-2, spread @ (x * x) + PRIOR**-2
        beside = spread @ x
        determinant = diagonal[0] * diagonal[1] - beside * beside
        moves = np.stack(
            [
                (diagonal[1] * slope[:, 0] - beside * slope[:, 1]) / determinant,
                (diagonal[0] * slope[:, 1] - beside * slope[:, 0]) / determinant,
            ],
            axis=1,
        )
        largest = np.abs(moves).max(axis=1, keepdims=True)
        coefficients += moves * np.minimum(1.0, _LARGEST_MOVE / np.maximum(largest, 1e-300))
        if largest.max() < 1e-8:
            break
    return coefficients


def length_controlled_win_rate(found: Comparisons, resamples: int, seed: int) -> dict[str, Any]:
    """Return the win rate at equal length, with a bootstrap over prompts.

    Each resample draws whole prompts and fits again, with the same s.

    Args:
        found: the comparisons of the two models.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Returns:
        A JSON value: `mean`, `standard_error`, `ci95` (2.5th to 97.5th percentile), `prompts`,
        `observations`, `length_log_odds` (phi) and `length_scale_tokens` (s). Standard error and
        interval are None with fewer than two prompts.
    """
    prompts = len(found.meetings)
    [[theta, phi]] = fit(found, np.ones((1, prompts)))
    error, interval = None, None
    if prompts > 1:
        drawn = np.concatenate([fit(found, some)[:, 0] for some in draws(prompts, resamples, seed)])
        rates = 1 / (1 + np.exp(-drawn))
        error, interval = float(rates.std(ddof=1)), list(percentile_interval(rates))
    return {
        "mean": 1 / (1 + math.exp(-theta)),
        "standard_error": error,
        "ci95": interval,
        "prompts": prompts,
        "observations": int(found.meetings.sum()),
        "length_log_odds": float(phi),
        "length_scale_tokens": found.scale_tokens,
    }


def _by_prompt(outcome: Outcome, order: Sequence[str]) -> dict[str, Floats]:
    """Return scores and lengths of each prompt: [n, 2]."""
    rows: dict[str, list[tuple[float, float]]] = {prompt: [] for prompt in order}
    for score, length, prompt in zip(*outcome, strict=True):
        if prompt in rows:
            rows[prompt].append((score, float(length)))
    return {prompt: np.array(values) for prompt, values in rows.items()}
