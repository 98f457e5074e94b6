"""An unfinished table: which of its parts exist before a chain runs."""

from __future__ import annotations

from pathlib import Path

from raydpo.core.chain import _stream
from raydpo.core.fingerprints import rows_hash
from raydpo.core.parts import PartStage, Table
from raydpo.core.place import Place
from raydpo.core.run import PartResult, Stage, commit, open_stage, write_part
from raydpo.core.storage import folder_of


def stage_of(folder: Path, name: str) -> Stage:
    return Stage(Place(folder_of(str(folder / name)), "test"), name, "prompts", {"of": name}, {})


def row(number: int) -> dict[str, object]:
    ids = [number]
    return {"prompt_id": str(number), "prompt": "p", "messages": None, "prompt_ids": ids}


def test_files_of_an_earlier_run_are_looked_at_once_for_all_stages_that_ask(tmp_path: Path) -> None:
    source, made = stage_of(tmp_path, "source"), stage_of(tmp_path, "made")
    for stage in (source, made):
        open_stage(stage)
        for index in range(2):
            write_part(stage, index, PartResult([row(index)]), made_from=["x"])
    table = Table(source.folder, commit(source, {"input": 2}))
    stream = _stream(PartStage(made, [table]))
    hashes = stream.part_hashes()
    assert hashes == {index: rows_hash([row(index)]) for index in range(2)}
    (tmp_path / "made/part-00000.parquet").write_bytes(b"written by the chain meanwhile")
    assert stream.part_hashes() == hashes
    assert _stream(PartStage(made, [table])).part_hashes().keys() == {1}
