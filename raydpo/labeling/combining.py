"""Put the values of several scorers together into one reward for each candidate.

Values are normalized, clipped, weighted and then summed, as `labeling.combine` says. A scorer that
does not apply to a candidate (None) has no part in any of that. The module imports nothing heavy.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raydpo.config.labeling import CombineConfig

#: A prompt and the number of a candidate.
Key = tuple[str, int]
#: The values of a candidate by scorer; None where a scorer does not apply.
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Combined:
    """What the rewards of candidates are made of.

    Attributes:
        terms: of each candidate that all scorers scored, the weighted values in the order of the
            weights; None where a scorer does not apply.
        counts: what happened on the way; empty for a plain sum.
    """

    terms: dict[Key, tuple[float | None, ...]]
    counts: dict[str, int]


def combine_values(
    values: Mapping[Key, Values], weights: Mapping[str, float], combine: CombineConfig
) -> Combined:
    """Normalize, clip and weigh the values of candidates.

    Args:
        values: of each candidate; one that lacks a scorer is left out.
        weights: by scorer.
        combine: how.
    """
    kept = {key: given for key, given in values.items() if given.keys() >= weights.keys()}
    counts: dict[str, int] = {}
    if combine.normalize == "z_score":
        kept, counts["z_scores_of_equal_values"] = _z_scores(kept, weights)
    if combine.clip is not None:
        kept, counts["clipped_values"] = _clipped(kept, weights, *combine.clip)
    terms = {
        key: tuple(_times(weight, given[scorer]) for scorer, weight in weights.items())
        for key, given in kept.items()
    }
    if combine.method == "mean_minus_spread":
        alone = sum(len(own) - own.count(None) == 1 for own in terms.values())
        counts["ensembles_of_one"] = alone
    return Combined(terms, counts)


def combined_reward(terms: Sequence[float | None], combine: CombineConfig) -> float:
    """Return the reward of one candidate.

    Args:
        terms: its weighted values; None has no part in sum, mean and spread.
        combine: `sum`, or `mean_minus_spread`: mean - coefficient * spread, with the spread of all
            members (divided by their number). With the variance it is the uncertainty-weighted
            reward of Coste et al. 2023 (arXiv:2310.02743). Of one value the spread is 0.
    """
    there = [term for term in terms if term is not None]
    if combine.method == "sum" or not there:
        return sum(there, 0.0)
    mean = statistics.fmean(there)
    variance = statistics.fmean((term - mean) ** 2 for term in there)
    spread = variance if combine.spread == "variance" else variance**0.5
    return mean - combine.spread_coefficient * spread


def _times(weight: float, value: float | None) -> float | None:
    return None if value is None else weight * value


def _z_scores(
    values: Mapping[Key, Values], weights: Mapping[str, float]
) -> tuple[dict[Key, Values], int]:
    """Return z-scores by prompt and scorer, and of how many of these all values are equal.

    The standard deviation divides by the number of values. Equal values have the z-score 0.
    """
    groups: dict[str, list[Key]] = {}
    for key in values:
        groups.setdefault(key[0], []).append(key)
    scores: dict[Key, dict[str, float | None]] = {key: {} for key in values}
    equal = 0
    for keys in groups.values():
        for scorer in weights:
            there = [value for key in keys if (value := values[key][scorer]) is not None]
            same = bool(there) and min(there) == max(there)
            equal += same
            mean = statistics.fmean(there) if there else 0.0
            deviation = 1.0 if same or not there else statistics.pstdev(there)
            for key in keys:
                value = values[key][scorer]
                scores[key][scorer] = (
                    None if value is None else 0.0 if same else (value - mean) / deviation
                )
    return dict(scores), equal


def _clipped(
    values: Mapping[Key, Values], weights: Mapping[str, float], low: float, high: float
) -> tuple[dict[Key, Values], int]:
    """Return the values within the bounds, and how many were beyond."""
    beyond = sum(
        value is not None and not low <= value <= high
        for given in values.values()
        for value in (given[scorer] for scorer in weights)
    )
    clipped: dict[Key, Values] = {
        key: {s: None if v is None else min(max(v, low), high) for s, v in given.items()}
        for key, given in values.items()
    }
    return clipped, beyond
