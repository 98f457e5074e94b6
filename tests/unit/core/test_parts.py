from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from raydpo.core.errors import QuarantineBudgetError
from raydpo.core.parts import Transform, check_quarantine_budget, kept_transform
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, open_stage, write_part
from raydpo.core.storage import Folder


def test_too_many_refused_rows_are_told_with_their_commonest_reason(tmp_path: Path) -> None:
    place = Place(Folder(str(tmp_path / "scores")), "test", max_quarantined_fraction=0.1)
    stage = Stage(place, "scores", "scores", {}, {})
    open_stage(stage)
    reasons = [["length: KeyError at my_rewards.py:3, in length", "other"], ["other", "other"]]
    for index, part in enumerate(reasons):
        refused = [
            {"stage": "scores", "id": f"{index}-{n}", "reason": reason, "row": "{}"}
            for n, reason in enumerate(part)
        ]
        write_part(stage, index, PartResult([], refused, {"input": 10}))
    generous = replace(stage, place=replace(place, max_quarantined_fraction=0.2))
    check_quarantine_budget(generous, {"input": 20, "quarantined": 4})
    with pytest.raises(QuarantineBudgetError) as caught:
        check_quarantine_budget(stage, {"input": 20, "quarantined": 4})
    assert "refused 4 of 20 rows (20.00%)\n    most often (3): other\n" in str(caught.value)


def test_a_process_keeps_the_transform_that_it_made_last_for_each_kind_of_stage() -> None:
    made: list[str] = []

    def make(name: str) -> Transform:
        made.append(name)
        return lambda rows: PartResult(rows)

    def kept(kind: str, identity: str) -> Transform:
        return kept_transform(kind, identity, functools.partial(make, kind + identity))

    first = kept("scores", "a")
    other = kept("reference", "a")
    assert kept("scores", "a") is first
    kept("scores", "b")
    assert kept("scores", "a") is not first
    assert kept("reference", "a") is other
    assert made == ["scoresa", "referencea", "scoresb", "scoresa"]
