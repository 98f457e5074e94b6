"""What the kept results say: ratios, memory, where the time went, whether both learned the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmark.machine import Noise

Results = dict[str, dict[str, Any]]

SIDES: Final = ("ours", "theirs")
#: Standard errors that the judge's scores of both sides may lie apart.
_MOST_ERRORS = 2.0


def run_name(repeat: int, side: str) -> str:
    """The name of a run among the kept results."""
    return f"repeat {repeat}, {side}"


def judge_name(repeat: int) -> str:
    """The name of a judgement among the kept results."""
    return f"repeat {repeat}, judge"


def seconds_after(result: dict[str, Any], rounds: int) -> float:
    """Wall time of a command of so many rounds, from a run of as many or more.

    It is the time to the end of that round, and what the command takes to end after its last one:
    neither side does anything before for the rounds that follow.
    """
    ends: list[float] = result["ends"]
    return ends[rounds - 1] + result["seconds"] - ends[-1]


@dataclass(frozen=True)
class Ratio:
    """Wall times of both sides.

    Attributes:
        rounds: of a command.
        ours, theirs: seconds of each repeat, in its order.
    """

    rounds: int
    ours: list[float]
    theirs: list[float]

    @property
    def each(self) -> list[float]:
        """Their time over ours, of each repeat."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def median(self) -> float:
        """The median over the repeats."""
        return statistics.median(self.each)


@dataclass(frozen=True)
class Judged:
    """The judge's scores of both sides' policies on the same held-out prompts.

    Attributes:
        original: mean score of the model that both began with.
        ours, theirs: mean scores over prompts and repeats.
        difference: ours - theirs.
        standard_error: the larger of that over prompts and that over repeats.
        repeats: how many pairs of policies.
    """

    rounds: int
    original: float
    ours: float
    theirs: float
    difference: float
    standard_error: float
    repeats: int

    @property
    def same(self) -> bool:
        """Whether the difference is within the error, so that both did the same work."""
        return abs(self.difference) <= _MOST_ERRORS * self.standard_error


def repeats_of(results: Results) -> list[int]:
    """The repeats that both sides have run."""
    found: list[int] = []
    while all(run_name(len(found), side) in results for side in SIDES):
        found.append(len(found))
    return found


def ratio(results: Results, rounds: int) -> Ratio | None:
    """Wall times of so many rounds of the repeats that both sides have run; None without any."""
    repeats = repeats_of(results)
    if not repeats:
        return None
    ours, theirs = (
        [seconds_after(results[run_name(repeat, side)], rounds) for repeat in repeats]
        for side in SIDES
    )
    return Ratio(rounds, ours, theirs)


def phases(results: Results, side: str) -> dict[str, float]:
    """Median seconds of each phase over the repeats of one side, the longest first."""
    found: dict[str, list[float]] = {}
    own = [results[run_name(repeat, side)] for repeat in repeats_of(results)]
    for result in own:
        for name in result["phases"]:
            found.setdefault(name, [])
    for name, values in found.items():
        values += [result["phases"].get(name, 0.0) for result in own]
    medians = {name: statistics.median(values) for name, values in found.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def peak_bytes(results: Results, side: str) -> float | None:
    """Median over the repeats of the peak memory of a side's processes together."""
    peaks = [noise.peak_bytes for noise in noises(results, (side,))]
    known = [peak for peak in peaks if peak is not None]
    return statistics.median(known) if known else None


def noises(results: Results, sides: Iterable[str] = SIDES) -> list[Noise]:
    """The machine during each run."""
    return [
        Noise(**results[run_name(repeat, side)]["noise"])
        for repeat in repeats_of(results)
        for side in sides
    ]


def cpu_seconds(results: Results, side: str) -> float:
    """Median over the repeats of the processor time of a side's processes together."""
    return statistics.median(n.own_cpu_seconds or 0.0 for n in noises(results, (side,)))


def cpu_ratio(results: Results) -> list[float]:
    """Their processor time over ours, of each repeat."""
    ours, theirs = (noises(results, (side,)) for side in SIDES)
    pairs = zip(ours, theirs, strict=True)
    return [(b.own_cpu_seconds or 0.0) / (a.own_cpu_seconds or 1.0) for a, b in pairs]


def processes(results: Results, side: str) -> dict[str, float]:
    """Median processor time of a side's processes by their titles, the largest first."""
    found: dict[str, list[float]] = {}
    own = noises(results, (side,))
    for title in {title for noise in own for title in noise.cpu_seconds}:
        found[title] = [noise.cpu_seconds.get(title, 0.0) for noise in own]
    medians = {title: statistics.median(values) for title, values in found.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def counts(results: Results, side: str) -> dict[str, list[int]]:
    """Completions, pairs and steps of each round, of the first repeat."""
    return results[run_name(0, side)]["counts"]


def judged(results: Results, rounds: int) -> Judged | None:
    """The judge's scores of both sides after so many rounds; None if nothing was judged."""
    found = [
        results[judge_name(repeat)][str(rounds)]
        for repeat in repeats_of(results)
        if judge_name(repeat) in results
    ]
    if not found:
        return None
    each = [[a - b for a, b in zip(one["ours"], one["theirs"], strict=True)] for one in found]
    of_prompts = [statistics.fmean(values) for values in zip(*each, strict=True)]
    of_repeats = [statistics.fmean(values) for values in each]
    return Judged(
        rounds=rounds,
        original=_mean(one["original"] for one in found),
        ours=_mean(one["ours"] for one in found),
        theirs=_mean(one["theirs"] for one in found),
        difference=statistics.fmean(of_prompts),
        standard_error=max(_error(of_prompts), _error(of_repeats)),
        repeats=len(found),
    )


def _mean(scores: Iterable[list[float]]) -> float:
    return statistics.fmean(statistics.fmean(values) for values in scores)


def _error(values: Sequence[float]) -> float:
    """Standard error of a mean; 0 where there is one value only."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
