"""Overlapping stages: one part is labelled while later parts are still being sampled.

A chain runs the work of several stages, each on the tables of the stages before it, and makes
their parts. It commits nothing. Afterwards each stage runs as usual, finds its parts, and writes
its manifest. So a run that stops anywhere resumes with or without the chain, with the same
tables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from raydpo.core.parts import (
    PartJob,
    PartStage,
    PartWork,
    Table,
    check_quarantine_budget,
    made_parts,
    map_parts,
    numbered_parts,
)
from raydpo.core.progress import Progress
from raydpo.core.run import Stage, finished_parts, open_stage, part_record, read_manifest, read_part
from raydpo.core.tables import Row


@dataclass(frozen=True)
class Stream(Table):
    """An unfinished table whose parts can be read as soon as they are written.

    Its manifest says how many parts there will be, and has no files.
    """

    stage: Stage

    def read(self, index: int) -> tuple[list[Row], str]:
        """The rows of a written part, in order, and their hash."""
        record = part_record(self.stage, index)
        manifest = {**self.manifest, "files": record["files"]}
        return read_part(self.folder, manifest, index).to_pylist(), record["content"]

    def part(self, index: int) -> list[Row]:
        """The rows of a written part, in order."""
        return self.read(index)[0]

    def part_hashes(self) -> dict[int, str]:
        """Hashes of the rows of the parts that an earlier run wrote, by part number."""
        return self._written_before

    @functools.cached_property
    def _written_before(self) -> dict[int, str]:
        """The hashes, read from the records once and kept for all stages that ask."""
        records = finished_parts(self.stage)
        return {index: record["content"] for index, record in records.items()}


def _stream(part_stage: PartStage) -> Stream:
    stage = part_stage.stage
    manifest: dict[str, Any] = {
        "table": stage.table,
        "parts": part_stage.parts,
        "fingerprint": "",  # a stage in the making is bound to its input's parts (`Stage.parts_of`)
    }
    return Stream(stage.folder, manifest, stage)


@dataclass
class _Budget:
    """Counts what the first stage of a chain refuses, so that the chain stops once it is too much."""

    part_stage: PartStage
    refused: dict[int, int] = field(default_factory=dict[int, int])

    def add(self, parts: Iterable[int]) -> None:
        """Count parts that are written.

        Raises:
            QuarantineBudgetError: too many rows were refused, whatever is still to come.
        """
        stage = self.part_stage.stage
        for index in parts:
            self.refused[index] = part_record(stage, index)["counts"]["quarantined"]
        counts = {"input": self.part_stage.rows, "quarantined": sum(self.refused.values())}
        check_quarantine_budget(stage, counts)


@dataclass
class Chain:
    """Stages, each of whose parts is made from parts of those before it.

    A chain ends before a stage that is finished although its inputs are not. Nobody knows yet
    whether that stage is stale.

    Args:
        what: the round and the stages, for the log.
    """

    what: str
    _works: list[PartWork] = field(default_factory=list[PartWork])
    _closed: bool = False

    def add(self, work: PartWork) -> Table:
        """Add a stage, and return its table, finished or unfinished."""
        [part_stage] = work.stages
        stage = part_stage.stage
        waits = any(isinstance(table, Stream) for table in part_stage.inputs)
        if waits and read_manifest(stage.folder) is not None:
            self._closed = True
        if not self._closed:
            manifest = open_stage(stage)
            if manifest is not None:
                return Table(stage.folder, manifest)
            self._works.append(work)
        return _stream(part_stage)

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Make all missing parts, each as soon as its input parts exist.

        Args:
            stop: asked now and then; once it is true the chain ends where it is, and the stages
                make the rest in turn.

        Returns:
            False where it was stopped.

        Raises:
            RaydpoError: raised in a worker, it arrives here as it was raised.
        """
        stages = [work.stages[0] for work in self._works]
        done = [frozenset(stage.finished_parts()) for stage in stages]
        missing = [
            sorted(set(range(stage.parts)) - d) for stage, d in zip(stages, done, strict=True)
        ]
        if sum(bool(parts) for parts in missing) < 2:
            return True  # nothing could be done at the same time
        budget = _Budget(stages[0])
        budget.add(done[0])
        with ExitStack() as opened:
            links: list[tuple[PartStage, PartJob, frozenset[int]]] = []
            for work, left, parts in zip(self._works, missing, done, strict=True):
                if left:
                    job = opened.enter_context(work.open_job(len(left)))
                    links.append((work.stages[0], job, parts))
            return self._flow(links, sorted(set[int]().union(*missing)), budget, stop)

    def _flow(
        self,
        links: list[tuple[PartStage, PartJob, frozenset[int]]],
        parts: list[int],
        budget: _Budget,
        stop: Callable[[], bool],
    ) -> bool:
        """Let Ray Data pass each part number from stage to stage, without waits between."""
        dataset = numbered_parts([(0, index) for index in parts])
        for part_stage, job, done in links:
            dataset = map_parts(dataset, len(parts), [part_stage], job, done)
        total = links[0][0].parts
        progress = Progress(self.what, "parts", total, done=total - len(parts))
        for made in made_parts(dataset, [(stage, job.workers) for stage, job, _ in links], stop):
            progress.add(1)
            budget.add([made.part])
        return progress.done == total
