"""Mismatched pairs: add to each prompt of unpaired data a completion of another prompt.

Each row of a part has one completion, and gets a second one that nobody judged. The mean log-ratio
of the second ones is the reference point z0 of KTO (arXiv:2402.01306, section 4.1), an estimate of
KL(policy || reference). The choice depends only on the order of the data. So the reference scores
the completion offline like any other, and both completions share the prompt's keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from raydpo.core.tables import Row

T = TypeVar("T")

NO_OTHER_PROMPT: Final = "no completion of another prompt is near, for KTO's reference point"


@dataclass
class Mismatches:
    """Pairs each row with the completion of the next row that has another prompt.

    The last row of a part takes the first row's completion. `spare` is a row of an earlier part,
    for a part that has only one prompt.
    """

    spare: Row | None = None

    def added(self, rows: list[tuple[T, Row]]) -> tuple[list[tuple[T, Row]], list[T]]:
        """Return the rows with their mismatched completions, and whose rows found none."""
        near = [row for _, row in rows]
        near += [self.spare] if self.spare is not None else []
        found: list[tuple[T, Row]] = []
        without: list[T] = []
        for index, (owner, row) in enumerate(rows):
            around = near[index + 1 :] + near[:index]
            other = next((r for r in around if r["prompt_id"] != row["prompt_id"]), None)
            if other is None:
                without.append(owner)
            else:
                found.append((owner, _with_completion_of(row, other)))
        self.spare = rows[-1][1] if rows else self.spare
        return found, without


def _with_completion_of(row: Row, other: Row) -> Row:
    return {
        **row,
        "completions": [*row["completions"], other["completions"][0]],
        "completion_texts": [*row["completion_texts"], other["completion_texts"][0]],
        "desirable": [*row["desirable"], None],
    }
