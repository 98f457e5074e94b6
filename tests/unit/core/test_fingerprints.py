"""Fingerprints cover rows in order: the same for any parts, different for any other row or order."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from raydpo.core.errors import DataError
from raydpo.core.fingerprints import joined_hash, rows_hash
from raydpo.core.place import Place
from raydpo.core.run import (
    PartResult,
    Stage,
    commit,
    finished_parts,
    layout_of,
    look_at,
    open_stage,
    read_manifest,
    read_rows,
    write_part,
)
from raydpo.core.storage import folder_of
from raydpo.core.tables import Row


def row(number: int) -> Row:
    return {"example_id": str(number), "token_ids": [number], "prompt_tokens": 0}


ROWS = [row(number) for number in range(13)]


def cut(rows: list[Row], places: list[int]) -> list[list[Row]]:
    ends = [0, *places, len(rows)]
    return [rows[begin:end] for begin, end in itertools.pairwise(ends)]


def joined(parts: list[list[Row]]) -> str:
    return joined_hash((rows_hash(part), len(part)) for part in parts)


def test_a_table_has_one_fingerprint_however_it_is_cut() -> None:
    draws = random.Random(1)
    cuts = [sorted(draws.choices(range(len(ROWS) + 1), k=draws.randrange(6))) for _ in range(200)]
    assert {joined(cut(ROWS, places)) for places in cuts} == {joined([ROWS])}  # empty parts as well


def test_another_row_another_order_or_another_number_of_rows_is_another_fingerprint() -> None:
    others = [[*ROWS[:i], row(99), *ROWS[i + 1 :]] for i in range(len(ROWS))]
    others += [[*ROWS[:i], ROWS[i + 1], ROWS[i], *ROWS[i + 2 :]] for i in range(len(ROWS) - 1)]
    others += [ROWS[1:], ROWS[:-1], [*ROWS, ROWS[-1]], [ROWS[0], *ROWS], ROWS[::-1], []]
    found = [joined(cut(rows, [len(rows) // 2])) for rows in [ROWS, *others]]
    assert len(set(found)) == len(found)


def stage_in(folder: Path, rows_per_part: int, **settings: object) -> Stage:
    return Stage(
        Place(folder_of(str(folder)), "test"),
        "examples",
        "examples",
        {"source": "abc"},
        {"limit": 3, **settings},
        layout={"rows_per_part": rows_per_part},
    )


def finish(stage: Stage) -> dict[str, object]:
    open_stage(stage)
    size = layout_of(stage)["rows_per_part"]
    parts = cut(ROWS, list(range(size, len(ROWS), size)))
    done = finished_parts(stage)
    for index, part in enumerate(parts):
        if index not in done:
            write_part(stage, index, PartResult(part, counts={"input": len(part)}))
    return commit(stage, {}, parts=len(parts))


def test_the_fingerprint_is_that_of_the_rows_as_they_are_read_back(tmp_path: Path) -> None:
    manifests = [finish(stage_in(tmp_path / str(size), size)) for size in (3, 5)]
    assert manifests[0]["parts"] != manifests[1]["parts"]
    for size, manifest in zip((3, 5), manifests, strict=True):
        assert manifest["fingerprint"] == joined([ROWS])
        assert list(read_rows(folder_of(str(tmp_path / str(size))), manifest)) == ROWS


def test_a_finished_table_keeps_its_parts_whatever_the_parts_of_today(tmp_path: Path) -> None:
    manifest = finish(stage_in(tmp_path, 3))
    assert open_stage(stage_in(tmp_path, 5)) == manifest
    state, why = look_at(stage_in(tmp_path, 5, limit=4))
    assert (state, why) == ("stale", "setting 'limit' changed: 3 -> 4")


def test_a_table_that_is_begun_goes_on_with_the_parts_that_it_has(tmp_path: Path) -> None:
    begun = stage_in(tmp_path, 3)
    open_stage(begun)
    write_part(begun, 0, PartResult(ROWS[:3]))
    written = (tmp_path / "part-00000.parquet").stat().st_mtime_ns
    manifest = finish(stage_in(tmp_path, 5))
    assert (manifest["layout"], manifest["parts"]) == ({"rows_per_part": 3}, 5)
    assert (tmp_path / "part-00000.parquet").stat().st_mtime_ns == written
    assert list(read_rows(folder_of(str(tmp_path)), manifest)) == ROWS


def test_a_damaged_part_is_made_again_in_the_size_that_it_had(tmp_path: Path) -> None:
    manifest = finish(stage_in(tmp_path, 3))
    (tmp_path / "part-00002.parquet").write_bytes(b"flipped")
    again = finish(stage_in(tmp_path, 5))
    assert again["fingerprint"] == manifest["fingerprint"]
    assert again["layout"] == {"rows_per_part": 3}
    assert list(read_rows(folder_of(str(tmp_path)), again)) == ROWS


def test_parts_beyond_the_last_one_are_no_part_of_the_table(tmp_path: Path) -> None:
    stage = stage_in(tmp_path, 1)
    open_stage(stage)
    for index in range(3):
        write_part(stage, index, PartResult([row(index)]))
    manifest = commit(stage, {}, parts=2)
    assert [r["example_id"] for r in read_rows(stage.folder, manifest)] == ["0", "1"]
    assert not (tmp_path / "part-00002.parquet").exists()


def test_a_manifest_of_another_format_is_stale_and_says_so(tmp_path: Path) -> None:
    stage = stage_in(tmp_path, 3)
    finish(stage)
    older = read_manifest(stage.folder)
    assert older is not None
    from raydpo.core.checked import write_checked

    values = {name: value for name, value in older.items() if name != "checksum"}
    write_checked(stage.folder, "manifest.json", {**values, "format": 2, "key": "of before"})
    state, why = look_at(stage)
    assert state == "stale"
    assert "in the format 2" in why


def test_scores_of_other_parts_than_the_candidates_are_refused() -> None:
    from raydpo.labeling.preferences import _refuse_other_prompts

    candidates = [{"prompt_id": "a"}, {"prompt_id": "b"}]
    _refuse_other_prompts(candidates, [{"prompt_id": "a"}])
    with pytest.raises(DataError, match="--redo scores"):
        _refuse_other_prompts(candidates, [{"prompt_id": "c"}])
