"""What formulas over a whole global batch are made of: rows of a step, weighted sums, units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpmath import mp

from tests.conformance.preference_data import Row, Tables

Number = Any  # mpmath has no types
#: A table and a token; of `top_logits` its column too.
Place = tuple[str, int, int]
Section = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """A weighted sum of numbers in the tables."""

    value: Number
    weights: dict[Place, Number]

    def __sub__(self, other: Input) -> Input:
        negative = {place: -weight for place, weight in other.weights.items()}
        return Input(self.value - other.value, self.weights | negative)


@dataclass(frozen=True)
class Unit:
    """A pair, a ranking or a judged completion.

    Attributes:
        weight: its share in the mean.
        formula: from the values of the inputs to the loss.
        inputs: of the formula.
        preferred: the completion that an SFT term is about, as group and number.
        metrics: name -> value.
    """

    weight: Number
    formula: Callable[..., Number]
    inputs: list[Input]
    preferred: tuple[Row, int] | None
    metrics: dict[str, Number]


@dataclass(frozen=True)
class Batch:
    """Rows of one step, by number in the data, with what is known of the step."""

    rows: dict[int, Row]
    tables: Tables
    seed: int
    step: int

    def tokens(self, table: str, row: Row, completion: int, length: Any = "sum") -> Input:
        """Sum over a completion's tokens, or what `length` makes of it."""
        numbers = getattr(self.tables, table)
        tokens = row["completions"][completion]
        weight = mp.mpf(1) / len(tokens) if length == "mean" else mp.mpf(1)
        value = sum(weight * mp.mpf(numbers[token]) for token in tokens)
        return Input(value, {(table, token, 0): weight for token in tokens})

    def logratio(self, row: Row, completion: int, length: Any, shared: int) -> Input:
        """h; with `ld_alpha` tokens from the place `shared` on count alpha."""
        tokens = row["completions"][completion]
        weights = [mp.mpf(1)] * len(tokens)
        if length == "mean":
            weights = [mp.mpf(1) / len(tokens)] * len(tokens)
        if isinstance(length, dict):
            weights = [
                mp.mpf(1 if place < shared else length["ld_alpha"]) for place in range(len(tokens))
            ]
        policy, reference = self.tables.logps, self.tables.reference
        value = sum(
            weight * (mp.mpf(policy[token]) - mp.mpf(reference[token]))
            for weight, token in zip(weights, tokens, strict=True)
        )
        places = [("logps", token, 0) for token in tokens]
        return Input(value, dict(zip(places, weights, strict=True)))
