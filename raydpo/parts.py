"""Part-wise stages on Ray Data: every missing part is read, transformed and committed.

What comes in: finished input tables with equally many parts. What goes out: the
manifest of the stage. The driver sees part numbers and counts only, never rows, so its
memory and Ray's object store stay flat however long the tables are. Work on a part is
at-least-once and writes the same bytes each time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from raydpo.errors import QuarantineBudgetError, RaydpoError
from raydpo.progress import Progress, logger
from raydpo.run import (
    PartResult,
    Stage,
    commit,
    finished_parts,
    open_stage,
    read_part,
    write_part,
)
from raydpo.storage import Folder
from raydpo.tables import Row

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
        return read_part(self.folder, self.manifest, index).to_pylist()


@dataclass(frozen=True)
class Target:
    """A table to make: its folder, the table it is made from, and what the log calls it."""

    folder: Folder
    source: Table
    what: str


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
class PartStage:
    """A stage whose part i is made from the parts i of its inputs.

    Attributes:
        stage: what is made, and from what.
        inputs: finished tables with equally many parts.
        what: the stage and round, for the log.
    """

    stage: Stage
    inputs: list[Table]
    what: str

    @property
    def parts(self) -> int:
        """How many parts the stage has."""
        return self.inputs[0].manifest["parts"]

    @property
    def rows(self) -> int:
        """Rows of its first input."""
        return self.inputs[0].manifest["counts"]["output"]


def run_parts(
    stage: Stage,
    inputs: list[Table],
    make_transform: Callable[[], Transform],
    workers: Workers,
    what: str,
    max_quarantined_fraction: float,
) -> Table:
    """Bring a stage to its end: do the parts that are missing, then commit.

    Args:
        stage: what is made, and from what.
        inputs: tables whose parts number i together make the stage's part i.
        make_transform: called once in each worker; picklable.
        workers: how many, and what each holds.
        what: the stage and round, for the log.
        max_quarantined_fraction: see `check_quarantine_budget`.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    stages = [PartStage(stage, inputs, what)]
    job = PartJob(make_transform, workers, stage.key)
    return run_stages(stages, job, max_quarantined_fraction)[0]


def run_stages(
    stages: list[PartStage], job: PartJob, max_quarantined_fraction: float
) -> list[Table]:
    """`run_parts` for several stages of one transform: one set of workers serves them all."""
    return run_stages_with(stages, lambda missing: nullcontext(job), max_quarantined_fraction)


def run_stages_with(
    stages: list[PartStage],
    open_job: Callable[[int], AbstractContextManager[PartJob]],
    max_quarantined_fraction: float,
) -> list[Table]:
    """`run_stages` whose workers need something that is held open while they work.

    Args:
        stages: what is made, one after the other.
        open_job: given the number of missing parts, holds open what the workers need and says
            what they do; not called where nothing is missing.
        max_quarantined_fraction: see `check_quarantine_budget`.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    finished = [_finished(stage, max_quarantined_fraction) for stage in stages]
    missing = [
        (number, index)
        for number, (stage, table) in enumerate(zip(stages, finished, strict=True))
        if table is None
        for index in _missing_parts(stage)
    ]
    if missing:
        with open_job(len(missing)) as job:
            _map_missing(stages, job, missing)
    return [
        table or _commit(stage, max_quarantined_fraction)
        for stage, table in zip(stages, finished, strict=True)
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
    total, finished = part_stage.parts, finished_parts(part_stage.stage)
    if finished:
        text = "[%s] goes on: %d of %d parts were done before"
        logger.info(text, part_stage.what, len(finished), total)
    return [index for index in range(total) if index not in finished]


def _commit(part_stage: PartStage, max_quarantined_fraction: float) -> Table:
    stage = part_stage.stage
    manifest = commit(
        stage,
        {},
        parts=part_stage.parts,
        check=lambda counts: check_quarantine_budget(stage, counts, max_quarantined_fraction),
    )
    logger.info("[%s] done: %s", part_stage.what, describe_counts(manifest))
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
            f"the {stage.name} stage refused {refused} of {rows} rows ({refused / rows:.2%})",
            f"at most {max_quarantined_fraction:.2%} may be refused (max_quarantined_fraction)",
            f"read the reasons in {stage.folder.uri}/quarantine, mend the input or raise the limit",
        )


def describe_counts(manifest: dict[str, Any]) -> str:
    """The counts of a manifest in one line."""
    return ", ".join(f"{name} {count}" for name, count in manifest["counts"].items())


@contextmanager
def own_errors() -> Generator[None]:
    """Inside the block, a raydpo error that Ray wrapped is raised as it was in the worker.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    try:
        yield
    except Exception as error:
        own = _own_error(error)
        if own is None:
            raise
        raise own from error


