"""Settings of a study over seeds: estimates with intervals, and paired comparisons.

Rows of results, grouped by method, strength and number of rounds, give means over seeds. Prompts
are the units, as in `raydpo compare`, whose tools this module uses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np

from grid.results import Quantity, Row, pooled
from raydpo.evaluation.comparison import dominance
from raydpo.evaluation.metrics import Z_95, Floats
from raydpo.evaluation.paired import holm, percentile_interval, resampled_means, swap_p_value
from seeds.estimates import two_way_mean

Json = dict[str, Any]

#: Bootstrap resamples, and exchanges of the swap test.
RESAMPLES: Final = 10_000
_LEVEL: Final = 0.05


@dataclass(frozen=True)
class Setting:
    """A policy's recipe with its rows, one for each seed.

    Attributes:
        rows: in the order of seeds.
    """

    rows: tuple[Row, ...]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.rows[0].method

    @property
    def strength(self) -> str:
        """The strength, with the number of rounds if there are any."""
        first = self.rows[0]
        return first.strength if first.rounds is None else f"{first.strength}, round {first.rounds}"

    @property
    def label(self) -> str:
        """Method and strength."""
        return f"{self.method} {self.strength}".strip()

    @property
    def seeds(self) -> list[int]:
        """The seeds that have a row."""
        return [row.seed for row in self.rows]

    def mean(self, quantity: Quantity) -> float:
        """Return the mean over all completions of all seeds."""
        return pooled(self.rows, quantity).mean

    def half_width(self, quantity: Quantity) -> float | None:
        """Return half the width of a 95 % interval of the mean, clustered by prompt and by seed.

        With one seed it says nothing of seeds; see `two_way_mean`.
        """
        values: list[float] = []
        for row in self.rows:
            column = row.clusters(quantity)
            values += (column.sums / column.sizes).tolist()
        prompts = [prompt for row in self.rows for prompt in row.prompts]
        seeds = [str(row.seed) for row in self.rows for _ in row.prompts]
        found = two_way_mean(values, prompts, seeds)
        return None if found.standard_error is None else Z_95 * found.standard_error

    def average(self, value: Callable[[Row], float | None]) -> tuple[float, float, float] | None:
        """Return mean, least and largest over seeds of a number of each row; None if it has none."""
        found = [number for row in self.rows if (number := value(row)) is not None]
        return (fmean(found), min(found), max(found)) if found else None


def settings_of(rows: Sequence[Row]) -> list[Setting]:
    """Group rows by method, strength and rounds, in the order of first appearance."""
    found: dict[tuple[str, str, int | None], dict[int, Row]] = {}
    for row in rows:
        found.setdefault((row.method, row.strength, row.rounds), {})[row.seed] = row
    return [Setting(tuple(of[seed] for seed in sorted(of))) for of in found.values()]


def last_policies(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings whose policy is the last of its run, for every seed."""
    return [setting for setting in settings if all(row.last for row in setting.rows)]


@dataclass(frozen=True)
class Meeting:
    """Two settings compared over the prompts and seeds of both.

    Attributes:
        first: the label of one.
        second: that of the other.
        score: judge score of the first less that of the second: mean and `ci95`.
        kl: the same of the KL in nats.
        p_holm: of the swap test on the score, adjusted for all meetings.
        dominates: the label of the one with the higher score at the smaller KL, if there is one.
        beyond_chance: both intervals exclude 0, p_holm is under 0.05, and it dominates in every
            seed.
        seeds: in how many seeds it dominates, of how many.
    """

    first: str
    second: str
    score: Json
    kl: Json
    p_holm: float
    dominates: str | None
    beyond_chance: bool
    seeds: tuple[int, int]


def meetings(settings: Sequence[Setting], resamples: int = RESAMPLES) -> list[Meeting]:
    """Compare each setting with each later one, paired by prompt, seeds together."""
    columns = [pooled(s.rows, quantity) for s in settings for quantity in ("score", "kl")]
    drawn = resampled_means(columns, resamples, seed=0)
    pairs = [*itertools.combinations(range(len(settings)), 2)]
    p_values = [swap_p_value(columns[2 * a], columns[2 * b], resamples, seed=0) for a, b in pairs]
    found: list[Meeting] = []
    for (a, b), p in zip(pairs, holm(p_values), strict=True):
        one, two = settings[a], settings[b]
        score, kl = (
            _difference(
                columns[2 * a + q].mean - columns[2 * b + q].mean,
                drawn[:, 2 * a + q] - drawn[:, 2 * b + q],
            )
            for q in (0, 1)
        )
        names = {"first": one.label, "second": two.label}
        said = dominance(
            names, {"score_difference": score, "kl_nats_per_completion_difference": kl}
        )
        winner: str | None = said["dominates"]
        better, worse = (one, two) if winner == one.label else (two, one)
        wins, shared = _seeds_agree(better, worse) if winner else (0, 0)
        found.append(
            Meeting(
                one.label,
                two.label,
                score,
                kl,
                p,
                winner,
                bool(said["beyond_chance"]) and p < _LEVEL and wins == shared,
                (wins, shared),
            )
        )
    return found


def _difference(mean: float, drawn: Floats) -> Json:
    return {"mean": mean, "ci95": list(percentile_interval(drawn))}


def _seeds_agree(better: Setting, worse: Setting) -> tuple[int, int]:
    """Return in how many of the shared seeds one setting dominates the other."""
    theirs = {row.seed: row for row in worse.rows}
    shared = [(row, theirs[row.seed]) for row in better.rows if row.seed in theirs]
    wins = [a.mean("score") >= b.mean("score") and a.mean("kl") <= b.mean("kl") for a, b in shared]
    return sum(wins), len(shared)


@dataclass(frozen=True)
class AtKl:
    """The judge score of a method at a KL, by linear interpolation between its settings.

    Attributes:
        mean: the score.
        ci95: of resampled prompts.
    """

    mean: float
    ci95: tuple[float, float]


def score_at_kl(
    settings: Sequence[Setting], nats: Sequence[float], resamples: int = RESAMPLES
) -> list[AtKl | None]:
    """Interpolate the judge score of a method's settings at KLs in nats.

    Scores rise ever more slowly with KL, so a line between two settings lies below the curve.

    Returns:
        One for each of `nats`; None outside the KLs of the settings.
    """
    columns = [pooled(s.rows, q) for s in settings for q in ("kl", "score")]
    drawn = resampled_means(columns, resamples, seed=0)
    means = np.array([[column.mean for column in columns]])
    found: list[AtKl | None] = []
    for kl in nats:
        if not means[0, ::2].min() <= kl <= means[0, ::2].max():
            found.append(None)
            continue
        at = np.array([_interpolated(row, kl) for row in drawn])
        found.append(AtKl(_interpolated(means[0], kl), percentile_interval(at)))
    return found


def _interpolated(row: Floats, kl: float) -> float:
    """Interpolate in [kl, score, kl, score, ...]."""
    order = np.argsort(row[::2])
    return float(np.interp(kl, row[::2][order], row[1::2][order]))
