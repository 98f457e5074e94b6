"""How much a judge prefers a completion for its place in the question.

Each comparison is asked in both orders. The bias is the share of questions in which the judge
prefers the first completion, minus the share in which it prefers the second. What the completions
are worth cancels out, because each of them is first once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_NORMAL_95: Final = 1.959963984540054
#: Beginnings of counts in a manifest; the judge's name follows.
CONSISTENT: Final = "consistent_for_"
BOTH_FIRST: Final = "first_in_both_orders_for_"
BOTH_SECOND: Final = "second_in_both_orders_for_"
FIRST_OR_TIE: Final = "first_or_tie_for_"
SECOND_OR_TIE: Final = "second_or_tie_for_"
#: For each kind of comparison, how often `first` was preferred minus how often `second` was.
_LEANINGS: Final = {
    CONSISTENT: 0,
    BOTH_FIRST: 2,
    BOTH_SECOND: -2,
    FIRST_OR_TIE: 1,
    SECOND_OR_TIE: -1,
}


@dataclass(frozen=True)
class PositionBias:
    """A judge's bias towards the first place, with its 95 % interval, and what it is made of.

    Attributes:
        value: between -1 (always the second) and 1 (always the first).
        comparisons: comparisons that were asked in both orders.
        inconsistent: those whose two answers contradict each other.
    """

    value: float
    low: float
    high: float
    comparisons: int
    inconsistent: int

    def __str__(self) -> str:
        """Return it in words."""
        share = self.inconsistent / self.comparisons
        return (
            f"position bias {self.value:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}), "
            f"{share:.1%} of {self.comparisons:,} comparisons inconsistent, which count as ties"
        )


def kind_of(in_order: str, reversed_order: str) -> str:
    """Return the kind of a comparison: the beginning of the count that it belongs to."""
    leaning = sum((v == "first") - (v == "second") for v in (in_order, reversed_order))
    return next(kind for kind, value in _LEANINGS.items() if value == leaning)


def position_bias(counts: Mapping[str, int], judge: str) -> PositionBias | None:
    """Return a judge's bias from the counts of a manifest; None if it compared nothing.

    The interval treats comparisons as independent: mean and standard error of their leanings.
    """
    found = {value: counts.get(f"{kind}{judge}", 0) for kind, value in _LEANINGS.items()}
    total = sum(found.values())
    if not total:
        return None
    mean = sum(value * count for value, count in found.items()) / (2 * total)
    squares = sum((value / 2 - mean) ** 2 * count for value, count in found.items())
    margin = _NORMAL_95 * math.sqrt(squares / max(1, total - 1) / total)
    return PositionBias(mean, mean - margin, mean + margin, total, total - found[0])


def position_biases(counts: Mapping[str, int]) -> dict[str, PositionBias]:
    """Return the position bias of each judge in the counts of a manifest."""
    kinds = tuple(_LEANINGS)
    judges = {name.removeprefix(k) for k in kinds for name in counts if name.startswith(k)}
    found = ((judge, position_bias(counts, judge)) for judge in sorted(judges))
    return {judge: bias for judge, bias in found if bias is not None}


def position_lines(counts: Mapping[str, int]) -> list[str]:
    """Return a line on the position bias of each judge in the counts of a manifest."""
    return [f"{judge}: {bias}" for judge, bias in position_biases(counts).items()]
