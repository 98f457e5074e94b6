"""Prompts tables for the tests of sampling, and the rows of finished tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raydpo.parts import Table
from raydpo.run import PartResult, Stage, commit, open_stage, read_rows, write_part
from raydpo.storage import fingerprint, folder_of
from raydpo.tables import Row


def make_prompts(
    folder: Path, prompts: Sequence[tuple[str | int, list[int]]], rows_per_part: int
) -> Table:
    """Write a prompts table of (prompt_id, prompt_ids)."""
    rows = [
        {"prompt_id": str(name), "prompt": str(ids), "messages": None, "prompt_ids": ids}
        for name, ids in prompts
    ]
    stage = Stage(folder_of(str(folder)), "prompts", "prompts", {"rows": fingerprint(rows)}, {})
    open_stage(stage)
    for index, start in enumerate(range(0, len(rows), rows_per_part)):
        write_part(stage, index, PartResult(rows[start : start + rows_per_part]))
    return Table(stage.folder, commit(stage, {"input": len(rows)}))


def rows_of(table: Table) -> list[Row]:
    """All rows of a finished table."""
    return list(read_rows(table.folder, table.manifest))


def key_of(row: Row) -> tuple[str, int]:
    """What identifies a candidate."""
    return row["prompt_id"], row["candidate"]
