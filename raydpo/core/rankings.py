"""Turn rewards or ratings of one prompt's completions into rankings, probabilities and weights.

From a number for each completion, pure functions compute the order of the completions best first,
the probability that one beats another, and the weights of pairs. Labels that raydpo makes and
ratings in the user's data both use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, assert_never

Ties = Literal["drop", "by_candidate"]
Weighting = Literal["pair", "group"]


def ranking_of(
    values: Sequence[float], completions: Sequence[Sequence[int]], ties: Ties
) -> tuple[list[int] | None, bool]:
    """Numbers of the completions, the highest value first, and whether values were equal.

    A completion that is there twice, token for token, stands in the ranking once, with its
    higher value.

    Args:
        values: the completions' rewards or ratings.
        completions: their token ids.
        ties: what equal values do: `drop`: there is no ranking; `by_candidate`: the one
            with the lower number comes first.

    Returns:
        The ranking, or None where it was dropped or has fewer than two completions.
    """
    order = sorted(range(len(values)), key=lambda i: -values[i])
    first: dict[tuple[int, ...], int] = {}
    for index in order:
        first.setdefault(tuple(completions[index]), index)
    ranking = list(first.values())
    tied = len({values[index] for index in ranking}) < len(ranking)
    match ties:
        case "drop":
            dropped = tied
        case "by_candidate":
            dropped = False
        case _:
            assert_never(ties)
    return (None if dropped or len(ranking) < 2 else ranking), tied


def preference_probability(first: float, second: float, temperature: float = 1.0) -> float:
    """P(first is preferred) = sigmoid((first - second) / temperature), Bradley and Terry 1952."""
    z = (first - second) / temperature
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def pair_weight(pairs: int, weighting: Weighting) -> float:
    """Weight of each of a group's pairs: 1, or the share that lets each group count alike."""
    match weighting:
        case "pair":
            return 1.0
        case "group":
            return 1.0 / pairs
        case _:
            assert_never(weighting)
