"""Pure functions that turn the rewards of a prompt's candidates into pairs and rankings.

From K rewards, the candidates' numbers and the settings, they return chosen and rejected
candidates, their order, the pairs' weights, and counts of dropped pairs. `builders.py` chooses the
candidates that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never, cast

from raydpo.config.pairs import Builder, PairsConfig
from raydpo.core.rankings import preference_probability, ranking_of
from raydpo.labeling.builders import Draws, Match, Scored, matched, merged


@dataclass(frozen=True)
class Pairs:
    """One prompt's pairs as (chosen, rejected) candidate numbers, and counts of dropped pairs.

    Args:
        pairs: one tuple per pair.
        probabilities: for each pair, that chosen wins by the Bradley-Terry model. A person might
            have given a reversed label, so its probability is that of the reversed label. None if
            the data says which one is chosen.
        ranking: candidate numbers, best first; None if ties prevent a ranking.
        weights: for each pair, its weight in the loss.
        counts: `ties`: pairs with equal rewards; `below_margin`: pairs that differ too little;
            `identical`: pairs with the same completion twice; `flipped`: reversed labels;
            `rankings`: 1 if there is one; `rankings_with_ties`: 1 if rewards were equal. Where the
            settings say so, also `merged`: candidates near another one; `above_max_per_prompt`:
            pairs beyond that number.
    """

    pairs: list[tuple[int, int]]
    probabilities: list[float | None]
    ranking: list[int] | None
    weights: list[float]
    counts: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class _Pair:
    """A pair, chosen first, the probability of its label, and its two candidates."""

    chosen: int
    rejected: int
    probability: float
    match: Match


#: A function from a prompt's candidates and draws to matches, with the lower number first.
Matches = Callable[[Sequence[Scored], Draws], list[Match]]


def build_pairs(
    scored: Sequence[Scored], config: PairsConfig, draws: Draws, own: Matches | None = None
) -> Pairs:
    """Build the pairs of one prompt with the configured builder and labels.

    Args:
        scored: the prompt's candidates, in any order.
        config: builder, margin, labels, weights and noise.
        draws: the prompt's random numbers.
        own: the builder, if it is the user's own.
    """
    ordered = sorted(scored, key=lambda s: s.candidate)
    counts = {"ties": 0, "below_margin": 0, "identical": 0, "flipped": 0}
    if config.merge_similarity is not None:
        kept = merged(ordered, config.merge_similarity)
        counts["merged"] = len(ordered) - len(kept)
        ordered = kept
    if own is not None:
        matches = own(ordered, draws)
    else:
        matches = matched(cast("Builder", config.builder), ordered, config, draws)
    pairs = _pairs(matches, config, draws, counts)
    if (most := config.max_per_prompt) is not None:
        counts["above_max_per_prompt"] = max(0, len(pairs) - most)
        pairs = _drawn(pairs, most, draws)
    of_data = config.builder == "data_chosen"
    ranking, tied = (None, False) if of_data else _ranking(ordered, config, draws)
    counts |= {"rankings": int(ranking is not None), "rankings_with_ties": int(tied)}
    return Pairs(
        [(pair.chosen, pair.rejected) for pair in pairs],
        [None if of_data else pair.probability for pair in pairs],
        ranking,
        pair_weights([pair.match for pair in pairs], config),
        counts,
    )


def _pairs(
    matches: list[Match], config: PairsConfig, draws: Draws, counts: dict[str, int]
) -> list[_Pair]:
    """Label the matches; those that are dropped, and reversed labels, are added to the counts."""
    pairs: list[_Pair] = []
    for one, other in matches:
        dropped = _why_dropped(one, other, config.min_margin)
        if dropped is not None:
            counts[dropped] += 1
            continue
        winner, loser = _labelled(one, other, config, draws)
        probability = preference_probability(winner.reward, loser.reward, config.temperature)
        if draws.uniform("flip", one.candidate, other.candidate) < config.flip_rate:
            winner, loser = loser, winner
            counts["flipped"] += 1
        pairs.append(_Pair(winner.candidate, loser.candidate, probability, (one, other)))
    return pairs


def _drawn(pairs: list[_Pair], most: int, draws: Draws) -> list[_Pair]:
    """Return at most so many pairs, drawn at random, in their order."""

    def draw(pair: _Pair) -> float:
        one, other = pair.match
        return draws.uniform("max_per_prompt", one.candidate, other.candidate)

    kept = {id(pair) for pair in sorted(pairs, key=draw)[:most]}
    return [pair for pair in pairs if id(pair) in kept]


def pair_weights(matches: Sequence[Match], config: PairsConfig) -> list[float]:
    """Return the weights of a prompt's pairs in the loss, all above 0.

    A training divides by the sum of the weights, so only their ratios matter. Labels that noise
    reversed keep the weight of the label that was meant.

    Args:
        matches: the two candidates of each pair, with different rewards.
        config: `weight_by` says what a weight is; `weighting: group` scales a prompt's to the sum 1.
    """
    weights = [_weight(one, other, config) for one, other in matches]
    match config.weighting:
        case "pair":
            return weights
        case "group":
            total = math.fsum(weights)
            return [weight / total for weight in weights]
        case _:
            assert_never(config.weighting)


def _weight(one: Scored, other: Scored, config: PairsConfig) -> float:
    margin = abs(one.reward - other.reward)
    match config.weight_by:
        case "none":
            return 1.0
        case "margin":
            return margin
        case "confidence":  # 2 sigmoid(x) - 1 = tanh(x / 2), which does not cancel near 0
            return math.tanh(margin / (2 * config.temperature))
        case "agreement":
            return _agreement(one, other)
        case _:
            assert_never(config.weight_by)


def _agreement(one: Scored, other: Scored) -> float:
    """Return the share of the scorers that prefer one of two candidates that agree with their sum."""
    differences = [a - b for a, b in zip(one.terms, other.terms, strict=True) if a != b]
    better = one.reward > other.reward
    return sum((difference > 0) == better for difference in differences) / len(differences)


def _ranking(
    scored: list[Scored], config: PairsConfig, draws: Draws
) -> tuple[list[int] | None, bool]:
    """Rank the candidates best first, with label noise, and return whether there were ties.

    If labels are drawn from Bradley-Terry, rankings are drawn from Plackett-Luce: rewards with
    Gumbel noise, sorted. A reversed label becomes a reversed ranking.
    """
    completions = [one.completion_ids for one in scored]
    order, tied = ranking_of([one.reward for one in scored], completions, config.ranking_ties)
    if order is None:
        return None, tied
    ranking = [scored[index] for index in order]
    match config.labels:
        case "argmax":
            pass
        case "bradley_terry":
            noisy = {
                one.candidate: one.reward / config.temperature
                + _gumbel(draws.uniform("ranking", one.candidate))
                for one in ranking
            }
            ranking.sort(key=lambda one: -noisy[one.candidate])
        case _:
            assert_never(config.labels)
    if draws.uniform("flip ranking") < config.flip_rate:
        ranking.reverse()
    return [one.candidate for one in ranking], tied


def _gumbel(uniform: float) -> float:
    return -math.log(-math.log(uniform or 2.0**-53))


def _why_dropped(one: Scored, other: Scored, min_margin: float) -> str | None:
    if one.completion_ids == other.completion_ids:
        return "identical"
    if one.reward == other.reward:
        return "ties"
    return "below_margin" if abs(one.reward - other.reward) <= min_margin else None


def _labelled(
    one: Scored, other: Scored, config: PairsConfig, draws: Draws
) -> tuple[Scored, Scored]:
    """Return (chosen, rejected) by the higher reward or a Bradley-Terry draw."""
    match config.labels:
        case "argmax":
            first = one.reward > other.reward
        case "bradley_terry":
            probability = preference_probability(one.reward, other.reward, config.temperature)
            first = draws.uniform("label", one.candidate, other.candidate) < probability
        case _:
            assert_never(config.labels)
    return (one, other) if first else (other, one)
