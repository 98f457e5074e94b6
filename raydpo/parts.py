"""Part-wise stages on Ray Data: every missing part is read, transformed and committed.

What comes in: finished input tables with equally many parts. What goes out: the
manifest of the stage. The driver sees part numbers and counts only, never rows, so its
memory and Ray's object store stay flat however long the tables are. Work on a part is
at-least-once and writes the same bytes each time.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec

import ray.data

from raydpo.attempts import attempted, forget_attempts
from raydpo.cut_counts import cut_warnings
from raydpo.errors import QuarantineBudgetError, RaydpoError, own_errors
from raydpo.notices import notices_shown, telling
from raydpo.progress import Progress, logger
from raydpo.run import (
    PartResult,
    Stage,
    commit,
    finished_parts,
    open_stage,
    part_entry,
    part_hashes,
    read_part,
    write_part,
)
from raydpo.storage import Folder, table_from_parquet
from raydpo.tables import Row

P = ParamSpec("P")

#: Characters of a reason that a message shows.
_LONGEST_REASON: Final = 300
#: Rows of one part of each input table -> what the stage makes of them.
Transform = Callable[..., PartResult]


@dataclass(frozen=True)
class Table:
    """A finished stage's table: its folder and its manifest."""

    folder: Folder
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of the table's content."""
        return self.manifest["fingerprint"]

    def part(self, index: int) -> list[Row]:
        """The rows of one part, in order."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[list[Row], str]:
        """The rows of one part, in order, and the hash of its file."""
        rows = read_part(self.folder, self.manifest, index).to_pylist()
        return rows, part_entry(self.manifest, index)["sha256"]

    def part_hashes(self) -> dict[int, str]:
        """Hashes of the files of all parts that are there, by part number."""
        return part_hashes(self.manifest)


@dataclass(frozen=True)
class Target:
    """A table to make: its folder, the table it is made from, and what the log calls it.

    `samples` are the candidates that the source was made from, where it was and has their parts.
    """

    folder: Folder
    source: Table
    what: str
    samples: Table | None = None


@dataclass(frozen=True)
class Workers:
    """Ray Data workers of a stage: how many, and what each holds."""

    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    environment: tuple[tuple[str, str], ...] = ()

    def resources(self) -> dict[str, Any]:
        """Keyword arguments of a Ray task or actor."""
        arguments: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.environment:
            arguments["runtime_env"] = {"env_vars": dict(self.environment)}
        return arguments


@dataclass(frozen=True)
class PartJob:
    """What the workers of a stage do with a part, and how many workers there are.

    Attributes:
        make_transform: called in a worker before its first part; picklable.
        workers: how many, and what each holds.
        identity: hash of all that the transform depends on, weights as well. A process that
            has made it uses it again, in this stage and in others; without it, workers are
            this stage's own.
    """

    make_transform: Callable[[], Transform]
    workers: Workers
    identity: str | None = None


@dataclass(frozen=True)
class Witness:
    """A table that each part's result is held against before it is written.

    Attributes:
        table: with as many parts as the inputs, none of which depends on it alone.
        hold: given the rows of its part, of the first input's, and the result, it returns the
            result with what it found, or refuses it by a RaydpoError; picklable.
    """

    table: Table
    hold: Callable[[list[Row], list[Row], PartResult], PartResult]


@dataclass(frozen=True)
class PartStage:
    """A stage whose part i is made from the parts i of its inputs.

    Attributes:
        stage: what is made, and from what.
        inputs: finished tables with equally many parts.
        what: the stage and round, for the log.
        witness: what each part is held against.
    """

    stage: Stage
    inputs: list[Table]
    what: str
    witness: Witness | None = None

    @property
    def parts(self) -> int:
        """How many parts the stage has."""
        return self.inputs[0].manifest["parts"]

    def finished_parts(self) -> set[int]:
        """Numbers of the parts that were made before, from the inputs' parts as they are now."""
        hashes = [table.part_hashes() for table in self.inputs]
        there = set.intersection(*(set(of) for of in hashes))
        return set(finished_parts(self.stage, {i: [of[i] for of in hashes] for i in there}))

    @property
    def rows(self) -> int:
        """Rows of its first input."""
        return self.inputs[0].manifest["counts"]["output"]


@dataclass(frozen=True)
class PartWork:
    """Stages to bring to their end by workers that do the same for all of them.

    Attributes:
        stages: what is made, one after the other.
        open_job: given the number of missing parts, holds open what the workers need and says
            what they do; not called where nothing is missing.
        max_quarantined_fraction: see `check_quarantine_budget`.
    """

    stages: list[PartStage]
    open_job: Callable[[int], AbstractContextManager[PartJob]]
    max_quarantined_fraction: float


