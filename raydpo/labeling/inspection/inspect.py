"""Inspect preferences: one pass over the data, an item for each kind of fault, a verdict over all.

The memory that it takes grows by about a kilobyte for each row, and with the words of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from raydpo.core.tables import Row
from raydpo.labeling.inspection.agreement import Positions, agreement
from raydpo.labeling.inspection.duplicates import Duplicates, OtherPrompts
from raydpo.labeling.inspection.findings import VERDICTS, Finding, worst
from raydpo.labeling.inspection.formats import Formats, Traces
from raydpo.labeling.inspection.groups import Group, batches
from raydpo.labeling.inspection.languages import Languages
from raydpo.labeling.inspection.lengths import Lengths
from raydpo.labeling.inspection.rewards import Rewards
from raydpo.labeling.inspection.shortcuts import Shortcuts
from raydpo.labeling.inspection.truncation import Truncation
from raydpo.labeling.inspection.words import Vocabulary

Json = dict[str, Any]

#: Of the JSON file.
FORMAT: Final = 1


@dataclass(frozen=True)
class Inspected:
    """What is inspected.

    Attributes:
        name: of the data, for people.
        groups: the preferences, read once.
        others: prompts that must not be among them.
        max_completion_tokens: the limit of completions, where one is known.
        scores: rows of the table of scores, neighbours by prompt.
        votes: rows of the table of votes.
        score_counts: of the stage that made the scores.
        counts: of the stage that made the preferences.
        notes: what a reader must know, in sentences.
    """

    name: str
    groups: Iterable[Group]
    others: Sequence[OtherPrompts] = ()
    max_completion_tokens: int | None = None
    scores: Iterable[Row] = ()
    votes: Sequence[Row] = ()
    score_counts: dict[str, int] = field(default_factory=dict[str, int])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    notes: Sequence[str] = ()


def inspect_preferences(inspected: Inspected) -> Json:
    """Inspect preferences.

    Returns:
        The content of inspection.json; docs/inspect.md describes it.
    """
    vocabulary = Vocabulary()
    languages = Languages(vocabulary)
    lengths, formats, traces = Lengths(), Formats(), Traces()
    shortcuts, duplicates = Shortcuts(vocabulary), Duplicates(vocabulary)
    rewards, positions = Rewards(), Positions()
    truncation = Truncation(inspected.max_completion_tokens)
    items = (lengths, shortcuts, formats, rewards, duplicates, truncation, traces, languages)
    groups = pairs = completions = 0
    for batch in batches(inspected.groups, vocabulary):
        for item in (*items, positions):
            item.add(batch)
        groups += len(batch.groups)
        pairs += len(batch.chosen)
        completions += len(batch.texts)
    findings = [
        lengths.finding(),
        shortcuts.finding(),
        formats.finding(),
        rewards.margins(inspected.counts),
        rewards.by_prompt(),
        duplicates.finding(),
        duplicates.overlap(inspected.others),
        agreement(inspected.scores, inspected.votes),
        positions.finding(inspected.votes, inspected.score_counts),
        truncation.finding(),
        traces.finding(),
        languages.finding(),
    ]
    verdict = worst([one.verdict for one in findings if one.verdict != "not measured"])
    return {
        "format": FORMAT,
        "name": inspected.name,
        "verdict": verdict,
        "headline": headline(findings),
        "rows": groups,
        "pairs": pairs,
        "completions": completions,
        "notes": list(inspected.notes),
        "counts": inspected.counts,
        "items": [one.as_json() for one in findings],
    }


def headline(findings: Sequence[Finding]) -> str:
    """Say in a line which items are bad, to look at and clean."""
    by_verdict = {
        verdict: [one.title.lower() for one in findings if one.verdict == verdict]
        for verdict in VERDICTS
    }
    said: list[str] = []
    if by_verdict["bad"]:
        said.append(f"bad: {', '.join(by_verdict['bad'])}")
    if by_verdict["look"]:
        said.append(f"look at: {', '.join(by_verdict['look'])}")
    clean, unknown = len(by_verdict["clean"]), len(by_verdict["not measured"])
    said.append(f"{clean} item{'s' if clean != 1 else ''} clean")
    if unknown:
        said.append(f"{unknown} not measured")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def measured(inspection: Json) -> dict[str, float]:
    """Return the values that limits are compared with, by name."""
    return {name: value for item in inspection["items"] for name, value in item["measured"].items()}
