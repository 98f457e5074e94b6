"""Stages on the driver keep the parts that an interrupted run has left, if their sources are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydpo.core.on_driver import map_on_driver, write_on_driver
from raydpo.core.parts import Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, read_rows, write_part
from raydpo.core.storage import folder_of

Row = dict[str, Any]


@pytest.fixture
def source(tmp_path: Path) -> Table:
    stage = Stage(Place(folder_of(str(tmp_path / "source")), "test"), "source", "examples", {}, {})
    open_stage(stage)
    for index in range(4):
        write_part(
            stage,
            index,
            PartResult([{"example_id": f"p{index}", "token_ids": [1], "prompt_tokens": 0}]),
        )
    return Table(stage.folder, commit(stage, {}))


class Interrupted(Exception):
    pass


def test_a_map_goes_on_after_its_last_part(tmp_path: Path, source: Table) -> None:
    stage = Stage(
        Place(folder_of(str(tmp_path / "made")), "test"), "made", "examples", {"of": "x"}, {}
    )
    seen: list[str] = []

    def part(rows: list[Row], stop_at: str = "p2") -> PartResult:
        seen.append(rows[0]["example_id"])
        if rows[0]["example_id"] == stop_at:
            raise Interrupted
        return PartResult(rows, counts={"input": len(rows)})

    with pytest.raises(Interrupted):
        map_on_driver(stage, part, source)
    table = map_on_driver(stage, lambda rows: part(rows, "none"), source)
    assert seen == ["p0", "p1", "p2", "p2", "p3"]
    assert [row["example_id"] for row in read_rows(table.folder, table.manifest)] == [
        f"p{index}" for index in range(4)
    ]
    assert map_on_driver(stage, part, source).manifest == table.manifest
    assert len(seen) == 5


def test_parts_in_order_are_written_once(tmp_path: Path, source: Table) -> None:
    stage = Stage(
        Place(folder_of(str(tmp_path / "made")), "test"), "made", "examples", {"of": "x"}, {}
    )

    def parts(stop_at: int) -> Iterator[PartResult]:
        for index in range(source.manifest["parts"]):
            if index == stop_at:
                raise Interrupted
            yield PartResult(source.part(index), counts={"input": 1})

    with pytest.raises(Interrupted):
        write_on_driver(stage, lambda: parts(2))
    left = (tmp_path / "made/part-00000.parquet").stat().st_mtime_ns
    table = write_on_driver(stage, lambda: parts(-1))
    assert table.manifest["parts"] == 4
    assert (tmp_path / "made/part-00000.parquet").stat().st_mtime_ns == left