def part_work(stages: list[PartStage], job: PartJob, max_quarantined_fraction: float) -> PartWork:
    """Work whose workers need nothing that is held open while they work."""
    return PartWork(stages, lambda missing: nullcontext(job), max_quarantined_fraction)


def to_table(make_work: Callable[P, PartWork]) -> Callable[P, Table]:
    """A function that brings the work on one stage to its end, from one that says what it is."""

    @functools.wraps(make_work)
    def finish(*arguments: P.args, **named: P.kwargs) -> Table:
        return run_work(make_work(*arguments, **named))[0]

    return finish


def run_work(work: PartWork) -> list[Table]:
    """Bring stages to their end: do the parts that are missing, then commit.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    tables = [_finished(stage, work.max_quarantined_fraction) for stage in work.stages]
    missing = [
        (number, index)
        for number, (stage, table) in enumerate(zip(work.stages, tables, strict=True))
        if table is None
        for index in _missing_parts(stage)
    ]
    if missing:
        with work.open_job(len(missing)) as job:
            _map_missing(work.stages, job, missing)
    return [
        table or _commit(stage, work.max_quarantined_fraction)
        for stage, table in zip(work.stages, tables, strict=True)
    ]


def _finished(part_stage: PartStage, max_quarantined_fraction: float) -> Table | None:
    """The stage's table, if there is nothing to do; else the stage is open."""
    stage, what = part_stage.stage, part_stage.what
    manifest = open_stage(stage)
    if manifest is None:
        return None
    check_quarantine_budget(stage, manifest["counts"], max_quarantined_fraction)
    logger.info("[%s] nothing to do: %s", what, describe_counts(manifest))
    return Table(stage.folder, manifest)


def _missing_parts(part_stage: PartStage) -> list[int]:
    total, done = part_stage.parts, part_stage.finished_parts()
    if 0 < len(done) < total:
        text = "[%s] goes on: %d of %d parts were done before"
        logger.info(text, part_stage.what, len(done), total)
    return [index for index in range(total) if index not in done]


def _commit(part_stage: PartStage, max_quarantined_fraction: float) -> Table:
    stage = part_stage.stage
    manifest = commit(
        stage,
        {},
        parts=part_stage.parts,
        check=lambda counts: check_quarantine_budget(stage, counts, max_quarantined_fraction),
    )
    logger.info("[%s] done: %s", part_stage.what, describe_counts(manifest))
    warn_of_cuts(part_stage.what, manifest)
    return Table(stage.folder, manifest)


def check_quarantine_budget(
    stage: Stage, counts: dict[str, int], max_quarantined_fraction: float
) -> None:
    """Stop where a larger share of the input was refused than the run allows.

    Raises:
        QuarantineBudgetError: the share, the limit and where the rows are.
    """
    refused, rows = counts.get("quarantined", 0), counts["input"]
    if refused > max_quarantined_fraction * rows:
        raise QuarantineBudgetError(
            f"the {stage.name} stage refused {refused} of {rows} rows ({refused / rows:.2%})"
            + _commonest_reason(stage),
            f"at most {max_quarantined_fraction:.2%} may be refused (max_quarantined_fraction)",
            f"read the reasons in {stage.folder.uri}/quarantine, mend the input or raise the limit",
        )


def warn_of_cuts(what: str, manifest: dict[str, Any]) -> None:
    """Say in the log where many texts of a stage were cut short."""
    for line in cut_warnings(manifest["counts"]):
        logger.warning("[%s] %s", what, line)


def _commonest_reason(stage: Stage) -> str:
    """Why most of a stage's rows were refused, as a line of a message; empty where nothing says."""
    folder = stage.folder.child("quarantine")
    reasons: Counter[str] = Counter()
    for name in folder.files():
        if name.startswith("part-"):
            table = table_from_parquet(folder.read_bytes(name), f"{folder.uri}/{name}")
            reasons.update(str(row["reason"]) for row in table.to_pylist())
    if not reasons:
        return ""
    [(reason, count)] = reasons.most_common(1)
    return f"\n    most often ({count}): {reason[:_LONGEST_REASON]}"


def describe_counts(manifest: dict[str, Any]) -> str:
    """The counts of a manifest in one line."""
    return ", ".join(f"{name} {count}" for name, count in manifest["counts"].items())


#: The transform that this process made last for a kind of stage, with its identity: one of each
#: kind at a time, since models are large.
_kept: dict[str, tuple[str, Transform]] = {}


def kept_transform(kind: str, identity: str, make_transform: Callable[[], Transform]) -> Transform:
    """The transform of that kind and identity: as this process made it before, or made now."""
    if kind not in _kept or _kept[kind][0] != identity:
        _kept.pop(kind, None)
        _kept[kind] = (identity, make_transform())
    return _kept[kind][1]


