"""Run small stages on the driver, part by part, as `parts.py` runs large ones on Ray Data.

A stage either maps the parts of its input tables one by one, or makes its parts in order from
something else. Both keep the parts that an interrupted run has left, keep to the same budget of
refused rows, and log the same lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from raydpo.core.parts import (
    PartStage,
    Table,
    Transform,
    commit_table,
    make_part,
    missing_parts,
    open_table,
)
from raydpo.core.progress import logger
from raydpo.core.run import PartResult, Stage, finished_parts, write_part

_SECONDS_BETWEEN_LINES: Final = 5.0


def map_on_driver(stage: Stage, transform: Transform, *sources: Table) -> Table:
    """Make each part of a table from the same part of its sources.

    Args:
        stage: the table to make, and what it is made from.
        transform: takes the rows of one part of each source, and returns the new part.
        sources: finished tables with equally many parts.

    Raises:
        QuarantineBudgetError: too many rows were refused.
    """
    if (table := open_table(stage)) is not None:
        return table
    part_stage = PartStage(stage, list(sources))
    for index in missing_parts(part_stage):
        make_part(part_stage, index, transform)
    return commit_table(stage, part_stage.parts)


def write_on_driver(
    stage: Stage,
    results: Callable[[], Iterable[PartResult]],
    check: Callable[[dict[str, int]], None] = lambda counts: None,
) -> Table:
    """Write the parts of a table in their order, one part in memory at a time.

    Args:
        stage: the table to make, and what it is made from.
        results: gives all parts; called only when the stage is not finished. Equal inputs give
            equal parts, so those that an interrupted run has left stay.
        check: may refuse the counts of the whole table before the stage is finished.

    Raises:
        QuarantineBudgetError: too many rows were refused.
    """
    if (table := open_table(stage)) is not None:
        return table
    finished = finished_parts(stage)
    if finished:
        text = "[%s] goes on: %d parts were done before"
        logger.info(text, stage.place.label, len(finished))
    started = said = time.monotonic()
    parts = rows_read = 0
    for index, result in enumerate(results()):
        parts = index + 1
        if index not in finished:
            write_part(stage, index, result)
        rows_read += result.counts.get("input", 0)
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            rate = rows_read / (said - started)
            logger.info("[%s] %d rows read, %.0f/s", stage.place.label, rows_read, rate)
    return commit_table(stage, parts, check)
