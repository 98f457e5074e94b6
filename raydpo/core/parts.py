"""Run stages part by part on Ray Data: read, transform and commit every missing part.

The input tables are finished and have equally many parts; the result is the stage's manifest. The
driver sees only part numbers and counts, never rows, so its memory and Ray's object store stay
flat for tables of any length. Work on a part runs at least once and writes the same bytes each
time.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec

import ray.data

from raydpo.core.attempts import attempted, forget_attempts
from raydpo.core.cut_counts import cut_warnings
from raydpo.core.errors import QuarantineBudgetError, RaydpoError, own_errors
from raydpo.core.fingerprints import Fingerprint
from raydpo.core.judge_costs import cost_lines
from raydpo.core.notices import notices_shown, telling
from raydpo.core.place import Place
from raydpo.core.position_bias import position_lines
from raydpo.core.progress import Progress, logger
from raydpo.core.pulse import Watch, Watched, beating, watching
from raydpo.core.run import (
    PartResult,
    Stage,
    commit,
    finished_parts,
    open_stage,
    part_hashes,
    read_part,
    write_part,
)
from raydpo.core.storage import Folder, table_from_parquet
from raydpo.core.tables import Row
from raydpo.core.waiting import Obstacle, holders, waiting

P = ParamSpec("P")

#: How long a worker may show no sign of life where no setting speaks of it.
ANSWER_WITHIN_SECONDS: Final = 300.0
#: Characters of a reason that a message shows.
_LONGEST_REASON: Final = 300
_SECONDS_BETWEEN_LOOKS: Final = 1.0
#: Rows of one part of each input table -> what the stage makes of them.
Transform = Callable[..., PartResult]


@dataclass(frozen=True)
class Table:
    """A finished stage's table: its folder and its manifest."""

    folder: Folder
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of the table's rows in order, whatever its parts."""
        counts = self.manifest.get("counts", {})
        rows = {"rows": counts["output"]} if "output" in counts else {}
        return Fingerprint(self.manifest["fingerprint"], rows)

    def part(self, index: int) -> list[Row]:
        """The rows of one part, in order."""
        return read_part(self.folder, self.manifest, index).to_pylist()

    def read(self, index: int) -> tuple[list[Row], str]:
        """The rows of one part, in order, and their hash."""
        records = self.manifest["part_records"]
        return self.part(index), next(r["content"] for r in records if r["part"] == index)

    def part_hashes(self) -> dict[int, str]:
        """Hashes of the rows of all parts that are there, by part number."""
        return part_hashes(self.manifest)


def hashes_by_part(*tables: Table) -> dict[int, list[str]]:
    """Hashes of the rows of the parts that all these tables have, by part number."""
    hashes = [table.part_hashes() for table in tables]
    there = set.intersection(*(set(of) for of in hashes))
    return {index: [of[index] for of in hashes] for index in sorted(there)}


@dataclass(frozen=True)
class Target:
    """A table to make: its place, and the table that it is made from.

    `samples` are the candidates that the source was made from, if it has the same parts as they.
    """

    place: Place
    source: Table
    samples: Table | None = None