class _PartWorker:
    """Transforms and commits the parts whose numbers it is given, but for those that are done."""

    def __init__(
        self,
        stages: list[PartStage],
        make_transform: Callable[[], Transform],
        done: frozenset[int] = frozenset(),
    ) -> None:
        self.stages = stages
        self.done = done
        try:
            self.transform = make_transform()
        except RaydpoError as error:  # from a constructor, only its text would reach the driver
            self.transform = functools.partial(_raise, error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        numbers, parts = ([int(n) for n in batch[column]] for column in ("stage", "part"))
        rows = [self._one(number, part) for number, part in zip(numbers, parts, strict=True)]
        return {"stage": numbers, "part": parts, "rows": rows}

    def _one(self, number: int, index: int) -> int:
        if index in self.done:
            return 0
        stage = self.stages[number]
        part = f"part-{index:05d}"
        with attempted(stage.stage.folder, part, stage.what), telling(stage.stage.folder, part):
            return self._make(number, index)

    def _make(self, number: int, index: int) -> int:
        read = [table.read(index) for table in self.stages[number].inputs]
        tables = [rows for rows, _ in read]
        result = self.transform(*tables)
        if (witness := self.stages[number].witness) is not None:
            result = witness.hold(witness.table.part(index), tables[0], result)
        counts = {"input": len(tables[0]), **result.counts}
        made_from = [file_hash for _, file_hash in read]
        write_part(self.stages[number].stage, index, replace(result, counts=counts), made_from)
        return len(tables[0])


def _raise(error: RaydpoError, *_: list[Row]) -> PartResult:
    raise error


def _do_parts(
    batch: dict[str, Any], stages: list[PartStage], job: PartJob, done: frozenset[int]
) -> dict[str, list[int]]:
    """Ray Data task: what an actor does, with what this process has kept."""
    assert job.identity is not None
    kind = stages[0].stage.name
    make = functools.partial(kept_transform, kind, job.identity, job.make_transform)
    return _PartWorker(stages, make, done)(batch)


def _map_missing(stages: list[PartStage], job: PartJob, missing: list[tuple[int, int]]) -> None:
    """Let the workers do the missing parts: pairs of a stage's number and a part's."""
    progress = [_progress(stage, number, missing) for number, stage in enumerate(stages)]
    dataset = map_parts(numbered_parts(missing), len(missing), stages, job)
    for made in made_parts(dataset, stages):
        progress[made.stage].add(made.rows)


def numbered_parts(parts: list[tuple[int, int]]) -> ray.data.Dataset:
    """Pairs of a stage's number and a part's, as Ray Data hands them to workers one by one."""
    rows = [{"stage": number, "part": index} for number, index in parts]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def map_parts(
    parts: ray.data.Dataset,
    count: int,
    stages: list[PartStage],
    job: PartJob,
    done: frozenset[int] = frozenset(),
) -> ray.data.Dataset:
    """Let workers make these `count` parts, but for those `done`; part numbers go in and come out.

    Tasks, whose processes live on with what they have imported and loaded; Ray ends those that
    had a GPU, so that there actors keep the model through the stage.
    """
    size = min(job.workers.count, count)
    if job.identity is not None and not job.workers.gpus:
        compute: Any = ray.data.TaskPoolStrategy(size=size)
        worker = {"fn": _do_parts, "fn_args": (stages, job, done)}
    else:
        compute = ray.data.ActorPoolStrategy(size=size)
        arguments = (stages, job.make_transform, done)
        worker = {"fn": _PartWorker, "fn_constructor_args": arguments}
    return parts.map_batches(**worker, compute=compute, batch_size=1, **job.workers.resources())


@dataclass(frozen=True)
class MadePart:
    """A part that a worker has written: the number of its stage, its own, and rows it read."""

    stage: int
    part: int
    rows: int


def made_parts(dataset: ray.data.Dataset, stages: list[PartStage]) -> Generator[MadePart]:
    """The parts of these stages that workers write, each as soon as it is written.

    Ray Data's own iterators over rows hold one block back until the next is there.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    for stage in stages:
        forget_attempts(stage.stage.folder)
    with own_errors(), notices_shown([(stage.stage.folder, stage.what) for stage in stages]):
        batch: Any
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            columns = (batch[name] for name in ("stage", "part", "rows"))
            for numbers in zip(*columns, strict=True):
                yield MadePart(*map(int, numbers))


def _progress(stage: PartStage, number: int, missing: list[tuple[int, int]]) -> Progress:
    left = sum(of == number for of, _ in missing)
    done = stage.rows * (stage.parts - left) // max(1, stage.parts)
    return Progress(stage.what, "rows", stage.rows, done=done)
