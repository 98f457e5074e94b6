"""Preference groups: a prompt's candidates and the pairs over them, as a row.

What comes in: rows of the candidates table. What goes out: rows of the preferences table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from raydpo.errors import DataError
from raydpo.parts import Table, describe_counts
from raydpo.tables import Row


def by_prompt(candidates: list[Row]) -> list[list[Row]]:
    """The rows of each prompt; they are neighbours in the table."""
    groups = itertools.groupby(candidates, key=lambda row: row["prompt_id"])
    return [list(rows) for _, rows in groups]


def candidate_id(candidate: Row) -> str:
    """Id of a candidate in logs and in the quarantine."""
    return f"{candidate['prompt_id']}/{candidate['candidate']}"


def preference_row(
    candidates: list[Row],
    pairs: Sequence[tuple[int, int]],
    probabilities: Sequence[float],
    *,
    rewards: list[float] | None = None,
    ranking: Sequence[int] | None = None,
    weight: float = 1.0,
) -> Row:
    """A group.

    Args:
        candidates: the prompt's candidates that are kept, as completions of the group.
        pairs: (chosen, rejected), by candidate number.
        probabilities: one a pair, that chosen wins.
        rewards: one a candidate, or None.
        ranking: candidate numbers, best first, or None.
        weight: of each pair.
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
            for (chosen, rejected), probability in zip(pairs, probabilities, strict=True)
        ],
        "ranking": None if ranking is None else [index[candidate] for candidate in ranking],
        "desirable": None,
    }


def refuse_zero_pairs(preferences: Table, way_out: str) -> Table:
    """The table, if it has a pair; if not, it is not done: its manifest is taken away.

    Raises:
        DataError: it has none; the message says what was dropped.
    """
    if preferences.manifest["counts"]["pairs"] > 0:
        return preferences
    preferences.folder.delete("manifest.json")
    raise DataError(
        f"{preferences.folder.uri}: no pair at all ({describe_counts(preferences.manifest)})",
        "training needs at least one pair of a chosen and a rejected completion",
        way_out,
    )
