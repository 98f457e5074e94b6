"""Where a stage stands in a run: the one value that is handed to every stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raydpo.core.storage import Folder


@dataclass(frozen=True)
class Place:
    """Where a stage stands in a run, and what the run says to all of its stages.

    Attributes:
        folder: of the stage.
        label: the stage and round, for the log.
        seed: of the run; with the round and the rows' ids it fixes all random draws.
        round_index: the round.
        max_quarantined_fraction: share of the input rows that the stage may refuse.
    """

    folder: Folder
    label: str
    seed: int = 0
    round_index: int = 0
    max_quarantined_fraction: float = 0.0

    def inside(self, name: str) -> Place:
        """Return the place of a stage in a folder inside this one; the log calls it by its name."""
        label = f"{self.label}, {name.replace('_', ' ').replace('-', ' ')}"
        return replace(self, folder=self.folder.child(name), label=label)