@dataclass(frozen=True)
class Workers:
    """Ray Data workers of a stage: how many, and what each holds.

    If a worker shows no sign of life for `answer_within_seconds`, raydpo ends it, and another one
    makes its part. `answer_setting` is the name of that limit in the configuration.
    """

    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    environment: tuple[tuple[str, str], ...] = ()
    answer_within_seconds: float = ANSWER_WITHIN_SECONDS
    answer_setting: str = "raydpo's own limit for this stage"

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
        identity: hash of everything that the transform depends on, such as weights. With it, a
            process keeps the transform for later parts and stages. Without it, the workers end
            with this stage.
    """

    make_transform: Callable[[], Transform]
    workers: Workers
    identity: str | None = None


@dataclass(frozen=True)
class Witness:
    """A table that each part's result is compared with before it is written.

    Attributes:
        table: a table with as many parts as the inputs.
        hold: takes the rows of this table's part, the rows of the first input's part, and the
            result. It returns the result with what it found, or raises a RaydpoError. Picklable.
    """

    table: Table
    hold: Callable[[list[Row], list[Row], PartResult], PartResult]


@dataclass(frozen=True)
class PartStage:
    """A stage whose part i is made from the parts i of its inputs.

    Attributes:
        stage: what is made, and from what.
        inputs: finished tables with equally many parts.
        witness: what each part is compared with.
    """

    stage: Stage
    inputs: list[Table]
    witness: Witness | None = None

    @property
    def label(self) -> str:
        """The stage and round, for the log."""
        return self.stage.place.label

    @property
    def parts(self) -> int:
        """How many parts the stage has."""
        return self.inputs[0].manifest["parts"]

    def finished_parts(self) -> set[int]:
        """Numbers of the parts that were made before, from the inputs' parts as they are now."""
        return set(finished_parts(self.stage, hashes_by_part(*self.inputs)))

    @property
    def rows(self) -> int:
        """Rows of its first input."""
        return self.inputs[0].manifest["counts"]["output"]


@dataclass(frozen=True)
class PartWork:
    """Stages whose parts are made by the same workers.

    Attributes:
        stages: what is made, one after the other.
        open_job: takes the number of missing parts, opens what the workers need, such as engines,
            and yields their job. Called only if parts are missing.
    """

    stages: list[PartStage]
    open_job: Callable[[int], AbstractContextManager[PartJob]]


def part_work(stages: list[PartStage], job: PartJob) -> PartWork:
    """Return the work of a job that needs nothing opened first."""
    return PartWork(stages, lambda missing: nullcontext(job))


def to_table(make_work: Callable[P, PartWork]) -> Callable[P, Table]:
    """Turn a function that describes a stage's work into one that finishes the stage."""

    @functools.wraps(make_work)
    def finish(*arguments: P.args, **named: P.kwargs) -> Table:
        return run_work(make_work(*arguments, **named))[0]

    return finish


