"""Let a judge compare completions of a prompt, and score them by Bradley-Terry.

Each comparison is asked in both orders. If a judge prefers the same completion in both, this is
its vote. If its two answers contradict each other, its vote is a tie, as it is if one or both are
ties: a preference counts only if it holds in both orders.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from raydpo.core.errors import DataError
from raydpo.core.position_bias import kind_of
from raydpo.labeling.judges.bradley_terry import Strength, bradley_terry
from raydpo.labeling.judges.panel import Panel
from raydpo.labeling.judges.pointwise import columns_of, gathered, messages_of
from raydpo.labeling.judges.replies import Reply
from raydpo.labeling.judges.schedules import played
from raydpo.labeling.rewards import Judged, Note, Refusal
from raydpo.labeling.signature import CANDIDATE_IDS, Lists

#: Beginnings of counts in a manifest; the name of the reward follows.
COMPARISONS: Final = "comparisons_for_"
IDENTICAL: Final = "identical_for_"
FAILED: Final = "failed_comparisons_for_"
TIES: Final = "ties_for_"
_BASELINE: Final = "baseline"
_ALONE: Final = "its prompt has no other completion to compare it with"


@dataclass(frozen=True)
class Vote:
    """A judge's vote on a comparison.

    Attributes:
        judge: the name of the member.
        share: 1 for the first completion, 0 for the second, 0.5 for a tie.
        verdicts: its answers: with the completions in their order, and the other way round.
        rationales: its words for both.
    """

    judge: str
    share: float
    verdicts: tuple[str, str]
    rationales: tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """A comparison of two completions of a prompt, by their numbers."""

    a: int
    b: int
    votes: tuple[Vote, ...]
    refusals: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """Share of the votes for `a`; None without a vote."""
        if not self.votes:
            return None
        return sum(vote.share for vote in self.votes) / len(self.votes)


@dataclass(frozen=True)
class _Group:
    """The completions of a prompt, the baseline first if there is one of the data.

    Attributes:
        names: of the completions, in rationales: candidate numbers, and `baseline`.
    """

    prompt: str
    messages: Any
    columns: Mapping[str, Any]
    texts: list[str]
    names: list[int | str]
    has_baseline: bool


async def compare(panel: Panel, prompts: list[str], completions: list[str], more: Lists) -> Judged:
    """Return each completion's score in log-odds with its interval, or a refusal.

    A comparison without a vote is left out. A completion is refused if no comparison of it has a
    vote.

    Raises:
        ServiceError, BudgetError: the run cannot go on.
    """
    groups = _indices_by_prompt(prompts, more)
    found = await gathered(
        *(_compare_group(panel, [*indices], prompts, completions, more) for indices in groups)
    )
    results: dict[int, tuple[float | Refusal, Note]] = {}
    counts: Counter[str] = Counter(panel.counts())
    for indices, (of_group, more_counts) in zip(groups, found, strict=True):
        results |= dict(zip(indices, of_group, strict=True))
        counts.update(more_counts)
    ordered = [results[index] for index in range(len(completions))]
    values, notes = [value for value, _ in ordered], [note for _, note in ordered]
    return Judged(values, notes=notes, counts=dict(counts), sums=panel.sums())


def _indices_by_prompt(prompts: list[str], more: Lists) -> list[list[int]]:
    """Group completions by their prompts' ids; without ids, by the prompts' texts."""
    ids = more.get(CANDIDATE_IDS)
    names = prompts if ids is None else [name.rpartition("/")[0] for name in ids]
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return list(groups.values())


async def _compare_group(
    panel: Panel, indices: list[int], prompts: list[str], completions: list[str], more: Lists
) -> tuple[list[tuple[float | Refusal, Note]], Counter[str]]:
    judge, first = panel.bench.judge, indices[0]
    texts = [completions[index] for index in indices]
    names = _names(indices, more)
    column = judge.baseline_column
    if column is not None:
        baseline = more[column][first] if column in more else None
        if not isinstance(baseline, str):
            refusal = Refusal(f"the column {column!r} holds no text to compare with")
            return [(refusal, Note()) for _ in texts], Counter()
        texts, names = [baseline, *texts], [_BASELINE, *names]
    group = _Group(
        prompts[first],
        messages_of(more, first),
        columns_of(panel, more, first),
        texts,
        names,
        column is not None,
    )
    comparisons = await played(
        judge.schedule, len(texts), lambda a, b: _comparison(panel, group, a, b)
    )
    results = _scored(group, comparisons, judge.prior_strength)
    return results, _counts(panel, group, comparisons)


def _names(indices: list[int], more: Lists) -> list[int | str]:
    ids = more.get(CANDIDATE_IDS)
    if ids is None:
        return list(range(len(indices)))
    return [int(ids[index].rpartition("/")[2]) for index in indices]


async def _comparison(panel: Panel, group: _Group, a: int, b: int) -> Comparison:
    names = panel.bench.names
    if group.texts[a] == group.texts[b]:
        tied = ("tie", "tie"), ("identical completions", "")
        return Comparison(a, b, tuple(Vote(name, 0.5, *tied) for name in names))
    try:
        both = [
            panel.bench.rubric.question(
                group.prompt,
                group.messages,
                {"first": group.texts[one], "second": group.texts[other]},
                group.columns,
            )
            for one, other in ((a, b), (b, a))
        ]
    except DataError as error:
        return Comparison(a, b, (), (error.value,))
    in_order, reversed_order = await asyncio.gather(*map(panel.replies, both))
    votes: list[Vote] = []
    refusals: list[str] = []
    for name, one, other in zip(names, in_order, reversed_order, strict=True):
        if isinstance(one, Reply) and isinstance(other, Reply):
            votes.append(vote_of(name, one, other))
        else:
            refusals += [r.reason for r in (one, other) if isinstance(r, Refusal)]
    return Comparison(a, b, tuple(votes), tuple(refusals))


def vote_of(judge: str, in_order: Reply, reversed_order: Reply) -> Vote:
    """Return the vote that two answers make: a preference only if both orders agree."""
    verdicts = str(in_order.value), str(reversed_order.value)
    share = {("first", "second"): 1.0, ("second", "first"): 0.0}.get(verdicts, 0.5)
    return Vote(judge, share, verdicts, (in_order.rationale, reversed_order.rationale))


def _scored(
    group: _Group, comparisons: list[Comparison], prior: float
) -> list[tuple[float | Refusal, Note]]:
    count = len(group.texts)
    wins = [[0.0] * count for _ in range(count)]
    for comparison in comparisons:
        for vote in comparison.votes:
            wins[comparison.a][comparison.b] += vote.share
            wins[comparison.b][comparison.a] += 1 - vote.share
    strengths = bradley_terry(wins, prior, 0 if group.has_baseline else None)
    results = [
        _result(number, strengths[number], comparisons, group.names) for number in range(count)
    ]
    return results[1:] if group.has_baseline else results


def _result(
    number: int, strength: Strength, comparisons: list[Comparison], names: list[int | str]
) -> tuple[float | Refusal, Note]:
    own = [comparison for comparison in comparisons if number in (comparison.a, comparison.b)]
    if not any(comparison.votes for comparison in own):
        reasons = [reason for comparison in own for reason in comparison.refusals]
        return Refusal(reasons[-1] if reasons else _ALONE), Note()
    rationale = [
        _told(number, comparison, vote, names) for comparison in own for vote in comparison.votes
    ]
    text = json.dumps(rationale, ensure_ascii=False)
    return strength.value, Note(text, strength.low, strength.high)


def _told(
    number: int, comparison: Comparison, vote: Vote, names: list[int | str]
) -> dict[str, Any]:
    """Return a vote as it stands in the table, from the view of one of the two completions."""
    is_a = number == comparison.a
    return {
        "against": names[comparison.b if is_a else comparison.a],
        "judge": vote.judge,
        "share": vote.share if is_a else 1 - vote.share,
        "place": "first" if is_a else "second",
        "verdicts": list(vote.verdicts),
        "rationales": list(vote.rationales),
    }


def _counts(panel: Panel, group: _Group, comparisons: list[Comparison]) -> Counter[str]:
    scorer = panel.bench.scorer
    counts: Counter[str] = Counter(
        dict.fromkeys((f"{k}{scorer}" for k in (COMPARISONS, IDENTICAL, FAILED, TIES)), 0)
    )
    for comparison in comparisons:
        identical = group.texts[comparison.a] == group.texts[comparison.b]
        counts[f"{COMPARISONS}{scorer}"] += 1
        counts[f"{IDENTICAL}{scorer}"] += identical
        counts[f"{FAILED}{scorer}"] += not comparison.votes
        counts[f"{TIES}{scorer}"] += comparison.share == 0.5
        if not identical:
            counts.update(f"{kind_of(*vote.verdicts)}{vote.judge}" for vote in comparison.votes)
    return counts
