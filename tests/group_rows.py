"""Rows of the table of preferences, for tests that need a few."""

from __future__ import annotations

from typing import Any

from raydpo.core.tables import Row


def group_row(name: str, completions: list[list[int]], **changes: Any) -> Row:
    """A group whose first completion is preferred to its second; changes replace columns."""
    return {
        "group_id": name,
        "prompt_id": name,
        "prompt": "the film",
        "prompt_ids": [1, 2],
        "completion_texts": ["" for _ in completions],
        "completions": completions,
        "rewards": None,
        "pairs": [{"chosen": 0, "rejected": 1, "weight": 1.0, "probability": None}],
        "ranking": None,
        "desirable": None,
        **changes,
    }


def numbered_group(number: int) -> Row:
    """A group whose token ids depend on its number."""
    ids = [[9, 2], [10, 2]]
    return group_row(str(number), ids, prompt_ids=[1, 5 + number], completion_texts=["c", "c"])
