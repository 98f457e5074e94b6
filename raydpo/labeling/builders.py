"""The package's pair builders: which of a prompt's candidates are compared.

From the candidates with their rewards, pure functions return matches; `pairs.py` decides who wins a
match and what becomes of it. Random draws are hashes of what they are for, so they are the same in
any order and on any machine.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from raydpo.config.pairs import Builder, PairsConfig
from raydpo.core.storage import canonical_json

#: Number of the data's completion among a prompt's candidates, with the builder `data_chosen`.
DATA: Final = -1
#: Tokens of the runs that two completions are compared by.
_RUN: Final = 3


@dataclass(frozen=True)
class Scored:
    """A candidate that can be part of a pair.

    Args:
        candidate: its number among the prompt's candidates.
        completion_ids: its token ids; two candidates with equal ids never form a pair.
        reward: the weighted sum of its scores.
        terms: the terms of that sum, one for each scorer.
    """

    candidate: int
    completion_ids: tuple[int, ...]
    reward: float
    terms: tuple[float, ...] = ()


#: Two candidates to compare, the one with the lower number first.
Match = tuple[Scored, Scored]


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


def matched(
    builder: Builder, scored: Sequence[Scored], config: PairsConfig, draws: Draws
) -> list[Match]:
    """Return the builder's matches.

    Args:
        builder: the builder's name.
        scored: the prompt's candidates, by their numbers; for `data_chosen` the data's is first.
        config: what the builder reads beside them.
        draws: the prompt's random numbers.
    """
    if len(scored) < 2:
        return []
    best_first = sorted(scored, key=lambda one: -one.reward)  # ties stay by candidate number
    best = best_first[0]
    found: list[Match]
    match builder:
        case "all_pairs":
            found = list(itertools.combinations(scored, 2))
        case "first_two":
            found = [(scored[0], scored[1])]
        case "best_worst":
            rest = [one for one in scored if one is not best]
            found = [(best, min(rest, key=lambda one: one.reward))]
        case "best_random":
            found = [(best, _random_other(best, scored, draws))]
        case "best_of_n":
            found = [(best, other) for other in best_first[1:]]
        case "adjacent_ranks":
            found = list(itertools.pairwise(best_first))
        case "top_bottom":
            found = _top_against_bottom(best_first, config.top_fraction, config.bottom_fraction)
        case "rejection_sampling":
            accepted = accept(scored, config.accepted, config.acceptance_beta, draws)
            found = list(zip(accepted[::2], accepted[1::2], strict=False))
        case "correction":
            found = _corrections(scored, config.correct_above)
        case "data_chosen":
            found = [(scored[0], other) for other in scored[1:]]
        case _:
            assert_never(builder)
    return [(a, b) if a.candidate < b.candidate else (b, a) for a, b in found]


def _random_other(best: Scored, scored: Sequence[Scored], draws: Draws) -> Scored:
    """Return a random candidate beside the best; a copy of the best only if all others are."""
    rest = [one for one in scored if one is not best]
    others = [one for one in rest if one.completion_ids != best.completion_ids] or rest
    return min(others, key=lambda one: draws.uniform("best_random", one.candidate))


def _top_against_bottom(best_first: list[Scored], top: float, bottom: float) -> list[Match]:
    """Match each of the highest rewards with each of the lowest; a share means at least one."""
    count = len(best_first)
    tops = best_first[: max(1, math.floor(top * count))]
    bottoms = best_first[count - max(1, math.floor(bottom * count)) :]
    return list(itertools.product(tops, bottoms))


def acceptance_probability(reward: float, highest: float, beta: float) -> float:
    """P(a candidate is accepted) = exp((reward - highest) / beta).

    This is statistical rejection sampling with the optimal policy pi_ref exp(reward / beta) / Z as
    its target and pi_ref as its proposal; `highest` is the estimate of beta log(M Z), see Liu et al.
    2023, arXiv:2309.06657, section 3.2 and appendix A.1.
    """
    return math.exp((reward - highest) / beta)


def accept(scored: Sequence[Scored], most: int, beta: float, draws: Draws) -> list[Scored]:
    """Return candidates that statistical rejection sampling accepts, in that order.

    As in the paper's algorithm, a pass goes through those not accepted yet, and compares them with
    the highest reward among them; passes follow until there are enough, or none is left.

    Args:
        scored: the candidates, by their numbers.
        most: how many are accepted at most.
        beta: see `acceptance_probability`; the larger, the closer to the sampler itself.
        draws: the prompt's random numbers.
    """
    accepted: list[Scored] = []
    left = list(scored)
    for turn in itertools.count():
        if not left or len(accepted) >= most:
            break
        highest = max(one.reward for one in left)
        refused: list[Scored] = []
        for one in left:
            probability = acceptance_probability(one.reward, highest, beta)
            drawn = draws.uniform("accept", turn, one.candidate)
            (accepted if drawn < probability else refused).append(one)
        left = refused
    return accepted[:most]


def _corrections(scored: Sequence[Scored], correct_above: float) -> list[Match]:
    """Match each wrong candidate with the correct one that is most similar to it."""
    right = [one for one in scored if one.reward > correct_above]
    wrong = [one for one in scored if one.reward <= correct_above]
    if not right:
        return []
    return [(one, max(right, key=lambda other: similarity(one, other))) for one in wrong]


def similarity(one: Scored, other: Scored) -> float:
    """Jaccard index of the token trigrams of two completions, from 0 to 1.

    A completion of fewer than three tokens is a single run.
    """
    a, b = _runs(one.completion_ids), _runs(other.completion_ids)
    return len(a & b) / len(a | b)


def _runs(ids: tuple[int, ...]) -> frozenset[tuple[int, ...]]:
    return frozenset(ids[at : at + _RUN] for at in range(max(1, len(ids) - _RUN + 1)))


def merged(scored: Sequence[Scored], threshold: float) -> list[Scored]:
    """Return the candidates without those that are near an earlier one that stays.

    The one that stays does not depend on rewards, so merging favours no reward.

    Args:
        scored: the candidates, by their numbers.
        threshold: similarity from which two candidates count as one.
    """
    kept: list[Scored] = []
    for one in scored:
        if all(similarity(one, earlier) < threshold for earlier in kept):
            kept.append(one)
    return kept