def _own_error(error: BaseException) -> RaydpoError | None:
    """The raydpo error inside an exception that Ray wrapped, if there is one."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        if isinstance(current, RaydpoError):
            return current
        seen.add(id(current))
        pending += [getattr(current, "cause", None), current.__cause__, current.__context__]
        pending += getattr(current, "worker_failures", {}).values()  # of Ray Train
    return None


#: The transform that this process made last, by its identity: one at a time, models are large.
_kept: dict[str, Transform] = {}


def kept_transform(identity: str, make_transform: Callable[[], Transform]) -> Transform:
    """The transform of that identity: as this process made it before, or made now."""
    if identity not in _kept:
        _kept.clear()
        _kept[identity] = make_transform()
    return _kept[identity]


class _PartWorker:
    """Transforms and commits the parts whose numbers it is given."""

    def __init__(self, stages: list[PartStage], make_transform: Callable[[], Transform]) -> None:
        self.stages = stages
        try:
            self.transform = make_transform()
        except RaydpoError as error:  # from a constructor, only its text would reach the driver
            self.transform = functools.partial(_raise, error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        numbers = [int(number) for number in batch["stage"]]
        parts = zip(numbers, batch["part"], strict=True)
        return {"stage": numbers, "rows": [self._one(number, int(part)) for number, part in parts]}

    def _one(self, number: int, index: int) -> int:
        tables = [table.part(index) for table in self.stages[number].inputs]
        result = self.transform(*tables)
        counts = {"input": len(tables[0]), **result.counts}
        stage = self.stages[number].stage
        write_part(stage, index, PartResult(result.rows, result.quarantined, counts))
        return len(tables[0])


def _raise(error: RaydpoError, *_: list[Row]) -> PartResult:
    raise error


def _do_parts(batch: dict[str, Any], stages: list[PartStage], job: PartJob) -> dict[str, list[int]]:
    """Ray Data task: what an actor does, with what this process has kept."""
    assert job.identity is not None
    make = functools.partial(kept_transform, job.identity, job.make_transform)
    return _PartWorker(stages, make)(batch)


def _map_missing(stages: list[PartStage], job: PartJob, missing: list[tuple[int, int]]) -> None:
    """Let the workers do the missing parts: pairs of a stage's number and a part's."""
    progress = [_progress(stage, number, missing) for number, stage in enumerate(stages)]
    dataset = ray.data.from_items(
        [{"stage": number, "part": index} for number, index in missing],
        override_num_blocks=len(missing),
    ).map_batches(batch_size=1, **_mapped(stages, job), **job.workers.resources())
    with own_errors():
        for row in dataset.iter_rows():
            progress[int(row["stage"])].add(int(row["rows"]))


def _mapped(stages: list[PartStage], job: PartJob) -> dict[str, Any]:
    """What Ray Data maps with.

    Tasks, whose processes live on with what they have imported and loaded; Ray ends those that
    had a GPU, so that there actors keep the model through the stage.
    """
    size = job.workers.count
    if job.identity is not None and not job.workers.gpus:
        compute = ray.data.TaskPoolStrategy(size=size)
        return {"fn": _do_parts, "fn_args": (stages, job), "compute": compute}
    arguments = (stages, job.make_transform)
    compute = ray.data.ActorPoolStrategy(size=size)
    return {"fn": _PartWorker, "fn_constructor_args": arguments, "compute": compute}


def _progress(stage: PartStage, number: int, missing: list[tuple[int, int]]) -> Progress:
    left = sum(of == number for of, _ in missing)
    done = stage.rows * (stage.parts - left) // max(1, stage.parts)
    return Progress(stage.what, "rows", stage.rows, done=done)
