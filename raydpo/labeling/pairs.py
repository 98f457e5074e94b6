"""From the rewards of a prompt's candidates to pairs and rankings: pure functions.

What comes in: K rewards, the candidates' numbers, and how pairs are built. What goes out:
chosen and rejected candidates and their order, with counts of what was dropped. Draws are hashes of who
and what is drawn for, so they come out the same in any order and on any machine.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from raydpo.config import Builder, PairsConfig
from raydpo.rankings import preference_probability, ranking_of
from raydpo.storage import canonical_json


@dataclass(frozen=True)
class Scored:
    """A candidate that can stand in a pair.

    Args:
        candidate: its number among the prompt's candidates.
        completion_ids: its token ids; equal ones never form a pair.
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
        """A number in [0, 1) that depends on `what` is drawn, and on nothing else."""
        key = canonical_json([self.seed, self.round_index, self.prompt_id, *what])
        return (int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 11) * 2.0**-53


@dataclass(frozen=True)
class Pairs:
    """(chosen, rejected) candidate numbers of one prompt, and what was dropped.

    Args:
        pairs: one tuple a pair.
        probabilities: one a pair: that chosen wins, by Bradley and Terry. A label that was
            turned round is one that a person might have given, so its probability is too.
        ranking: candidate numbers, best first; None where ties leave none.
        counts: `ties`: equal rewards; `below_margin`: different, but too little;
            `identical`: the same completion twice; `flipped`: labels turned round;
            `rankings`: 1 where there is one; `rankings_with_ties`: 1 where rewards were equal.
    """

    pairs: list[tuple[int, int]]
    probabilities: list[float]
    ranking: list[int] | None
    counts: dict[str, int] = field(default_factory=dict[str, int])


def build_pairs(scored: Sequence[Scored], config: PairsConfig, draws: Draws) -> Pairs:
    """The pairs of one prompt, by the configured builder and labels.

    Args:
        scored: the prompt's candidates, in any order.
        config: builder, margin, labels and noise.
        draws: the prompt's random numbers.
    """
    counts = {"ties": 0, "below_margin": 0, "identical": 0, "flipped": 0}
    pairs: list[tuple[int, int]] = []
    probabilities: list[float] = []
    ordered = sorted(scored, key=lambda s: s.candidate)
    for one, other in _matched(ordered, config.builder, draws):
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
    """The candidates best first, with the noise of the labels, and whether there were ties.

    Labels drawn from Bradley-Terry become rankings drawn from Plackett-Luce: rewards with
    Gumbel noise, sorted. A label turned round becomes a ranking turned round.
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


def _matched(scored: list[Scored], builder: Builder, draws: Draws) -> list[tuple[Scored, Scored]]:
    """The builder's matches, in each the lower candidate number first."""
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
    """(chosen, rejected): the higher reward, or a Bradley-Terry draw."""
    match config.labels:
        case "argmax":
            first = one.reward > other.reward
        case "bradley_terry":
            probability = preference_probability(one.reward, other.reward, config.temperature)
            first = draws.uniform("label", one.candidate, other.candidate) < probability
        case _:
            assert_never(config.labels)
    return (one, other) if first else (other, one)
