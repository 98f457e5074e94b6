"""Preference groups: turn a prompt's candidates, and the pairs over them, into one row.

Rows of the candidates table become rows of the preferences table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from raydpo.core.errors import DataError
from raydpo.core.parts import Table, describe_counts
from raydpo.core.tables import Row


def by_prompt(candidates: list[Row]) -> list[list[Row]]:
    """Return the rows of each prompt, which are neighbours in the table."""
    groups = itertools.groupby(candidates, key=lambda row: row["prompt_id"])
    return [list(rows) for _, rows in groups]


def candidate_id(candidate: Row) -> str:
    """Return the id of a candidate for logs and the quarantine."""
    return f"{candidate['prompt_id']}/{candidate['candidate']}"


def preference_row(
    candidates: list[Row],
    pairs: Sequence[tuple[int, int]],
    probabilities: Sequence[float | None],
    *,
    rewards: list[float] | None = None,
    ranking: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> Row:
    """Build the row of a group.

    Args:
        candidates: the prompt's candidates that are kept; they become the group's completions.
        pairs: (chosen, rejected), by candidate number.
        probabilities: for each pair, that chosen wins; None if only the label is known.
        rewards: one per candidate, or None.
        ranking: candidate numbers, best first, or None.
        weights: for each pair, its weight; without them 1.
    """
    index = {row["candidate"]: i for i, row in enumerate(candidates)}
    first = candidates[0]
    return {
        "group_id": first["prompt_id"],
        "prompt_id": first["prompt_id"],
        "prompt": first["prompt"],
        "prompt_ids": first["prompt_ids"],
        "completion_texts": [row["completion"] for row in candidates],
        "completions": [row["completion_ids"] for row in candidates],
        "rewards": rewards,
        "pairs": [
            {
                "chosen": index[chosen],
                "rejected": index[rejected],
                "weight": weight,
                "probability": probability,
            }
            for (chosen, rejected), probability, weight in zip(
                pairs, probabilities, weights or [1.0] * len(pairs), strict=True
            )
        ],
        "ranking": None if ranking is None else [index[candidate] for candidate in ranking],
        "desirable": None,
        "metadata": first.get("metadata"),
    }


def sampled_row(row: Row, candidates: list[Row]) -> Row:
    """Return the row of `preference_row` with the sampler's log-probs of its candidates."""
    return {**row, "sampler_token_logps": [one["sampler_token_logps"] for one in candidates]}


def sample_counts(rows: list[Row]) -> dict[str, int]:
    """Count what a policy gradient learns from in rows of sampled preferences."""
    equal = sum(max(row["rewards"]) == min(row["rewards"]) for row in rows)
    return {
        "samples": sum(len(row["completions"]) for row in rows),
        "groups_with_equal_rewards": equal,
    }


def refuse_zero_samples(preferences: Table) -> Table:
    """Return a table of sampled preferences if it has a row; otherwise remove its manifest and raise.

    Raises:
        DataError: no completion has a reward; the message says what was dropped.
    """
    if preferences.manifest["counts"]["samples"] > 0:
        return preferences
    preferences.folder.delete("manifest.json")
    raise DataError(
        f"{preferences.folder.uri}: no completion with a reward at all "
        f"({describe_counts(preferences.manifest)})",
        "a policy gradient needs sampled completions with rewards",
        "see in the quarantine of the scores why no completion has one",
    )


def refuse_zero_pairs(preferences: Table, way_out: str) -> Table:
    """Return the table if it has a pair; otherwise remove its manifest and raise.

    Raises:
        DataError: the table has no pair; the message says what was dropped.
    """
    if preferences.manifest["counts"]["pairs"] > 0:
        return preferences
    preferences.folder.delete("manifest.json")
    raise DataError(
        f"{preferences.folder.uri}: no pair at all ({describe_counts(preferences.manifest)})",
        "training needs at least one pair of a chosen and a rejected completion",
        way_out,
    )
