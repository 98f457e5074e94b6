"""`raydpo replay`: make stages of a run again in another folder, and compare them with the run.

For each stage it says whether the run's own inputs and settings give the same content here, and
what differs if they do not. The run is read and never written into.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from raydpo.config.job import Config
from raydpo.core.cluster import connected
from raydpo.core.errors import RaydpoError, RunError
from raydpo.core.progress import logger
from raydpo.core.run import read_manifest, stale_because
from raydpo.core.storage import Folder, folder_of
from raydpo.core.walk import Planned
from raydpo.pipeline.results import Run, open_run
from raydpo.show.comparison import changed_files, differences, other_platform
from raydpo.show.inputs import Again
from raydpo.show.online_steps import online_steps
from raydpo.show.steps import Step, round_steps, score_steps, sft_steps

_MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Replayed:
    """What came of a stage.

    Attributes:
        stage: its folder in the run directory.
        problems: what differs, or why it was not made again; none where its content is equal.
        made: whether it was made again.
    """

    stage: str
    problems: list[str] = field(default_factory=list[str])
    made: bool = True

    def __str__(self) -> str:
        state = "equal" if not self.problems else "differs" if self.made else "not made again"
        return "\n    ".join([f"{self.stage:36} {state}", *self.problems])


@dataclass(frozen=True)
class _Ready:
    """A step that can be made, or what forbids it."""

    step: Step
    planned: Planned | None = None
    refused: RaydpoError | None = None
    problems: list[str] = field(default_factory=list[str])


def replay(path: str, names: Sequence[str] = (), output: str | None = None) -> Iterator[Replayed]:
    """Make finished stages of a run again, each from the run's own tables, and compare them.

    All that is asked for is looked at before a cluster is started.

    Args:
        path: the run directory.
        names: stages as `raydpo show` prints them, or the last part of that: then in every round.
            Without any, all that are finished.
        output: where they go: a folder that is new or empty, and is kept. Without it they go into
            a folder beside the run, which is deleted unless something differs.

    Raises:
        RunError: there is no such run or stage, a stage is not finished, or `output` is in use.
        RaydpoError: a stage that was named lacks an input.
    """
    run = open_run(path)
    target = _target(run.folder, output)
    ready = _ready(run, target, names)
    if names:
        for refused in (one.refused for one in ready if one.refused is not None):
            raise refused
    if not any(one.planned for one in ready):
        yield from map(_not_made, ready)
        return
    kept = _deleted_where_equal(target, output is not None)
    with kept as differ, connected(run.config.ray_address):
        for one in ready:
            for found in _replayed(one, run.folder, target):
                differ.append(bool(found.problems))
                yield found


def _target(run: Folder, output: str | None) -> Folder:
    """Where stages are made again.

    Raises:
        RunError: there are files, or it is a folder of the run.
    """
    if output is None:
        return Folder(f"{run.uri.rstrip('/')}.replay-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    target = folder_of(output)
    inside = _place(target).startswith(_place(run))
    if inside or target.files(recursive=True):
        raise RunError(
            f"--output {target.uri} is {'in the run directory' if inside else 'not empty'}",
            "stages are made again in a folder of their own, and the run is never written into",
            "give a folder that does not exist yet; all nodes of a cluster must reach it",
        )
    return target


def _place(folder: Folder) -> str:
    """Where a folder really is, with a slash at its end."""
    return f"{folder.local_path().resolve() if folder.is_local else folder.uri.rstrip('/')}/"


def _ready(run: Run, target: Folder, names: Sequence[str]) -> list[_Ready]:
    """The steps that are asked for, with what forbids them."""
    again = Again(_without_trackers(run.config), run.folder, target)
    rounds = run.rounds
    of_rounds = run.folder.child("prompts").files() or run.folder.child("examples").files()
    steps = [*sft_steps(again), *score_steps(again)]
    if rounds:
        steps += online_steps(again, rounds) if of_rounds else round_steps(again)
    finished = [step for step in steps if step.finished_in(run.folder)]
    _refuse_other_names(run.folder, [step.name for step in finished], names)
    wanted = [step for step in finished if not names or any(_calls(n, step.name) for n in names)]
    return [_looked_at(step, run.folder) for step in wanted]


def _without_trackers(config: Config) -> Config:
    """The job as it trains for a comparison: no tracker shows it as one more run."""
    update = {
        name: trained.model_copy(update={"trackers": ()})
        for name in ("training", "sft")
        if (trained := getattr(config, name)) is not None
    }
    return config.model_copy(update=update)


def _refuse_other_names(run: Folder, finished: list[str], names: Sequence[str]) -> None:
    """Compare the names that were given with those of finished stages.

    Raises:
        RunError: one is none of them, or there are none at all.
    """
    rule = "a finished stage is made again, named as `raydpo show` prints it"
    there = ", ".join(finished) or "none"
    for name in names:
        if not any(_calls(name, one) for one in finished):
            raise RunError(
                f"{run.uri}: {name!r} {_state_of(run, name)}",
                f"{rule}; finished here: {there}",
                "name one of these, or give the command of the run again to finish it",
            )
    if not finished:
        raise RunError(
            f"{run.uri} has no finished stage", rule, "give the command of the run again"
        )


def _calls(name: str, step: str) -> bool:
    """Whether a user's name is the folder of a step, the end of it, or a folder inside it."""
    name = name.strip("/")
    return f"/{step}".endswith(f"/{name}") or name.startswith(f"{step}/")


