"""Report what a command would do, stage by stage, without a cluster and without changing
anything.

The module walks through the stages in the order in which a run makes them (`order.run_stages`).
From the configuration and the run directory it makes one line per stage, with the same keys by
which the stages decide. If a stage has to run first, its table is not known yet. A stage that
depends on it will be kept if that table turns out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from raydpo.config.job import Config
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import Stage, look_at, read_manifest, round_folder, run_folder
from raydpo.core.storage import Folder
from raydpo.core.walk import UNKNOWN, Planned
from raydpo.pipeline.job import check_sections, refuse_to_replace_people
from raydpo.pipeline.order import redone_folders, run_stages
from raydpo.pipeline.round import Round


@dataclass(frozen=True)
class Outlook:
    """What a command would do with a stage, and why."""

    stage: str
    action: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.stage:18} {self.action}" + (f": {self.why}" if self.why else "")


def outlook_of_round(config: Config, until: str, redo: Collection[str] = ()) -> list[Outlook]:
    """Return what `run_round` would do, in order.

    Args:
        config: the job.
        until: the last stage.
        redo: finished stages that are to run again.

    Raises:
        RaydpoError: the command would refuse the job or a stage's source.
    """
    check_sections(config, until, redo)
    folder = round_folder(run_folder(config.output, config.name), 0)
    refuse_to_replace_people(config, folder, until, redo)
    taken = {name for stage in redo for name in redone_folders(stage)}
    return outlook_in(config, folder, until, taken)


def outlook_in(
    config: Config, folder: Folder, until: str, taken: Collection[str] = ()
) -> list[Outlook]:
    """Return what a job would do in a round's folder, in order.

    Args:
        config: the job.
        folder: the folder of the round, wherever the run directory is.
        until: the last stage.
        taken: folders that are removed first.
    """
    looking = Looking(set(taken))
    run_stages(Round(config, folder, 0), until, looking)
    return looking.found


@dataclass
class Looking:
    """The walk that only looks.

    Attributes:
        taken: folders that `--redo` removes first.
        found: what would become of each stage so far.
    """

    taken: set[str]
    found: list[Outlook] = field(default_factory=list[Outlook])

    def stage(self, planned: Planned) -> Table:
        """Note what would happen to a stage; return its table, or one that is not known yet."""
        name = _name(planned.place)
        manifest = read_manifest(planned.place.folder)
        unknown = Table(planned.place.folder, {"fingerprint": UNKNOWN})
        if planned.trained is not None and not _known(planned.trained[0]):
            why = f"the {planned.trained[1]} is trained first"
            again = Outlook(name, "done again", why)
            self.found.append(again if manifest is not None else Outlook(name, "done"))
            return unknown
        stage = planned.describe()
        if stage is None:
            return unknown
        outlook = _outlook(name, stage, name in self.taken)
        self.found.append(outlook)
        if outlook.action != "kept" or manifest is None:
            return unknown
        return Table(planned.place.folder, manifest)

    def between(self, act: Callable[[], object]) -> None:
        """Do nothing: there may be nothing to check yet."""

    def skip(self, place: Place, why: str) -> None:
        """Note a stage that this job does not need."""
        self.found.append(Outlook(_name(place), "skipped", why))

    def wait(self, place: Place, what_for: str) -> None:
        """Note a stage that waits for people."""
        self.found.append(Outlook(_name(place), "waits", what_for))


def _name(place: Place) -> str:
    return place.folder.uri.rpartition("/")[2]


def _known(table: Table) -> bool:
    return table.fingerprint != UNKNOWN


def _outlook(name: str, stage: Stage, taken: bool) -> Outlook:
    """Return what would happen to a stage; missing inputs are assumed to stay as they were."""
    if taken:
        return Outlook(name, "done again", "--redo")
    unknown = [kind for kind, value in stage.inputs.items() if value == UNKNOWN]
    found = read_manifest(stage.folder)
    if unknown and found is not None:
        as_before = {kind: found["inputs"].get(kind) for kind in unknown}
        stage = replace(stage, inputs={**stage.inputs, **as_before})
    state, why = look_at(stage)
    if state == "done" and unknown:
        return Outlook(
            name, "looked at again", f"kept where {', '.join(unknown)} come(s) out alike"
        )
    actions = {"done": "kept", "begun": "goes on", "stale": "done again", "new": "done"}
    return Outlook(name, actions[state], why)
