"""Walk through stages, and make each one or only look at it.

`pipeline/order.py` names the stages of a round in their order, once, and hands each to a walk. The
run's walk makes it. The dry run's walk (`pipeline/dry_run.py`) says what would become of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from raydpo.core.parts import PartWork, Table, run_work
from raydpo.core.place import Place
from raydpo.core.progress import logger
from raydpo.core.run import Stage, read_manifest
from raydpo.core.storage import Folder

#: Stands for the fingerprint of a table that has to be made first.
UNKNOWN: Final = "to be made"


@dataclass(frozen=True)
class Planned:
    """A stage that is not made yet.

    Attributes:
        place: where it goes.
        make: makes it; keeps it if it is finished.
        describe: says what it would be made from. None if that is only known once it is made, or
            if there is nothing to make.
        trained: a model that must be there before `describe` can read it, and its name in
            messages.
    """

    place: Place
    make: Callable[[], object]
    describe: Callable[[], Stage | None] = lambda: None
    trained: tuple[Table, str] | None = None


def planned_work(place: Place, work: Callable[[], PartWork]) -> Planned:
    """Plan the one stage of a `PartWork`."""
    return Planned(place, lambda: run_work(work())[0], lambda: work().stages[0].stage)


def table_there(folder: Folder) -> Table:
    """Return a table as it is, or one with the fingerprint `UNKNOWN` if it is not finished."""
    return Table(folder, read_manifest(folder) or {"fingerprint": UNKNOWN})


class Walk(Protocol):
    """What is done with the stages of a round, one after the other."""

    def stage(self, planned: Planned) -> Table:
        """Take the next stage. Return its table, or the folder of a model or report as one."""
        ...

    def between(self, act: Callable[[], object]) -> None:
        """Do what belongs between two stages and makes no table for a later one."""
        ...

    def skip(self, place: Place, why: str) -> None:
        """Leave out a stage that this job does not need."""
        ...

    def wait(self, place: Place, what_for: str) -> None:
        """Stop before a stage that waits for people."""
        ...


class Making:
    """Makes the stages."""

    def stage(self, planned: Planned) -> Table:
        """Make the stage; a stage with nothing to make has an empty manifest."""
        made = planned.make()
        if isinstance(made, Table):
            return made
        return Table(planned.place.folder, read_manifest(planned.place.folder) or {})

    def between(self, act: Callable[[], object]) -> None:
        """Do it."""
        act()

    def skip(self, place: Place, why: str) -> None:
        """Log that the stage is left out."""
        logger.info("[%s] skipped: %s", place.label, why)

    def wait(self, place: Place, what_for: str) -> None:
        """Do nothing: the command's result says what it waits for."""
