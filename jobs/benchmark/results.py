"""The results of the measurements: ratios, pairs per second, memory, share of the peak.

An experiment and its runs give a row of the table for each contender. A ratio is the median, over
the turns, of two contenders' times in the same turn.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from . import flops
from .data import Row, group_rows, part_rows, step_rows
from .processes import BenchmarkError, Runs
from .scenarios import Experiment
from .spec import Scenario

#: AdamW's two moments in float32: the same for everyone, and no part of a step's memory.
_MOMENT_BYTES = 8
#: How far losses, or sums of log-probs, may differ between contenders, relative.
_TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}


@dataclass(frozen=True)
class Measured:
    """One contender in one scenario.

    Attributes:
        scenario: its name.
        contender: its name.
        step_seconds: median time of a train step, or of scoring a part.
        pairs_per_second: pairs trained on; completions, where a reference is scored.
        times_ours: median over the turns of its time over ours; 1 for ours.
        step_megabytes: peak memory of a step beyond the model and AdamW's moments; None
            where the process was not new or does not train.
        growth_megabytes: the same with the moments.
        flop_fraction: median of useful operations a second over the peak beside it.
        losses: of the first steps; sums of log-probs, where a reference is scored.
    """

    scenario: str
    contender: str
    step_seconds: float
    pairs_per_second: float
    times_ours: float | None
    step_megabytes: float | None
    growth_megabytes: float | None
    flop_fraction: float | None
    losses: list[float]


def measured(experiment: Experiment, runs: list[Runs]) -> list[Measured]:
    """A row for each contender.

    Raises:
        BenchmarkError: the contenders did not compute the same.
    """
    check_agreement(experiment.scenario, runs)
    useful = useful_flops(experiment)
    ours = next((r for r in runs if r.peak_flops), None)
    return [_row(experiment, one, ours, useful) for one in runs]


def check_agreement(scenario: Scenario, runs: list[Runs]) -> None:
    """Hold the first losses of all contenders against the first contender's.

    A benchmark of different computations is worth nothing.
    """
    limit = _TOLERANCE[scenario.precision]
    for other in runs[1:]:
        for step, (a, b) in enumerate(zip(runs[0].losses, other.losses, strict=True)):
            if not abs(a - b) <= limit * abs(a):
                raise BenchmarkError(
                    f"{scenario.name}, step {step + 1}: {runs[0].contender.name} has {a:.6g}, "
                    f"{other.contender.name} has {b:.6g}",
                    f"all compute the same loss (within {limit:g}, relative)",
                    "find out which one is wrong before anything is compared",
                )


def useful_flops(experiment: Experiment) -> list[int]:
    """Useful operations of each turn; see `flops`."""
    scenario, turns = experiment.scenario, experiment.turns
    rows = group_rows(scenario)
    return [
        sum(
            _unit_flops(experiment, rows, turns.warm_up + turn * turns.count + number)
            for number in range(turns.count)
        )
        for turn in range(turns.repeats)
    ]


def _unit_flops(experiment: Experiment, rows: list[Row], number: int) -> int:
    scenario = experiment.scenario
    if experiment.scores:
        return flops.forward_flops(scenario.model, part_rows(scenario, rows, number))
    rank = experiment.contenders[0].lora_rank
    return flops.train_flops(scenario.model, step_rows(scenario, rows, number), rank)


def _row(experiment: Experiment, runs: Runs, ours: Runs | None, useful: list[int]) -> Measured:
    count = experiment.turns.count
    seconds = statistics.median(runs.seconds) / count
    memory = experiment.fresh and not experiment.scores
    moments = _MOMENT_BYTES * runs.parameters
    return Measured(
        scenario=experiment.scenario.name,
        contender=runs.contender.name,
        step_seconds=seconds,
        pairs_per_second=experiment.units_per_step / seconds,
        times_ours=_ratio(runs, ours) if ours else None,
        step_megabytes=(runs.growth_bytes - moments) / 1e6 if memory else None,
        growth_megabytes=runs.growth_bytes / 1e6 if memory else None,
        flop_fraction=_fraction(runs, ours, useful) if ours else None,
        losses=runs.losses[: experiment.turns.warm_up],
    )


def _ratio(runs: Runs, ours: Runs) -> float:
    return statistics.median(a / b for a, b in zip(runs.seconds, ours.seconds, strict=True))


def _fraction(runs: Runs, ours: Runs, useful: list[int]) -> float:
    """Compare every contender with the peak that was measured in the same turn."""
    turns = zip(useful, runs.seconds, ours.peak_flops, strict=True)
    return statistics.median(work / seconds / peak for work, seconds, peak in turns)
