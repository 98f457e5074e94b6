"""A stage from outside the package is made, kept, looked at and made again like the package's own.

It is the worked example of CONTRIBUTING.md, "Add a stage".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.core.errors import QuarantineBudgetError
from raydpo.core.on_driver import map_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import Folder, folder_of
from raydpo.core.tables import Row
from raydpo.core.walk import Making, Planned
from raydpo.labeling.groups import preference_row
from raydpo.pipeline.dry_run import Looking
from tests.unit.labeling.conftest import candidate_row


def balanced(place: Place, preferences: Table, most_times: float) -> Planned:
    """Leave out groups with a pair whose chosen completion is `most_times` longer, in tokens."""

    def describe() -> Stage:
        inputs, settings = {"preferences": preferences.fingerprint}, {"most_times": most_times}
        return Stage(place, "balanced", "preferences", inputs, settings)

    def part(groups: list[Row]) -> PartResult:
        kept = [group for group in groups if _longest_ratio(group) <= most_times]
        return PartResult(kept, counts={"unbalanced": len(groups) - len(kept)})

    return Planned(place, lambda: map_on_driver(describe(), part, preferences), describe)


def _longest_ratio(group: Row) -> float:
    lengths = [len(ids) for ids in group["completions"]]
    return max(lengths[pair["chosen"]] / lengths[pair["rejected"]] for pair in group["pairs"])


def group(name: str, chosen_tokens: int) -> Row:
    chosen = {**candidate_row(name, 0), "completion_ids": [1] * chosen_tokens}
    rejected = {**candidate_row(name, 1), "completion_ids": [2, 3]}
    return preference_row([chosen, rejected], [(0, 1)], [1.0])


def place(folder: Folder, **budget: Any) -> Place:
    return Place(folder.child("balanced"), "round 0, labeling, balanced", **budget)


@pytest.fixture
def preferences(tmp_path: Path) -> Table:
    """Two parts with a group each, one of them with a long chosen completion."""
    folder = folder_of(str(tmp_path)).child("preferences")
    stage = Stage(Place(folder, "test"), "preferences", "preferences", {}, {})
    assert open_stage(stage) is None
    for index, tokens in enumerate((2, 9)):
        write_part(stage, index, PartResult([group(f"g{index}", tokens)], counts={"input": 1}))
    return Table(folder, commit(stage, {}))


def outlook(planned: Planned) -> str:
    looking = Looking(set())
    looking.stage(planned)
    [found] = looking.found
    return str(found)


def test_it_is_made_once_and_made_again_for_another_setting(
    tmp_path: Path, preferences: Table, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raydpo")
    folder = folder_of(str(tmp_path))
    planned = balanced(place(folder), preferences, 2.0)
    assert outlook(planned) == "balanced           done"
    table = Making().stage(planned)
    assert [row["group_id"] for part in range(2) for row in table.part(part)] == ["g0"]
    assert table.manifest["counts"] == {"input": 2, "unbalanced": 1, "output": 1, "quarantined": 0}
    assert outlook(planned) == "balanced           kept"
    assert Making().stage(planned).fingerprint == table.fingerprint

    other = balanced(place(folder), preferences, 5.0)
    assert outlook(other).endswith("done again: setting 'most_times' changed: 2.0 -> 5.0")
    assert len(Making().stage(other).part(1)) == 1
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "[round 0, labeling, balanced] nothing to do" in said


def test_the_stage_after_it_is_looked_at_while_it_is_not_there(
    tmp_path: Path, preferences: Table
) -> None:
    folder = folder_of(str(tmp_path))
    later = Place(folder.child("later"), "round 0, later")
    looking = Looking(set())
    table = looking.stage(balanced(place(folder), preferences, 2.0))
    looking.stage(balanced(later, table, 2.0))
    assert [str(found).split() for found in looking.found] == [
        ["balanced", "done"],
        ["later", "done"],
    ]


def test_it_keeps_to_the_runs_budget_of_refused_rows(tmp_path: Path, preferences: Table) -> None:
    at = place(folder_of(str(tmp_path)), max_quarantined_fraction=0.1)
    stage = Stage(at, "balanced", "preferences", {"preferences": preferences.fingerprint}, {})

    def refuse(groups: list[Row]) -> PartResult:
        row = {"stage": "balanced", "id": "g", "reason": "of no use", "row": "{}"}
        return PartResult([], [row] * len(groups))

    with pytest.raises(QuarantineBudgetError, match=r"most often \(2\): of no use"):
        Making().stage(Planned(at, lambda: map_on_driver(stage, refuse, preferences)))