def run_work(work: PartWork) -> list[Table]:
    """Finish stages: make the missing parts, then commit.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    tables = [open_table(part_stage.stage) for part_stage in work.stages]
    missing = [
        (number, index)
        for number, (stage, table) in enumerate(zip(work.stages, tables, strict=True))
        if table is None
        for index in missing_parts(stage)
    ]
    if missing:
        with work.open_job(len(missing)) as job:
            _map_missing(work.stages, job, missing)
    return [
        table or commit_table(part_stage.stage, part_stage.parts)
        for part_stage, table in zip(work.stages, tables, strict=True)
    ]


def open_table(stage: Stage) -> Table | None:
    """The stage's table, if there is nothing to do; otherwise open the stage.

    Raises:
        QuarantineBudgetError: more rows were refused than the run allows now.
    """
    manifest = open_stage(stage)
    if manifest is None:
        return None
    check_quarantine_budget(stage, manifest["counts"])
    logger.info("[%s] nothing to do: %s", stage.place.label, describe_counts(manifest))
    return Table(stage.folder, manifest)


def missing_parts(part_stage: PartStage) -> list[int]:
    """Numbers of the parts that an interrupted run has not left; the log says how many it has."""
    total, done = part_stage.parts, part_stage.finished_parts()
    if 0 < len(done) < total:
        text = "[%s] goes on: %d of %d parts were done before"
        logger.info(text, part_stage.label, len(done), total)
    return [index for index in range(total) if index not in done]


def commit_table(
    stage: Stage, parts: int, check: Callable[[dict[str, int]], None] = lambda counts: None
) -> Table:
    """Finish a stage whose parts are all written; `check` may refuse its counts.

    Raises:
        QuarantineBudgetError: more rows were refused than the run allows.
    """

    def check_counts(counts: dict[str, int]) -> None:
        check_quarantine_budget(stage, counts)
        check(counts)

    manifest = commit(stage, {}, parts=parts, check=check_counts)
    logger.info("[%s] done: %s", stage.place.label, describe_counts(manifest))
    warn_of_cuts(stage.place.label, manifest)
    for line in (*position_lines(manifest["counts"]), *cost_lines(manifest)):
        logger.info("[%s] %s", stage.place.label, line)
    return Table(stage.folder, manifest)


def check_quarantine_budget(stage: Stage, counts: dict[str, int]) -> None:
    """Raise if a larger share of the input was refused than the run allows.

    Raises:
        QuarantineBudgetError: the share, the limit and where the rows are.
    """
    refused, rows = counts.get("quarantined", 0), counts.get("input", 0)
    allowed = stage.place.max_quarantined_fraction
    if refused > allowed * rows:
        raise QuarantineBudgetError(
            f"the {stage.name} stage refused {refused} of {rows} rows ({refused / rows:.2%})"
            + _commonest_reason(stage),
            f"at most {allowed:.2%} may be refused (max_quarantined_fraction)",
            f"read the reasons in {stage.folder.uri}/quarantine, fix the input or raise the limit",
        )


def warn_of_cuts(what: str, manifest: dict[str, Any]) -> None:
    """Warn in the log if many texts of a stage were cut short."""
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
    """Return a transform that this process made before and kept, or else make it now."""
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
        answer_within_seconds: float = ANSWER_WITHIN_SECONDS,
    ) -> None:
        self.stages = stages
        self.done = done
        self.answer_within_seconds = answer_within_seconds
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
        folder, part = stage.stage.folder, f"part-{index:05d}"
        with (
            attempted(folder, part, stage.label),
            telling(folder, part),
            beating(folder, part, stage.stage.name, self.answer_within_seconds),
        ):
            return make_part(stage, index, self.transform)


def make_part(part_stage: PartStage, index: int, transform: Transform) -> int:
    """Read a part of each input, transform and write it; returns the rows of the first input."""
    read = [table.read(index) for table in part_stage.inputs]
    tables = [rows for rows, _ in read]
    result = transform(*tables)
    if (witness := part_stage.witness) is not None:
        result = witness.hold(witness.table.part(index), tables[0], result)
    counts = {"input": len(tables[0]), **result.counts}
    made_from = [rows_hash for _, rows_hash in read]
    write_part(part_stage.stage, index, replace(result, counts=counts), made_from)
    return len(tables[0])


def _raise(error: RaydpoError, *_: list[Row]) -> PartResult:
    raise error


def _do_parts(
    batch: dict[str, Any], stages: list[PartStage], job: PartJob, done: frozenset[int]
) -> dict[str, list[int]]:
    """Ray Data task: do an actor's work, with the transform that this process has kept."""
    assert job.identity is not None
    kind = stages[0].stage.name
    make = functools.partial(kept_transform, kind, job.identity, job.make_transform)
    return _PartWorker(stages, make, done, job.workers.answer_within_seconds)(batch)


def _map_missing(stages: list[PartStage], job: PartJob, missing: list[tuple[int, int]]) -> None:
    """Let the workers do the missing parts: pairs of a stage's number and a part's."""
    progress = [_progress(stage, number, missing) for number, stage in enumerate(stages)]
    dataset = map_parts(numbered_parts(missing), len(missing), stages, job)
    for made in made_parts(dataset, [(stage, job.workers) for stage in stages]):
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
    """Let workers make `count` parts, except those in `done`.

    A job with an identity and without GPUs runs in Ray tasks, whose processes stay and keep what
    they have loaded. Ray ends the process of a task that held a GPU. Jobs on GPUs run in actors,
    which keep the model until the stage ends.

    Returns:
        A dataset of the numbers of the parts that are made.
    """
    size = min(job.workers.count, count)
    if job.identity is not None and not job.workers.gpus:
        compute: Any = ray.data.TaskPoolStrategy(size=size)
        worker = {"fn": _do_parts, "fn_args": (stages, job, done)}
    else:
        compute = ray.data.ActorPoolStrategy(size=size)
        arguments = (stages, job.make_transform, done, job.workers.answer_within_seconds)
        worker = {"fn": _PartWorker, "fn_constructor_args": arguments}
    return parts.map_batches(**worker, compute=compute, batch_size=1, **job.workers.resources())


