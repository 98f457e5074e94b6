"""Pure functions that turn the rewards of a prompt's candidates into pairs and rankings.

From K rewards, the candidates' numbers and the settings, they return chosen and rejected
candidates, their order, and counts of dropped pairs. Random draws are hashes of what they are for,
so they are the same in any order and on any machine.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never, cast

from raydpo.config.job import Builder, PairsConfig
from raydpo.core.rankings import preference_probability, ranking_of
from raydpo.core.storage import canonical_json


@dataclass(frozen=True)
class Scored:
    """A candidate that can be part of a pair.

    Args:
        candidate: its number among the prompt's candidates.
        completion_ids: its token ids; two candidates with equal ids never form a pair.
        reward: the weighted sum of its scores.
    """

    candidate: int
    completion_ids: tuple[int, ...]
    reward: float


@dataclass(frozen=True)
class Draws:
    """Uniform draws for one prompt in one round of a run."""

    seed: int
    round_index: int
    prompt_id: str

    def uniform(self, *what: str | int) -> float:
        """Return a number in [0, 1) that depends on `what` is drawn, and on nothing else."""
        key = canonical_json([self.seed, self.round_index, self.prompt_id, *what])
        return (int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 11) * 2.0**-53


@dataclass(frozen=True)
class Pairs:
    """One prompt's pairs as (chosen, rejected) candidate numbers, and counts of dropped pairs.

    Args:
        pairs: one tuple per pair.
        probabilities: for each pair, that chosen wins by the Bradley-Terry model. A person might
            have given a reversed label, so its probability is that of the reversed label.
        ranking: candidate numbers, best first; None if ties prevent a ranking.
        counts: `ties`: pairs with equal rewards; `below_margin`: pairs that differ too little;
            `identical`: pairs with the same completion twice; `flipped`: reversed labels;
            `rankings`: 1 if there is one; `rankings_with_ties`: 1 if rewards were equal.
    """

    pairs: list[tuple[int, int]]
    probabilities: list[float]
    ranking: list[int] | None
    counts: dict[str, int] = field(default_factory=dict[str, int])


#: A function from a prompt's candidates and draws to matches, with the lower number first.
Matches = Callable[[Sequence[Scored], Draws], list[tuple[Scored, Scored]]]


def build_pairs(
    scored: Sequence[Scored], config: PairsConfig, draws: Draws, own: Matches | None = None
) -> Pairs:
    """Build the pairs of one prompt with the configured builder and labels.

    Args:
        scored: the prompt's candidates, in any order.
        config: builder, margin, labels and noise.
        draws: the prompt's random numbers.
        own: the builder, if it is the user's own.
    """
    counts = {"ties": 0, "below_margin": 0, "identical": 0, "flipped": 0}
    pairs: list[tuple[int, int]] = []
    probabilities: list[float] = []
    ordered = sorted(scored, key=lambda s: s.candidate)
    match_up = own or functools.partial(_matched, cast("Builder", config.builder))
    for one, other in match_up(ordered, draws):
        dropped = _why_dropped(one, other, config.min_margin)
        if dropped is not None:
            counts[dropped] += 1
            continue
        winner, loser = _labelled(one, other, config, draws)
        probabilities.append(
            preference_probability(winner.reward, loser.reward, config.temperature)
        )
        if draws.uniform("flip", one.candidate, other.candidate) < config.flip_rate:
            winner, loser = loser, winner
            counts["flipped"] += 1
        pairs.append((winner.candidate, loser.candidate))
    ranking, tied = _ranking(ordered, config, draws)
    counts |= {"rankings": int(ranking is not None), "rankings_with_ties": int(tied)}
    return Pairs(pairs, probabilities, ranking, counts)


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


def _matched(
    builder: Builder, scored: Sequence[Scored], draws: Draws
) -> list[tuple[Scored, Scored]]:
    """Return the builder's matches, each with the lower candidate number first."""
    if len(scored) < 2:
        return []
    best = max(scored, key=lambda s: s.reward)
    rest = [s for s in scored if s is not best]
    match builder:
        case "all_pairs":
            return list(itertools.combinations(scored, 2))
        case "first_two":
            return [(scored[0], scored[1])]
        case "best_worst":
            other = min(rest, key=lambda s: s.reward)
        case "best_random":
            rest = [s for s in rest if s.completion_ids != best.completion_ids] or rest
            other = min(rest, key=lambda s: draws.uniform("best_random", s.candidate))
        case _:
            assert_never(builder)
    return [(best, other) if best.candidate < other.candidate else (other, best)]


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