def _state_of(run: Folder, name: str) -> str:
    """What a name is that calls no finished step."""
    files = run.files(recursive=True)
    if any(_calls(name, f.removesuffix(f"/{_MANIFEST}")) for f in files if f.endswith(_MANIFEST)):
        return "is made together with another stage"
    begun = any(
        _calls(name, f.removesuffix("/plan.json")) for f in files if f.endswith("plan.json")
    )
    return "is begun, not finished" if begun else "is no stage of it"


def _looked_at(step: Step, run: Folder) -> _Ready:
    """Plan a step, and compare what it would be made from with its manifest."""
    try:
        planned = step.plan()
        stage = planned.describe()
        manifest = read_manifest(run.child(step.name))
    except RaydpoError as error:
        return _Ready(step, refused=error)
    if stage is None or manifest is None or stage.key == manifest["key"]:
        return _Ready(step, planned)
    why = f"it would be made from something else: {stale_because(manifest, stage)}"
    changed = changed_files(run.child(step.name), manifest)
    return _Ready(step, problems=[why, *changed, *other_platform(manifest)])


def _not_made(ready: _Ready) -> Replayed:
    reasons = str(ready.refused).splitlines() if ready.refused else ready.problems
    return Replayed(ready.step.name, [line.strip() for line in reasons], made=False)


def _replayed(ready: _Ready, run: Folder, target: Folder) -> Iterator[Replayed]:
    if ready.planned is None:
        yield _not_made(ready)
    else:
        logger.info("[replay] %s", ready.step.name)
        yield from made_again(ready.step, ready.planned, run, target)


def made_again(step: Step, planned: Planned, run: Folder, target: Folder) -> Iterator[Replayed]:
    """Make a step again, and compare it and the stages inside it with those of the run.

    Args:
        step: what is made.
        planned: the same, with the inputs that were read for it.
        run: the run directory.
        target: the folder that it goes into.
    """
    before = _finished(target)
    try:
        planned.make()
    except RaydpoError as error:
        lines = ["it could not be made again:", *(line.strip() for line in str(error).splitlines())]
        yield Replayed(step.name, lines, made=False)
        return
    if not step.finished_in(target):
        why = "the job of the run's last command makes no such stage"
        yield Replayed(step.name, [why], made=False)
    for name in sorted(_finished(target) - before):
        if read_manifest(run.child(name)) is None:
            yield Replayed(name, ["the run has no such stage, or it is not finished"])
        else:
            yield Replayed(name, differences(run.child(name), target.child(name)))


def _finished(folder: Folder) -> set[str]:
    """Names of the finished stages in a folder."""
    end = f"/{_MANIFEST}"
    return {n.removesuffix(end) for n in folder.files(recursive=True) if n.endswith(end)}


@contextmanager
def _deleted_where_equal(target: Folder, keep: bool) -> Generator[list[bool]]:
    """Delete the folder at the end, unless something differs; the block notes what does."""
    differ: list[bool] = []
    try:
        yield differ
    finally:
        if keep or any(differ):
            logger.info("[replay] what was made again is in %s", target.uri)
        else:
            target.delete()