@dataclass(frozen=True)
class MadePart:
    """A part that a worker has written: the number of its stage, its own, and rows it read."""

    stage: int
    part: int
    rows: int


def made_parts(
    dataset: ray.data.Dataset,
    stages: list[tuple[PartStage, Workers]],
    stop: Callable[[], bool] = lambda: False,
) -> Generator[MadePart]:
    """Yield the parts that workers write, each as soon as it is written.

    Ray Data's iterators over rows would hold each block back until the next one is there. While no
    part comes, the log says what the stages wait for. Processes that hang are ended.

    Args:
        dataset: of part numbers.
        stages: each with the workers that make its parts.
        stop: asked now and then; once it is true no more parts are waited for.

    Raises:
        RaydpoError: raised in a worker, it arrives here as it was raised.
    """
    what = stages[0][0].label
    for stage, _ in stages:
        forget_attempts(stage.stage.folder)
    with (
        own_errors(),
        notices_shown([(stage.stage.folder, stage.label) for stage, _ in stages]),
        watching([_watched(*one) for one in stages]) as watch,
        waiting(what, lambda: obstacle_of(watch, "the next part", [w for _, w in stages])) as wait,
    ):
        for batch in _batches(dataset, stop):
            wait.moved()
            columns = (batch[name] for name in ("stage", "part", "rows"))
            for numbers in zip(*columns, strict=True):
                yield MadePart(*map(int, numbers))


def _watched(part_stage: PartStage, workers: Workers) -> Watched:
    records = part_stage.stage.folder.child("_parts")
    return Watched(
        part_stage.stage.folder,
        part_stage.label,
        workers.answer_within_seconds,
        workers.answer_setting,
        lambda part: records.exists(f"{part.removeprefix('part-')}.json"),
    )


def obstacle_of(watch: Watch, what: str, workers: list[Workers]) -> Obstacle:
    """Describe what the next part waits for: work that goes on, or a worker that has to start."""
    if watch.at_work():
        limits = {f"{w.answer_within_seconds:g} s ({w.answer_setting})" for w in workers}
        return Obstacle(
            what,
            f"at work: {watch.words()}",
            f"it ends by itself; a process that shows nothing is ended after {', '.join(limits)}",
        )
    places = {f"{w.cpus:g} CPUs and {w.gpus:g} GPUs" for w in workers}
    return Obstacle(
        f"{what}, and for a worker of {' or of '.join(places)} to start",
        holders(),
        "its start; where it finds no room, others that end, another node, or workers that hold less",
    )


def _batches(dataset: ray.data.Dataset, stop: Callable[[], bool]) -> Generator[Any]:
    """Yield the data set's batches until `stop` returns true.

    A second thread reads them, so that this one can stop while no batch comes. If the caller leaves
    the loop early, Ray Data ends the work that it has begun.
    """
    arrivals: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    executors = _executors_of(dataset)

    def read() -> None:
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                arrivals.put(("batch", batch))
            arrivals.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            arrivals.put(("error", error))

    threading.Thread(target=read, name="raydpo-batches", daemon=True).start()
    try:
        while not stop():
            try:
                kind, value = arrivals.get(timeout=_SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                continue
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        for executor in executors:
            executor.shutdown(force=True)


def _executors_of(dataset: ray.data.Dataset) -> list[Any]:
    """Return a list that gets Ray Data's executor of this data set as soon as it is created.

    Ray Data itself shows the executor only after the first row. A stage whose workers find no place
    has no first row.
    """
    executors: list[Any] = []
    own: Any = dataset
    create = own._create_executor

    def create_and_tell() -> Any:
        executors.append(create())
        return executors[-1]

    own._create_executor = create_and_tell
    return executors


def _progress(stage: PartStage, number: int, missing: list[tuple[int, int]]) -> Progress:
    left = sum(of == number for of, _ in missing)
    done = stage.rows * (stage.parts - left) // max(1, stage.parts)
    return Progress(stage.label, "rows", stage.rows, done=done)
