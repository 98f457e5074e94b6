"""A table in the making: which of its parts are there before a chain runs."""

from __future__ import annotations

from pathlib import Path

from raydpo.parts import PartStage, Table
from raydpo.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.storage import folder_of
from raydpo.stream import _stream


def stage_of(folder: Path, name: str) -> Stage:
    return Stage(folder_of(str(folder / name)), name, "prompts", {"of": name}, {})


def row(number: int) -> dict[str, object]:
    ids = [number]
    return {"prompt_id": str(number), "prompt": "p", "messages": None, "prompt_ids": ids}


def test_files_of_an_earlier_run_are_hashed_once_for_all_stages_that_ask(tmp_path: Path) -> None:
    source, made = stage_of(tmp_path, "source"), stage_of(tmp_path, "made")
    for stage in (source, made):
        open_stage(stage)
        for index in range(2):
            write_part(stage, index, PartResult([row(index)]), made_from=["x"])
    table = Table(source.folder, commit(source, {"input": 2}))
    stream = _stream(PartStage(made, [table], "test"))
    hashes = stream.part_hashes()
    assert hashes == {index: made.folder.sha256(f"part-0000{index}.parquet") for index in range(2)}
    (tmp_path / "made/part-00000.parquet").write_bytes(b"written by the chain meanwhile")
    assert stream.part_hashes() == hashes
    assert _stream(PartStage(made, [table], "test")).part_hashes().keys() == {1}
