"""Win rates over prompts and seeds, and differences between temperatures and between methods.

Seeds share their prompts, so both are units: standard errors are clustered by prompt and by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raydpo.evaluation.metrics import Estimate, as_share
from seeds.estimates import two_way_mean
from winrate.points import Figure, WinRow

Column = Literal["wins", "ties", "scores", "tokens", "kl"]


@dataclass(frozen=True)
class Setting:
    """A method at one temperature, with its rows of all seeds."""

    rows: tuple[WinRow, ...]

    @property
    def label(self) -> str:
        """The method, with its N."""
        return self.rows[0].label

    @property
    def n(self) -> int:
        """N of Best-of-N."""
        return self.rows[0].n

    @property
    def temperature(self) -> float:
        """Of its samples."""
        return self.rows[0].temperature

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that have a row, in order."""
        return tuple(sorted(row.seed for row in self.rows))

    def mean(self, column: Column) -> Estimate:
        """Return the mean over prompts and seeds; shares have intervals in [0, 1]."""
        estimate = two_way_mean(*_flat(self._cells(column)))
        return as_share(estimate) if column in ("wins", "ties") else estimate

    def _cells(self, column: Column) -> dict[tuple[int, str], float]:
        """Return the values by seed and prompt."""
        return {
            (row.seed, prompt): value
            for row in self.rows
            for prompt, value in zip(row.prompts, getattr(row, column) or [], strict=True)
        }

    def minus(self, other: Setting, column: Column = "wins") -> Estimate | None:
        """Return the mean difference, paired by prompt and seed; None without a common seed."""
        cells = differences(self._cells(column), other._cells(column))
        return two_way_mean(*_flat(cells)) if cells else None

    def change_beside(self, start: Setting, other: Setting, of_other: Setting) -> Estimate | None:
        """Return (self - start) - (other - of_other) of win rates, paired by prompt and seed."""
        own = differences(self._cells("wins"), start._cells("wins"))
        theirs = differences(other._cells("wins"), of_other._cells("wins"))
        cells = differences(own, theirs)
        return two_way_mean(*_flat(cells)) if cells else None


def settings_of(rows: Sequence[WinRow], figure: Figure) -> list[Setting]:
    """Return the settings of a figure, in order of first appearance."""
    found: dict[tuple[str, int, float], list[WinRow]] = {}
    for row in rows:
        if row.figure == figure:
            found.setdefault((row.method, row.n, row.temperature), []).append(row)
    return [Setting(tuple(some)) for some in found.values()]


def by_label(settings: Sequence[Setting]) -> dict[str, dict[float, Setting]]:
    """Return the settings by method, and then by temperature in rising order."""
    found: dict[str, dict[float, Setting]] = {}
    for setting in sorted(settings, key=lambda s: s.temperature):
        found.setdefault(setting.label, {})[setting.temperature] = setting
    first = [s.label for s in settings]
    return {label: found[label] for label in dict.fromkeys(first)}


def differences(
    one: dict[tuple[int, str], float], other: dict[tuple[int, str], float]
) -> dict[tuple[int, str], float]:
    """Subtract the values that both have, by seed and prompt."""
    return {key: one[key] - other[key] for key in one if key in other}


def _flat(cells: dict[tuple[int, str], float]) -> tuple[list[float], list[str], list[str]]:
    """Return values, prompts and seeds."""
    return (
        list(cells.values()),
        [prompt for _, prompt in cells],
        [str(seed) for seed, _ in cells],
    )
